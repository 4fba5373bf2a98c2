"""Healing: a short fine-tune of low-rank adapters on a pruned model (QLoRA), at the paper's settings or others.

Source: Gromov et al., arXiv 2403.17887, section 3.3 and appendix A.1. The training loop, its checkpoints and resuming
are those of transformers' Trainer, the adapters are peft's; `deeper_layers.presets` has the settings.

Two variants are our own: an auxiliary loss at the cut, which the authors suggest in a footnote and did not try, and
adapters above the cut only. Two are known from others: distillation (distillation.py), and to train the head and the
last layers with all their weights in place of adapters (Lu et al., arXiv 2411.15558).

Letters in shapes: B sequences, T tokens, D width.
"""

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from deeper_layers.checks import check_path, short_repr
from deeper_layers.cuts import Cut, check_cut
from deeper_layers.errors import InputError, as_input_error, first_line
from deeper_layers.files import check_writable
from deeper_layers.healing.adapters import add_adapters, release_last_layers
from deeper_layers.healing.distillation import IGNORED, Teacher, draw_sequences
from deeper_layers.healing.state import check_model, hash_model, kept_random_state
from deeper_layers.models.decoder import decoder_layers, layers_path, num_layers
from deeper_layers.models.measuring import evaluating
from deeper_layers.models.network import replacing
from deeper_layers.presets import HealingConfig

STATE_FILE = "trainer_state.json"  # the last file of a checkpoint that the Trainer writes


@dataclass(frozen=True)
class Record:
    """The course of a healing."""

    # of each step: mean cross-entropy or divergence, nats a token, plus the auxiliary loss
    losses: list[float]
    tokens: int  # trained on, without padding
    distinct_tokens: int  # of the texts
    trained_parameters: int
    seconds: float  # of training; those before an interruption count up to the checkpoint from which it went on
    tuned: str = ""  # in words, what was trained with all its weights; "" where adapters were


