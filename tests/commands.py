"""Commands of `labelwise`, typed in a folder with a small acquisition."""

from typer.testing import CliRunner

from labelwise.cli.main import app
from labelwise.networks.network import load

SMALL = ("--signals", "2000", "--epochs", "2", "--restarts", "1")
TRAIN = ("train", "--model", "adc", "--bvals", "dwi.bval", "--out", "net.safetensors", *SMALL)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trained(*options, name="net"):
    result = run(*TRAIN, *options, "--out", f"{name}.safetensors")
    assert result.exit_code == 0, result.stderr
    return load(f"{name}.safetensors"), result.stdout


def complaint(*arguments):
    """The one line that a refused command prints."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    return result.stderr
