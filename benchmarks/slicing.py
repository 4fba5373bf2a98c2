"""Slicing a checkpoint on disk beside a plain copy of the kept bytes and beside mergekit, each in its own process.

A random checkpoint of Llama's shape is written in shards to a temporary folder. By turns, each from files that are
not in memory: (a) copyfile of the files that a cut leaves, (b) `deeper-layers prune`, (c) mergekit's passthrough of the
same cut, in shards of the same size; once (d) drop_layers and save_pretrained. Seconds and peak memory are those
of a whole process, its imports included. Results are compared byte by byte.

    python -m benchmarks.slicing NAME --mergekit PYTHON
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import side_by_side
from deeper_layers.cuts import simple_cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.checkpoint_files import INDEX, read_shards
from deeper_layers.results.places import AROUND as ROOT

# a process between: what a new one inherits of the peak of its parent is then small
LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
child = os.fork()
if child == 0:
    os.dup2(2, 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss * 1024]))
"""
COPY = """
import os, shutil, sys
for name in os.listdir(sys.argv[1]):
    shutil.copyfile(os.path.join(sys.argv[1], name), os.path.join(sys.argv[2], name))
    with open(os.path.join(sys.argv[2], name), "rb+") as file:
        os.fsync(file.fileno())
"""
OPENED = """
import sys
from transformers import AutoModelForCausalLM
from deeper_layers import Cut, drop_layers
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
drop_layers(model, Cut(int(sys.argv[3]), int(sys.argv[4]))).save_pretrained(sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--drop", type=int, default=8, help="layers, simple rule")
    parser.add_argument("--shard", type=float, default=2.0, help="size of a shard in GB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit", help="the python of an environment with mergekit")
    options = parser.parse_args()
    side_by_side.start()
    with tempfile.TemporaryDirectory() as folder:
        content = compare(Path(folder), options)
    side_by_side.keep(f"slicing-{options.name}", content)


def compare(folder: Path, options) -> dict:
    """All that is measured, in a folder that has room for four checkpoints."""
    source, kept, out = folder / "checkpoint", folder / "kept", folder / "out"
    make_checkpoint(source, options)
    cut = simple_cut(options.layers, options.drop)
    yaml = folder / "mergekit.yml"
    yaml.write_text(cut.mergekit_yaml(options.layers, str(source)))
    where = [str(source), str(out)]
    ours = [sys.executable, "-m", "deeper_layers", "prune", *where, "--drop", str(cut.size), "--start", str(cut.start)]
    parameters = round(options.shard * 1e9 / 2)
    passthrough = [
        options.mergekit, "-m", "mergekit.scripts.run_yaml", str(yaml), str(out),
        "--no-copy-tokenizer", "--out-shard-size", str(parameters),
    ]  # fmt: skip
    # what a cut leaves is there before the turns, for the plain copy, and to compare with
    kept.mkdir()
    for path in slice_checkpoint(source, cut, folder / "sliced").glob("*.safetensors*"):
        os.rename(path, kept / path.name)
    commands = {"copy": [sys.executable, "-c", COPY, str(kept), str(out)], "ours": ours}
    commands |= {"mergekit": passthrough} if options.mergekit else {}
    found: dict = {name: [] for name in commands}
    equal = {}
    for _ in range(options.repeats):
        for name, command in commands.items():
            if name == "copy":
                out.mkdir()
            found[name].append(run(command, source, kept))
            print(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1] / 1e6:.0f} MB", flush=True)
            if name not in equal:
                equal[name] = same_tensors(out, kept)
            shutil.rmtree(out)
    found["opened"] = [run([sys.executable, "-c", OPENED, *where, str(cut.start), str(cut.size)], source)]
    equal["opened"] = same_tensors(out, kept)
    found["start"] = [run([sys.executable, "-c", "from deeper_layers.export import slice_checkpoint"])]  # imports

    def ratio(one: str, other: str) -> float | None:
        if options.mergekit is None and "mergekit" in (one, other):
            return None
        return round(statistics.median(a / b for (a, _), (b, _) in zip(found[one], found[other], strict=True)), 3)

    return {
        "dtype": "bfloat16", "layers": options.layers, "cut": [cut.start, cut.size],
        "bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
        "kept_bytes": sum(path.stat().st_size for path in kept.iterdir()),
        "shards": len(list(source.glob("*.safetensors"))),
        "seconds": {name: [round(seconds, 2) for seconds, _ in runs] for name, runs in found.items()},
        "peak_bytes": {name: max(peak for _, peak in runs) for name, runs in found.items()},
        "of_plain_copy": ratio("ours", "copy"),
        "times_faster_than_mergekit": ratio("mergekit", "ours"),
        "equal_bytes": {name: same for name, same in equal.items() if name != "copy"},
    }  # fmt: skip


def out_of_memory(*folders: Path) -> None:
    """What is in the files of some folders is read from the disk next time."""
    os.sync()
    for path in (path for folder in folders for path in folder.iterdir()):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str], *folders: Path) -> tuple[float, int]:
    """Seconds of a process, and its peak memory in bytes; the files in these folders are out of memory before it."""
    out_of_memory(*folders)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(side_by_side.THREADS)}
    if command[0] != sys.executable:  # another environment, which has modules of its own
        environment.pop("PYTHONPATH", None)
    words = [sys.executable, "-S", "-c", LAUNCH, *command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    code, seconds, peak = json.loads(done.stdout.splitlines()[-1])
    if code != 0:
        raise InputError(f"{' '.join(command[1:4])} ended with {code}: {done.stderr[-2000:]}")
    return seconds, peak


def make_checkpoint(folder: Path, options) -> None:
    """Write random weights in bfloat16, a shard at a time, with the index and the configuration."""
    config = LlamaConfig(
        num_hidden_layers=options.layers, hidden_size=options.hidden, intermediate_size=options.intermediate,
        vocab_size=options.vocabulary, num_attention_heads=max(1, options.hidden // 128), dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shards: list[dict] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and 2 * sum(size.numel() for size in [shape, *shards[-1].values()]) > options.shard * 1e9:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    torch.manual_seed(0)
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.1, 0.1) for name, shape in shard.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    total = sum(2 * shape.numel() for shape in shapes.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, byte by byte, however they are divided into files."""
    first, second = ({t.name: (shard, t) for shard in read_shards(f) for t in shard.tensors} for f in (one, other))
    if first.keys() != second.keys():
        return False
    return all(_same(*first[name], *second[name]) for name in first)


def _same(shard, tensor, other_shard, other) -> bool:
    kinds = [(entry["dtype"], entry["shape"]) for entry in (tensor.entry, other.entry)]
    if kinds[0] != kinds[1]:
        return False
    places = [(shard, tensor), (other_shard, other)]
    one, two = (np.memmap(s.path, np.uint8, "r", s.start + t.entry["data_offsets"][0], (t.bytes,)) for s, t in places)
    return bool(np.array_equal(one, two))


if __name__ == "__main__":
    main()
