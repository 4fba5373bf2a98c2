"""The engine of this checkout beside that of an earlier one, turn by turn in one run on one machine.

Each has a process of its own, which opens the model and waits; a case runs in one while the other is idle. Asked is
what `loglikelihoods` of both takes: tokens and cuts. A bare pass of the whole model's decoder over the same distinct
tokens is timed in the same turns. Printed: seconds, medians over turns of their ratio and of bare passes, the largest
difference.

    python -m benchmarks.rebuilt NAME --before CHECKOUT --tasks boolq --limit 60 --rules simple --datasets FOLDER
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROUNDS = 5
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--before", required=True, help="checkout of the earlier commit")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tasks", required=True, help="lm-eval tasks, with commas")
    parser.add_argument("--limit", type=int, help="items a task")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--rules", default="simple", help="simple, similarity, or both with a comma")
    parser.add_argument("--datasets", help="a local mirror of the hub")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    from benchmarks import side_by_side  # not in a worker, which may be of an earlier checkout
    from benchmarks.sweep import cuts_by_rules
    from deeper_layers.models.opening import load_model
    from deeper_layers.sweeping import harness

    side_by_side.start()
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    loaded = harness.load_tasks(options.tasks.split(","), num_fewshot=options.num_fewshot, datasets=options.datasets)
    asked = harness.collect_requests(loaded, model, tokenizer, limit=options.limit)
    *_, cuts = cuts_by_rules(model, tokenizer, options.rules.split(","), 1).values()
    del model
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case.json"
        case.write_text(json.dumps({
            "contexts": asked.contexts, "continuations": asked.continuations, "max_length": asked.max_length,
            "cuts": [[cut.start, cut.size] for cut in cuts],
        }))  # fmt: skip
        workers = {
            name: Worker(Path(checkout), case, options.model, options.dtype, Path(folder) / f"{name}.npy")
            for name, checkout in (("before", options.before), ("after", ROOT))
        }
        turns = [("before", "sweep"), ("after", "sweep"), ("after", "bare")]
        seconds: dict[str, list[float]] = {"before": [], "after": [], "bare": []}
        for turn in range(options.rounds):
            for worker, what in turns[turn % len(turns) :] + turns[: turn % len(turns)]:
                passed = workers[worker].run(what)
                seconds["bare" if what == "bare" else worker].append(passed)
            print({name: found[-1] for name, found in seconds.items()}, flush=True)
        answers = {name: np.load(Path(folder) / f"{name}.npy") for name in workers}
        for worker in workers.values():
            worker.process.kill()
    turn_by_turn = {name: np.array(found) for name, found in seconds.items()}  # a machine changes its pace meanwhile
    ratios = turn_by_turn["after"] / turn_by_turn["before"]
    before = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=options.before, capture_output=True, text=True, check=True
    )
    side_by_side.keep(f"rebuilt-{options.name}", {
        "model": options.model, "dtype": options.dtype, "tasks": options.tasks, "num_fewshot": options.num_fewshot,
        "rules": options.rules, "cuts": len(cuts), "requests": len(asked.contexts), "before": before.stdout.strip(),
        "seconds": {name: [round(passed, 2) for passed in found] for name, found in seconds.items()},
        "after_to_before": round(float(np.median(ratios)), 3),
        "ratios": ratios.round(3).tolist(),
        "bare_passes": {
            name: round(float(np.median(turn_by_turn[name] / turn_by_turn["bare"])), 2) for name in ("before", "after")
        },
        "largest_difference": float(np.abs(answers["before"] - answers["after"]).max()),
    })  # fmt: skip


class Worker:
    """A process of one checkout that runs the case when it is told to."""

    def __init__(self, checkout: Path, case: Path, model: str, dtype: str, out: Path):
        environment = os.environ | {"PYTHONPATH": f"{checkout}/lib:{checkout}", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, str(Path(__file__).resolve()), "worker", str(case), model, dtype, str(out)]
        self.process = subprocess.Popen(
            words, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            self.process.communicate()
            raise SystemExit(f"the engine of {checkout} did not start")

    def run(self, what: str) -> float:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def check_own(function, checkout: Path) -> None:
    """Raises RuntimeError where a function is not of this checkout: an installed copy would be compared with itself."""
    loaded = Path(function.__code__.co_filename).resolve()
    if not loaded.is_relative_to(checkout.resolve()):
        raise RuntimeError(f"the engine is that of {loaded}, not of {checkout}")


def work(case: str, model: str, dtype: str, out: str) -> None:
    """In a worker: open the model, then run the case for each line."""
    sys.path.pop(0)  # the folder of this file
    import torch

    torch.set_num_threads(2)
    answer, sys.stdout = sys.stdout, sys.stderr
    if Path("lib/deeper_layers").is_dir():
        from deeper_layers.cuts import Cut
        from deeper_layers.models.opening import load_model
        from deeper_layers.sweeping.sweeps import loglikelihoods
    else:  # before the rooms
        from lib.models import load_model
        from lib.pruning import Cut
        from lib.sweep import loglikelihoods
    check_own(loglikelihoods, Path.cwd())
    asked = json.loads(Path(case).read_text())
    network, _ = load_model(model, dtype=dtype)
    cuts = [Cut(*cut) for cut in asked["cuts"]]

    def run(what: str, items: int | None = None):
        contexts, continuations = asked["contexts"][:items], asked["continuations"][:items]
        if what == "sweep":
            return loglikelihoods(network, contexts, continuations, cuts, max_length=asked["max_length"])[0]
        from benchmarks.sweep import bare_pass  # asked of this checkout alone
        from deeper_layers.sweeping.planning import plan_pieces

        bare_pass(network, plan_pieces(contexts, continuations, asked["max_length"]))

    run("sweep", 16)
    print("ready", file=answer, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        found = run(line.strip())
        passed = time.perf_counter() - start
        if found is not None:
            np.save(out, found)
        print(passed, file=answer, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(*sys.argv[2:])
    else:
        main()
