"""THE pixel pipeline: from the bytes of one tile to the uint8 array that a model eats.

Training, export, gateway and scorer all call `prepare` (or `decode` and then `fit`), so a tile has
the same pixels everywhere. Normalisation is no part of it: that lies inside the exported graph.

Checks, cheapest first; a file that fails one is never decoded:

- no bytes: `EmptyImageError`; more than `max_bytes`: `ImageTooLargeError`.
- The content decides the format, not a name: JPEG, PNG, WebP, TIFF and GeoTIFF (BigTIFF:
  little-endian, the only kind that Pillow reads).
  Anything else is an `UnsupportedFormatError`.
- Width and height come from the header: more than `max_pixels` is an `ImageTooLargeError`, a side
  under `min_side` an `ImageTooSmallError`.
- Several frames (WebP, APNG) or pages (TIFF) are an `AnimatedImageError`. Overviews and masks
  inside a TIFF are no pages, and neither are the previews behind a camera's JPEG (MPO).

Rules for the pixels; where a rule changes what a user sees, the tile carries a warning:

- Orientation: EXIF (TIFF: its own tag) is applied. An EXIF block that cannot be read is skipped.
- Palette: becomes RGB. Greyscale: the band is copied to red, green and blue.
- CMYK: becomes RGB by Pillow's plain formula, without a colour profile. No profile is ever applied.
- Alpha: the tile is composited on black, as nodata is.
- Nodata (TIFF: GDAL's tag 42113 or a mask page; 16 bit PNG: its transparent colour): black. A
  pixel is nodata where all its colour bands hold the value.
- 16 bit: one linear scale for all bands, from the 2nd percentile of all valid values of the tile
  (to 0) to the 98th (to 255), rounded and clipped. Signed values follow the same rule.
- Bands: 1 (grey), 3 (red, green, blue), either with alpha. Three bands without names, as GDAL
  writes 16 bit files, are read as red, green, blue in the order of the file. One undeclared
  fourth band beside named red, green and blue is ignored. Anything else is a `BandError`.
- Floats, complex numbers, 32 bit and signed 8 bit values: `UnsupportedFormatError`.
- Damaged or cut off data: `UndecodableImageError`, never a half-grey tile.

All functions are pure and may run in several threads at once.
"""

import hashlib
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tilesight.errors import (
    AnimatedImageError,
    BandError,
    ConfigError,
    EmptyImageError,
    ImageTooLargeError,
    ImageTooSmallError,
    TilesightError,
    UndecodableImageError,
    UnsupportedFormatError,
)

# Beyond this Pillow itself warns of a decompression bomb, in the middle of decoding a TIFF.
PILLOW_MAX_PIXELS = 89_478_485
# Segments of a JPEG's header or chunks of a PNG: Pillow walks them one by one in Python.
_MAX_STEPS = 1 << 16

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ImageLimits:
    """What one tile may cost at most, and how small it may be."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64_000_000
    min_side: int = 8

    def __post_init__(self) -> None:
        """Refuse limits that cannot be kept; raises ConfigError."""
        if not 0 < self.max_pixels <= PILLOW_MAX_PIXELS:
            raise ConfigError(f"max_pixels: {self.max_pixels:,} is not in 1..{PILLOW_MAX_PIXELS:,}")
        if self.max_bytes < 1 or self.min_side < 1:
            raise ConfigError(
                f"max_bytes and min_side: at least 1, not {self.max_bytes} and {self.min_side}"
            )


@dataclass(frozen=True, eq=False)
class Tile:
    """A decoded tile: pixels (H, W, 3) uint8 RGB, upright, before the resize."""

    pixels: Pixels
    format: str
    width: int
    height: int
    warnings: tuple[str, ...]


DEFAULT_LIMITS = ImageLimits()


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Tile:
    """The tile that the bytes hold, by the rules of this module.

    Raises EmptyImageError, UnsupportedFormatError, UndecodableImageError, ImageTooLargeError,
    ImageTooSmallError, AnimatedImageError or BandError.
    """
    if not data:
        raise EmptyImageError("the image is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,} bytes"
        )
    kind = _format(data)
    notes: list[str] = []
    pixels, orientation = _READERS[kind](data, limits, notes)
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    return Tile(pixels, kind, pixels.shape[1], pixels.shape[0], tuple(notes))


def fit(pixels: Pixels, height: int, width: int) -> Pixels:
    """The pixels (height, width, 3), stretched by Pillow's antialiased bilinear filter."""
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image)


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


