"""What changed in how claims are judged, and why; when each threshold was set; how sure verdicts are: for readers.

Words and dates of what was stand here, and what pages said in said_before.py; every number of now is read from units,
from thresholds.py or from what `python -m benchmarks.verdicts` drew.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from deeper_layers.report.claims.claims import CLAIMS, Rulings, verdict_of
from deeper_layers.report.claims.said_before import HALF_GONE, MODEL, SIZES_KEPT, WORTH_THEIR_BYTES, WRITTEN, Said
from deeper_layers.report.claims.verdicts import AGREES, DIFFERS
from deeper_layers.report.names import as_html, as_table
from deeper_layers.report.statistics.evidence import by_model
from deeper_layers.report.statistics.healed import way_of
from deeper_layers.report.thresholds import AUDIT, THRESHOLDS
from deeper_layers.results.units import Unit

LOWEST, HIGHEST = 0.935, 0.965  # of 95% intervals that hold the truth, to be called that
WRONG = 0.05  # of verdicts of either kind, at most
QWEN, SMOL, GEMMA = MODEL, "SmolLM2-135M-Instruct", "Gemma-3-270m"
# the verdicts before: "-" stands for "can't be tested here", the one word for three states
ONCE, MERGED = {"+": AGREES, "/": DIFFERS, "-": "can't be tested here"}, "can't be tested here"
RECOMPUTED = "161d92b"  # the commit of which everything published was recomputed
PAGES = ("0f31517", "2026-11-28T04:16:48+00:00")
SECOND = ("ad06447", "2026-11-29T07:59:17+00:00")
THIRD = ("d0601f8", "2026-11-29T11:01:45+00:00")
FOURTH = ("64b442e", "2026-11-29T16:56:42+00:00")
FIFTH = ("cdebded", "2026-11-29T17:14:34+00:00")
SIXTH = ("cda763b", "2026-11-29T19:42:48+00:00")
SEVENTH = ("2b36c2c", "2026-11-29T21:25:55+00:00")
ASKED = ("5e37402", "2026-11-29T23:45:20+00:00")
EIGHTH = ("5fd0fca", "2026-11-30T00:06:02+00:00")
NINTH = ("347d242", "2026-11-30T00:16:18+00:00")
TENTH = ("27dcc12", "2026-11-30T03:52:21+00:00")
ELEVENTH = ("be31d17", "2026-11-30T03:52:21+00:00")
BEFORE = {
    "plateau": "/--", "plateau-healed": "/--", "boolq": "/--", "boolq-healing": "---", "healed-loss": "-+-",
    "unhealed-loss": "/--", "simple-unhealed": "+--", "simple-healed": "/++", "deep-blocks": "//-",
    "last-layer": "///", "shot-order": "+--", "more-shots": "/--", "seeds": "---", "ranks": "/++", "reasoning": "+--",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A judgement that was replaced: of which claims or pages, what it was, what it is now, and why.

    With the commit that replaced it and its date, the test that holds it, and the number that it had in the
    recomputation of everything published. `claims` are those whose verdicts it touches, where `of` does not name them,
    `said` what it touches on a page that has no verdict.
    """

    of: str
    was: str
    now: str
    why: str
    set_by: tuple[str, str] = AUDIT
    point: int | None = None
    test: str = ""
    claims: tuple[str, ...] = ()
    said: Said | None = None


