"""What a unit must hold, by its kind, so that whoever draws from it need not ask: checked whenever one is read.

Of each kind the key, the rows and the details; then that they agree: rows and outcomes for the cuts of the key and no
others, and as many outcomes as a row says it has items.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deeper_layers.presets import HealingConfig
from deeper_layers.results.agreement import MOST_ITEMS, disagreements

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[list[Count], Field(min_length=2, max_length=2)]  # first dropped layer, number of layers
Cuts = Annotated[list[Place], Field(min_length=1)]
# a cut of any shape, as `Cut.name` calls it
SOME = r"(layers|attention|mlp)( \d{1,5})+"
CutName = Annotated[str, Field(pattern=rf"^(\d{{1,5}},\d{{1,5}}|{SOME}(; {SOME})*)$")]
CutNames = Annotated[list[CutName], Field(min_length=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]
Vocabulary = Annotated[int, Field(ge=2)]
Name = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]*\.json$")]
Outcomes = dict[str, dict[str, str]]  # by task and metric, packed


class Checked(BaseModel):
    """No value is made to fit."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Open(Checked):
    """There may be more."""

    model_config = ConfigDict(extra="allow")


class Level(Checked):
    """Accuracy of guessing on a task: at random, and by always naming the commonest answer."""

    chance: Share
    majority: Share = 0.0


Levels = dict[str, Level]  # by task


# ---- keys ------------------------------------------------------------------------------------------------


class ModelKey(Checked):
    name: Name
    weights: str


class Key(Open):
    model: ModelKey
    dtype: str
    version: Count
    data: str


class OpenedKey(Key):
    quantization: str | None


class CutsKey(OpenedKey):
    cuts: Cuts


class TaskKey(CutsKey):
    task: Name
    rule: str
    limit: Count | None


class SweepKey(TaskKey):
    num_fewshot: Count | None


class AnyCutsKey(OpenedKey):
    """Of pruned models of any shape, whichever rule chose them."""

    task: Name
    cuts: CutNames
    limit: Count | None
    num_fewshot: Count | None
    engine: Name | None


class ChangedKey(AnyCutsKey):
    """Of what a rule leaves that changes weights too."""

    rule: Name
    calibration: dict[str, str | int]


class CandidatesKey(OpenedKey):
    text: Name
    samples: Count
    sequence_length: Count
    seed: int
    cuts: CutNames


class ShotsKey(TaskKey):
    num_fewshot: Count
    order: Count


class LossKey(CutsKey):
    text: Name
    sequences: Count
    sequence_length: Count


class ChoiceKey(OpenedKey):
    rule: Name
    sizes: Annotated[list[Count], Field(min_length=1)]
    calibration: dict[str, str | int]  # what the rule looks at
    text: Name
    sequences: Count
    sequence_length: Count


class SimilarityKey(OpenedKey):
    corpus: Name
    samples: Count
    sequence_length: Count
    seed: int


class GeometryKey(SimilarityKey):
    tokens: Count
    neighbours: Count
    skip_sequences: Count


def _as_config(settings: dict) -> dict:
    HealingConfig(**settings)
    return settings


Settings = Annotated[dict, AfterValidator(_as_config)]  # of a healing


class LossSettings(Open):
    text: Name
    sequences: Count
    sequence_length: Count


class HealingKey(OpenedKey):
    cut: Place | CutName
    healing: Settings
    text: Name
    loss: LossSettings
    tasks: dict[str, Count | None]


class BitsKey(Key):
    bits: Name
    cuts: Cuts
    tasks: dict[str, Count | None]
    limits: dict[str, Count | None]


class TakeAwayKey(Key):
    cut: Place
    healing: Settings
    text: Name
    type: Name


# ---- rows ------------------------------------------------------------------------------------------------


class Score(Checked):
    task: Name
    metric: Name
    start: Count
    size: Count
    value: Number | None
    stderr: Number | None
    items: Annotated[int, Field(ge=1, le=MOST_ITEMS)]


class ScoreOfCut(Score):
    cut: CutName


class ScoreOfHealed(Score):
    cut: CutName | None = None  # where it is no block


class ScoreOfBytes(Score):
    bytes: Count


class ScoreOfFile(Score):
    variant: Name


class Choice(Checked):
    """What a rule drops, and the loss of what it leaves."""

    task: Name
    metric: Name
    size: Count
    layers: list[Count]
    attention: list[Count]
    mlp: list[Count]
    value: Number | None
    stderr: Number | None
    items: Annotated[int, Field(ge=1, le=MOST_ITEMS)]


class Distance(Checked):
    start: Count
    size: Count
    distance: Share | None
    stderr: Number | None
    samples: Count


