"""Which layers a rule drops, from what it needs to know: read from results, or measured and kept there.

Of a search by loss each step is a result: the losses of its candidates. So a search goes on where it was interrupted,
or to more layers, and a rule that asks for the same candidates finds them.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deeper_layers import export, rules, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.distances import distances_to_choose, distances_unit, drawn_batches
from deeper_layers.experiments.measurement import Measurement, text_of
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.models.sources import Source
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED, RULES, cuts_of_rule
from deeper_layers.rules.laco import merged_layers
from deeper_layers.rules.rule import Losses, price_in_words
from deeper_layers.rules.similarity import distance_matrix

if TYPE_CHECKING:  # torch
    from deeper_layers.export.tensor_edits import Changed

FITTED = 64  # of the sequences of the distances, on which a bridge is fitted


def chosen_cuts(
    rule: str, sizes: Sequence[int], parameters: Parameters, source: Source, opened: Callable, distances=distances_unit
) -> list[Cut]:
    """The cut of each size under a rule; what it needs is read from results, or measured on what `opened()` returns.

    `distances` is what gives the result of the distances. The price of a search by loss is printed before.

    Raises NotMeasuredError where nothing is to be measured and results hold not all that it takes, and InputError for
    sizes that do not fit the model or the rule.
    """
    chosen, layers = REGISTERED[rule], source.num_layers
    if not any(sizes):  # the whole model, which no rule has to choose
        return [UNPRUNED] * len(sizes)
    if chosen.needs == "distances":
        known = distance_matrix(distances(parameters, source, opened).rows)
    elif chosen.needs == "losses":
        known = _losses(rule, max(sizes, default=0), parameters, source, opened)
    elif chosen.needs:
        known = _looked_at(rule, parameters, source, opened)
    else:
        known = None
    return chosen.choose(sizes, layers, known)


def choose_cut(
    rule: str,
    size: int,
    layers: int,
    measured: Callable[[], tuple[Parameters, Source, Callable]],
    safe: Callable[[list[Cut]], list[Cut]] | None = None,
) -> Cut:
    """The cut of one size under a rule, of a model of so many layers.

    `measured()` is asked only where more than the depth is needed: it gives parameters, source, and what opens the
    model. Distances may be of another data type, where results hold those alone. `safe` gives of some cuts those that
    are to be chosen among: then it is the most similar of these blocks, or that nearest to the simple heuristic's.

    Raises NotMeasuredError where nothing is to be measured, and InputError where the rule has no such cut.
    """
    if size == 0:  # no rule has to choose
        return UNPRUNED
    if safe is None:
        if not REGISTERED[rule].needs:
            return cuts_of_rule(rule, [size], layers)[0]
        return chosen_cuts(rule, [size], *measured(), distances_to_choose)[0]
    if rule not in RULES:
        raise InputError(f"rule is {rule}, expected one that chooses among blocks: give one of {', '.join(RULES)}")
    if not (passing := safe([Cut(start, size) for start in range(layers - size)])):
        raise InputError(
            f"size is {size}, and no block of so many layers before the last can go without one of these engines "
            "taking others for what they are not: choose another number, or leave out the engines"
        )
    if rule == "simple":
        return passing[-1]
    rows = distances_to_choose(*measured()).rows
    distances = rows[rows["size"] == size].set_index("start")["distance"]
    return min(passing, key=lambda cut: distances[cut.start])


def changed_choice(
    rule: str, size: int, parameters: Parameters, source: Source, opened: Callable
) -> tuple[Cut, "Changed"]:
    """What a rule drops that changes weights too, and what becomes of the layers that stay.

    It looks at the sequences of the distances; a bridge is fitted on the first of them. What that costs is printed
    before. Raises NotMeasuredError where nothing is to be measured, and InputError where the rule can't be had of this
    model or size.
    """
    chosen = REGISTERED[rule]
    known = _looked_at(rule, parameters, source, opened)
    cut = chosen.choose([size], source.num_layers, known)[0]
    merged = merged_layers(size, source.num_layers, known) if chosen.needs == "likeness" else []
    model, sequences = opened()[0], _sequences(parameters, opened)[:FITTED]
    changed = rules.changed_model(model, chosen, cut, merged, sequences)
    looked = f"{parameters.samples} sequences of {parameters.sequence_length} tokens of {parameters.corpus}"
    words = f"{rule}: {chosen.words} ({chosen.source}); it looked at {looked}"
    return cut, export.Changed(rules.changed_tensors(model, changed, cut), words)


def _looked_at(rule: str, parameters: Parameters, source: Source, opened: Callable) -> Any:
    """What a rule needs that one look at the text gives: measured each time, since nothing of it is kept.

    Raises NotMeasuredError where nothing is to be measured.
    """
    needs = REGISTERED[rule].needs
    if not parameters.measure:
        raise NotMeasuredError(f"not measured: the {needs} of {source.name}, which the rule {rule!r} needs")
    said = priced(rule, price(rule, 0, parameters, source.num_layers))
    print(f"{said}; what it looks at is not kept: interrupted, it begins anew", file=sys.stderr, flush=True)
    sequences = _sequences(parameters, opened)
    return sweeping.known_of(opened()[0], rule, sequences)


def _sequences(parameters: Parameters, opened: Callable) -> list:
    """The sequences of the distances, each [T], without padding."""
    batches = drawn_batches(parameters, opened)
    return [ids[mask.bool()] for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


def price(rule: str, size: int, parameters: Parameters, layers: int) -> dict:
    """What a rule costs at most that looks at text: passes of all layers and of the head over it, and its tokens."""
    tokens, chosen = parameters.samples * parameters.sequence_length, REGISTERED[rule]
    # a bridge is fitted on some of the same sequences
    passes, heads = round(chosen.passes(size, layers) + chosen.fits, 1), chosen.heads(size, layers)
    return {"passes": passes, "heads": heads, "tokens_at_most": tokens}


def priced(rule: str, price: dict) -> str:
    said = price_in_words(price["passes"], price["heads"])
    return f"{rule}: {said}, over at most {price['tokens_at_most']:,} tokens"


def _losses(rule: str, size: int, parameters: Parameters, source: Source, opened: Callable) -> Losses:
    """What measures candidates, and says before the first what all will cost."""

    @functools.cache
    def text() -> tuple[list, Callable]:
        said = priced(rule, price(rule, size, parameters, source.num_layers))
        print(f"{said} (samples times their length); each step is kept in results", file=sys.stderr, flush=True)
        return _sequences(parameters, opened), sweeping.tree_models_of(opened()[0])

    def losses(cuts: list[Cut]) -> list[float]:
        unit = candidates_unit(cuts, parameters, source, opened, text)
        of_cut = dict(zip(unit.rows["cut"], unit.rows["value"], strict=True))
        return [of_cut[cut.name] for cut in cuts]

    return losses


def candidates_unit(
    cuts: list[Cut], parameters: Parameters, source: Source, opened: Callable, text: Callable[[], tuple[list, Callable]]
) -> Result:
    """Loss on text of some pruned models of any shape: read from results, else measured.

    The text is that of the distances: corpus, samples, sequence length and seed; `text()` has its sequences, each [T],
    and what makes a family of cuts, for all steps of a search. Rows: task, metric, cut, value (nats a token),
    stderr, items.

    Raises NotMeasuredError where nothing is to be measured and results hold no such losses.
    """

    def measure(shards):
        sequences, family = text()
        rows, _ = sweeping.text_loss(opened()[0], cuts, sequences, shards=shards, family=family(cuts))
        kept = [{name: row[name] for name in ("metric", "value", "stderr", "items")} for row in rows.to_dict("records")]
        found = [{"task": parameters.corpus, "cut": cut.name} | row for cut, row in zip(cuts, kept, strict=True)]
        return found, {"tokens": sum(map(len, sequences))}

    asked = {parameters.corpus: {"limit": parameters.samples, "length": parameters.sequence_length}}
    names = {GIVEN: [cut.name for cut in cuts]}
    unit = Measurement(
        kind="scores", source=source, measure=measure, reads=[text_of(parameters.corpus, parameters.datasets)],
        settings={**parameters.key, "tasks": asked, "seed": parameters.seed, "cuts": names},
    ).result(parameters)  # fmt: skip
    if unit is None:
        raise NotMeasuredError(f"not measured: the losses of {len(cuts)} candidates of {source.name} in {source.dtype}")
    return unit