CHANGES = [
    Change("simple-healed", "the gap between the losses of the two rules after healing, over that before",
           "the gap after healing itself, in nats a token, at sizes at which the rules drop different layers and "
           "healing has a gap to close",
           "it divided by losses that had exploded beyond guessing, and counted cuts that the two rules share", point=1,
           test="test_1_a_gap_between_healed_rules_is_a_gap_however_their_losses_explode"),
    Change("healed-loss", "no verdict where the loss rises by less than 1 nat without healing",
           "no such guard; the rises are subtracted and not divided, and a loss counts up to ln V",
           "the guard was set after the healings of one model were known, and spared it a verdict", point=2,
           test="test_2_no_guard_stands_before_a_small_rise"),
    Change("healed-loss", "a straight line explains 95% of the healed loss",
           "the parabola through it hangs little from its chord",
           "a straight line explains more than that of a curve as bent as x^1.5", point=3,
           test="test_3_straight_is_told_by_curvature"),
    Change("all curves", "the largest cut up to which each interval reaches the whole model's accuracy",
           "for each size two one-sided paired tests with a margin of 5 points, and how many items would decide",
           "the blocks of two sizes are not nested, and with few items every interval reaches", point=4,
           test="test_4_sizes_are_kept_one_by_one", said=SIZES_KEPT),
    Change("simple-unhealed", "where the curve first crosses one half",
           "every larger cut, tested by itself; where half is gone for good stands beside where it first is",
           "a curve that falls and rises again has not collapsed", point=5,
           test="test_5_a_curve_that_rises_again_has_not_collapsed"),
    Change("all tasks", "“what it knows”", "accuracy above guessing in the answer format of the task",
           "another format of the same question may give another answer", point=6,
           test="test_6_accuracy_above_guessing_is_not_called_knowledge",
           claims=("plateau", "plateau-healed", "boolq", "simple-unhealed", "reasoning"),
           said=HALF_GONE),
    Change("MMLU", "guessing is chance", "guessing is chance or always naming one letter, whichever scores more",
           "models that name one letter passed as surely better than guessing", point=7,
           test="test_7_always_one_letter_is_guessing",
           claims=("plateau", "plateau-healed", "boolq-healing", "unhealed-loss", "simple-unhealed", "simple-healed",
                   "shot-order", "more-shots", "seeds", "ranks", "reasoning")),
    Change("last-layer", "the place among all blocks of a size", "the place among those that do not begin at layer 0",
           "blocks with the first layer set the range, whatever the last layer does", point=8,
           test="test_8_the_first_layer_does_not_set_the_range"),
    Change("all claims of two parts", "one part that agrees was enough where the other could not be tested",
           "all parts have to agree", "half a claim is not the claim", point=9,
           test="test_9_half_a_claim_is_not_the_claim", claims=("simple-healed", "ranks")),
    Change("ranks, seeds", "known was tested on other questions than those that decide",
           "healed models have to be above guessing on the items that decide",
           "what is not known can't get better or worse", point=10,
           test="test_10_known_is_what_is_known_of_the_items_that_decide"),
    Change("plateau-healed", "a cliff between three sizes could differ", "from fewer than five sizes nothing is said; "
           "the verdict on Qwen2.5-Coder-1.5B-Instruct now is of more sizes, which were healed later",
           "its place was interpolated over a gap as wide as the claim", point=11,
           test="test_11_too_few_sizes_say_nothing_of_a_shape_whatever_is_interpolated"),
    Change("more-shots, shot-order", "pooled over all cuts", "the whole model and the cuts that still answer",
           "beyond the cliff nothing can change", point=12,
           test="test_12_shots_are_compared_where_models_still_answer"),
    Change("plateau, boolq, reasoning", "flat and sharp were told of any cliff",
           "only of one that lies at twice the first cut or beyond",
           "before half of the way to a nearer one no cut lies, and they are what interpolation makes them",
           point=13, test="test_13_flat_and_sharp_mean_nothing_within_the_first_cuts"),
    Change("boolq", "guessing is the commonest answer", "that and the paper's line at one half: both have to say the "
           "same", "the paper reads its curves beside one half", point=14,
           test="test_14_boolq_stands_beside_both_lines"),
    Change("depth or bits", "intervals that lie apart, of tasks not named beside the verdict",
           "the interval of the difference, of the tasks that are named; these units hold no items, so not in pairs",
           "intervals may meet where a difference is sure, and only tasks that survive were asked", point=15,
           test="test_pruned_models_beside_whole_ones_that_are_no_larger", set_by=PAGES,
           said=WORTH_THEIR_BYTES),
    Change("unhealed-loss", "the steepest step over the mean one", "the shortest part of the way within which half of "
           "the rise lies", "a step is as steep as the sizes that were measured lie dense", point=16,
           test="test_16_a_jump_does_not_hang_on_the_grid"),
    Change("written answers", "“chosen against written” as the reason why reasoning falls early",
           "the task and its number of steps as measured, chosen and written side by side",
           "two-digit sums that are written outlast MMLU's letters", point=17,
           test="test_17_that_it_is_written_is_not_said_to_be_why_reasoning_falls", set_by=PAGES,
           claims=("reasoning",), said=WRITTEN),
    Change("all claims", "“can't be tested here”", "not measured, nothing to lose, or inconclusive with the items "
           "that would decide", "the three ask for different things",
           test="test_10_seeds_are_alike_by_a_test_of_equivalence"),
    Change("all claims", "no correction for how many tests there are", "Holm's, in each claim over tasks and models",
           "of many tests some are passed by chance",
           test="test_holm_corrects_over_tasks_and_models"),
    Change("what healing gives back of the loss", "the share of the way back to the unpruned model, of all losses",
           "the way back to the unpruned model healed alike, and none of losses above ln V",
           "the unpruned model gets used to the text too, and the more a rule ruins the more it seemed to get back",
           set_by=SECOND,
           test="test_what_the_whole_model_gets_by_the_same_healing_is_no_repair_and_none_is_told_beyond_guessing"),
    Change("rules side by side, on tasks", "better or worse wherever the difference is sure",
           "only where the better one of both is surely above guessing",
           "to be less wrong than a guess is no knowledge",
           set_by=SECOND,
           test="test_scores_of_rules_item_by_item"),
    Change("regret in accuracy", "beside the first of the blocks that tie, and below 0 where chance had it so",
           "beside the mean of those that tie, and not below 0", "no block is better than the best",
           set_by=SECOND,
           test="test_blocks_that_tie_are_as_good_as_each_other_and_none_is_better_than_the_best"),
    Change("intervals of paired outcomes on pages", "normal, of no width where all items agree",
           "t, with one item won and one lost added, as claims have had it", "few items that agree leave doubt",
           set_by=SECOND,
           test="test_4_few_items_leave_it_undecided_and_say_how_many_would_not"),
    Change("all claims", "“nothing to lose” wherever a model was not seen to be above guessing",
           "only where it is surely no more than 0.05 above it; else inconclusive, with the items that would decide",
           "with few items nothing is seen, and that is no proof", set_by=THIRD,
           test="test_what_few_items_do_not_show_to_be_known_is_open"),
    Change("ranks", "one healing of each rank, over sequences", "three seeds of each rank, over seeds",
           "two seeds of one rank differ too", set_by=THIRD, test="test_ranks_are_told_from_seeds"),
    Change("simple-healed, boolq-healing", "over all pruned models", "over those that still answer",
           "two models that guess match, whatever was dropped", set_by=THIRD,
           test="test_healed_models_that_guess_decide_nothing_between_rules"),
    Change("last-layer", "the mean over all sizes", "that, and the mean over sizes to half of the layers: both have to "
           "say the same", "of large sizes there are few blocks, and one of few is soon the least alike", set_by=THIRD,
           test="test_8_the_last_layer_has_to_be_unlike_at_small_sizes_too"),
    Change("curves", "items that would show nothing lost: as many as one of the two tests needs",
           "as many as both need at once, a third more", "the power that was named was 60%, not 80%", set_by=THIRD,
           test="test_the_number_of_items_that_would_show_that_nothing_changed"),
    Change("all claims", "no number of items would decide, where only Holm's correction stood in the way",
           "the number after that correction", "there was one", set_by=THIRD,
           test="test_items_are_named_where_only_the_correction_stands_in_the_way"),
    Change("unhealed-loss", "the shortest part of the way to the last cut within which half of the rise to it lies",
           "the fewest layers within which it rises half of the way to guessing",
           "of two jumps as wide in layers one was called wide and one narrow, by where measuring stopped",
           set_by=FOURTH, test="test_16_a_jump_does_not_hang_on_where_measuring_stopped"),
    Change("unhealed-loss", "the width of the jump as it is read off a grid",
           "either end of the step of the grid that it lies in has to say the same",
           "drawn to lie exactly on its limit, it was called too wide in 6.4% of draws", set_by=SIXTH,
           test="test_16_a_width_is_known_to_a_step_of_the_grid"),
    Change("plateau-healed", "where a sweep asked exactly the questions that healed models were asked",
           "where it asked these and others too", "MMLU with examples was asked of healed models, and did not count: "
           "120 packaged questions did", set_by=SEVENTH,
           test="test_a_healed_curve_counts_where_a_sweep_asked_more_items"),
    Change("what healing gives back of the loss", "the way back to the unpruned model healed alike",
           "how much smaller the gap to the unpruned model is where both were healed alike; where that one was not, no "
           "more than what the share is at most", "to get used to the text repairs nothing", set_by=EIGHTH,
           test="test_what_the_whole_model_gets_by_the_same_healing_is_no_repair_and_none_is_told_beyond_guessing"),
    Change("healed models beside their sweeps", "the same items", "the same items, asked with as many examples",
           "a prompt with other examples asks something else; no verdict turned", set_by=ASKED,
           test="test_answers_from_before_healing_are_those_to_prompts_with_as_many_examples"),
    Change("deep-blocks, last-layer", "each distance drawn by itself, from its standard error",
           "all distances of the same sequences together, where they were measured by sequence",
           "what moves the distances of a sequence moves all of them: drawn apart, a block that is surely the most "
           "alike seems less sure than it is", set_by=NINTH,
           test="test_distances_of_the_same_sequences_are_drawn_together"),
    Change("deep-blocks, last-layer", "distances on Wikipedia",
           "distances on the paper's corpus where it was measured, and those kept by sequence before others",
           "the claim is about that text; no verdict turned", set_by=TENTH,
           test="test_distances_on_the_papers_corpus_come_first_then_those_by_sequence_then_those_not_quantized"),
    Change("all claims", "what lies exactly on a limit is within it", "it speaks neither for nor against",
           "of Gemma-3-270m every draw of the depth lies on two thirds, the limit, with two of four blocks in the "
           "middle: that is no agreement", set_by=TENTH, claims=("deep-blocks",),
           test="test_what_lies_exactly_on_a_limit_speaks_for_neither"),
    Change("which tasks a cut ruins", "t, over 30 items or more",
           "the same with one item won and one lost added, as in the claim that a rule collapses",
           "one question had two tests; seven cuts of two models no longer surely ruin PIQA",
           set_by=("62adac7", "2026-11-30T03:52:21+00:00"), test="test_criterion_of_ruin_is_that_of_its_words"),
    Change("what healing gives back of an accuracy", "its interval by items drawn anew",
           "the same, with one item that healing won and one that it lost added",
           "where none of 50 answers was right before and after, the interval had no width", set_by=ELEVENTH,
           test="test_that_nothing_came_back_of_few_items_is_not_sure"),
    Change("boolq", "a model near the commonest answer was not held against one half", "both lines, always",
           "beside one of them it may have something to lose", set_by=FOURTH,
           test="test_14_a_model_near_one_line_is_held_against_the_other_too"),
    Change("what healing gives back of an accuracy", "of accuracies as they are",
           "those below guessing count as guessing",
           "from naming one letter to naming another is no way back", set_by=FIFTH,
           test="test_what_lies_below_guessing_counts_as_guessing"),
    Change("more-shots, shot-order", "the mean over the models that still answer", "each of these models, corrected "
           "for their number", "what helps one and harms another is not nothing, though its mean is", set_by=FOURTH,
           test="test_12_shots_are_compared_where_models_still_answer"),
]  # fmt: skip


