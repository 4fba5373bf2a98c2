"""Layers that stay on disk give the numbers of those in memory, and are read once for many batches."""

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models import opening
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.models.streaming import is_streamed
from deeper_layers.results.shards import Shards
from deeper_layers.rules.geometry import record_passes, skip_each_layer
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests
from deeper_layers.sweeping.tree_model import TreeModel
from tests.hub import COMMIT, serving
from tests.plain import allocated, batch, requests
from tests.tiny import tiny_model

LAYERS = 6
CUTS = [Cut(0, 0), Cut(1, 2), Cut(0, 1), simple_cut(LAYERS, 3), Cut(4, 2), Cut.of([1, 4])]


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen3_moe"])
def both(request, tmp_path_factory, tiny_folder):
    """The same model in memory and on disk, in several files."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, layers=LAYERS).save_pretrained(folder, max_shard_size="60KB")
    for path in tiny_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return load_model(str(folder), stream=False)[0], load_model(str(folder), stream=True)[0]


def test_only_the_layers_stay_on_disk(both):
    memory, disk = both
    assert is_streamed(disk) and not is_streamed(memory)
    kept = {name for name, parameter in disk.named_parameters() if not parameter.is_meta}
    assert kept == {name for name, _ in memory.named_parameters() if ".layers." not in name}


def test_distances(both):
    memory, disk = both
    draw = torch.Generator().manual_seed(0)
    batches = [batch([torch.randint(1, 128, (n,), generator=draw).tolist() for n in (30, 7, 12)]) for _ in range(3)]
    assert np.array_equal(angular_distances(memory, batches), angular_distances(disk, batches), equal_nan=True)


def test_geometry(both):
    memory, disk = both
    given = batch([[5, 9, 17, 3, 2], [7, 8]])
    for run in (record_passes, skip_each_layer):
        found, expected = (next(run(model, [given], tokens=2)) for model in (disk, memory))
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert is_streamed(disk)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_a_sweep(both, few_shot, tmp_path):
    memory, disk = both
    asked, how = requests(128, few_shot=few_shot, questions=20), {"batch_tokens": 128}
    family, plain = TreeModel(disk, CUTS), TreeModel(memory, CUTS)
    assert family.sharing == plain.sharing
    expected, expected_greedy = loglikelihoods(plain, asked, **how)
    found, greedy = loglikelihoods(family, asked, **how)
    assert np.array_equal(found, expected) and np.array_equal(greedy, expected_greedy)
    assert is_streamed(disk)  # nothing was left in memory
    whole = plan_requests(family, asked, **how)
    assert len(whole.parts) == 1 and whole.reads > 0 and "GB of weights to read in 1 rounds" in str(whole)
    before = family.network.reader.bytes
    family.network.reader.bytes = 0
    list(family.answer(whole.pieces))
    assert before and family.network.reader.bytes <= 1.01 * whole.reads
    # with little memory in several rounds, each kept as it is finished
    with allocated() as taken:
        list(family.answer(whole.pieces))
    assert whole.bytes / 2.5 < taken[0] <= whole.bytes
    little = plan_requests(family, asked, **how, memory=whole.bytes // 3)
    assert len(little.parts) > 1 and little.bytes <= whole.bytes // 3
    shards = Shards(tmp_path / "unit.partial")
    found, _ = loglikelihoods(TreeModel(disk, CUTS), asked, **how, memory=whole.bytes // 3, shards=shards)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_memory_that_runs_out_halves_sequences_then_cuts(both, monkeypatch):
    memory, disk = both
    asked = requests(128, few_shot=60, questions=20)
    expected, _ = loglikelihoods(TreeModel(memory, CUTS), asked, batch_tokens=128)
    run, sizes = TreeModel._run, []

    def small(self, sequences, cuts, progress):
        sizes.append((len(cuts), len(sequences)))
        if len(cuts) * len(sequences) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, sequences, cuts, progress)

    monkeypatch.setattr(TreeModel, "_run", small)
    found, _ = loglikelihoods(TreeModel(disk, CUTS), asked, batch_tokens=128)
    assert max(sizes)[1] > 8 and min(sizes)[0] == 1 and min(sizes)[1] <= 4
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_some_layers_in_memory_and_others_on_disk(both, tmp_path):
    """As accelerate spreads what memory does not hold."""
    memory, disk = both
    places = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], "cpu")
    places |= {f"model.layers.{layer}": "disk" if layer in (3, 5) else "cpu" for layer in range(LAYERS)}
    mixed = type(disk).from_pretrained(disk.name_or_path, device_map=places, offload_folder=str(tmp_path)).eval()
    kept = [not any(p.is_meta for p in layer.parameters()) for layer in decoder_layers(mixed)]
    assert is_streamed(mixed) and kept == [True, True, True, False, True, False]
    asked = requests(128, few_shot=60, questions=4)
    expected, found = (loglikelihoods(TreeModel(model, CUTS), asked)[0] for model in (memory, mixed))
    assert np.array_equal(found, expected)


def test_answers(both):
    memory, disk = both
    rows = [list(range(1, 20)), list(range(5, 40))]
    never = lambda rows: [False] * len(rows)  # noqa: E731
    written = [Decoding(TreeModel(model, CUTS), rows, 4).write(never).tolist() for model in (memory, disk)]
    assert written[0] == written[1]


def test_what_streams_is_asked_in_words(tiny_folder):
    assert not is_streamed(load_model(str(tiny_folder))[0])
    for how, message in (({"stream": "yes"}, "stream is 'yes'"), ({"stream": True, "quantization": "nf4"}, "'nf4'")):
        with pytest.raises(InputError, match=f"{message}.*, expected"):
            load_model(str(tiny_folder), **how)


def test_a_model_of_the_hub_is_fetched_once_and_streams_where_memory_is_short(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tiny_model("llama", layers=LAYERS)
    model.save_pretrained(tmp_path / "saved", max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in [*(tmp_path / "saved").iterdir(), *tiny_folder.glob("*token*")]}
    bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with serving(monkeypatch) as hub:
        others = {"consolidated.safetensors": b"again", "original/model.safetensors": b"again", "model.bin": b"pickled"}
        hub.private["me/model"], hub.files["me/model"] = False, files | others
        for free, streams in ((2 * bytes, False), (bytes, True)):
            monkeypatch.setattr(opening, "free_memory", lambda device, free=free: free)
            found, _ = load_model("me/model")
            assert is_streamed(found) == streams
        whole = [line for line in hub.asked if line.startswith("GET") and line.endswith((".safetensors", ".bin"))]
        assert len(whole) == sum(name.endswith(".safetensors") for name in files) > 1
        known = find_model("me/model")
        # a commit, which no later one of this name has, and by which it is opened
        assert (known.weights, known.revision) == (f"hub:{COMMIT}", COMMIT)
    ids = torch.arange(1, 20)[None]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    assert np.array_equal(angular_distances(model, batches), angular_distances(found, batches), equal_nan=True)
