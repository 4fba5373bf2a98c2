"""Distillation: the pruned model learns to predict the next token as the unpruned one does.

Source: Hinton et al. 2015 (arXiv 1503.02531), equations 1 to 4: both models' logits are divided by a temperature, and
the loss multiplied by its square, so that the size of its gradients stays. Muralidharan et al. 2024 (Minitron, arXiv
2407.14679): of pruned language models the forward divergence, KL(unpruned || pruned), in place of the cross-entropy.

Memory: the teacher's weights are the student's and those of the dropped layers, once. Of either model only what enters
the head, [T, D] a sequence, is there as a whole: logits and their gradient are made from it in pieces of `PIECE` bytes,
by the student's head for both, as it is not trained. A teacher that does not fit beside the student leaves its states
on disk before (`keep_teacher`): D numbers a token, which say all that its V logits would.

Letters in shapes: B sequences, T tokens, N positions that predict a token, D width, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel

from deeper_layers.checks import shown
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.data.tokens import sequences
from deeper_layers.errors import InputError, telling
from deeper_layers.files import write_file
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.network import replaced
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
        self.whole, self.temperature, self.head = whole, config.temperature, head_of(model)
        check_states(model)
        if isinstance(whole, str | Path):
            return
        is_alike = isinstance(whole, PreTrainedModel) and head_of(whole) == self.head
        more = num_layers(whole) - num_layers(model) if is_alike else 0
        if more != cut.size if cut else more < 1:
            raise InputError(
                f"whole is a {type(whole).__name__}, expected the unpruned model, with the same head and the layers "
                f"that {cut or 'a cut'} drops, or a folder of its states"
            )

    def loss(self, model: PreTrainedModel, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """The divergence of a batch, `input_ids` and `labels` [B, T]: the sum over so many items, or else the mean."""
        found, logits = final_states(model, inputs)
        wanted = self.states(inputs).to(found)
        # a position predicts the token after it
        scored = inputs["labels"][:, 1:] != IGNORED
        summed = _in_pieces(found[:, :-1][scored], wanted[:, :-1][scored], logits, self.temperature)
        return summed / (scored.sum() if num_items_in_batch is None else num_items_in_batch)

    @torch.no_grad()
    def states(self, inputs: dict) -> torch.Tensor:
        """[B, T, D] what enters the teacher's head, which is the student's."""
        if isinstance(self.whole, PreTrainedModel):
            return final_states(self.whole, inputs)[0]
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
    unknown = f"{type(model).__name__} makes its logits in a way that is not known here, and can't be distilled"
    with telling(unknown, "heal it on text"):
        plain = model(input_ids=ids, use_cache=False).logits[0].float()
        states, logits = final_states(model, {"input_ids": ids})
        if not (logits(states[0]).float() - plain).abs().max() <= 1e-3 * plain.abs().max():
            raise ValueError("its head gives others")


def _in_pieces(states: torch.Tensor, wanted: torch.Tensor, logits: Callable, temperature: float) -> torch.Tensor:
    """`divergence` of the logits of states [N, D], no more of them at once than `PIECE` holds."""
    at_once = max(1, PIECE // (4 * logits(wanted[:1]).shape[-1]))
    total = torch.zeros((), device=states.device)
    for ours, theirs in zip(states.split(at_once), wanted.split(at_once), strict=True):
        own = ours.detach().requires_grad_()
        with torch.no_grad():
            target = logits(theirs)
        of_piece = divergence(logits(own), target, temperature)
        (gradient,) = torch.autograd.grad(of_piece, own)
        carrier = (ours.float() * gradient).sum()  # of this gradient; its value is taken off
        total = total + of_piece.detach() + carrier - carrier.detach()
    return total


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
    learned = sequences_to_learn(tokenizer, texts, config)
    teacher = Teacher(whole, whole, config, UNPRUNED)
    paths = {states_path(folder, tokens, teacher.head): tokens for tokens in learned}
    missing = [(path, tokens) for path, tokens in paths.items() if not path.exists()]
    for first in tqdm(range(0, len(missing), config.at_once), desc="teacher", unit="batch", mininterval=5):
        batch = missing[first : first + config.at_once]
        ids = pad_sequence([tokens.long() for _, tokens in batch], batch_first=True)
        # on the right: no token sees what follows it
        states = teacher.states({"input_ids": ids.to(whole.device)}).cpu()
        for (path, tokens), of_it in zip(batch, states, strict=True):
            write_file(path, save({"states": of_it[: len(tokens)].contiguous()}))


def read_states(folder: Path | str, tokens: torch.Tensor, head: str) -> torch.Tensor:
    """[T, D] of a sequence [T], as `keep_teacher` wrote it. Raises InputError where it did not, of this head."""
    path = states_path(folder, tokens, head)
    with telling(f"{path} holds no states of the unpruned model on this text", "write them with keep_teacher"):
        return load_file(path)["states"]


def states_path(folder: Path | str, tokens: torch.Tensor, head: str) -> Path:
    """Where the states of a sequence lie: named after its tokens, so that their order does not matter, and the head."""
    return Path(folder) / f"teacher-{hashlib.sha256(f'{tokens.tolist()} {head}'.encode()).hexdigest()[:16]}.safetensors"


def head_of(model: PreTrainedModel) -> str:
    """By which a head goes: the shape of its weights and the first of them."""
    weights = model.get_output_embeddings().weight
    return f"{tuple(weights.shape)} {weights[:8].tolist()}"
