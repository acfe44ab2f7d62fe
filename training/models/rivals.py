"""What SIGNA is measured against, in its place: squeeze-and-excitation, and ML-GCN."""

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from training.models.label_graph import GraphBuffers, LabelGraph, LabelVectors

_REDUCTION = 16
_HIDDEN = 1024
_NEIGHBOURS = 0.25
_TINY = 1e-6


def squeeze_excitation(channels: int) -> SqueezeExcitation:
    """Channel weights from the squeezed channels alone, reduction 16 (Hu et al., CVPR 2018)."""
    return SqueezeExcitation(channels, max(channels // _REDUCTION, 1))


def reweighted(graph: LabelGraph, labels: int) -> Tensor:
    """(C, C) row i: what label i hears of each label (Chen et al., CVPR 2019, equations 6 and 2).

    The neighbours of a label share a quarter; the sums are normalised by the roots of the degrees.
    """
    adjacency = torch.zeros(labels, labels, device=graph.weights.device)
    adjacency[graph.edges[0], graph.edges[1]] = 1
    shared = adjacency * _NEIGHBOURS / (adjacency.sum(dim=0, keepdim=True) + _TINY)
    shared = shared + torch.eye(labels, device=shared.device)
    root = shared.sum(dim=1).rsqrt()
    return (root[:, None] * shared * root[None, :]).T.contiguous()


class LabelClassifier(nn.Module):
    """ML-GCN's classifier: a graph network over the labels makes the weights of each label.

    Chen et al., Multi-label image recognition with graph convolutional networks, CVPR 2019: two
    layers W -> 1024 -> D with LeakyReLU(0.2) between them; no biases.
    """

    heard: Tensor

    def __init__(
        self, labels: int, channels: int, graph: LabelGraph, width: int, learned: bool
    ) -> None:
        super().__init__()
        self.vectors = LabelVectors(labels, width, learned)
        self.graph = GraphBuffers(graph)
        self.register_buffer("heard", reweighted(graph, labels), persistent=False)
        self.first = nn.Linear(width, _HIDDEN, bias=False)
        self.second = nn.Linear(_HIDDEN, channels, bias=False)
        self.activation = nn.LeakyReLU(0.2)
        with torch.no_grad():
            # Two layers as they come make logits of tens; these start as a linear layer's do.
            self.second.weight.mul_((3 * channels) ** -0.5 / self.weight.std())

    @property
    def weight(self) -> Tensor:
        """(C, D) the weights of each label; they do not depend on the image."""
        hidden = self.activation(self.heard @ self.first(self.vectors()))
        return self.heard @ self.second(hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, C) logits."""
        return pooled @ self.weight.T

    def folded(self) -> nn.Linear:
        """The same as a plain layer, so that an export holds no graph network."""
        with torch.no_grad():
            weight = self.weight
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
            layer.weight.copy_(weight)
        return layer
