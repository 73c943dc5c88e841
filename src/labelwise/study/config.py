"""What a study is: one frozen record, read from a TOML file and written as one.

The paper's own study is `paper.toml`; another model, acquisition or noise level is a few lines of
such a file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labelwise.formatting import plain
from labelwise.io.acquisition import checked, read_bvals, read_times
from labelwise.models import SignalModel
from labelwise.models.base import acquisition_names, scale_parameter
from labelwise.models.check import check_signal_model
from labelwise.models.find import describe_model, find_model
from labelwise.networks.recipe import Recipe
from labelwise.noise import NOISES, NoiseModel, describe_noise
from labelwise.priors import Grid, Uniform
from labelwise.types import InputError, is_built_in

LABELS = ("gt", "selfsup", "mle-rician", "mle-gaussian")
"""What the networks of a study may be taught, besides mixes."""

_TOP = ("title", "model", "noise", "snr", "levels", "seed", "phantom")
_SECTIONS = {
    "networks": (
        *("labels", "hybrid", "dial", "own_weight", "absolute_loss", "wide", "deep"),
        *("normalise", "on_bound"),
    ),
    "training": ("trainings",),
    "grid": ("points", "repeats", "training_repeats", "fixed"),
    "claims": ("noise_floor", "ill_determined"),
}
_RECIPES = {"paper": Recipe.paper, "fast": Recipe.fast, "every-level": Recipe.every_level}
_SEEDS = 2**31
_TYPES = {  # of what a file may say; a whole number is a number too
    bool: ("phantom", "absolute_loss", "normalise", "shared_start"),
    int: (
        *("seed", "wide", "deep", "trainings", "repeats", "training_repeats", "signals", "batch"),
        *("epochs", "warmup", "restarts", "patience", "width", "depth"),
    ),
    float: ("hybrid", "own_weight", "rate", "validation"),
    str: (
        *("title", "model", "noise", "on_bound", "recipe", "schedule", "activation"),
        *("noise_floor", "ill_determined"),
    ),
    list: ("labels", "dial", "levels"),
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
}
_OF_RECIPE = tuple(entry.name for entry in fields(Recipe) if entry.name not in ("name", "loss"))


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that decides what a study finds.

    Args:
        title: of the report.
        model_name: as `labelwise.models.find.find_model` takes it.
        model: the signal model with its acquisition.
        noise: of the simulated signals.
        prior: what is simulated, in training and on the grid.
        snrs: signal of amplitude 1 over the noise of one channel, where estimators are judged.
        levels: lowest and highest sigma of one set of networks for all noise levels, which are
            told the level; None for a set of networks for each SNR.
        recipe: how networks are trained.
        labels: what they are taught, of `LABELS`.
        hybrid: share of the maximum-likelihood labels in the hybrid's; 0 for no hybrid.
        dial: alphas of the blends of two networks' outputs.
        own_weight: networks for one parameter weigh its errors so many times more; 0 for none.
        absolute_loss: whether to train under the absolute error, too.
        wide: nodes in each hidden layer of wider networks; 0 for none.
        deep: hidden layers of deeper networks; 0 for none.
        normalise: see `TrainingPlan`.
        on_bound: see `TrainingPlan`.
        trainings: networks are trained so many times, with other data and first weights: what
            differs between them is the luck of one training.
        points: values of each parameter on the test grid, or by name.
        fixed: the only value of some parameters there.
        repeats: noisy signals at each point.
        training_repeats: the same for the trainings after the first.
        seed: of everything random.
        noise_floor: the parameter that the noise floor biases, for the claims about it.
        ill_determined: the parameter that the acquisition determines worst.
        phantom: whether the in vivo part is done, on a simulated pelvis.

    Raises:
        InputError: if a value is out of its range, or a name is not one of the model's.
    """

    title: str
    model_name: str
    model: SignalModel
    noise: NoiseModel
    prior: Uniform
    snrs: tuple[float, ...]
    levels: tuple[float, float] | None = None
    recipe: Recipe = field(default_factory=Recipe.paper)
    labels: tuple[str, ...] = LABELS
    hybrid: float = 0.5
    dial: tuple[float, ...] = (0.25, 0.5, 0.75)
    own_weight: float = 1e6
    absolute_loss: bool = True
    wide: int = 0
    deep: int = 0
    normalise: bool = False
    on_bound: Literal["drop", "keep"] = "drop"
    trainings: int = 3
    points: int | Mapping[str, int] = 10
    fixed: Mapping[str, float] = field(default_factory=dict)
    repeats: int = 500
    training_repeats: int = 50
    seed: int = 0
    noise_floor: str | None = None
    ill_determined: str | None = None
    phantom: bool = False

    def __post_init__(self) -> None:
        names = self.names
        if not self.snrs or not all(0 < snr < np.inf for snr in self.snrs):
            raise InputError(f"snr: expected positive numbers, got {list(self.snrs)}")
        unknown = [label for label in self.labels if label not in LABELS]
        if unknown or not self.labels:
            raise InputError(f"labels: expected some of {', '.join(LABELS)}, got {unknown or '[]'}")
        for what in ("noise_floor", "ill_determined"):
            name = getattr(self, what)
            if name is not None and name not in names:
                raise InputError(f"{what}: no parameter {name!r}; there are {', '.join(names)}")
        for what, least in (("trainings", 1), ("repeats", 2), ("training_repeats", 2)):
            if getattr(self, what) < least:
                raise InputError(f"{what}: must be at least {least}, got {getattr(self, what)}")
        for alpha in (self.hybrid, *self.dial):
            if not 0 <= alpha <= 1:
                raise InputError(f"hybrid, dial: expected shares from 0 to 1, got {alpha:g}")
        if self.own_weight < 0 or self.wide < 0 or self.deep < 0:
            raise InputError("own_weight, wide, deep: must be positive, or 0 for none")
        if len({f"{snr:g}" for snr in self.snrs}) < len(self.snrs):
            raise InputError(f"snr: the same one is given twice, got {list(self.snrs)}")
        if self.on_bound not in ("drop", "keep"):
            raise InputError(f"on_bound: expected 'drop' or 'keep', got {self.on_bound!r}")
        if self.levels is not None and not (
            len(self.levels) == 2 and 0 < self.levels[0] < self.levels[1] < np.inf
        ):
            raise InputError(f"levels: expected [lowest, highest] sigma, got {list(self.levels)}")
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed: expected 0 to {_SEEDS - 1}, got {self.seed}")
        if max(self.grid.shape) < 2:
            raise InputError("fixed: at least one parameter must have several values to test at")

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
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such study file")
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    return _study(said, path.parent, str(path))


