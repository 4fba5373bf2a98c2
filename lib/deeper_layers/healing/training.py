"""Healing: a short fine-tune of low-rank adapters on a pruned model (QLoRA), at the paper's settings or others.

Source: Gromov et al., arXiv 2403.17887, section 3.3 and appendix A.1. The loop is the Trainer of transformers,
the adapters are peft's; `deeper_layers.presets` has the settings.

Two variants of our own: an auxiliary loss at the cut, which the authors suggest in a footnote and did not try,
and adapters above the cut only, whose layers below it then run once for all epochs. And the way of others, distillation
(`deeper_layers.healing.distillation`), for which the auxiliary loss is a loss of hidden states.

Letters in shapes: B sequences, T tokens, D width.
"""

import contextlib
import ctypes
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.healing.adapters import add_adapters
from deeper_layers.healing.distillation import IGNORED, Teacher
from deeper_layers.healing.joint import Joint
from deeper_layers.healing.learning_text import sequences_to_learn
from deeper_layers.healing.resumed_trainer import ResumedTrainer
from deeper_layers.healing.resuming import Checkpoints, check_disk, checkpoints_in, identity_of
from deeper_layers.models.decoder import num_layers, text_config
from deeper_layers.models.streaming import replaced
from deeper_layers.presets import HealingConfig
from deeper_layers.pruning import drop_layers

MEMORY = 2**30  # bytes of residuals below the cut that are kept; where they are more, those layers run every time


@dataclass(frozen=True)
class Record:
    """What a healing did.

    Attributes:
        losses: what was minimized at each step: mean cross-entropy in nats a token, or mean divergence from the
            unpruned model, and the auxiliary loss if any.
        tokens: trained on, padding not counted.
        distinct_tokens: of the text that was at hand for them.
        trained_parameters: in the adapters.
        seconds: in training, those before an interruption included up to the checkpoint that it went on from.
    """

    losses: list[float]
    tokens: int
    distinct_tokens: int
    trained_parameters: int
    seconds: float


def heal(model: PreTrainedModel, tokenizer, texts: list[str], config: HealingConfig, **options) -> PeftModel:
    """Heal a pruned model by a short fine-tune of low-rank adapters on text (QLoRA).

    Source: paper, section 3.3 and appendix A.1. `healing.train` takes the same and also says what it took.

    Args:
        model: what `drop_layers` gave, quantized or not; its weights stay as they are.
        tokenizer: that of the model.
        texts: documents to learn from.
        config: settings, such as `PRESETS["small"]`.
        options: cut, whole and folder, as `healing.train` takes them; with a folder an interrupted healing goes on.

    Returns:
        The model with its adapters, ready to answer; `merge_adapters` makes a plain model of it.

    Raises:
        InputError: the model has no feed-forward layers to adapt, the texts don't fill one step, the folder holds
            another healing, the disk is too full for checkpoints, or the loss became not-a-number or infinite.

    Example:
        >>> import dataclasses
        >>> from deeper_layers import PRESETS, drop_layers, heal, load_model, simple_cut
        >>> model, tokenizer = load_model("embedded")
        >>> pruned = drop_layers(model, simple_cut(num_layers=30, size=20))
        >>> little = dataclasses.replace(PRESETS["small"], steps=1, warmup_steps=0, batch_sequences=1, at_once=1,
        ...     sequence_length=16, quantization=None)
        >>> healed = heal(pruned, tokenizer, ["A few words to learn from, again and again. " * 4], little)
        >>> healed.peft_config["default"].r
        8
    """
    return train(model, tokenizer, texts, config, **options)[0]


