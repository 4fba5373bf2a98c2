"""This checkout beside an earlier one, turn by turn in one run on one machine: how much slower, and is it the same?

Each run is a process of its own, which makes ready, runs once for the caches and once for the clock. A ratio above 1 is
slower than before. `difference` is the largest of any log-likelihood, distance or weight; of files written it is 0
where they are equal bit by bit, else infinite.

    python -m benchmarks.before NAME --before CHECKOUT --cases mmlu,boolq,distances,healing --datasets FOLDER
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    from benchmarks import harness  # not in a run, which may be of an earlier checkout

    cases = {"default": ",".join(CASES), "help": f"of {', '.join(CASES)}; by default all"}
    options = harness.options(__doc__, before={"required": True, "help": "an earlier checkout"}, cases=cases)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.before, text=True).strip()
    content: dict = {"before": commit, "model": options.model, "dtype": options.dtype, "cases": {}}
    for case in options.cases.split(","):
        words = [case, options.model, options.dtype, options.datasets or ""]
        ways = {"before": (Path(options.before), words), "now": (harness.ROOT, words)}
        found = harness.by_turns(ways, options.repeats, lambda way: harness.Run(*run_in(*way), peak=0))
        content["cases"][case] = {
            "seconds": harness.seconds(found),
            "now_to_before": harness.ratio(found, "now", "before", 3),
            "difference": difference(*(runs[-1].result for runs in found.values())),
        }
        print(case, json.dumps(content["cases"][case]), flush=True)
    harness.keep(f"before-{options.name}", content)


def difference(before: list, now: list) -> float:
    """The largest of numbers; infinite where anything else differs."""
    numbers = all(isinstance(one, float) for one in (*before, *now)) and len(before) == len(now)
    return max((abs(a - b) for a, b in zip(before, now)), default=0) if numbers else 0 if before == now else math.inf


def run_in(checkout: Path, words: list[str]) -> tuple[list, float]:
    """What came of a case in a checkout, and its seconds."""
    environment = os.environ | {"PYTHONPATH": f"{checkout / 'lib'}{os.pathsep}{checkout}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), *words]
    return json.loads(subprocess.check_output(command, cwd=checkout, env=environment, text=True))


def work(case: str, model: str, dtype: str, datasets: str) -> None:
    """In its process: make ready, run for the caches, then for the clock, and print what came of it."""
    import torch

    torch.set_num_threads(2)
    answer, sys.stdout = sys.stdout, sys.stderr
    import deeper_layers

    loaded = Path(deeper_layers.__file__).resolve()
    if not loaded.is_relative_to(Path.cwd().resolve()):  # an installed copy would be compared with itself
        raise SystemExit(f"the library is that of {loaded}, not of {Path.cwd()}")
    with tempfile.TemporaryDirectory() as folder:
        run = CASES[case](model, dtype, datasets or None, Path(folder))
        run()
        start = time.perf_counter()
        found = run()
        passed = time.perf_counter() - start
        if isinstance(found, Path):
            written = sorted(found.rglob("*.safetensors"))
            found = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in written]
    print(json.dumps([found, passed]), file=answer)


def likelihoods(task: str, limit: int, shots: int | None = None, stream: bool = False):
    """The log-likelihoods of a task under all cuts of the simple rule."""

    def ready(model, dtype, datasets, _):
        from deeper_layers import load_model, simple_cut
        from deeper_layers.sweeping import harness as tasks
        from deeper_layers.sweeping import sweeps

        network, tokenizer = load_model(model, dtype=dtype, stream=stream)
        loaded = tasks.load_tasks([task], num_fewshot=shots, datasets=datasets)
        asked = tasks.collect_requests(loaded, network, tokenizer, limit=limit)
        layers = network.config.num_hidden_layers
        cuts = [simple_cut(layers, size) for size in range(layers - 1)]
        return lambda: sweeps.loglikelihoods(sweeps.TreeModel(network, cuts), asked.requests)[0].ravel().tolist()

    return ready


def generation(model, dtype, datasets, _):
    from deeper_layers import load_model, simple_cut, sweep

    network, tokenizer = load_model(model, dtype=dtype)
    layers = network.config.num_hidden_layers
    cuts = [simple_cut(layers, size) for size in {0, layers // 8, layers // 4}]
    how = {"limit": 10, "datasets": datasets}
    return lambda: sweep(network, tokenizer, ["sums_two_digits_generated"], cuts, **how)["value"].tolist()


def distances(model, dtype, *_):
    import torch

    from deeper_layers import angular_distances, load_model

    network, _ = load_model(model, dtype=dtype)
    torch.manual_seed(0)
    ids = [torch.randint(3, network.config.vocab_size, (8, 128)) for _ in range(4)]
    batches = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids]
    return lambda: [value for value in angular_distances(network, batches).ravel().tolist() if value == value]


def healing(model, dtype, *_):
    from deeper_layers import HealingConfig, drop_layers, heal, load_model, simple_cut

    network, tokenizer = load_model(model, dtype=dtype)
    cut = simple_cut(network.config.num_hidden_layers, network.config.num_hidden_layers // 3)
    texts = [f"The number after {n} is {n + 1}, and its square is {(n + 1) ** 2}. " * 40 for n in range(64)]
    config = HealingConfig(
        rank=8, learning_rate=1e-3, sequence_length=256, steps=3, warmup_steps=1, batch_sequences=8, at_once=8,
        quantization=None, gradient_checkpointing=False,
    )  # fmt: skip

    def run():
        healed = heal(drop_layers(network, cut), tokenizer, texts, config)
        return [float(weight.detach().double().sum()) for weight in healed.parameters() if weight.requires_grad]

    return run


def pruned(*words: str):
    """A checkpoint written by the command, in a process of its own."""

    def ready(model, dtype, _, folder):
        out = folder / "out"
        command = [sys.executable, "-m", "deeper_layers_companion", "prune", model, str(out), *words]

        def run():
            subprocess.run(["rm", "-rf", str(out)], check=True)
            subprocess.run(command, check=True, capture_output=True)
            return out

        return run

    return ready


CASES = {
    "mmlu": likelihoods("mmlu_anatomy", 20, shots=5), "boolq": likelihoods("boolq", 40),
    "capitals": likelihoods("capitals", 100), "streaming": likelihoods("capitals", 10, stream=True),
    "generation": generation, "distances": distances, "healing": healing,
    "greedy": pruned("--rule", "greedy", "--drop", "2", "--samples", "4", "--sequence-length", "64"),
    "slicing": pruned("--drop", "3", "--rule", "simple"),
}  # fmt: skip


if __name__ == "__main__":
    work(*sys.argv[1:]) if sys.argv[1] in CASES else main()
