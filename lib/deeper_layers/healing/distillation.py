"""Distillation: the pruned model learns to predict the next token as the unpruned one does.

Source: Hinton et al. 2015 (arXiv 1503.02531), equations 1 to 4: both models' logits are divided by a temperature, and
the loss is multiplied by its square, so that gradients keep their size. Muralidharan et al. 2024 (Minitron, arXiv
2407.14679) heal pruned language models by the forward divergence, KL(unpruned || pruned), instead of cross-entropy.

Memory: teacher and student share the weights of the layers that both have. Only the states that enter the head, [T, D]
a sequence, are in memory as a whole. Logits and their gradient are computed in pieces of `PIECE` bytes, by the
student's head for both models, as the head is not trained.

Letters in shapes: B sequences, T tokens, N positions that predict a token, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from deeper_layers.checks import short_repr
from deeper_layers.cuts import Cut
from deeper_layers.data.tokens import token_sequences
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.network import replacing
from deeper_layers.presets import HealingConfig

PIECE = 2**27  # bytes of the logits, in float32, that are computed at once
IGNORED = -100  # the label of positions that do not count in a loss


def draw_sequences(tokenizer, texts: list[str], config: HealingConfig) -> list[torch.Tensor]:
    """The sequences [T] of a healing, in the order of its seed, as many as fill whole steps.

    Teacher and student get the same. Raises InputError where the texts fill no step.
    """
    if not isinstance(config, HealingConfig):
        raise InputError(
            f"config is {short_repr(config)}, expected a HealingConfig: PRESETS['small'] is one"
        )
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str | bytes)
    if not is_list or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"texts is {short_repr(texts)}, expected a list of documents: put them into one"
        )
    if not callable(tokenizer):
        raise InputError(
            f"tokenizer is {short_repr(tokenizer)}, expected that of the model: load_model gives both"
        )
    length = config.sequence_length
    batch = config.batch_sequences
    drawn = token_sequences(
        tokenizer,
        texts,
        length=length,
        seed=config.seed,
        packed=config.packed,
        tokens=config.tokens,
    )
    if len(drawn) < batch:
        raise InputError(
            f"the texts fill {len(drawn)} sequences ({sum(map(len, drawn)):,} tokens), and one step needs {batch} of "
            f"{length} tokens: give more text, or lower batch_sequences or sequence_length"
        )
    return drawn[: len(drawn) // batch * batch]


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """T^2 KL(teacher || student), in nats, of logits [N, V] divided by the temperature T, summed over positions."""
    predicted = functional.log_softmax(student.float() / temperature, dim=-1)
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(predicted, target, reduction="sum", log_target=True)


class Teacher:
    """The unpruned model, which runs on each batch.

    Raises InputError for a model with another head, or whose layers are not those of the student and the cut. Without a
    cut it must have more layers than the student.
    """

    def __init__(
        self, whole, model: PreTrainedModel, config: HealingConfig, cut: Cut | None = None
    ):
        self.whole = whole
        self.temperature = config.temperature
        check_final_states(model)
        is_alike = isinstance(whole, PreTrainedModel) and describe_head(whole) == describe_head(
            model
        )
        dropped = num_layers(whole) - num_layers(model) if is_alike else 0
        if dropped != cut.size if cut else dropped < 1:
            raise InputError(
                f"whole is a {type(whole).__name__}, expected the unpruned model, with the same head and the layers "
                f"that {cut or 'a cut'} drops"
            )

    def loss(self, model: PreTrainedModel, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """The divergence of a batch, `input_ids` and `labels` [B, T]: sum / `num_items_in_batch`, or the mean."""
        states, logits = compute_final_states(model, inputs)
        target = self.states(inputs).to(states)
        # a position predicts the token after it
        scored = inputs["labels"][:, 1:] != IGNORED
        total = _sum_divergence(
            states[:, :-1][scored], target[:, :-1][scored], logits, self.temperature
        )
        return total / (scored.sum() if num_items_in_batch is None else num_items_in_batch)

    @torch.no_grad()
    def states(self, inputs: dict) -> torch.Tensor:
        """The states [B, T, D] that enter the teacher's head, which is also the student's."""
        of_whole = {name: tensor.to(self.whole.device) for name, tensor in inputs.items()}
        return compute_final_states(self.whole, of_whole)[0]


def compute_final_states(model: PreTrainedModel, inputs: dict) -> tuple[torch.Tensor, Callable]:
    """The states [B, T, D] that enter the head, and the model's own function from states [N, D] to logits [N, V]."""
    layers = decoder_layers(model)
    # the model without its head
    body = next(module for module in model.modules() if layers in module.children())
    output = body(
        input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"), use_cache=False
    )

    def logits(states: torch.Tensor) -> torch.Tensor:
        replacement = dataclasses.replace(output, last_hidden_state=states[None])
        with replacing(body, "forward", lambda *_, **__: replacement):
            return model(
                input_ids=inputs["input_ids"].new_zeros(1, len(states)), use_cache=False
            ).logits[0]

    return output.last_hidden_state, logits


@torch.no_grad()
def check_final_states(model: PreTrainedModel) -> None:
    """Try `compute_final_states` on a few tokens. Raises InputError where it does not give the model's own logits."""
    ids = torch.arange(1, 9, device=model.device)[None]
    unknown = f"{type(model).__name__} makes its logits in a way that is not known here, and can't be distilled"
    with as_input_error(unknown, "heal it on text"):
        plain = model(input_ids=ids, use_cache=False).logits[0].float()
        states, logits = compute_final_states(model, {"input_ids": ids})
        if not (logits(states[0]).float() - plain).abs().max() <= 1e-3 * plain.abs().max():
            raise ValueError("its head gives others")


def _sum_divergence(
    states: torch.Tensor, target: torch.Tensor, logits: Callable, temperature: float
) -> torch.Tensor:
    """The `divergence` of two models' states [N, D], with the logits of at most `PIECE` bytes in memory at once."""
    size = max(1, PIECE // (4 * logits(target[:1]).shape[-1]))
    total = torch.zeros((), device=states.device)
    for student, teacher in zip(states.split(size), target.split(size), strict=True):
        piece = student.detach().requires_grad_()
        with torch.no_grad():
            teacher_logits = logits(teacher)
        loss = divergence(logits(piece), teacher_logits, temperature)
        (gradient,) = torch.autograd.grad(loss, piece)
        carrier = (
            student.float() * gradient
        ).sum()  # passes this gradient on; its value is subtracted below
        total = total + loss.detach() + carrier - carrier.detach()
    return total


def describe_head(model: PreTrainedModel) -> str:
    """A text that tells heads apart: the shape of the weights and their first rows."""
    weights = model.get_output_embeddings().weight
    return f"{tuple(weights.shape)} {weights[:8].tolist()}"