class OfGeometry(Checked):
    """Of a layer, whose size is 1, or of the residual that enters it, or leaves the last one: their size is 0."""

    metric: Name
    start: Count
    size: Count
    value: Number | None


# ---- details ---------------------------------------------------------------------------------------------


class Details(Checked):
    num_layers: Annotated[int, Field(ge=1, le=100_000)]
    weights: str


class Course(Checked):
    """Of a healing, as `deeper_layers.healing.Record` has it."""

    losses: Annotated[list[Number], Field(min_length=1)]
    tokens: Count
    distinct_tokens: Count
    trained_parameters: Count
    seconds: Seconds


class ScoredDetails(Details):
    levels: Levels


class SweepDetails(ScoredDetails):
    outcomes: dict[str, Outcomes] = {}  # by cut
    units: list[FileName] = []  # of the tasks of a group


class ShotsDetails(ScoredDetails):
    outcomes: dict[str, Outcomes]


class LossDetails(Details):
    by_sequence: dict[str, list[Number]]
    vocabulary: Vocabulary


class ChoiceDetails(Details):
    by_sequence: dict[str, list[Number]]  # by size
    merged: dict[str, list[Count | list]] = {}  # by size, the layers of what is left: merged ones in lists
    vocabulary: Vocabulary
    passes: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tokens: Count  # that the rule looked at
    seconds: Seconds  # that it took to choose


class TextDetails(Details):
    tokens: Count


class GeometryDetails(Details):
    tokens: Count
    points: Count
    pairs: Annotated[dict[Name, list[list[Number | None]]], Field(min_length=1)]  # above the diagonal, row by row


class DistancesDetails(TextDetails):
    by_sequence: str  # of every block in the order of the rows, in 16 bits


class HealingDetails(ScoredDetails):
    healing: Course
    by_sequence: list[Number]
    vocabulary: Vocabulary
    outcomes: Outcomes


class TakeAwayDetails(Details):
    answers: dict[str, list[str]]
    healing: Course


class Provenance(Open):
    measured: Time
    packages: dict[str, str]
    python: str | None = None
    commit: str | None
    dirty: bool | None
    device: str
    seconds: Seconds
    peak_memory_bytes: Count
    seconds_in_earlier_runs: Seconds = 0.0
    order: Count = 0


KINDS: dict[str, tuple[type[Key], type[Checked], type[Details]]] = {
    "sweep": (SweepKey, Score, SweepDetails),
    "shots": (ShotsKey, Score, ShotsDetails),
    "loss": (LossKey, Score, LossDetails),
    "blocks": (LossKey, Score, LossDetails),
    "choice": (ChoiceKey, Choice, ChoiceDetails),
    "scan": (SweepKey, Score, SweepDetails),
    "similarity": (SimilarityKey, Distance, TextDetails),
    "distances": (SimilarityKey, Distance, DistancesDetails),
    "geometry": (GeometryKey, OfGeometry, GeometryDetails),
    "healing": (HealingKey, ScoreOfHealed, HealingDetails),
    "bits": (BitsKey, ScoreOfBytes, ScoredDetails),
    "take-away": (TakeAwayKey, ScoreOfFile, TakeAwayDetails),
    "cuts": (AnyCutsKey, ScoreOfCut, SweepDetails),
    "changed": (ChangedKey, ScoreOfCut, SweepDetails),
    "candidates": (CandidatesKey, ScoreOfCut, TextDetails),
}
ROWS = {kind: TypeAdapter(list[row]) for kind, (_, row, _) in KINDS.items()}  # ty: ignore[invalid-type-form]


class Content(Checked):
    """All of a unit's file, before its kind is looked at."""

    kind: str
    name: Name
    key: dict
    provenance: Provenance
    rows: Annotated[list[dict], Field(min_length=1)]
    details: dict
    sha256: str | None = None


def check_unit(content) -> None:
    """Raise ValueError, with one line that says what is odd, unless this is what a unit holds."""
    try:
        Content.model_validate(content)
        if content["kind"] not in KINDS:
            raise ValueError(f"its kind is {content['kind'][:40]!r}, expected one of {', '.join(KINDS)}")
        key, _, details = KINDS[content["kind"]]
        key.model_validate(content["key"])
        ROWS[content["kind"]].validate_python(content["rows"])
        details.model_validate(content["details"])
    except ValidationError as error:
        raise ValueError(in_words(error)) from None
    for odd in disagreements(content["name"], content["key"], content["rows"], content["details"]):
        raise ValueError(odd)


def in_words(error: ValidationError) -> str:
    """The first thing that a schema found odd: where, what, and what was there."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "it"
    return f"{where[:100]}: {first['msg']}, found {str(first['input'])[:60]!r}"
