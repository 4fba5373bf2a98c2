"""What came of each family in each engine, and whether that is the cut's doing and was warned of."""

from pathlib import Path

from conformance import checkpoints
from conformance.checkpoints import CUTS, WHOLE
from conformance.environments import ENGINES
from deeper_layers.checkpoints.engines import wrong_in
from deeper_layers.cuts import Cut
from deeper_layers.models.checkpoint_files import read_json

# of several cuts the first of these that any of them has is a family's
WORST = (
    "silently wrong",
    "refused",
    "wrong, warned of",
    "refused by us",
    "wrong as the whole model is",
    "not read",
    "equal",
    "not tried",
)
OURS = "we refuse: "  # how what we say ourselves begins


def verdict(work: Path, engine: str, family: str, answers: dict[str, dict]) -> dict:
    """What came of a family's cuts in an engine, and of the whole model, whose failures are none of the cut."""
    cuts = {cut: _of_cut(work, engine, family, cut, answers) for cut in (WHOLE, *CUTS)}
    whole = cuts.pop(WHOLE)
    for cut, found in cuts.items():
        if found["result"] == "refused":
            found["result"] = "not read" if whole["result"] == "refused" else "refused"
        if found["result"] == "differs":
            found["result"] = _blamed(work, engine, family, cut, whole)
    result = min((found["result"] for found in cuts.values()), key=WORST.index)
    return {"result": result, "cuts": {f"{cut.start}-{cut.size}": found for cut, found in cuts.items()}, "whole": whole}


def _of_cut(work: Path, engine: str, family: str, cut: Cut, answers: dict[str, dict]) -> dict:
    answer = answers.get(checkpoints.name_of(family, cut))
    if answer is None:
        return {"result": "not tried"}
    if "error" in answer:
        ours = answer["error"].startswith(OURS)
        return {"result": "refused by us" if ours else "refused", "said": answer["error"].removeprefix(OURS)}
    equal, ties = checkpoints.same(work, family, cut, answer["tokens"])
    return {"result": "equal" if equal else "differs"} | ({"ties": ties} if ties else {})


def _blamed(work: Path, engine: str, family: str, cut: Cut, whole: dict) -> str:
    """Whether tokens that differ were warned of, or are the engine's own doing: then the whole model's differ, too."""
    counts_as = ENGINES[engine].counts_as
    config = read_json(work / "sources" / family / "config.json")
    if counts_as and wrong_in(config, cut, [counts_as]):
        return "wrong, warned of"
    return "wrong as the whole model is" if whole["result"] == "differs" else "silently wrong"
