"""Every angular distance d(l, n) of a model from one forward pass (Gromov et al. 2024, section 3, eq. 7).

d(l, n) = arccos( <x(l), x(l+n)> / (|x(l)| |x(l+n)|) ) / pi, where x(l) is the residual entering layer l at
the last token of a sequence, and x(L) the residual leaving the last layer, before the final norm. The
arccos is taken per sequence and then averaged over sequences. Layers are counted from 0.

Two traps: the last entry of `hidden_states` in transformers lies after the final norm, so residuals are
read at the layers themselves; and the arccos of a cosine near 1 vanishes in half precision, so angles are
computed in float64 from residuals as the model made them.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float

from deeper_layers.checks import shown
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, text_config
from deeper_layers.models.network import Network
from deeper_layers.models.streaming import groups_within, is_streamed

MEMORY = 2**30  # bytes of residuals that go through the layers together, where these are on disk


class Residuals:
    """While entered, keeps the residual entering every layer, and leaving the last, of a pass: [B, T, D] each."""

    def __init__(self, model: torch.nn.Module):
        self.layers = decoder_layers(model)
        self.residuals: list[torch.Tensor] = []

    def __enter__(self):
        first = [layer.register_forward_pre_hook(self._entering, with_kwargs=True) for layer in self.layers]
        self._handles = [*first, self.layers[-1].register_forward_hook(self._leaving)]
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()

    def _entering(self, _, arguments, named):
        self.keep(arguments[0] if arguments else named["hidden_states"])

    def _leaving(self, _, arguments, output):
        self.keep(output[0] if isinstance(output, tuple) else output)

    def keep(self, hidden: torch.Tensor) -> None:
        if hidden.ndim != 3:
            raise InputError(
                f"{type(self.layers[0]).__name__} hands on a residual of shape {tuple(hidden.shape)}; expected three "
                "dimensions, [sequences, tokens, width], as distances are those of one residual; choose another model"
            )
        self.residuals.append(self.of(hidden))

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is kept of a residual."""
        return hidden


class LastTokenResiduals(Residuals):
    """The same at one token a row: memory is (L+1) x B x D, whatever the sequences' length."""

    positions = torch.empty(0, dtype=torch.long)

    def start(self, attention_mask: torch.Tensor) -> None:
        """Before each batch: forget the last one, find each row's last token, on whichever side it is padded."""
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        self.positions = (attention_mask * (places + 1)).argmax(dim=1)
        self.residuals = []

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, self.positions.to(hidden.device)].detach().to("cpu")


def batch_distances(residuals: Float[torch.Tensor, "L1 B D"]) -> Float[torch.Tensor, "B L1 L1"]:
    """Angular distance between every two residuals of each row, in units of pi, in float64 (eq. 7)."""
    unit = torch.nn.functional.normalize(residuals.to(torch.float64), dim=-1).transpose(0, 1)
    # rounding can push a cosine just past 1, whose arccos would be not-a-number and sort last
    return torch.arccos((unit @ unit.mT).clamp(-1.0, 1.0)) / torch.pi


def distances_by_batch(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]]
) -> Iterator[Float[np.ndarray, "B L1 L1"]]:
    """Of each batch the distances of every two residuals of each sequence, [B, L+1, L+1] in units of pi.

    `batches` and what is raised for them: see `measure_distances`. Entry [l, m] is of what enters layers l and m, the
    last one of what leaves the model's last layer.
    """
    residuals_of = _from_disk if is_streamed(model) else _in_memory
    of_batches = residuals_of(model, map(_checked, batches))
    while True:
        with torch.inference_mode():  # not around the yield: whoever takes the distances may want gradients
            if (residuals := next(of_batches, None)) is None:
                return
            distances = batch_distances(residuals).numpy()
        yield distances


