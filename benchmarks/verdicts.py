"""How often intervals hold the truth and verdicts are wrong, on data that are drawn: the truth is known there.

Each kind of interval that claims rest on, and of other pages those that KINDS has, on so many data sets; and every
decision on models that lie exactly on a limit of its claim: a hair to one side "agrees" would be wrong there, a hair to
the other "differs". No model is run.

    python -m benchmarks.verdicts
"""

import argparse
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.intervals import (
    KINDS,
    LAYERS,
    SEQUENCES,
    SHARED,
    by_sequence,
    coverage,
    luck,
    measured_distances,
)
from benchmarks.limits import depths, heights, shapes
from deeper_layers.report.claims import decisions, healing_decisions
from deeper_layers.report.claims.verdicts import AGREES, DIFFERS, together
from deeper_layers.report.questions import dissociation, regret
from deeper_layers.report.statistics import outcomes
from deeper_layers.report.statistics.evidence import Evidence
from deeper_layers.report.thresholds import ALIKE, APART, BENT, NEAR, SLOWLY, SPAN
from deeper_layers.results import packing
from tests import made_up

EVENLY = [0, 0.14, 0.16, 0.2, 0.2, 0.2, 0.1]  # steps of a loss to guessing, two and a half of which are half of the way


def main() -> None:
    from benchmarks import side_by_side  # torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=2000, help="for each kind of interval")
    parser.add_argument("--draws", type=int, default=1000, help="for each decision at a limit; far from it a fifth")
    parser.add_argument("--resamples", type=int, default=400, help="of each, which are 2,000 on the pages")
    options = parser.parse_args()
    for module in (outcomes, dissociation, regret):
        module.RESAMPLES = options.resamples
    packing.LEVEL = 0  # what is drawn is unpacked at once
    intervals = [coverage(*kind, options.data_sets) for kind in KINDS]
    side_by_side.keep("verdicts", {
        "data_sets": options.data_sets, "draws": options.draws, "resamples": options.resamples, "intervals": intervals,
        "decisions": [error_rates(*case, options.draws) for case in cases()],
    })  # fmt: skip


# ---- decisions -------------------------------------------------------------------------------------------------


