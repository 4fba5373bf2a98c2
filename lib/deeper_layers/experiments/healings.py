"""A pruned model, healed and scored: for each cut and each way of healing a result of the run and one of the scores."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from deeper_layers import data, export, healing
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import Data, Experiment
from deeper_layers.experiments.scoring import score
from deeper_layers.package_index import cache_folder
from deeper_layers.presets import HealingConfig
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result, key_hash

VERSION = 2  # raise it when adapters in the cache are no longer what training gives
TOKENS_OF_A_DOCUMENT = 200  # at least, on average: so many documents are read for a budget of tokens


def heal(cut: Cut, config: HealingConfig, experiment: Experiment) -> Result | None:
    """The run of a healing, its training loss by step: read from results, else healed; adapters stay in the cache."""

    def measure(_):
        record = dataclasses.asdict(_healed(cut, config, experiment)[1])
        return [{"step": step, "loss": loss} for step, loss in enumerate(record.pop("losses"), start=1)], record

    settings = _settings(config, experiment) | {"cut": cut.name}
    return experiment.result("healing", settings, [_healing_text(config, experiment)], measure)


def course_of(run: Result) -> dict:
    """The course of a healing, as `healing.Record` has it."""
    kept = {name: run.details[name] for name in ("tokens", "distinct_tokens", "trained_parameters", "seconds")}
    return {"losses": [row["loss"] for row in run.records]} | kept


def heal_and_score(
    cut: Cut, config: HealingConfig, experiment: Experiment, rules: Sequence[str] = (GIVEN,)
) -> tuple[Result, Result] | None:
    """A healing, and the healed model's loss on text and scores: read from results, else healed and measured.

    The first has the training loss by step; `rules` are those whose choice the cut is. The adapters stay in the cache,
    so that other tasks can be scored without healing again. None where nothing is to be measured and results hold not
    both.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """
    run = heal(cut, config, experiment)
    scores = score(
        experiment.parameters.questions,
        {rule: [cut] for rule in rules},
        experiment,
        changed=lambda cut: _healed(cut, config, experiment)[0].get_base_model(),
        reads=[_healing_text(config, experiment)],
        details={"healed_tokens": run.details["tokens"]} if run else {},
        **_settings(config, experiment),
    )
    return (run, scores) if run and scores else None


def adapter_folder(cut: Cut, config: HealingConfig, experiment: Experiment) -> Path:
    """The folder of a healing's adapters, as `save_adapters` writes it: in the cache, healed where it is not there yet.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """
    folder = _folder(cut, config, experiment)
    if _record(folder) is None:
        _healed(cut, config, experiment)
    return folder


def check_apart(healing: list[str], loss: list[str]) -> None:
    """Raise InputError where a document is in both: a loss on what was learned by heart says nothing."""
    if shared := set(healing) & set(loss):
        raise InputError(
            f"{len(shared)} documents are among those that heal and those of the loss ({min(shared)[:40]!r}, ...): "
            "expected none, choose another text"
        )


def _healed(cut: Cut, config: HealingConfig, experiment: Experiment):
    """The healed model and its record: from the cache where it was healed before, else trained and put there."""
    from deeper_layers.pruning import drop_layers  # torch, where there is something to heal

    (whole, tokenizer), source, parameters = experiment.opened(), experiment.source, experiment.parameters
    texts = data.texts(parameters.text, datasets=parameters.datasets, **_part(config))
    check_apart(texts, data.texts(parameters.text, split="validation", datasets=parameters.datasets))
    pruned, folder = drop_layers(whole, cut), _folder(cut, config, experiment)
    checkpoints = folder.with_name("checkpoints")
    if record := _record(folder):
        healed = healing.load_adapters(pruned, folder, source.key, cut)
    else:
        print(f"healing {source.name}: {cut.describe(source.num_layers)}, {config.tokens:,} tokens", file=sys.stderr)
        beside = whole if config.auxiliary or config.objective == "distill" else None
        healed, record = healing.train(pruned, tokenizer, texts, config, folder=checkpoints, cut=cut, whole=beside)
        said = {"config": config.settings, "text": parameters.text} | dataclasses.asdict(record)
        healing.save_adapters(healed, folder, source.key, cut, said)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return healed, record


def _record(adapters: Path) -> "healing.Record | None":
    """The course of a healing in the cache, of which it is written last; None where it is not there."""
    with contextlib.suppress(InputError, KeyError):
        said = export.read_adapter(adapters).healing or {}
        return healing.Record(**{of.name: said[of.name] for of in dataclasses.fields(healing.Record)})
    return None


def _folder(cut: Cut, config: HealingConfig, experiment: Experiment) -> Path:
    """Where the adapters of a healing are kept, named after all that determines them."""
    of_model = {"model": experiment.source.key, "dtype": experiment.source.dtype, "version": VERSION, "cut": cut.key}
    text = {"data": _healing_text(config, experiment).fingerprint()}
    return cache_folder() / "healed" / key_hash(of_model | _settings(config, experiment) | text) / "adapter"


def _settings(config: HealingConfig, experiment: Experiment) -> dict:
    """What determines a healing, besides the model, the cut and the fingerprint of its text."""
    return experiment.parameters.key | {"healing": config.settings, "text": experiment.parameters.text}


def _healing_text(config: HealingConfig, experiment: Experiment) -> Data:
    return experiment.text(experiment.parameters.text, **_part(config))


def _part(config: HealingConfig) -> dict:
    return {"split": "train", "documents": max(1000, config.tokens // TOKENS_OF_A_DOCUMENT)}
