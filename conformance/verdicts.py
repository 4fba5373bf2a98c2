"""What came of each family in each engine, and whether that is the cut's doing and was warned of."""

from pathlib import Path

from conformance import checkpoints
from conformance.checkpoints import CUTS, WHOLE
from conformance.environments import ENGINES
from deeper_layers.cuts import Cut
from deeper_layers.export.engines import wrong_in
from deeper_layers.models.checkpoint_files import read_json

# of several cuts the first of these that any of them has is a family's
WORST = (
    "silently wrong",
    "refused",
    "wrong, warned of",
    "refused, warned of",
    "refused by us",
    "wrong as the whole model is",
    "not read",
    "equal",
    "not tried",
)
UNEXPLAINED = WORST[:4]  # unless the whole model fares no better
OURS = "we refuse: "  # how what we say ourselves begins


def verdict(work: Path, engine: str, family: str, answers: dict[str, dict]) -> dict:
    """What came of a family's cuts in an engine, and of the whole model, whose failures are none of the cut."""
    cuts = {cut: _of_cut(work, engine, family, cut, answers) for cut in (WHOLE, *CUTS)}
    whole = cuts.pop(WHOLE)
    for cut, found in cuts.items():
        if found["result"] in ("differs", "refused"):
            found["result"] = _blamed(work, engine, family, cut, found["result"], whole["result"])
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


def _blamed(work: Path, engine: str, family: str, cut: Cut, result: str, whole: str) -> str:
    """Whether what an engine makes of a cut was warned of, or is its own doing: the whole model fares no better."""
    counts_as = ENGINES[engine].counts_as
    config = read_json(work / "sources" / family / "config.json")
    if whole == "refused":
        return "not read"
    if counts_as and wrong_in(config, cut, [counts_as]):
        return f"{'wrong' if result == 'differs' else 'refused'}, warned of"
    if result == "refused":
        return "refused"
    return "wrong as the whole model is" if whole == "differs" else "silently wrong"
