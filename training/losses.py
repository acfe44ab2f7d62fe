"""Losses that torch does not have."""

import torch
from torch import Tensor


def dynamic_contrast_loss(probs: Tensor, truth: Tensor, margin: float) -> Tensor:
    """How far the hardest negative comes within `margin` of the mean positive; mean over tiles.

    JTTS, equation 31, with the sign that its text asks for: the printed one would push the
    positives down. A tile without positives costs nothing.

    Args:
        probs: (B, A) probabilities.
        truth: (B, A) zeros and ones.
        margin: the distance to keep.
    """
    positives = truth.sum(dim=1)
    mean_positive = (truth * probs).sum(dim=1) / positives.clamp(min=1)
    hardest_negative = ((1 - truth) * probs).amax(dim=1)
    gap = torch.relu(hardest_negative - mean_positive + margin)
    return torch.where(positives > 0, gap, 0.0).mean()
