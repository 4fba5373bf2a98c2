"""A checkpoint without some of its layers, written without opening the model.

Safetensors files are copied tensor by tensor as bytes, whatever their data type, with the layers above the cut
renamed; layer_tensors.py says which these are and what config.json becomes. Healed adapters can be added on the
way, some rows of a tensor at a time. Never more than a few megabytes are held. The folder appears when it is
complete.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from deeper_layers.checkpoints.adapter_files import Adapter, read_adapter
from deeper_layers.checkpoints.layer_tensors import Layout, layout_after
from deeper_layers.checkpoints.model_card import model_card
from deeper_layers.checkpoints.tensor_files import INDEX, PICKLED, Shard, copy_tensors, read_json, read_shards
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.opening import checkpoint_folder
from deeper_layers.models.sources import model_key
from deeper_layers.results.files import write_whole

STATE = ".slicing.json"  # in a folder under way: what it will be
OTHER_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLED)


def slice_checkpoint(
    source: str | Path,
    cut: Cut,
    out: str | Path,
    *,
    revision: str | None = None,
    card: str = "",
    adapter: str | Path | None = None,
) -> Path:
    """Write a checkpoint without the layers of a cut: the same tensors as `drop_layers` and `save_pretrained` give.

    Args:
        source: a folder with config.json and safetensors, a hub id, a `.gguf` file, or "embedded".
        cut: the layers to drop.
        out: the folder to write, which must not exist. An interrupted run leaves OUT.partial, which the next one
            completes.
        revision: of a hub id.
        card: what the model card says besides source and cut.
        adapter: a folder of adapters trained on the pruned model, as `save_adapters` or peft writes it: they are added
            to the weights, as `merge_adapters` does.

    Raises:
        InputError: the source is no such checkpoint (a shard is missing or truncated, or its weights are pickled),
            the cut does not fit it, some of its tensors belong to layers in a way that is not understood, the adapters
            are of another model or cut, `out` exists, or the disk is full.

    Returns:
        The folder `out`, complete: it opens in plain transformers, with a model card that says what was dropped.

    Example:
        >>> import tempfile
        >>> from deeper_layers import simple_cut, slice_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = slice_checkpoint("embedded", simple_cut(num_layers=30, size=20), f"{folder}/pruned")
        ...     sorted(path.name for path in out.glob("*.json"))[:2]
        ['config.json', 'generation_config.json']
    """
    check_new(out)
    folder, out = checkpoint_folder(str(source), revision), Path(out)
    shards = read_shards(folder)
    layout = layout_after(cut, folder, [tensor.name for shard in shards for tensor in shard.tensors])
    kept = [found for shard in shards if (found := layout.cut(shard)).tensors]
    added = None
    if adapter is not None:
        added = read_adapter(adapter)
        if added.base is not None:  # else the checkpoint need not be read for its hash
            added.check(model_key(str(source), folder), cut)
        kept = _with_updates(kept, layout, added)
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    files = {shard.path.name: [shard.path.stat().st_size, shard.path.stat().st_mtime_ns] for shard in shards}
    state = {"source": str(folder.resolve()), "files": files, "cut": [cut.start, cut.size]}
    _check_partial(partial, state | ({} if added is None else {"adapter": added.fingerprint}))
    try:
        _write_tensors(kept, partial)
        write_whole(partial / "config.json", (json.dumps(layout.config, indent=2, sort_keys=True) + "\n").encode())
        for path in sorted(folder.iterdir()):
            ours = {"config.json", "README.md", INDEX}
            if path.is_file() and path.name not in ours and not path.name.endswith((*OTHER_WEIGHTS, ".index.json")):
                shutil.copyfile(path, partial / path.name)
        if folder.parent.name == "snapshots":  # of the hub's cache: a commit, which no branch or tag moves
            revision = folder.name
        text = model_card(str(source), revision, cut, layout.layers, card, added)
        write_whole(partial / "README.md", text.encode())
        (partial / STATE).unlink()
        os.rename(partial, out)
    except OSError as error:
        raise InputError(f"can't write {out} ({error}): mend that and run this again, it goes on from there") from error
    return out


def check_new(out: str | Path) -> None:
    """Raise InputError where the folder to write is there already."""
    if Path(out).exists():
        raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten")


def _with_updates(shards: list[Shard], layout: Layout, adapter: Adapter) -> list[Shard]:
    """The shards, with what is added to each tensor that has adapters."""
    entries = {tensor.name: tensor.entry for shard in shards for tensor in shard.tensors}
    updates = adapter.updates(entries, layout.prefix, layout.module)
    return [
        dataclasses.replace(
            shard,
            tensors=tuple(dataclasses.replace(tensor, update=updates.get(tensor.name)) for tensor in shard.tensors),
        )
        for shard in shards
    ]


def _check_partial(partial: Path, state: dict) -> None:
    """Make the folder of work in progress; one of another slicing is begun anew."""
    path = partial / STATE
    if partial.exists() and (not path.exists() or read_json(path) != state):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    write_whole(path, json.dumps(state).encode())


def _write_tensors(shards: list[Shard], partial: Path) -> None:
    """Write the safetensors that are not there yet, and their index. Raises InputError where they don't fit."""
    total = sum(tensor.bytes for shard in shards for tensor in shard.tensors)
    done = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
    free = shutil.disk_usage(partial).free
    if total - done > free:
        raise InputError(
            f"{partial.with_suffix('')} needs {(total - done) / 1e9:.2f} GB more, where {free / 1e9:.2f} GB are free: "
            "free some space, or give a folder on another disk"
        )
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    with tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr) as bar:
        for shard, file in zip(shards, files):
            if (partial / file).exists():
                bar.update(sum(tensor.bytes for tensor in shard.tensors))
            else:
                copy_tensors(shard, partial / file, bar)
    if len(files) > 1:
        weight_map = {tensor.name: file for shard, file in zip(shards, files) for tensor in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(partial / INDEX, json.dumps(index, indent=2).encode())
