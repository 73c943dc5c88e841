"""The JSON that labelwise writes, as types: their JSON Schemas are in the documentation.

A record names its schema: `"schema": "labelwise run 1"`. Within a version entries may be added; the
name and meaning of those below stay. NaN is null, and infinity the text `"inf"`. What `labelwise
models` and `labelwise presets` print are tables by name, without that entry.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from labelwise.io.presets import Entry

Number = float | Literal["inf", "-inf"] | None
Span = tuple[Number, Number]
Identity = dict[str, Any]
"""What identifies a model, a noise model or a network's training: see decision 0011."""


class _Entries(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Sigma(_Entries):
    """A noise level."""

    sigma: float
    """Standard deviation of one channel, in the unit of the images; the median of a map."""
    method: str
    """`repeats`, `mppca`, `background`, `residuals`, `map` or `given`."""
    voxels: int
    """How many were used."""
    note: str
    """How it was estimated."""
    doubt: str
    """Why it is more than noise; empty if it passed its test."""
    scatter: Number
    """Standard deviation between repeats, where it is larger and determines the errors."""


class Setting(_Entries):
    """A setting of each volume."""

    unit: str
    values: list[float]


class Value(_Entries):
    """A number with its unit."""

    unit: str
    value: float


class Excluded(_Entries):
    """Volumes that are not used."""

    numbered_from: int
    volumes: list[int]


class Acquisition(_Entries):
    """The settings of a series."""

    settings: dict[str, Setting]
    """By name, of the volumes that are used."""
    excluded_volumes: Excluded
    b_tolerance: Value
    b_scale: str | None
    """The file of voxel-wise b."""
    average: str | None = None
    """Of a fit: how volumes with equal settings were averaged."""


class Equation(_Entries):
    """The signal model of a run."""

    class_: str = Field(alias="class")
    """Its importable name."""
    equation: str
    constants: dict[str, float | int | str]


class Parameter(_Entries):
    """A parameter of the model."""

    name: str
    unit: str
    bounds: Span
    symbol: str
    typical: Span | None


class Summary(Parameter):
    """A parameter with its estimates over the voxels that have values."""

    median: Number
    quartiles: Span
    """The lower and the upper one."""
    median_standard_error: Number
    median_uncertainty: Number
    share_on_lower_bound: Number = None
    """Of a fit."""
    share_on_upper_bound: Number = None
    share_below_range: Number = None
    """By a network: outside the range of the training."""
    share_above_range: Number = None


class Network(_Entries):
    """The network that was used."""

    origin: str
    """`trained`, `cache` or `file`."""
    path: str | None
    alpha: dict[str, float] | None
    """By parameter; null for a single network."""
    trained_for_snr: Span
    snr_of_the_image: Span
    trained_for_ranges: dict[str, Span]
    """Of the parameters, in the training."""
    seconds_of_training: dict[str, float]
    card: Identity | None = None
    """The card of the network's file: its training. In `run.json` only."""


class Filled(_Entries):
    """What is written in place of NaN."""

    value: Number
    meaning: str


class _Provenance(_Entries):
    command: str
    """As typed; empty from Python."""
    model: Equation
    noise: str
    """The noise model, in words."""
    acquisition: Acquisition
    inputs: dict[str, str]
    """By path, the SHA-256 of each file that was read."""
    versions: dict[str, str]
    """Of Python, labelwise and the libraries that decide the numbers."""
    sigma: Sigma
    max_iterations: int | None = None
    """Of a fit."""
    network: Network | None = None
    fill: Filled | None = None


class Statuses(_Entries):
    """What became of the voxels inside the mask."""

    inside: int
    status: dict[str, int]
    """By the words of the status, how many."""


class LeftOut(_Entries):
    """Measurements that were not used."""

    measurements: int
    voxels: int


class Run(_Provenance):
    """`run.json`, the record of `labelwise fit` and `labelwise map`, and what `--json` prints."""

    schema_: Literal["labelwise run 1"] = Field(alias="schema")
    voxels: Statuses
    left_out: dict[str, LeftOut]
    """By reason."""
    parameters: list[Summary]
    median_residual: Number
    """√(Σ (data - expected)² / variance / (M - P)); 1 if model and sigma are right."""
    other_sigma: list[Sigma]
    """By the other methods, where possible."""
    refused_sigma: dict[str, str]
    """By method, why it gives no sigma."""
    seconds: dict[str, float]
    """Wall time by part of the work."""
    voxels_per_second: float
    """Of the fit, or of mapping by the network."""
    notes: list[str]
    """On possible mistakes."""
    labelwise_files: list[str]
    """All files of the run."""


class Map(_Provenance):
    """The sidecar of a map."""

    schema_: Literal["labelwise map 1"] = Field(alias="schema")
    description: str
    """What the map holds."""
    unit: str
    """Of its values; `1` if they have none."""
    bounds: Span | None = None
    """Of the parameter."""
    interval: Literal["confidence", "credible", "blend"] | None = None
    """The kind of interval, of maps of its ends or width."""
    level: float | None = None
    """The probability of the interval."""
    codes: dict[str, str] | None = None
    """Of maps of whole numbers: what each means."""
    volumes: list[str] | None = None
    """Of 4D maps: what each volume is."""
    parameters: list[Parameter] = []
    """Of the model."""


class BidsMap(_Entries):
    """The sidecar of a map in a BIDS derivative; entries of `Map` in the spelling of BIDS."""

    Schema: Literal["labelwise bids-map 1"]
    Description: str
    Units: str
    Bounds: Span | None = None
    Interval: Literal["confidence", "credible", "blend"] | None = None
    Level: float | None = None
    Codes: dict[str, str] | None = None
    Volumes: list[str] | None = None
    Model: Equation
    NoiseModel: str
    Acquisition: Acquisition
    Versions: dict[str, str]
    Sigma: Sigma
    MaxIterations: int | None = None
    Network: dict[str, Any] | None = None
    """`file` as a BIDS URI, and the entries of `Network` that do not change between runs."""
    Fill: Filled | None = None
    SkullStripped: bool | None = None
    Sources: list[str]
    """BIDS URIs."""
    References: list[str]
    Date: str
    """In UTC."""


class Statistic(_Entries):
    """An estimate in a region: `mask`, or a label of the mask."""

    parameter: str
    unit: str
    region: str
    voxels: int
    estimated: int
    mean: Number
    std: Number
    q25: Number
    median: Number
    q75: Number


class BidsSeries(_Entries):
    """`sub-*/logs/*.json` of a BIDS derivative: the record of one series and model."""

    schema_: Literal["labelwise bids-series 1"] = Field(alias="schema")
    key: str
    """The digest of all that decides the maps."""
    series: str
    """The name of the series."""
    model: str
    """As in `labelwise models`."""
    references: list[str]
    """The sources of the model, as links."""
    statistics: list[Statistic]
    run: Run
    levels: Any = None
    """By networks: the noise levels of the series, for the training."""
    levels_key: str | None = None
    files: dict[str, str]
    """By path, their SHA-256."""


class BidsParticipant(_Entries):
    """An element of the list that `labelwise bids --json` prints."""

    schema_: Literal["labelwise bids-participant 1"] = Field(alias="schema")
    subject: str
    """Its label."""
    mapped: list[str]
    """Done now."""
    kept: list[str]
    """Finished before, with the same content."""
    failed: dict[str, str]
    """By series, why it has no maps."""
    references: list[str]
    """The sources of the models, as links."""


class Evaluation(_Entries):
    """`evaluation.json` of `labelwise evaluate`."""

    schema_: Literal["labelwise evaluation 1"] = Field(alias="schema")
    command: str
    """As typed."""
    networks: list[str]
    """Their files."""
    snr: float
    """Of the simulated signals."""
    repeats: int
    """Noisy signals of each point of the grid."""
    seed: int
    """Of the random numbers."""
    grid: dict[str, list[float]]
    """The true values, by parameter."""
    summary: dict[str, dict[str, dict[str, Number]]]
    """By estimator, parameter and quantity, the mean over the grid; `_error` is its error."""


class Curve(_Entries):
    """The score at each alpha."""

    alpha: list[float]
    value: list[Number]
    """On the held-out half."""
    error: list[Number]
    worse: list[Number]
    """How much worse than at the chosen alpha."""
    worse_error: list[Number]
    as_good: list[bool]
    tuning: list[Number]
    """On the half that alpha was chosen on."""


class Tuned(_Entries):
    """The choice for one parameter."""

    unit: str
    alpha: float
    differs: bool
    """Whether the two tissues differ in it."""
    as_good: Span | None
    flat: bool | None
    curve: Curve


class Discriminant(_Entries):
    """The detection by all parameters together."""

    at: list[str]
    value: list[Number]
    error: list[Number]
    worse: list[Number]
    worse_error: list[Number]


class Tuning(_Entries):
    """`tune.json` of `labelwise tune`."""

    schema_: Literal["labelwise tuning 1"] = Field(alias="schema")
    command: str
    """As typed."""
    network: str
    """Its file."""
    seed: int
    """Of the random numbers."""
    model: Identity
    """What identifies the model of the network."""
    noise: str
    """The noise model, in words."""
    task: dict[str, Any]
    """`kind` (`rmse` or `detect`) and its tissues."""
    measure: str
    """`AUC` or `RMSE`."""
    snr: float
    """Of the simulated signals."""
    voxels: int
    """How many alpha was chosen on, and as many to evaluate it."""
    alphas: dict[str, float]
    """The choice, by parameter."""
    parameters: dict[str, Tuned]
    discriminant: Discriminant | None = None


class Area(_Entries):
    """An area under the ROC curve."""

    value: float
    error: Number
    gain: Number
    """Over that of the reference."""
    gain_error: Number


class Acquired(_Entries):
    """An acquisition and its errors, by parameter."""

    settings: dict[str, list[float]]
    """In the units of models: b in ms/µm²."""
    rmse: dict[str, Number]
    error: dict[str, Number]
    ratio: dict[str, Number]
    """Of the RMSE to that of the reference."""
    ratio_error: dict[str, Number]
    auc: dict[str, Area] | None = None
    """For a task, of the parameters whose centre differs between the tissues."""


class Design(_Entries):
    """`design.json` of `labelwise design`."""

    schema_: Literal["labelwise design 1"] = Field(alias="schema")
    command: str
    """As typed."""
    model: str
    """As in `labelwise models`."""
    noise: str
    """The noise model."""
    prior: dict[str, Any]
    """Of the simulated parameters."""
    seed: int
    """Of the random numbers."""
    estimator: str
    """`gt`, `mle` or `fit`."""
    minimised: list[str]
    """The parameters whose RMSE was minimised; for a task, whose AUC was maximised."""
    kept: list[str]
    """Those that may get 2 % worse at most."""
    reference: str
    """The acquisition that others are compared with."""
    snr: float
    """Of the simulated signals."""
    voxels: int
    """How many fresh ones the errors are from."""
    acquisitions: dict[str, Acquired]
    search: list[list[float]]
    """From each start, the efficiency along the search."""
    task: dict[str, Any] | None = None
    """`kind` (`detect`) and its tissues."""


class Part(_Entries):
    """One comparison that a claim makes."""

    what: str
    figures: str
    margin: Number
    """By how much the claim holds; negative where it does not."""
    error: Number
    verdict: str


class Claim(_Entries):
    """A claim and its verdict."""

    key: str
    section: str
    """Of the paper; empty for what the paper does not claim."""
    statement: str
    parts: list[Part]
    note: str
    verdict: Literal["holds", "does not hold", "within noise", "holds in part"]


class Table(_Entries):
    """A table of the report, as text."""

    key: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]


