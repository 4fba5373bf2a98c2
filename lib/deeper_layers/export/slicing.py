"""A checkpoint without some of its layers, written without opening the model.

Safetensors files are copied tensor by tensor as bytes, whatever their data type, and the layers above the cut are
renumbered (tensors.py); config_text.py cuts config.json. The folder appears when it is complete.
"""

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from deeper_layers import checks
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.export import lineage, tensors
from deeper_layers.export.adapter_files import Adapter, read_adapter
from deeper_layers.export.config_text import cut_config, set_dtype
from deeper_layers.export.model_card import read_facts, render_model_card
from deeper_layers.export.tensors import Changed, Layout, read_layout
from deeper_layers.files import atomic_dir, check_absent
from deeper_layers.models.checkpoint_files import list_plain_files, local_path, read_json
from deeper_layers.models.configuration import text_part
from deeper_layers.models.sources import checkpoint_folder, model_key, model_name

TOKENIZER_CONFIG = "tokenizer_config.json"
# bytes of weights in a folder up to which they are hashed: for more it would double the time
MOST_HASHED = 2**31
# other files of a checkpoint: generation settings, tokenizer, processors, chat template, scales, licence
NEEDED_FILES = re.compile(
    r"generation_config\.json|(tokenizer|vocab|merges|added_tokens|special_tokens_map|tekken)[\w.-]*\.(json|txt|bpe)|"
    r"[\w.-]*\.(model|tiktoken|jinja|spm)|chat_template[\w.-]*|((pre|video_pre)?processor|image_processor)_config\.json|"
    r"(hf_)?quant(ize)?_config\.json|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[\w.-]*",
    re.IGNORECASE,
)
# files that are written anew, or that only belong to a download
WRITTEN = re.compile(
    r"config\.json|README\.md|pruning\.json|\.gitattributes|.*\.(safetensors|index\.json)"
)
# entries of a configuration that may hold a path
PATH_KEYS = (
    "_name_or_path",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "special_tokens_map_file",
)


@checks.check_types
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
    trust_remote_code: bool = False,
) -> Path:
    """Write a checkpoint without the layers of a cut. Its tensors equal those of `drop_layers` and `save_pretrained`.

    Args:
        source: a folder with config.json and safetensors, a hub id, a `.gguf` file, or "embedded".
        cut: the layers to drop.
        out: the folder to write, which must not exist. After an interruption the same call keeps the files it copied.
        revision: of a hub id.
        card: text of the model card, besides source and cut.
        adapter: a folder of adapters trained on the pruned model, as `save_adapters` or peft writes it. They are added
            to the weights, as `merge_adapters` does.
        dtype: "float32", "bfloat16" or "float16", to which real numbers are cast; "auto" keeps their data types, and
            writes a GGUF file's numbers in the smallest of these that holds all of them exactly.
        command: the command that the card names.
        name: the name by which the card opens the checkpoint, if it is not that of `out`.
        mtp: keep layers for multi-token prediction, which come after the last layer; else they are left out.
        silence: write zeros into the last matrices of attentions or MLPs that the cut drops alone. As with
            `zero_sublayers`, numbers are the same and no memory is saved. Without it such a cut is refused.
        changed: how a rule changed the layers that stay.
        trust_remote_code: also copy code that comes with the checkpoint; it is not run here.

    Raises:
        InputError: an argument is of another type, the source is no such checkpoint (a shard is missing, damaged or
            pickled, or does not match the configuration), the cut does not fit it, its layers can't be told from its
            other tensors, the adapters are of another model or cut, `out` exists, overlaps with what is read or is
            being written, the data type of quantized weights is to be changed or is too small for a number, or the disk
            is full.

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
    out = checks.check_path("out", out)
    source = str(source)
    check_absent(out)
    folder = checkpoint_folder(source, revision)
    lineage.check_no_overlap(out, folder, adapter)
    layout = read_layout(folder, mtp=mtp)
    stamps = _file_stamps(layout)
    adapters = None if adapter is None else read_adapter(adapter)
    other_files = _select_other_files(folder, trust_remote_code)
    facts = read_facts(source, folder)
    layer_cut = Cut.of(cut.dropped) if silence else cut
    config = cut_config(layout, layer_cut)
    entries = _select_tensors(layout, cut, silence, changed)
    if adapters:
        if adapters.base:  # else peft wrote the folder, and the base is not recorded
            adapters.check(model_key(source, folder), cut)
        _apply_adapters(entries, layout, adapters, config)
    cast = _cast_tensors(entries, layout, config, dtype, bool(facts.quantized))
    step = lineage.Step.of(
        cut,
        model=model_name(source),
        weights=_hash_weights(source, folder, stamps),
        layers=layout.layers,
        changed=changed and changed.words,
        adapter=adapters and adapters.fingerprint,
        dtype=cast,
        command=command,
    )
    history = lineage.extend_lineage(lineage.read_lineage(folder), step, facts.hub)
    files = tensors.group_files(entries)
    # a folder in the hub's cache
    commit = folder.name if folder.parent.name == "snapshots" else revision
    context = {"name": name or out.name, "config": config, "scores": card}
    context["predicting"] = _describe_mtp(layout.mtp, mtp)
    texts = tensors.format_index(files) | _fix_tokenizer(folder)
    texts["config.json"] = _dump(config)
    texts["README.md"] = render_model_card(history, facts, commit, adapters, **context)
    key = step.model_dump(exclude={"command", "model"}) | {"files": stamps, "mtp": layout.mtp}
    with _writing(out, None if changed else key) as partial:
        tensors.write_tensors(files, partial, out)
        _write_others(partial, other_files, texts)
        (partial / lineage.LINEAGE).write_text(lineage.format_lineage(history), encoding="utf-8")
        if _file_stamps(layout) != stamps:
            raise InputError(
                f"{folder} changed while it was copied: run this again once it stays as it is"
            )
    return out


@contextlib.contextmanager
def _writing(out: Path, key: dict | None) -> Iterator[Path]:
    """The folder that becomes `out`; an interrupted one of the same key is continued. See `atomic_dir`."""
    advice = "fix this and run it again, it goes on from there"
    with (
        as_input_error(f"can't write {out}", advice, OSError),
        atomic_dir(out, description=key) as partial,
    ):
        yield partial


def _write_others(folder: Path, copied: dict[str, Path], texts: dict[str, str]) -> None:
    """Copy some files into a folder, then write texts, each under its name."""
    for name, path in copied.items():
        shutil.copyfile(path, folder / name)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")


def _select_tensors(
    layout: Layout, cut: Cut, silence: bool, changed: Changed | None
) -> tensors.Entries:
    """The tensors of the layers that stay; with `silence` all layers stay, and what the cut drops alone is zero."""
    if silence:
        entries = layout.entries(Cut.of(cut.dropped))
        tensors.zero_sublayers(entries, layout, cut)
    else:
        entries = layout.entries(cut)
    if changed:
        tensors.replace_tensors(entries, layout, changed)
    return entries


def _apply_adapters(
    entries: tensors.Entries, layout: Layout, adapters: Adapter, config: dict
) -> None:
    """Add what adapters learned to the weights; `config` says so where the head gets weights of its own."""
    tensors.add_adapter(entries, layout, adapters)
    if tensors.replace_weights(entries, layout, adapters):
        for part in (config, text_part(config)):
            part["tie_word_embeddings"] = False


def _cast_tensors(
    entries: tensors.Entries, layout: Layout, config: dict, dtype: str, dequantized: bool
) -> str | None:
    """Cast tensors to a data type, and let `config` say so; None where they stay as they are."""
    cast = tensors.cast_entries(entries, layout, dtype, dequantized)
    if cast:
        set_dtype(config, cast)
    return cast


def _describe_mtp(layers: int | None, wanted: bool) -> str:
    """What became of layers for multi-token prediction: "kept" or "left out"; "" where there are none."""
    if not wanted:
        return "left out"
    return "kept" if layers else ""


def _hash_weights(source: str, folder: Path, stamps: dict[str, list[int]]) -> str | None:
    """The fingerprint of a source's weights; None for a folder of so many that they are not read for it."""
    if local_path(source).is_dir() and sum(size for size, _ in stamps.values()) > MOST_HASHED:
        return None
    return model_key(source, folder)["weights"]


