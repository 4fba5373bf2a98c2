"""The four kinds of results: of each its name, version, what identifies it, what it holds, and words for it.

Nothing else asks for a kind by its name in a chain of ifs: it looks here.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deeper_layers.presets import HealingConfig

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Items = Annotated[int, Field(ge=1, le=2**24)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]
Name = Annotated[str, Field(min_length=1)]
# a cut of any shape, as `Cut.name` calls it
SOME = r"(layers|attention|mlp)( \d{1,5})+"
CutName = Annotated[str, Field(pattern=rf"^(\d{{1,5}},\d{{1,5}}|{SOME}(; {SOME})*)$")]
Cuts = dict[Name, list[CutName]]  # by rule, or GIVEN
GIVEN = "given"  # in place of a rule: nobody's choice
UNROUNDED = ("whole", "sliced", "healed")  # variants of a checkpoint; the fourth is "rounded"
UNHEALED = ("whole", "sliced")


class Checked(BaseModel):
    """No value is made to fit."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Open(Checked):
    """There may be more."""

    model_config = ConfigDict(extra="allow")


class ModelKey(Checked):
    name: Name
    weights: str  # their hash, or their commit on a hub


class Key(Open):
    """All that determines the numbers of a result, and nothing else."""

    model: ModelKey
    dtype: str
    quantization: str | None = None
    data: str  # fingerprint of the texts and items


class Asked(Checked):
    """What is asked of a task: examples in the prompt, items, seed of the examples' order; of a text its sequences."""

    shots: Count | None = None
    limit: Count | None = None
    order: Count | None = None
    length: Count | None = None  # tokens in a sequence


def _as_config(settings: dict) -> dict:
    HealingConfig(**settings)
    return settings


Settings = Annotated[dict, AfterValidator(_as_config)]  # of a healing


class Choice(Checked):
    """Asked of a rule instead of cuts: of which sizes, and what it looks at."""

    rule: Name
    sizes: Annotated[list[Count], Field(min_length=1)]
    calibration: dict[str, str | int]


class ScoresKey(Key):
    tasks: Annotated[dict[Name, Asked], Field(min_length=1)]
    cuts: Cuts | None = None  # or, where a rule is asked:
    choice: Choice | None = None
    calibration: dict[str, str | int] | None = None  # of a rule that changes weights
    healing: Settings | None = None
    text: str | None = None  # that heals
    bits: str | None = None  # to which weights are rounded
    engine: str | None = None


class HealingKey(Key):
    cut: CutName
    healing: Settings
    text: Name


class DistancesKey(Key):
    corpus: Name
    samples: Count
    sequence_length: Count
    seed: int


class GeometryKey(DistancesKey):
    tokens: Count
    neighbours: Count
    skip_sequences: Count


class Score(Checked):
    """Of one cut on one task: what came out item by item stands beside it, packed, or as losses of sequences."""

    task: Name
    metric: Name
    cut: CutName
    value: Number | None
    stderr: Number | None
    items: Items
    outcome: str | list[Number] | None = None
    chosen: str | None = None  # this and what follows only in the first row of a task and cut
    logprobs: str | None = None
    written: str | None = None  # of answers that were generated, in 16 bits, and whether each ended
    ended: str | None = None
    bytes: Count | None = None
    variant: Name | None = None  # of a checkpoint: UNROUNDED, or "rounded"
    engine: Name | None = None  # where it is not that of the key


class Step(Checked):
    step: Count
    loss: Number


class Distance(Checked):
    start: Count
    size: Count
    distance: Share | None
    stderr: Number | None
    samples: Count


class Measure(Checked):
    """Of a layer, whose size is 1, or of the residual that enters it, or leaves the last one: their size is 0."""

    metric: Name
    start: Count
    size: Count
    value: Number | None


class Level(Checked):
    """Accuracy of guessing on a task: at random, and by always naming the commonest answer."""

    chance: Share
    majority: Share = 0.0


class Trained(Checked):
    tokens: Count
    distinct_tokens: Count
    trained_parameters: Count
    seconds: Seconds


