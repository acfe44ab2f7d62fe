"""The modules that become graphs: uint8 tiles in, answers' numbers out, normalisation inside."""

from typing import cast

import torch
from torch import Tensor, nn

from training.models.jtts import BeamSearch, Jtts, Search
from training.models.signa import Signa
from training.models.spatialnet_vit import SpatialNetVit


class SignaGraph(nn.Module):
    """Tiles -> probabilities and class activation maps; the label branch is a constant."""

    def __init__(self, network: Signa) -> None:
        super().__init__()
        network.fold()
        self.network = network

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 -> scores (B, C), evidence (B, C, h, w)."""
        features = self.network.features(tiles)
        logits = self.network.classifier(self.network.pooled(features))
        return logits.sigmoid(), self.network.evidence(features)


def traced_loop(unfinished: object, step: object, search: Search) -> Search:
    """Torch's `while_loop`, which an export writes as one ONNX Loop."""
    from torch._higher_order_ops.while_loop import while_loop

    return cast(Search, while_loop(unfinished, step, search))


class JttsGraph(nn.Module):
    """Tiles and beam widths -> sentences, with the whole search inside."""

    def __init__(self, network: Jtts) -> None:
        super().__init__()
        self.search = BeamSearch(network, traced_loop)

    def forward(self, tiles: Tensor, beams: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, H, W, 3), (B, 1) -> tokens, log_probs, attributes, sampled; see `BeamSearch`."""
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], self.search(tiles, beams))


class EncoderGraph(nn.Module):
    """Tiles -> the memory that questions look at, and land use."""

    def __init__(self, network: SpatialNetVit) -> None:
        super().__init__()
        self.encoder, self.land_use = network.encoder, network.land_use

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 -> memory (B, S, D), land use (B, scenes)."""
        memory = self.encoder(tiles)
        return memory, self.land_use(memory[:, 0]).softmax(dim=1)


class QuestionGraph(nn.Module):
    """A memory and a question -> answers and a count."""

    def __init__(self, network: SpatialNetVit) -> None:
        super().__init__()
        self.question = network.question

    def forward(self, memory: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D), (B, T) -> probabilities (B, answers), count (B, 1)."""
        logits, log_count = self.question(memory, question)
        return logits.softmax(dim=1), torch.expm1(log_count).clamp(min=0)