def prepare(data: bytes, height: int, width: int, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """The model's input for one tile: (height, width, 3) uint8 RGB; raises as `decode` does."""
    return fit(decode(data, limits).pixels, height, width)


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


# --- Format and size, before anything is decoded


_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
}
# Known only to be named in the refusal.
_FOREIGN = {
    b"MM\x00+": "a big-endian BigTIFF",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"\x89HDF": "HDF5",
    b"CDF": "NetCDF",
    b"PK\x03\x04": "ZIP",
}


def _format(data: bytes) -> str:
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    found = next((name for sign, name in _FOREIGN.items() if data.startswith(sign)), None)
    if data[4:8] == b"ftyp":
        found = "HEIF or AVIF"
    described = f"the image is {found}" if found else f"unknown format (it begins {data[:8].hex()})"
    raise UnsupportedFormatError(f"{described}; JPEG, PNG, WebP and TIFF are read")


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


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"the image has {width:,} x {height:,} = {width * height:,} pixels; "
            f"the limit is {limits.max_pixels:,} pixels"
        )
    if min(width, height) < limits.min_side:
        raise ImageTooSmallError(
            f"the image has {width} x {height} pixels; "
            f"each side needs at least {limits.min_side} pixels"
        )


def _check_single(kind: str, count: int, what: str) -> None:
    if count > 1:
        raise AnimatedImageError(f"the {kind} image holds {count} {what}; a tile is 1 image")


# --- JPEG, PNG, WebP. The plugins are called by name: `Image.open` would choose among all formats,
# --- count pixels by its own limit, and split a camera's JPEG (MPO) into frames.


def _read_jpeg(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Pixels, int]:
    data, exif = _hide_exif(data)
    with _reading("JPEG"):
        image = JpegImageFile(BytesIO(data))
    _check_size(*image.size, limits)
    with _reading("JPEG"):
        image.load()
    return _rgb(image, notes), _exif_orientation(exif, notes)


def _read_png(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Pixels, int]:
    _check_chunks(data)
    with _reading("PNG"):
        image = PngImageFile(BytesIO(data))
    _check_size(*image.size, limits)
    _check_single("PNG", image.n_frames, "frames")
    raw_mode = _raw_mode(image)
    if raw_mode == "LA;16B":
        raise UnsupportedFormatError(
            "a PNG of 16 bit grey with alpha is not read; save it without alpha or in 8 bit"
        )
    with _reading("PNG"):
        image.load()
        # The eXIf chunk may stand behind the pixels, so it is known only now.
        orientation = _exif_orientation(image.info.get("exif", b""), notes)
    if not raw_mode.endswith(";16B"):
        return _rgb(image, notes), orientation
    with _reading("PNG"):
        values, alpha = _sixteen_bit(image, PngImageFile(BytesIO(data)))
    nodata = _equals(values, image.info.get("transparency"))
    return _scaled(values, nodata, alpha, notes), orientation


def _check_chunks(data: bytes) -> None:
    """Refuse a PNG cut into so many chunks that walking them takes seconds."""
    position, steps = 8, 0
    while position < len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        steps += 1
        if steps > _MAX_STEPS:
            raise UndecodableImageError(
                f"the PNG image is damaged: more than {_MAX_STEPS:,} chunks"
            )


def _read_webp(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Pixels, int]:
    # Opening a WebP reserves its canvas, so the size is read here, by hand.
    with _reading("WebP"):
        _check_size(*_webp_size(data), limits)
        image = WebPImageFile(BytesIO(data))
    _check_size(*image.size, limits)
    _check_single("WebP", image.n_frames, "frames")
    with _reading("WebP"):
        image.load()
    return _rgb(image, notes), _exif_orientation(image.info.get("exif", b""), notes)


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X" and len(data) >= 30:
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    raise UndecodableImageError("the WebP image has no header chunk: damaged or cut off")


# --- Orientation


def _hide_exif(data: bytes) -> tuple[bytes, bytes]:
    """The JPEG without its EXIF blocks, and the first block.

    On opening, Pillow parses all EXIF tags of a JPEG: a small file with tags that overlap costs
    it gigabytes, and a damaged block makes it print warnings. One tag is needed here.
    """
    hidden, exif = bytearray(data), b""
    position = 2
    for _ in range(_MAX_STEPS):
        marker = data[position + 1 : position + 2]
        if marker == b"\xda" or position + 4 > len(data):
            return (bytes(hidden), exif) if exif else (data, b"")
        # Pillow passes over what is no marker, and over markers without a length, byte by byte.
        if data[position] != 0xFF or marker[0] < 0xC0 or marker[0] in _BARE_MARKERS:
            position += 1
            continue
        size = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xe1" and data[position + 4 : position + 10] == b"Exif\x00\x00":
            exif = exif or data[position + 10 : position + 2 + size]
            hidden[position + 4 : position + 8] = b"none"
        position += 2 + max(size, 2)
    raise UndecodableImageError(
        f"the JPEG image is damaged: no picture within {_MAX_STEPS:,} segments"
    )


