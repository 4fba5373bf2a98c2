"""The paper's claims as decisions: what results hold of one model in, rulings out.

Source: Gromov et al., arXiv 2403.17887, its text and figures 1 to 9. Each claim is a few numbers and the range in
which each must lie. The paper says "flat", "sharp", "slowly"; the constants here say what we take that to mean.
A claim can't be tested where a number is not measured, or only at a few sizes, or where the whole model is not
surely better than guessing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.report import outcomes, paper
from deeper_layers.report.evidence import TOPICS, Answers, Evidence, of_topic, topic_of
from deeper_layers.report.outcomes import crossing, interval, of_means, resampled
from deeper_layers.report.verdicts import FINE, PLAIN, SIGNED, Finding, Ruling
from deeper_layers.results.units import Unit
from deeper_layers.rules.similarity import distance_matrix

EARLIEST = min(low for low, _ in paper.CLIFFS.values())  # of the layers, as are AT_ONCE and NEAR
LATEST = max(high for _, high in paper.CLIFFS.values())
FLAT = 0.90  # of what lies above guessing, left half way to the cliff; a straight fall would leave 0.75
SHARP = 0.50  # the fall from 3/4 to 1/4 over the way to the cliff; for a straight fall 1
AT_ONCE = 0.10
SLOWLY = 0.50  # rise of the healed loss over that of the other
STRAIGHT = 0.95  # share of the healed loss that a straight line explains
RISE = 1.0  # nats a token that the loss must rise without healing, or there is little to heal
JUMP = 2.0  # steepest step of the loss over the mean one
NEAR = 0.10
ALIKE = 0.05  # of accuracy
CLOSED = 0.20  # of the gap between the rules, left after healing
DEEP = 2 / 3  # of the depth
SIZES = 5  # at least, the whole model among them, to tell a shape: flat, sharp, straight, a jump
LAST = 0.90  # of the range of distances of one block size

OF_PAPER = TOPICS[:2]
HALF = "half of what it knows is gone at this share of its layers"


def falls(answers: Answers) -> list[Finding]:
    """Where accuracy falls, how much is left half way there, and how steeply it falls (figures 2 and 6)."""
    fractions, guessing, means = answers.fractions, answers.guessing, answers.means
    last = float(fractions[-1])

    def half_way(accuracy):
        place = min(crossing(accuracy, fractions, guessing), last)
        above = accuracy[0] - guessing
        return (np.interp(place / 2, fractions, accuracy) - guessing) / above if above > 0 else 0.0

    def width(accuracy, furthest=math.inf):
        first, middle, end = (crossing(accuracy, fractions, guessing, share) for share in (0.75, 0.5, 0.25))
        first, middle = min(first, last), min(middle, last)
        return (min(end, furthest) - first) / middle if middle > 0 else math.inf

    # an end that is not reached lies at the last cut or anywhere beyond
    shortest = interval(of_means(lambda accuracy: width(accuracy, last), means))[1]
    across, _, longest = interval(of_means(width, means))
    return [
        Finding(HALF, *cliff_of(answers), EARLIEST, LATEST),
        Finding("left of it half way there", *interval(of_means(half_way, means)), floor=FLAT),
        Finding("length of the fall from 3/4 to 1/4 of it, over the way there", across, shortest, longest,
                ceiling=SHARP, form=PLAIN),
    ]  # fmt: skip


def cliff_of(answers: Answers) -> tuple[float, float, float]:
    """The cliff; where it may lie beyond the last cut, the interval begins there at the latest."""
    place, low, high = interval(cliffs(answers))
    return place, min(low, float(answers.fractions[-1])), high


def cliffs(answers: Answers):
    fractions = answers.fractions
    return of_means(lambda accuracy: crossing(accuracy, fractions, answers.guessing), answers.means)


def not_known(answers: Answers | None, what: str) -> str:
    """Why a task says nothing, or nothing."""
    if answers is None:
        return f"not measured: {what}"
    if answers.known:
        return ""
    value, low, high = answers.whole
    return (
        f"the whole model scores {value:.3f} ({low:.3f} to {high:.3f}) and guessing {answers.guessing:.3f} on "
        f"{answers.described}: it has nothing to lose"
    )


def too_few(cuts: list[Cut]) -> str:
    """Why a curve through these cuts has no shape to speak of."""
    return f"measured at {len(cuts)} sizes, the whole model among them: too few to tell a shape"


def rule_on(topic: str, answers: Answers | None, obstacle: str, find: Callable, sizes: int = 2) -> Ruling:
    """The ruling on a task: what `find` finds in its answers, unless something stands in the way.

    From fewer than `sizes` cuts, the first finding alone.
    """
    about = answers.described if answers else topic
    found = [] if obstacle else find(answers)
    if found and len(answers.cuts) < sizes:
        found, obstacle = found[:1], too_few(answers.cuts)
    return Ruling(about, found, obstacle, topic in OF_PAPER, topic)


def on_tasks(evidence: Evidence, topics, rule: str, find: Callable, sizes: int = 2) -> list[Ruling]:
    """A ruling for each of the paper's tasks, and for every other one that the model knows."""
    rulings = []
    for topic in topics:
        answers = evidence.answers(topic, rule)
        obstacle = not_known(answers, f"{topic} under the {rule} rule")
        if topic in OF_PAPER or not obstacle:
            rulings.append(rule_on(topic, answers, obstacle, find, sizes))
    return rulings


