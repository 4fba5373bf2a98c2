"""A model larger than memory, measured with its layers on disk, in a process that may have only so much.

A random checkpoint of Llama's shape is written in shards to a temporary folder. Then, each in a process of its own
within a memory cgroup (which takes Linux and root; else the limit is not held, and said so): (a) distances of some
sequences; (b) every pruned model of the simple rule on some BoolQ items; (c) reading the layers once; (d) without the
limit the same sweep with all of the model in memory; (e) accelerate's disk offload under lm-eval's HFLM, one pruned
model, on the first few of these items. What (e) would take for all items and every cut is reckoned to its advantage:
the layers read at the speed of (c), once for each batch of 16 items, and computed for each item as for these few.
Printed: seconds, bytes read, peak memory, ratios.

    python -m benchmarks.streaming NAME --datasets FOLDER
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks import side_by_side
from benchmarks.slicing import make_checkpoint, out_of_memory
from deeper_layers.cuts import simple_cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.network import Network
from deeper_layers.models.opening import checkpoint_folder, load_model
from deeper_layers.models.streaming import is_streamed, on_disk
from deeper_layers.pruning import drop_layers
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests

HFLM_BATCH = 16
GROUP = Path("/sys/fs/cgroup/memory/deeper-layers-benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=49152, help="that of the embedded model's tokenizer")
    parser.add_argument("--shard", type=float, default=2.0, help="size of a shard in GB")
    parser.add_argument("--memory", type=float, default=3.0, help="GB that a process may have")
    parser.add_argument("--kept", type=float, default=1.0, help="GB of residuals, of these")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--hflm-items", type=int, default=4, help="items of (e)")
    parser.add_argument("--without-hflm", action="store_true", help="leave out (e), which takes longest")
    parser.add_argument("--datasets", help="a local mirror of the hub")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    side_by_side.start()
    if options.part:
        print("found", json.dumps(PARTS[options.part](Path(options.folder), options)))
        return
    parts = [part for part in PARTS if not (part == "hflm" and options.without_hflm)]
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), options)
        AutoTokenizer.from_pretrained(checkpoint_folder("embedded")).save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        found = {part: run(part, folder, options) for part in parts}
    swept, memory = found["sweep"], found["in_memory"]
    apart = swept["rounds"] * found["reading"]["seconds"] + memory["seconds"]
    content = {
        "dtype": "bfloat16", "bytes": size, "layers": options.layers, "memory_allowed": int(options.memory * 1e9),
        "memory_held_to": GROUP.parent.is_dir() and os.geteuid() == 0, "sequences": options.sequences,
        "length": options.length, "items": options.items, "parts": found,
        "sweep_to_reading_and_computing": round(swept["seconds"] / apart, 2),
        "reads_a_round": round(swept["bytes_read"] / swept["bytes_of_layers"] / swept["rounds"], 3),
        "equal_to_the_bit": swept["of_answers"] == memory["of_answers"],
    }  # fmt: skip
    if "hflm" in found:
        few, read = found["hflm"], found["reading"]["seconds"]
        computed = max(0.0, few["seconds"] - read) / few["items"] * options.items
        every = (computed + read * math.ceil(options.items / HFLM_BATCH)) * swept["cuts"]
        content["seconds_of_hflm_for_all"] = round(every, 1)
        content["times_faster_than_hflm"] = round(every / swept["seconds"], 1)
    side_by_side.keep(f"streaming-{options.name}", content)


def run(part: str, folder: str, options) -> dict:
    """What a part found in a process of its own, within the memory that it may have, and the most that it had."""
    words = [sys.executable, "-m", "benchmarks.streaming", *sys.argv[1:], "--part", part, "--folder", folder]
    limited = part != "in_memory" and GROUP.parent.is_dir() and os.geteuid() == 0

    def enter():
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))

    if limited:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(int(options.memory * 1e9)))
        (GROUP / "memory.max_usage_in_bytes").write_text("0")
    out_of_memory(Path(folder))
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=enter if limited else None)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("found "))[6:])
    if limited:
        found["peak_of_group"] = int((GROUP / "memory.max_usage_in_bytes").read_text())
        GROUP.rmdir()
    print(part, found, flush=True)
    return found


def timed(run: Callable[[], dict]) -> dict:
    found, seconds, peak = side_by_side.measured(run)
    return {"seconds": round(seconds, 1), "peak": peak} | found


def opened(folder: Path, stream: bool = True):
    model, tokenizer = load_model(str(folder), stream=stream)
    assert is_streamed(model) == stream
    return model, tokenizer


def distances(folder: Path, options) -> dict:
    model, tokenizer = opened(folder)
    texts = corpora.texts("wikipedia")
    batches = list(text_batches(tokenizer, texts, samples=options.sequences, length=options.length))

    def measure() -> dict:
        return {"mean": float(torch.tensor(angular_distances(model, batches)[0, : num_layers(model)]).mean())}

    return timed(measure)


def asked_of(model, tokenizer, options, items: int | None = None) -> harness.Tasks:
    loaded = harness.load_tasks(["boolq"], datasets=options.datasets)
    return harness.collect_requests(loaded, model, tokenizer, limit=items or options.items)


def sweep(folder: Path, options, stream: bool = True) -> dict:
    model, tokenizer = opened(folder, stream)
    asked, layers, kept = asked_of(model, tokenizer, options), num_layers(model), int(options.kept * 1e9)
    cuts = [simple_cut(layers, size) for size in range(layers)]
    family = PrunedFamily(model, cuts)
    plan = plan_requests(family, asked.contexts, asked.continuations, asked.max_length, memory=kept)
    before = family.whole.reader.bytes

    def measure() -> dict:
        where = {"max_length": asked.max_length, "memory": kept, "family": family}
        found, _ = loglikelihoods(model, asked.contexts, asked.continuations, cuts, **where)
        return {"of_answers": hashlib.sha256(found.tobytes()).hexdigest(), "finite": bool(np.isfinite(found).all())}

    return timed(measure) | {
        "cuts": len(cuts), "bytes_read": family.whole.reader.bytes - before, "rounds": len(plan.parts),
        "bytes_of_layers": int(family.whole.layer_bytes * layers), "planned_bytes": plan.bytes,
        "planned_seconds": plan.seconds and round(plan.seconds, 1), "tokens": plan.tokens,
    }  # fmt: skip


def in_memory(folder: Path, options) -> dict:
    """The same with the whole model in memory, which takes a machine that holds it."""
    return sweep(folder, options, stream=False)


def reading(folder: Path, options) -> dict:
    """Every layer read once, and nothing run."""
    network = Network(opened(folder)[0])

    def measure() -> dict:
        total = 0.0
        for layer in network.in_turn(list(range(len(network.layers)))):
            # weights are views of files: touched, they are read
            total += sum(
                float(parameter.flatten()[::2048].float().sum()) for parameter in network.layers[layer].parameters()
            )
        return {"sum": total}

    return timed(measure)


def hflm(folder: Path, options) -> dict:
    from lm_eval.models.huggingface import HFLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=on_disk(empty, "cpu"), dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pruned = drop_layers(model, simple_cut(num_layers(model), num_layers(model) // 4))
    lm = HFLM(pretrained=pruned, tokenizer=tokenizer, batch_size=HFLM_BATCH)
    items = min(options.hflm_items, options.items)
    asked = asked_of(model, tokenizer, options, items)

    def measure() -> dict:
        return {"requests": len(lm.loglikelihood(asked.instances, disable_tqdm=True))}

    return timed(measure) | {"items": items}


PARTS = {"reading": reading, "distances": distances, "sweep": sweep, "in_memory": in_memory, "hflm": hflm}


if __name__ == "__main__":
    main()