_BARE_MARKERS = frozenset([0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xFF])


def _exif_orientation(exif: bytes, notes: list[str]) -> int:
    if not exif:
        return 1
    try:
        with _reading("EXIF"):
            page = next(_pages(exif.removeprefix(b"Exif\x00\x00")))
            return page.number(_ORIENTATION, 1)
    except UndecodableImageError:
        notes.append("EXIF cannot be read: if it turns the image, that was not done")
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """The pixels turned as EXIF says; (H, W, 3), where 5 to 8 exchange H and W."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


# --- Colours


_GREY_MODES = ("1", "L", "LA", "La")


def _rgb(image: Image.Image, notes: list[str], nodata: Mask | None = None) -> Pixels:
    """The pixels (H, W, 3) of a loaded 8 bit image."""
    if image.mode in _GREY_MODES:
        notes.append(_GREY_NOTE)
    if image.mode == "CMYK":
        notes.append("CMYK: turned into RGB without a colour profile")
    if image.mode == "La":
        image = image.convert("LA")
    with _reading(image.format or image.mode):
        if image.has_transparency_data:
            image = _on_black(image.convert("RGBA"), notes)
        pixels = np.array(image.convert("RGB"))
    return _blackened(pixels, nodata, notes)


def _on_black(image: Image.Image, notes: list[str]) -> Image.Image:
    _note_alpha(np.asarray(image.getchannel("A")), notes)
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


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


_GREY_NOTE = "greyscale: the one band was copied to red, green and blue"


# --- 16 bit values


def _raw_mode(image: ImageFile) -> str:
    """How Pillow unpacks the samples of an image that is not loaded yet."""
    args: Any = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _sixteen_bit(image: ImageFile, again: ImageFile) -> tuple[NDArray[np.uint16], Pixels | None]:
    """Values (H, W, 1 or 3) and 8 bit alpha (H, W) of an image, from two openings of its bytes.

    Pillow keeps only the high byte of 16 bit colours. The same decoder told to read the other
    byte order keeps the low byte.
    """
    if not _raw_mode(again).startswith("RGB"):
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


def _equals(values: NDArray[Any], nodata: int | tuple[int, ...] | None) -> Mask | None:
    """Where all bands (H, W, C) hold the nodata value; None where there is no such value."""
    if nodata is None:
        return None
    found: Mask = (values == np.asarray(nodata)).all(axis=-1)
    return found


def _scaled(
    values: NDArray[np.uint16] | NDArray[np.int16],
    nodata: Mask | None,
    alpha: Pixels | None,
    notes: list[str],
) -> Pixels:
    """The pixels (H, W, 3) of 16 bit values (H, W, 1 or 3) by the one linear rule."""
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


# --- TIFF: the directories


_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _PLANAR = 273, 274, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _EXTRA, _SAMPLE_FORMAT, _NODATA = 322, 323, 324, 338, 339, 42113
# What a decoder needs to know. All else (EXIF, geographic tags, profiles, overviews) stays out of
# the one page that Pillow is given, so nothing else in a file can cost time or go wrong.
_PIXEL_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _STRIP_ROWS, _PLANAR}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILES, _EXTRA}
    | {266, 279, 292, 293, 317, 320, 325, 347, 530, 532}
)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
_NUMBER_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_ENTRIES = 4096
_MAX_DIRECTORIES = 256
_MAX_VALUES = 1 << 18  # strips or tiles of one page: Pillow makes an object of each


@dataclass(frozen=True)
class _Page:
    """One directory of a TIFF (or of EXIF, which is one): where the entry of each tag lies."""

    data: bytes
    order: str
    entries: dict[int, int]

    def locate(self, tag: int) -> tuple[int, int, int]:
        """Type, count and first byte of a tag's values; raises where they leave the file."""
        wide = _is_big(self.data)
        head = struct.Struct(self.order + ("HHQ" if wide else "HHI"))
        _, kind, count = head.unpack_from(self.data, self.entries[tag])
        size = _TYPE_SIZES.get(kind, 1) * count
        start = self.entries[tag] + head.size
        if size > (8 if wide else 4):
            (start,) = struct.unpack_from(self.order + ("Q" if wide else "I"), self.data, start)
        if start + size > len(self.data):
            raise UndecodableImageError(
                f"the TIFF image is damaged or cut off: tag {tag} ends at byte {start + size:,} "
                f"of {len(self.data):,}"
            )
        return kind, count, start

    def numbers(self, tag: int, most: int = 16) -> tuple[int, ...]:
        """The whole numbers of a tag, the first ones; empty where the page has no such tag."""
        if tag not in self.entries:
            return ()
        kind, count, start = self.locate(tag)
        if kind not in _NUMBER_CODES:
            raise UndecodableImageError(f"the TIFF image is damaged: tag {tag} has type {kind}")
        pattern = f"{self.order}{min(count, most)}{_NUMBER_CODES[kind]}"
        return struct.unpack_from(pattern, self.data, start)

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag, or the default."""
        return next(iter(self.numbers(tag, 1)), default)

    def text(self, tag: int) -> str:
        """The start of a tag's text; empty where the page has no such tag."""
        if tag not in self.entries:
            return ""
        _, count, start = self.locate(tag)
        return self.data[start : start + min(count, 64)].split(b"\x00")[0].decode("latin-1").strip()

    def alone(self, changes: dict[int, int | None]) -> bytes:
        """A TIFF of this page only, with only its pixel tags, some changed or left out (None)."""
        wide = _is_big(self.data)
        size, begin = (20, 8) if wide else (12, 4)
        kept = {
            tag: self.data[at : at + size] for tag, at in self.entries.items() if tag in _PIXEL_TAGS
        }
        for tag, value in changes.items():
            kept.pop(tag, None)
            if value is not None:
                kept[tag] = struct.pack(self.order + "HH", tag, 3) + (
                    struct.pack(self.order + ("QH6x" if wide else "IH2x"), 1, value)
                )
        pad = bytes(len(self.data) % 2)
        pointer = struct.pack(self.order + ("Q" if wide else "I"), len(self.data) + len(pad))
        count = struct.pack(self.order + ("Q" if wide else "H"), len(kept))
        directory = [count, *(kept[tag] for tag in sorted(kept)), bytes(len(pointer))]
        rest = self.data[begin + len(pointer) :]
        return b"".join([self.data[:begin], pointer, rest, pad, *directory])


