"""Generated answers of a family of pruned models beside lm-eval's HFLM in batches, on the same items.

With --engine vllm, in an environment that has it, also beside lm-eval's vLLM on each pruned model in turn, written to a
folder and opened there. Printed: the ratios of times, and how many texts are equal; with --show the texts side by side.

    python -m benchmarks.generation NAME --tasks gsm8k --limit 20 --sizes 0,2,4,8 --datasets FOLDER
"""

import argparse
import importlib

from lm_eval.models.huggingface import HFLM

from benchmarks import side_by_side
from deeper_layers.cuts import simple_cut
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.generation import generate
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.running import ENGINES, check_installed, written_by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tasks", default="gsm8k")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--sizes", default="0,2,4,8", help="block sizes of the simple rule, with commas")
    parser.add_argument("--datasets", help="a local mirror of the hub")
    parser.add_argument("--batch", type=int, default=20, help="batch size of HFLM")
    parser.add_argument("--memory", type=float, default=4, help="GiB beside the weights for ours")
    parser.add_argument("--engine", choices=ENGINES, help="a third side")
    parser.add_argument("--show", action="store_true", help="print all texts")
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    loaded = harness.load_tasks(options.tasks.split(","), num_fewshot=options.num_fewshot, datasets=options.datasets)
    instances = harness.collect_requests(loaded, model, tokenizer, limit=options.limit).generations
    cuts = [simple_cut(num_layers(model), int(size)) for size in options.sizes.split(",")]
    weights, before = sum(p.numel() * p.element_size() for p in model.parameters()), side_by_side.held()
    memory = int(options.memory * 2**30)
    ours, seconds, peak = side_by_side.measured(
        lambda: generate(PrunedFamily(model, cuts), tokenizer, instances, memory=memory)
    )
    written, passed_engine = [[] for _ in cuts], 0.0
    if options.engine:
        check_installed(options.engine)
        written, passed_engine, _ = side_by_side.measured(
            lambda: written_by(options.engine, model, tokenizer, cuts, instances)
        )
    rows, equal, naive, naive_peak = [], 0, 0.0, 0
    for cut, texts, of_engine in zip(cuts, ours, written, strict=True):
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=options.batch)
        theirs, passed, most = side_by_side.measured(lambda lm=lm: lm.generate_until(instances, disable_tqdm=True))
        same = sum(a == b for a, b in zip(texts, theirs, strict=True))
        rows.append({"start": cut.start, "size": cut.size, "equal": same, "seconds_hflm": round(passed, 1)})
        if options.engine:
            rows[-1][f"equal_{options.engine}"] = sum(a == b for a, b in zip(of_engine, theirs, strict=True))
        for text in zip(texts, theirs, *([of_engine] if options.engine else [])) if options.show else []:
            print(*map(repr, text), sep="\n    ", flush=True)
        print(rows[-1], flush=True)
        equal, naive, naive_peak = equal + same, naive + passed, max(naive_peak, most)
    content = {
        "model": options.model, "dtype": options.dtype, "tasks": options.tasks, "items": len(instances),
        "cuts": rows, "texts": len(cuts) * len(instances), "texts_equal": equal,
        "seconds": {"hflm": round(naive, 1), "ours": round(seconds, 1)},
        "times_faster_than_hflm": round(naive / seconds, 2),
        "bytes": {
            "weights": weights, "held_before": before, "allowed_to_ours": memory, "peak_of_ours": peak,
            "peak_of_hflm": naive_peak,
        },
    }  # fmt: skip
    if options.engine:
        content[options.engine] = {
            "version": importlib.import_module(options.engine).__version__, "seconds": round(passed_engine, 1),
            "texts_equal": sum(row[f"equal_{options.engine}"] for row in rows),
            "times_faster": round(passed_engine / seconds, 2),
        }  # fmt: skip
    side_by_side.keep(f"generation-{options.name}", content)


if __name__ == "__main__":
    main()
