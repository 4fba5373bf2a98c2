"""`deeper-layers prune`: a checkpoint without some of its layers, healed if asked for.

The cut is chosen, what is known of it is looked up, adapters are healed where that is asked for, and the files are
written. Copying opens no model: what does is imported where distances are measured or adapters trained.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import click

from deeper_layers.command.answers import Answer, answering
from deeper_layers.command.cutting import check_one_way, chosen_cut, cut_options
from deeper_layers.command.heal import HealAsked
from deeper_layers.command.options import asking
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import Parameters

HEALING = HealAsked.model_fields


class PruneAsked(Parameters):
    """What is typed; the book makes no page of it."""

    notebook: ClassVar[str] = ""


@click.command
@cut_options(required=False, more="; with --adapter by default its own")
@click.option("--adapter", type=click.Path(path_type=Path), help="folder of adapters trained after this cut: they are "
              "added to the weights")  # fmt: skip
@click.option("--heal", metavar="PRESET", help="train such adapters first, and keep them: "
              + str(HEALING["preset"].description))  # fmt: skip
@click.option("--text", default=HEALING["text"].default, show_default=True, help=HEALING["text"].description)
@click.option("--type", "kind", help="of the matrices of a GGUF file, which else stay as they are: f32, f16 or q8_0")
@asking(PruneAsked)
@click.argument("out", type=click.Path(path_type=Path))
@answering
def prune(
    given: dict, out: Path, drop: int | None, start: int | None, rule: str, adapter: Path | None, heal: str | None,
    text: str, kind: str | None,
) -> Answer:  # fmt: skip
    """Write a checkpoint without some of its layers to OUT, which must not exist, without opening the model.

    Which layers is a matter of --rule, or of --start. OUT is a folder that transformers opens; of a GGUF file it can be
    one too, for llama.cpp: then it ends in .gguf. Options of the distances matter where --rule similarity measures.

    \b
    deeper-layers prune embedded pruned --drop 4 --rule simple
    deeper-layers prune ORGANISATION/NAME pruned --drop 8 --heal "Llama-2 7B"
    deeper-layers prune model.gguf pruned.gguf --drop 8
    """
    from deeper_layers import checkpoints, models, results

    check_one_way(start)
    if adapter and heal:
        raise click.UsageError("--adapter names adapters, and --heal trains them: give one of them")
    checkpoints.check_new(out)
    results.check_writable(out.absolute().parent)
    to_gguf = out.suffix == ".gguf"
    _check_type(kind, out)
    recorded = _cut_of(adapter, start) if drop is None else None
    model, revision = given["model"], given.get("revision")
    if to_gguf:
        source = models.find_model(model, revision=revision)
        checkpoints.gguf_file(source)  # refuses any other before anything is measured
        layers, name = source.num_layers, source.name
    else:
        folder = models.checkpoint_folder(model, revision)
        layers, name = checkpoints.number_of_layers(folder), models.model_name(model)
    measured = _measured(given, heal, text, to_gguf)
    if heal:
        measured()  # a mistake is found before anything is measured
    cut = recorded or chosen_cut(drop, start, rule, layers, measured)
    cut.check(layers)
    if heal:
        from deeper_layers.experiments.healings import adapter_folder

        parameters, opened_source, opened = measured()
        adapter = adapter_folder(cut, parameters.config(), parameters, opened_source, opened)
    if to_gguf:
        written = checkpoints.slice_gguf(source, cut, out, adapter=adapter, type=kind)
    else:
        found, card = results.results_folder(given.get("results")), ""
        # only where something of this name was measured is it worth reading all weights for their hash
        if any(unit.key["model"]["name"] == name for unit in results.all_units(found, model=name)):
            added = None if adapter is None else checkpoints.read_adapter(adapter)
            card = checkpoints.measured_card(models.model_key(model, folder), cut, found, added)
        written = checkpoints.slice_checkpoint(model, cut, out, revision=revision, card=card, adapter=adapter)
    lines = [f"{name}: {cut.describe(layers)}", *([f"adapters: {adapter}"] if adapter else []), str(written)]
    content = {
        "model": name, "layers": layers, "cut": {"start": cut.start, "size": cut.size}, "kept": cut.kept(layers),
        "adapters": str(adapter) if adapter else None, "out": str(written),
    }  # fmt: skip
    return Answer("\n".join(lines), content)


def _check_type(kind: str | None, out: Path) -> None:
    """Refuse a type before anything is measured."""
    from deeper_layers import checkpoints

    if kind and out.suffix != ".gguf":
        raise InputError(f"out is {str(out)!r}: --type is for an out that ends in .gguf")
    if kind and kind not in checkpoints.TYPES:
        raise InputError(f"type is {kind!r}, expected one of {', '.join(checkpoints.TYPES)}: llama-quantize makes more")


def _cut_of(adapter: Path | None, start: int | None) -> Cut:
    """The cut that adapters were trained for."""
    from deeper_layers import checkpoints

    recorded = checkpoints.read_adapter(adapter).cut if adapter else None
    if recorded is None:
        raise InputError(
            "--drop is missing: give the number of layers to drop; it may be left out only with --adapter and a "
            "folder that records its cut"
        )
    if start is not None:
        raise InputError(f"--start is {start} without --drop: give both, or none with --adapter")
    return recorded


def _measured(given: dict, preset: str | None, text: str, to_gguf: bool) -> Callable:
    """What measures distances and heals: parameters, source and what opens the model, made when asked for."""

    @functools.cache
    def measured():
        if preset is None:
            parameters = PruneAsked(**given)
        else:
            # rounded already, a GGUF file heals on the weights that its adapters are added to
            how = {"preset": preset, "text": text} | ({"quantization": None} if to_gguf else {})
            parameters = HealAsked(**given | how)
        source = parameters.source()
        return parameters, source, functools.cache(lambda: parameters.open(source))

    return measured
