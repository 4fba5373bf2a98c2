"""Scans: every block of so many layers, or the cuts of the paper's rules, on a task or as loss on text: measured units.

They are units of kinds of their own: curves and claims are of the rules alone, and a scan has many blocks of one size.
Of tasks that are chosen they hold the log-probability of every choice.
"""

import functools
from collections.abc import Callable

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.block_parameters import ScanParameters
from deeper_layers.experiments.losses import Predicted, of_corpus, predicted_unit
from deeper_layers.experiments.measurement import text_of
from deeper_layers.experiments.sweeps import chooser, distinct_cuts, sweep_unit, unmeasured
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit


def scan_cuts(parameters: ScanParameters, source: Source, opened: Callable) -> dict[str, dict[str, list[Cut]]]:
    """For each task and text the cuts that are asked for, by what they have in common; the whole model is one of them.

    Raises InputError where the model is too small for such blocks, or has no such starts.
    """
    layers = source.num_layers
    if parameters.blocks is None:
        cuts_of = chooser(parameters, source, opened)
        return {name: cuts_of(parameters.size_list(layers, name)) for name in parameters.asked}
    blocks = [Cut(start, parameters.blocks) for start in parameters.block_list(layers)]
    return dict.fromkeys(parameters.asked, {f"blocks of {parameters.blocks}": [UNPRUNED, *blocks]})


def scanned(
    cuts: dict[str, dict[str, list[Cut]]], parameters: ScanParameters, source: Source, opened: Callable
) -> dict[str, Unit | None]:
    """The unit of each task and text, read or measured now; None for what is not measured."""
    scan_unit = functools.partial(sweep_unit, kind="scan")
    return {
        name: (scan_loss_unit if name in parameters.text_list else scan_unit)(name, of_name, parameters, source, opened)
        for name, of_name in cuts.items()
    }


def scan_loss_unit(
    text: str, cuts_of: dict[str, list[Cut]], parameters: ScanParameters, source: Source, opened: Callable
) -> Unit | None:
    """The loss on a corpus, or on the gold solutions of GSM8K given its problems, as `sweep_unit` has scores.

    It is of the kind of the map of every block, which answers for it where it has these blocks.
    """
    return predicted_unit("blocks", distinct_cuts(cuts_of), _predicted(text, parameters), parameters, source, opened)


def _predicted(text: str, parameters: ScanParameters) -> Predicted:
    """What the loss on a text is of."""
    wanted = parameters.sequences(text)
    key = {"text": text, "sequences": wanted, "sequence_length": parameters.loss_length}
    if text != data.SOLUTIONS:
        return of_corpus(key, parameters.datasets)

    def requests(model, tokenizer):
        solved = data.solved_problems(datasets=parameters.datasets, documents=wanted)
        return sweeping.answer_requests(model, tokenizer, solved)

    key["sequence_length"] = 0  # a solution is as long as it is
    return Predicted(key, text_of(text, parameters.datasets, documents=wanted), requests)


def scan_prices(
    parameters: ScanParameters, cuts: dict[str, dict[str, list[Cut]]], source: Source, opened: Callable
) -> dict[str, tuple[list[str], "sweeping.Plan"]]:
    """Of each task and text that results lack: what is left of it, and what that would run and how long: a `Plan`.

    Of a group of tasks only those are left that results hold no unit of. Only a small batch is run.
    """
    held = parameters.model_copy(update={"measure": False})
    plans = {}
    for name, cuts_of in cuts.items():
        distinct = distinct_cuts(cuts_of)
        if name in parameters.text_list:
            if scan_loss_unit(name, cuts_of, held, source, opened) is None:
                model, tokenizer = opened()
                pruned = sweeping.TreeModel(model, distinct)
                requests = _predicted(name, parameters).requests(model, tokenizer)
                plans[name] = [name], sweeping.plan_requests(pruned, *requests)
        elif left := unmeasured(name, cuts_of, parameters, source, kind="scan"):
            plans[name] = left, sweeping.plan(*opened(), left, distinct, **parameters.sweep_options(name))
    return plans