def changes(rulings: Rulings, units: Iterable[Unit]) -> str:
    """HTML, folded: what changed and why, with the verdicts before and now, and those that became others.

    What pages without a verdict say now is read from `units`.
    """
    units = list(units)
    models = [model for model in (QWEN, SMOL, GEMMA) if model in next(iter(rulings.values()))]
    verdicts = {claim.identifier: {
        model: (ONCE[BEFORE[claim.identifier][(QWEN, SMOL, GEMMA).index(model)]],
                verdict_of(rulings[claim.identifier][model]))
        for model in models
    } for claim in CLAIMS}  # fmt: skip
    every = sorted(CHANGES, key=lambda change: (change.set_by[1], change.point or len(CHANGES)))
    what = "".join(_change(change, before_and_now(change, verdicts, units)) for change in every)
    turned = [
        (claim.title, model, once, now) for claim in CLAIMS for model, (once, now) in verdicts[claim.identifier].items()
        if once != now and not (once == MERGED and now not in (AGREES, DIFFERS))
    ]  # fmt: skip
    said = (
        "Points are numbered as by a check of all that was published at "
        f"commit {RECOMPUTED}, which computed everything anew without this code; changes without a number came later. "
        "Verdicts stand as they were then, and as they are now; those that turned come first."
    )
    return _opens("What changed and why", f"<p>{as_html(said)}</p>{what}") + folded(
        f"Verdicts that turned: {len(turned)}",
        pd.DataFrame(turned, columns=["claim", "model", "before", "now"]),
        "Verdicts that became others. Where there was none and is none now, one word became one of three: left out",
    )


