"""A checkpoint without some of its layers, written without opening the model.

Safetensors files are copied tensor by tensor as bytes, whatever their data type, with the layers above the cut
renamed; layer_tensors.py says which these are and what config.json becomes. Healed adapters can be added on the
way, some rows of a tensor at a time. Never more than a few megabytes are held. The folder appears when it is
complete.
"""

import json
import os
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import AutoTokenizer

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.export.adapter_files import read_adapter
from deeper_layers.export.layer_tensors import layout_after
from deeper_layers.export.lineage import (
    LINEAGE,
    Step,
    check_apart,
    check_our_folder,
    lineage_after,
    read_lineage,
    write_lineage_text,
)
from deeper_layers.export.model_card import Made, model_card
from deeper_layers.export.source_facts import read_facts
from deeper_layers.export.tensor_edits import (
    AS_IT_IS,
    DTYPES,
    TORCH,
    Changed,
    cast_entries,
    check_plain,
    replace_tensors,
    smallest_dtype,
    state_dtype,
    zero_sublayers,
)
from deeper_layers.export.tensor_writer import Edit, Entry, write_tensors
from deeper_layers.export.transformers4_config import convert_tokenizer_config
from deeper_layers.files import atomic_dir, check_absent, clear
from deeper_layers.models.checkpoint_files import (
    SINGLE,
    Shard,
    folder_files,
    is_gguf,
    local_path,
    read_json,
    read_shards,
)
from deeper_layers.models.opening import checkpoint_folder
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import find_model, model_key, model_name
from deeper_layers.package_index import file_hash

TOKENIZER = "tokenizer_config.json"
# of a checkpoint beside config.json and weights: how it generates, tokenizer, processors, template, scales, licence
NEEDED = re.compile(
    r"generation_config\.json|(tokenizer|vocab|merges|added_tokens|special_tokens_map|tekken)[\w.-]*\.(json|txt|bpe)|"
    r"[\w.-]*\.(model|tiktoken|jinja|spm)|chat_template[\w.-]*|((pre|video_pre)?processor|image_processor)_config\.json|"
    r"(hf_)?quant(ize)?_config\.json|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[\w.-]*",
    re.IGNORECASE,
)
# entries of a configuration in which tools put a path
PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file")
MOST_HASHED = 2**31  # bytes of weights in a folder that are read for their hash: of more it would double the time


