"""Damaged checkpoint folders, each the same for its number, and what comes of slicing them.

`python -m tests.fuzz.checkpoint_cases` tries many, see trying.py.
"""

import functools
import json
import os
import random
import shutil
import struct
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.pruning import drop_layers
from tests.fuzz import trying
from tests.tiny import tiny_model

LAYERS, CUT = 4, Cut(1, 2)
FAMILIES = ("llama", "qwen2", "gemma3")  # one whose layers are alike, and two with a list of their kinds
INDEX = "model.safetensors.index.json"
ODD = [None, True, False, 0, 1, -1, 2, 3, 5, 7, 2**31, 2**63, 10**15, 10**30, 0.5, -0.0, 1e400, float("nan"), "", "5",
       "model", "../x", [], [1], [[]], {}, {"a": 1}, ["full_attention"] * 3, "x" * 10_000]  # fmt: skip
NAMES = ["model.layers.99.mlp.up_proj.weight", "model.layers.-1.a", "model.layers.٣.a", "model.layers.01.a", "",
         "lm_head", "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "a" * 5000, "../x", "__metadata__",
         "\ud800"]  # fmt: skip
FILES = ["../elsewhere.safetensors", "/etc/hostname", "pytorch_model.bin", "model.safetensors/x", "", ".", "a\0b", None,
         7, "model-00002-of-00002.safetensors", "config.json", "missing.safetensors"]  # fmt: skip


@functools.cache
def originals() -> dict[str, dict[str, bytes]]:
    """Whole checkpoints, by what they are: the files of each and what is in them."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            for size in ("5GB", "60KB"):
                path = Path(folder) / f"{family} {size}"
                tiny_model(family, layers=LAYERS).save_pretrained(path, max_shard_size=size)
                found[path.name] = {file.name: file.read_bytes() for file in path.iterdir()}
    return found


def damage(draw: random.Random, folder: Path) -> str:
    """Write a damaged checkpoint; what was done to it."""
    files = dict(originals()[draw.choice(list(originals()))])
    for name, content in files.items():
        (folder / name).write_bytes(content)
    shard = draw.choice([name for name in files if name.endswith(".safetensors")])
    kind = draw.choice([of_header, of_header, of_bytes, of_config, of_config, of_index, of_files])
    return kind(draw, folder, folder / shard) or "nothing"


def of_header(draw: random.Random, folder: Path, shard: Path) -> str:
    """One value of a shard's header is another."""
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([name for name in header if name != "__metadata__"])
    other = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    what = draw.choice(["offsets", "shape", "type", "name", "gone", "twice", "swapped", "value", "metadata", "length"])
    if what == "offsets":
        place = draw.randrange(2)
        value = entry["data_offsets"][place]
        entry["data_offsets"][place] = draw.choice([value + 4, value - 4, value + 1, -value, 2**62, 0, *ODD])
    elif what == "shape":
        shape = entry["shape"]
        entry["shape"] = draw.choice([shape[::-1], [*shape, 1], shape[:-1], [-n for n in shape], [2**40] * 2, [],
                                      [1] + shape, [shape[0] * 2, *shape[1:]], draw.choice(ODD)])  # fmt: skip
    elif what == "type":
        entry["dtype"] = draw.choice(["F16", "I32", "U32", "BF16", "F64", "F8_E4M3", "Q4_0", "f32", *ODD])
    elif what == "name":
        header = {draw.choice([*NAMES, other]) if key == name else key: value for key, value in header.items()}
    elif what == "gone":
        del header[name]
    elif what == "twice":
        header[draw.choice([*NAMES, name + ".1"])] = dict(entry)
    elif what == "swapped":
        header[name], header[other] = header[other], header[name]
    elif what == "value":
        header[name] = draw.choice(ODD)
    elif what == "metadata":
        header["__metadata__"] = draw.choice([{"format": draw.choice(ODD)}, draw.choice(ODD), {"format": "tf"}])
    text = json.dumps(header).encode()
    length = len(text) if what != "length" else draw.choice([0, 1, len(text) + 1, 2**33, 2**63, len(text) * 2])
    shard.write_bytes(struct.pack("<Q", length) + text + data)
    return f"header: {what}"


def of_bytes(draw: random.Random, folder: Path, shard: Path) -> str:
    """Some bytes of a shard are others, fewer, or more."""
    content = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    what = draw.choice(["changed", "cut", "more", "empty"])
    if what == "changed":
        for _ in range(draw.choice([1, 2, 8])):
            content[draw.randrange(header)] = draw.choice([0, 34, 44, 57, 91, 123, 255])
    elif what == "cut":
        del content[draw.choice([draw.randrange(len(content)), len(content) - 1, header, draw.randrange(header)]) :]
    elif what == "more":
        content += bytes(draw.choice([1, 4, 4096]))
    shard.write_bytes(b"" if what == "empty" else content)
    return f"bytes: {what}"


def of_config(draw: random.Random, folder: Path, shard: Path) -> str:
    return of_json(draw, folder / "config.json")


