"""Options shared by commands, and the conversion of their text to objects.

Slow imports are inside the functions, so that `labelwise --help` is fast.
"""

from __future__ import annotations

import gc
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise import interrupts
from labelwise.errors import InputError
from labelwise.limits import check_sigma

if TYPE_CHECKING:
    from labelwise.models import SignalModel
    from labelwise.noise import NoiseModel

SETTING_OPTIONS = {
    **{"b": "--bvals", "te": "--te", "ti": "--ti", "flip_angle": "--flip-angles"},
    **dict.fromkeys(("gx", "gy", "gz"), "--bvecs"),
}
"""The option that gives a setting; all others come from a table."""
_SIGMA = (
    "the noise of one channel in the image's unit, as a number (12), a map of it (sigma.nii.gz), "
    "or a method to estimate it: 'repeats', 'mppca', 'background', 'residuals' or 'auto'"
)


_SIGNED = {"t1_ir": "t1_ir_signed"}  # the models whose signal is a magnitude by an absolute value
_ENDING = re.compile(r"\.nii(\.gz)?$")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_VOLUMES = re.compile(rf"{_RANGE.pattern}(?:[,\s]+{_RANGE.pattern})*")


class AverageName(StrEnum):
    """How measurements with equal settings are averaged."""

    GEOMETRIC = "geometric"
    ARITHMETIC = "arithmetic"


class UncertaintyKind(StrEnum):
    """Which maps of the uncertainty are written."""

    interval = "interval"
    standard_error = "standard_error"
    both = "both"


Image = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE...",
        help="4D NIfTI series, one volume per measurement; or one 3D file per measurement, in the "
        "order of the settings.",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the maps; made if missing.")]
ModelName = Annotated[
    str, typer.Option(help="A name from `labelwise models`, or FILE.py:Class for your own.")
]
Sigma = Annotated[
    str | None,
    typer.Option(
        help="Noise of one channel, in the image's unit: a number, a map.nii.gz (one volume, or "
        "for `fit` one per measurement), or a method "
        "to estimate it: 'repeats' (repeated volumes at b = 0), 'mppca' (noise components of "
        "patches; needs dipy and 15 volumes), 'background' (voxels without signal), 'residuals' "
        "(of least-squares fits). Default: 'auto', the first of these that passes its test."
    ),
]
Bvals = Annotated[
    Path | None,
    typer.Option(
        help="FSL .bval file: b-values in s/mm², in any order. Default: that beside the image."
    ),
]
EchoTimes = Annotated[
    str | None, typer.Option(help="Echo times in ms: '10,20,30', or a text file of them.")
]
InversionTimes = Annotated[
    str | None, typer.Option(help="Inversion times in ms: a list, or a text file of them.")
]
FlipAngles = Annotated[
    str | None, typer.Option(help="Flip angles in degrees: a list, or a text file of them.")
]
Bvecs = Annotated[
    Path | None,
    typer.Option(help="FSL .bvec file: the gradient direction of each volume, for tensors."),
]
Constants = Annotated[
    list[str] | None,
    typer.Option(
        "--constant",
        metavar="NAME=VALUE | NAME=MAP.nii.gz",
        help="A number of the model that is the same for all volumes, such as tr=15 (times in "
        "ms); for `fit` also a map of it: b1=b1.nii.gz. May be repeated.",
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(help="All settings in one .json or .tsv table; b in s/mm², times in ms."),
]
Mask = Annotated[
    Path | None,
    typer.Option(help="NIfTI mask of the voxels to use: those above 0.5. Default: all voxels."),
]
Noise = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="rician (magnitude images), gaussian, or noncentral-chi:COILS (root sum of squares of "
        "several coils). Default: rician; gaussian for signed images.",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        metavar="TISSUE | FILE.toml",
        help="Ranges of the parameters for a tissue, from `labelwise presets` or a file of your "
        "own. Ranges given by other options win.",
    ),
]
Detect = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml", help="Distinguish the tissues in its tables [from] and [to]."
    ),
]
FirstTissue = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="NAME=VALUE,...",
        help="First tissue, such as f=0.1:0.2,D_fast=60±10. Parameters left out are as in "
        "training.",
    ),
]
SecondTissue = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="NAME=VALUE,...",
        help="Second tissue. Parameters left out are as in --from.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(min=0, help="In s/mm²: b-values this close are equal; b up to this is b = 0."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VOLUMES | NAME=LOW:HIGH | MAP.nii.gz",
        help="Leave out volumes by their numbers, which start at 0 (3,7-9); those with settings in "
        "a range (b=800: is 800 s/mm² and above, te=:20 up to 20 ms); or single measurements: a 4D "
        "map of 0 and 1, left out where it is above 0.5. May be repeated.",
    ),
]
UncertaintyName = Annotated[
    UncertaintyKind,
    typer.Option(
        help="Maps of the ends of 95 % intervals and of half their width, of standard errors, or "
        "both; of more than 8 parameters (dki), standard errors always.",
    ),
]
BScale = Annotated[
    Path | None,
    typer.Option(
        metavar="MAP.nii.gz",
        help="Voxel-wise b, for gradients that are not linear: the factor of b in each voxel, or a "
        "gradient deviation of nine volumes (FSL's grad_dev), of which the mean over directions is "
        "taken. Diffusivities are corrected for it.",
    ),
]
Signed = Annotated[
    bool,
    typer.Option(
        "--signed",
        help="The images are signed (the real part, not the magnitude): Gaussian noise, and "
        "inversion recovery without the absolute value.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cores to use. Default: all.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing maps in OUT.")]