def error_rates(claim: str, truth: str, items: int, make: Callable, decide: Callable, draws: int) -> dict:
    """How often a decision agrees and differs: `make` draws the units of one model."""
    draws = max(1, draws // 5) if truth.startswith("clearly") else draws
    said = [together(decide(Evidence(make(np.random.default_rng(seed))))) for seed in range(draws)]
    return {"claim": claim, "truth": truth, "items": items, "draws": draws} | {
        verdict: said.count(verdict) / draws for verdict in (AGREES, DIFFERS)
    }


def swept(draw, task: str, shares, items: int, levels=None, rule="similarity", **how):
    table = luck(draw, len(shares), items) < np.array(shares)[:, None]
    unit = made_up.sweep(task, list(table), rule, **how)
    unit.details["levels"][task] = levels or {"chance": 0.25}
    return unit


def scaled(parts, whole: float, guessing: float) -> list[float]:
    """Accuracies that keep such parts of what lies above guessing, for sizes 0, 1, ...; nothing after them."""
    parts = [*parts, *[0.0] * (LAYERS - 1 - len(parts))]
    return [guessing + part * (whole - guessing) for part in parts]


SETS = (
    ("MMLU", "mmlu", 1140, 0.51, 0.25),
    ("MMLU", "mmlu", 14_042, 0.51, 0.25),
    ("PIQA", "embedded_piqa", 120, 0.7, 0.5),
    ("Capitals", "capitals", 120, 0.98, 0.25),
    ("Sums, one digit", "sums_one_digit", 81, 0.95, 0.32),
)
MANY = 10_000  # items: of so many it costs too much to draw what is far from every limit
GUESSES = {"chance": 0.5, "majority": 0.62}  # of BoolQ


def cases():
    """Claim, truth, items, how units are drawn, how they are decided."""
    for name, task, items, whole, guessing in SETS:
        for truth, shares in shapes(whole, guessing, guessing).items():
            if items > MANY and "clearly" in truth:
                continue

            def make(draw, task=task, shares=shares, items=items, guessing=guessing):
                return [swept(draw, task, shares, items, {"chance": guessing})]

            yield f"plateau, {name}", truth, items, make, of_topic(decisions.plateau, name)
    for truth, shares in shapes(0.51, 0.25, 0.25, step=2).items():
        yield (
            "plateau-healed",
            truth,
            570,
            lambda draw, shares=shares: [
                swept(draw, "mmlu", [0.51] * (LAYERS - 1), 1140, quantization="nf4"), *healed(draw, shares, 570)
            ],
            of_topic(healing_decisions.plateau_healed, "MMLU"),
        )  # fmt: skip
    for name, line in (("the commonest answer", 0.62), ("one half", 0.5)):
        for truth, shares in shapes(0.74, line, 0.5).items():
            if "clearly" in truth and line != 0.5:
                continue
            beside = "" if "clearly" in truth else f", beside {name}"
            for items in (1000,) if "clearly" in truth else (1000, 3270):
                yield (
                    "boolq",
                    truth + beside,
                    items,
                    lambda draw, shares=shares, items=items: [swept(draw, "boolq", shares, items, GUESSES)],
                    decisions.plateau_boolq,
                )
    for truth, parts in {"a cut of 15% keeps exactly half": [1, 0, 0, 0.5], "clearly as the claim has it": [1],
                         "clearly otherwise": [1, 0.7, 0.7, 0.7, 0.7, 0.7]}.items():  # fmt: skip
        yield (
            "simple-unhealed",
            truth,
            1000,
            lambda draw, parts=parts: [
                swept(draw, "mmlu", scaled(parts, 0.51, 0.25), 1140, rule="simple"),
                swept(draw, "boolq", scaled(parts, 0.74, 0.62), 1000, {"chance": 0.5, "majority": 0.62}, "simple"),
            ],
            decisions.simple_collapses,
        )
    for truth, parts, other in (("a cut of 20% keeps exactly half", [1, 0.4, 0.3, 0.2, 0.5], [1] * 10),
                                ("it falls exactly where knowledge does", [1, 1, 1, 0.5], [1, 1, 1, 0.5]),
                                ("clearly as the claim has it", [1, 0.3], [1] * 10),
                                ("clearly otherwise", [1] * 10, [1, 1, 1, 0.3])):  # fmt: skip
        yield (
            "reasoning",
            truth,
            150,
            lambda draw, parts=parts, other=other: [
                swept(draw, "gsm8k", scaled(parts, 0.44, 0), 150, {"chance": 0.0}),
                swept(draw, "mmlu", scaled(other, 0.51, 0.25), 1140),
            ],
            decisions.reasoning,
        )
    yield from cases_of_prompts()
    yield from cases_of_healing()
    yield from cases_of_losses()
    yield from cases_of_distances()


def of_topic(decide: Callable, name: str) -> Callable:
    """A decision on one topic alone."""
    return lambda evidence: [ruling for ruling in decide(evidence) if ruling.topic == name and ruling.findings]


def cases_of_distances():
    for each, how in ((False, ""), (True, ", by sequence")):
        for claim, truths, decide in (("last-layer", heights(), decisions.last_layer),
                                      ("deep-blocks", depths(), decisions.deep_blocks)):  # fmt: skip
            for truth, found in truths.items():
                yield (
                    f"{claim}{how}",
                    truth,
                    256,
                    lambda draw, found=found, each=each: measured_distances(draw, found, 256, each=each),
                    decide,
                )


def cases_of_prompts():
    answering = [0.5, 0.5, 0.45, 0.4, 0.4]

    def two(draw, change, items, shots, orders):
        gone = [0.25] * 2
        known = swept(draw, "mmlu", [*answering, *gone], 1140, shots=5)
        ways = [[*answering, *gone], [*(share + change for share in answering), *gone]]
        table = [luck(draw, 7, items) for _ in range(2)]
        table[1] = np.where(draw.random(table[0].shape) < SHARED, table[0], table[1])
        made = [made_up.prompts(list(own < np.array(way)[:, None]), shot, order)
                for own, way, shot, order in zip(table, ways, shots, orders, strict=True)]  # fmt: skip
        return [known, *made]

    for truth, change in ((f"orders are exactly {ALIKE:.0%} apart", float(ALIKE)), ("clearly as the claim has it", 0.0),
                          ("clearly otherwise", 0.12)):  # fmt: skip
        yield "shot-order", truth, 570, lambda draw, c=change: two(draw, c, 570, (5, 5), (0, 1)), decisions.shot_order
    for truth, change in (("more examples give exactly nothing", 0.0), (f"they give exactly {ALIKE:.0%}", float(ALIKE)),
                          ("clearly as the claim has it", 0.025), ("clearly otherwise", -0.08)):  # fmt: skip
        yield "more-shots", truth, 570, lambda draw, c=change: two(draw, c, 570, (0, 5), (0, 0)), decisions.more_shots


def healed(draw, shares, items, losses=None, rule="similarity", tasks=("mmlu",), sequences=SEQUENCES, **settings):
    """Healed models of 0, 2, 4, ... layers less: their losses by sequence, and accuracies of so many items."""
    table = {task: list(luck(draw, 2 * len(shares), items) < np.repeat(shares, 2)[:, None]) for task in tasks}
    every = [0.0] * len(shares) if losses is None else losses
    rows = [np.asarray(loss) + row for loss, row in zip(every, by_sequence(draw, len(every), sequences))]
    return list(made_up.healings(rows, table, rule, **settings))


def luck_of_seed(draw) -> float:
    """What a run of healing adds to the loss on every sequence, nats a token: about what seeds of SmolLM2 differ by."""
    return 0.02 * draw.standard_normal()


def cases_of_healing():
    for truth, change in ((f"seeds are exactly {ALIKE:.0%} apart", float(ALIKE)), ("clearly as the claim has it", 0.0),
                          ("clearly otherwise", 0.3)):  # fmt: skip
        for items in (120, 1140):
            yield "seeds", truth, items, lambda draw, c=change, i=items: [
                *healed(draw, [0.5, 0.5, 0.45], i, seed=0), *healed(draw, [0.5 + c, 0.5 + c, 0.45 + c], i, seed=1)
            ], healing_decisions.seeds  # fmt: skip
    for truth, change, loss in (("ranks have exactly the same accuracy", 0.0, 0.2),
                                ("ranks have exactly the same loss", 0.15, 0.0),
                                ("clearly as the claim has it", 0.2, 0.2),
                                ("clearly otherwise", -0.2, -0.2)):  # fmt: skip
        yield (
            "ranks",
            truth,
            120,
            lambda draw, c=change, d=loss: [
                unit for seed in range(3) for rank, more, worse in ((64, 0.0, 0.0), (2, c, d))
                for unit in healed(draw, [0.6 + more] * 3, 120, luck_of_seed(draw) + np.array([3.0, 3.5, 4.0]) + worse,
                                   rank=rank, seed=seed)
            ],
            healing_decisions.ranks,
        )  # fmt: skip
    for truth, change in (("healing gives both exactly the same", 0.0), ("clearly as the claim has it", 0.3),
                          ("clearly otherwise", -0.3)):  # fmt: skip

        def make(draw, c=change):
            before = [
                swept(draw, task, [0.9, 0.9, 0.5, 0.5, 0.4], 120, quantization="nf4") for task in ("mmlu", "boolq")
            ]
            plain = max(0.0, -c)
            mmlu = healed(draw, [0.9, 0.55 + plain, 0.45 + plain], 120)
            boolq = healed(draw, [0.9, 0.55 + max(c, 0.0), 0.45 + max(c, 0.0)], 120, tasks=("boolq",))
            for one, other in zip(mmlu, boolq, strict=True):
                one.details["outcomes"] |= other.details["outcomes"]
                one.details["levels"] |= other.details["levels"]
            return [*before, *mmlu]

        yield "boolq-healing", truth, 120, make, healing_decisions.healing_matters

    def guessing(draw):
        both, gone = ("mmlu", "boolq"), [0.6, 0.25, 0.25]
        before = [swept(draw, task, [0.6] * 5, 1140, rule=rule, quantization="nf4") for task in both
                  for rule in ("similarity", "simple")]  # fmt: skip
        return [
            *before,
            *healed(draw, gone, 1140, tasks=both),
            *healed(draw, gone, 1140, rule="simple", tasks=both)[1:],
        ]

    yield "simple-healed", "healed models guess exactly as well under both rules", 1140, guessing, of_accuracy
    flat = [0.6] * 5
    for truth, change, gap in ((f"the rules are exactly {ALIKE:.0%} apart in accuracy", -float(ALIKE), 0.0),
                               (f"their losses are exactly {APART:.2f} nats apart", 0.0, float(APART)),
                               ("clearly as the claim has it", 0.1, 0.0),
                               ("clearly otherwise", -0.3, 1.0)):  # fmt: skip

        def make(draw, c=change, g=gap):
            both = ("mmlu", "boolq")
            before = [swept(draw, task, flat, 120, rule=rule, quantization="nf4") for task in both
                      for rule in ("similarity", "simple")]  # fmt: skip
            informed, own = [3.0, 3.5, 4.0], [3.0, 3.5 + g, 4 + g]
            return [
                *before, made_up.unhealed({"similarity": informed, "simple": [3.0, 5.0, 8.0]}),
                *healed(draw, [0.6] * 3, 120, informed, tasks=both),
                *healed(draw, [0.6, 0.6 + c, 0.6 + c], 120, own, "simple", tasks=both)[1:],
            ]  # fmt: skip

        yield "simple-healed", truth, 120, make, healing_decisions.simple_healed


def of_accuracy(evidence):
    return [ruling for ruling in healing_decisions.simple_healed(evidence) if ruling.about != healing_decisions.TEXT]


def cases_of_losses():
    fractions = np.arange(0, 14, 2) / LAYERS
    way = fractions / fractions[-1]

    def losses(draw, items, before, after, known=(1,) * 8):
        unit = made_up.unhealed({"similarity": list(before[:, None] + by_sequence(draw, len(before), items))})
        mmlu = swept(draw, "mmlu", scaled(known, 0.51, 0.25), 1140)
        shares = [] if after is None else [0.6] * len(after)
        return [unit, mmlu, *(healed(draw, shares, 120, after, sequences=items) if shares else [])]

    def how_many(truth):
        return (SEQUENCES,) if "clearly" in truth else (SEQUENCES, 2 * SEQUENCES)

    def curved(part):
        return 3 + 2 * (way - 4 * part * way * (1 - way))

    for truth, before, after in (
        (f"the healed loss rises exactly {SLOWLY:.0%} as much", 3 + 4 * way, curved(0)),
        (f"it hangs exactly {BENT:.0%} from its chord", 3 + 8 * way, curved(float(BENT))),
        ("clearly as the claim has it", 3 + 12 * way, curved(0)), ("clearly otherwise", 3 + 2.2 * way, curved(0.15)),
    ):  # fmt: skip
        for items in how_many(truth):
            yield (
                "healed-loss",
                truth,
                items,
                lambda draw, i=items, b=before, a=after: losses(draw, i, b, a),
                healing_decisions.healed_loss,
            )

    def rising(shares):
        return 3 + (np.log(made_up.VOCABULARY) - 3) * np.array(shares)

    jumps = rising([0, 0.05, 0.1, 0.2, 0.8, 0.9, 1])  # half of it within one step of a tenth of the layers
    for truth, before, known in (
        (f"half of the rise lies within exactly {SPAN:.0%} of the layers", rising(np.cumsum(EVENLY)), [1] * 7),
        (f"the jump is exactly {NEAR:.0%} of the layers from the cliff", jumps, [1] * 9 + [0.5]),
        ("clearly as the claim has it", jumps, [1] * 8), ("clearly otherwise", jumps, [1] * 15),
    ):  # fmt: skip
        for items in how_many(truth):
            yield (
                "unhealed-loss",
                truth,
                items,
                lambda draw, i=items, b=before, k=known: losses(draw, i, b, None, k),
                healing_decisions.unhealed_loss,
            )


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
