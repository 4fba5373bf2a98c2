"""Distillation: the pruned model learns to predict the next token as the unpruned one does.

Source: Hinton et al. 2015 (arXiv 1503.02531), equations 1 to 4: both models' logits are divided by a temperature, and
the loss multiplied by its square, so that the size of its gradients stays. Muralidharan et al. 2024 (Minitron, arXiv
2407.14679): of pruned language models the forward divergence, KL(unpruned || pruned), in place of the cross-entropy.

Memory: the teacher's weights are the student's and those of the dropped layers, once; adapters lie on the student
alone. Of either model only what enters the head, [T, D] a sequence, is there as a whole. Logits are made from it in
pieces, in float32 at most `PIECE` bytes for each of the few that exist at once, and their gradient before the next
piece. The head is not trained, so the student's own makes the logits of both. A teacher that does not fit beside the
student leaves its states on disk before (`keep_teacher`): D numbers a token, which say all that its V logits would.

Letters in shapes: B sequences, T tokens, N positions that predict a token, D width, V vocabulary.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel

from deeper_layers.checks import shown
from deeper_layers.cuts import Cut
from deeper_layers.data.tokens import sequences
from deeper_layers.errors import InputError, first_line
from deeper_layers.files import write_file
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.streaming import replaced
from deeper_layers.presets import HealingConfig

PIECE = 2**27  # bytes of logits, in float32, of the positions that are scored together
IGNORED = -100  # a label that no loss counts


def sequences_to_learn(tokenizer, texts: list[str], config: HealingConfig) -> list[torch.Tensor]:
    """Sequences [T] in the order of the seed, as many as fill whole steps: the same for who teaches and who learns.

    Raises InputError where they fill none.
    """
    if not isinstance(config, HealingConfig):
        raise InputError(f"config is {shown(config)}, expected a HealingConfig: PRESETS['small'] is one")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"texts is {shown(texts)}, expected a list of documents: put them into one")
    length, step = config.sequence_length, config.batch_sequences
    found = sequences(tokenizer, texts, length=length, seed=config.seed, packed=config.packed, tokens=config.tokens)
    if len(found) < step:
        raise InputError(
            f"the texts fill {len(found)} sequences ({sum(map(len, found)):,} tokens), and one step needs {step} of "
            f"{length} tokens: give more text, or lower batch_sequences or sequence_length"
        )
    return found[: len(found) // step * step]


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, a model's dropout is off."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(teacher || student), in nats, of logits [N, V] divided by the temperature T: the sum over positions."""
    given, wanted = (functional.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * functional.kl_div(given, wanted, reduction="sum", log_target=True)


class Teacher:
    """The unpruned model beside the student, or, by the folder that `keep_teacher` wrote, its states.

    Raises InputError for what is neither: a model of other layers than were pruned, or of another head; where no cut is
    given, of no more layers than are left.
    """

    def __init__(self, whole, model: PreTrainedModel, config: HealingConfig, cut: Cut | None = None):
        self.whole, self.temperature = Path(whole) if isinstance(whole, str) else whole, config.temperature
        self.head, left = head_of(model), num_layers(model)
        check_states(model)
        if isinstance(self.whole, Path):
            return
        layers = num_layers(whole) if isinstance(whole, PreTrainedModel) and head_of(whole) == self.head else 0
        if layers <= left if cut is None else layers != left + cut.size:
            expected = f"of {left + cut.size} layers, as {cut} says" if cut else f"of more than {left} layers, or cut="
            raise InputError(
                f"whole is a {type(whole).__name__}, expected the unpruned model {expected}, with the same head, or a "
                "folder of its states"
            )

    def loss(self, model: PreTrainedModel, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """The divergence of a batch, `input_ids` and `labels` [B, T]: the sum over so many items, or else the mean."""
        found, logits = final_states(model, inputs)
        wanted = self.states(inputs).to(found)
        # a position predicts the token after it
        scored = inputs["labels"][:, 1:] != IGNORED
        summed = _in_pieces(found[:, :-1][scored], wanted[:, :-1][scored], logits, self.temperature)
        return summed / (scored.sum() if num_items_in_batch is None else num_items_in_batch)

    def states(self, inputs: dict) -> torch.Tensor:
        """[B, T, D] what enters the teacher's head, which is the student's."""
        if not isinstance(self.whole, Path):
            return unpruned_states(self.whole, inputs)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        pairs = zip(inputs["input_ids"], mask, strict=True)
        return pad_sequence([read_states(self.whole, ids[seen], self.head) for ids, seen in pairs], batch_first=True)


def final_states(model: PreTrainedModel, inputs: dict) -> tuple[torch.Tensor, Callable]:
    """[B, T, D] what enters the head, and the function from [N, D] of it to logits [N, V] as the model makes them."""
    layers = decoder_layers(model)
    body = next(one for one in model.modules() if layers in one.children())  # all below the head
    output = body(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"), use_cache=False)

    def logits(states: torch.Tensor) -> torch.Tensor:
        given = dataclasses.replace(output, last_hidden_state=states[None])
        with replaced(body, lambda *_, **__: given):
            return model(input_ids=inputs["input_ids"].new_zeros(1, len(states)), use_cache=False).logits[0]

    return output.last_hidden_state, logits


@torch.no_grad()
def check_states(model: PreTrainedModel) -> None:
    """Raise InputError where, tried on a few tokens, `final_states` does not give the model's own logits."""
    ids = torch.arange(1, 9, device=model.device)[None]
    with evaluating(model):
        try:
            plain = model(input_ids=ids, use_cache=False).logits[0].float()
            states, logits = final_states(model, {"input_ids": ids})
            same = (logits(states[0]).float() - plain).abs().max() <= 1e-3 * plain.abs().max()
        except (AttributeError, TypeError, ValueError):  # what one family alone takes or gives
            same = False
    if not same:
        raise InputError(
            f"{type(model).__name__} makes its logits in a way that is not known here, and can't be distilled: heal it "
            "on text"
        )


@torch.no_grad()
def unpruned_states(whole: PreTrainedModel, inputs: dict) -> torch.Tensor:
    """[B, T, D] what enters the head of a model that is not trained; dropout is off."""
    with evaluating(whole):
        return final_states(whole, inputs)[0]


class _Known(torch.autograd.Function):
    """A number whose gradient with respect to some states was computed with it."""

    @staticmethod
    def forward(context, states, value, gradient):
        context.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(context, given):
        return given * context.saved_tensors[0], None, None


def _in_pieces(states: torch.Tensor, wanted: torch.Tensor, logits: Callable, temperature: float) -> torch.Tensor:
    """`divergence` of the logits of states [N, D], no more of them at once than `PIECE` holds."""
    at_once = max(1, PIECE // (4 * logits(wanted[:1].detach()).shape[-1]))
    total, gradients = torch.zeros((), device=states.device), [states.new_zeros(0, states.shape[-1])]
    for own, other in zip(states.detach().split(at_once), wanted.split(at_once), strict=True):
        with torch.no_grad():
            target = logits(other)
        of_piece = divergence(logits(own.requires_grad_()), target, temperature)
        gradients += torch.autograd.grad(of_piece, own)
        total += of_piece.detach()
    return _Known.apply(states, total, torch.cat(gradients))


# ---- a teacher that does not fit beside the student ----------------------------------------------------------


def keep_teacher(whole: PreTrainedModel, tokenizer, texts: list[str], config: HealingConfig, folder: Path) -> None:
    """Write what the unpruned model teaches in a healing on these texts: D numbers a token, in the model's type.

    Given to `heal` as whole=, the folder stands for the model, which need not be in memory then. It answers here and is
    not trained, so it may be one that transformers opened with device_map="auto", of which a part lies in host memory
    or on disk. Interrupted, it goes on with the same arguments.

    Example:
        >>> from deeper_layers.healing import keep_teacher
        >>> keep_teacher(model, tokenizer, texts, PRESETS["distill"], "states")
        >>> healed = heal(pruned, tokenizer, texts, PRESETS["distill"], whole="states")
    """
    sequences, metadata = sequences_to_learn(tokenizer, texts, config), {"head": head_of(whole)}
    check_states(whole)
    missing = [tokens for tokens in sequences if not states_path(folder, tokens).exists()]
    for first in tqdm(range(0, len(missing), config.at_once), desc="teacher", unit="batch", mininterval=5):
        batch = missing[first : first + config.at_once]
        ids = pad_sequence([tokens.long() for tokens in batch], batch_first=True)
        # on the right: no token sees what follows it
        states = unpruned_states(whole, {"input_ids": ids.to(whole.device)}).cpu()
        for tokens, of_it in zip(batch, states, strict=True):
            write_file(states_path(folder, tokens), save({"states": of_it[: len(tokens)].contiguous()}, metadata))


def read_states(folder: Path, tokens: torch.Tensor, head: str) -> torch.Tensor:
    """[T, D] of a sequence [T], as `keep_teacher` wrote it. Raises InputError where it did not, of this head."""
    path = states_path(folder, tokens)
    try:
        with safe_open(path, framework="pt") as file:
            states, metadata = file.get_tensor("states"), file.metadata() or {}
        if len(states) != len(tokens) or metadata.get("head") != head:
            raise ValueError("it is of a model with another head")
    except Exception as error:  # what safetensors and torch raise for a damaged file has no end
        raise InputError(
            f"{path} holds no states of the unpruned model on this text ({first_line(error)}): write them with "
            "keep_teacher, of the same sequences"
        ) from error
    return states


def states_path(folder: Path, tokens: torch.Tensor) -> Path:
    """Where the states of a sequence lie: named after its tokens, so that their order does not matter."""
    return Path(folder) / f"teacher-{_hash(tokens.to('cpu', torch.int32))[:16]}.safetensors"


def head_of(model: PreTrainedModel) -> str:
    """By which a head goes: the shape of its weights and the first of them."""
    weights = model.get_output_embeddings().weight
    return f"{tuple(weights.shape)} {_hash(weights[:8].detach().to('cpu', torch.float32))}"


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