def _change(change: Change, touched: list[tuple[str, str, str, str]]) -> str:
    """One change: what it is about, before, now and why, the verdicts that it touches, and the test that holds it."""
    titles = {claim.identifier: claim.title for claim in CLAIMS}
    about = "; ".join(titles.get(part, part) for part in change.of.split(", "))
    several = len({claim for claim, *_ in touched}) > 1
    verdicts = ""
    for claim, models, once, now in touched:
        where = ", ".join(filter(None, [titles.get(claim, claim) if several or not models else "", models]))
        since = "still" if once == now else "now"
        verdicts += f"<li>{as_html(f'{where}: {once}, {since} {now}')}</li>"
    rows = {
        "before": as_html(change.was), "now": as_html(change.now), "why": as_html(change.why),
        **({"verdicts": f"<ul>{verdicts}</ul>"} if verdicts else {}),
        "since": f"{_minute(change.set_by[1])}, commit {change.set_by[0]}; test <code>{as_html(change.test)}</code>",
    }  # fmt: skip
    head = as_html(f"Point {change.point}: {about}" if change.point else about)
    body = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows.items())
    return f'<div class="change"><p><strong>{head}</strong></p><dl>{body}</dl></div>'


def before_and_now(
    change: Change, verdicts: Mapping[str, Mapping[str, tuple[str, str]]], units: list[Unit]
) -> list[tuple[str, str, str, str]]:
    """What a change touches, with what was said of it and what is said now: a page, then claims, model by model.

    The page or claim, the models of a claim in words, and both. What a page said comes first, then verdicts that
    turned. `verdicts` before and now are by claim, then by model.
    """
    found = []
    if change.said:
        now = change.said.now(units)
        found.append((change.said.where, "", change.said.once, now or "not measured"))
    of_claims = []
    for claim in change.claims or change.of.split(", "):
        alike: dict[tuple[str, str], list[str]] = {}
        for model, both in verdicts.get(claim, {}).items():
            alike.setdefault(both, []).append(model)
        of_claims += [(claim, " and ".join(models), *both) for both, models in alike.items()]
    return found + sorted(of_claims, key=lambda row: row[2] == row[3])


