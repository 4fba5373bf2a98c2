"""Registered rules, and the search by loss: what each chooses on models whose answer is known, and its price."""

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import cuts_of_rule
from deeper_layers.rules.greedy import candidate_nodes, greedy_order
from deeper_layers.sweeping.searching import losses_on
from deeper_layers.sweeping.tree import Tree
from tests.tiny import search, tiny_model

LAYERS = 6


def test_greedy_search_is_a_loop_over_candidates():
    model = tiny_model("llama", layers=LAYERS)
    sequences = list(torch.randint(1, 128, (4, 24), generator=torch.Generator().manual_seed(0)))

    def one_by_one(cuts):
        found = []
        for cut in cuts:
            with torch.no_grad():
                logits = drop_layers(model, cut)(torch.stack(sequences)).logits
            targets = torch.stack(sequences)[:, 1:].flatten()
            found.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets).item())
        return found

    order: list[int] = []
    for _ in range(4):
        candidates = [layer for layer in range(1, LAYERS - 1) if layer not in order]
        losses = one_by_one([Cut.of([*order, layer]) for layer in candidates])
        order.append(candidates[int(np.argmin(losses))])
    assert greedy_order(4, LAYERS, losses_on(model, sequences)) == order
    sizes = [0, 1, 2, 3, 4]
    assert search(model, "greedy", sizes, sequences) == [Cut.of(order[:size]) for size in sizes]
    np.testing.assert_allclose(losses_on(model, sequences)([Cut.of(order)]), one_by_one([Cut.of(order)]), rtol=1e-5)


def test_of_equal_losses_the_lowest_layer_goes_and_the_ends_stay():
    assert greedy_order(4, LAYERS, lambda cuts: [1.0] * len(cuts)) == [1, 2, 3, 4]
    with pytest.raises(InputError, match="size is 5; expected 0 to 4, as the rule 'greedy' never drops"):
        cuts_of_rule("greedy", [5], LAYERS, losses=lambda cuts: [1.0] * len(cuts))


@pytest.mark.parametrize("layers", [3, 6, 9])
def test_its_price_is_the_nodes_of_its_trees(layers):
    def losses(cuts):
        nodes.append(Tree(cuts, layers).nodes)
        return [-cut.dropped[-1] for cut in cuts]

    nodes: list[int] = []
    greedy_order(layers - 2, layers, losses)
    assert sum(nodes) / layers <= candidate_nodes(layers - 2, layers)
    assert nodes[0] == pytest.approx(layers * candidate_nodes(1, layers))
