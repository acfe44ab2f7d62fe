"""A decoded tile, and how it is made to fit a model.

A tile stays in Pillow's memory until its pixels are asked for: what is only resized becomes an
array once, when it is small. benchmarks/decode.py measures it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from tilesight.colours import Pixels

# What a reader gives: an RGB image, or an array (H, W, 3) where one had to be made on the way.
Picture = Image.Image | Pixels


@dataclass(frozen=True, eq=False)
class Tile:
    """A decoded tile: RGB, upright, before the resize."""

    picture: Picture
    format: str
    warnings: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many pixels a row has."""
        return self._size[0]

    @property
    def height(self) -> int:
        """How many rows there are."""
        return self._size[1]

    @property
    def _size(self) -> tuple[int, int]:
        if isinstance(self.picture, Image.Image):
            return self.picture.size
        return self.picture.shape[1], self.picture.shape[0]

    @cached_property
    def pixels(self) -> Pixels:
        """The tile as an array (H, W, 3) uint8, made when it is first asked for."""
        return np.array(self.picture) if isinstance(self.picture, Image.Image) else self.picture


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """A tile in a model's size: pixels (height, width, 3) uint8 RGB, which are read-only.

    `width` and `height` are those of the tile before; the warnings tell of the resize, too.
    """

    pixels: Pixels
    format: str
    width: int
    height: int
    warnings: tuple[str, ...]


def resized(picture: Picture, height: int, width: int) -> Pixels:
    """The picture as a read-only array (height, width, 3); see `fit`."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(height, width, 3)


def fit(pixels: Pixels, height: int, width: int) -> Pixels:
    """The pixels (height, width, 3), stretched by Pillow's antialiased bilinear filter."""
    return resized(pixels, height, width).copy()


def fit_warnings(tile: Tile, height: int, width: int) -> tuple[str, ...]:
    """What `fit` does to this tile that its user should know; empty for a tile that fits well."""
    notes = []
    ratio = (tile.width * height) / (tile.height * width)
    factor = max(ratio, 1 / ratio)
    if factor > 1.1:
        notes.append(
            f"stretched: the tile is {tile.width} x {tile.height} pixels and the model reads "
            f"{width} x {height}; its proportions change by a factor of {factor:.2f} (over 1.10)"
        )
    if 2 * tile.width < width or 2 * tile.height < height:
        notes.append(
            f"enlarged: the tile is {tile.width} x {tile.height} pixels, less than half of the "
            f"model's {width} x {height}; small objects cannot be told apart"
        )
    return tuple(notes)