Fill = Annotated[
    float,
    typer.Option(
        metavar="VALUE",
        help="Written in the maps in place of NaN, such as 0 for viewers; stated in their .json.",
        show_default=False,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="No progress bar, no table; only notes and errors.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print run.json instead of the table.")]


@dataclass(frozen=True)
class Acquisition:
    """The acquisition settings given on the command line.

    Args:
        settings: by name, in the units of the models: b in ms/µm², times in ms.
        sources: the files they were read from, by name of the setting.
        by_option: the settings given by an option of their own, not by a table.
        maps: of constants of the model, by name.
    """

    settings: dict[str, Any]
    sources: dict[str, Path]
    by_option: list[str]
    maps: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        bvals: Path | None,
        table: Path | None,
        bvecs: Path | None = None,
        images: Sequence[Path] = (),
        **lists: str | None,
    ) -> Acquisition:
        """Read the settings; an option overrides the table.

        Without any of them, a `.bval` file of the name of a single image is read.

        Args:
            bvals: the `.bval` file.
            table: the table of all settings.
            bvecs: the `.bvec` file.
            images: the images of the series.
            lists: other settings by name, as lists or text files: `te="10,20"`.
        """
        from labelwise.io.acquisition import (
            read_bvals,
            read_bvecs,
            read_table,
            read_times,
            times_file,
        )

        settings, sources, by_option = {}, {}, []
        if len(images) == 1 and not any([bvals, table, *lists.values()]):
            beside = images[0].with_name(f"{_ENDING.sub('', images[0].name)}.bval")
            bvals = beside if beside.is_file() else None
        if table is not None:
            settings |= read_table(table)
            sources |= dict.fromkeys(settings, table)
        if bvals is not None:
            settings["b"], sources["b"] = read_bvals(bvals), bvals
            by_option.append("b")
        if bvecs is not None:
            directions = read_bvecs(bvecs, settings.get("b"))
            settings |= directions
            sources |= dict.fromkeys(directions, bvecs)
            by_option += directions
        for name, text in lists.items():
            if text is not None:
                settings[name] = read_times(text, name)
                by_option.append(name)
                sources.pop(name, None)
                if (file := times_file(text)) is not None:
                    sources[name] = file
        return cls(settings, sources, by_option)

    def model(
        self, name: str, constants: Sequence[str] | None = None, maps: bool = False
    ) -> SignalModel:
        """The model of a name with its settings.

        Args:
            name: of the model.
            constants: NAME=VALUE of its constants; or NAME=MAP, of which the model has the median,
                while its path is added to `maps`.
            maps: whether maps are possible.

        Raises:
            InputError: if a setting or constant is missing, or one is given that the model does not
                use.
        """
        from labelwise.models.base import acquisition_names
        from labelwise.models.find import find_model
        from labelwise.types import is_built_in

        kind = find_model(name)
        needed = acquisition_names(kind)
        missing = [setting for setting in needed if setting not in self.settings]
        unused = [setting for setting in self.by_option if setting not in needed]
        if unused and not missing:
            raise InputError(
                f"model {name}: does not use {SETTING_OPTIONS[unused[0]]}; it needs "
                f"{', '.join(needed)} only"
            )
        if missing:
            option = SETTING_OPTIONS.get(missing[0])
            remedy = f"{option} or " if option else ""
            raise InputError(
                f"model {name}: needs {missing[0]} for each volume; give {remedy}an --acquisition "
                f"table with a column {missing[0]!r}"
            )
        for file in model_file(name):
            self.sources["model"] = file
        settings = {setting: self.settings[setting] for setting in needed}
        fixed = _constants(kind, name, constants or [], self.maps if maps else None)
        made = kind(**settings, **fixed)
        if not is_built_in(kind):  # a user's own: find its mistakes now
            from labelwise.models.check import check_signal_model

            check_signal_model(made)
        return made


