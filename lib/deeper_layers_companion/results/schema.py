"""The four kinds of results: for each its key, its content, its version, and a description."""

import functools
import itertools
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from deeper_layers.cuts import Cut
from deeper_layers.schema import (
    Count,
    CutName,
    ModelKey,
    Name,
    Number,
    Settings,
    StrictModel,
    describe_error,
)

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Items = Annotated[int, Field(ge=1, le=2**24)]
Cuts = dict[Name, list[CutName]]  # the keys are names of rules, or GIVEN
GIVEN = "given"  # in place of a rule: no rule chose these cuts
# what may have to be precise where asking stops early, see report/stopping.py
HALF_GONE = "half gone"
ACCURACY = "accuracy"


SHARES = ("acc", "acc_norm", "exact_match")  # metrics that are shares of the items
METRIC_RANGES = ("0 or more", "0 to 1")  # of a loss, of a share


class ExtensibleModel(StrictModel):
    """Unknown fields are kept."""

    model_config = ConfigDict(extra="allow")


class Key(ExtensibleModel):
    """All that determines the numbers of a result, and nothing else."""

    model: ModelKey
    dtype: str
    quantization: str | None = None
    data: str  # fingerprint of the texts and items


class Provenance(ExtensibleModel):
    """The circumstances of the measurement."""

    measured: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]
    device: str
    commit: str | None
    seconds: Number
    peak_memory_bytes: Count
    parts: dict[
        Name, dict[str, Any]
    ] = {}  # for tasks of a group that were measured under other circumstances


class Details(StrictModel):
    """Further values of a result."""

    num_layers: Annotated[int, Field(ge=1, le=100_000)]
    weights: str  # the type in which the weights are published


class Stopping(StrictModel):
    """Where asking stopped whose items are in a random order."""

    items: Items  # asked so far, of all tasks of a group together
    counts: dict[
        Name, Items
    ]  # by task, of all its items: with the seed of the key they give the order
    rule: dict[Name, Any]  # of `report.stopping`, as it was asked for last
    looks: list[Items]  # numbers of items at which the answer was looked at, in all runs
    reason: Name


class Kind(NamedTuple):
    words: str
    content: type[BaseModel]
    version: int = (
        3  # raise it when a change of the code changes numbers, or which of them are kept
    )


def _make_kind(words: str, **fields: dict) -> Kind:
    """A kind from the fields that others lack in its key, details and rows: types, or types and defaults."""
    bases = {"key": Key, "details": Details, "row": StrictModel}
    content: Any = {
        part: create_model(part, __base__=base, **fields[part]) for part, base in bases.items()
    }
    content["rows"] = Annotated[list[content.pop("row")], Field(min_length=1)]  # ty: ignore[invalid-type-form]
    return Kind(
        words, create_model("Content", __base__=ExtensibleModel, provenance=Provenance, **content)
    )