class Stage(_Entries):
    """A stage of the study and its wall time."""

    stage: str
    seconds: float
    kept: bool
    """Whether it was finished by an earlier run."""


class Study(_Entries):
    """`claims.json` of `labelwise study`."""

    schema_: Literal["labelwise study 1"] = Field(alias="schema")
    command: str
    """As typed."""
    settings: dict[str, str]
    """Of the study, in words."""
    claims: list[Claim]
    tables: list[Table]
    stage_times: list[Stage]
    notes: list[str]
    """On possible mistakes."""
    versions: dict[str, str]
    """Of the software."""


class Rating(_Entries):
    """`rating.json`, saved by the form of the page of a run."""

    schema_: Literal["labelwise rating 1"] = Field(alias="schema")
    image: str
    """The path of the series."""
    labelwise: str
    """Version."""
    rating: Literal["pass", "fail"] | None
    rater: str
    """Who rated, as typed."""
    comment: str
    """As typed."""
    alpha: dict[str, float] | None
    """Of the maps on the page when it was saved."""
    map: str
    """The map that was shown."""
    voxel: list[int] | None
    """Its indices, if one was chosen."""
    rated: str
    """In UTC."""


class Listed(_Entries):
    """A signal model in the table of `labelwise models --json`."""

    measures: str
    equation: str
    acquisition: list[str]
    needs: list[str]
    minimum: str
    constants: list[str]
    parameters: list[dict[str, Any]]
    derived: list[dict[str, str]]


SCHEMAS: dict[str, TypeAdapter[Any]] = {
    "run": TypeAdapter(Run),
    "map": TypeAdapter(Map),
    "bids-map": TypeAdapter(BidsMap),
    "bids-series": TypeAdapter(BidsSeries),
    "bids-participant": TypeAdapter(BidsParticipant),
    "evaluation": TypeAdapter(Evaluation),
    "tuning": TypeAdapter(Tuning),
    "design": TypeAdapter(Design),
    "study": TypeAdapter(Study),
    "rating": TypeAdapter(Rating),
    "models": TypeAdapter(dict[str, Listed]),
    "presets": TypeAdapter(dict[str, list[Entry]]),
}
"""The type of each record and table, by name."""


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a record or table by name (`SCHEMAS`)."""
    return SCHEMAS[name].json_schema(by_alias=True)
