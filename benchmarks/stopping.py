"""Early answers, replayed on the stored outcomes of the published models; nothing is run.

Stopping: items of each task are asked in 2,000 random orders, all cuts of a rule together, until the rule of stopping
(report/stopping.py) says that half gone is precise enough. How often its interval then holds the number of all items
("holds"), and how many items were asked; "anew" draws the items with replacement, as if the task had ever more of them,
where the last look does not hold by itself. "fixed" takes 95% at each look, which is what must not be done.

Subsets: does a small set of items, chosen on whole models alone, rank pruned ones better than a random set? "anchors"
are the items nearest to the centres of k-means over the whole models' probabilities of the right choice, with the sizes
of the clusters as weights (tinyBenchmarks, arXiv 2402.14992); "strata" are every I/k-th item, sorted by that of the
model's own whole one.

    python -m benchmarks.stopping

writes measured/stopping.json, with means, and one row a task in measured/stopping.csv and measured/subsets.csv.
"""

import numpy as np
import pandas as pd
from scipy.cluster.vq import kmeans2
from scipy.special import softmax
from scipy.stats import spearmanr

from benchmarks import harness
from deeper_layers_companion import results
from deeper_layers_companion.report import pairing, statistics
from deeper_layers_companion.report.estimates import is_at_floor
from deeper_layers_companion.report.stopping import StoppingRule, Tally, find_half_gone_ends, look_at, plan_looks

REPLAYS, AT_ONCE = 2000, 100
PRECISIONS = (0.1, 0.05, 0.03)
RULES = ("simple", "similarity", "reverse")
SUBSETS, DRAWN, CLUSTERED = (30, 60, 120), 200, 20  # items; random subsets; k-means from as many beginnings


def main() -> None:
    scores = results.scores()
    stops = pd.DataFrame(replay_tasks(scores))
    stops.to_csv(harness.MEASURED / "stopping.csv", index=False, float_format="%.4g")
    subsets = pd.DataFrame(rank_by_subsets(scores))
    subsets.to_csv(harness.MEASURED / "subsets.csv", index=False, float_format="%.4g")
    content = {
        "replays": REPLAYS,
        "curves": int(len(stops) / len(PRECISIONS)),
        "stopping": summarize_stops(stops),
        "subsets": summarize_subsets(subsets),
    }
    harness.keep("stopping", content)


# ---- stopping -----------------------------------------------------------------------------------------------------


def replay_tasks(scores: pd.DataFrame):
    """A row for each model, task, rule and precision whose half gone has a number."""
    rows = pairing.pick_rules(scores)
    for curve in statistics._find_answers(rows[rows["rule"].isin(RULES)], scores):
        sizes = curve.cuts["size"].astype(int)
        if not sizes.is_unique or is_at_floor(curve.outcomes[0], curve.guessing):
            continue
        place = dict(zip(pairing.PLACE, curve.place))
        columns = {"items": curve.outcomes.shape[1], "layers": curve.layers, "sizes": len(sizes)}
        for row in replay(curve.outcomes.astype(np.uint8), sizes.tolist(), curve.layers, curve.guessing):
            yield place | columns | row


def replay(right: np.ndarray, sizes: list[int], layers: int, guessing: float):
    """A row for each precision, from right (1) and wrong (0) answers [C, I]."""
    items = right.shape[1]
    looks = plan_looks(items)
    true = float(find_half_gone_ends(Tally.of(right), sizes, guessing, 0.05)[0])
    draw = np.random.default_rng(0)
    as_asked = [Tally.at(looks, right[:, order].swapaxes(0, 1)) for order in draw_orders(draw, items, False)]
    anew = [Tally.at(looks, right[:, order].swapaxes(0, 1)) for order in draw_orders(draw, items, True)]
    for precision in PRECISIONS:
        rule = StoppingRule(precision, looks)
        fixed = StoppingRule(precision, looks, level=1 - 0.05 * len(looks))
        asked, early, holds, _ = stop_each(as_asked, rule, true, sizes, layers, guessing)
        _, _, holds_anew, together_anew = stop_each(anew, rule, true, sizes, layers, guessing)
        _, _, _, fixed_together = stop_each(anew, fixed, true, sizes, layers, guessing)
        yield {
            "half_gone": true,
            "precision": precision,
            "holds": holds,
            "holds_anew": holds_anew,
            "all_looks_hold_anew": together_anew,
            "all_looks_hold_fixed": fixed_together,
            "asked": asked / items,
            "stops_early": early,
        }