def heal(
    model: PreTrainedModel, tokenizer, texts: list[str], config: HealingConfig, **options
) -> PeftModel:
    """Heal a pruned model by a short fine-tune of low-rank adapters on text (QLoRA).

    Under torchrun or `accelerate launch` the processes share the sequences of each step, and all return the same
    adapters. In float32 and without dropout the losses are those of one process within 1e-5. If all processes see the
    folder, a healing goes on from its checkpoints with any number of processes. `healing.train` also returns a
    `Record`. Source: paper, section 3.3 and appendix A.1.

    Args:
        model: the result of `drop_layers`, quantized or not. It stays as it was: weights, modules, modes, and which of
            its parameters take gradients.
        tokenizer: that of the model.
        texts: documents to learn from. The seed draws their order, and they are repeated when they end.
        config: settings, such as `PRESETS["small"]`.
        cut: what was dropped. Needed for adapters "above" it, the auxiliary loss, and to distill if it has no layers.
        whole: the unpruned model, for the auxiliary loss and as the teacher of a distillation.
        folder: where the Trainer's checkpoints are kept, each healing's in its own folder. An interrupted healing that
            is repeated with the same arguments goes on from the last checkpoint and ends with the same adapters.

    Returns:
        A copy of the model with adapters, in evaluation mode; `merge_adapters` makes a plain model of it. Weights that
        are frozen share memory with the model's. With `last_layers`, as in `PRESETS["head-and-last-3"]`, these and the
        head are trained in place of adapters. Then the copy is in float32, and the head has weights of its own where
        it shares them with the embedding, which is not trained.

    Raises:
        InputError: the model can't run, has adapters already or takes none, gradients are switched off, a variant lacks
            what it needs, the texts don't fill one step, checkpoints can't be written or read, the processes can't
            share a step, or the loss is not finite.

    Example:
        >>> import dataclasses
        >>> from deeper_layers import PRESETS, drop_layers, heal, load_model, simple_cut
        >>> model, tokenizer = load_model("embedded")
        >>> pruned = drop_layers(model, simple_cut(num_layers=30, size=20))
        >>> little = dataclasses.replace(PRESETS["small"], steps=1, batch_sequences=1, at_once=1, sequence_length=16,
        ...     quantization=None)
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
    whole: PreTrainedModel | None = None,
    folder: Path | None = None,
) -> tuple[PeftModel, Record]:
    """Heal a pruned model, see `heal`. Returns the model with its adapters, and a `Record`."""
    sequences = draw_sequences(tokenizer, texts, config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept_random_state())  # the Trainer seeds all generators
        stack.enter_context(evaluating(model, whole))
        check_model(model, sequences)
        _check_variant(model, config, cut, whole)
        if config.objective == "distill":
            teacher = Teacher(whole, model, config, cut)
        else:
            teacher = None
        healed = _add_what_learns(model, config, cut)
        keep_freed_memory()
        if folder is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            output = check_path("folder", folder) / _name_healing(
                healed, config, cut, sequences, whole
            )
            check_writable(output)
        progress = _Progress(config)
        trainer = Trainer(
            model=healed,
            args=_arguments(config, output, model.device, checkpoints=folder is not None),
            train_dataset=[{"input_ids": tokens} for tokens in sequences],
            data_collator=_collate,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        # the loss is computed in the forward pass, which the Trainer wraps to average gradients over processes
        stack.enter_context(
            replacing(healed, "forward", _build_forward(healed, config, cut, whole, teacher))
        )
        state = _train_from_last_checkpoint(trainer, output, progress)
    steps = [entry for entry in state.log_history if "loss" in entry]
    record = Record(
        losses=[step["loss"] for step in steps],
        tokens=int(state.num_input_tokens_seen),
        distinct_tokens=sum(map(len, sequences)),
        trained_parameters=healed.get_nb_trainable_parameters()[0],
        seconds=round(steps[-1]["seconds"], 2),
        tuned=_describe_tuned(model, config),
    )
    return healed.eval(), record


def _add_what_learns(model: PreTrainedModel, config: HealingConfig, cut: Cut | None) -> PeftModel:
    """A copy of the model with new adapters, or whose last layers and head will train."""
    if config.last_layers:
        return release_last_layers(model, config.last_layers)
    return add_adapters(
        model,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        first_layer=cut.start if cut and config.adapters == "above" else 0,
        seed=config.seed,
    )


def _describe_tuned(model: PreTrainedModel, config: HealingConfig) -> str:
    """What is trained with all its weights, in words; "" where adapters are."""
    if not config.last_layers:
        return ""
    head = model.get_output_embeddings()
    prefix = layers_path(model)
    last = num_layers(model) - 1
    name = next(name for name, module in model.named_modules() if module is head)
    is_tied = head.weight is model.get_input_embeddings().weight
    words = f"{name}, untied from the embedding, which was not trained" if is_tied else name
    return f"{prefix}.{last - config.last_layers + 1} to {prefix}.{last}, and {words}"


def _train_from_last_checkpoint(
    trainer: Trainer, output: Path, progress: "_Progress"
) -> TrainerState:
    """Train from the last whole checkpoint, or from the beginning. A healing that is complete is only loaded."""
    last = None
    state = TrainerState()
    for path in sorted(
        output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    ):
        # a process was killed while writing it
        with contextlib.suppress(OSError, ValueError, TypeError):
            state = TrainerState.load_from_json(str(path / STATE_FILE))
            last = str(path)
    try:
        if last and state.global_step >= trainer.args.max_steps:
            trainer.model.load_adapter(last, "default", is_trainable=True)
            return state
        trainer.train(resume_from_checkpoint=last)
    except Exception as error:
        if last is None or progress.bar is not None:
            raise
        raise InputError(
            f"{last} is no whole checkpoint ({first_line(error)}): delete it, and the one before it is used"
        ) from error
    return trainer.state


def _name_healing(
    healed: PeftModel, config: HealingConfig, cut: Cut | None, sequences, whole
) -> str:
    """The name of a healing's folder: a hash of all that determines it: settings, cut, text, and all weights of the
    models."""
    teacher = None if whole is None else hash_model(whole)
    digest = hashlib.sha256(repr([config.settings, cut, hash_model(healed), teacher]).encode())
    for tokens in sequences:
        digest.update(tokens.numpy().tobytes() + b"\0")
    return f"healing-{digest.hexdigest()[:12]}"


def _check_variant(model: PreTrainedModel, config: HealingConfig, cut: Cut | None, whole) -> None:
    """Raise InputError where a variant lacks what it needs."""
    if cut is not None:
        check_cut(cut)
    if config.last_layers and getattr(model, "is_quantized", False):
        raise InputError(
            "last_layers are trained as they are, and the weights are quantized: open the model without"
        )
    if config.adapters == "above" and cut is None:
        raise InputError("adapters 'above' need cut=: pass what was dropped")
    if whole is not None and not isinstance(whole, PreTrainedModel):
        raise InputError(
            f"whole is {short_repr(whole)}, expected the unpruned model: load_model gives it"
        )
    if config.auxiliary and not (cut and whole):
        raise InputError(
            "the auxiliary loss needs cut= and whole=, the unpruned model itself: pass them"
        )
    if config.auxiliary and cut and (not cut.is_block or cut.start >= num_layers(model)):
        raise InputError(
            f"the auxiliary loss is of a block below the last layer, the cut is {cut}: leave it out"
        )


def _build_forward(
    healed: PeftModel, config: HealingConfig, cut: Cut | None, whole, teacher: Teacher | None
) -> Callable:
    """A function that replaces the model's forward pass in training: it returns the loss of the variant."""
    base = healed.get_base_model()
    run_model = healed.forward

    def compute(inputs: dict, **count) -> torch.Tensor:
        if teacher:
            return teacher.loss(base, inputs, **count)
        return run_model(**inputs, **count)["loss"]

    def forward(num_items_in_batch=None, **inputs) -> dict[str, torch.Tensor]:
        """The loss of a batch, `input_ids`, `labels` and `attention_mask` [B, T]."""
        mask = inputs["attention_mask"]
        # without a mask models take their fastest attention, and here nothing is padding
        if mask.all():
            del inputs["attention_mask"]
        count = {}
        if num_items_in_batch is not None:
            count["num_items_in_batch"] = num_items_in_batch
        if not (config.auxiliary and cut):
            return {"loss": compute(inputs, **count)}
        with _recorded_residuals(base, cut.start) as residuals:
            loss = compute(inputs, **count)
        with torch.no_grad(), _recorded_residuals(whole, cut.stop) as targets:
            whole_inputs = {
                name: tensor.to(whole.device) for name, tensor in inputs.items() if name != "labels"
            }
            whole.base_model(**whole_inputs, use_cache=False)
        # |x - y|^2 / |y|^2: x is the residual at the cut, y the unpruned model's residual after the dropped layers
        x = residuals[-1].float() * mask[:, :, None]
        y = targets[-1].float() * mask[:, :, None]
        auxiliary = (x - y).square().sum() / y.square().sum()
        # with a count the Trainer sums the losses of a step's batches, else it takes their mean
        share = config.at_once / config.batch_sequences if count else 1.0
        return {"loss": loss + config.auxiliary * share * auxiliary}

    return forward


