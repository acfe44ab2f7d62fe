"""The tiles that a load sends: a folder of real ones, or drawn ones of the same size."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
_SIDE = 256
_QUALITY = 82  # makes about 14 kB of a drawn tile, as the JPEGs of UC Merced have


def load_tiles(folder: Path | None, limit: int = 256, seed: int = 0) -> list[bytes]:
    """Up to `limit` tiles of the folder and what lies under it, chosen by the seed.

    Without a folder they are drawn. Raises ValueError where the folder has none.
    """
    if folder is None:
        return drawn_tiles(min(limit, 64), seed)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
    if not found:
        raise ValueError(f"{folder}: no tile in it ({', '.join(sorted(_ENDINGS))})")
    chosen = random.Random(seed).sample(found, min(limit, len(found)))
    return [path.read_bytes() for path in chosen]


def drawn_tiles(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of 256 x 256 pixels: fields, roofs, a road and the noise of a sensor."""
    generator = np.random.default_rng(seed)
    return [_tile(generator) for _ in range(count)]


def _tile(generator: np.random.Generator) -> bytes:
    # A coarse random picture, enlarged, gives the soft patches of land cover.
    coarse = generator.integers(60, 180, (6, 6, 3), dtype=np.uint8)
    ground = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(ground).astype(np.int16)
    for _ in range(generator.integers(4, 20)):
        y, x = generator.integers(0, _SIDE - 40, 2)
        height, width = generator.integers(8, 40, 2)
        pixels[y : y + height, x : x + width] = generator.integers(80, 240, 3)
    road = int(generator.integers(20, _SIDE - 20))
    pixels[road : road + 12] = generator.integers(100, 150)
    pixels += generator.normal(0, 6, (_SIDE, _SIDE, 1)).astype(np.int16)
    buffer = BytesIO()
    tile = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    tile.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()
