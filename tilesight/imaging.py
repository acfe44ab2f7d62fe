"""THE pixel pipeline: from the bytes of one tile to the uint8 array that a model eats.

Training, export, gateway and scorer all call `prepare` or `fitted` (which also says what a user
should know), so a tile has the same pixels everywhere. Normalisation is no part of it: that lies
inside the exported graph.

1. Bytes, format and size are checked by what the file begins with (`headers`).
2. The decoder of the format gives values, and refuses several frames or pages (here; `tiff`).
3. The values become RGB: grey, palette, CMYK, alpha, 16 bit, nodata (`colours`).
4. The tile is turned as EXIF says (here), and stretched to the model's size (`tile`).

Where a rule changes what a user sees, the tile carries a warning. docs/pixels.md states the rules.
All functions are pure and may run in several threads at once.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tilesight import colours, headers, tiff
from tilesight.colours import Pixels
from tilesight.errors import TilesightError, UndecodableImageError, UnsupportedFormatError
from tilesight.headers import DEFAULT_LIMITS, ImageLimits
from tilesight.tile import Fitted, Picture, Tile, fit, fit_warnings, resized

__all__ = [
    "DEFAULT_LIMITS",
    "Fitted",
    "ImageLimits",
    "Tile",
    "decode",
    "fit",
    "fit_warnings",
    "fitted",
    "golden_image",
    "golden_sha256",
    "prepare",
]


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Tile:
    """The tile that the bytes hold: RGB, upright, with warnings where a rule changed its look.

    Raises EmptyImageError, UnsupportedFormatError, UndecodableImageError, ImageTooLargeError,
    ImageTooSmallError, AnimatedImageError or BandError.
    """
    headers.check_bytes(data, limits)
    kind = headers.image_format(data)
    notes: list[str] = []
    with _reading(kind):
        stored, orientation = _READERS[kind](data, limits, notes)
    return Tile(_upright(stored, orientation), kind, tuple(notes))


def fitted(data: bytes, height: int, width: int, limits: ImageLimits = DEFAULT_LIMITS) -> Fitted:
    """The model's input for one tile and all that its user should know; raises as `decode`."""
    tile = decode(data, limits)
    pixels = resized(tile.picture, height, width)
    warnings = tile.warnings + fit_warnings(tile, height, width)
    return Fitted(pixels, tile.format, tile.width, tile.height, warnings)


@contextmanager
def _reading(kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on bad data into UndecodableImageError.

    Pillow's plugins raise OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError,
    OverflowError, struct.error, zlib.error and more, so the net is wide. Running out of memory
    is this machine's trouble and not the tile's: it passes.
    """
    try:
        yield
    except (TilesightError, MemoryError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UndecodableImageError(
            f"the {kind} image cannot be decoded, it is damaged or cut off: {reason}"
        ) from error


# --- One reader a format: the picture as stored, and how it is to be turned. The plugins
# --- are called by name: `Image.open` would choose among all formats, count pixels by its own
# --- limit, and split a camera's JPEG (MPO) into frames.


def _read_jpeg(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Picture, int]:
    data, exif = headers.hide_exif(data)
    image = JpegImageFile(BytesIO(data))
    headers.check_size(*image.size, limits)
    image.load()
    return colours.rgb_image(image, notes), _exif_orientation(exif, notes)


def _read_png(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Picture, int]:
    headers.check_chunks(data)
    image = PngImageFile(BytesIO(data))
    headers.check_size(*image.size, limits)
    headers.check_single("PNG", image.n_frames, "frames")
    raw_mode = colours.raw_mode(image)
    if raw_mode == "LA;16B":
        raise UnsupportedFormatError(
            "a PNG of 16 bit grey with alpha is not read; save it without alpha or in 8 bit"
        )
    image.load()
    # The eXIf chunk may stand behind the pixels, so it is known only now.
    orientation = _exif_orientation(image.info.get("exif", b""), notes)
    if not raw_mode.endswith(";16B"):
        return colours.rgb_image(image, notes), orientation
    values, alpha = colours.sixteen_bit(image, PngImageFile(BytesIO(data)))
    nodata = colours.equals(values, image.info.get("transparency"))
    return colours.scaled(values, nodata, alpha, notes), orientation


def _read_webp(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Picture, int]:
    # Opening a WebP reserves its canvas, so the size is read before that.
    headers.check_size(*headers.webp_size(data), limits)
    image = WebPImageFile(BytesIO(data))
    headers.check_size(*image.size, limits)
    headers.check_single("WebP", image.n_frames, "frames")
    image.load()
    return colours.rgb_image(image, notes), _exif_orientation(image.info.get("exif", b""), notes)


_READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "WebP": _read_webp, "TIFF": tiff.read}


# --- Orientation


def _exif_orientation(exif: bytes, notes: list[str]) -> int:
    if not exif:
        return 1
    try:
        with _reading("EXIF"):
            return tiff.orientation(exif.removeprefix(b"Exif\x00\x00"))
    except UndecodableImageError:
        notes.append("EXIF cannot be read: if it turns the image, that was not done")
        return 1


def _upright(picture: Picture, orientation: int) -> Picture:
    """The picture turned as EXIF says, where 5 to 8 exchange height and width."""
    if orientation not in range(2, 9):
        return picture
    pixels: Pixels = np.asarray(picture)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.copy()


def prepare(data: bytes, height: int, width: int, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """The model's input for one tile: (height, width, 3) uint8 RGB; raises as `decode` does."""
    return resized(decode(data, limits).picture, height, width).copy()


# --- What a manifest promises of this pipeline


@cache
def golden_image() -> bytes:
    """A PNG drawn by arithmetic, the same pixels on every machine: 301 x 233, RGB.

    Ramps, a fine checkerboard and rings: a change of filter, of band order, of rounding or of
    orientation changes the hash of its prepared form.
    """
    y, x = np.mgrid[0:233, 0:301]
    red = (3 * x + y) % 256
    green = np.where((x // 3 + y // 5) % 2 == 0, 230, 20)
    blue = ((x - 90) ** 2 + (y - 140) ** 2) // 37 % 256
    pixels = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@cache
def golden_sha256(height: int, width: int) -> str:
    """The hash of the prepared golden image, which a manifest promises."""
    return hashlib.sha256(prepare(golden_image(), height, width).tobytes()).hexdigest()
