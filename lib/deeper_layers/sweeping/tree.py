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

from collections import defaultdict
from dataclasses import dataclass

from deeper_layers.cuts import Cut


@dataclass(frozen=True)
class Node:
    """A layer, or one of its sublayers, run on one residual.

    Attributes:
        layer: its number in the whole model.
        part: what of it runs, `cuts.WHOLE`, `ATTENTION` or `MLP`.
        enters: number of the residual that enters; 0 leaves the embedding.
        leaves: number of the residual that leaves it.
        cuts: numbers of the pruned models on whose paths it lies.
        last_of: of these, those whose last layer it is: what leaves it goes to their heads.
    """

    layer: int
    part: str
    enters: int
    leaves: int
    cuts: tuple[int, ...]
    last_of: tuple[int, ...]

    @property
    def ends(self) -> bool:
        """Whether no layer follows on any path: then only what is scored has to leave it."""
        return self.cuts == self.last_of


class Tree:
    """The nodes that cuts of a model of so many layers need, layer by layer.

    Attributes:
        cuts: the pruned models; `Cut(0, 0)` is the whole one.
        levels: for each layer of the whole model its nodes.
        done: for each layer the residuals that nothing needs once it has run.
        nodes: layers that one token passes: what a pass costs, in layer-steps a token.
        alive: residuals that live at once, at most.
    """

    def __init__(self, cuts: list[Cut], layers: int):
        self.cuts, self.layers, self.nodes, self.alive = list(cuts), layers, 0, 1
        self.levels: list[list[Node]] = [[] for _ in range(layers)]
        final = [max(cut.kept(layers)) for cut in cuts]
        at, until = [0] * len(cuts), {0: 0}  # the residual of each model, and the last layer that needs it
        for layer, level in enumerate(self.levels):
            asked: dict[tuple[int, str], list[int]] = defaultdict(list)
            for number, cut in enumerate(cuts):
                if part := cut.runs(layer):
                    asked[at[number], part].append(number)
            for (enters, part), numbers in asked.items():
                self.nodes += 1
                last_of = tuple(number for number in numbers if final[number] == layer)
                level.append(node := Node(layer, part, enters, self.nodes, tuple(numbers), last_of))
                until |= {enters: layer} if node.ends else {enters: layer, node.leaves: layer}
                for number in numbers:
                    at[number] = node.leaves
        self.done = [[number for number, last in until.items() if last == layer] for layer in range(layers)]
        alive = 1
        for level, done in zip(self.levels, self.done, strict=True):
            alive += sum(not node.ends for node in level)
            self.alive = max(self.alive, alive)
            alive -= len(done)
