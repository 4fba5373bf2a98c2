"""A pruned model, healed and scored: for each cut and each way of healing a result of the run and one of the scores."""

import contextlib
import dataclasses
import functools
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


@dataclasses.dataclass(frozen=True)
class Healing:
    """A cut of a model, and how what is left heals; the adapters stay in the cache, for other tasks and checkpoints.

    What heals raises InputError where the loss is measured on documents that heal, and what `train` raises.
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
        """What determines it, besides the model, the cut and the fingerprint of its text."""
        parameters = self.experiment.parameters
        return parameters.key | {"healing": self.config.settings, "text": parameters.text}

    def run(self) -> Result | None:
        """Its training loss by step: read from results, else healed; None where nothing is to be measured."""

        def measure(_):
            record = dataclasses.asdict(self._healed()[1])
            return [{"step": step, "loss": loss} for step, loss in enumerate(record.pop("losses"), start=1)], record

        return self.experiment.result("healing", self.settings | {"cut": self.cut.name}, [self.text], measure)

    def run_and_scores(self, rules: Sequence[str] = (GIVEN,)) -> tuple[Result, Result] | None:
        """And the healed model's loss on text and scores; `rules` are those whose choice the cut is.

        None where nothing is to be measured and results hold not both.
        """
        run = self.run()
        scores = score(
            self.experiment.parameters.questions,
            {rule: [self.cut] for rule in rules},
            self.experiment,
            changed=lambda _: self._healed()[0].get_base_model(),
            reads=[self.text],
            details={"healed_tokens": run.details["tokens"]} if run else {},
            **self.settings,
        )
        return (run, scores) if run and scores else None

    def adapters(self) -> Path:
        """Their folder, as `save_adapters` writes it: healed where it is not there yet."""
        if self._record() is None:
            self._healed()
        return self._folder

    @functools.cached_property
    def _folder(self) -> Path:
        """Named after all that determines them."""
        source = self.experiment.source
        of_model = {"model": source.key, "dtype": source.dtype, "version": VERSION, "cut": self.cut.key}
        text = {"data": self.text.fingerprint(self.experiment.parameters.datasets)}
        return cache_folder() / "healed" / key_hash(of_model | self.settings | text) / "adapter"

    def _record(self) -> "healing.Record | None":
        """Its course, which is written last; None where it is not in the cache."""
        with contextlib.suppress(InputError, KeyError):
            said = export.read_adapter(self._folder).healing or {}
            return healing.Record(**{of.name: said[of.name] for of in dataclasses.fields(healing.Record)})
        return None

    def _healed(self):
        """The healed model and its record: from the cache where it was healed before, else trained and put there."""
        from deeper_layers.pruning import drop_layers  # torch, where there is something to heal

        (whole, tokenizer), source = self.experiment.opened(), self.experiment.source
        cut, config, parameters = self.cut, self.config, self.experiment.parameters
        texts = data.texts(parameters.text, datasets=parameters.datasets, **self.text.part)
        kept = data.texts(parameters.text, split="validation", datasets=parameters.datasets)
        if shared := set(texts) & set(kept):
            raise InputError(f"{len(shared)} documents of {parameters.text} heal and give the loss, choose another")
        pruned, checkpoints = drop_layers(whole, cut), self._folder.with_name("checkpoints")
        if record := self._record():
            healed = healing.load_adapters(pruned, self._folder, source.key, cut)
        else:
            said = f"healing {source.name}: {cut.describe(source.num_layers)}, {config.tokens:,} tokens"
            print(said, file=sys.stderr)
            beside = whole if config.auxiliary or config.objective == "distill" else None
            healed, record = healing.train(pruned, tokenizer, texts, config, folder=checkpoints, cut=cut, whole=beside)
            told = {"config": config.settings, "text": parameters.text} | dataclasses.asdict(record)
            healing.save_adapters(healed, self._folder, source.key, cut, told)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return healed, record
