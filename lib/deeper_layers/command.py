"""The command that prunes a checkpoint: python -m deeper_layers.pruning SOURCE OUT --drop N

The cut is chosen, what is known of it is looked up, adapters are healed where that is asked for, and the files are
written. What opens the model is imported where it is needed: lm-eval and peft hold 100 MB before they do anything.
"""

import argparse
import functools
from pathlib import Path

from deeper_layers.checkpoints.adapter_files import read_adapter
from deeper_layers.checkpoints.gguf_files import TYPES, gguf_file, slice_gguf
from deeper_layers.checkpoints.layer_tensors import number_of_layers
from deeper_layers.checkpoints.model_card import measured_card
from deeper_layers.checkpoints.slicing import check_new, slice_checkpoint
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.opening import checkpoint_folder
from deeper_layers.models.sources import find_model, model_key, model_name
from deeper_layers.results.places import results_folder
from deeper_layers.results.units import all_units
from deeper_layers.rules.choosing import RULES
from deeper_layers.rules.similarity import similarity_cut


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a mistake of the user is one line and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        print(prune(options))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def prune(options: argparse.Namespace) -> Path:
    """The pruned checkpoint, written as the options say: a folder, or a GGUF file of one that is such a file too."""
    check_new(options.out)
    to_gguf = Path(options.out).suffix == ".gguf"
    if options.type and not to_gguf:
        raise InputError(f"out is {options.out!r}: --type is for an out that ends in .gguf")
    if to_gguf:
        source = find_model(options.source, revision=options.revision)
        gguf_file(source)  # refuses any other before anything is measured
        layers, name = source.num_layers, source.name
    else:
        folder = checkpoint_folder(options.source, options.revision)
        layers, name = number_of_layers(folder), model_name(options.source)
    parameters = _parameters(options)
    cut = _cut(options, layers, parameters)
    cut.check(layers)
    print(f"{name}: {cut.describe(layers)}", flush=True)
    if options.heal is not None:
        from deeper_layers.experiments.healings import adapter_folder

        opened = parameters().source()
        options.adapter = adapter_folder(cut, parameters().config(), parameters(), opened, _opened(parameters, opened))
        print(f"adapters: {options.adapter}", flush=True)
    if to_gguf:
        return slice_gguf(source, cut, options.out, adapter=options.adapter, type=options.type)
    adapter = None if options.adapter is None else read_adapter(options.adapter)
    results, card = results_folder(options.results), ""
    # only where something of this name was measured is it worth reading all weights for their hash
    if any(unit.key["model"]["name"] == name for unit in all_units(results, model=name)):
        card = measured_card(model_key(options.source, folder), cut, results, adapter)
    return slice_checkpoint(
        options.source, cut, options.out, revision=options.revision, card=card, adapter=options.adapter
    )


def _cut(options: argparse.Namespace, layers: int, parameters) -> Cut:
    """The cut that was asked for: by its place, by a rule, or the one that adapters were trained for."""
    if options.drop is None:
        recorded = read_adapter(options.adapter).cut if options.adapter else None
        if recorded is None:
            raise InputError(
                "--drop is missing: give the number of layers to drop; it may be left out only with --adapter and a "
                "folder that records its cut"
            )
        if options.start is not None:
            raise InputError(f"--start is {options.start} without --drop: give both, or none with --adapter")
        return recorded
    if options.start is not None:
        return Cut(options.start, options.drop)
    if options.rule == "simple":
        return simple_cut(layers, options.drop)
    from deeper_layers.experiments.distances import distances_unit
    from deeper_layers.rules.similarity import distance_matrix

    source = parameters().source()
    unit = distances_unit(parameters(), source, _opened(parameters, source))
    return similarity_cut(distance_matrix(unit.rows), options.drop)


def _parameters(options: argparse.Namespace):
    """A function that returns what a notebook would take, checked."""

    @functools.cache
    def parameters():
        from deeper_layers.experiments.parameters import HealingParameters, SimilarityParameters

        names = {
            "model": options.source, "revision": options.revision, "results": options.results,
            "datasets": options.datasets,
        }  # fmt: skip
        if options.heal is None:
            return SimilarityParameters.from_names(names)
        names |= {"preset": options.heal, "text": options.text}
        if Path(options.out).suffix == ".gguf":  # rounded already: adapters learn on the weights they are added to
            names |= {"quantization": None}
        return HealingParameters.from_names(names)

    if options.heal is not None:
        parameters()  # a mistake is found before anything is measured
    return parameters


def _opened(parameters, source):
    return functools.cache(lambda: parameters().open(source))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deeper_layers.pruning",
        description="Write a checkpoint without some of its layers, without opening the model; healed if you like.",
    )
    parser.add_argument("source", help="a folder, a hub id, a .gguf file, or embedded")
    parser.add_argument("out", help="the folder to write; of a GGUF file also another, that ends in .gguf")
    parser.add_argument("--drop", type=int, help="number of layers to drop; with --adapter by default its own cut")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--start", type=int, help="the first of them, counted from 0")
    which.add_argument(
        "--rule", choices=RULES, default="similarity",
        help="similarity: the most similar block, from results/ or measured on the opened model; simple: the layers "
        "before the last",
    )  # fmt: skip
    healed = parser.add_mutually_exclusive_group()
    healed.add_argument("--adapter", help="a folder of adapters trained after this cut: they are added to the weights")
    healed.add_argument(
        "--heal", metavar="PRESET",
        help="train such adapters first, with the paper's settings of one of its models ('Llama-2 7B', ...) or "
        "'small'; they are kept, and an interrupted training goes on",
    )  # fmt: skip
    parser.add_argument("--text", default="c4", help="what heals: c4 or wikipedia")
    parser.add_argument("--datasets", help="folder of a local mirror of the hub")
    parser.add_argument("--type", choices=TYPES, help="of the matrices of a GGUF file, which else stay as they are")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--results", help="folder of measured units")
    return parser
