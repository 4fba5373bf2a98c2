"""A sweep of a model whose layers stay on disk, killed at random moments until it ends: the same rows.

    python -m tests.fuzz.killed_streams 9     # so many kills

Each process goes on from what those before it finished.
"""

import collections
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.models.opening import load_model
from deeper_layers.models.streaming import is_streamed
from deeper_layers.results.shards import Shards
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests
from deeper_layers.sweeping.tree_model import TreeModel
from tests.faults import in_child
from tests.plain import requests
from tests.tiny import VOCABULARY, tiny_model

CUTS = [Cut(0, 0), *(simple_cut(6, size) for size in range(1, 5)), Cut.of([1, 4])]


def main(kills: int, seed: int = 0) -> None:
    torch.set_num_threads(1)
    draw, counts = random.Random(seed), collections.Counter()
    asked = requests(VOCABULARY, few_shot=60, questions=16)
    with tempfile.TemporaryDirectory() as folder:
        tiny_model("llama").save_pretrained(Path(folder, "model"), max_shard_size="60KB")
        save_tokenizer(Path(folder, "model"))
        model, shards = load_model(str(Path(folder, "model")), stream=True)[0], Path(folder, "unit.partial")
        family = TreeModel(model, CUTS)
        how = {"batch_tokens": 128, "memory": plan_requests(family, asked, 128).bytes // 5}
        rounds = len(plan_requests(family, asked, **how).parts)
        assert is_streamed(model) and rounds > 2

        def sweep() -> np.ndarray:
            fresh = TreeModel(model, CUTS, family.sharing)
            return loglikelihoods(fresh, asked, shards=Shards(shards), **how)[0]

        start = time.monotonic()
        expected = sweep()
        seconds = time.monotonic() - start
        shutil.rmtree(shards)

        def killed() -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process at once, with nothing tidied up
            signal.setitimer(signal.ITIMER_REAL, draw_now)
            sweep()

        while counts["killed"] < kills:
            draw_now = draw.uniform(0.001, 0.7 * seconds)
            status, said = in_child(killed)
            assert status in (0, -signal.SIGALRM), said
            counts["killed"] += status != 0
            if status == 0 or counts["killed"] == kills:
                counts["finished parts found"] += len(list(shards.glob("*.npz")))
                counts["same" if np.array_equal(sweep(), expected) else "WRONG"] += 1
                shutil.rmtree(shards)
    print(json.dumps(dict(counts) | {"rounds": rounds}, sort_keys=True))


def save_tokenizer(folder: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
