"""Folders of strangers, damaged: a checkpoint, a GGUF file, adapters. Each ends in one line, or as it should.

`DAMAGED=5000 pytest -m thorough tests/test_damage.py` tries so many of each kind.
"""

import contextlib
import functools
import io
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.gguf_files import slice_gguf
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.healing.adapters import add_adapters, load_adapters, merge_adapters, save_adapters
from deeper_layers.models.sources import model_key
from deeper_layers.pruning import drop_layers
from tests.fuzz.damage import damage, write
from tests.tiny import byte_tokenizer, shared_model, tiny_model, write_gguf

CUT, SLOWEST = Cut(1, 2), 30  # seconds
Files = dict[str, bytes]
SIZES = ("5GB", "60KB")
OURS = ("GGUF.", "pruning.", "general.size_label")  # what is not copied
BESIDE = ("README.md", "generation_config.json")


# ---- what is whole ---------------------------------------------------------------------------------------------


def made(make: Callable[[Path], object]) -> Files:
    """What a function writes into a folder, but what is copied as it is."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        make(Path(folder))
        paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in BESIDE]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def checkpoints() -> list[Files]:
    """Of layers that are alike, and of two families with a list of their kinds, each in one file and in several."""
    models = [tiny_model(family, layers=4) for family in ("llama", "qwen2", "gemma3")]
    saved = [functools.partial(model.save_pretrained, max_shard_size=size) for model in models for size in SIZES]
    return list(map(made, saved))


def gguf_files() -> list[Files]:
    tokenizer = byte_tokenizer()
    model = tiny_model("llama", layers=4, vocab_size=len(tokenizer))
    return [made(lambda folder: write_gguf(model, tokenizer, folder / "model.gguf"))]


def adapters() -> list[Files]:
    """With the model that they are of, in another folder."""

    def make(folder: Path) -> None:
        shared_model("llama").save_pretrained(folder / "whole")
        (folder / "whole" / "generation_config.json").unlink()  # it counts in the key, and is not among what is made
        adapted = add_adapters(drop_layers(shared_model("llama"), CUT), rank=3, alpha=5, dropout=0.0)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.01)
        save_adapters(adapted, folder / "adapter", model_key(str(folder / "whole"), folder / "whole"), CUT)

    return [made(make)]


def slice_folder(given: Path, out: Path) -> str:
    """The pruned model as transformers opens it is what it opens, without these layers."""
    slice_checkpoint(given, CUT, out)
    opened = [AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True) for folder in (given, out)]
    lacking = [report[key] for _, report in opened for key in ("missing_keys", "mismatched_keys") if report[key]]
    expected, found = answer(drop_layers(opened[0][0], CUT)), answer(opened[1][0])
    return f"it lacks {lacking}" if lacking else "" if expected == found else "another model"


def answer(model) -> list | str:
    """Logits, with zeros for no numbers, which a setting by which they are divided can make; or why there are none."""
    try:
        return model.float().eval()(torch.arange(1, 25)[None]).logits.nan_to_num().tolist()
    except Exception as error:  # of settings that no layer can run with
        return repr(error)


def slice_file(given: Path, out: Path) -> str:
    """A GGUF file as gguf reads it, without these layers."""
    slice_gguf(given / "model.gguf", CUT, out.with_suffix(".gguf"))
    expected, found = described(given / "model.gguf", CUT), described(out.with_suffix(".gguf"), Cut(0, 0))
    return "" if expected == found else "another model"


def described(path: Path, cut: Cut) -> tuple[dict, dict]:
    """What a file says of itself, and its tensors, after a cut."""
    reader, layers = gguf.GGUFReader(path), "llama.block_count"
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(OURS)}
    whole, kept, tensors = values[layers], cut.kept(values[layers]), {}
    for tensor in reader.tensors:
        head, *rest = tensor.name.split(".", 2)
        if head != "blk" or int(rest[0]) in kept:
            name = tensor.name if head != "blk" else (kept.index(int(rest[0])), rest[1])
            tensors[name] = tensor.tensor_type, tensor.shape.tolist(), tensor.data.tobytes()
    for key, value in values.items():
        if key.startswith("llama.") and isinstance(value, list) and len(value) == whole:
            values[key] = [value[index] for index in kept]
    return {key: value for key, value in values.items() if value != []} | {layers: len(kept)}, tensors


def add_both(given: Path, out: Path) -> str:
    """Adapters give one finite model, on disk and in memory, or are refused, and the model is as it was."""
    base, pruned = model_key(str(given / "whole"), given / "whole"), drop_layers(shared_model("llama"), CUT)
    modules, refused, weights = dict(pruned.named_modules()).keys(), [], []

    def on_disk() -> dict:
        return load_file(slice_checkpoint(given / "whole", CUT, out, adapter=given / "adapter") / "model.safetensors")

    def in_memory() -> dict:
        try:
            healed = load_adapters(pruned, given / "adapter", base, CUT)
        except InputError:
            assert dict(pruned.named_modules()).keys() == modules
            raise
        return merge_adapters(healed).state_dict()

    for use in (on_disk, in_memory):
        try:
            weights.append(use())
        except InputError as error:
            refused.append(str(error))
    if refused:
        # what one of the two takes is no mistake, and what the other began it may go on with
        shutil.rmtree(out if weights else out.with_name("out.deeper-layers.partial"), ignore_errors=True)
        raise InputError("; ".join(refused))
    if not all(tensor.isfinite().all() for tensor in weights[0].values()):
        return "weights that are not finite"
    return "" if all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()) else "two models"


# of each kind what is whole, which of its files are damaged, and what is done
KINDS = {
    "checkpoint": (checkpoints, "", slice_folder),
    "gguf": (gguf_files, "", slice_file),
    "adapters": (adapters, "adapter/", add_both),
}


@functools.cache
def originals(make: Callable[[], list[Files]]) -> list[Files]:
    """They are made once."""
    return make()


# ---- what came of it -------------------------------------------------------------------------------------------


def outcome(use: Callable[[Path, Path], str], place: Path) -> tuple[str, str]:
    """What came of using `place`/given: "refused" and the line, "fine", or "bad" and what was wrong."""

    def there() -> set[tuple]:
        found = {path: path.lstat() for path in place.rglob("*")}
        return {(path, stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}

    def late(*_):
        raise TimeoutError

    before = there()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SLOWEST)
    try:
        came, said = "fine", use(place / "given", place / "out")
    except InputError as error:
        came, said = "refused", str(error)
    except BaseException:
        came, said = "bad", traceback.format_exc()
    signal.alarm(0)
    changed = [path.relative_to(place).as_posix() for path, *_ in before ^ there()]
    if came == "fine":
        changed = [name for name in changed if not name.startswith("out")]
    return (came, said) if bool(said) == (came == "refused") and not changed else ("bad", f"{said} {changed}")


def outcomes(kind: str, numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """For each number what came of a folder that was damaged as it says."""
    make, hurt, use = KINDS[kind]
    for number in numbers:
        draw, place = random.Random(number), folder / str(number)
        files = draw.choice(originals(make))
        for name, content in files.items():
            write(name, content)(place / "given")
        for _ in range(draw.choice((1, 1, 1, 2))):
            damage(place / "given" / draw.choice([name for name in files if name.startswith(hurt)]), draw)
        yield number, *outcome(use, place)
        shutil.rmtree(place)