def train(
    model: PreTrainedModel,
    tokenizer,
    texts: list[str],
    config: HealingConfig,
    *,
    cut: Cut | None = None,
    whole: PreTrainedModel | Path | None = None,
    folder: Path | None = None,
) -> tuple[PeftModel, Record]:
    """Heal a pruned model by a fine-tune of adapters on texts: the model with its adapters, and what it took.

    Args:
        model: what `drop_layers` gave, quantized or not; its weights stay as they are.
        tokenizer: that of the model.
        texts: documents to learn from, in an order that the seed draws, again from the beginning when they end.
        config: how.
        cut: what was dropped; needed for adapters "above" it, for the auxiliary loss, and to distill where no layer
            was.
        whole: the unpruned model, for the auxiliary loss and as the teacher of a distillation, which may also be the
            folder in which `healing.keep_teacher` left its states.
        folder: where checkpoints are kept. With the same arguments a healing that was interrupted goes on from the
            last of them and ends with the same adapters; without, an interruption loses it.

    Under torchrun or `accelerate launch` the processes share the sequences of each step and all return the same
    adapters. In float32, and without dropout, of which each process draws its own, the losses are those of one process
    within 1e-5. Where all see the folder, any number of them goes on from the checkpoints of any other.

    Raises:
        InputError: `add_adapters` refuses the model or the rank, what a variant needs was not given, there is no
            teacher to distill from (see `Teacher`), the texts don't fill one step, the folder holds another healing,
            the disk is too full for checkpoints, the processes can't share a step, or the loss became not-a-number or
            infinite.
    """
    sequences = sequences_to_learn(tokenizer, texts, config)
    if (config.adapters == "above" and cut is None) or (config.auxiliary and (cut is None or whole is None)):
        raise InputError("adapters 'above' need cut=, the auxiliary loss needs cut= and whole=: pass them")
    if config.auxiliary and not cut.is_block:
        raise InputError(f"the auxiliary loss compares what enters and leaves a block, the cut is {cut}: leave it out")
    if config.auxiliary and cut.start >= num_layers(model):
        raise InputError(
            f"the auxiliary loss compares what enters the layer above the cut, and there is none above {cut}: leave it "
            "out, or drop layers below the last one"
        )
    teacher = None if config.objective != "distill" else Teacher(whole, model, config, cut)
    healed = add_adapters(
        model,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        first_layer=cut.start if config.adapters == "above" else 0,
        seed=config.seed,
    )
    keep_freed_memory()
    identity = identity_of(healed, config, cut, sequences, teacher and teacher.whole)
    with checkpoints_in(folder, identity) as checkpoints, _deterministic():
        watch, variant = _Watch(config, checkpoints), _Variant(healed, config, cut, whole, teacher)
        trainer = _Healer(
            model=healed,
            args=_arguments(config, checkpoints.place, model.device, checkpoints=folder is not None),
            train_dataset=variant.examples(sequences),
            data_collator=_collate,
            callbacks=[watch],
            variant=variant,
            checkpoints=checkpoints,
            watch=watch,
        )
        trainer.remove_callback(PrinterCallback)
        if folder is not None:
            check_disk(checkpoints.place, healed)
        trainer.go_on()
    record = Record(
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        tokens=int(trainer.state.num_input_tokens_seen),
        distinct_tokens=sum(map(len, sequences)),
        trained_parameters=sum(p.numel() for p in healed.parameters() if p.requires_grad),
        seconds=round(watch.seconds, 2),
    )
    return healed.eval(), record


class _Healer(ResumedTrainer):
    """The Trainer, with the variants' losses and a count of tokens that padding is not part of."""

    def __init__(self, *, variant: "_Variant", **options):
        super().__init__(**options)
        self.variant = variant

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(tokens))
        # a model that is told how many tokens a step has gives a sum over them; any other the mean of a part of it
        share = 1 / self.args.gradient_accumulation_steps if self.model_accepts_loss_kwargs else 1.0
        run = functools.partial(super().compute_loss, return_outputs=False, num_items_in_batch=num_items_in_batch)
        if (teacher := self.variant.teacher) is not None:
            # over processes gradients are averaged, and the items are those of all
            of_all = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            items = num_items_in_batch / self.accelerator.num_processes if of_all else None
            run = functools.partial(teacher.loss, items=items)
        healed = self.accelerator.unwrap_model(model)
        return _through(model, healed, lambda: self.variant.loss(run, healed, inputs, share))


def _through(wrapper: torch.nn.Module, model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A loss of a model, computed as the forward pass of what wraps it to average gradients over processes.

    Not every loss runs the model's own forward pass, by which a wrapper knows that gradients will come.
    """
    if wrapper is model:
        return loss()
    forward = model.forward

    def run() -> torch.Tensor:
        with replaced(model, forward):
            return loss()

    with replaced(model, run):
        return wrapper()


class _Variant:
    """What is run for a step: the pruned model, or what is above the cut, or with it the unpruned one below."""

    def __init__(self, healed: PeftModel, config: HealingConfig, cut: Cut | None, whole, teacher: Teacher | None):
        self.base, self.config, self.cut = Joint(healed.get_base_model()), config, cut
        self.whole = Joint(whole) if config.auxiliary else None
        self.teacher = teacher
        self.above: Joint | None = None

    def examples(self, sequences: list[torch.Tensor]) -> list[dict]:
        """Each sequence [T] with its labels and, for adapters above the cut, the residual [T, D] that enters there."""
        examples = [{"input_ids": tokens} for tokens in sequences]
        width = text_config(self.base.model.config).hidden_size * self.base.dtype.itemsize
        fits = sum(map(len, sequences)) * width <= MEMORY
        if self.config.adapters == "above" and self.cut.start > 0 and fits:
            # its modules are its own, the adapters in them are those that are trained
            self.above = Joint(drop_layers(self.base.model, Cut(0, self.cut.start)))
            if self.config.gradient_checkpointing:
                self.above.model.activation_checkpointing_enable({"use_reentrant": False})
            step = self.config.at_once
            for first in range(0, len(examples), step):
                batch = _collate(examples[first : first + step])
                residuals = self.base.residual(batch, self.cut.start)
                for example, residual in zip(examples[first : first + step], residuals):
                    example["residual"] = residual[: len(example["input_ids"])].clone()
        return examples

    def loss(self, run: Callable, model, inputs: dict, share: float) -> torch.Tensor:
        """The loss of a batch through `run(model, inputs)`; `share` is that of an auxiliary mean in a step's loss."""
        residual = inputs.pop("residual", None)
        if residual is not None:
            self.above.model.train(model.training)
            with self.above.entering(residual):
                return run(self.above.model, inputs)
        if self.whole is None:
            return run(model, inputs)
        target = self.whole.residual(inputs, self.cut.stop).float()
        with self.base.recording(self.cut.start) as residuals:
            loss = run(model, inputs)
        seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).unsqueeze(-1)
        difference = (residuals[-1].float() - target).square() * seen
        return loss + self.config.auxiliary * share * difference.sum() / (target.square() * seen).sum()


