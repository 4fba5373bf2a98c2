"""How each job is measured: one function a form, by its key and the results of the jobs that it needs. Each returns the
rows and details of the result, and keeps finished parts of the work in shards.

Healing is in healings.py, files and types of weights are in take_away.py, and all scores come from scoring.py.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from deeper_layers import data, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.packing import pack_halves
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion import rules
from deeper_layers_companion.jobs import healings, take_away
from deeper_layers_companion.jobs.job import CALIBRATION, SEQUENCES, USUAL_LENGTH, Job
from deeper_layers_companion.jobs.scoring import SCORE, Measured, score_changed, score_models
from deeper_layers_companion.jobs.subject import Subject
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.choosing import choose_merges, distance_matrix, distance_table
from deeper_layers_companion.rules.table import REGISTERED

Needs = list[Result]  # of the jobs that a job needs, in their order

# ---- distances and geometry --------------------------------------------------------------------------------------


def draw_batches(
    tokenizer, settings: dict, datasets: str | None, samples: int | None = None
) -> list:
    """The sequences of the distances in batches, for the settings of a key; with `samples`, the first so many."""
    corpus, usual, length, seed = (settings[name] for name in SEQUENCES)
    documents = data.texts(corpus, datasets=datasets)
    return data.text_batches(
        tokenizer, documents, samples=samples or usual, length=length, seed=seed
    )


def draw_sequences(tokenizer, settings: dict, subject: Subject) -> list:
    """The token ids of the sequences of the distances, each [T], without padding: drawn once in a session."""
    asked = tuple(settings[name] for name in SEQUENCES)
    if asked not in subject.drawn:
        batches = draw_batches(tokenizer, settings, subject.options.datasets)
        drawn = []
        for batch in batches:
            drawn += [
                ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"])
            ]
        subject.drawn[asked] = drawn
    return subject.drawn[asked]


def _measure_distances(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    from deeper_layers import similarity  # imports torch

    model, tokenizer = subject.open(job.key)
    batches = draw_batches(tokenizer, job.key, subject.options.datasets)

    def run(some_batches):
        return (
            {"distances": distances}
            for distances in similarity.distances_by_batch(model, some_batches)
        )

    distances = [of["distances"] for of in _run_in_batches(shards, 0, batches, run, "distances")]
    table = distance_table(*similarity.mean_distances(distances))
    details: dict = {"tokens": _count_tokens(batches)}
    if job.key.get("by_sequence"):
        stop = table["start"] + table["size"]
        details["by_sequence"] = pack_halves(np.concatenate(distances)[:, table["start"], stop])
    return table.to_dict("records"), details


def _measure_geometry(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    from deeper_layers_companion.rules import geometry  # imports torch

    model, tokenizer = subject.open(job.key)
    # both come from one draw, so the sequences that are run without each layer are among the others
    batches = draw_batches(tokenizer, job.key, subject.options.datasets)
    skip_batches = draw_batches(
        tokenizer, job.key, subject.options.datasets, job.key["skip_sequences"]
    )
    record = functools.partial(geometry.record_passes, model, tokens=job.key["tokens"])
    leave_out = functools.partial(geometry.skip_each_layer, model, tokens=job.key["tokens"])
    passes = list(_run_in_batches(shards, 0, batches, record, "one pass"))
    skips = list(
        _run_in_batches(shards, len(batches), skip_batches, leave_out, "without each layer")
    )
    layers, states, pairs = geometry.combine_batches(
        passes, skips, neighbours=job.key["neighbours"]
    )
    rows = []
    for values_by_metric, size in ((layers, 1), (states, 0)):
        for name, values in values_by_metric.items():
            for index, value in enumerate(values.tolist()):
                rows.append(
                    {"metric": name, "start": index, "size": size, "value": float(f"{value:.6g}")}
                )
    points = sum(batch["residuals"].shape[1] for batch in passes)
    triangles = {name: _round_triangle(table.tolist()) for name, table in pairs.items()}
    return rows, {"tokens": _count_tokens(batches), "points": points, "pairs": triangles}


def _round_triangle(table: list[list[float]]) -> list[list[float]]:
    """The entries of a table above the diagonal, row by row."""
    rows = []
    for index, row in enumerate(table[:-1]):
        rows.append([round(value, 4) for value in row[index + 1 :]])
    return rows


def _count_tokens(batches: list) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def _run_in_batches(
    shards: Shards, first: int, batches: list[dict], run: Callable, description: str
) -> Iterator[dict]:
    """Yield the arrays of each batch, in order: read from its shard, or computed now and written to its shard.

    `run` takes an iterator over the batches without a shard, and yields the arrays of each. `description` stands beside
    the progress bar. Shards are numbered from `first`.
    """
    marks = [{"ids": batch["input_ids"].numpy()} for batch in batches]
    stored = [shards.get(number, mark) for number, mark in enumerate(marks, first)]
    computed = run(batch for batch, arrays in zip(batches, stored) if arrays is None)
    done = len(stored) - stored.count(None)
    with tqdm(
        desc=description,
        unit="batch",
        total=len(stored),
        initial=done,
        mininterval=5,
        file=sys.stderr,
    ) as bar:
        for number, (arrays, mark) in enumerate(zip(stored, marks), first):
            if arrays is None:
                arrays = next(computed)
                shards.put(number, arrays | mark)
                bar.update()
            yield arrays


# ---- scores ------------------------------------------------------------------------------------------------------


def _measure_scores(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    rows, details = score_models(job, subject.open(job.key), job.cuts, subject.options, shards)
    for choice in needs:  # how many layers its cuts of sublayers count as
        details["sizes"] = choice.details.get("sizes", {})
    return rows, details


def _measure_until(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    """Scores of a task whose items are asked until its answer is precise enough."""
    from deeper_layers_companion.jobs.ask_until import measure_until  # slow to import

    return measure_until(job, subject, shards)


def _measure_changed(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    """Scores of a rule that changes weights, of the changed models."""
    (choice,) = job.needs
    chosen = needs[0].details
    changed = _make_model_changer(choice, chosen["merged"], subject)
    rows, details = score_changed(job, subject.open(job.key), changed, subject.options, shards)
    return rows, details | {"sizes": chosen.get("sizes", {})}


def _measure_mapped(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    """Scores of models with a map in the place of their last layers. Maps are fitted once in a session."""
    (rule,) = job.key["cuts"]
    asked = (rule, job.key["dtype"], *job.key["map"].values())
    if asked not in subject.drawn:
        subject.drawn[asked] = _make_end_mapper(job, rule, subject)
    return score_changed(job, subject.open(job.key), subject.drawn[asked], subject.options, shards)


def _make_end_mapper(job: Job, rule: str, subject: Subject) -> Callable[[Cut], Any]:
    """A function from a cut of the last layers to the model with a map in their place. All maps are fitted on the
    residuals of one pass, and models are cached, as several tasks need the same one."""
    settings = job.key["map"]
    largest = max(cut.size for cut in job.cuts)

    @functools.cache
    def record_residuals():
        model, tokenizer = subject.open(job.key)
        corpus = settings["corpus"]
        sequences = settings["sequences"]
        length = settings["length"]
        text = read_training_text(tokenizer, corpus, sequences, length, subject.options.datasets)
        return rules.EndResiduals(model, text, largest)

    @functools.cache
    def changed(cut: Cut):
        model, _ = subject.open(job.key)
        fitted = rules.FITTED[rule](model, record_residuals(), cut.size)
        return rules.replace_last_layers(model, cut.size, fitted)

    return changed


def _measure_healed(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    (healing,) = job.needs
    opened = subject.open(job.key)
    rows, details = score_changed(
        job, opened, lambda _: healings.load_scored_model(healing, subject), subject.options, shards
    )
    return rows, details | {"healed_tokens": needs[0].details["tokens"]}


# ---- what rules need, and what they choose -----------------------------------------------------------------------


def _measure_search(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    """One step of a search: the losses of its candidates on the sequences of the distances."""
    model, tokenizer = subject.open(job.key)
    ((corpus, asked),) = job.key["tasks"].items()
    drawn = {
        "corpus": corpus,
        "samples": asked["limit"],
        "sequence_length": asked["length"],
        "seed": job.key["seed"],
    }
    sequences = draw_sequences(tokenizer, drawn, subject)
    table, _ = sweeping.text_loss(model, job.cuts, sequences, shards=shards)
    rows = table[[*SCORE]].to_dict("records")
    rows = [row | {"task": corpus, "cut": cut.name} for cut, row in zip(job.cuts, rows)]
    return rows, {"tokens": sum(map(len, sequences))}


def _measure_choice(job: Job, needs: Needs, subject: Subject, shards: Shards) -> Measured:
    """The cuts of a rule, and the losses that they leave. Details hold the cuts, the sizes of cuts of sublayers, and
    the merged layers. Raises InputError if the rule does not fit the model or a size."""
    choice = job.key["choice"]
    layers = subject.source.num_layers
    rule = REGISTERED[choice["rule"]]
    sizes = choice["sizes"]
    opened = subject.open(job.key)
    merged = {}
    if needs:
        inputs: Any = distance_matrix(needs[0].rows)
    else:
        text = _read_calibration_text(job, opened[1], "calibration_sequences", subject)
        inputs = rules.measure_rule_needs(opened[0], rule.name, text, shards)
        if rule.needs == "likeness":
            merged = {str(size): choose_merges(size, layers, inputs) for size in sizes}
    cuts = rule.choose(sizes, layers, inputs)
    if rule.changes:
        changed = _make_model_changer(job, merged, subject)
        rows, details = score_changed(job, opened, changed, subject.options, shards, cuts)
    else:
        rows, details = score_models(job, opened, cuts, subject.options, shards)
    # how many layers a cut of sublayers counts as
    counted = {
        cut.name: size for size, cut in zip(sizes, cuts, strict=True) if not cut.is_of_layers
    }
    names = {rule.name: [cut.name for cut in cuts]}
    return rows, details | {"cuts": names, "merged": merged, "sizes": counted}


def _make_model_changer(
    choice: Job, merged: dict[str, list], subject: Subject
) -> Callable[[Cut], Any]:
    """A function from a cut to the changed model of a rule. Models are cached, as several tasks need the same one.
    `merged` maps a size to the layers that are left, for a rule that merges layers."""

    @functools.cache
    def changed(cut: Cut):
        model, tokenizer = subject.open(choice.key)
        text = _read_calibration_text(choice, tokenizer, "bridge_sequences", subject)
        rule = REGISTERED[choice.key["choice"]["rule"]]
        return rules.change_model(model, rule, cut, merged.get(str(cut.size), []), text)

    return changed


def read_training_text(
    tokenizer, corpus: str, sequences: int, length: int, datasets: str | None
) -> list:
    """The token ids of the first `sequences` sequences of the training split of a corpus, each [T]: on these compared
    rules are calibrated, and bridges fitted."""
    documents = data.texts(corpus, datasets=datasets, **CALIBRATION)
    return data.token_sequences(tokenizer, documents, length=length, tokens=sequences * length)


def _read_calibration_text(choice: Job, tokenizer, which: str, subject: Subject) -> list:
    """The text of a choice for its "calibration_sequences" or "bridge_sequences"."""
    settings = choice.key["choice"]["calibration"]
    length = settings.get("loss_length", USUAL_LENGTH)
    return read_training_text(
        tokenizer, settings["corpus"], settings[which], length, subject.options.datasets
    )


def measure_needs(rule: str, subject: Subject) -> Any:
    """What a rule needs to know of the model from one pass over the sequences of the distances: measured each time, and
    not kept. Raises NotMeasuredError if nothing is to be measured."""
    if not subject.options.measure:
        subject.refuse(f"the {REGISTERED[rule].needs} that the rule {rule!r} needs")
    model, tokenizer = subject.open()
    return rules.measure_rule_needs(model, rule, draw_options_sequences(subject, tokenizer))


def draw_options_sequences(subject: Subject, tokenizer) -> list:
    """The sequences of the distances that the options of a session ask for, each [T]."""
    return draw_sequences(
        tokenizer, {name: getattr(subject.options, name) for name in SEQUENCES}, subject
    )


FORMS: dict[str, Callable[[Job, Needs, Subject, Shards], Measured]] = {
    "distances": _measure_distances,
    "geometry": _measure_geometry,
    "scores": _measure_scores,
    "until": _measure_until,
    "changed": _measure_changed,
    "mapped": _measure_mapped,
    "healed": _measure_healed,
    "search": _measure_search,
    "choice": _measure_choice,
    "healing": healings.measure_healing,
    "rounded": take_away.measure_rounded,
    "file": take_away.measure_file,
}
