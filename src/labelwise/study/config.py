"""The description of a study: one frozen record, read from and written as a TOML file.

The paper's study is `paper.toml`; another model, acquisition or noise level needs a few lines of
such a file.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, create_model

from labelwise.errors import warn_outdated
from labelwise.evaluation.grid import refuse_large
from labelwise.formatting import plain
from labelwise.io.acquisition import checked as checked_setting
from labelwise.io.acquisition import read_bvals, read_times
from labelwise.io.toml import STRICT, checked, expected, read_toml
from labelwise.limits import check_sigma, check_whole
from labelwise.models import SignalModel
from labelwise.models.base import acquisition_names, constant_names, measurements, scale_parameter
from labelwise.models.check import check_signal_model
from labelwise.models.find import describe_model, find_model
from labelwise.networks.recipe import Recipe
from labelwise.noise import NoiseModel, describe_noise, name_of_noise, noise_named
from labelwise.priors import Grid, Uniform
from labelwise.types import InputError, is_built_in

_Label = Literal["gt", "selfsup", "mle-rician", "mle-gaussian"]
LABELS: tuple[_Label, ...] = get_args(_Label)
"""The training labels that a study may use, besides mixtures."""

_RECIPES = {"paper": Recipe.paper, "fast": Recipe.fast, "every-level": Recipe.every_level}

_LISTED = Field(strict=False)  # a list of TOML becomes a tuple
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_OrNone = Annotated[int, Field(ge=0)]  # 0 for none
_Several = Annotated[int, Field(ge=2)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Shares = Annotated[tuple[_Share, ...], _LISTED, expected("a list of shares from 0 to 1")]
_Labels = Annotated[
    tuple[_Label, ...],
    Field(strict=False, min_length=1),
    expected(f"a list of some of {', '.join(LABELS)}"),
]
_Snrs = Annotated[
    tuple[_Positive, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given]),
    expected("a positive number or a list of positive numbers"),
]
_Pair = Annotated[tuple[_Positive, _Positive], _LISTED, expected("[lowest, highest] sigma")]
_Points = Annotated[int | Mapping[str, int], expected("a whole number, or one by parameter")]


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that determines the results of a study.

    Args:
        title: of the report.
        model_name: as `labelwise.models.find.find_model` takes it.
        model: the signal model with its acquisition.
        noise: of the simulated signals.
        prior: what is simulated, in training and on the grid.
        snrs: signal of amplitude 1 over the noise of one channel, where estimators are judged.
        levels: lowest and highest sigma of one set of networks for all noise levels, with sigma as
            an input; None for a set of networks for each SNR.
        recipe: how networks are trained.
        labels: the training labels, some of `LABELS`.
        hybrid: share of the maximum-likelihood estimate in the labels of the hybrid; 0 for none.
        blend: weights alpha for blends of two networks' outputs.
        own_weight: factor on the loss weight of one parameter, one network each; 0 for none.
        absolute_loss: whether to train with the absolute error, too.
        intervals: whether to train networks of intervals, too, and to evaluate their coverage; not
            for a model that is not differentiable.
        wide: nodes in each hidden layer of wider networks; 0 for none.
        deep: hidden layers of deeper networks; 0 for none.
        normalise: see `TrainingPlan`.
        on_bound: see `TrainingPlan`.
        trainings: how often networks are trained, each time with other data and initial weights;
            the variation between trainings is part of the errors of claims.
        points: values of each parameter on the test grid, or by name.
        fixed: the only value of some parameters there.
        repeats: noisy signals at each point.
        training_repeats: the same for the trainings after the first.
        seed: of everything random.
        noise_floor: the parameter that the noise floor biases, for the claims about it.
        ill_determined: the parameter that the acquisition determines worst.
        phantom: whether the in vivo part is done, on a simulated pelvis.
        sources: the files it was read from; they are never replaced.

    Raises:
        InputError: if a value is out of its range, or a name is not one of the model's.
    """

    title: str
    model_name: str
    model: SignalModel
    noise: NoiseModel
    prior: Uniform
    snrs: _Snrs
    levels: _Pair | None = None
    recipe: Recipe = field(default_factory=Recipe.paper)
    labels: _Labels = LABELS
    hybrid: _Share = 0.5
    blend: _Shares = (0.25, 0.5, 0.75)
    own_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e6
    absolute_loss: bool = True
    intervals: bool = True
    wide: _OrNone = 0
    deep: _OrNone = 0
    normalise: bool = False
    on_bound: Literal["drop", "keep"] = "drop"
    trainings: Annotated[int, Field(ge=1)] = 3
    points: _Points = 10
    fixed: Mapping[str, float] = field(default_factory=dict)
    repeats: _Several = 500
    training_repeats: _Several = 50
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    noise_floor: str | None = None
    ill_determined: str | None = None
    phantom: bool = False
    sources: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        checked(_VALUES, {name: getattr(self, name) for name in _VALUES.model_fields}, "study")
        for what in ("noise_floor", "ill_determined"):
            name = getattr(self, what)
            if name is not None and name not in self.names:
                there = ", ".join(self.names)
                raise InputError(f"{what}: no parameter {name!r}; there are {there}")
        for what in ("trainings", "repeats", "training_repeats", "wide", "deep", "seed"):
            check_whole(what, getattr(self, what))
        if len({f"{snr:g}" for snr in self.snrs}) < len(self.snrs):
            raise InputError(f"snr: the same one is given twice, got {list(self.snrs)}")
        if self.levels is not None and self.levels[0] >= self.levels[1]:
            raise InputError(f"levels: expected [lowest, highest] sigma, got {list(self.levels)}")
        check_sigma([1 / snr for snr in self.snrs])
        check_sigma(self.levels or ())
        if max(self.grid.shape) < 2:
            raise InputError("fixed: at least one parameter must have several values to test at")
        labels = len(self.labels) + 2
        self.recipe.check_memory(measurements(self.model), len(self.names), labels)
        refuse_large(self.model, self.grid, max(self.repeats, self.training_repeats), labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(parameter.name for parameter in self.model.parameters)

    @property
    def free(self) -> tuple[str, ...]:
        """The parameters that figures and claims are about: all but the one that scales signals."""
        scale = scale_parameter(self.model)
        grid = self.grid
        several = [name for name in self.names if len(grid.axes[name]) > 1]
        return tuple(name for name in several if self.names.index(name) != scale) or tuple(several)

    @property
    def grid(self) -> Grid:
        """The true parameters that estimators are tested at."""
        return Grid.over(self.prior, points=self.points, fixed=self.fixed)

    def suffix(self, training: int) -> str:
        """What the stages of a training, from 0, end with."""
        return f", training {training + 1}" if self.trainings > 1 else ""

    def describe(self) -> dict[str, Any]:
        """All of it as JSON data."""
        known = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del known["sources"]
        return plain(
            known
            | {
                "model": describe_model(self.model),
                "noise": describe_noise(self.noise),
                "prior": self.prior.describe(),
                "recipe": asdict(self.recipe),
            }
        )

    def quick(self) -> Study:
        """The same in a minute: fewer signals, networks, points and repeats; for a first look."""
        recipe = Recipe.fast(
            signals=min(self.recipe.signals, 20_000),
            epochs=min(self.recipe.epochs, 15),
            restarts=min(self.recipe.restarts, 4),
            shared_start=self.recipe.shared_start,
            width=self.recipe.width,
            depth=self.recipe.depth,
            activation=self.recipe.activation,
        )
        return replace(
            self,
            title=f"{self.title} (quick)",
            recipe=recipe,
            points=min(self.points, 5) if isinstance(self.points, int) else self.points,
            repeats=min(self.repeats, 100),
            training_repeats=min(self.training_repeats, 50),
            trainings=1,
        )


def _table(optional: Mapping[str, Any], **needed: Any) -> type[BaseModel]:
    keys = {key: (kind, ...) for key, kind in needed.items()}
    keys |= {key: (kind, None) for key, kind in optional.items()}
    return create_model("Table", __config__=STRICT, **keys)  # type: ignore[call-overload]


def _kinds_of(record: type, *names: str) -> dict[str, Any]:
    """The kinds of some fields of a dataclass; of all of them if none is named."""
    kinds = get_type_hints(record, include_extras=True)
    return {name: kinds[name] for name in names or kinds}


_OBJECTS = {"model", "noise", "prior", "recipe"}
_KINDS = {name: kind for name, kind in _kinds_of(Study).items() if name not in _OBJECTS}
_VALUES = _table({}, **_KINDS)
_RECIPE = {name: kind for name, kind in _kinds_of(Recipe).items() if name not in ("name", "loss")}
_SECTIONS = {
    "networks": _table(
        _kinds_of(
            Study,
            *("labels", "hybrid", "blend", "own_weight", "absolute_loss", "intervals"),
            *("wide", "deep", "normalise", "on_bound"),
        )
    ),
    "training": _table(
        _kinds_of(Study, "trainings") | {"recipe": Literal[tuple(_RECIPES)]} | _RECIPE
    ),
    "grid": _table(_kinds_of(Study, "points", "repeats", "training_repeats", "fixed")),
    "claims": _table(_kinds_of(Study, "noise_floor", "ill_determined")),
}
_Range = Annotated[tuple[float, float], _LISTED, expected("[lowest, highest]")]
_Settings = Annotated[str | list[float], expected("a list of numbers or the name of a file")]
_FILE = _table(
    _kinds_of(Study, "title", "levels", "seed", "phantom")
    | {"noise": str, "prior": dict[str, _Range]}
    | _SECTIONS,
    model=str,
    snr=_Snrs,
    acquisition=dict[str, _Settings],
)


def paper(**changes: Any) -> Study:
    """The study of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

    Args:
        changes: other values for fields of `Study`.

    Example:
        >>> study = paper(seed=3)
        >>> study.snrs, study.recipe.restarts, study.grid.shape, study.seed
        ((15.0, 30.0), 16, (10, 10, 10, 10), 3)
    """
    text = (resources.files("labelwise.study") / "paper.toml").read_text(encoding="utf-8")
    return replace(_study(tomllib.loads(text), Path(), "paper.toml"), **changes)


def read_study(path: str | Path) -> Study:
    """Read a study from a TOML file; `labelwise.study.config.paper` is written as one.

    `model` is a name or `FILE.py:Class`, the file relative to the TOML's folder; settings in
    `[acquisition]` are lists (b in s/mm², times in ms) or the names of text files of them.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if it is not there.
        InputError: if it is no TOML, a key is unknown or missing, or a value is not possible.

    Warns:
        UserWarning: if the model is a file of code, before it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such study file")
    study = _study(read_toml(path), path.parent, str(path))
    return replace(study, sources=(path, *study.sources))


def _study(content: Mapping[str, Any], folder: Path, where: str) -> Study:
    networks = content.get("networks")
    if isinstance(networks, dict) and "dial" in networks and "blend" not in networks:
        warn_outdated(f"{where}: networks.dial", "blend")
        networks["blend"] = networks.pop("dial")
    checked(_FILE, content, where)
    # From here on the content itself: pydantic would turn 1 into 1.0, and `to_toml` write that.
    model_name = absolute(content["model"], folder)
    if ".py:" in model_name:
        file = model_name.rpartition(":")[0]
        warnings.warn(f"{where}: runs the code of {file}", stacklevel=3)
    model = _model(model_name, content["acquisition"], folder, where)
    sources = [folder / text for text in content["acquisition"].values() if isinstance(text, str)]
    sources += [Path(model_name.rpartition(":")[0])] if ".py" in model_name else []
    values: dict[str, Any] = {
        key: content[key] for key in ("levels", "seed", "phantom") if key in content
    }
    for section in ("networks", "grid", "claims"):
        values |= content.get(section, {})
    if not model.differentiable:
        values.setdefault("labels", [label for label in LABELS if label != "selfsup"])
    training = dict(content.get("training", {}))
    if "trainings" in training:
        values["trainings"] = training.pop("trainings")
    recipe = _RECIPES[training.pop("recipe", "paper")]
    if training.get("patience") == 0:
        training["patience"] = None
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    snrs = content["snr"] if isinstance(content["snr"], list) else [content["snr"]]
    try:
        return Study(
            title=content.get("title", f"A study of {type(model).__name__}"),
            model_name=model_name,
            model=model,
            noise=noise_named(content.get("noise", "rician")),
            prior=Uniform.typical(model, **content.get("prior", {})),
            snrs=tuple(float(snr) for snr in snrs),
            recipe=recipe(**training),
            sources=tuple(sources),
            **values,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def to_toml(study: Study) -> str:
    """The study as a TOML file that `read_study` reads.

    Example:
        >>> print(to_toml(paper()).splitlines()[1])
        model = "ivim"
    """
    known = {entry.name: getattr(study, entry.name) for entry in fields(study)}
    top = {
        "title": study.title,
        "model": study.model_name,
        "noise": name_of_noise(study.noise),
        "snr": study.snrs,
        "levels": study.levels,
        "seed": study.seed,
        "phantom": study.phantom,
    }
    settings = {
        name: np.asarray(getattr(study.model, name), float) * (1000 if name == "b" else 1)
        for name in acquisition_names(type(study.model))
    }
    known |= vars(study.recipe) | {"recipe": study.recipe.name}
    known["patience"] = known["patience"] or 0
    sections = {
        "acquisition": {name: [float(f"{x:.9g}") for x in rows] for name, rows in settings.items()},
        "prior": dict(zip(study.names, study.prior.ranges.tolist(), strict=True)),
        **{
            name: {key: known[key] for key in kind.model_fields} for name, kind in _SECTIONS.items()
        },
    }
    lines = _lines(top)
    for name, section in sections.items():
        lines += ["", f"[{name}]", *_lines(section)]
    return "\n".join(lines) + "\n"


def _lines(section: Mapping[str, Any]) -> list[str]:
    """Keys and values; what is None is left out, and is the default."""
    return [f"{key} = {_toml(value)}" for key, value in section.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{value}: a study file cannot hold this name, which is not UTF-8; rename the file "
                "or its folder"
            ) from error
        return json.dumps(value, ensure_ascii=False)  # a basic string of TOML escapes likewise
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return repr(value)


def absolute(name: str, folder: Path) -> str:
    """The name of a model, its file's path made absolute: `FILE.py:Class` from any folder."""
    file, colon, kind = name.rpartition(":")
    return f"{(folder / file).resolve()}{colon}{kind}" if ".py" in name and colon else name


def _model(name: str, table: Mapping[str, Any], folder: Path, where: str) -> SignalModel:
    kind = find_model(name)
    needed, (constants, _) = acquisition_names(kind), constant_names(kind)
    if constants:
        raise InputError(
            f"{where}: model {name} needs {', '.join(constants)}, the same for all measurements, "
            "which a study does not support; choose another model"
        )
    if set(table) != set(needed):
        raise InputError(
            f"{where}, [acquisition]: model {name} needs {', '.join(needed)}, got "
            f"{', '.join(table) or 'nothing'}"
        )
    settings = {}
    for setting, given in table.items():
        if not isinstance(given, str):
            settings[setting] = checked_setting(setting, [float(value) for value in given], where)
        elif setting == "b":
            settings[setting] = read_bvals(folder / given)
        else:
            settings[setting] = read_times(str(folder / given), setting)
    made = kind(**settings)
    if not is_built_in(kind):  # a user's own: find its mistakes now
        check_signal_model(made)
    return made