def _is_big(data: bytes) -> bool:
    """Whether the file is a BigTIFF, with pointers of 8 bytes."""
    return data[2:4] in (b"+\x00", b"\x00+")


def _pages(data: bytes) -> Iterator[_Page]:
    """The directories of a TIFF in their order; raises struct.error where one is cut off."""
    order = "<" if data[:2] == b"II" else ">"
    wide = _is_big(data)
    pointer = struct.Struct(order + ("Q" if wide else "I"))
    counter = struct.Struct(order + ("Q" if wide else "H"))
    size = 20 if wide else 12
    (position,) = pointer.unpack_from(data, 8 if wide else 4)
    seen: set[int] = set()
    while position:
        (count,) = counter.unpack_from(data, position)
        if position in seen or len(seen) == _MAX_DIRECTORIES or count > _MAX_ENTRIES:
            raise UndecodableImageError(
                f"the TIFF image is damaged: a loop, more than {_MAX_DIRECTORIES} directories, "
                f"or one of {count:,} entries (at most {_MAX_ENTRIES:,})"
            )
        seen.add(position)
        start = position + counter.size
        (position,) = pointer.unpack_from(data, start + count * size)
        places = range(start, start + count * size, size)
        yield _Page(
            data, order, {struct.unpack_from(order + "H", data, at)[0]: at for at in places}
        )


# --- TIFF: what a page holds


@dataclass(frozen=True)
class _Layout:
    """How the values of a page are to be read; `changes` makes its tags say so to Pillow."""

    bits: int
    signed: bool
    photometric: int
    has_alpha: bool
    changes: dict[int, int | None]


_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOUR_BANDS = {
    _WHITE_IS_ZERO: 1,
    _BLACK_IS_ZERO: 1,
    _RGB: 3,
    _PALETTE: 1,
    _CMYK: 4,
    _YCBCR: 3,
}
_ALPHA_KINDS = (1, 2)  # premultiplied, straight
_OLD_JPEG = 6


