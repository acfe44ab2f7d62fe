"""The label co-occurrence graph, and the graph networks that turn it into features.

Liu et al. (SIGNA), equations 1-2 (graph) and 4 (graph network). Equation 1 counts `P_ii = 1`; self
edges are left out, because each network adds what it needs: GraphSAGE (Hamilton et al., NeurIPS
2017) has a weight for the node itself, GCN (Kipf & Welling, ICLR 2017) and GAT (Velickovic et al.,
ICLR 2018) add a self loop. So an isolated label, or a graph without edges, still gives features.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

Gnn = Literal["sage", "gcn", "gat"]
GNNS: tuple[Gnn, ...] = ("sage", "gcn", "gat")


class LabelGraph(NamedTuple):
    """Directed edges i -> j: label i is seen, and label j is likely beside it."""

    edges: Tensor  # (2, E) int64
    weights: Tensor  # (E,) P(j given i)


def label_graph(labels: Tensor, threshold: float) -> LabelGraph:
    """The edges i -> j with P(j given i) >= threshold, i != j.

    Args:
        labels: (N, C) zeros and ones of the training tiles (equation 1).
        threshold: Q of equation 2.
    """
    together = labels.T @ labels  # (C, C)
    seen = together.diagonal().clamp(min=1)
    conditional = together / seen[:, None]
    conditional.fill_diagonal_(0)
    edges = (conditional >= threshold).nonzero().T.contiguous()
    return LabelGraph(edges, conditional[edges[0], edges[1]])


class LabelBranch(nn.Module):
    """The label graph as features: W -> D / 2 -> D, or W -> D in one layer, LeakyReLU(0.2).

    - `sage`: the mean of the neighbours, and a weight for the label itself.
    - `gcn`: edges weigh P(j given i), self loops 1, normalised by the roots of both degrees.
    - `gat`: the neighbours and the label itself weigh what attention gives them, one head.
    """

    def __init__(self, width: int, channels: int, gnn: Gnn = "sage", layers: int = 2) -> None:
        super().__init__()
        self._weighted = gnn == "gcn"
        widths = [width, max(channels // 2, 1), channels] if layers == 2 else [width, channels]
        network = {"sage": SAGEConv, "gcn": GCNConv, "gat": GATConv}[gnn]
        self.layers = nn.ModuleList(network(into, out) for into, out in pairwise(widths))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, vectors: Tensor, graph: LabelGraph) -> Tensor:
        """(C, W) label vectors -> (C, D) semantic features L_s."""
        hidden = vectors
        weights = (graph.weights,) if self._weighted else ()
        for layer in self.layers:
            hidden = self.activation(layer(hidden, graph.edges, *weights))
        return hidden


class LabelVectors(nn.Module):
    """What each label begins with: (C, W), learned from a random start or fixed by a file."""

    values: Tensor

    def __init__(self, labels: int, width: int, learned: bool) -> None:
        super().__init__()
        if learned:
            self.values = nn.Parameter(torch.randn(labels, width))
        else:
            self.register_buffer("values", torch.zeros(labels, width))

    def forward(self) -> Tensor:
        """The vectors."""
        return self.values


class GraphBuffers(nn.Module):
    """A label graph that goes where its module goes, and into its checkpoint."""

    edges: Tensor
    weights: Tensor

    def __init__(self, graph: LabelGraph) -> None:
        super().__init__()
        self.register_buffer("edges", graph.edges)
        self.register_buffer("weights", graph.weights)

    def forward(self) -> LabelGraph:
        """The graph."""
        return LabelGraph(self.edges, self.weights)