def draw_orders(draw: np.random.Generator, items: int, with_replacement: bool):
    """Orders of the items of REPLAYS replays, AT_ONCE at a time, [R, I]."""
    for _ in range(REPLAYS // AT_ONCE):
        if with_replacement:
            yield draw.integers(0, items, (AT_ONCE, items))
        else:
            yield draw.random((AT_ONCE, items)).argsort(axis=1)


def stop_each(tallies: list[Tally], rule: StoppingRule, true: float, sizes, layers: int, guessing: float) -> tuple:
    """Means over replays: items asked, whether asking stopped early, whether the answer at the stop holds the truth,
    and whether those of all looks do. No answer is given where the whole model is not surely above guessing; that it
    surely is not is a wrong one."""
    found: list[np.ndarray] = []
    for tally in tallies:
        look = look_at(tally, sizes, layers, guessing, rule)
        holds = (look.half_gone.low <= true) & (true <= look.half_gone.high)
        holds = ~look.is_at_floor & (holds | ~look.is_able)
        stops = look.stops.copy()
        early = stops[:, :-1].any(axis=1)
        stops[:, -1] = True
        first = stops.argmax(axis=1)
        at_stop = holds[np.arange(len(first)), first]
        found.append(np.stack([np.array(rule.looks)[first], early, at_stop, holds.all(axis=1)]))
    return tuple(float(values.mean()) for values in np.concatenate(found, axis=1))


def summarize_stops(stops: pd.DataFrame) -> list[dict]:
    """Over all tasks: by precision, and the worst of them."""
    rows: list[dict] = []
    for precision, of_precision in stops.groupby("precision", sort=False):
        mean, worst = of_precision.mean(numeric_only=True), of_precision.min(numeric_only=True)
        rows.append({
            "precision": precision,
            "holds": round(mean["holds"], 4),
            "holds_worst": round(worst["holds"], 4),
            "holds_anew": round(mean["holds_anew"], 4),
            "holds_anew_worst": round(worst["holds_anew"], 4),
            "all_looks_hold_anew_worst": round(worst["all_looks_hold_anew"], 4),
            "all_looks_hold_fixed_worst": round(worst["all_looks_hold_fixed"], 4),
            "asked": round(mean["asked"], 3),
            "asked_least": round(worst["asked"], 3),
            "asked_most": round(of_precision["asked"].max(), 3),
            "stops_early": round(mean["stops_early"], 3),
            "curves_that_never_stop_early": int((of_precision["stops_early"] == 0).sum()),
        })  # fmt: skip
    return rows


# ---- subsets ------------------------------------------------------------------------------------------------------


def rank_by_subsets(scores: pd.DataFrame):
    """A row for each model, task, number of items and way to choose them."""
    is_plain = scores["healing"].isna() & scores["bits"].isna() & scores["changed"].isna()
    rows = pairing.pick_metric(scores[is_plain & scores["logprobs"].notna() & scores["target"].notna()])
    for task, of_task in rows.groupby("task"):
        is_whole = of_task["cut"] == statistics.WHOLE
        place = ["model", "limit", "shots", "order", "dtype"]
        runs = of_task.merge(of_task.loc[is_whole, place].drop_duplicates(), on=place)
        answers = {model: widest_run(of_model) for model, of_model in runs.groupby("model")}
        items = {right.shape[1] for right, _ in answers.values()}
        if len(answers) < 2 or len(items) > 1:
            continue
        known = np.stack([sure for _, sure in answers.values()], axis=1)  # of whole models, [I, models]
        guessing = pairing.score_guessing(of_task)
        for model, (right, sure) in answers.items():
            if is_at_floor(right[0], guessing) or len(right) < 6:
                continue
            for row in compare_subsets(right[1:], known, sure):
                yield {"model": model, "task": task, "items": right.shape[1], "pruned": len(right) - 1} | row


def widest_run(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Answers [C, I] of the run with most items, then cuts, the whole model first; and the probability that the whole
    model gives to the right choice of each item, [I]."""
    groups = [group for _, group in rows.groupby(["limit", "shots", "order", "dtype"], dropna=False)]
    best = max(groups, key=lambda group: (group.drop_duplicates("subject")["items"].sum(), group["cut"].nunique()))
    distinct = best.drop_duplicates(["cut", "subject"])
    complete = distinct.groupby("cut")["items"].transform("sum")
    cuts, right = pairing.pair_outcomes(distinct[complete == complete.max()])
    whole = distinct[distinct["cut"] == statistics.WHOLE].sort_values("subject", na_position="first", kind="stable")
    sure: list[float] = []
    for logprobs, target in zip(whole["logprobs"], whole["target"]):
        probabilities = softmax(np.nan_to_num(logprobs, nan=-np.inf), axis=1)
        sure += probabilities[np.arange(len(target)), target.astype(int)].tolist()
    first = cuts.index[cuts["cut"] == statistics.WHOLE][0]
    return np.concatenate([right[[first]], np.delete(right, first, axis=0)]), np.array(sure)


def compare_subsets(right: np.ndarray, known: np.ndarray, sure: np.ndarray):
    """How well subsets rank pruned models [C, I]: the correlation of ranks with those of all items, and the mean
    distance of a score from that of all items."""
    items = right.shape[1]
    full = right.mean(axis=1)
    draw = np.random.default_rng(0)
    for size in SUBSETS:
        if size > items / 2:
            continue
        ways: dict[str, list] = {"random": [], "strata": [], "anchors": []}
        for _ in range(DRAWN):
            ways["random"].append(right[:, draw.permutation(items)[:size]].mean(axis=1))
            places = (np.arange(size) + draw.random()) * items / size
            ways["strata"].append(right[:, sure.argsort(kind="stable")[places.astype(int)]].mean(axis=1))
        for seed in range(CLUSTERED):
            ways["anchors"].append(score_anchors(right, known, size, seed))
        for way, estimates in ways.items():
            ranks = [spearmanr(estimate, full).statistic for estimate in estimates if np.ptp(estimate) > 0]
            error = float(np.mean([np.abs(estimate - full).mean() for estimate in estimates]))
            yield {"subset": size, "way": way, "rank_correlation": float(np.mean(ranks)), "error": error}


def score_anchors(right: np.ndarray, known: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The score of each pruned model from the items nearest to the centres of clusters, weighted by their sizes."""
    centres, labels = kmeans2(known, size, minit="++", seed=seed, missing="warn")
    score = np.zeros(len(right))
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        distances = np.linalg.norm(known[members] - centres[cluster], axis=1)
        score += right[:, members[distances.argmin()]] * len(members)
    return score / right.shape[1]


def summarize_subsets(subsets: pd.DataFrame) -> list[dict]:
    """By number of items and way: means over models and tasks, and in how many a way ranks better than random items."""
    rows: list[dict] = []
    place = ["model", "task", "subset"]
    random = subsets[subsets["way"] == "random"].set_index(place)
    for (size, way), of_way in subsets.groupby(["subset", "way"], sort=False):
        beside = of_way.set_index(place).join(random, rsuffix="_random")
        rows.append({
            "subset": int(size),
            "way": way,
            "curves": len(of_way),
            "rank_correlation": round(of_way["rank_correlation"].mean(), 3),
            "error": round(of_way["error"].mean(), 4),
            "ranks_better_than_random": int((beside["rank_correlation"] > beside["rank_correlation_random"]).sum()),
            "closer_than_random": int((beside["error"] < beside["error_random"]).sum()),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
