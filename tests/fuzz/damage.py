"""Damage to any file of a folder, the same for the same draw: to its bytes, to a value in it, to the file itself.

Of JSON and safetensors files `CODECS` make values and back, and bytes after these, which stay as they are. Any other,
like a GGUF file, is damaged as bytes.
"""

import copy
import functools
import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load, save

ODD = [
    None, True, 0, 1, -1, 3, 32, 2**31, 2**40, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), [], {}, [[]],
    [1, 1], [2**40] * 2, ["full_attention"] * 3, {"a": 1}, [[0, 0]] * 3, "x" * 10_000,
    *"|x|5|F16|../x|/etc/hostname|pytorch_model.bin|a\0b|(a+)+$|\ud800|٣|0,0|<script>".split("|"),
]  # fmt: skip
NAMES = f"../x \ud800 {'x' * 5000} __metadata__ __proto__ 0,0 99,99 auto_map quantization_config layer_types".split(" ")
TYPES = (torch.int8, torch.int64, torch.complex64, torch.float64, torch.bfloat16, torch.bool, torch.float8_e4m3fn)
DEEP, TWICE = "nested too deep", "(twice)"  # lists in lists; an end of a name that is not written
GONE = object()
Spoil = Callable[[Path], object]  # gets a folder


class Ran:
    """What a pickle that is opened leaves behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# ---- what files say --------------------------------------------------------------------------------------------


def of_json(data: bytes) -> tuple:
    return json.loads(data), b""


def to_json(content, rest: bytes) -> bytes:
    text = json.dumps(content).replace(json.dumps(DEEP), "[" * 50_000 + "]" * 50_000)
    return text.replace(TWICE, "").encode() + rest


def of_header(data: bytes) -> tuple:
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def to_header(content, rest: bytes) -> bytes:
    text = to_json(content, b"")
    return struct.pack("<Q", len(text)) + text + rest


def of_tensors(data: bytes) -> tuple:
    return load(data), b""


def to_tensors(content, rest: bytes) -> bytes:
    return save({name: tensor.contiguous().clone() for name, tensor in content.items()}, {"format": "pt"})


CODECS = {".json": [(of_json, to_json)], ".safetensors": [(of_header, to_header), (of_tensors, to_tensors)]}


def edit(path: Path, act: Callable, codec: int = -1) -> None:
    """Do something to what a file says."""
    read, write = CODECS[path.suffix][codec]
    content, rest = read(path.read_bytes())
    act(content)
    path.write_bytes(write(content, rest))


def inside(content, above: Iterable):
    """The part of it to which names lead."""
    return functools.reduce(lambda of, step: of[step], above, content)


def rename(content: dict, new: Callable[[str], str]) -> None:
    """Other names in the same order."""
    entries = [(new(name), value) for name, value in content.items()]
    content.clear()
    content.update(entries)


# ---- drawn -----------------------------------------------------------------------------------------------------


def damage(path: Path, draw: random.Random) -> None:
    """Damage a file in one way, unless it is none since it was damaged before."""
    if path.is_file() and not path.is_symlink():
        draw.choice((damage_value, damage_value, damage_value, damage_bytes, damage_file))(path, draw)


def damage_value(path: Path, draw: random.Random) -> None:
    try:
        edit(path, functools.partial(change, draw=draw), draw.randrange(len(CODECS[path.suffix])))
    except Exception:  # it was damaged before, or that can't be written
        damage_bytes(path, draw)


def places(content, path: tuple = ()) -> list[tuple]:
    """Where every value is, those of long lists and tables by a few."""
    entries = list(content.items() if isinstance(content, dict) else enumerate(content))
    found = []
    for key, value in entries[:40] + entries[40:][-2:]:
        found += [(*path, key)] + (places(value, (*path, key)) if isinstance(value, dict | list) else [])
    return found


def change(content: dict, draw: random.Random) -> None:
    """Take away a value, put one under another name too, or something odd in its place; several times."""
    if draw.random() < 0.3:
        change(content, draw)
    top = draw.choice(list(content))
    *above, last = draw.choice(places({top: content[top]}))
    of = inside(content, above)
    value, way = of[last], draw.random()
    if isinstance(value, torch.Tensor) and way < 0.5:
        of[last] = odd_tensor(value, draw)
    elif way < 0.2:
        of.pop(last)
    elif way < 0.5 and isinstance(of, dict):
        numbered = re.sub(r"\d+", draw.choice(("99", "-1", "01", "٣", "x", "")), last, count=1)
        name = draw.choice((*NAMES, numbered, numbered, numbered, draw.choice(list(of)) + TWICE, last + ".1"))
        if draw.random() < 0.5:
            rename(of, lambda old: name if old == last else old)
        else:
            of[name] = value
    elif way < 0.7 and isinstance(value, int | float):
        of[last] = draw.choice((-value, value + 1, value - 4, value * 1000, str(value)))
    else:
        of[last] = copy.deepcopy(draw.choice([*ODD, DEEP]))


def odd_tensor(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
    filled = tensor.clone()
    filled.view(-1)[draw.randrange(tensor.numel())] = draw.choice((float("nan"), -float("inf"), 3e38))
    shaped = draw.choice((tensor.T, tensor[:1], tensor[..., :1], tensor[0], tensor[None], tensor[:0]))
    return draw.choice((filled, filled, tensor * 1e38, tensor.to(draw.choice(TYPES)), shaped))


def damage_bytes(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    at = min(len(data), draw.randrange(draw.choice((9, 300, len(data) + 1))))
    odd = draw.choice((bytes([draw.randrange(256)]), bytes(8), b"\xff\xfe", b"NaN", b"[" * 60_000, b"{", b"", data[:9]))
    other = data[:at] + odd + data[at + 1 :]
    path.write_bytes(draw.choice((other, other, other, data[:at], data[:at], data[at:], data + odd, odd + data, odd)))


def damage_file(path: Path, draw: random.Random) -> None:
    """Something else in its place: nothing, a folder, a pipe, a link out of the folder, a device, a pickle."""
    elsewhere, way = path.parent.parent / f"elsewhere{path.suffix}", draw.randrange(8)
    if way == 0:
        shutil.copyfile(path, path.with_name(f"model-00009-of-00009{path.suffix}"))
        return
    path.rename(elsewhere)
    if way == 1:
        path.mkdir()
    elif way == 2:
        os.mkfifo(path)
    elif way == 3:
        for name in (path.name, "adapter_model.bin", "pytorch_model.bin"):
            torch.save({"x": Ran(elsewhere.with_name("ran"))}, path.with_name(name))
    elif way < 7:
        path.symlink_to((elsewhere, "nothing", "/dev/zero")[way - 4])


# ---- by hand ---------------------------------------------------------------------------------------------------


def put(file: str, *place, codec: int = -1) -> Spoil:
    """Another value in a file: the names that lead to it, and it, or what makes it of the old one, or GONE."""
    *above, last, value = place

    def act(content) -> None:
        of = inside(content, above)
        if value is GONE:
            of.pop(last)
        else:
            of[last] = value(of[last]) if callable(value) else value

    return lambda folder: edit(folder / file, act, codec)


def renamed(file: str, old: str, new: str) -> Spoil:
    """Names in a file in which a word is another."""
    return lambda folder: edit(folder / file, lambda content: rename(content, lambda name: name.replace(old, new)))


def replaced(file: str, old: bytes, new: bytes) -> Spoil:
    """Other bytes where these come first in a file."""

    def spoil(folder: Path) -> None:
        before, found, after = (folder / file).read_bytes().partition(old)
        assert found
        write(file, before + new + after)(folder)

    return spoil


def instead(file: str, make: Spoil = lambda path: None) -> Spoil:
    """What `make` makes in the place of a file, or nothing."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return spoil


def link(file: str, to: str) -> Spoil:
    return instead(file, lambda path: path.symlink_to(to))


def write(file: str, content: bytes | str = "years of work") -> Spoil:
    """A file, in folders that are made where they are missing."""

    def spoil(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil
