"""Heal a pruned model: the training run is one job, the scores of the healed model are another.

The adapters stay in the cache, for other tasks and checkpoints, in a folder named after all that determines them.
"""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path

from deeper_layers import data, export, files, healing
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.package_index import cache_folder
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.jobs.price import describe_healing
from deeper_layers_companion.jobs.subject import Subject, check_single_process
from deeper_layers_companion.results.store import Result, hash_key

VERSION = 2  # raise it when training gives other adapters than those in the cache


def measure_healing(
    job: Job, _needs: list[Result], subject: Subject, _shards: Shards
) -> tuple[list[dict], dict]:
    """The training loss by step, and what is known of the run."""
    record = dataclasses.asdict(_load_or_train(job, subject)[1])
    # nothing was tuned but adapters
    record = {name: value for name, value in record.items() if value != ""}
    return [
        {"step": step, "loss": loss} for step, loss in enumerate(record.pop("losses"), start=1)
    ], record


def find_adapters(job: Job, subject: Subject) -> Path:
    """The folder of the adapters of a healing, as `save_adapters` writes it. Heals the model if there is none yet."""
    folder = _find_folder(job, subject)
    if _read_record(folder) is None:
        _load_or_train(job, subject)
    return folder


def load_scored_model(job: Job, subject: Subject):
    """The healed model with its adapters; where weights themselves were trained, the plain model of them."""
    healed = _load_or_train(job, subject)[0]
    if job.key["healing"].get("last_layers"):
        model, _ = subject.open(job.key)
        return healing.merge_adapters(healed, model.dtype)
    return healed.get_base_model()


def _find_folder(job: Job, subject: Subject) -> Path:
    (text,) = job.reads
    cut = Cut.named(job.key["cut"])
    fingerprint = text.fingerprint(subject.options.datasets)
    key = job.key | {"version": VERSION, "cut": cut.key, "data": fingerprint}
    return cache_folder() / "healed" / hash_key(key) / "adapter"


def _read_record(folder: Path) -> "healing.Record | None":
    """The record of the training, which is written last; None if it is not in the cache."""
    with contextlib.suppress(InputError, TypeError):
        recorded = export.read_adapter(folder).healing or {}
        names = [
            field.name for field in dataclasses.fields(healing.Record) if field.name in recorded
        ]
        return healing.Record(**{name: recorded[name] for name in names})
    return None


def _load_or_train(job: Job, subject: Subject):
    """The healed model and the record of its training: from the cache, else trained and written to the cache. Raises
    what `train` raises, and InputError if training and validation share documents."""
    from deeper_layers.pruning import drop_layers  # imports torch

    check_single_process()
    (text,) = job.reads
    cut = Cut.named(job.key["cut"])
    corpus = text.name
    datasets = subject.options.datasets
    # how often it is saved determines no number
    config = HealingConfig(
        **job.key["healing"], save_every=PRESETS[subject.options.preset].save_every
    )
    whole, tokenizer = subject.open(job.key)
    texts = data.texts(corpus, datasets=datasets, **text.part)
    validation_texts = data.texts(corpus, split="validation", datasets=datasets)
    if shared := set(texts) & set(validation_texts):
        raise InputError(
            f"{len(shared)} documents of {corpus} heal and give the loss, choose another"
        )
    folder = _find_folder(job, subject)
    source = subject.source
    pruned = drop_layers(whole, cut)
    checkpoints = folder.with_name("checkpoints")
    if record := _read_record(folder):
        healed = healing.load_adapters(pruned, folder, source.key, cut)
    else:
        what = f"{source.name} {cut.describe(source.num_layers)}, {config.tokens:,} tokens"
        price = describe_healing(job, subject)
        print(f"healing {what}{price and f': {price}'}", file=sys.stderr)
        teacher = whole if config.auxiliary or config.objective == "distill" else None
        healed, record = healing.train(
            pruned, tokenizer, texts, config, folder=checkpoints, cut=cut, whole=teacher
        )
        settings = {"config": config.settings, "text": corpus} | dataclasses.asdict(record)
        healing.save_adapters(healed, folder, source.key, cut, settings)
    shutil.rmtree(checkpoints, ignore_errors=True)
    files.remove_leftovers(folder)
    return healed, record
