"""A checkpoint without some of its layers, written without opening the model.

Safetensors files are copied tensor by tensor as bytes, whatever their data type, with the layers above the cut
renamed (tensors.py); config_text.py says what config.json becomes. The folder appears when it is complete.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from deeper_layers import checks
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, telling
from deeper_layers.export import lineage, tensors
from deeper_layers.export.adapter_files import read_adapter
from deeper_layers.export.config_text import cut_config, state_dtype
from deeper_layers.export.model_card import model_card, read_facts
from deeper_layers.export.tensors import Changed, Layout, read_layout
from deeper_layers.files import atomic_dir, check_absent
from deeper_layers.models.checkpoint_files import folder_files, local_path, read_json
from deeper_layers.models.sources import checkpoint_folder, model_key, model_name
from deeper_layers.package_index import file_hash

TOKENIZER = "tokenizer_config.json"
MOST_HASHED = 2**31  # bytes of weights in a folder that are read for their hash: of more it would double the time
# of a checkpoint beside config.json and weights: how it generates, tokenizer, processors, template, scales, licence
NEEDED = re.compile(
    r"generation_config\.json|(tokenizer|vocab|merges|added_tokens|special_tokens_map|tekken)[\w.-]*\.(json|txt|bpe)|"
    r"[\w.-]*\.(model|tiktoken|jinja|spm)|chat_template[\w.-]*|((pre|video_pre)?processor|image_processor)_config\.json|"
    r"(hf_)?quant(ize)?_config\.json|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[\w.-]*",
    re.IGNORECASE,
)
# written anew, or of the folder as it was fetched
WRITTEN = re.compile(r"config\.json|README\.md|pruning\.json|\.gitattributes|.*\.(safetensors|index\.json)")
# entries of a configuration in which tools put a path
PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file")


def slice_checkpoint(
    source: str | Path,
    cut: Cut,
    out: str | Path,
    *,
    revision: str | None = None,
    card: str = "",
    adapter: str | Path | None = None,
    dtype: str = "auto",
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
        changed: what a rule made of the layers that stay; see `deeper_layers.rules.changing`.
        overwrite: `out` may be a folder that was written here, and that nobody changed since.
        trust_remote_code: code that comes with the checkpoint is copied too; it is not run here.

    Raises:
        InputError: the source is no such checkpoint (a shard is missing, damaged or pickled, or it is not what its
            configuration asks for), the cut does not fit it, it is not understood which of its tensors are layers, the
            adapters are of another model or cut, `out` exists, overlaps with what is read or is being written, a data
            type is to be changed of quantized weights or is too small for a number, or the disk is full.

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
    out, source = checks.place("out", out), str(source)
    check = lineage.check_our_folder if overwrite else check_absent
    check(out)
    folder = checkpoint_folder(source, revision)
    lineage.check_no_overlap(out, folder, *([] if adapter is None else [Path(adapter)]))
    layout = read_layout(folder, mtp=mtp)
    stamps = _stamps(layout)
    large = local_path(source).is_dir() and sum(size for size, _ in stamps.values()) > MOST_HASHED
    added = None if adapter is None else read_adapter(adapter)
    others, facts = _files_beside(folder, trust_remote_code), read_facts(source, folder)
    whole = Cut.of(cut.dropped) if silence else cut
    config, entries = cut_config(layout, whole), layout.entries(whole)
    if silence:
        tensors.zero_sublayers(entries, layout, cut)
    if changed:
        tensors.replace_tensors(entries, layout, changed)
    if added:
        if added.base:  # else peft wrote it, and does not say of what
            added.check(model_key(source, folder), cut)
        tensors.add_adapter(entries, layout, added)
    if cast := tensors.cast_entries(entries, layout, dtype, bool(facts.quantized)):
        state_dtype(config, cast)

    step = lineage.Step(
        model=model_name(source),
        weights=None if large else model_key(source, folder)["weights"],
        layers=layout.layers,
        dropped=[*cut.dropped],
        attention=[*cut.attention],
        mlp=[*cut.mlp],
        changed=changed.words if changed else None,
        adapter=added.fingerprint if added else None,
        dtype=cast,
        command=command,
    )
    history, files = lineage.extend_lineage(lineage.read_lineage(folder), step, facts.hub), tensors.as_files(entries)
    commit = folder.name if folder.parent.name == "snapshots" else revision  # of the hub's cache
    about = {"name": name or out.name, "config": config, "scores": card}
    about["predicting"] = "kept" if layout.mtp else "" if mtp else "left out"
    card = model_card(source, history, facts, commit, added, **about)
    texts = tensors.index_text(files) | {"config.json": _json(config), "README.md": card} | _tokenizer(folder)
    of = step.model_dump(exclude={"command", "model"}) | {"files": stamps, "mtp": layout.mtp}
    mend = "mend that and run this again, it goes on from there"
    with telling(f"can't write {out}", mend, OSError), atomic_dir(out, check, None if changed else of) as made:
        hashes = tensors.write_tensors(files, made, out)
        for file, path in others.items():
            shutil.copyfile(path, made / file)
        for file, text in texts.items():
            (made / file).write_text(text, encoding="utf-8", newline="")
        hashes |= {file: file_hash(made / file) for file in (*texts, *others)}
        (made / lineage.LINEAGE).write_text(lineage.write_lineage_text(history, hashes), encoding="utf-8")
        if _stamps(layout) != stamps:
            raise InputError(f"{folder} changed while it was copied: run this again once it stays as it is")
    return out


def weights_written(folder: Path, dtype: str, *, dequantized: bool, mtp: bool) -> Callable[[Cut], tuple[int, str]]:
    """What says of a cut how many bytes `slice_checkpoint` will write, and in which type; of a checkpoint that was made
    of a GGUF file, where it is `dequantized`."""
    layout = read_layout(folder, mtp=mtp)
    cast = tensors.cast_entries(layout.entries(UNPRUNED), layout, dtype, dequantized)

    def written(cut: Cut) -> tuple[int, str]:
        entries = layout.entries(Cut.of(cut.dropped))
        tensors.cast_entries(entries, layout, cast or "auto", False)
        types = "+".join(sorted({tensors.TORCH.get(entry.dtype, entry.dtype) for entry in entries.values()}))
        return sum(map(tensors.file_bytes, tensors.as_files(entries).values())), types

    return written


def _files_beside(folder: Path, trust_remote_code: bool) -> dict[str, Path]:
    """What a checkpoint needs beside its configuration and weights, which is copied as it is, by name. A warning names
    whatever else lies in the folder: it may be anybody's."""
    code = ".py" if trust_remote_code else ()
    found = {path.name: path for path in folder_files(folder)}
    needed = {name: path for name, path in found.items() if NEEDED.fullmatch(name) or name.endswith(code)}
    if left := sorted({path.name for path in folder.iterdir() if not WRITTEN.fullmatch(path.name)} - needed.keys()):
        said = f"left in {folder}, as no part of a checkpoint (--trust-remote-code takes code along): {', '.join(left)}"
        warnings.warn(said, stacklevel=3)
    return needed