def _study(said: Mapping[str, Any], folder: Path, where: str) -> Study:
    _refuse_unknown(said, (*_TOP, "acquisition", "prior", *_SECTIONS), where)
    for name, known in _SECTIONS.items():
        extra = ("recipe", *_OF_RECIPE) if name == "training" else ()
        _refuse_unknown(_table(said, name, where), (*known, *extra), f"{where}, [{name}]")
    _check_types(said, where)
    for section in _SECTIONS:
        _check_types(_table(said, section, where), f"{where}, [{section}]")
    for name in ("model", "snr", "acquisition"):
        if name not in said:
            raise InputError(f"{where}: {name} is missing; see `labelwise study paper --toml`")
    model_name = absolute(str(said["model"]), folder)
    model = _model(model_name, _table(said, "acquisition", where), folder, where)
    noise = str(said.get("noise", "rician"))
    if noise not in NOISES:
        known = ", ".join(NOISES)
        raise InputError(f"{where}: noise {said['noise']!r}; known are {known}")
    training = _table(said, "training", where)
    changes = {name: training[name] for name in _OF_RECIPE if name in training}
    if changes.get("patience") == 0:
        changes["patience"] = None
    recipe = training.get("recipe", "paper")
    if recipe not in _RECIPES:
        raise InputError(f"{where}: recipe {recipe!r}; known are {', '.join(_RECIPES)}")
    values: dict[str, Any] = {
        name: value
        for section, known in _SECTIONS.items()
        for name, value in _table(said, section, where).items()
        if name in known
    }
    values |= {name: said[name] for name in ("seed", "phantom") if name in said}
    if not model.differentiable and "labels" not in values:
        values["labels"] = [label for label in LABELS if label != "selfsup"]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    spans = {name: _span(name, span, where) for name, span in _table(said, "prior", where).items()}
    snrs = said["snr"] if isinstance(said["snr"], list) else [said["snr"]]
    if not all(isinstance(snr, (int, float)) and not isinstance(snr, bool) for snr in snrs):
        raise InputError(f"{where}: snr must be a number or a list of numbers, got {said['snr']!r}")
    try:
        return Study(
            title=str(said.get("title", f"A study of {type(model).__name__}")),
            model_name=model_name,
            model=model,
            noise=NOISES[noise](),
            prior=Uniform.typical(model, **spans),
            snrs=tuple(float(snr) for snr in snrs),
            levels=tuple(said["levels"]) if "levels" in said else None,
            recipe=_RECIPES[recipe](**changes),
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
        "noise": type(study.noise).__name__.lower(),
        "snr": study.snrs,
        "levels": study.levels,
        "seed": study.seed,
        "phantom": study.phantom,
    }
    settings = {
        name: np.asarray(getattr(study.model, name), float) * (1000 if name == "b" else 1)
        for name in acquisition_names(type(study.model))
    }
    recipe = {name: getattr(study.recipe, name) for name in _OF_RECIPE}
    recipe["patience"] = recipe["patience"] or 0
    sections = {
        "acquisition": {name: [float(f"{x:.9g}") for x in rows] for name, rows in settings.items()},
        "prior": dict(zip(study.names, study.prior.ranges.tolist(), strict=True)),
        **{name: {key: known[key] for key in keys} for name, keys in _SECTIONS.items()},
    }
    sections["training"] |= {"recipe": study.recipe.name, **recipe}
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
    needed = acquisition_names(kind)
    if set(table) != set(needed):
        raise InputError(
            f"{where}, [acquisition]: model {name} needs {', '.join(needed)}, got "
            f"{', '.join(table) or 'nothing'}"
        )
    settings = {}
    for setting, given in table.items():
        if isinstance(given, str):
            file = folder / given
            read = read_bvals(file) if setting == "b" else read_times(str(file), setting)
            settings[setting] = read
        else:
            try:
                settings[setting] = checked(setting, [float(value) for value in given], where)
            except TypeError as error:
                raise InputError(
                    f"{where}, [acquisition]: {setting} must be a list of numbers or the name of a "
                    f"file of them, got {given!r}"
                ) from error
    made = kind(**settings)
    if not is_built_in(kind):  # a user's own: find its mistakes now
        check_signal_model(made)
    return made


def _check_types(said: Mapping[str, Any], where: str) -> None:
    """Refuse a value of another kind than its key's."""
    for kind, keys in _TYPES.items():
        for key in keys:
            value = said.get(key)
            accepted = (int, float) if kind is float else kind
            odd = isinstance(value, bool) and kind is not bool
            if value is not None and (odd or not isinstance(value, accepted)):
                raise InputError(f"{where}: {key} must be {_WORDS[kind]}, got {value!r}")
            items = str if key == "labels" else (int, float)
            if isinstance(value, list) and not all(isinstance(each, items) for each in value):
                raise InputError(f"{where}: {key} has an entry of another kind, got {value!r}")


def _table(said: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = said.get(name, {})
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: {name} must be a table, [{name}], got {table!r}")
    return table


def _span(name: str, span: Any, where: str) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in span)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}, [prior]: {name} must be [lowest, highest], got {span!r}"
        ) from error
    return low, high


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"{where}: there is no {unknown[0]!r}; known are {', '.join(known)}")