def _layout(page: _Page, notes: list[str]) -> _Layout:
    bits, signed = _value_type(page)
    photometric, samples = page.number(_PHOTOMETRIC, -1), page.number(_SAMPLES, 1)
    extras = page.numbers(_EXTRA)
    if photometric == _BLACK_IS_ZERO and _is_nameless_rgb(samples, extras):
        photometric, extras = _RGB, extras[2:]
        notes.append(
            "band names: the file gives none; its 3 bands were read as red, green, blue in order"
        )
    if photometric not in _COLOUR_BANDS:
        raise UnsupportedFormatError(
            f"a TIFF of photometric interpretation {photometric} is not read; save it as RGB"
        )
    extra = samples - _COLOUR_BANDS[photometric]
    has_alpha = extra == 1 and extras[:1] in ((1,), (2,)) and photometric in (_BLACK_IS_ZERO, _RGB)
    if extra and not has_alpha and not (extra == 1 and photometric == _RGB):
        raise BandError(
            f"the TIFF has {samples} bands (photometric interpretation {photometric}); a tile has "
            "1 (grey) or 3 (red, green, blue), either with alpha: pick the 3 bands to be seen, "
            "for example with gdal_translate -b 3 -b 2 -b 1 -co PHOTOMETRIC=RGB"
        )
    if extra and not has_alpha:
        notes.append("band 4: not said to be alpha; ignored, bands 1 to 3 are the tile")
    kind = extras[0] if has_alpha else 0
    _check_deep(page, bits, photometric, kind)
    changes = {_PHOTOMETRIC: photometric, _EXTRA: kind if extra else None}
    return _Layout(bits, signed, photometric, has_alpha, changes)


def _is_nameless_rgb(samples: int, extras: tuple[int, ...]) -> bool:
    """Whether these are three bands without names, perhaps with alpha behind them."""
    if any(extras[:2]):
        return False
    return samples == 3 or (samples == 4 and extras[2:3] in ((1,), (2,)))


def _value_type(page: _Page) -> tuple[int, bool]:
    """Bits of a value and whether it is signed."""
    bits = page.numbers(_BITS) or (1,)
    formats = page.numbers(_SAMPLE_FORMAT) or (1,)
    if len(set(bits)) == len(set(formats)) == 1:
        if formats[0] in (1, 4) and bits[0] in (1, 2, 4, 8, 16):
            return bits[0], False
        if formats[0] == 2 and bits[0] == 16:
            return 16, True
    names = {1: "unsigned", 2: "signed", 3: "float", 4: "untyped", 5: "complex", 6: "complex"}
    found = ", ".join(sorted({names.get(each, f"format {each}") for each in formats}))
    raise UnsupportedFormatError(
        f"the TIFF holds {found} values of {', '.join(map(str, sorted(set(bits))))} bit; unsigned "
        "8 and 16 bit and signed 16 bit are read: convert it, for example with "
        "gdal_translate -ot Byte -scale"
    )


def _check_deep(page: _Page, bits: int, photometric: int, alpha: int) -> None:
    """Refuse what the decoder cannot do: compressions, 16 bit in other forms than the plain one."""
    compression, samples = page.number(_COMPRESSION, 1), page.number(_SAMPLES, 1)
    if compression == _OLD_JPEG or compression not in COMPRESSION_INFO:
        raise UnsupportedFormatError(
            f"TIFF compression {compression} is not read; none, Deflate, LZW, JPEG and ZSTD are"
        )
    plain = samples == 1 or (photometric == _RGB and page.number(_PLANAR, 1) == 1 and alpha != 1)
    if bits == 16 and not (plain and photometric in (_BLACK_IS_ZERO, _RGB)):
        raise UnsupportedFormatError(
            "a TIFF of 16 bit is read as grey, or as RGB stored pixel by pixel, with or without "
            "straight alpha; this one is neither: convert it, for example with "
            "gdal_translate -co INTERLEAVE=PIXEL -co PHOTOMETRIC=RGB"
        )
    if bits < 8 and samples > 1:
        raise UnsupportedFormatError(f"a TIFF of {samples} bands of {bits} bit is not read")