def after_healing(decide: Callable) -> Callable:
    """A claim about healed models whose rulings say on how much text, beside the paper's, these were healed."""

    @functools.wraps(decide)
    def decided(evidence: Evidence) -> list[Ruling]:
        tokens = evidence.healing_tokens
        how = f", healed on {tokens:,} tokens, {tokens / paper.HEALING_TOKENS:.2%} of the paper's"
        return [
            dataclasses.replace(ruling, about=ruling.about + how) if ruling.findings else ruling
            for ruling in decide(evidence)
        ]

    return decided


# ---- the claims ----------------------------------------------------------------------------------------------


def plateau(evidence: Evidence) -> list[Ruling]:
    return on_tasks(evidence, ("MMLU", *TOPICS[2:-1]), "similarity", falls, SIZES)


def plateau_boolq(evidence: Evidence) -> list[Ruling]:
    return on_tasks(evidence, ("BoolQ",), "similarity", falls, SIZES)


@after_healing
def plateau_healed(evidence: Evidence) -> list[Ruling]:
    rulings = []
    for topic in TOPICS[:-1]:
        pair = evidence.healed(topic, "similarity")
        after = pair and pair[1]
        obstacle = not_known(after, f"{topic} of healed models")
        if topic in OF_PAPER or not obstacle:
            rulings.append(rule_on(topic, after, obstacle, falls, SIZES))
    return rulings


@after_healing
def healing_matters(evidence: Evidence) -> list[Ruling]:
    """What healing gives back on BoolQ, less what it gives back on MMLU: means over the pruned models of both."""
    pairs, gains = {}, {}
    for topic in OF_PAPER:
        pairs[topic] = evidence.healed(topic, "similarity")
        if obstacle := not_known(pairs[topic] and pairs[topic][0], f"{topic} of healed models"):
            return [Ruling("BoolQ beside MMLU", obstacle=obstacle)]
    common = [cut for cut in pairs["BoolQ"][0].cuts if cut.size and cut in pairs["MMLU"][0].cuts]
    for topic, (before, after) in pairs.items():
        gain = after.of(common).astype(float) - before.of(common)
        gains[topic] = resampled(np.mean, gain, seed=OF_PAPER.index(topic))
    more = interval(gains["BoolQ"] - gains["MMLU"])
    return [Ruling("BoolQ beside MMLU", [Finding("gain in accuracy, BoolQ less MMLU", *more, floor=0.0, form=SIGNED)])]