def _constants(
    kind: type[SignalModel], name: str, texts: Sequence[str], maps: dict[str, Path] | None
) -> dict[str, float]:
    """The constants of a model from NAME=VALUE, several times; NAME=MAP is added to `maps`."""
    from labelwise.models.base import constant_names

    given: dict[str, float] = {}
    required, optional = constant_names(kind)
    for text in texts:
        key, _, number = text.partition("=")
        is_map = number.endswith((".nii", ".nii.gz"))
        if is_map and maps is None:
            raise InputError(
                f"--constant {text}: a map of a constant is for `labelwise fit`; a network is "
                "trained for one value"
            )
        try:
            given[key] = 0.0 if is_map else float(number)
        except ValueError:
            raise InputError(
                f"--constant {text}: expected NAME=VALUE, such as tr=15 (times in ms)"
            ) from None
        if key not in (*required, *optional):
            known = ", ".join((*required, *optional)) or "none"
            raise InputError(f"--constant {text}: the constants of model {name} are: {known}")
        if is_map and maps is not None:
            from labelwise.mapping.constants import typical

            maps[key] = Path(number)
            given[key] = typical(maps[key])
    missing = [key for key in required if key not in given]
    if missing:
        raise InputError(
            f"model {name}: needs its constant {missing[0]}; give --constant {missing[0]}=VALUE"
        )
    return given


def preset_file(preset: str | None) -> dict[str, Path]:
    """The file of a person's own preset, for the record of the inputs."""
    return {"preset": Path(preset)} if preset and preset.endswith(".toml") else {}


def model_file(name: str | None) -> list[Path]:
    """The file of a model that is given as FILE.py:Class."""
    return [Path(name.rpartition(":")[0])] if name and ".py" in name else []


def noise_model(name: str | None, signed: bool = False) -> NoiseModel:
    """The noise model of that name; without a name Rician, or Gaussian for signed images.

    Raises:
        InputError: if there is none of that name, or it is one of magnitudes for signed images.
    """
    from labelwise.noise import noise_named

    noise = noise_named(name or ("gaussian" if signed else "rician"))
    if signed and noise.magnitude:
        raise InputError(
            f"--noise {name}: is the noise of magnitudes, which signed images (--signed) do not "
            "have; leave out one of the two"
        )
    return noise


def signed_model(name: str, signed: bool) -> str:
    """The name of the model for signed images, if they are."""
    return _SIGNED.get(name, name) if signed else name


def exclusions(texts: Sequence[str], settings: Mapping[str, Any]) -> tuple[list[int], Path | None]:
    """The volumes to exclude, numbered from 0, and the 4D map of measurements to exclude.

    Args:
        texts: `"3,7-9"`, `"b=800:"` (in the units of options) or the path of a 4D image.
        settings: the acquisition by name, in the units of models.

    Raises:
        InputError: if a text is none of those, names no setting or volume, or is a second map.

    Example:
        >>> import numpy as np
        >>> exclusions(["0,2-3", "b=1000:"], {"b": np.array([0, 0, 0.1, 0.4, 1.0, 2.0])})
        ([0, 2, 3, 4, 5], None)
    """
    volumes: set[int] = set()
    maps: list[Path] = []
    count = max((len(values) for values in settings.values()), default=0)
    for text in texts:
        name, equals, limits = text.partition("=")
        if equals and not Path(text).exists():
            volumes |= _volumes_in_range(text, name, limits, settings)
        elif _VOLUMES.fullmatch(text):
            for first, last in ((int(a), int(b or a)) for a, b in _RANGE.findall(text)):
                if not first <= last < count:
                    raise InputError(
                        f"--exclude {text}: expected volumes from 0 to {count - 1} (their numbers "
                        f"start at 0), got {first}" + f"-{last}" * (last != first)
                    )
                volumes |= set(range(first, last + 1))
        elif text.endswith((".nii", ".nii.gz")) or Path(text).exists():
            maps.append(Path(text))
        else:
            raise InputError(
                f"--exclude {text}: expected numbers of volumes from 0 (3,7-9), a range of a "
                "setting (b=800:1200), or a 4D map (MAP.nii.gz)"
            )
    if len(maps) > 1:
        raise InputError(f"--exclude: expected one 4D map, got {len(maps)}; combine them")
    return sorted(volumes), maps[0] if maps else None