@contextlib.contextmanager
def _recorded_residuals(model: PreTrainedModel, layer: int) -> Iterator[list[torch.Tensor]]:
    """A list with the residual [B, T, D] that enters a layer in the latest forward pass."""
    residuals: list[torch.Tensor] = []

    def keep(_, arguments, named):
        residuals[:] = [arguments[0] if arguments else named["hidden_states"]]

    with decoder_layers(model)[layer].register_forward_pre_hook(keep, with_kwargs=True):
        yield residuals


class _Progress(TrainerCallback):
    """Shows a bar with the time left, records the seconds at each loss, and raises where a loss is not finite."""

    def __init__(self, config: HealingConfig):
        self.config = config
        self.bar = None
        self.started = time.monotonic()  # before the first step, so that its preparation counts too

    def on_train_begin(self, args, state, control, **_):
        self.started -= next(
            (entry["seconds"] for entry in reversed(state.log_history) if "seconds" in entry), 0.0
        )
        options = {
            "total": state.max_steps,
            "initial": state.global_step,
            "unit": "step",
            "mininterval": 5,
        }
        self.bar = tqdm(
            desc="healing", file=sys.stderr, disable=not state.is_world_process_zero, **options
        )

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}):  # the summary at the end
            return
        state.log_history[-1]["seconds"] = time.monotonic() - self.started
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)
        if not math.isfinite(logs["loss"]):
            self.bar.close()
            raise InputError(
                f"the loss is {logs['loss']} at step {state.global_step} of {state.max_steps}, with learning_rate "
                f"{self.config.learning_rate}: lower it, or open the model in float32"
            )

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


def _arguments(
    config: HealingConfig, output: Path, device: torch.device, *, checkpoints: bool
) -> TrainingArguments:
    """The Trainer's arguments, with the batches of a step shared among the processes of one launch."""
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError(
            "ACCELERATE_USE_FSDP is set, expected that each process holds the whole model, as adapters are kept and "
            "resumed here: start them without FSDP, or on one device with quantization 'nf4'"
        )
    launch = f"healing can't start with WORLD_SIZE {os.environ.get('WORLD_SIZE')!r}"
    with as_input_error(launch, "start several processes with torchrun, or unset it", ValueError):
        arguments = TrainingArguments(
            output_dir=str(output),
            max_steps=config.steps,
            warmup_steps=config.warmup_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            optim="adamw_torch",
            per_device_train_batch_size=config.at_once,
            activation_checkpointing=config.gradient_checkpointing,
            seed=config.seed,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            remove_unused_columns=False,
            include_num_input_tokens_seen="non_padding",
            save_strategy="steps" if checkpoints else "no",
            save_steps=config.save_every,
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
        )
    batches = config.batch_sequences // config.at_once
    processes = arguments.world_size
    if batches % processes:
        raise InputError(
            f"{processes} processes were started for steps of {batches} batches (batch_sequences over at_once), "
            f"expected a divisor of {batches}: start so many, or change at_once"
        )
    arguments.gradient_accumulation_steps = batches // processes
    return arguments


def _collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of sequences: `input_ids`, `labels` and `attention_mask` [B, T], padded on the right."""
    padded = functools.partial(pad_sequence, batch_first=True)
    ids = [example["input_ids"].long() for example in examples]
    labels = padded(ids, padding_value=IGNORED)
    return {
        "input_ids": padded(ids),
        "labels": labels,
        "attention_mask": (labels != IGNORED).long(),
    }


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, up to a gibibyte a piece, instead of returning it to the system. On a processor a
    fifth of the time was spent on getting it back, filled with zeros. Other C libraries are left as they are."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # as malloc.h numbers them
        trim_threshold = -1
        mmap_threshold = -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)
