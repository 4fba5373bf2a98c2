"""Measurements that are made up: units of one small model, for claims and their statistics."""

import dataclasses

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.results.packing import pack, pack_halves
from deeper_layers.results.units import Unit

LAYERS, ITEMS, VOCABULARY = 20, 3000, 10**9
SIZES = range(LAYERS - 1)
FLAT = [0.8 if size < 8 else 0.25 for size in SIZES]  # falls between 7 and 8 of 20 layers: within the paper's range
SLOPE = [max(0.8 - 0.055 * size, 0.25) for size in SIZES]
GUESSES = [0.25 for _ in SIZES]
HEALING = {"rank": 8, "seed": 0, "adapters": "all", "auxiliary": 0.0}


def cut_of(rule, size):
    return simple_cut(LAYERS, size) if rule == "simple" or not size else Cut(1, size)


def key(**more):
    model = {"name": "made up", "weights": "sha256:0"}
    return {"model": model, "dtype": "bfloat16", "quantization": None, "version": 1, **more}


def answers(share):
    """Outcomes of which a share is right, in an order of their own; a table of outcomes as they are."""
    if isinstance(share, np.ndarray):
        return {"acc": pack(share)}
    right = np.arange(ITEMS) < round(share * ITEMS)
    return {"acc": pack(np.random.default_rng(0).permutation(right))}


def sweep(task, accuracies, rule="similarity", shots=None, quantization=None):
    """A sweep of one task: accuracy for each size from 0."""
    cuts = [cut_of(rule, size) for size in range(len(accuracies))]
    asked = {"task": task, "rule": rule, "cuts": [[cut.start, cut.size] for cut in cuts]}
    outcomes = {f"{cut.start},{cut.size}": {task: answers(share)} for cut, share in zip(cuts, accuracies)}
    rows = pd.DataFrame({"task": task, "metric": "acc", "items": [ITEMS]})
    made = {"outcomes": outcomes, "levels": {task: {"chance": 0.25}}, "num_layers": LAYERS}
    asked |= {"limit": None, "num_fewshot": shots, "quantization": quantization}
    return Unit("sweep", task, key(**asked), {"measured": "2026"}, rows, made)


def healings(losses, accuracies, rule="similarity", noise=0.05, **settings):
    """Healed models of sizes 0, 2, 4, ...: loss on text and accuracy on MMLU and BoolQ."""
    loss_key = {"text": "c4", "sequences": 64, "sequence_length": 256}
    for size, loss in zip(range(0, LAYERS, 2), losses):
        cut = cut_of(rule, size)
        outcomes = {task: answers(of_task[size]) for task, of_task in accuracies.items()}
        made = {"by_sequence": sequences(loss, noise), "outcomes": outcomes, "num_layers": LAYERS}
        made |= {"levels": {task: {"chance": 0.25} for task in outcomes}, "healing": {"tokens": 163_840}}
        asked = {"quantization": "nf4", "cut": [cut.start, cut.size], "healing": HEALING | settings, "loss": loss_key}
        asked |= {"tasks": dict.fromkeys(accuracies), "limit": None}
        rows = pd.DataFrame(columns=["task", "metric"])
        yield Unit("healing", f"{cut.start}-{size}", key(**asked), {"measured": "2026"}, rows, made)


def sequences(loss, noise=0.05):
    if isinstance(loss, np.ndarray) and loss.ndim:
        return loss.tolist()
    return (loss + noise * np.random.default_rng(1).standard_normal(64)).tolist()


def unhealed(losses_of):
    """The unit of losses before healing, under each rule."""
    losses = {cut_of(rule, size): loss for rule, losses in losses_of.items()
              for size, loss in zip(range(0, LAYERS, 2), losses)}  # fmt: skip
    made = {"by_sequence": {f"{cut.start},{cut.size}": sequences(loss) for cut, loss in losses.items()}}
    asked = {"quantization": "nf4", "text": "c4", "sequences": 64, "sequence_length": 256}
    asked["cuts"] = [[cut.start, cut.size] for cut in losses]
    return Unit(
        "loss",
        "c4",
        key(**asked),
        {"measured": "2026"},
        pd.DataFrame(),
        made | {"num_layers": LAYERS, "vocabulary": VOCABULARY},
    )


def distances(of_block):
    rows = [
        {"start": start, "size": size, "distance": of_block(start, size), "stderr": 1e-4, "samples": 256}
        for size in range(1, LAYERS + 1)
        for start in range(LAYERS - size + 1)
    ]
    asked = {"corpus": "wikipedia"}
    made = {"num_layers": LAYERS}
    return Unit("similarity", "wikipedia", key(**asked), {"measured": "2026"}, pd.DataFrame(rows), made)


def of_each_sequence(unit, each):
    """The same distances, of which those of each sequence are known: [S, B], blocks in the order of the unit's rows."""
    kept = unit.details | {"by_sequence": pack_halves(each)}
    return dataclasses.replace(unit, kind="distances", rows=unit.rows.assign(samples=len(each)), details=kept)


def prompts(accuracies, shots, order):
    """The pruned models under one kind of prompt."""
    made = sweep("mmlu", accuracies, shots=shots)
    return dataclasses.replace(made, kind="shots", key=made.key | {"order": order})