class Course(Trained):
    """Of a healing, as `deeper_layers.healing.Record` has it."""

    losses: Annotated[list[Number], Field(min_length=1)]


class Details(Checked):
    num_layers: Annotated[int, Field(ge=1, le=100_000)]
    weights: str  # their type, as they are published


class ScoresDetails(Details):
    groups: dict[Name, list[Name]] = {}  # of tasks: rows of their own are of all items
    levels: dict[Name, Level] = {}  # by task
    targets: dict[Name, str] = {}  # by task, the right choices, packed
    vocabulary: Annotated[int, Field(ge=2)] | None = None
    sizes: dict[CutName, Count] = {}  # of cuts of sublayers, as their rule counts them
    healed_tokens: Count | None = None
    answers: dict[Name, list[str]] = {}  # by variant, to the prompts of the key
    # of a choice: by rule its cuts in the order of sizes, by size the merged layers, what the rule cost
    cuts: Cuts = {}
    merged: dict[str, list[Count | list]] = {}
    passes: Seconds | None = None
    tokens: Count | None = None
    seconds: Seconds | None = None


class HealingDetails(Details, Trained):
    pass


class DistancesDetails(Details):
    tokens: Count
    by_sequence: str | None = None  # of every block in the order of the rows, in 16 bits


class GeometryDetails(Details):
    tokens: Count
    points: Count
    pairs: Annotated[dict[Name, list[list[Number | None]]], Field(min_length=1)]  # above the diagonal, row by row


class Provenance(Open):
    """What happened to be true while it was measured."""

    measured: Time
    device: str
    commit: str | None
    seconds: Seconds
    peak_memory_bytes: Count
    parts: dict[Name, dict[str, Any]] = {}  # of tasks of a group: where theirs is another


def _tasks(key: dict) -> str:
    return "+".join(sorted(key["tasks"]))


_corpus, _cut = operator.itemgetter("corpus"), operator.itemgetter("cut")


@dataclass(frozen=True)
class Kind:
    """One kind of results. `version` is raised where a change of the code changes numbers, or what is kept of them."""

    version: int
    key: type[Key]
    row: type[Checked]
    details: type[Details]
    name: Callable[[dict], str]  # of its file, from the key
    words: str


KINDS = {
    "distances": Kind(3, DistancesKey, Distance, DistancesDetails, _corpus, "angular distances of all blocks"),
    "scores": Kind(3, ScoresKey, Score, ScoresDetails, _tasks, "tasks and losses on text, of pruned models"),
    "healing": Kind(3, HealingKey, Step, HealingDetails, _cut, "a pruned model healed, its loss and its answers"),
    "geometry": Kind(3, GeometryKey, Measure, GeometryDetails, _corpus, "how residuals lie in space, layer by layer"),
}
ROWS = {name: TypeAdapter(list[kind.row]) for name, kind in KINDS.items()}  # ty: ignore[invalid-type-form]


def check_content(content: dict) -> None:
    """Raise ValueError, with one line that says what is odd, unless this is what a result of its kind holds."""
    if not isinstance(content, dict) or content.get("kind") not in [*KINDS]:
        raise ValueError(f"it is of none of the kinds {', '.join(KINDS)}")
    kind = KINDS[content["kind"]]
    if content.get("version") != kind.version:
        raise ValueError(f"it is of version {content.get('version')}, expected {kind.version}")
    try:
        kind.key.model_validate(content["key"])
        ROWS[content["kind"]].validate_python(content["rows"])
        kind.details.model_validate(content["details"])
        Provenance.model_validate(content["provenance"])
    except ValidationError as error:
        raise ValueError(in_words(error)) from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"it has no {error}") from None
    if not content["rows"]:
        raise ValueError("it has no rows")


def in_words(error: ValidationError) -> str:
    """The first thing that a schema found odd: where, what, and what was there."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "it"
    return f"{where[:100]}: {first['msg']}, found {str(first['input'])[:60]!r}"
