"""SIGNA: semantic interleaving global channel attention in a CNN (Liu et al.), and its rivals.

Equations 1-2 and 4 (`label_graph`), 5 (interleaving), section III-C (multi-head module).
Deviations, each for a stated reason:

- Equation 5 maps D -> D * C. The default here is the `shared` form of the authors' code: one
  linear map 1 -> C for all channels (2 C weights a head instead of D * D * C); `full` is the
  printed one, 26.7 million weights after `layer2` of a ResNet-50.
- The softmax runs over the last axis, so each row of the interleaving matrix sums to one. The
  authors' code multiplies its scores by the root of C: `attention_scale`.
- The weighting vector is not bounded, as in the paper; `gate: sigmoid` bounds it.
- The label vectors are learned from a random start by default: the GloVe vectors of the data
  folder lack five of the UCM words. `label_vectors: file` takes those of a file.
- Each head has a graph network of its own.
- The merging layer starts small, so that training starts near the pretrained backbone.

The rivals run through the same code: `plain` has nothing plugged in, `se` has squeeze-and-
excitation in SIGNA's place, `ml_gcn` has a classifier made by a graph network, behind the maximum
over the places as its authors have it.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tilesight.manifest import Strict
from training.models.backbone import (
    Architecture,
    Backbone,
    Normalization,
    Normalize,
    Stage,
    stage_channels,
)
from training.models.label_graph import (
    Gnn,
    GraphBuffers,
    LabelBranch,
    LabelGraph,
    LabelVectors,
)
from training.models.rivals import LabelClassifier, squeeze_excitation

Method = Literal["signa", "plain", "se", "ml_gcn"]
METHODS: tuple[Method, ...] = ("signa", "plain", "se", "ml_gcn")


class SignaConfig(Strict):
    """The architecture's options."""

    method: Method = Field(default="signa", description="SIGNA, or a rival in its place")
    backbone: Architecture = "mobilenet_v2"
    normalization: Normalization = "half"
    stage: Stage = Field(default="layer2", description="the stage SIGNA is plugged in after")
    heads: int = Field(default=6, ge=1, le=8)
    interleave: Literal["shared", "full"] = "shared"
    attention_scale: float = Field(default=1.0, gt=0, description="of the scores of the softmax")
    gate: Literal["none", "sigmoid"] = Field(default="none", description="of the weights")
    gnn: Gnn = "sage"
    gnn_layers: Literal[1, 2] = 2
    label_threshold: float = Field(default=0.4, ge=0, le=1, description="Q of equation 2")
    label_vectors: Literal["learned", "file"] = "learned"
    label_vector_width: int = Field(default=300, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @property
    def learned_vectors(self) -> bool:
        """Whether the label vectors are learned."""
        return self.label_vectors == "learned"


class ChannelHead(nn.Module):
    """One SIGNA head: (B, D) squeezed channels and (C, D) label features -> (B, D) weights."""

    def __init__(self, labels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.interleave = nn.Linear(1, labels)
        self.value = nn.Linear(1, 1)

    def forward(self, squeezed: Tensor, label_features: Tensor) -> Tensor:
        """The weighting vector Z_w = M_s Z_v of equation 5."""
        channels = squeezed.unsqueeze(-1)  # (B, D, 1)
        return self.weigh(self.interleave(channels), self.value(channels), label_features)

    def weigh(self, semantic: Tensor, values: Tensor, label_features: Tensor) -> Tensor:
        """(B, D, C) Z_s and (B, D, 1) Z_v -> (B, D)."""
        interleaved = semantic @ label_features  # (B, D, C) @ (C, D)
        attention = (self.scale * interleaved).softmax(dim=-1)  # (B, D, D), rows sum to one
        return (attention @ values).squeeze(-1)


class FullChannelHead(ChannelHead):
    """A head with the printed maps: D -> D * C and D -> D, every channel from all channels."""

    def __init__(self, labels: int, channels: int, scale: float = 1.0) -> None:
        super().__init__(labels, scale)
        self.interleave = nn.Linear(channels, channels * labels)
        self.value = nn.Linear(channels, channels)

    def forward(self, squeezed: Tensor, label_features: Tensor) -> Tensor:
        """The weighting vector."""
        semantic = self.interleave(squeezed).unflatten(1, (squeezed.shape[1], -1))  # (B, D, C)
        return self.weigh(semantic, self.value(squeezed).unsqueeze(-1), label_features)


class SignaAttention(nn.Module):
    """The multi-head module that is plugged in after a stage: (B, D, H, W) -> the same shape."""

    constant: Tensor | None

    def __init__(self, labels: int, channels: int, graph: LabelGraph, config: SignaConfig) -> None:
        super().__init__()
        width = config.label_vector_width
        self.vectors = LabelVectors(labels, width, config.learned_vectors)
        self.graph = GraphBuffers(graph)
        self.branches = nn.ModuleList(
            LabelBranch(width, channels, config.gnn, config.gnn_layers) for _ in range(config.heads)
        )
        scale = config.attention_scale
        self.heads = nn.ModuleList(
            ChannelHead(labels, scale)
            if config.interleave == "shared"
            else FullChannelHead(labels, channels, scale)
            for _ in range(config.heads)
        )
        self.merge = nn.Linear(config.heads * channels, channels)
        nn.init.normal_(self.merge.weight, std=0.01)
        nn.init.zeros_(self.merge.bias)
        self.gate = nn.Sigmoid() if config.gate == "sigmoid" else nn.Identity()
        self.register_buffer("constant", None, persistent=False)

    def label_features(self) -> Tensor:
        """(heads, C, D) semantic features; they do not depend on the image."""
        if self.constant is not None:
            return self.constant
        vectors, graph = self.vectors(), self.graph()
        return torch.stack([branch(vectors, graph) for branch in self.branches])

    def fold(self) -> None:
        """Freezes the label branch into a constant, so that an export holds no graph network."""
        with torch.no_grad():
            self.constant = self.label_features()

    def forward(self, features: Tensor) -> Tensor:
        """The features, each channel weighted, with the residual of section III-C."""
        squeezed = features.mean(dim=(2, 3))  # (B, D)
        label_features = self.label_features()
        weights = [head(squeezed, label_features[index]) for index, head in enumerate(self.heads)]
        weight = self.gate(self.merge(torch.cat(weights, dim=1)))  # (B, H * D) -> (B, D)
        return features + features * weight[:, :, None, None]


class Signa(nn.Module):
    """The tagger: (B, H, W, 3) uint8 tiles -> (B, C) logits."""

    def __init__(self, labels: int, graph: LabelGraph, config: SignaConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config.normalization)
        self.backbone = Backbone("layer4", config.backbone)
        self.attention = self._plugged_in(labels, graph)
        self.dropout = nn.Dropout(config.dropout)
        channels = self.backbone.channels
        self.classifier: nn.Linear | LabelClassifier = (
            LabelClassifier(
                labels, channels, graph, config.label_vector_width, config.learned_vectors
            )
            if config.method == "ml_gcn"
            else nn.Linear(channels, labels)
        )

    def _plugged_in(self, labels: int, graph: LabelGraph) -> nn.Module:
        channels = stage_channels(self.config.backbone, self.config.stage)
        match self.config.method:
            case "signa":
                return SignaAttention(labels, channels, graph, self.config)
            case "se":
                return squeeze_excitation(channels)
            case "plain" | "ml_gcn":
                return nn.Identity()

    @property
    def vectors(self) -> LabelVectors | None:
        """The label vectors, where the method has any."""
        for module in (self.attention, self.classifier):
            if isinstance(module, SignaAttention | LabelClassifier):
                return module.vectors
        return None

    def fold(self) -> None:
        """Freezes what depends on the labels alone into constants."""
        if isinstance(self.attention, SignaAttention):
            self.attention.fold()
        if isinstance(self.classifier, LabelClassifier):
            self.classifier = self.classifier.folded()

    def features(self, tiles: Tensor) -> Tensor:
        """(B, D, H / 32, W / 32) features of the last stage."""
        images = self.normalize(tiles)
        for name, stage in self.backbone.named_children():
            images = stage(images)
            if name == self.config.stage:
                images = self.attention(images)
        return images

    def pooled(self, features: Tensor) -> Tensor:
        """(B, D): what the classifier reads of the last stage's features."""
        if self.config.method == "ml_gcn":
            return features.amax(dim=(2, 3))
        return features.mean(dim=(2, 3))

    def forward(self, tiles: Tensor) -> Tensor:
        """The logits."""
        return self.classifier(self.dropout(self.pooled(self.features(tiles))))

    def evidence(self, features: Tensor) -> Tensor:
        """(B, C, H / 32, W / 32) each place's share of each logit (class activation map).

        The mean over the places is the logit less the classifier's bias (Zhou et al., CVPR 2016);
        of ML-GCN, which takes the maximum, it is no more than a hint.
        """
        return torch.einsum("bdhw,cd->bchw", features, self.classifier.weight)
