"""A sweep of a model whose layers stay on disk, killed at random moments until it ends, gives the same rows.

Each process goes on from what those before it finished. Steps that write one file or folder: tests/test_files.py.
"""

import random
import shutil
import signal
import time

import numpy as np
import pytest

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


@pytest.mark.thorough
def test_a_streamed_sweep_that_is_killed_ends_with_the_same_rows(tiny_folder, tmp_path):
    draw, kills = random.Random(0), 0
    asked = requests(VOCABULARY, few_shot=60, questions=16)
    folder, shards = shutil.copytree(tiny_folder, tmp_path / "model"), tmp_path / "unit.partial"
    (folder / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(folder, max_shard_size="60KB")
    model = load_model(str(folder), stream=True)[0]
    family = TreeModel(model, CUTS)
    how = {"batch_tokens": 128, "memory": plan_requests(family, asked, 128).bytes // 5}
    assert is_streamed(model) and len(plan_requests(family, asked, **how).parts) > 2

    def sweep() -> np.ndarray:
        fresh = TreeModel(model, CUTS, family.sharing)
        return loglikelihoods(fresh, asked, shards=Shards(shards), **how)[0]

    def killed() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process at once, with nothing tidied up
        signal.setitimer(signal.ITIMER_REAL, seconds * draw_now)
        sweep()

    start = time.monotonic()
    expected = sweep()
    seconds = time.monotonic() - start
    shutil.rmtree(shards)
    while kills < 3:
        draw_now = draw.uniform(0.01, 0.7)
        status, said = in_child(killed)
        assert status in (0, -signal.SIGALRM), said
        kills += status != 0
        if status == 0 or kills == 3:
            assert np.array_equal(sweep(), expected)
            shutil.rmtree(shards)
