"""The four kinds of results: of each what identifies it, what it holds, its version, and words for it.

Nothing else asks for a kind by its name in a chain of ifs: it looks here.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from deeper_layers.presets import HealingConfig

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Items = Annotated[int, Field(ge=1, le=2**24)]
# a cut of any shape, as `Cut.name` calls it
SOME = r"(layers|attention|mlp)( \d{1,5})+"
CutName = Annotated[str, Field(pattern=rf"^(\d{{1,5}},\d{{1,5}}|{SOME}(; {SOME})*)$")]
Cuts = dict[Name, list[CutName]]  # by rule, or GIVEN
Settings = Annotated[dict, AfterValidator(lambda settings: HealingConfig(**settings) and settings)]  # of a healing
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


class Provenance(Open):
    """What happened to be true while it was measured."""

    measured: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]
    device: str
    commit: str | None
    seconds: Number
    peak_memory_bytes: Count
    parts: dict[Name, dict[str, Any]] = {}  # of tasks of a group: where theirs is another


class Details(Checked):
    """Whatever else was kept."""

    num_layers: Annotated[int, Field(ge=1, le=100_000)]
    weights: str  # their type, as they are published


class Kind(NamedTuple):
    words: str
    named: str  # the entry of its key that names its file
    content: type[BaseModel]
    version: int = 3  # raised where a change of the code changes numbers, or what is kept of them


def _kind(words: str, named: str, key: dict, row: dict, details: dict) -> Kind:
    """From fields beside those of every kind, each a type, or a type and a default."""
    content: Any = {"key": create_model("Key", __base__=Key, **key), "provenance": Provenance}
    content["details"] = create_model("Details", __base__=Details, **details)
    one = create_model("Row", __base__=Checked, **row)
    content["rows"] = Annotated[list[one], Field(min_length=1)]  # ty: ignore[invalid-type-form]
    return Kind(words, named, create_model("Content", __base__=Open, **content))


OPTIONAL, UNCOUNTED = (str | None, None), (Count | None, None)
ASKED = Literal["shots", "limit", "order", "length"]  # of a task: examples in the prompt, items, the examples' order
OF_TEXT = {"corpus": Name, "samples": Count, "sequence_length": Count, "seed": int}
PLACE = {"start": Count, "size": Count}
KINDS = {
    "distances": _kind(
        "angular distances of all blocks",
        named="corpus",
        key=OF_TEXT,
        row=PLACE | {"distance": Share | None, "stderr": Number | None, "samples": Count},
        # by_sequence: of every block in the order of the rows, in 16 bits
        details={"tokens": Count, "by_sequence": OPTIONAL},
    ),
    "scores": _kind(
        "tasks and losses on text, of pruned models",
        named="tasks",
        key={
            "tasks": Annotated[dict[Name, dict[ASKED, Count | None]], Field(min_length=1)],
            "cuts": (Cuts | None, None),
            "healing": (Settings | None, None),
            # and of any shape: "choice", asked of a rule instead of cuts, with what it looks at; "calibration" of one
            # that changes weights; "text" that heals; "bits" to which weights are rounded; "engine"
        },
        # outcome: of each item, packed, or the loss of each sequence
        row={"task": Name, "metric": Name, "cut": CutName, "value": Number | None, "stderr": Number | None}
        | {"items": Items, "outcome": (str | list[Number] | None, None), "bytes": UNCOUNTED}
        # packed, in the first row of a task and cut: choices, and of generated answers tokens and whether each ended
        | dict.fromkeys(("chosen", "logprobs", "written", "ended"), OPTIONAL)
        # of a checkpoint: one of UNROUNDED, or "rounded"; an engine that is not that of the key
        | dict.fromkeys(("variant", "engine"), OPTIONAL),
        details={
            "groups": (dict[Name, list[Name]], {}),  # of tasks: rows of their own are of all items
            "levels": (dict[Name, dict[Literal["chance", "majority"], Share]], {}),  # by task, what guessing scores
            "targets": (dict[Name, str], {}),  # by task, the right choices, packed
            "vocabulary": UNCOUNTED,
            "sizes": (dict[CutName, Count], {}),  # of cuts of sublayers, as their rule counts them
            "healed_tokens": UNCOUNTED,
            "answers": (dict[Name, list[str]], {}),  # by variant, to the prompts of the key
            # of a choice: by rule its cuts in the order of sizes, by size the merged layers, what the rule cost
            "cuts": (Cuts, {}),
            "merged": (dict[str, list[Count | list]], {}),
            "passes": (Number | None, None),
            "tokens": UNCOUNTED,
            "seconds": (Number | None, None),
        },
    ),
    "healing": _kind(
        "a pruned model healed, its loss and its answers",
        named="cut",
        key={"cut": CutName, "healing": Settings, "text": Name},
        row={"step": Count, "loss": Number},
        details=dict.fromkeys(("tokens", "distinct_tokens", "trained_parameters"), Count) | {"seconds": Number},
    ),
    "geometry": _kind(
        "how residuals lie in space, layer by layer",
        named="corpus",
        key=OF_TEXT | {"tokens": Count, "neighbours": Count, "skip_sequences": Count},
        # of a layer, whose size is 1, or of the residual that enters it, or leaves the last one: their size is 0
        row=PLACE | {"metric": Name, "value": Number | None},
        # pairs: what stands above the diagonal, row by row
        details={"tokens": Count, "points": Count, "pairs": dict[Name, list[list[Number | None]]]},
    ),
}


def check_content(content: dict) -> None:
    """Raise ValueError, with one line that says what is odd, unless this is what a result of its kind holds."""
    kind = KINDS.get(content.get("kind", ""))
    if kind is None or content.get("version") != kind.version:
        raise ValueError(f"{content.get('kind')} of version {content.get('version')} is no kind of results")
    try:
        kind.content.model_validate(content)
    except ValidationError as error:
        raise ValueError(in_words(error)) from None


def in_words(error: ValidationError) -> str:
    """The first thing that a schema found odd: where, what, and what was there."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}, found {str(first['input'])[:60]!r}"