def build_size_function(
    folder: Path, dtype: str, *, dequantized: bool, mtp: bool
) -> Callable[[Cut], tuple[int, str]]:
    """A function from a cut to the bytes that `slice_checkpoint` would write, and their type. See `cast_entries`."""
    layout = read_layout(folder, mtp=mtp)
    cast = tensors.cast_entries(layout.entries(UNPRUNED), layout, dtype, dequantized)

    def count_bytes(cut: Cut) -> tuple[int, str]:
        entries = layout.entries(Cut.of(cut.dropped))
        tensors.cast_entries(entries, layout, cast or "auto", False)
        types = "+".join(
            sorted(
                {tensors.TORCH_NAMES.get(entry.dtype, entry.dtype) for entry in entries.values()}
            )
        )
        return sum(map(tensors.count_file_bytes, tensors.group_files(entries).values())), types

    return count_bytes


def _select_other_files(folder: Path, trust_remote_code: bool) -> dict[str, Path]:
    """The files that a checkpoint needs besides configuration and weights, by name; they are copied unchanged. A
    warning names all other files in the folder, which may not belong to the model."""
    code = ".py" if trust_remote_code else ()
    files = {path.name: path for path in list_plain_files(folder)}
    needed = {
        name: path
        for name, path in files.items()
        if NEEDED_FILES.fullmatch(name) or name.endswith(code)
    }
    rest = sorted(
        {path.name for path in folder.iterdir() if not WRITTEN.fullmatch(path.name)} - needed.keys()
    )
    if rest:
        text = f"left in {folder}, as no part of a checkpoint (--trust-remote-code takes code along): {', '.join(rest)}"
        warnings.warn(text, stacklevel=3)
    return needed


def _file_stamps(layout: Layout) -> dict[str, list[int]]:
    """Size and modification time of each file of weights, by path: they show whether it was changed."""
    stamps = {}
    for path in {tensor.path for tensor in layout.tensors}:
        stat = path.stat()
        stamps[str(path.resolve())] = [stat.st_size, stat.st_mtime_ns]
    return stamps


def _fix_tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's configuration by its file name, if older versions of transformers need other entries in it."""
    if not (folder / TOKENIZER_CONFIG).is_file():
        return {}
    old = read_json(folder / TOKENIZER_CONFIG)
    new = dict(old)
    if new.get("tokenizer_class") == "TokenizersBackend":  # a name that older versions don't know
        new["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(new.get("extra_special_tokens"), list):  # older versions expect names for these
        new["additional_special_tokens"] = new.pop("extra_special_tokens")
    text = _dump(new)
    return {} if json.loads(text) == old else {TOKENIZER_CONFIG: text}


def _dump(content: dict) -> str:
    """A configuration as JSON without paths of files on this machine, which nobody else has."""

    def is_path(name: str, value) -> bool:
        is_entry = name in PATH_KEYS and isinstance(value, str)
        return is_entry and (os.path.isabs(value) or os.path.exists(local_path(value)))

    def without_paths(part: dict) -> dict:
        return {name: value for name, value in part.items() if not is_path(name, value)}

    return json.dumps(json.loads(json.dumps(content), object_hook=without_paths), indent=2) + "\n"