def thresholds(units: Iterable[Unit]) -> str:
    """HTML, folded: each threshold, when it was set, and when the data that it judges were measured."""
    units = list(units)
    # claims about healed models judge the way of healing that most cuts have; other seeds and ranks came later
    judged = {name: next(iter(held.ways), None) for name, held in by_model(units).items()}
    measured: dict[str, list[tuple[str, str]]] = {}
    for unit in units:
        if unit.kind == "healing" and way_of(unit) != judged[unit.key["model"]["name"]]:
            continue
        commit = (unit.provenance["commit"] or "unknown")[:7]
        measured.setdefault(unit.kind, []).append((unit.provenance["measured"], commit))
    rows = []
    for name, threshold in THRESHOLDS.items():
        data = sorted(when for kind in threshold.kinds for when in measured.get(kind, []))
        rows.append({
            "name": name, "value": f"{threshold:.3g}", "means": threshold.meaning,
            "set": f"{_minute(threshold.date)}, commit {threshold.commit}",
            "data it judges": f"{_at(data[0])} to {_at(data[-1])}" if data else "not measured",
            "first came": came_first(threshold.date, [when for when, _ in data]),
        })  # fmt: skip
    said = "Every threshold of the claims, the commit that set it, and when the data that it judges were measured"
    return folded("Thresholds, and which came first", pd.DataFrame(rows), said)


