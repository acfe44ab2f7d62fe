"""TIFF and GeoTIFF: the one page that is the tile, and its pixels.

The directories are read here and not by Pillow, which knows no masks and no nodata, takes a file
of 16 bit for one of 8, and pays for every tag of every page. What it is given in the end is a file
of one page with the tags that a decoder needs, corrected where they leave the colours open.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from tilesight.colours import Mask, Pixels, equals, rgb, scaled, sixteen_bit
from tilesight.errors import (
    BandError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedFormatError,
)
from tilesight.headers import ImageLimits, check_single, check_size


def read(data: bytes, limits: ImageLimits, notes: list[str]) -> tuple[Pixels, int]:
    """The pixels (H, W, 3) of the file's one page as stored, and its orientation tag."""
    pages = list(_pages(data))
    if not pages:
        raise UndecodableImageError("the TIFF image holds no page: damaged or cut off")
    page = pages[0]
    turn = page.number(_ORIENTATION, 1)
    _check_page(page, limits)
    check_single("TIFF", sum(_is_picture(other) for other in pages), "pages")
    layout = _layout(page, notes)
    alone = page.alone(layout.changes)
    image = TiffImageFile(BytesIO(alone))
    image.load()
    if layout.bits < 16:
        hidden = _hidden(pages, layout, np.asarray(image), limits)
        return rgb(image, notes, hidden), turn
    unsigned, alpha = sixteen_bit(image, TiffImageFile(BytesIO(alone)))
    values = unsigned.view(np.int16) if layout.signed else unsigned
    hidden = _hidden(pages, layout, values, limits)
    return scaled(values, hidden, alpha, notes), turn


def orientation(exif: bytes) -> int:
    """How an image is to be turned, by its EXIF block, which is a TIFF without pixels."""
    return next(_pages(exif)).number(_ORIENTATION, 1)


# --- The directories


_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _PLANAR = 273, 274, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _EXTRA, _SAMPLE_FORMAT, _NODATA = 322, 323, 324, 338, 339, 42113
# What a decoder needs to know. All else (EXIF, geographic tags, profiles, overviews) stays out of
# the one page that Pillow is given, so nothing else in a file can cost time or go wrong.
_PIXEL_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _STRIP_ROWS, _PLANAR}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILES, _EXTRA}
    # Order of bits, bytes of the strips and tiles, fax options, predictor, palette, tables of
    # JPEG, subsampling and range of YCbCr.
    | {266, 279, 325, 292, 293, 317, 320, 347, 530, 532}
)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
_NUMBER_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_SHORT = 3
_MAX_ENTRIES = 4096
_MAX_DIRECTORIES = 256
_MAX_VALUES = 1 << 18  # strips or tiles of one page: Pillow makes an object of each


class _Form(NamedTuple):
    """How a file writes its directories: the byte order, and pointers of 4 or 8 bytes."""

    order: str
    begin: int  # where the pointer to the first directory lies
    pointer: struct.Struct
    counter: struct.Struct
    entry: struct.Struct  # tag, type, count, and the values or a pointer to them


def _form(data: bytes) -> _Form:
    order = "<" if data[:2] == b"II" else ">"
    begin, codes = (8, ("Q", "Q", "HHQ8s")) if data[2:4] == b"+\x00" else (4, ("I", "H", "HHI4s"))
    return _Form(order, begin, *(struct.Struct(order + code) for code in codes))


@dataclass(frozen=True)
class _Page:
    """One directory of a TIFF: where the entry of each tag lies."""

    data: bytes
    form: _Form
    entries: dict[int, int]

    def locate(self, tag: int) -> tuple[int, int, int]:
        """Type, count and first byte of a tag's values; raises where they leave the file."""
        place, pointer = self.entries[tag], self.form.pointer
        _, kind, count, inline = self.form.entry.unpack_from(self.data, place)
        size = _TYPE_SIZES.get(kind, 1) * count
        if size > pointer.size:
            (start,) = pointer.unpack(inline)
        else:
            start = place + self.form.entry.size - pointer.size
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
        pattern = f"{self.form.order}{min(count, most)}{_NUMBER_CODES[kind]}"
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
        order, begin, pointer, counter, entry = self.form
        kept = {
            tag: self.data[place : place + entry.size]
            for tag, place in self.entries.items()
            if tag in _PIXEL_TAGS
        }
        for tag, value in changes.items():
            kept.pop(tag, None)
            if value is not None:
                kept[tag] = entry.pack(tag, _SHORT, 1, struct.pack(order + "H", value))
        pad = bytes(len(self.data) % 2)
        first = pointer.pack(len(self.data) + len(pad))
        pixels = self.data[begin + pointer.size :]
        directory = [counter.pack(len(kept)), *(kept[tag] for tag in sorted(kept))]
        return b"".join([self.data[:begin], first, pixels, pad, *directory, bytes(pointer.size)])