def _stamps(layout: Layout) -> dict[str, list[int]]:
    """What changes when a file of weights does, by its path: its size and time."""
    found = {path: path.stat() for path in {tensor.path for tensor in layout.tensors}}
    return {str(path.resolve()): [stat.st_size, stat.st_mtime_ns] for path, stat in found.items()}


def _tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's configuration by its name, where older versions of transformers need other words there."""
    if not (folder / TOKENIZER).is_file():
        return {}
    before = read_json(folder / TOKENIZER)
    words = dict(before)
    if words.get("tokenizer_class") == "TokenizersBackend":  # a name that older versions don't know
        words["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(words.get("extra_special_tokens"), list):  # older versions expect names for these
        words["additional_special_tokens"] = words.pop("extra_special_tokens")
    text = _json(words)
    return {} if json.loads(text) == before else {TOKENIZER: text}


def _json(content: dict) -> str:
    """A configuration as text that says nothing of where files lay on a machine: nobody else has that."""

    def is_path(name: str, value) -> bool:
        named = name in PLACES and isinstance(value, str)
        return named and (os.path.isabs(value) or os.path.exists(local_path(value)))

    def without_paths(part: dict) -> dict:
        return {name: value for name, value in part.items() if not is_path(name, value)}

    return json.dumps(json.loads(json.dumps(content), object_hook=without_paths), indent=2) + "\n"
