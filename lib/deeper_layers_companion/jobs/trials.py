"""The trials of a check: each thing that is done with a model, and the same by a plain loop.

A trial is one function of an opened model, and returns numbers. What they have to be is computed by another function
with the model's own forward pass on the processor in float32, one sequence and one cut after the other: nothing of what
makes the library fast.

Letters in shapes: C cuts, R requests, T tokens, V vocabulary, L layers.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from deeper_layers import export, models, similarity
from deeper_layers.cuts import Cut
from deeper_layers.healing import training
from deeper_layers.healing.adapters import add_adapters
from deeper_layers.healing.distillation import draw_sequences
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.sources import Source
from deeper_layers.presets import HealingConfig
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.sweeping.generation import Decoding
from deeper_layers.sweeping.planning import Requests, Sharing
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree_model import TreeModel

ITEMS, NEW_TOKENS, LEFT = 2, 8, 4  # capitals asked; tokens written; layers of the pruned folder
TEXTS = [
    "A language model reads a text token by token, and each layer adds something to what the one below hands on.",
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is Tokyo. The capital of Peru",
    "Once there was a river that did not want to reach the sea, and so it turned around at every village on its way.",
    "Water boils at one hundred degrees at the level of the sea, and at a lower temperature on the top of a mountain.",
]
HEALING = HealingConfig(
    rank=4, learning_rate=1e-3, sequence_length=64, steps=2, warmup_steps=0, batch_sequences=len(TEXTS), at_once=2,
    dropout=0.0, quantization=None, packed=False, gradient_checkpointing=False,
)  # fmt: skip


class Opened(NamedTuple):
    model: Any
    tokenizer: Any


@dataclasses.dataclass(frozen=True)
class Asked:
    """What all trials are asked, and the model in float32 on the processor, which knows the answers."""

    model: str
    opening: dict  # of models.load_model and export.slice_checkpoint
    reference: Opened
    cuts: list[Cut]
    batch: dict[str, torch.Tensor]
    requests: Requests
    sliced: Cut
    slice_folder: Path
    # by trial, once computed
    expected: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def expect(self, name: str) -> np.ndarray:
        """The numbers that a trial has to find."""
        if name not in self.expected:
            self.expected[name] = KINDS[name].compute_plainly(self.reference, self)
        return self.expected[name]

    @property
    def ids(self) -> torch.Tensor:
        """[1, T] the tokens of one text."""
        return self.batch["input_ids"][:1, : int(self.batch["attention_mask"][0].sum())]

    @property
    def prompts(self) -> list[list[int]]:
        rows = zip(self.batch["input_ids"], self.batch["attention_mask"], strict=True)
        return [ids[mask.bool()].tolist() for ids, mask in rows][:2]


class Found(NamedTuple):
    """The numbers of a trial; and how many tokens ran in how many seconds, for its pace."""

    numbers: np.ndarray
    tokens: int
    seconds: float


class Kind(NamedTuple):
    run: Callable[[Opened, Asked], Found]
    compute_plainly: Callable[[Opened, Asked], np.ndarray]
    unit: str
    stated: dict[str, float]  # by the data type, how far numbers may be from the plain ones


# ---- trials ------------------------------------------------------------------------------------------------------


def measure_distances(opened: Opened, asked: Asked) -> Found:
    """Angular distances between all residuals, those that exist."""
    started = time.perf_counter()
    distances = similarity.angular_distances(opened.model, [asked.batch])
    seconds = time.perf_counter() - started
    return Found(
        distances[_find_blocks(len(distances))], int(asked.batch["attention_mask"].sum()), seconds
    )


def score_choices(opened: Opened, asked: Asked) -> Found:
    """Log-probability a token [C, R] of each choice to some questions, under each pruned model."""
    family = TreeModel(opened.model, asked.cuts)
    # the first takes long
    loglikelihoods(family, dataclasses.replace(asked.requests, pairs=asked.requests.pairs[:1]))
    started = time.perf_counter()
    logprobs, _ = loglikelihoods(family, asked.requests)
    seconds = time.perf_counter() - started
    tokens = len(asked.cuts) * sum(
        len(context) + len(scored) for context, scored in asked.requests.pairs
    )
    return Found(logprobs / _count_scored(asked.requests), tokens, seconds)


def write_answers(opened: Opened, asked: Asked) -> Found:
    """By how many nats each written token is less likely than the most likely one, to the plain loop. Where two tokens
    are equally likely, rounding may choose either."""
    family = TreeModel(opened.model, asked.cuts)
    prompts = asked.prompts
    started = time.perf_counter()
    if family.sharing == Sharing.MASKS:
        written = Decoding(family, prompts, NEW_TOKENS).write(
            lambda answers: [False] * len(answers)
        )
    else:
        written = []
        for cut in asked.cuts:
            model = silence_sublayers(opened.model, cut)
            written.append([_generate(model, prompt) for prompt in prompts])
    seconds = time.perf_counter() - started
    behind = []
    for cut, answers in zip(asked.cuts, written, strict=True):
        for prompt, answer in zip(prompts, answers, strict=True):
            logits = _run_plainly(asked.reference, cut, prompt + answer[:-1])[len(prompt) - 1 :]
            chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
            behind.append((logits.amax(dim=1) - chosen).numpy())
    return Found(np.concatenate(behind), NEW_TOKENS * len(prompts) * len(asked.cuts), seconds)


def train_adapters(opened: Opened, asked: Asked) -> Found:
    """The losses of a few steps of healing."""
    pruned = drop_layers(opened.model, asked.cuts[1])
    record = training.train(pruned, opened.tokenizer, TEXTS, HEALING)[1]
    return Found(np.array(record.losses), record.tokens, record.seconds)


def open_slice(opened: Opened, asked: Asked) -> Found:
    """Log-probabilities of one text by a folder that was written without most layers, and opened again."""
    place = opened.model.device
    dtype = opened.model.dtype
    if not asked.slice_folder.exists():
        export.slice_checkpoint(asked.model, asked.sliced, asked.slice_folder, **asked.opening)
    started = time.perf_counter()
    dtype_name = str(dtype).removeprefix("torch.")
    model, _ = open_at(str(asked.slice_folder), str(place), asked.opening, dtype=dtype_name)
    with torch.inference_mode():
        logits = model(input_ids=asked.ids.to(place), use_cache=False).logits[0].float().cpu()
    return Found(_score_next(logits, asked.ids), asked.ids.numel(), time.perf_counter() - started)


# ---- what they have to find --------------------------------------------------------------------------------------


def distances_plainly(opened: Opened, asked: Asked) -> np.ndarray:
    """The same distances, a sequence and a pair after the other."""
    layers = decoder_layers(opened.model)
    total = np.zeros((len(layers), len(layers)))
    for ids, mask in zip(asked.batch["input_ids"], asked.batch["attention_mask"], strict=True):
        residuals: list[torch.Tensor] = []

        def keep(_, arguments, named, output, residuals=residuals):
            if not residuals:
                residuals.append(_enters(arguments, named)[0, -1].double())
            residuals.append((output[0] if isinstance(output, tuple) else output)[0, -1].double())

        with _hooked(layers, keep), torch.inference_mode():
            opened.model(input_ids=ids[mask.bool()][None], use_cache=False)
        distances = np.full((len(layers), len(layers)), np.nan)
        for start in range(len(layers)):
            for size in range(1, len(layers) - start + 1):
                cosine = functional.cosine_similarity(
                    residuals[start], residuals[start + size], dim=0
                )
                distances[size - 1, start] = float(cosine.clamp(-1, 1).arccos() / torch.pi)
        total = total + distances / len(asked.batch["input_ids"])
    return total[_find_blocks(len(layers))]


def choices_plainly(opened: Opened, asked: Asked) -> np.ndarray:
    """The same log-probabilities, one request and cut after the other."""
    sums = np.empty((len(asked.cuts), len(asked.requests.pairs)))
    for row, cut in enumerate(asked.cuts):
        for column, (context, scored) in enumerate(asked.requests.pairs):
            logits = _run_plainly(opened, cut, [*context, *scored][:-1])[len(context) - 1 :]
            logprobs = torch.log_softmax(logits, dim=-1)
            sums[row, column] = logprobs[range(len(scored)), list(scored)].sum()
    return sums / _count_scored(asked.requests)


def answers_plainly(opened: Opened, asked: Asked) -> np.ndarray:
    """The most likely tokens are behind by nothing."""
    return np.zeros(NEW_TOKENS * len(asked.prompts) * len(asked.cuts))


def training_plainly(opened: Opened, asked: Asked) -> np.ndarray:
    """The same losses by a plain loop of torch, with the same new adapters."""
    pruned = drop_layers(opened.model, asked.cuts[1])
    losses = []
    settings: dict = {
        "rank": HEALING.rank,
        "alpha": HEALING.alpha,
        "dropout": HEALING.dropout,
        "seed": HEALING.seed,
    }
    learning = add_adapters(pruned, **settings)
    trained = [parameter for parameter in learning.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=HEALING.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, HEALING.steps)
    sequences = [tokens.long()[None] for tokens in draw_sequences(opened.tokenizer, TEXTS, HEALING)]
    predicted = sum(ids.shape[1] - 1 for ids in sequences)
    for _ in range(HEALING.steps):
        total = 0.0
        for ids in sequences:
            logits = learning(input_ids=ids, use_cache=False).logits[0, :-1]
            loss = functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / predicted
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return np.array(losses)


def slice_plainly(opened: Opened, asked: Asked) -> np.ndarray:
    """The same log-probabilities by the whole model, whose dropped layers hand on what enters them."""
    return _score_next(_run_plainly(opened, asked.sliced, asked.ids[0].tolist()), asked.ids)


# stated: in 16 bits two to five times what SmolLM2-135M differs by, whose layers add up rounding as larger models' do
KINDS = {
    "distances": Kind(
        measure_distances, distances_plainly, "units of pi", {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
    ),
    "choices": Kind(
        score_choices, choices_plainly, "nats a token", {"float32": 5e-3, "float16": 0.1, "bfloat16": 0.5}
    ),
    "written answers": Kind(
        write_answers, answers_plainly, "nats behind", {"float32": 5e-3, "float16": 0.1, "bfloat16": 0.5}
    ),
    "training": Kind(
        train_adapters, training_plainly, "nats a token", {"float32": 5e-3, "float16": 0.1, "bfloat16": 0.5}
    ),
    "a pruned folder": Kind(
        open_slice, slice_plainly, "nats", {"float32": 5e-3, "float16": 0.2, "bfloat16": 1.0}
    ),
}  # fmt: skip


def _find_blocks(layers: int) -> np.ndarray:
    """Where in an array [n, l] there is a block."""
    return np.arange(1, layers + 1)[:, None] + np.arange(layers) <= layers


def _count_scored(requests: Requests) -> np.ndarray:
    return np.array([len(scored) for _, scored in requests.pairs])


def _score_next(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """[T - 1] the log-probability of each next token of ids [1, T], from logits [T, V]."""
    return torch.log_softmax(logits, dim=-1)[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()


def _generate(model, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return written[0, len(prompt) :].tolist()


@torch.inference_mode()
def _run_plainly(opened: Opened, cut: Cut, tokens: list[int]) -> torch.Tensor:
    """[T, V] logits for tokens [T], by the model's own forward pass, in which dropped layers hand on what enters."""
    layers = decoder_layers(opened.model)

    def hand_on(_, arguments, named, output):
        entering = _enters(arguments, named)
        return (entering, *output[1:]) if isinstance(output, tuple) else entering

    with _hooked([layers[number] for number in cut.dropped], hand_on):
        return opened.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def _enters(arguments: tuple, named: dict) -> torch.Tensor:
    return arguments[0] if arguments else named["hidden_states"]


@contextlib.contextmanager
def _hooked(layers, hook: Callable) -> Iterator[None]:
    """Inside, a hook sees what enters and leaves each of some layers."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(hook, with_kwargs=True))
        yield


def open_at(source: Source | str, place: str, opening: dict, **options) -> Opened:
    trust = opening.get("trust_remote_code", False)
    return Opened(*models.load_model(source, device=place, trust_remote_code=trust, **options))
