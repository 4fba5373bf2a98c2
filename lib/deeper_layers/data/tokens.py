"""Turn documents into sequences of tokens: padded batches for distances, packed sequences for healing and losses."""

import math
import os
import random

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from deeper_layers import checks
from deeper_layers.errors import InputError

SENTENCE = "The quick brown fox jumps over the lazy dog, and then back again."


def check_tokenizer(tokenizer) -> None:
    """Raise InputError for what is no tokenizer, and where every word is unknown: a folder without tokenizer files
    opens as an empty tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"tokenizer is {checks.short_repr(tokenizer)}, expected the model's: load_model gives both"
        )
    if not set(tokenizer(SENTENCE)["input_ids"]) - set(tokenizer.all_special_ids):
        raise InputError(
            f"the tokenizer ({type(tokenizer).__name__}) knows no words: its files, like tokenizer.json, are "
            "missing from the model's folder; copy them there from where the model comes from"
        )


def text_batches(
    tokenizer,
    documents: list[str],
    *,
    samples: int,
    length: int,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> list[dict[str, torch.Tensor]]:
    """Draw `samples` documents without replacement, cut each after `length` tokens, and pad them in batches.

    Each batch holds `input_ids` and `attention_mask`, [B, T], padded on the right, with at most `batch_tokens` tokens,
    sorted by length so that padding is rare. Documents of one token are skipped.
    Raises InputError where there are too few documents, and what `token_sequences` raises.
    """
    checks.check_whole_number("samples", samples, 1, checks.MANY)
    remaining = token_sequences(
        tokenizer, documents, length=length, tokens=samples * length, seed=seed, packed=False
    )
    if len(remaining) < samples:
        raise InputError(
            f"samples is {samples}, but the corpus has {len(remaining)} usable documents: ask for fewer"
        )
    remaining.sort(key=len, reverse=True)
    batches = []
    while remaining:
        size = max(1, batch_tokens // len(remaining[0]))
        rows = [row.long() for row in remaining[:size]]
        remaining = remaining[size:]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def token_sequences(
    tokenizer,
    documents: list[str],
    *,
    length: int,
    tokens: int | None = None,
    seed: int = 0,
    packed: bool = True,
) -> list[torch.Tensor]:
    """Turn documents into sequences of tokens, each [T] of whole numbers, in an order that the seed draws.

    Packed, documents are joined with the end-of-text token and cut every `length` tokens; the rest at the end is
    dropped. Every sequence begins with what the tokenizer puts before a text, as models need what they were trained
    with. Not packed, each document is a sequence, cut after `length` tokens. Reads documents until they give `tokens`,
    or all. Raises InputError for an impossible length or seed, documents that are no list of texts, and where the
    tokenizer knows no words.
    """
    if not isinstance(documents, list | tuple) or not all(
        isinstance(text, str) for text in documents
    ):
        raise InputError(
            f"documents is {checks.short_repr(documents)}, expected a list of texts: give each as one"
        )
    checks.check_whole_number("length", length, 2, checks.TOKENS)
    checks.check_whole_number("seed", seed, 0, checks.SEED)
    check_tokenizer(tokenizer)
    sequences: list[torch.Tensor] = []
    pending: list[int] = []
    start_tokens = tokenizer("")["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    limit = None if tokens is None else math.ceil(tokens / length)
    for document in random.Random(seed).sample(documents, len(documents)):
        if limit is not None and len(sequences) >= limit:
            break
        most = None if packed else length
        ids = tokenizer(document, truncation=not packed, max_length=most)["input_ids"]
        if packed:
            pending += ids + end
        elif len(ids) > 1:
            sequences.append(torch.tensor(ids, dtype=torch.int32))
        # without tokens that follow a text
        beginning = os.path.commonprefix([start_tokens, ids])[: length - 1]
        while len(pending) >= length:
            if pending[: len(beginning)] != beginning:
                pending = beginning + pending
            sequences.append(torch.tensor(pending[:length], dtype=torch.int32))
            pending = pending[length:]
    return sequences[:limit]
