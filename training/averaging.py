"""The running mean of a network's weights, which is measured and kept in place of the last ones.

Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992; as an exponential mean.
"""

from functools import partial

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def averaging(decay: float) -> WeightAveraging:
    """Lightning's averaging with the decay; the first steps count more, as there are few yet."""
    return WeightAveraging(avg_fn=partial(_mean, decay))


def _mean(decay: float, mean: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    # Counters and edges of a graph are buffers too: there is no mean of them.
    if not mean.is_floating_point():
        return current
    kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
    return mean.lerp(current, 1 - kept)