def _pages(data: bytes) -> Iterator[_Page]:
    """The directories of a TIFF in their order; raises struct.error where one is cut off."""
    form = _form(data)
    (position,) = form.pointer.unpack_from(data, form.begin)
    seen: set[int] = set()
    while position:
        (count,) = form.counter.unpack_from(data, position)
        if position in seen or len(seen) == _MAX_DIRECTORIES or count > _MAX_ENTRIES:
            raise UndecodableImageError(
                f"the TIFF image is damaged: a loop, more than {_MAX_DIRECTORIES} directories, "
                f"or one of {count:,} entries (at most {_MAX_ENTRIES:,})"
            )
        seen.add(position)
        start = position + form.counter.size
        stop = start + count * form.entry.size
        (position,) = form.pointer.unpack_from(data, stop)
        places = range(start, stop, form.entry.size)
        yield _Page(data, form, {form.entry.unpack_from(data, place)[0]: place for place in places})


# --- What a page holds


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
_ALPHA = ((1,), (2,))  # premultiplied, straight
# None, CCITT, LZW, JPEG, Deflate (old and new), PackBits, LZMA, ZSTD: in every build of Pillow.
_COMPRESSIONS = frozenset([1, 2, 3, 4, 5, 7, 8, 32946, 32773, 34925, 50000])
_PLANES = 2  # how the bands lie: one after the other, not pixel by pixel


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
    has_alpha = extra == 1 and extras[:1] in _ALPHA and photometric in (_BLACK_IS_ZERO, _RGB)
    if extra and not has_alpha and not (extra == 1 and photometric == _RGB):
        raise BandError(
            f"the TIFF has {samples} bands (photometric interpretation {photometric}); a tile has "
            "1 (grey) or 3 (red, green, blue), either with alpha: pick the 3 bands to be seen, "
            "for example with gdal_translate -b 3 -b 2 -b 1 -co PHOTOMETRIC=RGB"
        )
    if extra and not has_alpha:
        notes.append("band 4: not said to be alpha; ignored, bands 1 to 3 are the tile")
    kind = extras[0] if has_alpha else 0
    _check_decodable(page, bits, photometric, kind)
    changes = {_PHOTOMETRIC: photometric, _EXTRA: kind if extra else None}
    return _Layout(bits, signed, photometric, has_alpha, changes)


def _is_nameless_rgb(samples: int, extras: tuple[int, ...]) -> bool:
    """Whether these are three bands without names, perhaps with alpha behind them."""
    if any(extras[:2]):
        return False
    return samples == 3 or (samples == 4 and extras[2:3] in _ALPHA)


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


def _check_decodable(page: _Page, bits: int, photometric: int, alpha: int) -> None:
    """Refuse what the decoder cannot do: compressions, 16 bit in other forms than the plain one."""
    compression, samples = page.number(_COMPRESSION, 1), page.number(_SAMPLES, 1)
    if compression not in _COMPRESSIONS:
        raise UnsupportedFormatError(
            f"TIFF compression {compression} is not read; none, LZW, Deflate, ZSTD and JPEG are"
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
    check_size(width, height, limits)
    # A decoder reserves one whole inner tile, whatever the size of the image.
    across, down = page.number(_TILE_WIDTH, width), page.number(_TILE_HEIGHT, height)
    tiled = _TILES in page.entries
    if tiled and across * down > limits.max_pixels:
        raise ImageTooLargeError(
            f"the TIFF has inner tiles of {across:,} x {down:,} = {across * down:,} pixels; "
            f"the limit is {limits.max_pixels:,} pixels",
            limits.max_pixels,
            "pixels",
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
    planes = page.number(_SAMPLES, 1) if page.number(_PLANAR, 1) == _PLANES else 1
    _check_parts(page, planes * -(-width // max(across, 1)) * -(-height // max(down, 1)))


def _check_parts(page: _Page, needed: int) -> None:
    """Refuse a page that lacks a part: Pillow leaves it black, or reads it from byte 0."""
    parts = page.numbers(_TILES if _TILES in page.entries else _STRIPS, _MAX_VALUES)[:needed]
    if len(parts) < needed or 0 in parts:
        raise UndecodableImageError(
            f"the TIFF image is damaged or sparse: {sum(map(bool, parts)):,} of {needed:,} parts "
            "are there"
        )


# --- Masks and nodata


def _is_picture(page: _Page) -> bool:
    """Whether a page is neither a smaller copy (bit 0) nor a mask (bit 2) of another."""
    return not page.number(_SUBFILE, 0) & 0b101


def _hidden(
    pages: list[_Page], layout: _Layout, values: NDArray[Any], limits: ImageLimits
) -> Mask | None:
    """Where the nodata tag or, in a file without alpha, a mask page says that there is no data."""
    nodata = _nodata(pages[0], layout, values)
    mask = None if layout.has_alpha else _mask(pages, limits)
    if nodata is None or mask is None:
        return mask if nodata is None else nodata
    return nodata | mask


def _mask(pages: list[_Page], limits: ImageLimits) -> Mask | None:
    """Where the first mask page of the picture's size is black."""
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


def _nodata(page: _Page, layout: _Layout, values: NDArray[Any]) -> Mask | None:
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
    bands = np.atleast_3d(values)
    if layout.has_alpha and layout.bits < 16:
        bands = bands[:, :, :-1]
    return equals(bands, nodata)