class _Watch(TrainerCallback):
    """Progress with the time left, and a stop where the loss is no number."""

    def __init__(self, config: HealingConfig, checkpoints: Checkpoints):
        self.config, self.checkpoints = config, checkpoints
        self.before = self._lasted = 0.0
        self._started = time.monotonic()  # what is prepared before the first step counts too
        self.bar = None

    @property
    def seconds(self) -> float:
        """In training so far."""
        return self.before + self._lasted

    def on_train_begin(self, args, state, control, **_):
        options = {"total": state.max_steps, "initial": state.global_step, "unit": "step", "mininterval": 5}
        self.bar = tqdm(desc="healing", file=sys.stderr, disable=not state.is_world_process_zero, **options)

    def on_step_end(self, args, state, control, **_):
        self._lasted = time.monotonic() - self._started
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}):  # the summary at the end
            return
        loss = logs["loss"]
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if not math.isfinite(loss):
            self.bar.close()
            last = self.checkpoints.last()
            kept = f"step {last[0].step} in {self.checkpoints.place}" if last else "none"
            raise InputError(
                f"the loss is {loss} at step {state.global_step} of {state.max_steps}, with learning_rate "
                f"{self.config.learning_rate}: lower it, or open the model in float32 (last good checkpoint: {kept})"
            )

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


def _arguments(config: HealingConfig, place: Path, device: torch.device, *, checkpoints: bool) -> TrainingArguments:
    """The Trainer's, which share the batches of a step between the processes that were started together."""
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError(
            "ACCELERATE_USE_FSDP is set, expected that each process holds the whole model, as adapters are kept and "
            "resumed here: start them without FSDP, or on one device with quantization 'nf4'"
        )
    reentrant = {"activation_checkpointing_kwargs": {"use_reentrant": False}} if config.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(place),
        max_steps=config.steps,
        warmup_steps=config.warmup_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        per_device_train_batch_size=config.at_once,
        activation_checkpointing=config.gradient_checkpointing,
        **reentrant,
        seed=config.seed,
        full_determinism=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        save_strategy="steps" if checkpoints else "no",
        save_steps=config.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )
    batches, processes = config.batch_sequences // config.at_once, arguments.world_size
    if batches % processes:
        raise InputError(
            f"{processes} processes were started for steps of {batches} batches (batch_sequences over at_once), "
            f"expected a divisor of {batches}: start so many, or change at_once"
        )
    arguments.gradient_accumulation_steps = batches // processes
    return arguments


def _collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """A batch: `input_ids` and `labels` [B, T], padded on the right where lengths differ, and then their mask."""
    lengths = [len(example["input_ids"]) for example in examples]
    padded = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    batch = {
        "input_ids": padded([example["input_ids"].long() for example in examples]),
        "labels": padded([example["input_ids"].long() for example in examples], padding_value=IGNORED),
    }
    if len(set(lengths)) > 1:
        batch["attention_mask"] = (batch["labels"] != IGNORED).long()
    if "residual" in examples[0]:
        batch["residual"] = padded([example["residual"] for example in examples])
    return batch


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to a gibibyte a piece, rather than give it back and ask for it anew.

    Every step frees and allocates large tensors, and the kernel fills with zeros what it hands out: on a processor
    that took a fifth of the time. Where the C library is another, nothing is done.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Full determinism is the Trainer's to begin and ours to end: it slows what comes after."""
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it did not write
    try:
        with mock.patch.dict(os.environ), torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.utils.deterministic.fill_uninitialized_memory = filled
