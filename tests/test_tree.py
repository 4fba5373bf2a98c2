"""Cuts of any shape, and the tree of layers that they make."""

import itertools

import pytest
import torch

from deeper_layers.cuts import ATTENTION, MLP, WHOLE, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.sweeping.tree import Tree
from tests.tiny import tiny_model

pytestmark = pytest.mark.quick

LAYERS = 6


def test_layers_of_a_cut():
    assert Cut.of([5, 3, 4]) == Cut(3, 3) and Cut.of() == Cut(0, 0)
    cut = Cut.of(layers=[1, 4], attention=[2, 3], mlp=[3, 5])  # nothing is left of 3
    assert cut.dropped == (1, 3, 4) and cut.size == 3 and cut.stop == 5
    assert cut.attention == (2,) and cut.mlp == (5,) and not cut.is_block
    assert [cut.runs(layer) for layer in range(6)] == [WHOLE, None, MLP, None, None, ATTENTION]
    assert cut.kept(6) == [0, 2, 5]
    assert repr(Cut(3, 3)) == "Cut(start=3, size=3)" and eval(repr(cut)) == cut


def test_no_two_cuts_have_one_name():
    cuts = [
        Cut.of(some, [3], mlp) for n in range(3) for some in itertools.combinations(range(3), n) for mlp in ([], [4])
    ]
    assert len({cut.name for cut in [*cuts, *map(Cut.of, ([1, 4], [1, 3], [1, 2], []))]}) == len(cuts) + 4
    assert Cut(3, 2).name == "3,2" and Cut.of([1, 4], mlp=[2]).name == "layers 1 4; mlp 2"


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (Cut.of([1, 4]), "drops layers 1, 4 (0-based, 2 of 6), keeps [0:1], [2:4] and [5:6]"),
        (Cut.of([1, 3, 4]), "drops layers 1, 3..4 (0-based, 3 of 6), keeps [0:1], [2:3] and [5:6]"),
        (Cut.of(attention=[2]), "drops the attention of layer 2, keeps [0:6]"),
        (Cut.of(mlp=[2, 3]), "drops the MLP of layers 2..3, keeps [0:6]"),
        (Cut.of([0], [2], [3]), "drops layer 0 (0-based, 1 of 6) and the attention of layer 2 and the MLP of layer 3, "
         "keeps [1:6]"),
    ],
)  # fmt: skip
def test_a_cut_of_any_shape_in_words(cut, words):
    assert cut.describe(6) == words


@pytest.mark.parametrize("cut", [Cut.of([1, 6]), Cut.of(attention=[6]), Cut.of(mlp=[9])])
def test_a_layer_that_is_not_there_is_refused(cut):
    with pytest.raises(InputError, match="expected layers 0 to 5"):
        cut.check(6)


def test_mergekit_takes_scattered_layers_and_no_sublayers():
    assert Cut.of([1, 3]).mergekit_yaml(5, "m").count("layer_range") == 3
    with pytest.raises(InputError, match="whole layers"):
        Cut.of(mlp=[1]).mergekit_yaml(5, "m")


def test_the_tree_of_the_picture():
    tree = Tree([Cut(0, 0), Cut(1, 2), Cut(3, 2)], 6)
    assert [[(node.enters, node.leaves) for node in level] for level in tree.levels] == [
        [(0, 1)], [(1, 2)], [(2, 3)], [(3, 4), (1, 5)], [(4, 6), (5, 7)], [(6, 8), (7, 9), (3, 10)],
    ]  # fmt: skip
    assert [len(level) for level in tree.levels] == [1, 1, 1, 2, 2, 3]
    assert [node.ends for node in tree.levels[5]] == [True] * 3


def test_every_model_is_a_path_and_what_is_shared_runs_once():
    cuts = [Cut(0, 0), Cut.of([1, 4]), Cut.of([1, 3]), Cut(4, 2), Cut.of(mlp=[0]), Cut.of(mlp=[0], layers=[5])]
    tree = Tree(cuts, LAYERS)
    prefixes = set()
    for cut, path, last in zip(cuts, tree.paths, tree.last, strict=True):
        assert list(path) == cut.kept(LAYERS) and path[max(path)].leaves == last
        for before, after in itertools.pairwise(path.values()):
            assert before.leaves == after.enters
        steps = [(layer, cut.runs(layer)) for layer in path]
        prefixes |= {tuple(steps[: n + 1]) for n in range(len(steps))}
    assert tree.nodes == len(prefixes)  # the definition: a node for each beginning that any model has


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_what_lives_is_what_is_needed(layers):
    cuts = [Cut.of(some) for n in range(layers) for some in itertools.combinations(range(layers), n)]
    tree = Tree(cuts, layers)
    alive, most = {0}, 1
    for level, done in zip(tree.levels, tree.done, strict=True):
        assert all(node.enters in alive for node in level)
        alive |= {node.leaves for node in level}
        most = max(most, len({number for number in alive if number not in {n.leaves for n in level if n.ends}}))
        alive -= set(done)
    assert not alive and tree.alive == most
    assert Tree([simple_cut(layers, n) for n in range(layers)], layers).nodes == layers + layers - 1


def test_a_dropped_sublayer_is_no_configuration(tmp_path):
    model = tiny_model("llama", layers=LAYERS)
    with pytest.raises(InputError, match="silence_sublayers"):
        drop_layers(model, Cut.of(attention=[2]))
    silenced = silence_sublayers(model, Cut.of([0], attention=[2]))
    silenced.save_pretrained(tmp_path / "silenced")
    reloaded = type(model).from_pretrained(tmp_path / "silenced", dtype="float32")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, silenced(ids).logits)
        assert not torch.equal(silenced(ids).logits, drop_layers(model, Cut(0, 1))(ids).logits)
    assert len(decoder_layers(reloaded)) == 5 and sum(p.abs().sum() == 0 for p in reloaded.parameters()) == 1
    assert all(p.abs().sum() > 0 for p in model.parameters())  # the original stays as it was
