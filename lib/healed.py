"""A pruned model, healed and scored: for each cut and each way of healing one unit."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lib import corpora, evaluation
from lib.adapters import load_adapters, save_adapters
from lib.errors import InputError
from lib.healing import Record, train
from lib.losses import loss_sequences, text_loss
from lib.models import Source
from lib.parameters import HealingParameters
from lib.presets import HealingConfig
from lib.pruning import Cut, drop_layers
from lib.results import Shards, Unit, key_hash, measure_or_load, write_whole
from lib.sweep import sweep
from lib.wheels import cache_folder

VERSION = 1  # part of every unit's key: raise it when a change here or in lib.healing changes numbers
TOKENS_OF_A_DOCUMENT = 200  # at least, on average: so many documents are read for a budget of tokens


def healing_unit(
    cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source, opened: Callable
) -> Unit | None:
    """A healed model's loss on text and scores: read from results, else healed and measured.

    Rows: task, metric, start, size, value, stderr, items, as a sweep has them, and the loss on text as metric
    "loss". Details: the curve of the training loss, tokens, seconds in training, and what `lib.sweep` keeps.
    The adapters stay in the cache, so that other tasks can be scored without healing again. None where
    nothing is to be measured and results hold no such unit.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """
    settings = dataclasses.asdict(config)
    del settings["save_every"]
    training = {
        "model": source.key,
        "dtype": source.dtype,
        **parameters.key,
        "cut": [cut.start, cut.size],
        "healing": settings,
        "text": parameters.text,
        "version": VERSION,
    }
    key = training | {
        "loss": parameters.loss_key,
        "tasks": dict(sorted(parameters.shots.items())),
        "limit": parameters.limit,
    }
    if set(parameters.limits.values()) != {parameters.limit}:  # "task@20"
        key["limits"] = dict(sorted(parameters.limits.items()))
    documents = max(1000, config.tokens // TOKENS_OF_A_DOCUMENT)

    def fingerprint_of(split, number):
        return corpora.text_fingerprint(parameters.text, split=split, datasets=parameters.datasets, documents=number)

    def fingerprint():
        tasks = [evaluation.data_fingerprint(task, parameters.datasets) for task in sorted(parameters.shots)]
        return ", ".join(
            dict.fromkeys([fingerprint_of("train", documents), fingerprint_of("validation", 20_000), *tasks])
        )

    def measure(shards):
        whole, tokenizer = opened()
        texts = corpora.texts(parameters.text, split="train", datasets=parameters.datasets, documents=documents)
        check_apart(texts, corpora.texts(parameters.text, split="validation", datasets=parameters.datasets))
        folder = cache_folder() / "healed" / key_hash(training | {"data": fingerprint_of("train", documents)})
        healed, record = _healed(whole, tokenizer, texts, cut, config, folder, source)
        base = healed.get_base_model()
        whole_of_it = [Cut(0, 0)]
        rows, of_sequences = text_loss(
            base, whole_of_it, loss_sequences(parameters, tokenizer), shards=Shards(shards.folder / "loss")
        )
        rows.insert(0, "task", parameters.text)
        tables, outcomes, levels = [rows], {}, {}
        for task, shots in parameters.shots.items():
            table = sweep(
                base, tokenizer, [task], whole_of_it, limit=parameters.limits[task], num_fewshot=shots,
                datasets=parameters.datasets, shards=Shards(shards.folder / task),
            )  # fmt: skip
            tables.append(table)
            outcomes |= table.attrs["outcomes"]["0,0"]
            levels |= table.attrs["levels"]
        table = pd.concat(tables, ignore_index=True).assign(start=cut.start, size=cut.size)
        return table, {
            "healing": dataclasses.asdict(record),
            "by_sequence": of_sequences["0,0"],
            "vocabulary": base.get_output_embeddings().weight.shape[0],
            "outcomes": outcomes,
            "levels": levels,
            "num_layers": source.num_layers,
            "weights": source.quantized,
        }

    at_hand = all(corpora.is_at_hand(name, parameters.datasets) for name in (parameters.text, *parameters.shots))
    return measure_or_load(
        "healing", f"{cut.start}-{cut.size}", key, measure, parameters.results_folder,
        data=fingerprint, at_hand=at_hand, allowed=parameters.measure,
    )  # fmt: skip


def check_apart(healing: list[str], loss: list[str]) -> None:
    """Raise InputError where a document is in both: a loss on what was learned by heart says nothing."""
    if shared := set(healing) & set(loss):
        raise InputError(
            f"{len(shared)} documents are among those that heal and those of the loss ({min(shared)[:40]!r}, ...): "
            "expected none, choose another text"
        )


def _healed(whole, tokenizer, texts, cut: Cut, config: HealingConfig, folder: Path, source: Source):
    """The healed model and its record: from the cache where it was healed before, else trained and put there."""
    pruned, adapter, kept = drop_layers(whole, cut), folder / "adapter", folder / "record.json"
    if kept.exists():
        record = Record(**json.loads(kept.read_text(encoding="utf-8")))
        return load_adapters(pruned, adapter, source.key, cut), record
    print(f"healing {source.name}: {cut.describe(source.num_layers)}, {config.tokens:,} tokens")
    options = {"cut": cut, "whole": whole} if config.auxiliary else {"cut": cut}
    healed, record = train(pruned, tokenizer, texts, config, folder=folder / "checkpoints", **options)
    save_adapters(healed, adapter, source.key, cut)
    write_whole(kept, json.dumps(dataclasses.asdict(record)).encode())
    shutil.rmtree(folder / "checkpoints")
    return healed, record