@after_healing
def healed_loss(evidence: Evidence) -> list[Ruling]:
    losses = evidence.losses("similarity")
    if losses is None:
        return [Ruling("loss on text", obstacle="not measured: losses before and after healing")]
    fractions = losses.fractions
    rise = losses.before[-1].mean() - losses.before[0].mean()
    if rise < RISE:
        what = f"without healing the loss rises by {rise:.2f} nats a token up to {fractions[-1]:.0%} of the layers"
        return [Ruling("loss on text", obstacle=f"{what}: there is little to heal")]

    def straight(loss):
        slope, start = np.polyfit(fractions, loss, 1)
        return 1 - np.sum((loss - start - slope * fractions) ** 2) / np.sum((loss - loss.mean()) ** 2)

    both = np.concatenate([losses.before, losses.after])
    rows = len(fractions)
    share = resampled(lambda loss: (loss[-1] - loss[rows]) / (loss[rows - 1] - loss[0]), both)
    what = "its rise, as a share of the rise without healing"
    found = [Finding(what, *interval(share), ceiling=SLOWLY, form=FINE)]
    if rows < SIZES:
        return [Ruling("loss on text", found, too_few(losses.cuts))]
    explained = interval(resampled(straight, losses.after))
    found.append(Finding("of it a straight line explains", *explained, floor=STRAIGHT, form=FINE))
    return [Ruling("loss on text", found)]


def unhealed_loss(evidence: Evidence) -> list[Ruling]:
    losses = evidence.unhealed_losses("similarity")
    if losses is None:
        return [Ruling("loss on text", obstacle="not measured: losses before healing")]
    fractions = losses.fractions
    if len(fractions) < SIZES:
        return [Ruling("loss on text", obstacle=too_few(losses.cuts))]

    def steepest(loss):
        return (np.diff(loss) / np.diff(fractions)).max() / ((loss[-1] - loss[0]) / fractions[-1])

    def place(loss):
        step = int((np.diff(loss) / np.diff(fractions)).argmax())
        return (fractions[step] + fractions[step + 1]) / 2

    found = [Finding("steepest step of the loss against the mean one", *interval(resampled(steepest, losses.before)),
                     floor=JUMP, form=PLAIN)]  # fmt: skip
    of_paper = [answers for topic in OF_PAPER if (answers := evidence.answers(topic, "similarity"))]
    known = next((answers for answers in of_paper if answers.known), None)
    if known is None:
        return [Ruling("loss on text", found, "the model knows neither MMLU nor BoolQ: there is no cliff to be near")]
    apart = np.abs(resampled(place, losses.before) - cliffs(known))
    found.append(Finding(f"from it to the cliff of {known.described}", *interval(apart), ceiling=NEAR))
    return [Ruling("loss on text", found)]


def simple_collapses(evidence: Evidence) -> list[Ruling]:
    return on_tasks(
        evidence, TOPICS[:-1], "simple", lambda answers: [Finding(HALF, *cliff_of(answers), ceiling=AT_ONCE)]
    )


@after_healing
def simple_healed(evidence: Evidence) -> list[Ruling]:
    rulings = []
    for topic in TOPICS[:-1]:
        pairs = {rule: evidence.healed(topic, rule) for rule in ("similarity", "simple")}
        obstacles = [not_known(pair and pair[0], f"{topic} of healed models, {rule}") for rule, pair in pairs.items()]
        obstacle = next(filter(None, obstacles), "")
        if obstacle:
            rulings += [Ruling(topic, obstacle=obstacle)] if topic in OF_PAPER else []
            continue
        informed, simple = (after for _, after in pairs.values())
        sizes = {cut.size for cut in informed.cuts} & {cut.size for cut in simple.cuts} - {0}
        right = [answers.of([cut for cut in answers.cuts if cut.size in sizes]) for answers in (simple, informed)]
        change = interval(resampled(np.mean, right[0].astype(float) - right[1]))
        what = "accuracy, simple heuristic less similarity-informed, mean over sizes"
        finding = Finding(what, *change, floor=-ALIKE, form=SIGNED)
        rulings.append(Ruling(informed.described, [finding], of_paper=topic in OF_PAPER))
    simple, informed = (evidence.losses(rule) for rule in ("simple", "similarity"))
    if not simple or not informed or [cut.size for cut in simple.cuts] != [cut.size for cut in informed.cuts]:
        return [*rulings, Ruling("loss on text", obstacle="not measured: losses of healed models under both rules")]
    gaps = [(simple.after - informed.after).mean(axis=0), (simple.before - informed.before).mean(axis=0)]
    left = interval(resampled(lambda gap: gap[0] / gap[1], np.stack(gaps)))
    what = "of the gap between the losses of the two rules, healing leaves"
    return [*rulings, Ruling("loss on text", [Finding(what, *left, ceiling=CLOSED, form=FINE)])]