def of_index(draw: random.Random, folder: Path, shard: Path) -> str:
    path = folder / INDEX
    if not path.exists():
        names = [name for name in json.loads(shard.read_bytes().partition(b"}}")[0][8:] + b"}}")]
        path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names[1:], shard.name)}))
    if draw.random() < 0.3:
        return of_json(draw, path)
    index = json.loads(path.read_text())
    name = draw.choice(list(index["weight_map"]))
    what = draw.choice(["file", "gone", "more", "all"])
    if what == "file":
        index["weight_map"][name] = draw.choice(FILES)
    elif what == "gone":
        del index["weight_map"][name]
    elif what == "more":
        index["weight_map"][draw.choice(NAMES)] = draw.choice([*FILES, shard.name])
    else:
        index["weight_map"] = dict.fromkeys(index["weight_map"], draw.choice(FILES))
    (folder.parent / "elsewhere.safetensors").write_bytes(shard.read_bytes())
    path.write_text(json.dumps(index))
    return f"index: {what}"


def of_json(draw: random.Random, path: Path) -> str:
    """One value is another, or the text is none of an object."""
    content, text = json.loads(path.read_text()), path.read_text()
    key, what = draw.choice(list(content)), draw.choice(["value", "value", "value", "gone", "more", "text"])
    if what == "value":
        content[key] = draw.choice(ODD)
    elif what == "gone":
        del content[key]
    elif what == "more":
        more = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "quantization_config": draw.choice(ODD),
                "text_config": draw.choice(ODD), "layer_types": draw.choice(ODD), "torch_dtype": draw.choice(ODD),
                "is_encoder_decoder": True, "architectures": draw.choice(ODD), "model_type": "gpt2"}  # fmt: skip
        key = draw.choice(list(more))
        content[key] = more[key]
    texts = [
        "",
        "7",
        "[]",
        "null",
        "{",
        text[: len(text) // 2],
        "[" * 100_000,
        '{"a":' * 20_000,
        text + text,
        "\ufeff" + text,
    ]
    path.write_bytes((draw.choice(texts) if what == "text" else json.dumps(content)).encode())
    return f"{path.name}: {what}"


def of_files(draw: random.Random, folder: Path, shard: Path) -> str:
    """A file is missing, or is something else."""
    path = draw.choice([shard, folder / "config.json", folder / "generation_config.json", folder / "vocab.txt"])
    what = draw.choice(["missing", "folder", "pipe", "link outside", "link to nothing", "another shard", "device"])
    if what == "another shard":
        shutil.copyfile(shard, folder / "model-00009-of-00009.safetensors")
        return f"files: {what}"
    content = path.read_bytes() if path.exists() else b"words"
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link outside":
        outside = folder.parent / "elsewhere"
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif what == "link to nothing":
        path.symlink_to(folder / "nothing")
    elif what == "device":
        path.symlink_to("/dev/zero")
    return f"files: {what}"


def outcome(source: Path, out: Path) -> str:
    """ "clear" where it is refused, "harmless" where it is sliced as transformers reads it; else what was wrong."""
    try:
        slice_checkpoint(source, CUT, out)
    except InputError as error:
        left = [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)]
        return "clear" if str(error) and "\n" not in str(error) and not left else f"unclear: {error} {left}"
    except BaseException:
        return f"unclear: {traceback.format_exc()}"
    return is_slice(source, out)


def is_slice(source: Path, out: Path) -> str:
    """Whether OUT is what the source is in transformers, but for the layers of the cut: the plain way to say it."""
    models = []
    for folder in (source, out):
        try:
            model, report = opened(folder)
        except BaseException as error:
            return f"wrong: transformers can't open {folder.name}: {error!r}"
        if report["missing_keys"] or report["mismatched_keys"]:
            return f"wrong: {folder.name} lacks {report}"
        models.append(model)
    expected, found = said(drop_layers(models[0], CUT)), said(models[1])
    if isinstance(expected, str) or isinstance(found, str):
        return "harmless" if isinstance(expected, str) and expected == found else f"wrong: {found}, expected {expected}"
    return "harmless" if torch.equal(expected, found) else "wrong: another model"


def said(model) -> torch.Tensor | str:
    """Logits, with zeros for no numbers, which a setting by which they are divided can make; or why there are none."""
    try:
        with torch.no_grad():
            return model(torch.arange(1, 25)[None]).logits.nan_to_num()
    except Exception as error:  # of settings that no layer can run with
        return repr(error)


def opened(folder: Path):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, trust_remote_code=False
    )
    return model.float().eval(), report


def outcomes(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """For each number what was damaged, and what came of it."""
    for number in numbers:
        place = folder / str(number)
        (place / "model").mkdir(parents=True)
        what = damage(random.Random(number), place / "model")
        yield number, what, outcome(place / "model", place / "out")
        shutil.rmtree(place)


if __name__ == "__main__":
    trying.main(outcomes)
