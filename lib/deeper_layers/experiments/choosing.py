"""Which layers a rule drops, from what it needs to know: read from results, or measured and kept there.

Of a search by loss each step is a result: the losses of its candidates. So a search goes on where it was interrupted,
or to more layers, and a rule that asks for the same candidates finds them.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deeper_layers import export, rules, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.distances import drawn_batches, known_distances
from deeper_layers.experiments.experiment import CutsOf, Experiment, distinct_cuts, named
from deeper_layers.results.schema import GIVEN
from deeper_layers.rules.choosing import REGISTERED, RULES, Losses, merged_layers, price_in_words

if TYPE_CHECKING:  # torch
    from deeper_layers.export.tensors import Changed

FITTED = 64  # of the sequences of the distances, on which a bridge is fitted


@dataclasses.dataclass(frozen=True)
class Unchosen(Cut):  # ty: ignore[subclass-of-dataclass-with-order]  # they are sorted by their fields
    """In a plan, what a rule will drop once it is measured what it needs: it shares nothing with any other cut."""

    rule: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule} {self.size}"

    def runs(self, layer: int) -> str | None:
        return None if layer in self.dropped else self.name


def unchosen(rule: str, sizes: Sequence[int]) -> list[Cut]:
    """What stands in a plan for the cuts of a rule."""
    return [Unchosen(0, size, rule=rule) if size else UNPRUNED for size in sizes]


def choose_cuts(sizes: Sequence[int], experiment: Experiment) -> CutsOf:
    """The cut of each size under each rule of the parameters; in a plan, where it is not known, what stands for it."""
    found = {}
    for rule in experiment.parameters.rule_list:
        try:
            found[rule] = cuts_of_rule(rule, sizes, experiment)
        except NotMeasuredError:
            if experiment.lacking is None:
                raise
            found[rule] = unchosen(rule, sizes)
    return found


def cuts_of_rule(rule: str, sizes: Sequence[int], experiment: Experiment) -> list[Cut]:
    """The cut of each size under a rule; what it needs is read from results, or measured.

    Raises NotMeasuredError where nothing is to be measured and results hold not all that it takes, and InputError for
    sizes that do not fit the model or the rule.
    """
    chosen, known = REGISTERED[rule], None
    if not any(sizes):  # the whole model, which no rule has to choose
        return [UNPRUNED] * len(sizes)
    if chosen.needs == "distances":
        known = known_distances(experiment)
    elif chosen.needs == "losses":
        known = _losses(rule, max(sizes), experiment)
    elif chosen.needs:
        known = _looked_at(rule, experiment)
    return chosen.choose(sizes, experiment.source.num_layers, known)


def choose_cut(
    rule: str,
    size: int,
    layers: int,
    measured: Callable[[], Experiment],
    safe: Callable[[list[Cut]], list[Cut]] | None = None,
) -> Cut:
    """The cut of one size under a rule, of a model of so many layers.

    `measured()` is asked only where more than the depth is needed. Distances may be of another data type, where results
    hold those alone. `safe` gives of some cuts those that are to be chosen among: then it is the most similar of these
    blocks, or that nearest to the simple heuristic's.

    Raises NotMeasuredError where nothing is to be measured, and InputError where the rule has no such cut.
    """
    needs = REGISTERED[rule].needs
    if size == 0:  # no rule has to choose
        return UNPRUNED
    if safe is None and needs not in ("", "distances"):
        return cuts_of_rule(rule, [size], measured())[0]
    if safe is not None and rule not in RULES:
        raise InputError(f"rule is {rule}, expected one that chooses among blocks: give one of {', '.join(RULES)}")
    blocks = safe([Cut(start, size) for start in range(layers - size)]) if safe else None
    if blocks == []:
        raise InputError(
            f"size is {size}, and no block of so many layers before the last can go without one of these engines "
            "taking others for what they are not: choose another number, or leave out the engines"
        )
    distances = known_distances(measured(), of_any_dtype=True) if needs else None
    if blocks is None:
        return REGISTERED[rule].choose([size], layers, distances)[0]
    return blocks[-1] if distances is None else min(blocks, key=lambda cut: distances[cut.size - 1, cut.start])


def changed_choice(rule: str, size: int, experiment: Experiment) -> tuple[Cut, "Changed"]:
    """What a rule drops that changes weights too, and what becomes of the layers that stay.

    It looks at the sequences of the distances; a bridge is fitted on the first of them. What that costs is printed
    before. Raises NotMeasuredError where nothing is to be measured, and InputError where the rule can't be had of this
    model or size.
    """
    chosen, known, parameters = REGISTERED[rule], _looked_at(rule, experiment), experiment.parameters
    layers, (model, _) = experiment.source.num_layers, experiment.opened()
    cut = chosen.choose([size], layers, known)[0]
    merged = merged_layers(size, layers, known) if chosen.needs == "likeness" else []
    changed = rules.changed_model(model, chosen, cut, merged, _sequences(experiment)[:FITTED])
    looked = f"{parameters.samples} sequences of {parameters.sequence_length} tokens of {parameters.corpus}"
    words = f"{rule}: {chosen.words} ({chosen.source}); it looked at {looked}"
    return cut, export.Changed(rules.changed_tensors(model, changed, cut), words)


def _looked_at(rule: str, experiment: Experiment) -> Any:
    """What a rule needs that one look at the text gives: measured each time, since nothing of it is kept.

    Raises NotMeasuredError where nothing is to be measured.
    """
    if not experiment.parameters.measure:
        experiment.required(None, f"the {REGISTERED[rule].needs} that the rule {rule!r} needs")
    said = priced(rule, price(rule, 0, experiment))
    print(f"{said}; what it looks at is not kept: interrupted, it begins anew", file=sys.stderr, flush=True)
    sequences = _sequences(experiment)
    return sweeping.known_of(experiment.opened()[0], rule, sequences)


def _sequences(experiment: Experiment) -> list:
    """The sequences of the distances, each [T], without padding."""
    batches = drawn_batches(experiment)
    return [ids[mask.bool()] for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


def price(rule: str, size: int, experiment: Experiment) -> dict:
    """What a rule costs at most that looks at text: passes of all layers and of the head over it, and its tokens."""
    chosen, parameters = REGISTERED[rule], experiment.parameters
    passes, heads = chosen.price(size, experiment.source.num_layers)
    tokens = parameters.samples * parameters.sequence_length  # a bridge is fitted on some of the same
    return {"passes": round(passes + chosen.fits, 1), "heads": heads, "tokens_at_most": tokens}


def priced(rule: str, price: dict) -> str:
    """A price in words."""
    said = price_in_words(price["passes"], price["heads"])
    return f"{rule}: {said}, over at most {price['tokens_at_most']:,} tokens"


def _losses(rule: str, size: int, experiment: Experiment) -> Losses:
    """What gives the losses on text of candidates: each step of a search read from results, else measured.

    The text is that of the distances. What all will cost is printed before the first. Raises NotMeasuredError where
    nothing is to be measured and results hold no such losses.
    """
    parameters = experiment.parameters
    asked = {parameters.corpus: {"limit": parameters.samples, "length": parameters.sequence_length}}

    @functools.cache
    def begun() -> tuple:
        said = priced(rule, price(rule, size, experiment))
        print(f"{said} (samples times their length); each step is kept in results", file=sys.stderr, flush=True)
        return experiment.opened()[0], _sequences(experiment)

    def measure(cuts, shards):
        model, sequences = begun()
        rows, _ = sweeping.text_loss(model, cuts, sequences, shards=shards)
        rows = rows[["metric", "value", "stderr", "items"]].assign(
            task=parameters.corpus, cut=[cut.name for cut in cuts]
        )
        return rows.to_dict("records"), {"tokens": sum(map(len, sequences))}

    def losses(cuts: list[Cut]) -> list[float]:
        settings = parameters.key | {"seed": parameters.seed, "tasks": asked, "cuts": named({GIVEN: cuts})}
        run, reads = functools.partial(measure, distinct_cuts({GIVEN: cuts})), [experiment.text(parameters.corpus)]
        found = experiment.result("scores", settings, reads, run)
        rows = experiment.required(found, f"the losses of {len(cuts)} candidates").rows
        return rows.set_index("cut")["value"][[cut.name for cut in cuts]].tolist()

    return losses