def _check_page(page: _Page, limits: ImageLimits) -> None:
    """Refuse a page that is too large, dear to open for its size, or without all its parts."""
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    _check_size(width, height, limits)
    # A decoder reserves one whole inner tile, whatever the size of the image.
    across, down = page.number(_TILE_WIDTH, width), page.number(_TILE_HEIGHT, height)
    tiled = _TILES in page.entries
    if tiled and across * down > limits.max_pixels:
        raise ImageTooLargeError(
            f"the TIFF has inner tiles of {across:,} x {down:,} = {across * down:,} pixels; "
            f"the limit is {limits.max_pixels:,} pixels"
        )
    if not tiled:
        across, down = width, min(page.number(_STRIP_ROWS, height), height)
    tables = [page.locate(tag) for tag in page.entries if tag in _PIXEL_TAGS]
    values = max(count for _, count, _ in tables)
    size = sum(_TYPE_SIZES.get(kind, 1) * count for kind, count, _ in tables)
    if size > len(page.data) or values > _MAX_VALUES:
        raise UndecodableImageError(
            f"the TIFF image is damaged: its tables hold {size:,} bytes of {len(page.data):,} and "
            f"{values:,} values (at most {_MAX_VALUES:,})"
        )
    # Pillow leaves the place of a missing part black, and reads a part at byte 0 as pixels.
    needed = -(-width // max(across, 1)) * -(-height // max(down, 1))
    parts = page.numbers(_TILES if tiled else _STRIPS, _MAX_VALUES)[:needed]
    if len(parts) < needed or 0 in parts:
        raise UndecodableImageError(
            f"the TIFF image is damaged or sparse: {sum(map(bool, parts)):,} of {needed:,} parts "
            "are there"
        )


# --- TIFF: from a page to pixels


def _read_tiff(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Pixels, int]:
    with _reading("TIFF"):
        pages = list(_pages(data))
        if not pages:
            raise UndecodableImageError("the TIFF image holds no page: damaged or cut off")
        page, orientation = pages[0], pages[0].number(_ORIENTATION, 1)
        _check_page(page, limits)
        _check_single("TIFF", sum(_is_picture(other) for other in pages), "pages")
        layout = _layout(page, notes)
        alone = page.alone(layout.changes)
        image = TiffImageFile(BytesIO(alone))
        image.load()
        hidden = None if layout.has_alpha else _masked(pages, limits)
        if layout.bits < 16:
            shown = np.asarray(image)
            nodata = _either(_tiff_nodata(page, layout, shown), hidden)
            return _rgb(image, notes, nodata), orientation
        unsigned, alpha = _sixteen_bit(image, TiffImageFile(BytesIO(alone)))
        values = unsigned.view(np.int16) if layout.signed else unsigned
        nodata = _either(_tiff_nodata(page, layout, values), hidden)
        return _scaled(values, nodata, alpha, notes), orientation


def _is_picture(page: _Page) -> bool:
    """Whether a page is neither a smaller copy (bit 0) nor a mask (bit 2) of another."""
    return not page.number(_SUBFILE, 0) & 0b101


def _masked(pages: list[_Page], limits: ImageLimits) -> Mask | None:
    """Where a mask page of the first page's size says that there is no data, if there is one."""
    size = [pages[0].number(tag, 0) for tag in (_WIDTH, _HEIGHT)]
    for page in pages[1:]:
        same = [page.number(tag, 0) for tag in (_WIDTH, _HEIGHT)] == size
        if same and page.number(_SUBFILE, 0) & 0b100:
            _check_page(page, limits)
            # Pillow knows no masks, but a mask is a picture in black and white.
            changes: dict[int, int | None] = {_PHOTOMETRIC: _BLACK_IS_ZERO, _EXTRA: None}
            image = TiffImageFile(BytesIO(page.alone(changes)))
            found: Mask = np.array(image) == 0
            return found
    return None


def _either(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _tiff_nodata(page: _Page, layout: _Layout, values: NDArray[Any]) -> Mask | None:
    """Where the colour bands of values (H, W) or (H, W, C) hold the value of GDAL's nodata tag."""
    try:
        nodata = float(page.text(_NODATA))
    except ValueError:  # no tag, or a text that is no number
        return None
    full = 2**layout.bits - 1
    # Pillow spreads 2 and 4 bit greys over 0..255 and turns white-is-zero round.
    if layout.photometric == _WHITE_IS_ZERO:
        nodata = full - nodata
    if layout.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and layout.bits in (2, 4):
        nodata = nodata * 255 / full
    bands = values[:, :, None] if values.ndim == 2 else values
    if layout.has_alpha and layout.bits < 16:
        bands = bands[:, :, :-1]
    found: Mask = (bands == nodata).all(axis=-1)
    return found


_READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "WebP": _read_webp, "TIFF": _read_tiff}
