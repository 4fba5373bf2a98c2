"""A checkpoint without some of its layers, written without opening the model.

Safetensors files are copied tensor by tensor as bytes, whatever their data type, with the layers above the cut
renamed; what depends on a layer's position in config.json follows from an empty model of the same class (see
`lib.pruning.drop_layers`). Never more than a few megabytes are held. The folder appears when it is complete.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from lib.decoder import decoder_layers, num_layers
from lib.errors import InputError
from lib.gguf_files import TYPES, slice_gguf
from lib.models import PACKAGED, Source, checkpoint_folder
from lib.parameters import SimilarityParameters
from lib.pruning import BOUNDARIES, Cut, drop_layers, similarity_cut, simple_cut
from lib.results import RESULTS, all_units, write_whole
from lib.selection import RULES
from lib.similarity import distance_matrix, distances_unit
from lib.tensor_files import INDEX, PICKLED, Shard, copy_tensors, read_json, read_shards

STATE = ".slicing.json"  # in a folder under way: what it will be
OTHER_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLED)
NUMBERED = re.compile(r"^(?P<prefix>(?:[^.\d]\w*\.)+)(?P<number>\d+)\.(?P<rest>.+)$")
# what configurations call the number of layers
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def slice_checkpoint(
    source: str | Path, cut: Cut, out: str | Path, *, revision: str | None = None, card: str = ""
) -> Path:
    """Write a checkpoint without the layers of a cut: the same tensors as `drop_layers` and `save_pretrained` give.

    Args:
        source: a folder with config.json and safetensors, a hub id, a `.gguf` file, or "embedded".
        cut: the layers to drop.
        out: the folder to write, which must not exist. An interrupted run leaves OUT.partial, which the next one
            completes.
        revision: of a hub id.
        card: what the model card says besides source and cut.

    Raises:
        InputError: the source is no such checkpoint (a shard is missing or truncated, or its weights are pickled),
            the cut does not fit it, some of its tensors belong to layers in a way that is not understood, `out`
            exists, or the disk is too full.
    """
    folder, out = checkpoint_folder(str(source), revision), Path(out)
    if out.exists():
        raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten")
    config = read_json(folder / "config.json")
    shards = read_shards(folder)
    names = [tensor.name for shard in shards for tensor in shard.tensors]
    plan = _plan(folder, config, names, cut)
    renamed = [_renamed(shard, plan) for shard in shards]
    renamed = [shard for shard in renamed if shard.tensors]
    total = sum(tensor.bytes for shard in renamed for tensor in shard.tensors)
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    sizes = {shard.path.name: [shard.path.stat().st_size, shard.path.stat().st_mtime_ns] for shard in shards}
    _check_partial(partial, {"source": str(folder.resolve()), "files": sizes, "cut": [cut.start, cut.size]})
    done = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
    free = shutil.disk_usage(partial).free
    if total - done > free:
        raise InputError(
            f"{out} needs {(total - done) / 1e9:.2f} GB more, where {free / 1e9:.2f} GB are free: free some space, "
            "or give a folder on another disk"
        )
    files = [f"model-{i:05d}-of-{len(renamed):05d}.safetensors" for i in range(1, len(renamed) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    with tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr) as bar:
        for shard, file in zip(renamed, files):
            if (partial / file).exists():
                bar.update(sum(tensor.bytes for tensor in shard.tensors))
            else:
                copy_tensors(shard, partial / file, bar)
    if len(files) > 1:
        weight_map = {tensor.name: file for shard, file in zip(renamed, files) for tensor in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(partial / INDEX, json.dumps(index, indent=2).encode())
    write_whole(partial / "config.json", (json.dumps(plan.config, indent=2, sort_keys=True) + "\n").encode())
    for path in sorted(folder.iterdir()):
        ours = {"config.json", "README.md", INDEX}
        if path.is_file() and path.name not in ours and not path.name.endswith((*OTHER_WEIGHTS, ".index.json")):
            shutil.copyfile(path, partial / path.name)
    text = model_card(str(source), revision, cut, plan.layers, card)
    write_whole(partial / "README.md", text.encode())
    (partial / STATE).unlink()
    os.rename(partial, out)
    return out


@dataclass(frozen=True)
class _Plan:
    """What becomes of a checkpoint: its new configuration, and which of its tensors belong to which layer."""

    config: dict
    layers: int
    prefix: str  # of the layers' tensors
    kept: tuple[int, ...]


def model_card(source: str, revision: str | None, cut: Cut, layers: int, more: str = "") -> str:
    """README.md of a sliced checkpoint: where it comes from, what was dropped, how it can be made again."""
    of = f" at revision {revision}" if revision else ""
    hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not Path(source).exists()
    name = PACKAGED[source].name if source in PACKAGED else source if hub else Path(source).name
    front = ["---", *([f"base_model: {source}"] if hub else []), "tags: [layer-pruning]", "---"]
    return "\n".join([
        *front,
        f"# {name} without {cut.size} of its {layers} layers",
        "",
        f"{name}{of}; this checkpoint {cut.describe(layers)}. All other weights are unchanged.",
        "",
        "The method is that of Gromov et al., *The Unreasonable Ineffectiveness of the Deeper Layers* "
        "(arXiv 2403.17887). As a configuration of mergekit:",
        "",
        "```yaml",
        cut.mergekit_yaml(layers, name).rstrip(),
        "```",
        "",
        *([more, ""] if more else []),
    ])  # fmt: skip


def _plan(folder: Path, config: dict, names: list[str], cut: Cut) -> _Plan:
    if config.get("model_type") in CONFIG_MAPPING and "auto_map" not in config:
        return _plan_known(folder, names, cut)
    return _plan_by_itself(folder, config, names, cut)


def _plan_known(folder: Path, names: list[str], cut: Cut) -> _Plan:
    """For a model of transformers: an empty one is cut, and says what its configuration has to be."""
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise InputError(f"can't build an empty model from {folder / 'config.json'} ({error}): repair it") from error
    layers = num_layers(model)
    cut.check(layers)
    pruned = drop_layers(model, cut)
    module = next(name for name, found in model.named_modules() if found is decoder_layers(model)) + "."
    groups = _groups(names)
    fitting = [prefix for prefix, numbers in groups.items() if numbers >= set(range(layers))]
    # checkpoints of a base model lack the name of what holds it: "h." in the file is "transformer.h." in the model
    chosen = [prefix for prefix in fitting if module.endswith(prefix)] or fitting
    if len(chosen) != 1:
        raise InputError(
            f"{folder} has {len(chosen)} groups of tensors that can be its {layers} layers "
            f"({', '.join(groups) or 'none'}): expected exactly one, like {module}0"
        )
    extra = sorted(name for name in names if (_number(name, chosen[0]) or 0) >= layers)
    if extra:
        raise InputError(
            f"{folder} holds {len(extra)} tensors of layers beyond the {layers} that its configuration states "
            f"({', '.join(extra[:3])}, ...): what becomes of them after a cut is not known"
        )
    pruned.config.architectures = [type(pruned).__name__]  # as save_pretrained does
    return _Plan(json.loads(pruned.config.to_json_string()), layers, chosen[0], tuple(cut.kept(layers)))


def _plan_by_itself(folder: Path, config: dict, names: list[str], cut: Cut) -> _Plan:
    """For a model whose code comes with it, and is not run: what config.json itself says of each layer."""
    text = next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), config)
    depth = next((key for key in DEPTHS if type(text.get(key)) is int), None)
    if depth is None:
        raise InputError(
            f"{folder / 'config.json'} states no number of layers ({', '.join(DEPTHS)}): expected one of these"
        )
    layers = text[depth]
    cut.check(layers)
    groups = _groups(names)
    fitting = [prefix for prefix, numbers in groups.items() if numbers == set(range(layers))]
    odd = sorted(name for name in names if (_prefix(name) or "") in set(groups) - set(fitting))
    if len(fitting) != 1 or odd:
        shown = ", ".join(odd[:3]) or ", ".join(fitting) or "none"
        raise InputError(
            f"{folder} has {len(fitting)} groups of tensors numbered like its {layers} layers, and {len(odd)} numbered "
            f"otherwise ({shown}): its code is not run, so which are layers is not guessed"
        )
    kept = cut.kept(layers)
    changed = dict(text)
    for key, value in text.items():
        if isinstance(value, list) and len(value) == layers and not key.endswith("token_id") and key != "architectures":
            changed[key] = [value[index] for index in kept]
        elif key in BOUNDARIES and type(value) is int:
            changed[key] = sum(index < value for index in kept)
    changed[depth] = len(kept)
    if text is not config:
        name = next(key for key, value in config.items() if value is text)
        changed = config | {name: changed}
    return _Plan(changed, layers, fitting[0], tuple(kept))


def _groups(names: list[str]) -> dict[str, set[int]]:
    """Outermost numbered prefixes among tensor names, with their numbers: "model.layers." and {0, 1, ...}."""
    groups: dict[str, set[int]] = {}
    for name in names:
        if found := NUMBERED.match(name):
            groups.setdefault(found["prefix"], set()).add(int(found["number"]))
    return groups


def _prefix(name: str) -> str | None:
    found = NUMBERED.match(name)
    return found["prefix"] if found else None


def _number(name: str, prefix: str) -> int | None:
    found = NUMBERED.match(name)
    return int(found["number"]) if found and found["prefix"] == prefix else None


def _renamed(shard: Shard, plan: _Plan) -> Shard:
    """The kept tensors of a shard under their new names; entries still point into the old file."""
    new = {old: position for position, old in enumerate(plan.kept)}
    kept = []
    for tensor in shard.tensors:
        number = _number(tensor.name, plan.prefix)
        if number is None:
            kept.append(tensor)
        elif number in new:
            rest = tensor.name[len(f"{plan.prefix}{number}") :]
            kept.append(dataclasses.replace(tensor, name=f"{plan.prefix}{new[number]}{rest}"))
    return dataclasses.replace(shard, tensors=tuple(kept))


def _check_partial(partial: Path, state: dict) -> None:
    """Make the folder of work in progress; one of another slicing is begun anew."""
    path = partial / STATE
    if partial.exists() and (not path.exists() or read_json(path) != state):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    write_whole(path, json.dumps(state).encode())


def measured_card(source: Source, cut: Cut, results: Path = RESULTS) -> str:
    """What results hold about a cut of a model, in Markdown: its distance, and the scores of its pruned model."""
    lines, scores = [], []
    for unit in all_units(results):
        if unit.key["model"] != source.key or not {"start", "size"} <= set(unit.rows):
            continue
        of_cut = unit.rows[(unit.rows["start"] == cut.start) & (unit.rows["size"] == cut.size)]
        how = f"{unit.key['dtype']}, {unit.key.get('quantization') or 'not quantized'}"
        if unit.kind == "similarity" and len(of_cut):
            distance = of_cut["distance"].iloc[0]
            lines.append(f"Angular distance of the dropped block: {distance:.4f} (units of pi; {unit.name}, {how}).")
        if unit.kind == "sweep":
            whole = unit.rows[unit.rows["size"] == 0].set_index(["task", "metric"])["value"]
            for row in of_cut.itertuples():
                before = whole.get((row.task, row.metric))
                scores.append(
                    f"| {row.task} | {row.metric} | {'' if before is None else f'{before:.3f}'} | {row.value:.3f} | "
                    f"{int(row.items)} | {how} |"
                )
    if scores:
        head = ["| task | metric | whole model | this one | items | measured in |", "|---|---|---|---|---|---|"]
        lines += ["", *head, *dict.fromkeys(scores)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command: python -m lib.pruning SOURCE OUT --drop N [--start L | --rule similarity|simple]

    An OUT that ends in .gguf is a GGUF file for llama.cpp, of a source that is one.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lib.pruning",
        description="Write a checkpoint without some of its layers, without opening the model.",
    )
    parser.add_argument("source", help="a folder, a hub id, a .gguf file, or embedded")
    parser.add_argument("out", help="the folder to write; or, from a GGUF file, another that ends in .gguf")
    parser.add_argument("--drop", type=int, required=True, help="number of layers to drop")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--start", type=int, help="the first of them, counted from 0")
    which.add_argument(
        "--rule", choices=RULES, default="similarity",
        help="similarity: the most similar block, from results/ or measured on the opened model; simple: the layers "
        "before the last",
    )  # fmt: skip
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--results", default="results", help="folder of measured units")
    parser.add_argument("--adapter", help="a folder of adapters healed after this cut, added to a GGUF file")
    parser.add_argument("--type", choices=TYPES, help="of the matrices of a GGUF file; else they stay as they are")
    options = parser.parse_args(arguments)
    to_gguf = Path(options.out).suffix == ".gguf"
    try:
        if (options.adapter or options.type) and not to_gguf:
            raise InputError(f"out is {options.out!r}: --adapter and --type are for an out that ends in .gguf")
        parameters = SimilarityParameters(model=options.source, revision=options.revision, results=options.results)
        source = parameters.source()
        if options.start is not None:
            cut = Cut(options.start, options.drop)
        elif options.rule == "simple":
            cut = simple_cut(source.num_layers, options.drop)
        else:
            distances = distances_unit(parameters, source, lambda: parameters.open(source))
            cut = similarity_cut(distance_matrix(distances.rows), options.drop)
        cut.check(source.num_layers)
        print(f"{source.name}: {cut.describe(source.num_layers)}")
        if to_gguf:
            print(slice_gguf(source, cut, options.out, adapter=options.adapter, type=options.type))
            return
        card = measured_card(source, cut, parameters.results_folder)
        print(slice_checkpoint(options.source, cut, options.out, revision=options.revision, card=card))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
