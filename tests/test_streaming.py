"""Little memory: layers that stay on disk, or fewer at once, give the same numbers.

Of every family: tests/test_families.py.
"""

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models import network, opening
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.network import is_streamed
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping.generation import Decoding
from deeper_layers.sweeping.parts import run_in_halves
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.rules.geometry import record_passes, skip_each_layer
from tests.plain import allocated, batch, little_memory, never, requests
from tests.tiny import tiny_model

LAYERS, COMMIT = 6, "0" * 40
CUTS = [Cut(0, 0), Cut(1, 2), Cut(0, 1), simple_cut(LAYERS, 3), Cut(4, 2), Cut.of([1, 4])]
ASKED = {few_shot: requests(128, few_shot=few_shot, questions=20) for few_shot in (0, 60)}


def saved(folder, tiny_folder):
    """A model in several files, with a tokenizer."""
    tiny_model("llama", layers=LAYERS).save_pretrained(folder, max_shard_size="60KB")
    for path in tiny_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_folder):
    """The same model in memory and on disk."""
    folder = saved(tmp_path_factory.mktemp("saved"), tiny_folder)
    return [load_model(str(folder), stream=stream)[0] for stream in (False, True)]


def test_what_is_recorded_and_written_is_the_same(both):
    kept = {name for name, parameter in both[1].named_parameters() if not parameter.is_meta}
    assert kept == {name for name, _ in both[0].named_parameters() if ".layers." not in name}
    given = batch([[5, 9, 17, 3, 2], [7, 8]])
    for run in (record_passes, skip_each_layer):
        memory, disk = (next(run(model, [given], tokens=2)) for model in both)
        assert all(np.array_equal(disk[name], memory[name]) for name in memory)
    rows = [list(range(1, 20)), list(range(5, 40))]
    memory, disk = (Decoding(TreeModel(model, CUTS), rows, 4).write(never) for model in both)
    assert memory == disk and is_streamed(both[1]), "nothing was left in memory"


@pytest.mark.parametrize("where", [0, 1], ids=["memory", "disk"])
@pytest.mark.parametrize("few_shot", [0, 60])
def test_little_memory_makes_groups_and_gives_the_same_numbers(both, where, few_shot, tmp_path, monkeypatch):
    family, asked, how = TreeModel(both[where], CUTS), ASKED[few_shot], {"batch_tokens": 128}
    expected = loglikelihoods(TreeModel(both[0], CUTS), asked, **how)
    assert np.array_equal(loglikelihoods(family, asked, **how), expected)
    whole = plan_requests(family, asked, **how)
    read, align = [], network.align_module_device
    count = lambda part: read.append(sum(p.nbytes for p in part.parameters(recurse=False))) or align(part)  # noqa: E731
    monkeypatch.setattr(network, "align_module_device", count)
    with allocated() as taken:
        for batches in whole.parts:
            family.answer(batches)
    mapped = where * 9 * 60_000  # each tensor of the layer that is there maps its file, which allocates nothing
    assert whole.bytes / 5 < taken[0] <= whole.bytes + mapped
    assert where <= sum(read) <= 1.01 * whole.reads and is_streamed(both[where]) == where
    assert ("GB of weights to read in 1 rounds" in str(whole)) == where
    # in several rounds or groups, each kept as it is finished
    small = {**how, "memory": whole.bytes // 2}
    little = plan_requests(family, asked, **small)
    with allocated() as taken:
        for batches in little.parts:
            family.answer(batches, memory=small["memory"])
    assert len(little.parts) > 1 and taken[0] - mapped <= little.bytes <= small["memory"]
    small["shards"] = Shards(tmp_path / "unit.partial")
    found = loglikelihoods(family, asked, **small)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    next((tmp_path / "unit.partial").glob("*.npz")).unlink()  # as if interrupted before that
    assert np.array_equal(loglikelihoods(family, asked, **small), found)
    # memory that runs out halves sequences, then cuts
    tried = little_memory(monkeypatch, most=4)
    np.testing.assert_allclose(loglikelihoods(family, asked, **how), expected, atol=1e-4, rtol=0)
    assert {models for models, rows in tried if rows > 9} <= {len(CUTS)} and min(tried)[0] == 1 < max(tried)[0]
    little_memory(monkeypatch, most=0)
    with pytest.raises(InputError, match="out of memory on one sequence"):
        loglikelihoods(family, asked)


def test_some_layers_in_memory_and_others_on_disk(both, tmp_path):
    """As accelerate spreads what memory does not hold."""
    memory, disk = both
    places = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], "cpu")
    places |= {f"model.layers.{layer}": "disk" if layer in (3, 5) else "cpu" for layer in range(LAYERS)}
    mixed = type(disk).from_pretrained(disk.name_or_path, device_map=places, offload_folder=str(tmp_path)).eval()
    on_disk = [any(p.is_meta for p in layer.parameters()) for layer in decoder_layers(mixed)]
    assert is_streamed(mixed) and on_disk == [layer in (3, 5) for layer in range(LAYERS)]
    asked = requests(128, few_shot=60, questions=4)
    expected, found = (loglikelihoods(TreeModel(model, CUTS), asked)[0] for model in (memory, mixed))
    assert np.array_equal(found, expected)


def test_what_streams_is_asked_in_words(tiny_folder):
    for how, message in (
        ({"stream": "yes"}, "stream is 'yes'"),
        ({"stream": True, "quantization": "nf4"}, "'nf4' with stream, where layers are read as stored"),
        ({"stream": False, "quantization": "int3"}, "'int3'"),
    ):
        with pytest.raises(InputError, match=f"{message}, expected"):
            load_model(str(tiny_folder), **how)


@pytest.mark.quick
def test_one_cut_that_does_not_fit_runs_with_fewer_sequences():
    ran, rows = [], np.arange(8)

    def run(some, cuts):
        ran.append((len(some), cuts))
        return some[None]

    answers = run_in_halves(run, rows, CUTS[:1], lambda some, _: len(some) <= 2)
    assert ran == [(2, CUTS[:1])] * 4 and np.array_equal(answers, [rows])


def test_a_model_of_the_hub_is_known_by_its_commit_and_streams_where_memory_is_short(
    tiny_folder, tmp_path, monkeypatch
):
    """In the hub's cache, as if it had been fetched."""
    snapshot, wanted = tmp_path / "models--me--model" / "snapshots" / COMMIT, []
    saved(snapshot, tiny_folder)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sizes = {path.name: path.stat().st_size for path in snapshot.iterdir()}

    def fetch(name, *, revision, **patterns):
        wanted.append({*filter_repo_objects([*sizes, "original/model.safetensors", "model.bin"], **patterns)})
        return snapshot

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for free, streams in ((2 * sum(sizes.values()), False), (100_000, True)):
        monkeypatch.setattr(opening, "free_memory", lambda device, free=free: free)
        found, _ = load_model("me/model")
        assert is_streamed(found) == streams
    assert wanted == [{"config.json"}, sizes.keys()] * 2
    known = find_model("me/model")
    # a commit, which no later one of this name has, and by which it is opened
    assert (known.weights, known.revision) == (f"hub:{COMMIT}", COMMIT)
    batches = [batch([list(range(1, 20))])]
    expected = angular_distances(load_model(str(snapshot))[0], batches)
    assert np.array_equal(angular_distances(found, batches), expected, equal_nan=True)
