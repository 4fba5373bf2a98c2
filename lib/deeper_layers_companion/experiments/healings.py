"""Heal and score a pruned model. Each cut and way of healing has two results: the training run, and the scores."""

import contextlib
import dataclasses
import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from deeper_layers import data, export, files, healing
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.package_index import cache_folder
from deeper_layers.presets import HealingConfig
from deeper_layers_companion.experiments.experiment import Data, Experiment
from deeper_layers_companion.experiments.scoring import score
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.results.store import Result, hash_key

VERSION = 2  # raise it when training gives other adapters than those in the cache
TOKENS_OF_A_DOCUMENT = 200  # the least average; it says how many documents are read for a number of tokens


@dataclasses.dataclass(frozen=True)
class Healing:
    """A cut, and how the pruned model is healed. The adapters stay in the cache, for other tasks and checkpoints.

    Healing raises what `train` raises, and InputError if training and validation share documents.
    """

    cut: Cut
    config: HealingConfig
    experiment: Experiment

    @property
    def text(self) -> Data:
        documents = max(1000, self.config.tokens // TOKENS_OF_A_DOCUMENT)
        return Data(self.experiment.parameters.text, {"split": "train", "documents": documents})

    @property
    def settings(self) -> dict:
        """All that determines the healing, besides the model, the cut and the fingerprint of its text."""
        parameters = self.experiment.parameters
        return parameters.base_settings | {"healing": self.config.settings, "text": parameters.text}

    def heal(self) -> Result | None:
        """The training loss by step: read from results, else healed now; None if nothing is to be measured."""

        def measure(_):
            record = dataclasses.asdict(self._load_or_train()[1])
            record = {name: value for name, value in record.items() if value != ""}  # nothing was tuned but adapters
            return [{"step": step, "loss": loss} for step, loss in enumerate(record.pop("losses"), start=1)], record

        return self.experiment.find_or_measure("healing", self.settings | {"cut": self.cut.name}, [self.text], measure)

    def heal_and_score(self, rules: Sequence[str] = (GIVEN,)) -> tuple[Result, Result] | None:
        """The results of the run and of the healed model's scores and losses, or None if one of them is not measured.
        `rules` are those that choose the cut."""
        run = self.heal()
        scores = score(
            self.experiment.parameters.task_settings,
            {rule: [self.cut] for rule in rules},
            self.experiment,
            changed=lambda _: self._make_scored_model(),
            reads=[self.text],
            details={"healed_tokens": run.details["tokens"]} if run else {},
            **self.settings,
        )
        return (run, scores) if run and scores else None

    def find_adapters(self) -> Path:
        """The folder of the adapters, as `save_adapters` writes it. Heals the model if there is none yet."""
        if self._read_record() is None:
            self._load_or_train()
        return self._folder

    def _make_scored_model(self):
        """The healed model with its adapters; where weights themselves were trained, the plain model of them."""
        healed = self._load_or_train()[0]
        if self.config.last_layers:
            return healing.merge_adapters(healed, self.experiment.open_model()[0].dtype)
        return healed.get_base_model()

    @functools.cached_property
    def _folder(self) -> Path:
        """The folder of the adapters in the cache, named after all that determines them."""
        source = self.experiment.source
        model = {"model": source.key, "dtype": source.dtype, "version": VERSION, "cut": self.cut.key}
        text = {"data": self.text.fingerprint(self.experiment.parameters.datasets)}
        return cache_folder() / "healed" / hash_key(model | self.settings | text) / "adapter"

    def _read_record(self) -> "healing.Record | None":
        """The record of the training, which is written last; None if it is not in the cache."""
        with contextlib.suppress(InputError, TypeError):
            recorded = export.read_adapter(self._folder).healing or {}
            names = [field.name for field in dataclasses.fields(healing.Record) if field.name in recorded]
            return healing.Record(**{name: recorded[name] for name in names})
        return None

    def _load_or_train(self):
        """The healed model and the record of its training: from the cache, else trained and written to the cache."""
        from deeper_layers.pruning import drop_layers  # imports torch

        (whole, tokenizer), source = self.experiment.open_model(), self.experiment.source
        cut, config, parameters = self.cut, self.config, self.experiment.parameters
        texts = data.texts(parameters.text, datasets=parameters.datasets, **self.text.part)
        validation_texts = data.texts(parameters.text, split="validation", datasets=parameters.datasets)
        if shared := set(texts) & set(validation_texts):
            raise InputError(f"{len(shared)} documents of {parameters.text} heal and give the loss, choose another")
        pruned, checkpoints = drop_layers(whole, cut), self._folder.with_name("checkpoints")
        if record := self._read_record():
            healed = healing.load_adapters(pruned, self._folder, source.key, cut)
        else:
            message = f"healing {source.name}: {cut.describe(source.num_layers)}, {config.tokens:,} tokens"
            print(message, file=sys.stderr)
            teacher = whole if config.auxiliary or config.objective == "distill" else None
            healed, record = healing.train(pruned, tokenizer, texts, config, folder=checkpoints, cut=cut, whole=teacher)
            healing_settings = {"config": config.settings, "text": parameters.text} | dataclasses.asdict(record)
            healing.save_adapters(healed, self._folder, source.key, cut, healing_settings)
        shutil.rmtree(checkpoints, ignore_errors=True)
        files.remove_leftovers(self._folder)
        return healed, record
