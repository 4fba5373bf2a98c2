"""Slicing a checkpoint on disk beside a plain copy of the kept bytes and beside mergekit, each in its own process.

A random checkpoint of Llama's shape is written in shards to a temporary folder. By turns, each from files that are not
in memory: (a) a copy of the files that a cut leaves, synced; (b) `deeper-layers prune`; (c) mergekit's passthrough of
the same cut, in shards of the same size. Results are compared tensor by tensor.

    python -m benchmarks.slicing NAME --mergekit PYTHON
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import harness
from deeper_layers import simple_cut, slice_checkpoint

COPY = """
import os, shutil, sys
for name in os.listdir(sys.argv[1]):
    shutil.copyfile(os.path.join(sys.argv[1], name), os.path.join(sys.argv[2], name))
    with open(os.path.join(sys.argv[2], name), "rb+") as file:
        os.fsync(file.fileno())
"""


def main() -> None:
    mergekit = {"help": "the Python of an environment with mergekit"}
    shape = {"layers": 32, "hidden": 4096, "intermediate": 11008, "vocabulary": 32000, "shard": 2.0}  # the last in GB
    options = harness.options(__doc__, **shape, drop=8, mergekit=mergekit)
    with tempfile.TemporaryDirectory() as folder:
        harness.keep(f"slicing-{options.name}", compare(Path(folder), options))


def compare(folder: Path, options) -> dict:
    """All that is measured, in a folder that has room for four checkpoints."""
    source, kept, out = folder / "checkpoint", folder / "kept", folder / "out"
    make_checkpoint(source, options)
    cut = simple_cut(options.layers, options.drop)
    numbers = [str(cut.start), str(cut.size)]
    (folder / "mergekit.yml").write_text(cut.mergekit_yaml(options.layers, str(source)))
    ours = [
        "-m",
        "deeper_layers_companion",
        "prune",
        str(source),
        str(out),
        "--start",
        numbers[0],
        "--drop",
        numbers[1],
    ]
    commands = {"copy": [sys.executable, "-c", COPY, str(kept), str(out)], "ours": [sys.executable, *ours]}
    if options.mergekit:
        words = ["-m", "mergekit.scripts.run_yaml", str(folder / "mergekit.yml"), str(out), "--no-copy-tokenizer"]
        commands["mergekit"] = [options.mergekit, *words, "--out-shard-size", str(round(options.shard * 1e9 / 2))]
    # what a cut leaves is there before the turns, for the plain copy, and to compare with
    kept.mkdir()
    for path in slice_checkpoint(source, cut, folder / "sliced").glob("*.safetensors*"):
        os.rename(path, kept / path.name)
    equal = {}

    def process(name: str) -> harness.Run:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir() if name == "copy" else None
        forget(source, kept)
        run = harness.run_process(commands[name], library=harness.ROOT if commands[name][0] == sys.executable else None)
        equal.setdefault(name, same_tensors(out, kept))
        return run

    found = harness.by_turns(dict(zip(commands, commands)), options.repeats, process)
    return {
        "dtype": "bfloat16", "layers": options.layers, "cut": [cut.start, cut.size],
        "bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
        "kept_bytes": sum(path.stat().st_size for path in kept.iterdir()),
        "shards": len(list(source.glob("*.safetensors"))), "seconds": harness.seconds(found),
        "peak_bytes": {name: max(run.peak for run in runs) for name, runs in found.items()},
        "of_plain_copy": harness.ratio(found, "ours", "copy", 3),
        "times_faster_than_mergekit": harness.ratio(found, "mergekit", "ours", 3) if options.mergekit else None,
        "equal_bytes": {name: same for name, same in equal.items() if name != "copy"},
    }  # fmt: skip


def forget(*folders: Path) -> None:
    """What is in the files of some folders is read from the disk next time."""
    os.sync()
    for path in (path for folder in folders for path in folder.iterdir()):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_checkpoint(folder: Path, options) -> None:
    """Write random weights in bfloat16, in shards."""
    sizes = {"hidden_size": options.hidden, "intermediate_size": options.intermediate, "vocab_size": options.vocabulary}
    sizes |= {"num_hidden_layers": options.layers, "num_attention_heads": max(1, options.hidden // 128)}
    config = LlamaConfig(**sizes, dtype=torch.bfloat16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=round(options.shard * 1e9))


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, bit by bit, however they are divided into files."""
    places = [
        {
            name: file
            for path in folder.glob("*.safetensors")
            for file in [safe_open(path, "pt")]
            for name in file.keys()
        }
        for folder in (one, other)
    ]
    pairs = ([place[name].get_tensor(name) for place in places if name in place] for name in places[0] | places[1])
    return all(
        len(pair) == 2 and pair[0].dtype == pair[1].dtype and torch.equal(*(one.view(torch.uint8) for one in pair))
        for pair in pairs
    )


if __name__ == "__main__":
    main()
