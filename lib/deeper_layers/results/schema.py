"""What a unit must hold, by its kind, so that whoever draws from it need not ask: checked whenever one is read.

Of each kind the key, the rows and the details; then that they agree: rows and outcomes for the cuts of the key and no
others, and as many outcomes as a row says it has items.
"""

import collections
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deeper_layers.results.packing import packed_length

MOST_ITEMS = 2**24  # of a task
ACCURACIES = ("acc", "acc_norm", "exact_match")  # what shares of items are called
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[list[Count], Field(min_length=2, max_length=2)]  # first dropped layer, number of layers
Cuts = Annotated[list[Place], Field(min_length=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]
Vocabulary = Annotated[int, Field(ge=2)]
Name = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]*\.json$")]
PARTS = ("layers", "attention", "mlp")  # of what a rule drops
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


class Settings(Open):
    """Of a healing."""

    rank: Count
    learning_rate: Number
    sequence_length: Count
    steps: Count
    seed: int
    quantization: str | None
    adapters: str
    auxiliary: Number


class LossSettings(Open):
    text: Name
    sequences: Count
    sequence_length: Count


class HealingKey(OpenedKey):
    cut: Place
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
    vocabulary: Vocabulary
    passes: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tokens: Count  # that the rule looked at
    seconds: Seconds  # that it took to choose


class SimilarityDetails(Details):
    tokens: Count


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
    "similarity": (SimilarityKey, Distance, SimilarityDetails),
    "healing": (HealingKey, Score, HealingDetails),
    "bits": (BitsKey, ScoreOfBytes, ScoredDetails),
    "take-away": (TakeAwayKey, ScoreOfFile, TakeAwayDetails),
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
    for odd in _disagreements(content["name"], content["key"], content["rows"], content["details"]):
        raise ValueError(odd)


def in_words(error: ValidationError) -> str:
    """The first thing that a schema found odd: where, what, and what was there."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "it"
    return f"{where[:100]}: {first['msg']}, found {str(first['input'])[:60]!r}"


def _disagreements(name: str, key: dict, rows: list[dict], details: dict) -> Iterator[str]:
    """In what key, rows and details, each of the right types, are not of one measurement."""
    layers = details["num_layers"]
    if "calibration" in key:
        yield from _about_choices(name, key, rows, details)
        return
    cuts = {tuple(cut) for cut in [*key.get("cuts", []), *([key["cut"]] if "cut" in key else [])]}
    columns = ("variant", "task", "metric", "start", "size")
    if len({tuple(row.get(name) for name in columns) for row in rows}) < len(rows):
        yield "two rows are of one thing"
    if any(row.get("metric") in ACCURACIES and not 0 <= (row["value"] or 0) <= 1 for row in rows):
        yield "an accuracy is not from 0 to 1"
    if "corpus" in key:  # every block there is
        if len(rows) != layers * (layers + 1) // 2:  # before as many are counted as a number says
            yield f"it has {len(rows)} rows, and {layers} layers"
        cuts = {(start, size) for size in range(1, layers + 1) for start in range(layers - size + 1)}
    if "variant" in rows[0]:
        cuts.add((0, 0))
    if any(start + size > layers for start, size in cuts):
        yield f"its cuts reach past the {layers} layers of its model"
    of_rows = collections.defaultdict(set)
    for row in rows:
        of_rows[row.get("task"), row.get("metric")].add((row["start"], row["size"]))
    if any(places - cuts or ("variant" not in rows[0] and cuts - places) for places in of_rows.values()):
        yield "its rows are not of the cuts of its key"
    names = {f"{start},{size}" for start, size in cuts}
    if isinstance(details.get("by_sequence"), dict):
        yield from _about_sequences(rows, details["by_sequence"], names)
    if (by_cut := details.get("outcomes")) is not None:
        yield from _about_outcomes(rows, dict.fromkeys(names, by_cut) if "cut" in key else by_cut, names)
    if "num_fewshot" in key and "order" not in key:
        if name != key["task"] or not (by_cut is None or all(name in of_cut for of_cut in by_cut.values())):
            yield "its name is not that of its task"
        if (details.get("units") is None) == (by_cut is None):
            yield "it holds both outcomes and the units of a group, or neither"


def _about_choices(name: str, key: dict, rows: list[dict], details: dict) -> Iterator[str]:
    if name != key["rule"]:
        yield "its name is not that of its rule"
    if not [row["size"] for row in rows] == key["sizes"] == sorted(set(key["sizes"])):
        yield "its rows are not of the sizes of its key"
    if any(layer >= details["num_layers"] for row in rows for part in PARTS for layer in row[part]):
        yield f"its cuts reach past the {details['num_layers']} layers of its model"
    if {size: len(losses) for size, losses in details["by_sequence"].items()} != {
        str(row["size"]): row["items"] for row in rows
    }:
        yield "its losses are not as many as its rows have items"


def _about_sequences(rows: list[dict], by_sequence: dict[str, list], cuts: set[str]) -> Iterator[str]:
    if by_sequence.keys() != cuts:
        yield "its losses of sequences are not of its cuts"
    elif any(len(by_sequence[f"{row['start']},{row['size']}"]) != row["items"] for row in rows):
        yield "its losses are not as many as its rows have items"


def _about_outcomes(rows: list[dict], by_cut: dict[str, dict], cuts: set[str]) -> Iterator[str]:
    """In what outcomes are not those of the rows: a task has as many of each kind as its row has items."""
    if by_cut.keys() != cuts:
        yield "its outcomes are not of its cuts"
        return
    items = {(f"{row['start']},{row['size']}", row["task"]): row["items"] for row in rows}
    tasks = {tuple(of_cut) for of_cut in by_cut.values()}
    lengths: dict[str, int] = {}
    for cut, of_cut in by_cut.items():
        for task, packed in of_cut.items():
            for text in packed.values():
                length = lengths.setdefault(task, items.get((cut, task), packed_length(text, MOST_ITEMS)))
                if packed_length(text, length) != length:
                    yield f"its outcomes of {task} are not as many as there are items"
    if len(tasks) > 1:
        yield "its outcomes are of other tasks for some cuts"
