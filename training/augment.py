"""Random changes of a training tile that keep what its labels say."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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


def coarsened(
    tile: NDArray[np.uint8], rng: np.random.Generator, share: float, coarsest: float
) -> NDArray[np.uint8]:
    """The tile as a coarser sensor sees it, in a share of the cases; of the same size.

    It is averaged down to `coarsest` to 1 of its side, and interpolated up again.
    """
    if rng.random() >= share:
        return tile
    height, width = tile.shape[:2]
    factor = rng.uniform(coarsest, 1)
    small = (max(round(width * factor), 1), max(round(height * factor), 1))
    seen = Image.fromarray(np.ascontiguousarray(tile)).resize(small, Image.Resampling.BOX)
    return np.asarray(seen.resize((width, height), Image.Resampling.BILINEAR))


def brightened(
    tile: NDArray[np.uint8], rng: np.random.Generator, most: float = 0.2
) -> NDArray[np.float32]:
    """The tile times 1 - most to 1 + most, float32, clipped to 0..255."""
    factor = np.float32(rng.uniform(1 - most, 1 + most))
    return np.clip(tile.astype(np.float32) * factor, 0, 255)
