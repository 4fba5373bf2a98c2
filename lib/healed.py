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

VERSION = 2  # part of every unit's key: raise it when a change here or in lib.healing changes numbers
ADAPTER, RECORD = "adapter", "record.json"  # of a healing in the cache; the record is written last
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
    training = _training_key(cut, config, parameters, source)
    key = training | {
        "loss": parameters.loss_key,
        "tasks": dict(sorted(parameters.shots.items())),
        "limit": parameters.limit,
    }
    if set(parameters.limits.values()) != {parameters.limit}:  # "task@20"
        key["limits"] = dict(sorted(parameters.limits.items()))

    def fingerprint():
        tasks = [evaluation.data_fingerprint(task, parameters.datasets) for task in sorted(parameters.shots)]
        texts = [
            _text_fingerprint(parameters, "train", _documents(config)),
            _text_fingerprint(parameters, "validation"),
        ]
        return ", ".join(dict.fromkeys([*texts, *tasks]))

    def measure(shards):
        whole, tokenizer = opened()
        healed, record = _healed(whole, tokenizer, cut, config, parameters, source)
        base = healed.get_base_model()
        whole_of_it = [Cut(0, 0)]
        rows, of_sequences = text_loss(
            base, whole_of_it, loss_sequences(parameters, tokenizer), shards=Shards(shards.folder / "loss")
        )
        rows.insert(0, "task", parameters.text)
        tables, outcomes, levels = [rows], {}, {}
        for task in parameters.task_list:
            options = parameters.sweep_options(task)
            table = sweep(base, tokenizer, [task], whole_of_it, shards=Shards(shards.folder / task), **options)
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


def adapter_folder(
    cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source, opened: Callable
) -> Path:
    """The folder of a healing's adapters, as `save_adapters` writes it: in the cache, healed where it is not there yet.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """
    folder = _folder(cut, config, parameters, source)
    if not (folder / RECORD).exists():
        _healed(*opened(), cut, config, parameters, source)
    return folder / ADAPTER


def _healed(whole, tokenizer, cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source):
    """The healed model and its record: from the cache where it was healed before, else trained and put there."""
    texts = corpora.texts(parameters.text, split="train", datasets=parameters.datasets, documents=_documents(config))
    check_apart(texts, corpora.texts(parameters.text, split="validation", datasets=parameters.datasets))
    pruned, folder = drop_layers(whole, cut), _folder(cut, config, parameters, source)
    if (folder / RECORD).exists():
        record = Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        return load_adapters(pruned, folder / ADAPTER, source.key, cut), record
    print(f"healing {source.name}: {cut.describe(source.num_layers)}, {config.tokens:,} tokens")
    options = {"cut": cut, "whole": whole} if config.auxiliary else {"cut": cut}
    healed, record = train(pruned, tokenizer, texts, config, folder=folder / "checkpoints", **options)
    course = {"config": config.settings, "text": parameters.text} | dataclasses.asdict(record)
    save_adapters(healed, folder / ADAPTER, source.key, cut, course)
    write_whole(folder / RECORD, json.dumps(dataclasses.asdict(record)).encode())
    shutil.rmtree(folder / "checkpoints")
    return healed, record


def _folder(cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source) -> Path:
    """Where the adapters of a healing are kept, named after all that determines them."""
    data = _text_fingerprint(parameters, "train", _documents(config))
    return cache_folder() / "healed" / key_hash(_training_key(cut, config, parameters, source) | {"data": data})


def _training_key(cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source) -> dict:
    """What determines a healing, but for its text's fingerprint."""
    return {
        "model": source.key,
        "dtype": source.dtype,
        **parameters.key,
        "cut": [cut.start, cut.size],
        "healing": config.settings,
        "text": parameters.text,
        "version": VERSION,
    }


def _documents(config: HealingConfig) -> int:
    return max(1000, config.tokens // TOKENS_OF_A_DOCUMENT)


def _text_fingerprint(parameters: HealingParameters, split: str, documents: int = 20_000) -> str:
    return corpora.text_fingerprint(parameters.text, split=split, datasets=parameters.datasets, documents=documents)
