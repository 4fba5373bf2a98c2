"""Cuts of any shape, and the tree of layers that they make."""

import itertools

import numpy as np
import pytest
import torch
import yaml

from deeper_layers.cuts import ATTENTION, MLP, WHOLE, Cut
from deeper_layers.errors import InputError
from deeper_layers.sweeping.tree import Tree
from deeper_layers_companion.jobs.job import UnknownCut

pytestmark = pytest.mark.quick

LAYERS = 6


@pytest.mark.wrong_types  # numbers of numpy and torch are taken, and become plain ones
def test_what_a_cut_drops_and_keeps():
    assert Cut.of([5, 3, 4]) == Cut(3, 3) and Cut.of() == Cut(0, 0) == Cut(7, 0)
    cut = Cut.of(layers=[1, 4], attention=[2, 3], mlp=[3, 5])  # nothing is left of 3
    assert cut.dropped == (1, 3, 4) and cut.stop == 5 and cut.kept(6) == [0, 2, 5]
    assert [cut.runs(layer) for layer in range(6)] == [WHOLE, None, MLP, None, None, ATTENTION]
    assert eval(repr(cut)) == cut and repr(Cut(3, 3)) == "Cut(start=3, size=3)"
    cut = Cut(np.int64(3), torch.tensor(2))
    assert cut == Cut(3, 2) and type(cut.start) is type(cut.size) is int


CONTRADICTIONS = [
    {"start": 0, "size": 3, "scattered": (1, 9)},  # another number of layers
    {"start": 0, "size": 2, "scattered": (1, 9)},  # another first layer
    {"start": 9, "size": 2, "scattered": (9, 1)},
    {"start": 1, "size": 3, "scattered": (1, 9, 9)},
    {"start": 1, "size": 2, "scattered": (1, 2)},  # a block, which has another name
    {"start": 1, "size": 2, "scattered": (1, -9)},
    {"start": 1, "size": 2, "scattered": [1, 9]},
    {"start": 1, "size": 2, "scattered": None},
    {"start": 1, "size": 2, "scattered": (1, "9")},
    {"start": 1, "size": 2, "attention": (2,)},  # of a layer that is dropped
    {"start": 0, "size": 0, "attention": (3,), "mlp": (3,)},  # nothing of it is left
    {"start": 0, "size": 0, "mlp": (4, 3)},
    {"start": 0, "size": 0, "mlp": (3, 3)},
]


@pytest.mark.wrong_types
@pytest.mark.parametrize("fields", CONTRADICTIONS, ids=str)
def test_a_cut_that_contradicts_itself_is_refused(fields):
    with pytest.raises(InputError, match=r"contradicts itself; expected sorted|no tuple of layers|is -9; |is '9'; "):
        Cut(**fields)


@pytest.mark.wrong_types
def test_what_agrees_is_a_cut_however_it_is_made():
    made = Cut(np.int64(1), 2, (np.int64(1), 9), (2,), (4, 6))
    assert made == Cut.of([9, 1], attention=[2], mlp=[6, 4]) and {type(index) for index in made.dropped} == {int}
    given = UnknownCut(0, 3, rule="greedy")
    assert given.name == "greedy 3" and given.dropped == (0, 1, 2)


def test_each_cut_has_one_name_by_which_it_is_found():
    some = [list(of) for n in range(4) for of in itertools.combinations(range(3), n)]
    cuts = {Cut.of(*parts) for parts in itertools.product(some, [[], [3]], [[], [4]])}
    assert len({cut.name for cut in cuts}) == len(cuts) == 32
    assert all(Cut.named(cut.name) == Cut.named(cut.key) == cut for cut in cuts)
    for wrong in ("3", "layers 3", "3, 2", [3, 2, 1], "mlp x"):
        with pytest.raises(ValueError):
            Cut.named(wrong)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (Cut(7, 0), "drops no layers (0 of 30), keeps [0:30]"),
        (Cut.of([0], mlp=[3, 4]), "drops layer 0 (0-based, 1 of 30) and the MLP of layers 3..4, keeps [1:30]"),
        (Cut.of([1, 3, 4]), "drops layers 1, 3..4 (0-based, 3 of 30), keeps [0:1], [2:3] and [5:30]"),
    ],
)
def test_a_cut_in_words(cut, words):
    assert cut.describe(30) == words


def test_a_cut_as_a_configuration_of_mergekit():
    name = 'organisation/a "name": with # signs'
    assert yaml.safe_load(Cut.of([1, 3, 4]).mergekit_yaml(30, name)) == {
        "slices": [{"sources": [{"model": name, "layer_range": pair}]} for pair in ([0, 1], [2, 3], [5, 30])],
        "merge_method": "passthrough",
    }
    with pytest.raises(InputError, match="mergekit's passthrough takes whole layers"):
        Cut.of(mlp=[1]).mergekit_yaml(5, "m")


def test_every_model_is_a_path_and_what_is_shared_runs_once():
    cuts = [Cut(0, 0), Cut.of([1, 4]), Cut.of([1, 3]), Cut(4, 2), Cut.of(mlp=[0]), Cut.of(mlp=[0], layers=[5])]
    tree = Tree(cuts, LAYERS)
    prefixes = set()
    for number, cut in enumerate(cuts):
        path = [node for level in tree.levels for node in level if number in node.cuts]
        assert [node.layer for node in path] == cut.kept(LAYERS) and number in path[-1].last_of
        assert all(before.leaves == after.enters for before, after in itertools.pairwise(path))
        steps = [(node.layer, cut.runs(node.layer)) for node in path]
        prefixes |= {tuple(steps[: n + 1]) for n in range(len(steps))}
    assert tree.nodes == len(prefixes)  # the definition: a node for each beginning that any model has