def _volumes_in_range(text: str, name: str, limits: str, settings: Mapping[str, Any]) -> set[int]:
    from labelwise.types import SETTINGS

    low, colon, high = limits.partition(":")
    try:
        least, most = float(low or "-inf"), float(high or "inf")
    except ValueError:
        colon, least, most = "", 0.0, 0.0
    if name not in settings or not colon or not least <= most:
        raise InputError(
            f"--exclude {text}: expected NAME=LOW:HIGH with a setting ({', '.join(settings)}), "
            "such as b=800:1200; LOW or HIGH may be left out"
        )
    factor = SETTINGS[name].factor if name in SETTINGS else 1.0
    slack = 1e-9 * max(1.0, *(abs(end) for end in (least, most) if math.isfinite(end)), 1.0)
    found = {
        volume
        for volume, value in enumerate(settings[name])
        if least - slack <= value * factor <= most + slack
    }
    if not found:
        raise InputError(f"--exclude {text}: no volume has {name} in this range")
    return found


def sigma_source(text: str | None) -> Any:
    """A number, the name of a method, or the path of a map."""
    if text is None:
        return "auto"
    try:
        return float(text)
    except ValueError:
        pass
    if text in ("auto", "repeats", "mppca", "background", "residuals"):
        return text
    if text.endswith((".nii", ".nii.gz")) or Path(text).exists():
        return Path(text)
    raise InputError(f"--sigma {text}: {_SIGMA} is expected")


def sigma_for(trained: float | list[float], snr: float | None, path: Path) -> float:
    """The noise level of an SNR; without one, the level of the training or its geometric mean."""
    if snr is not None:
        check_sigma(1 / snr)
    levels = trained if isinstance(trained, list) else [trained]
    low, high = min(levels), max(levels)
    if snr is None:
        return math.sqrt(low * high)
    if not low / 1.05 <= 1 / snr <= 1.05 * high:
        warnings.warn(
            f"SNR {snr:g} is not what {path.name} was trained for "
            f"({' to '.join(f'{1 / each:.3g}' for each in reversed(levels))})",
            stacklevel=3,
        )
    return 1 / snr


def ranges(texts: Sequence[str], option: str) -> dict[str, tuple[float, float]]:
    """NAME=LOW:HIGH, several times.

    Example:
        >>> ranges(["f=0:0.5", "D_fast=2:100"], "--bounds")
        {'f': (0.0, 0.5), 'D_fast': (2.0, 100.0)}
    """
    found = {}
    for text in texts:
        name, _, limits = text.partition("=")
        low, _, high = limits.partition(":")
        try:
            found[name] = (float(low), float(high))
        except ValueError:
            raise InputError(
                f"{option} {text}: expected NAME=LOW:HIGH, such as D_fast=2:100"
            ) from None
    return found


def alphas(texts: Sequence[str]) -> float | dict[str, float] | None:
    """One number for all parameters, or NAME=NUMBER several times.

    Example:
        >>> alphas(["0.5"]), alphas(["f=1", "D_fast=0.3"]), alphas([])
        (0.5, {'f': 1.0, 'D_fast': 0.3}, None)
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise InputError(
                f"--alpha {text}: expected a number from 0 to 1, or NAME=NUMBER, such as D_fast=0.3"
            ) from None
    if "" in found and len(texts) > 1:
        raise InputError(
            f"--alpha {found['']:g}: is for all parameters; give it alone, or NAME=NUMBER for each"
        )
    return found.get("", found or None)


def start_jax() -> None:
    """Import JAX, let XLA fuse kernels and cache compiled programs; each command does so first.

    Raises:
        InputError: if an environment variable has a value with which JAX does not start.
    """
    if "jax" not in sys.modules:
        _import_jax()

    from labelwise.fitting import compiler
    from labelwise.io.files import cache_folder

    compiler.use_fused_kernels()
    compiler.refuse_unknown_flags()
    compiler.use_what_is_there()
    folder = cache_folder()
    if folder is not None:
        compiler.keep_programs(folder)


def _import_jax() -> None:
    # Matrices of the command are small: with several threads, the BLAS of NumPy takes three times
    # the CPU time, and rounds differently on another number of cores. JAX has threads of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    interrupts.leave_at_once()  # libraries in C would print the traceback of a KeyboardInterrupt
    gc.disable()  # what is imported stays: to search it for garbage takes a quarter of a short run
    try:
        import jax  # noqa: F401

        import labelwise.fitting  # noqa: F401
    except Exception as error:
        raise InputError(
            f"cannot start ({type(error).__name__}: {error}); LABELWISE_DEBUG=1 shows where"
        ) from error
    finally:
        gc.freeze()
        gc.enable()
    interrupts.raise_them()
