"""Random changes of a training tile that keep what its labels say."""

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one tile in one epoch: the same in a resumed run."""
    return np.random.default_rng((seed, epoch, index))


def turned(
    tile: NDArray[np.uint8], rng: np.random.Generator, transpose: bool = True
) -> tuple[NDArray[np.uint8], bool]:
    """The tile flipped (and transposed) at random, and whether anything in it moved.

    Without `transpose`, what runs up and down still does.
    """
    left_right, up_down, diagonal = rng.random(3) < 0.5
    if left_right:
        tile = tile[:, ::-1]
    if up_down:
        tile = tile[::-1]
    if diagonal and transpose:
        tile = tile.transpose(1, 0, 2)
    return tile, bool(left_right or up_down or (diagonal and transpose))


def brightened(tile: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """The tile times 0.8 to 1.2, float32, clipped to 0..255."""
    factor = np.float32(rng.uniform(0.8, 1.2))
    return np.clip(tile.astype(np.float32) * factor, 0, 255)