def came_first(set_on: str, measured: list[str]) -> str:
    """Whether a threshold is older than all data, younger than all, or neither."""
    if not measured or set_on < min(measured):
        return "the threshold"
    return "the data" if set_on > max(measured) else "some data; the rest later"


def reliability(drawn: dict | None) -> str:
    """HTML: how often intervals hold the truth and verdicts are wrong, in words and, folded, in numbers."""
    if drawn is None:
        return "<p>Not measured: python -m benchmarks.verdicts</p>"
    intervals, decided = pd.DataFrame(drawn["intervals"]), pd.DataFrame(drawn["decisions"])
    within = intervals["held"].between(LOWEST, HIGHEST)
    at_limits = decided[decided["truth"].str.contains("exactly")]
    worst = at_limits[[AGREES, DIFFERS]].max(axis=1)
    titles = {claim.identifier: claim.title for claim in CLAIMS}
    drawn_at = {claim.partition(",")[0] for claim in at_limits["claim"]}
    lacking = "; ".join(f"“{title}”" for claim, title in titles.items() if claim not in drawn_at)
    lead = (
        f"On {drawn['data_sets']:,} drawn data sets of each kind, {within.sum()} of {len(intervals)} kinds of 95% "
        f"interval hold the truth in {LOWEST:.1%} to {HIGHEST:.1%} of them; the others are named below with what they "
        f"do. Of {len(at_limits)} models drawn to lie exactly on a limit of a claim, {drawn['draws']:,} times each, "
        f"{(worst <= WRONG).sum()} get “{AGREES}” in at most {WRONG:.0%} of draws, and “{DIFFERS}” in at most as many; "
        f"the most of either is {worst.max():.1%}. "
        f"{f'No model was drawn to lie exactly on a limit of {lacking}. ' if lacking else ''}"
        "Holm's correction, which makes verdicts rarer still, is not counted in. "
        f"Resampled were {drawn['resamples']:,} times, on the pages 2,000."
    )
    intervals["held"] = [f"{held:.1%}{'' if fine else ' (not 95%)'}" for held, fine in zip(intervals["held"], within)]
    parts = [claim.partition(",") for claim in decided["claim"]]
    decided["claim"] = [titles.get(claim, claim) + "".join(rest) for claim, *rest in parts]
    form = {AGREES: "{:.1%}", DIFFERS: "{:.1%}", "items": "{:,}", "draws": "{:,}"}
    command = f"{drawn['command']}, commit {drawn['provenance']['commit'][:7]}"
    return (
        f"<p>{as_html(lead)}</p>"
        + folded("Intervals", intervals, f"How often intervals hold the truth ({command})", {"items": "{:,}"})
        + folded("Verdicts", decided, f"How often verdicts are given, by the truth ({command})", form)
    )


def folded(summary: str, rows: pd.DataFrame, caption: str, form=None) -> str:
    """A table that opens when its title is clicked."""
    return _opens(summary, as_table(rows, caption, form).to_html() if len(rows) else "<p>None.</p>")


def _opens(summary: str, html: str) -> str:
    """What is seen when its title is clicked."""
    return (
        f'<div class="claims scrolls"><details><summary><strong>{as_html(summary)}</strong></summary>{html}'
        "</details></div>"
    )


def _minute(date: str) -> str:
    return date[:16].replace("T", " ")


def _at(when: tuple[str, str]) -> str:
    return f"{_minute(when[0])} ({when[1]})"