def slice_checkpoint(
    source: str | Path,
    cut: Cut,
    out: str | Path,
    *,
    revision: str | None = None,
    card: str = "",
    adapter: str | Path | None = None,
    dtype: str = AS_IT_IS,
    command: str | None = None,
    name: str | None = None,
    mtp: bool = True,
    silence: bool = False,
    changed: Changed | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write a checkpoint without the layers of a cut: the same tensors as `drop_layers` and `save_pretrained` give.

    Args:
        source: a folder with config.json and safetensors, a hub id, a `.gguf` file, or "embedded".
        cut: the layers to drop.
        out: the folder to write, which must not exist. What an interrupted run of the same copied is not copied again.
        revision: of a hub id.
        card: what the model card says besides source and cut.
        adapter: a folder of adapters trained on the pruned model, as `save_adapters` or peft writes it: they are added
            to the weights, as `merge_adapters` does.
        dtype: "float32", "bfloat16" or "float16", to which real numbers are cast; "auto" leaves them as they are, and
            writes those of a GGUF file in the smallest of these that holds every one exactly.
        command: that the card says it was made by.
        name: by which the card says the checkpoint is opened, where that is not the name of `out`.
        mtp: layers for multi-token prediction, which come after the last layer, stay; else they are left out.
        silence: of layers that lose their attention or MLP, write zeros where that ends: as `silence_sublayers`, it
            gives the same numbers and saves no memory. Else such a cut is refused.
        changed: what a rule made of the layers that stay; see `deeper_layers.rules.bridges`.
        overwrite: `out` may be a folder that was written here, and that nobody changed since.
        trust_remote_code: code that comes with the checkpoint is copied too; it is not run here.

    Raises:
        InputError: the source is no such checkpoint (a shard is missing or damaged, its weights are pickled, are not
            those that its configuration asks for, or a file leads out of its folder), the cut does not fit it, some of
            its tensors belong to layers in a way that is not understood, the adapters are of another model or cut,
            `out` exists or overlaps with what is read, another process writes it, a data type is to be changed of
            quantized weights or is too small for a number, or the disk is full.

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
    out, check = Path(out), check_our_folder if overwrite else check_absent
    if out.name in ("", "..") or "\0" in str(out):
        raise InputError(f"out is {str(out)!r}, expected the path of a folder that does not exist")
    clear(out)
    check(out)
    source, folder = str(source), checkpoint_folder(str(source), revision)
    check_apart(out, folder, *([] if adapter is None else [Path(adapter)]))
    shards, others = read_shards(folder), _files_beside(folder, trust_remote_code)
    layout = layout_after(Cut.of(cut.dropped) if silence else cut, folder, shards, mtp=mtp)
    for said in layout.warnings:
        warnings.warn(f"{source} without these layers: {said}", stacklevel=2)
    _warn_of_tokenizer(folder)
    kept, added = layout.entries(shards), None
    if silence:
        kept = _with_edits(kept, zero_sublayers(kept, layout, cut, folder))
    if changed is not None:
        kept = _with_edits(kept, replace_tensors(kept, layout, changed))
    if adapter is not None:
        added = read_adapter(adapter)
        if added.base is not None:  # else the checkpoint need not be read for its hash
            added.check(model_key(source, folder), cut)
        kept = _with_edits(kept, added.edits(kept, layout.prefix, layout.module))
    if folder.parent.name == "snapshots":  # of the hub's cache: a commit, which no branch or tag moves
        revision = folder.name
    quantized = _quantized(source)
    wanted, config = _dtype(dtype, folder, kept, bool(quantized)), layout.config
    if wanted is not None:
        kept, config = cast_entries(kept, wanted), state_dtype(config, wanted)
    config = _without_paths(config)
    step = Step(
        model=model_name(source),
        weights=None,
        layers=layout.layers,
        dropped=list(cut.dropped),
        attention=list(cut.attention),
        mlp=list(cut.mlp),
        changed=None if changed is None else changed.words,
        adapter=None if added is None else added.fingerprint,
        dtype=wanted,
        command=command,
    )
    before = read_lineage(folder)  # one of another model is found before anything is written
    lineage = lineage_after(before, step)
    texts = {"config.json": json.dumps(config, indent=2) + "\n", "README.md": "", **_older_tokenizer(folder)}
    others = {path.name: path for path in others if path.name not in texts}
    files, stamps = _files(kept), _stamps(shards)
    of = step.model_dump(exclude={"command", "model"}) | {
        "source": str(folder.resolve()),
        "files": stamps,
        "mtp": layout.mtp,
        "changed": None if changed is None else changed.fingerprint,
    }
    try:
        with (
            atomic_dir(out, check, of) as made,
            ThreadPoolExecutor(1) as beside,
        ):
            weights = beside.submit(_weights, source, folder, shards)  # takes as long as it is to copy them
            hashes = write_tensors(files, made, out)
            for path in others.values():
                shutil.copyfile(path, made / path.name)
            step.weights = weights.result()
            facts = read_facts(source, step.weights, folder)
            if before is None:
                lineage.base_model = facts.hub
            predicting = "kept" if layout.mtp else "" if mtp else "left out"
            told = Made(source, name or out.name, facts, lineage, config, quantized, revision, added, predicting)
            texts["README.md"] = model_card(told, card)
            for file, text in texts.items():
                (made / file).write_text(text, encoding="utf-8", newline="")
            hashes |= {file: file_hash(made / file) for file in (*texts, *others)}
            (made / LINEAGE).write_text(write_lineage_text(lineage, hashes), encoding="utf-8")
            if _stamps(shards) != stamps:
                raise InputError(f"{folder} changed while it was copied: run this again once it stays as it is")
    except OSError as error:
        raise InputError(f"can't write {out} ({error}): mend that and run this again, it goes on from there") from error
    return out


def bytes_after(cut: Cut, folder: Path, dtype: str, *, dequantized: bool, mtp: bool = True) -> tuple[int, str]:
    """How many bytes of weights a checkpoint will have without the layers of a cut, and in which type, by its headers.

    `dequantized`: it was made of a GGUF file; `mtp` as for `slice_checkpoint`. Raises InputError as that
    does for its source.
    """
    shards = read_shards(folder)
    kept = layout_after(Cut.of(cut.dropped), folder, shards, mtp=mtp).entries(shards)
    if wanted := _dtype(dtype, folder, kept, dequantized):
        kept = cast_entries(kept, wanted)
    types = sorted({entry.dtype for entry in kept})
    return sum(entry.bytes for entry in kept), "+".join(TORCH.get(name, name) for name in types)


def _files_beside(folder: Path, trust_remote_code: bool) -> list[Path]:
    """What a checkpoint needs beside its configuration and weights, which is copied as it is.

    Whatever else lies in the folder is named in a warning, and stays where it is: it may be anybody's.
    """
    others = [path for path in folder_files(folder) if not path.name.endswith((".safetensors", ".index.json"))]
    code = [path for path in others if path.suffix == ".py"]
    needed = [path for path in others if NEEDED.fullmatch(path.name)] + (code if trust_remote_code else [])
    ours = {"config.json", "README.md", LINEAGE, ".gitattributes", *(path.name for path in needed)}
    left = [path.name for path in others if path.name not in ours]
    left += [f"{path.name}/" for path in folder.iterdir() if path.is_dir()]
    if left:
        how = "; --trust-remote-code takes code along" if code and not trust_remote_code else ""
        warnings.warn(f"left in {folder}, as no part of a checkpoint: {', '.join(sorted(left))}{how}", stacklevel=3)
    return needed


def _dtype(asked: str, folder: Path, entries: list[Entry], dequantized: bool) -> str | None:
    """To which data type weights are cast; None where they stay as they are."""
    if asked not in (AS_IT_IS, *DTYPES):
        raise InputError(f"dtype is {asked!r:.40}, expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    if asked == AS_IT_IS:
        return smallest_dtype(entries) if dequantized else None
    check_plain(entries, read_json(folder / "config.json"), folder, "cast: leave dtype out, and they are copied")
    return asked


def _quantized(source: str) -> str:
    """Kind of weights of a GGUF file; nothing of any other source."""
    return find_model(source, hashed=False).quantized if source in PACKAGED or is_gguf(source) else ""


def _weights(source: str, folder: Path, shards: list[Shard]) -> str | None:
    """The hash of a source's weights, where it is known or soon found."""
    large = sum(tensor.bytes for shard in shards for tensor in shard.tensors) > MOST_HASHED
    return None if large and local_path(source).is_dir() else model_key(source, folder)["weights"]


def _warn_of_tokenizer(folder: Path) -> None:
    """Say where the tokenizer does not open here. It is copied all the same: other tools, or its own code, may do."""
    if not any(folder.glob("tokenizer*")):
        return
    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        warnings.warn(f"the tokenizer of {folder} does not open ({first_line(error)}): it is copied so", stacklevel=3)


def _older_tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's configuration by its name, where older versions of transformers need other words there."""
    path = folder / TOKENIZER
    if not path.is_file():
        return {}
    words = read_json(path)
    older = _without_paths(convert_tokenizer_config(words))
    return {} if older == words else {TOKENIZER: json.dumps(older, indent=2) + "\n"}


def _without_paths(words: dict) -> dict:
    """A configuration that says nothing of where files lay on a machine: nobody else has that."""
    found = {name: _without_paths(value) if isinstance(value, dict) else value for name, value in words.items()}
    return {name: value for name, value in found.items() if not (name in PLACES and _is_path(value))}


def _is_path(value) -> bool:
    return isinstance(value, str) and (os.path.isabs(value) or os.path.exists(local_path(value)))


def _stamps(shards: list[Shard]) -> dict[str, list[int]]:
    """What changes when a shard does."""
    stats = {shard.path.name: shard.path.stat() for shard in shards}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in stats.items()}


def _with_edits(entries: list[Entry], edits: dict[str, Edit]) -> list[Entry]:
    return [entry.edited(edits[entry.name]) if entry.name in edits else entry for entry in entries]


def _files(entries: list[Entry]) -> dict[str, list[Entry]]:
    """The files to write, by name: as the tensors are divided in the source."""
    shards: dict[Path, list[Entry]] = {}
    for entry in entries:
        shards.setdefault(entry.shard.path, []).append(entry)
    number = len(shards)
    names = [f"model-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)] if number > 1 else [SINGLE]
    return dict(zip(names, shards.values(), strict=True))
