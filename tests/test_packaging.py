"""What says the version and the dependencies a second time says the same."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_CONDA = {"matplotlib-base": "matplotlib"}


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["title"] == PROJECT["name"]
    assert f"https://doi.org/{citation['preferred-citation']['doi']}" == PROJECT["urls"]["Paper"]


def test_the_conda_recipe_has_the_dependencies_of_the_package():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "meta.yaml").read_text())
    python, *packages = recipe["requirements"]["run"]
    assert python == f"python {PROJECT['requires-python']}"
    ours = dict(each.split(" ", 1) for each in packages)
    ours = {OF_CONDA.get(name, name): versions for name, versions in ours.items()}
    theirs = dict(re.fullmatch(r"([\w-]+)(.*)", each).groups() for each in PROJECT["dependencies"])
    assert ours == theirs
    assert recipe["package"]["version"] == PROJECT["version"]


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_install_extras_that_there_are(name):
    text = (ROOT / "packaging" / name).read_text(encoding="utf-8")
    (extras,) = re.findall(r'"/src\[(.*)\]"', text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
