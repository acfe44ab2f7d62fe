"""From decoded values to pixels (H, W, 3) uint8 RGB; what a user would notice goes into `notes`.

No colour profile is ever applied. What is transparent or nodata ends up black, so that a model
sees the same thing for both.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_GREY_MODES = ("1", "L", "LA", "La")
_GREY_NOTE = "greyscale: the one band was copied to red, green and blue"


def rgb_image(image: Image.Image, notes: list[str]) -> Image.Image:
    """A loaded image of 8 bit or less (grey, palette, RGB or CMYK) as RGB without alpha.

    Plain RGB comes back as it is: a copy would cost as much as a fifth of its decoding.
    """
    if image.mode in _GREY_MODES:
        notes.append(_GREY_NOTE)
    if image.mode == "CMYK":
        notes.append("CMYK: turned into RGB without a colour profile")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        _note_alpha(np.asarray(image.getchannel("A")), notes)
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb(image: Image.Image, notes: list[str], nodata: Mask | None = None) -> Pixels:
    """The pixels of a loaded image of 8 bit or less: grey, palette, RGB or CMYK."""
    return _blackened(np.array(rgb_image(image, notes)), nodata, notes)


def scaled(
    values: NDArray[np.uint16] | NDArray[np.int16],
    nodata: Mask | None,
    alpha: Pixels | None,
    notes: list[str],
) -> Pixels:
    """The pixels of 16 bit values (H, W, 1 or 3): one linear scale for all bands.

    It runs from the 2nd percentile of all valid values (to 0) to the 98th (to 255).
    """
    hidden = np.zeros(values.shape[:2], dtype=np.bool_) if nodata is None else nodata
    if alpha is not None:
        hidden = hidden | (alpha == 0)
    valid = values[~hidden] if not hidden.all() else values
    low, high = (float(bound) for bound in np.percentile(valid, (2, 98)))
    notes.append(
        f"16 bit: scaled linearly to 8 bit, {low:g} (2nd percentile of the tile) to 0 and "
        f"{high:g} (98th) to 255, all bands alike"
    )
    # A table over all 65,536 values, in the order of their unsigned form.
    levels = np.arange(65536, dtype=np.uint16).view(values.dtype).astype(np.float64)
    scale = 255 / max(high - low, 1.0)
    table = np.clip(np.rint((levels - low) * scale), 0, 255).astype(np.uint8)
    pixels = table[values.view(np.uint16)]
    if pixels.shape[2] == 1:
        notes.append(_GREY_NOTE)
        pixels = np.repeat(pixels, 3, axis=2)
    if alpha is not None:
        _note_alpha(alpha, notes)
        pixels = np.rint(pixels * (alpha[:, :, None] / 255)).astype(np.uint8)
    return _blackened(pixels, nodata, notes)


def equals(values: NDArray[Any], nodata: float | tuple[int, ...] | None) -> Mask | None:
    """Where all bands of values (H, W, C) hold the nodata value; None where there is none."""
    if nodata is None:
        return None
    found: Mask = (values == np.asarray(nodata)).all(axis=-1)
    return found


def _note_alpha(alpha: Pixels, notes: list[str]) -> None:
    share = float(np.mean(alpha < 255))
    if share:
        notes.append(f"transparent: {_percent(share)} of the pixels; composited on black")


def _blackened(pixels: Pixels, nodata: Mask | None, notes: list[str]) -> Pixels:
    if nodata is not None and nodata.any():
        pixels[nodata] = 0
        notes.append(f"nodata: {_percent(float(nodata.mean()))} of the pixels; shown black")
    return pixels


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# --- 16 bit values out of Pillow, which keeps only the high byte of colours


def raw_mode(image: ImageFile) -> str:
    """How Pillow unpacks the samples of an image that is not loaded yet."""
    args: Any = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def sixteen_bit(image: ImageFile, again: ImageFile) -> tuple[NDArray[np.uint16], Pixels | None]:
    """Values (H, W, 1 or 3) and 8 bit alpha (H, W) of an image, from two openings of its bytes.

    The first keeps the high byte of each colour; the second, told to read the other byte order,
    keeps the low one.
    """
    if not raw_mode(again).startswith("RGB"):
        return np.array(image).astype(np.uint16)[:, :, None], None
    again.tile = [tile._replace(args=_other_byte(tile.args)) for tile in again.tile]
    high, low = np.array(image), np.array(again)  # (H, W, 3 or 4)
    alpha = high[:, :, 3] if high.shape[2] == 4 else None
    return high[:, :, :3].astype(np.uint16) << 8 | low[:, :, :3], alpha


def _other_byte(args: Any) -> Any:  # noqa: ANN401 - Pillow's decoder arguments differ by decoder
    if isinstance(args, tuple):
        return (_other_byte(args[0]), *args[1:])
    native = "L" if sys.byteorder == "little" else "B"
    order = str(args)[-1].replace("N", native)
    return f"{str(args)[:-1]}{'B' if order == 'L' else 'L'}"
