"""Pruned models of one network as a tree: a path is a model, a node is a layer run on one residual.

A pruned model is named by the layers that it keeps, in order. Models that keep the same first layers share all work up
to where they part. Of six layers the whole model, Cut(1, 2) and Cut(3, 2); numbers are residuals, 0 leaves the
embedding, o is a node, = goes to the head:

    layer          0      1      2      3      4      5
    whole      0 --o- 1 --o- 2 --o- 3 --o- 5 --o- 7 --o- 10 =
    Cut(1, 2)           '---------------o- 4 --o- 6 --o-  8 =
    Cut(3, 2)                         '---------------o-  9 =

The tree is walked from left to right: at layer i all nodes of layer i run, whatever their model, and residuals that no
later layer needs are freed. So a batch needs the weights of a layer once, and the residuals that live at one depth must
fit into memory. Needs no torch.
"""

from collections import defaultdict
from dataclasses import dataclass

from deeper_layers.cuts import Cut


@dataclass(frozen=True)
class Node:
    """A layer, or one of its sublayers, run on one residual.

    Attributes:
        layer: its number in the whole model.
        part: what of the layer runs, `cuts.WHOLE`, `ATTENTION` or `MLP`.
        enters: number of the residual that enters; 0 leaves the embedding.
        leaves: number of the residual that leaves it.
        cuts: numbers of the pruned models whose paths it is on.
        last_of: those of them whose last layer it is: its output goes to their heads.
    """

    layer: int
    part: str
    enters: int
    leaves: int
    cuts: tuple[int, ...]
    last_of: tuple[int, ...]

    @property
    def ends(self) -> bool:
        """Whether no layer follows on any path: then only scored positions are needed."""
        return self.cuts == self.last_of


class Tree:
    """The nodes that the cuts of a model with `layers` layers need, layer by layer.

    Attributes:
        cuts: the pruned models; `Cut(0, 0)` is the whole one.
        levels: for each layer of the whole model its nodes.
        needed: for each layer the residuals that later ones need.
        nodes: number of nodes, which is the cost of a pass in layer-steps a token.
        alive: the most residuals that are needed at once.
    """

    def __init__(self, cuts: list[Cut], layers: int):
        self.cuts = list(cuts)
        self.layers = layers
        self.nodes = 0
        self.alive = 1
        self.levels: list[list[Node]] = []
        self.needed: list[set[int]] = []
        final = [max(cut.kept(layers)) for cut in cuts]
        current, living = [0] * len(cuts), {0}  # the residual that each model has reached
        for layer in range(layers):
            runs: dict[tuple[int, str], list[int]] = defaultdict(list)
            for number, cut in enumerate(cuts):
                if part := cut.runs(layer):
                    runs[current[number], part].append(number)
            self.levels.append([])
            for (enters, part), numbers in runs.items():
                self.nodes += 1
                last_of = tuple(number for number in numbers if final[number] == layer)
                self.levels[layer].append(
                    Node(layer, part, enters, self.nodes, tuple(numbers), last_of)
                )
                for number in numbers:
                    current[number] = self.nodes
            self.needed.append({residual for residual, last in zip(current, final) if last > layer})
            self.alive = max(self.alive, len(living | self.needed[layer]))
            living = self.needed[layer]
