"""Which layers are dropped: given cuts, every block, or the cut that a rule chooses.

The inputs of a rule are results: distances, or the losses of a search, each step of which is one result. So an
interrupted search continues, and a finished one extends to more layers. Other inputs are measured each time.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deeper_layers import export
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.models.sources import DTYPES
from deeper_layers_companion import results, rules
from deeper_layers_companion.jobs.job import Data, distances_job, list_unknown_cuts, search_job
from deeper_layers_companion.jobs.measure import draw_options_sequences, measure_needs
from deeper_layers_companion.jobs.options import CutsByRule
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.choosing import choose_merges, distance_matrix
from deeper_layers_companion.rules.table import REGISTERED, RULES, describe_price

if TYPE_CHECKING:  # imports torch
    from deeper_layers.export.tensors import Changed

BRIDGE_SEQUENCES = 64  # a bridge is fitted on so many of the sequences of the distances


def list_blocks(sizes: Iterable[int], num_layers: int, starts: Sequence[int] = ()) -> CutsByRule:
    """The whole model and every block of these sizes, or those with these starts; the last layer may be dropped.
    Raises InputError for a block that does not fit into the model."""
    cuts_by_rule = {}
    for size in filter(None, sizes):
        cuts = [Cut(start, size) for start in starts or range(max(1, num_layers - size + 1))]
        for cut in cuts:
            cut.check(num_layers)
        cuts_by_rule[f"blocks of {size}"] = [UNPRUNED, *cuts]
    return cuts_by_rule


def select_cuts_by_task(session: Session) -> dict[str, CutsByRule]:
    """For each task and text its cuts by rule: those given by the options, else those that the rules choose."""
    options = session.options
    layers = session.source.num_layers
    if cuts_by_rule := options.find_given_cuts(layers):
        return dict.fromkeys(options.parsed_tasks, cuts_by_rule)
    for task in options.task_list if options.measure else ():
        if not results.is_measured(task, options.folder):
            # fail on unreadable data before anything is measured
            Data(task).fingerprint(options.datasets)
    cuts_by_task = {}
    for task in options.parsed_tasks:
        cuts_by_task[task] = select_cuts_by_rule(options.list_sizes(layers, task), session)
    return cuts_by_task


def select_cuts_by_rule(
    sizes: Sequence[int], session: Session, only: Sequence[str] | None = None
) -> CutsByRule:
    """The cut of each size under each rule of the options, or under `only` these; in a plan, a placeholder where it is
    not known."""
    cuts_by_rule = {}
    for rule in only or session.options.rule_list:
        try:
            cuts_by_rule[rule] = select_cuts(rule, sizes, session)
        except NotMeasuredError:
            if not session.planning:
                raise
            cuts_by_rule[rule] = list_unknown_cuts(rule, sizes)
    return cuts_by_rule


def select_cuts(
    rule: str,
    sizes: Sequence[int],
    session: Session,
    *,
    layers: int | None = None,
    any_dtype: bool = False,
) -> list[Cut]:
    """The cut of each size under a rule. Missing inputs of the rule are measured before; their jobs are.

    `layers` is the depth of the model, where it is known already. With `any_dtype`, distances measured in another data
    type serve too, if results hold no others. Raises NotMeasuredError if an input is missing and may not be measured:
    the session notes its job as missing. Raises InputError for sizes that do not fit.
    """
    entry = REGISTERED[rule]
    inputs = None
    if not any(sizes):  # only the whole model: there is nothing to choose
        return [UNPRUNED] * len(sizes)
    if entry.needs == "distances":
        inputs = get_distances(session, any_dtype=any_dtype)
    elif entry.needs == "losses":
        inputs = _make_loss_function(rule, max(sizes), session)
    elif entry.needs:
        inputs = measure_needs(rule, session)
    return entry.choose(sizes, session.source.num_layers if layers is None else layers, inputs)


def get_distances(session: Session, *, any_dtype: bool = False) -> Any:
    """The distances [n, l] of a model, in units of pi. With `any_dtype` and none in the model's data type, results in
    another one serve, and stderr says so; those of weights that are not quantized do not serve quantized ones."""
    source = session.source
    options = session.options
    job = distances_job(source, options)
    if any_dtype and session.find(job) is None:
        dtype, result = _find_in_any_dtype(session)
        if result:
            lack = f"results hold none of {source.name} in {source.dtype}"
            print(f"the cut is chosen by distances in {dtype}, as {lack}", file=sys.stderr)
            return distance_matrix(result.rows)
        if options.quantization and options.measure:
            dtype, result = _find_in_any_dtype(session.replace(quantization=None))
            if result:
                print(
                    f"distances are measured in {options.quantization}, as results hold them in {dtype} alone; "
                    "--start N --drop N drops layers without distances",
                    file=sys.stderr,
                )
    return distance_matrix(session.get(job, needed="the distances").rows)


def _find_in_any_dtype(session: Session) -> tuple[str, Result | None]:
    """The first data type in which results hold the distances of a model, and these; "" and None where in none."""
    for dtype in DTYPES:
        source = dataclasses.replace(session.source, dtype=dtype)
        result = session.find(distances_job(source, session.options))
        if result:
            return dtype, result
    return "", None


def _make_loss_function(
    rule: str, size: int, session: Session
) -> Callable[[list[Cut]], list[float]]:
    """A function from candidates to their losses on the text of the distances; each step is kept in results."""

    @functools.cache
    def print_price() -> None:
        price = describe_price(*REGISTERED[rule].price(size, session.source.num_layers))
        tokens = session.options.samples * session.options.sequence_length
        print(
            f"{rule}: {price}, over at most {tokens:,} tokens; each step is kept in results",
            file=sys.stderr,
        )

    def losses(cuts: list[Cut]) -> list[float]:
        job = search_job(session.source, session.options, cuts)
        if session.options.measure and session.find(job) is None:
            print_price()
        rows = session.get(job, needed=f"the losses of {len(cuts)} candidates").rows
        return rows.set_index("cut")["value"][[cut.name for cut in cuts]].tolist()

    return losses


# ---- for a checkpoint --------------------------------------------------------------------------------------------


def select_safe_cut(
    rule: str, size: int, layers: int, session: Session, safe: Callable[[list[Cut]], list[Cut]]
) -> Cut:
    """The most similar block among those that `safe` keeps; the last of them for a rule that needs no distances."""
    if rule not in RULES:
        raise InputError(
            f"rule is {rule}, expected one that chooses among blocks: give one of {', '.join(RULES)}"
        )
    if not (blocks := safe([Cut(start, size) for start in range(layers - size)])):
        raise InputError(
            f"size is {size}, and no block of so many layers before the last can go without one of these engines "
            "taking others for what they are not: choose another number, or leave out the engines"
        )
    if not REGISTERED[rule].needs:
        return blocks[-1]
    distances = get_distances(session, any_dtype=True)
    return min(blocks, key=lambda cut: distances[cut.size - 1, cut.start])


def select_cut_and_changes(rule: str, size: int, session: Session) -> tuple[Cut, "Changed"]:
    """The cut of a rule that also changes weights, and the changed weights of the layers that stay. The rule is
    calibrated on the sequences of the distances; a bridge is fitted on the first of them."""
    entry = REGISTERED[rule]
    inputs = measure_needs(rule, session)
    options = session.options
    layers = session.source.num_layers
    (model, tokenizer) = session.open()
    cut = entry.choose([size], layers, inputs)[0]
    merged = choose_merges(size, layers, inputs) if entry.needs == "likeness" else []
    sequences = draw_options_sequences(session, tokenizer)[:BRIDGE_SEQUENCES]
    changed = rules.change_model(model, entry, cut, merged, sequences)
    looked = f"{options.samples} sequences of {options.sequence_length} tokens of {options.corpus}"
    words = f"{rule}: {entry.words} ({entry.source}); it looked at {looked}"
    return cut, export.Changed(rules.find_changed_tensors(model, changed, cut), words)
