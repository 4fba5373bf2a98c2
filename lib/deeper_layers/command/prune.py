"""`deeper-layers prune`: a checkpoint without some of its layers, healed if asked for.

The cut is chosen, what is known of it is looked up, adapters are healed where that is asked for, and the files are
written. Copying opens no model: what does is imported where distances are measured or adapters trained.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeper_layers import checkpoints, checks, data, files, models, results
from deeper_layers.command.answers import Answer, answering
from deeper_layers.command.cutting import check_typed, chosen_cut, cut_options
from deeper_layers.command.options import Place, asking
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.common_parameters import check_one_of
from deeper_layers.experiments.parameters import HealingParameters, Parameters
from deeper_layers.package_index import cache_folder

if TYPE_CHECKING:  # torch
    from deeper_layers.checkpoints.adapter_files import Adapter

ADAPTER = "give one of adapters, as `deeper-layers heal` writes it"
HEALING = HealingParameters.model_fields


@click.command
@cut_options(required=False, more="; with --adapter by default its own")
@click.option("--adapter", type=Place(), help="folder of adapters trained after this cut: they are "
              "added to the weights")  # fmt: skip
@click.option("--heal", metavar="PRESET", help="train such adapters first, and keep them: "
              + str(HEALING["preset"].description))  # fmt: skip
@click.option("--text", default=HEALING["text"].default, show_default=True, help=HEALING["text"].description)
@click.option("--type", "kind", help="of the matrices of a GGUF file, which else stay as they are: f32, f16 or q8_0")
@asking(Parameters)
@click.argument("out", type=Place())
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
    check_typed(drop, start)
    if adapter and heal:
        raise click.UsageError("--adapter names adapters, and --heal trains them: give one of them")
    to_gguf = out.suffix == ".gguf"
    parameters = _parameters(given, heal, text, to_gguf)
    out = _checked_out(out, kind)
    if heal:  # where the adapters are kept
        files.check_writable(cache_folder())
    added = None if adapter is None else checkpoints.read_adapter(checks.folder("adapter", adapter, ADAPTER))
    recorded = _cut_of(added, start) if drop is None else None
    # so far nothing of the model was read
    model, revision = given["model"], given.get("revision")
    if to_gguf:
        source = models.find_model(model, revision=revision)
        checkpoints.gguf_file(source)  # refuses any other before anything is measured
        layers, name = source.num_layers, source.name
    else:
        folder = models.checkpoint_folder(model, revision)
        layers, name = checkpoints.number_of_layers(folder), models.model_name(model)
    found = functools.cache(parameters.source)
    opened = functools.cache(lambda: parameters.open(found()))
    if heal:
        found()  # a mistake is found before anything is measured
    files.check_writable(out.absolute().parent)
    cut = recorded or chosen_cut(drop, start, rule, layers, lambda: (parameters, found(), opened))
    cut.check(layers)
    if heal:
        from deeper_layers.experiments.healings import adapter_folder

        adapter = adapter_folder(cut, parameters.config(), parameters, found(), opened)
    if to_gguf:
        written = checkpoints.slice_gguf(source, cut, out, adapter=adapter, type=kind)
    else:
        measured, card = parameters.results_folder, ""
        # only where something of this name was measured is it worth reading all weights for their hash
        if any(unit.key["model"]["name"] == name for unit in results.all_units(measured, model=name)):
            added = None if adapter is None else checkpoints.read_adapter(adapter)
            card = checkpoints.measured_card(models.model_key(model, folder), cut, measured, added)
        written = checkpoints.slice_checkpoint(model, cut, out, revision=revision, card=card, adapter=adapter)
    lines = [f"{name}: {cut.describe(layers)}", *([f"adapters: {adapter}"] if adapter else []), str(written)]
    content = {
        "model": name, "layers": layers, "cut": {"start": cut.start, "size": cut.size}, "kept": cut.kept(layers),
        "adapters": str(adapter) if adapter else None, "out": str(written),
    }  # fmt: skip
    return Answer("\n".join(lines), content)


def _parameters(given: dict, preset: str | None, text: str, to_gguf: bool) -> Parameters:
    """What measures distances, and heals where a preset is named."""
    check_one_of("text", text, data.CORPORA)
    if preset is None:
        return Parameters(**given)
    # rounded already, a GGUF file heals on the weights that its adapters are added to
    how = {"preset": preset, "text": text} | ({"quantization": None} if to_gguf else {})
    return HealingParameters(**given | how)


def _checked_out(out: Path, kind: str | None) -> Path:
    """Where to write. Raises InputError where that can't be, and for a type that is none."""
    if kind is not None and out.suffix != ".gguf":
        raise InputError(f"out is {str(out)!r}: --type is for an out that ends in .gguf")
    out = checks.place("out", out)
    checks.new_folder("the folder of out", out.parent, writable=True)
    if kind is not None and kind not in checkpoints.TYPES:
        raise InputError(f"type is {kind!r}, expected one of {', '.join(checkpoints.TYPES)}: llama-quantize makes more")
    checkpoints.check_new(out)
    return out


def _cut_of(adapter: "Adapter | None", start: int | None) -> Cut:
    """The cut that adapters were trained for."""
    if adapter is None or adapter.cut is None:
        raise InputError(
            "--drop is missing: give the number of layers to drop; it may be left out only with --adapter and a "
            "folder that records its cut"
        )
    if start is not None:
        raise InputError(f"--start is {start} without --drop: give both, or none with --adapter")
    return adapter.cut
