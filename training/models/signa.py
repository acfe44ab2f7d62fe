"""SIGNA: semantic interleaving global channel attention in a CNN (Liu et al.).

Equations 1-2 (label graph), 4 (graph network), 5 (interleaving), section III-C (multi-head module).
Deviations, each for a stated reason:

- Equation 1 counts `P_ii = 1`; self edges are left out, because GraphSAGE has a weight for the node
  itself. An isolated label therefore still gets a vector.
- Equation 5 maps D -> D * C. The default here is the `shared` form of the authors' code: one
  linear map 1 -> C for all channels (2 C weights a head instead of D * D * C).
- The softmax runs over the last axis, so each row of the interleaving matrix sums to one.
- The label vectors are learned from a random start: the GloVe vectors lack five of the UCM words.
- The merging layer starts small, so that training starts near the pretrained backbone.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from tilesight.manifest import Strict
from training.models.backbone import STAGE_CHANNELS, Backbone, Normalization, Normalize, Stage


class SignaConfig(Strict):
    """The architecture's options."""

    normalization: Normalization = "half"
    stage: Stage = Field(default="layer2", description="the stage SIGNA is plugged in after")
    heads: int = Field(default=6, ge=1, le=8)
    label_threshold: float = Field(default=0.4, ge=0, le=1, description="Q of equation 2")
    label_vector_width: int = Field(default=300, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)


def label_graph(labels: Tensor, threshold: float) -> Tensor:
    """The directed edges i -> j with P(j given i) >= threshold, i != j: (2, E) int64.

    Args:
        labels: (N, C) zeros and ones of the training tiles (equation 1).
        threshold: Q of equation 2.
    """
    together = labels.T @ labels  # (C, C)
    seen = together.diagonal().clamp(min=1)
    conditional = together / seen[:, None]
    conditional.fill_diagonal_(0)
    return (conditional >= threshold).nonzero().T.contiguous()


class LabelBranch(nn.Module):
    """The label graph as features: two GraphSAGE layers, W -> D / 2 -> D, LeakyReLU(0.2)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.first = SAGEConv(width, max(channels // 2, 1))
        self.second = SAGEConv(max(channels // 2, 1), channels)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, vectors: Tensor, edges: Tensor) -> Tensor:
        """(C, W) label vectors -> (C, D) semantic features L_s."""
        hidden = self.activation(self.first(vectors, edges))
        return self.activation(self.second(hidden, edges))


class ChannelHead(nn.Module):
    """One SIGNA head: (B, D) squeezed channels and (C, D) label features -> (B, D) weights."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.interleave = nn.Linear(1, labels)
        self.value = nn.Linear(1, 1)

    def forward(self, squeezed: Tensor, label_features: Tensor) -> Tensor:
        """The weighting vector Z_w = M_s Z_v of equation 5."""
        channels = squeezed.unsqueeze(-1)  # (B, D, 1)
        interleaved = self.interleave(channels) @ label_features  # (B, D, C) @ (C, D)
        attention = interleaved.softmax(dim=-1)  # (B, D, D), rows sum to one
        return (attention @ self.value(channels)).squeeze(-1)


class SignaAttention(nn.Module):
    """The multi-head module that is plugged in after a stage: (B, D, H, W) -> the same shape."""

    edges: Tensor
    folded: Tensor | None

    def __init__(self, labels: int, channels: int, edges: Tensor, config: SignaConfig) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(labels, config.label_vector_width))
        self.register_buffer("edges", edges)
        self.branches = nn.ModuleList(
            LabelBranch(config.label_vector_width, channels) for _ in range(config.heads)
        )
        self.heads = nn.ModuleList(ChannelHead(labels) for _ in range(config.heads))
        self.merge = nn.Linear(config.heads * channels, channels)
        nn.init.normal_(self.merge.weight, std=0.01)
        nn.init.zeros_(self.merge.bias)
        self.register_buffer("folded", None, persistent=False)

    def label_features(self) -> Tensor:
        """(heads, C, D) semantic features; they do not depend on the image."""
        if self.folded is not None:
            return self.folded
        return torch.stack([branch(self.vectors, self.edges) for branch in self.branches])

    def fold(self) -> None:
        """Freezes the label branch into a constant, so that an export holds no graph network."""
        with torch.no_grad():
            self.folded = self.label_features()

    def forward(self, features: Tensor) -> Tensor:
        """The features, each channel weighted, with the residual of section III-C."""
        squeezed = features.mean(dim=(2, 3))  # (B, D)
        label_features = self.label_features()
        weights = [head(squeezed, label_features[index]) for index, head in enumerate(self.heads)]
        weight = self.merge(torch.cat(weights, dim=1))  # (B, H * D) -> (B, D)
        return features + features * weight[:, :, None, None]


class Signa(nn.Module):
    """The tagger: (B, 224, 224, 3) uint8 tiles -> (B, C) logits."""

    def __init__(self, labels: int, edges: Tensor, config: SignaConfig) -> None:
        super().__init__()
        self.stage = config.stage
        self.normalize = Normalize(config.normalization)
        self.backbone = Backbone("layer4")
        self.attention = SignaAttention(labels, STAGE_CHANNELS[config.stage], edges, config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.backbone.channels, labels)

    def features(self, tiles: Tensor) -> Tensor:
        """(B, 1280, H / 32, W / 32) features of the last stage."""
        images = self.normalize(tiles)
        for name, stage in self.backbone.named_children():
            images = stage(images)
            if name == self.stage:
                images = self.attention(images)
        return images

    def forward(self, tiles: Tensor) -> Tensor:
        """The logits."""
        return self.classifier(self.dropout(self.features(tiles).mean(dim=(2, 3))))

    def evidence(self, features: Tensor) -> Tensor:
        """(B, C, H / 32, W / 32) each place's share of each logit (class activation map).

        The mean over the places is the logit less the classifier's bias (Zhou et al., CVPR 2016).
        """
        return torch.einsum("bdhw,cd->bchw", features, self.classifier.weight)
