"""Pruned models of one network as a tree: a path is a model, a node is a layer run on one residual.

A pruned model is named by the layers that it keeps, in order. Models that keep the same first layers share all work up
to where they part. Of six layers the whole model, Cut(1, 2) and Cut(3, 2); numbers are residuals, 0 leaves the
embedding, o is a node, = goes to the head:

    layer          0      1      2      3      4      5
    whole      0 --o- 1 --o- 2 --o- 3 --o- 5 --o- 7 --o- 10 =
    Cut(1, 2)           '---------------o- 4 --o- 6 --o-  8 =
    Cut(3, 2)                         '---------------o-  9 =

It is walked from left to right: at layer i all nodes of layer i run, whatever model they are of, and the residuals that
no later layer needs are given up. So the weights of a layer are needed once for a batch, and what lives at one depth
is what must fit into memory. Needs no torch.
"""

from dataclasses import dataclass
from functools import cached_property

from deeper_layers.cuts import Cut


@dataclass(frozen=True)
class Node:
    """A layer, or one of its sublayers, run on one residual.

    Attributes:
        layer: its number in the whole model.
        part: what of it runs, `cuts.WHOLE`, `ATTENTION` or `MLP`.
        enters: number of the residual that enters; 0 leaves the embedding.
        leaves: number of the residual that leaves it.
        ends: whether no layer follows on any path: then only what is scored has to leave it.
    """

    layer: int
    part: str
    enters: int
    leaves: int
    ends: bool


class Tree:
    """The nodes that cuts of a model of so many layers need, layer by layer.

    Attributes:
        cuts: the pruned models; `Cut(0, 0)` is the whole one.
        levels: for each layer of the whole model its nodes.
        paths: for each cut its nodes, by layer.
        last: for each cut the number of the residual that goes to the head.
        done: for each layer the residuals that nothing needs once it has run.
    """

    def __init__(self, cuts: list[Cut], layers: int):
        self.cuts, self.layers = list(cuts), layers
        at, count = [0] * len(cuts), 1
        final = [max(cut.kept(layers)) for cut in cuts]
        levels: list[list[Node]] = []
        self.paths: list[dict[int, Node]] = [{} for _ in cuts]
        for layer in range(layers):
            asked: dict[tuple[int, str], list[int]] = {}
            for number, cut in enumerate(cuts):
                if part := cut.runs(layer):
                    asked.setdefault((at[number], part), []).append(number)
            levels.append([])
            for (enters, part), numbers in asked.items():
                ends = all(final[number] == layer for number in numbers)
                node = Node(layer, part, enters, count, ends)
                levels[-1].append(node)
                for number in numbers:
                    at[number] = count
                    self.paths[number][layer] = node
                count += 1
        self.levels, self.last = levels, at
        # what goes to the head is taken from a residual as soon as it is there
        until = {0: 0} | {node.leaves: node.layer for level in levels for node in level}
        until |= {node.enters: node.layer for level in levels for node in level}
        self.done: list[list[int]] = [[] for _ in range(layers)]
        for number, layer in until.items():
            self.done[layer].append(number)

    @cached_property
    def nodes(self) -> int:
        """Layers that one token passes: what a pass costs, in layer-steps a token."""
        return sum(map(len, self.levels))

    @cached_property
    def alive(self) -> int:
        """Residuals that live at once, at most."""
        most = now = 1
        for level, done in zip(self.levels, self.done, strict=True):
            # what ends leaves at a few positions only
            now += sum(not node.ends for node in level)
            most = max(most, now)
            ends = {node.leaves for node in level if node.ends}
            now -= sum(number not in ends for number in done)
        return most