def mean_distances(by_batch: Iterable[Float[np.ndarray, "_ L1 L1"]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard error of d(l, n) over sequences, and their number: see `measure_distances`.

    Memory does not grow with the number of sequences. Raises InputError where there is none.
    """
    total = squares = torch.zeros((), dtype=torch.float64)
    samples = 0
    for distances in map(torch.from_numpy, by_batch):
        total = total + distances.sum(dim=0)
        squares = squares + distances.square().sum(dim=0)
        samples += len(distances)
    if samples == 0:
        raise InputError("there is no sequence to measure distances on: give at least one batch")
    mean = total / samples
    variance = (squares / samples - mean.square()).clamp(min=0) * samples / max(samples - 1, 1)
    error = torch.sqrt(variance / samples) if samples > 1 else torch.full_like(mean, torch.nan)
    return by_size(mean.numpy()), by_size(error.numpy()), samples


def measure_distances(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard error of d(l, n) over sequences, and their number, from one pass over `batches`.

    Args:
        model: a decoder-only transformers model of L layers.
        batches: each with `input_ids` and `attention_mask`, [B, T] whole numbers, padded on the right; on the left
            only for models with rotary positions, since positions are counted from the first column.

    Returns:
        Two arrays [n, l] of shape (L, L) in units of pi: row n-1 is the block size n = 1..L, column l the first layer
        0..L-1; nan where l + n > L. Memory does not grow with the number of sequences.

    Raises:
        InputError: there is no sequence, or one that is all padding; a batch that is no such one.
    """
    return mean_distances(distances_by_batch(model, batches))


def _in_memory(model, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Of each batch the residuals [L+1, B, D] at the last token, from a pass of the decoder."""
    device = model.get_input_embeddings().weight.device
    with LastTokenResiduals(model) as recorder:
        for ids, mask in batches:
            recorder.start(mask.to(device))
            # the decoder without its head: nobody reads the logits
            model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            yield torch.stack(recorder.residuals)


def _from_disk(model, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """The same where the layers are on disk: all batches go through a layer while it is there."""
    network, recorder = Network(model), LastTokenResiduals(model)
    device, bytes_of_a_token = network.device, text_config(model.config).hidden_size * network.dtype.itemsize
    cost = lambda group: sum(ids.numel() for ids, _ in group) * bytes_of_a_token  # noqa: E731
    for group in groups_within(batches, cost, MEMORY):
        handed = [network.handed(ids.to(device), attention_mask=mask.to(device)) for ids, mask in group]
        hidden, last = [of_batch.residual for of_batch in handed], []
        for _, mask in group:
            recorder.start(mask.to(device))
            last.append((recorder.positions, recorder.residuals))
        for layer in network.in_turn(list(range(len(network.layers)))):
            for number, of_batch in enumerate(handed):
                recorder.positions, recorder.residuals = last[number]
                recorder.keep(hidden[number])
                hidden[number] = of_batch.calls[layer](network.layers[layer], hidden[number])
        for number, (positions, residuals) in enumerate(last):
            recorder.positions, recorder.residuals = positions, residuals
            recorder.keep(hidden[number])
            yield torch.stack(residuals)


def angular_distances(model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> Float[np.ndarray, "L L"]:
    """Mean angular distances d(l, n) over sequences, from one pass over `batches`.

    Source: paper, section 3.2 and equation 7: arccos of the cosine between the residuals entering layers l and l + n
    at the last token, over pi; 0 is the same direction, 0.5 a right angle. `measure_distances` has the standard errors
    too.

    Args:
        model: a decoder-only transformers model of L layers.
        batches: each with `input_ids` and `attention_mask`, [B, T] whole numbers, padded on the right.

    Returns:
        Array [n, l] of shape (L, L) in units of pi: row n-1 is the block size n = 1..L, column l the first layer
        0..L-1; nan where l + n > L.

    Raises:
        InputError: there is no sequence, or one that is all padding.

    Example:
        >>> from deeper_layers import angular_distances, load_model, similarity_cut
        >>> model, tokenizer = load_model("embedded")
        >>> batch = dict(tokenizer(["The capital of France is Paris."], return_tensors="pt"))
        >>> distances = angular_distances(model, [batch])
        >>> distances.shape
        (30, 30)
        >>> similarity_cut(distances, size=4).size
        4
    """
    return measure_distances(model, batches)[0]


def _checked(batch: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of a batch. Raises InputError for what is none."""
    names = ("input_ids", "attention_mask")
    found = [batch.get(name) for name in names] if isinstance(batch, Mapping) else []
    whole = [one for one in found if isinstance(one, torch.Tensor) and one.ndim == 2 and not one.is_floating_point()]
    if len(whole) != 2 or whole[0].shape != whole[1].shape:
        raise InputError(
            f"a batch is {shown(batch)}; expected whole numbers of one shape [B, T] under {' and '.join(names)}; "
            "tokenize with padding=True, return_tensors='pt'"
        )
    if (whole[1].sum(dim=1) == 0).any():
        raise InputError("a sequence is all padding: it has no last token")
    return whole[0], whole[1]


def by_size(pairs: Float[np.ndarray, "L1 L1"]) -> Float[np.ndarray, "L L"]:
    """From [l, m], a value for every two residuals, to [n, l] with n = m - l."""
    layers = len(pairs) - 1
    matrix = np.full((layers, layers), np.nan)
    for size in range(1, layers + 1):
        matrix[size - 1, : layers - size + 1] = np.diagonal(pairs, offset=size)
    return matrix
