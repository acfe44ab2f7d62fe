"""What a trained network does with SIGNA's attention: how strong it is, and what is lost without.

The attention scales each channel by 1 plus a weight (Liu et al., section III-C). Where the same
figures come out with weights that are the same for every tile, it works as a fixed scale, which
the next layer could have learnt; where they come out with none, it does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import metrics
from training.label_figures import half
from training.models.signa import Signa, SignaAttention
from training.tasks.base import batches

_FIGURES = ("f1_samples", "f1_macro", "map")


@dataclass(frozen=True)
class AttentionUse:
    """The size of the weights, and figures with them as they are, the same for all, and none.

    `strength` is their root mean square over tiles and channels, `between_tiles` that of each
    channel's deviation from tile to tile.
    """

    strength: float
    between_tiles: float
    figures: dict[str, dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """As JSON writes it."""
        return asdict(self)


@torch.no_grad()
def attention_use(
    network: Signa, others: NDArray[np.uint8], tiles: NDArray[np.uint8], truth: NDArray[np.float32]
) -> AttentionUse | None:
    """How the tiles (N, H, W, 3) are labelled without what the attention says of each.

    Args:
        network: a trained one; a rival has no such attention: None.
        others: tiles whose mean weights are given to all.
        tiles: those that are labelled.
        truth: (N, C) their labels.
    """
    attention = network.attention
    if not isinstance(attention, SignaAttention):
        return None
    own, scores = _weighed(network, attention, tiles, None)
    mean = _weighed(network, attention, others, None)[0].mean(dim=0)
    found = {
        "as trained": scores,
        "the same for all tiles": _weighed(network, attention, tiles, mean)[1],
        "none": _weighed(network, attention, tiles, torch.zeros_like(mean))[1],
    }
    return AttentionUse(
        strength=float(own.square().mean().sqrt()),
        between_tiles=float(own.std(dim=0).square().mean().sqrt()),
        figures={name: _figures(truth, values) for name, values in found.items()},
    )


def _weighed(
    network: Signa, attention: SignaAttention, tiles: NDArray[np.uint8], weights: Tensor | None
) -> tuple[Tensor, NDArray[np.float32]]:
    """The channel weights (N, D) as the tiles have them, and scores (N, C) with these or others."""
    seen: list[Tensor] = []

    def hook(_gate: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        seen.append(output.cpu())
        return None if weights is None else weights.to(output).expand_as(output)

    device = next(network.parameters()).device
    with _hooked(attention.gate, hook):
        scores = [network(batch.to(device)).sigmoid().cpu().numpy() for batch in batches(tiles)]
    return torch.cat(seen), np.concatenate(scores)


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:  # noqa: ANN401 (torch's own type)
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _figures(truth: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[str, float]:
    values = metrics.label_metrics(truth, scores, half(scores.shape[1]))
    return {name: values[name] for name in _FIGURES}