OPTIONAL_TEXT = (str | None, None)
OPTIONAL_COUNT = (Count | None, None)
# shots: examples in the prompt; order: of the examples; seed: of the random order in which items are asked, up to a
# number that stands in the details
TASK_SETTINGS = Literal["shots", "limit", "order", "length", "seed"]
TEXT_FIELDS = {"corpus": Name, "samples": Count, "sequence_length": Count, "seed": int}
PLACE_FIELDS = {"start": Count, "size": Count}
KINDS = {
    "distances": _make_kind(
        "angular distances of all blocks",
        key=TEXT_FIELDS,
        row=PLACE_FIELDS
        | {"distance": Share | None, "stderr": NotNegative | None, "samples": Count},
        # by_sequence: the distances of every sequence, blocks in the order of the rows, in 16 bits
        details={"tokens": Count, "by_sequence": OPTIONAL_TEXT},
    ),
    "scores": _make_kind(
        "tasks and losses on text, of pruned models",
        key={
            "tasks": Annotated[dict[Name, dict[TASK_SETTINGS, Count | None]], Field(min_length=1)],
            "cuts": (Cuts | None, None),
            "healing": (Settings | None, None),
            # also, unchecked: "choice", a rule that chooses instead of cuts, with its calibration; "calibration" of a
            # rule that changes weights; "map" in the place of the last layers; "text" that heals; "bits" to which
            # weights are rounded; "engine"
        },
        # outcome: the packed scores of the items, or the loss of each sequence
        row={
            "task": Name,
            "metric": Name,
            "cut": CutName,
            "value": Number | None,
            "stderr": NotNegative | None,
        }
        | {"items": Items, "outcome": (str | list[Number] | None, None), "bytes": OPTIONAL_COUNT}
        # packed, in the first row of a task and cut: choices, or tokens of generated answers and whether each ended
        | dict.fromkeys(("chosen", "logprobs", "written", "ended"), OPTIONAL_TEXT)
        # of a loss, beside the whole model: means over all tokens; compared: by sequence, packed
        | dict.fromkeys(("agreement", "overlap"), (Share | None, None))
        | {"kl": (NotNegative | None, None), "compared": OPTIONAL_TEXT}
        # variant: of a checkpoint, "whole", "sliced", "healed" or "rounded"; engine: if it is not that of the key
        | dict.fromkeys(("variant", "engine"), OPTIONAL_TEXT),
        details={
            "groups": (
                dict[Name, list[Name]],
                {},
            ),  # the tasks of a group; a row of the group is over all items
            "levels": (
                dict[Name, dict[Literal["chance", "majority"], Share]],
                {},
            ),  # by task, the scores of guessing
            "targets": (dict[Name, str], {}),  # by task, the right choices, packed
            "stopping": (Stopping | None, None),
            "sizes": (dict[CutName, Count], {}),  # of cuts of sublayers, by their rule's count
            "answers": (dict[Name, list[str]], {}),  # by variant, to the prompts of the key
            # of a choice: by rule its cuts in the order of sizes, by size the merged layers
            "cuts": (Cuts, {}),
            "merged": (dict[str, list[Count | list]], {}),
        }
        | dict.fromkeys(("vocabulary", "healed_tokens", "tokens"), OPTIONAL_COUNT)
        | dict.fromkeys(
            ("passes", "seconds"), (Number | None, None)
        ),  # of a choice, like tokens: what it once kept
    ),
    "healing": _make_kind(
        "a pruned model healed, its loss and its answers",
        key={"cut": CutName, "healing": Settings, "text": Name},
        row={"step": Count, "loss": Number},
        details=dict.fromkeys(("tokens", "distinct_tokens", "trained_parameters"), Count)
        | {
            "seconds": Number,
            "tuned": OPTIONAL_TEXT,
        },  # tuned: what was trained with all its weights, in words
    ),
    "geometry": _make_kind(
        "how residuals lie in space, layer by layer",
        key=TEXT_FIELDS | {"tokens": Count, "neighbours": Count, "skip_sequences": Count},
        # size 1 is a layer; size 0 is the residual that enters layer `start`, or leaves the last one
        row=PLACE_FIELDS | {"metric": Name, "value": Number | None},
        # pairs: the entries above the diagonal, row by row
        details={"tokens": Count, "points": Count, "pairs": dict[Name, list[list[Number | None]]]},
    ),
}


def check_content(content: dict) -> tuple[str, dict, dict, list[dict], dict]:
    """The kind, key, provenance, rows and details of a result. Raises ValueError, in one line, for other
    content, and where it contradicts itself."""
    kind = content.get("kind")
    version = content.get("version")
    if kind not in KINDS or version != KINDS[kind].version:
        raise ValueError(f"{kind} of version {version} is no kind of results")
    try:
        KINDS[kind].content.model_validate(content)
    except ValidationError as error:
        raise ValueError(describe_error(error)) from None
    check_consistency(content["key"], content["rows"], content["details"])
    return kind, *(content[name] for name in ("key", "provenance", "rows", "details"))


@functools.lru_cache(maxsize=8192)
def check_cut_name(name: str, num_layers: int) -> None:
    """Raise ValueError where a model of so many layers can't lose what the name of a cut says."""
    Cut.named(name).check(num_layers)


def check_consistency(key: dict, rows: list[dict], details: dict) -> None:
    """Raise ValueError, in one line, for a result that contradicts itself."""
    layers = details["num_layers"]
    groups = details.get("groups", {})
    names = {row["cut"] for row in rows if "cut" in row} | ({key["cut"]} if "cut" in key else set())
    for cuts_by_rule in (key.get("cuts"), details.get("cuts")):
        names.update(itertools.chain.from_iterable((cuts_by_rule or {}).values()))
    for name in sorted(names):
        check_cut_name(name, layers)
    for group, tasks in groups.items():
        if nested := groups.keys() & set(tasks):
            raise ValueError(
                f"the group {group} holds {min(nested)}, a group: expected tasks alone"
            )
    for row in rows:
        value = row.get("value")
        metric = row.get("metric", "").partition(",")[0]
        if "start" in row and row["start"] + row["size"] > layers:
            raise ValueError(
                f"a block ends after layer {row['start'] + row['size'] - 1}, and the model has {layers}"
            )
        if value is not None and (
            metric in SHARES and not 0 <= value <= 1 or metric == "loss" and value < 0
        ):
            raise ValueError(
                f"{row['metric']} of {row['task']} is {value}, expected {METRIC_RANGES[metric in SHARES]}"
            )