def resampled_distances(evidence: Evidence, statistic: Callable) -> tuple[float, float, float] | None:
    """A statistic of the distances [n, l]; for its interval they are drawn from their standard errors."""
    rows = evidence.distances()
    if rows is None:
        return None
    distances = distance_matrix(rows)
    errors = distance_matrix(rows.assign(distance=rows["stderr"]))
    draw, found = np.random.default_rng(0), [statistic(distances)]
    for _ in range(outcomes.RESAMPLES):
        found.append(statistic(distances + errors * draw.standard_normal(distances.shape)))
    return interval(np.array(found))


def deep_blocks(evidence: Evidence) -> list[Ruling]:
    def depth(distances):
        layers = len(distances)
        sizes = range(1, max(layers // 4, 1) + 1)
        # the last block of a row holds the last layer and is no candidate
        starts = [int(np.nanargmin(distances[size - 1, : layers - size])) for size in sizes]
        return float(np.mean([(start + size / 2) / layers for start, size in zip(starts, sizes)]))

    found = resampled_distances(evidence, depth)
    if found is None:
        return [Ruling("distances", obstacle="not measured: angular distances")]
    what = "depth of the middle of the most similar block, mean over sizes up to a quarter of the layers"
    return [Ruling("distances", [Finding(what, *found, floor=DEEP)])]


def last_layer(evidence: Evidence) -> list[Ruling]:
    def height(distances):
        layers = len(distances)
        places = []
        for size in range(1, layers - 1):
            row = distances[size - 1, : layers - size + 1]
            places.append((row[-1] - row.min()) / (row.max() - row.min()))
        return float(np.mean(places))

    found = resampled_distances(evidence, height)
    if found is None:
        return [Ruling("distances", obstacle="not measured: angular distances")]
    what = "place of blocks with the last layer between the smallest and the largest distance of their size"
    return [Ruling("distances", [Finding(what, *found, floor=LAST, form=FINE)])]


def _of_healings(units: dict, names: list[str]) -> np.ndarray:
    return np.stack([of_topic(unit, names) for unit in units.values()]).astype(float)


def _losses_of(units: dict) -> np.ndarray:
    return np.array([unit.details["by_sequence"] for unit in units.values()])


def _mmlu_of(evidence: Evidence, units: dict[object, Unit]) -> tuple[list[str], str]:
    """MMLU's tasks in healings, and why they say nothing, if so."""
    names = [name for name in next(iter(units.values())).details["outcomes"] if topic_of(name) == "MMLU"]
    return names, not_known(evidence.answers("MMLU", "similarity") if names else None, "MMLU of these healings")


def ranks(evidence: Evidence) -> list[Ruling]:
    ways = evidence.alike_but("rank")
    if len(ways) < 2:
        return [Ruling(about, obstacle="not measured: healings that differ in their rank alone")
                for about in ("MMLU", "loss on text")]  # fmt: skip
    low, high = ways[min(ways)], ways[max(ways)]
    less = f"rank {min(ways)} less rank {max(ways)}"
    names, obstacle = _mmlu_of(evidence, low)
    found = []
    if not obstacle:
        change = interval(resampled(np.mean, _of_healings(low, names) - _of_healings(high, names)))
        found = [Finding(f"accuracy, {less}", *change, floor=0.0, form=SIGNED)]
    change = interval(resampled(np.mean, _losses_of(low) - _losses_of(high)))
    loss = Finding(f"nats a token, {less}", *change, floor=0.0, form=SIGNED)
    return [Ruling("MMLU", found, obstacle), Ruling("loss on text", [loss])]


def seeds(evidence: Evidence) -> list[Ruling]:
    ways = evidence.alike_but("seed")
    if len(ways) < 2:
        return [Ruling("MMLU", obstacle="not measured: healings that differ in their seed alone")]
    names, obstacle = _mmlu_of(evidence, next(iter(ways.values())))
    if obstacle:
        return [Ruling("MMLU", obstacle=obstacle)]
    return [Ruling("MMLU", [_spread([_of_healings(units, names) for units in ways.values()], "seeds")])]


def _spread(right: list[np.ndarray], what: str) -> Finding:
    """How far accuracies lie apart at most: which items came out right, [C, I], one way after another."""
    means = np.stack([of_way.mean(axis=0) for of_way in right])
    found = interval(resampled(np.ptp, means))
    return Finding(f"largest difference in accuracy between {len(means)} {what}", *found, ceiling=ALIKE, form=PLAIN)


def shot_order(evidence: Evidence) -> list[Ruling]:
    by_order = evidence.by_prompt("MMLU", "order")
    obstacle = not_known(evidence.answers("MMLU", "similarity"), "MMLU")
    if obstacle or len(by_order) < 2:
        return [Ruling("MMLU", obstacle=obstacle or "not measured: another order of the examples in the prompt")]
    spread = _spread([answers.right.astype(float) for answers in by_order.values()], "orders of the examples")
    return [Ruling(next(iter(by_order.values())).described, [spread])]


def more_shots(evidence: Evidence) -> list[Ruling]:
    ways = evidence.by_shots("MMLU", "similarity"), evidence.by_prompt("MMLU", "num_fewshot")
    by_shots = max(ways, key=len)
    obstacle = not_known(evidence.answers("MMLU", "similarity"), "MMLU")
    if obstacle or len(by_shots) < 2:
        return [Ruling("MMLU", obstacle=obstacle or "not measured: MMLU with another number of examples")]
    few, many = by_shots[min(by_shots)], by_shots[max(by_shots)]
    common = [cut for cut in few.cuts if cut in many.cuts]
    change = interval(resampled(np.mean, many.of(common).astype(float) - few.of(common)))
    what = f"accuracy, {max(by_shots)} shots less {min(by_shots)}"
    return [Ruling(many.described, [Finding(what, *change, floor=0.0, ceiling=ALIKE, form=SIGNED)])]


def reasoning(evidence: Evidence) -> list[Ruling]:
    steps = evidence.answers("GSM8K", "similarity")
    if obstacle := not_known(steps, "GSM8K"):
        return [Ruling(steps.described if steps else "GSM8K", obstacle=obstacle)]
    others = [answers for topic in TOPICS[:-1] if (answers := evidence.answers(topic, "similarity"))]
    known = next((answers for answers in others if answers.known), None)
    if known is None:
        return [Ruling(steps.described, obstacle="the model knows no task of knowledge to compare with")]
    # a cliff of knowledge beyond the last cut counts as there: reasoning that falls before it falls earlier
    earlier = interval(cliffs(steps) - np.minimum(cliffs(known), known.fractions[-1]))
    left = falls(steps)[1]
    return [
        Ruling(steps.described, [
            Finding(HALF, *cliff_of(steps), ceiling=EARLIEST),
            Finding(f"its cliff less that of {known.described}", *earlier, ceiling=0.0, form="{:+.0%}"),
            Finding(left.what, left.value, left.low, left.high, ceiling=FLAT),
        ], topic="GSM8K")
    ]  # fmt: skip
