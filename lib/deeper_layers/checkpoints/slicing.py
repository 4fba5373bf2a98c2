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
import warnings
from pathlib import Path

from tqdm import tqdm

from deeper_layers.checkpoints.adapter_files import Adapter, read_adapter
from deeper_layers.checkpoints.layer_tensors import Layout, layout_after
from deeper_layers.checkpoints.model_card import model_card
from deeper_layers.checkpoints.older_words import tokenizer_words
from deeper_layers.checkpoints.partial_folder import STATE, check_apart, check_new, is_complete, partial_folder
from deeper_layers.checkpoints.tensor_files import copy_tensors
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.files.whole import write_whole
from deeper_layers.models.checkpoint_files import INDEX, PICKLED, SINGLE, Shard, folder_files, read_json, read_shards
from deeper_layers.models.opening import checkpoint_folder
from deeper_layers.models.sources import model_key

TOKENIZER = "tokenizer_config.json"
OTHER_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLED)


def slice_checkpoint(
    source: str | Path,
    cut: Cut,
    out: str | Path,
    *,
    revision: str | None = None,
    card: str = "",
    adapter: str | Path | None = None,
    mtp: bool = True,
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
        mtp: layers for multi-token prediction, which come after the last layer, stay; else they are left out.

    Raises:
        InputError: the source is no such checkpoint (a shard is missing or damaged, its weights are pickled, are not
            those that its configuration asks for, or a file leads out of its folder), the cut does not fit it, some of
            its tensors belong to layers in a way that is not understood, the adapters are of another model or cut,
            `out` exists or overlaps with what is read, OUT.partial is not ours or another process writes it, or the
            disk is full.

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
    out = Path(out)
    check_new(out)
    folder = checkpoint_folder(str(source), revision)
    check_apart(out, folder, *([] if adapter is None else [Path(adapter)]))
    shards, others = read_shards(folder), _other_files(folder)
    tokenizer = _older_tokenizer(folder)
    layout = layout_after(cut, folder, shards, mtp=mtp)
    for said in layout.warnings:
        warnings.warn(f"{source} without these layers: {said}", stacklevel=2)
    kept = [found for shard in shards if (found := layout.cut(shard)).tensors]
    added = None
    if adapter is not None:
        added = read_adapter(adapter)
        if added.base is not None:  # else the checkpoint need not be read for its hash
            added.check(model_key(str(source), folder), cut)
        kept = _with_updates(kept, layout, added)
    if folder.parent.name == "snapshots":  # of the hub's cache: a commit, which no branch or tag moves
        revision = folder.name
    texts = {
        "config.json": json.dumps(layout.config, indent=2) + "\n",
        "README.md": model_card(str(source), revision, cut, layout.layers, card, added),
        **tokenizer,
    }
    others = [path for path in others if path.name not in texts]
    files = _shard_names(len(kept))
    state = {
        "source": str(folder.resolve()),
        "files": _stamps(shards),
        "cut": [cut.start, cut.size],
        "adapter": None if added is None else added.fingerprint,
        "writes": [*files, INDEX, *texts, *(path.name for path in others)],
    }
    try:
        if is_complete(out, state):
            return out
        with partial_folder(out, state) as partial:
            _write_tensors(dict(zip(files, kept)), partial)
            for path in others:
                _copy_file(path, partial / path.name)
            for name, text in texts.items():
                write_whole(partial / name, text.encode())
            if _stamps(shards) != state["files"]:
                raise InputError(f"{folder} changed while it was copied: run this again once it stays as it is")
    except OSError as error:
        raise InputError(f"can't write {out} ({error}): mend that and run this again, it goes on from there") from error
    return out


def _other_files(folder: Path) -> list[Path]:
    """What is copied as it is: tokenizer, code, licence and the like."""
    ours = {"config.json", "README.md", STATE}
    return [
        path for path in folder_files(folder)
        if path.name not in ours and not path.name.endswith((*OTHER_WEIGHTS, ".index.json"))
    ]  # fmt: skip


def _older_tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's configuration by its name, where older versions of transformers need other words there."""
    path = folder / TOKENIZER
    if not path.is_file():
        return {}
    words = read_json(path)
    older = tokenizer_words(words)
    return {} if older == words else {TOKENIZER: json.dumps(older, indent=2) + "\n"}


def _stamps(shards: list[Shard]) -> dict[str, list[int]]:
    """What changes when a shard does."""
    stats = {shard.path.name: shard.path.stat() for shard in shards}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in stats.items()}


def _copy_file(path: Path, target: Path) -> None:
    with open(path, "rb") as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


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


def _shard_names(number: int) -> list[str]:
    return [f"model-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)] if number > 1 else [SINGLE]


def _write_tensors(shards: dict[str, Shard], partial: Path) -> None:
    """Write the safetensors that are not there yet, by name, and their index. InputError where they don't fit."""
    total = sum(tensor.bytes for shard in shards.values() for tensor in shard.tensors)
    done = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
    free = shutil.disk_usage(partial).free
    if total - done > free:
        raise InputError(
            f"{partial.with_suffix('')} needs {(total - done) / 1e9:.2f} GB more, where {free / 1e9:.2f} GB are free: "
            "free some space, or give a folder on another disk"
        )
    with tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr) as bar:
        for file, shard in shards.items():
            if (partial / file).exists():
                bar.update(sum(tensor.bytes for tensor in shard.tensors))
            else:
                copy_tensors(shard, partial / file, bar)
    if len(shards) > 1:
        weight_map = {tensor.name: file for file, shard in shards.items() for tensor in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(partial / INDEX, json.dumps(index, indent=2).encode())
