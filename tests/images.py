"""Draws tiles as bytes, good ones and bad ones, for the tests of all rooms.

Pillow writes what it can; PNG and TIFF of 16 bit, with tags or of many bands, are put together by
hand, so that the tests do not believe the library that they test.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = 0, 1, 2, 3, 4, 5, 6
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2
Values = NDArray[Any]
Option: TypeAlias = Any  # what a writer of images takes; it says no by itself
# Width, height and the rest of a header, and no pixels: 60,000 x 60,000.
HUGE = 60_000


def scene(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Smooth pixels (H, W, 3) without any symmetry, so that JPEG keeps them and turns show."""
    y, x = np.mgrid[0:height, 0:width]
    red = 40 + 150 * x / width
    green = 200 - 120 * y / height
    blue = 30 + 80 * x / width + 60 * y / height
    return np.rint(np.stack([red, green, blue], axis=-1)).astype(np.uint8)


def encode(pixels: Values | Image.Image, kind: str, **options: Option) -> bytes:
    """The pixels as Pillow writes them in this format."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def jpeg(pixels: Values | None = None, **options: Option) -> bytes:
    """A good JPEG."""
    return encode(scene() if pixels is None else pixels, "JPEG", quality=95, **options)


def png(pixels: Values | None = None, **options: Option) -> bytes:
    """A good PNG."""
    return encode(scene() if pixels is None else pixels, "PNG", **options)


def webp(pixels: Values | None = None, **options: Option) -> bytes:
    """A good WebP, without loss."""
    return encode(scene() if pixels is None else pixels, "WEBP", lossless=True, **options)


def exif(orientation: int) -> bytes:
    """An EXIF block with an orientation and nothing else."""
    entry = struct.pack(">HHIHxx", 274, 3, 1, orientation)
    return b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01" + entry + bytes(4)


def frames(kind: str, count: int = 3) -> bytes:
    """An animation (PNG, WEBP, GIF) or a document of pages (TIFF)."""
    images = [Image.fromarray(np.roll(scene(), 7 * step, axis=1)) for step in range(count)]
    return encode(images[0], kind, save_all=True, append_images=images[1:])


def chunk(kind: bytes, payload: bytes) -> bytes:
    """One chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + payload))
    return struct.pack(">I", len(payload)) + kind + payload + checksum


def raw_png(values: Values, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of values (H, W) or (H, W, 2..4) of 8 or 16 bit, with chunks around its pixels."""
    height, width = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    bits = 8 * values.dtype.itemsize
    big = values.astype(values.dtype.newbyteorder(">"))
    rows = b"".join(b"\x00" + row.tobytes() for row in big)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + after + chunk(b"IEND", b"")


def tiff(*pages: bytes | Mapping[int, Any], order: str = "<", wide: bool = False) -> bytes:
    """A TIFF or BigTIFF of pages as `page` gives them; `wide` is BigTIFF."""
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHH", 43, 8, 0) if wide else struct.pack(order + "H", 42)
    pointer = struct.Struct(order + ("Q" if wide else "I"))
    output = bytearray(mark + head + bytes(pointer.size))
    slot = len(output) - pointer.size
    for tags in pages:
        places = {tag: _place(output, value, order, pointer) for tag, value in tags.items()}
        output += bytes(len(output) % 2)
        pointer.pack_into(output, slot, len(output))
        output += struct.pack(order + ("Q" if wide else "H"), len(places))
        for tag in sorted(places):
            kind, count, inline = places[tag]
            output += struct.pack(order + ("HHQ" if wide else "HHI"), tag, kind, count) + inline
        slot = len(output)
        output += bytes(pointer.size)
    return bytes(output)


def _place(
    output: bytearray, value: Option, order: str, pointer: struct.Struct
) -> tuple[int, int, bytes]:
    """Type, count and inline bytes of a tag; what does not fit is added to the output."""
    if isinstance(value, list):  # parts of pixels: written, and pointed at
        places = []
        for part in value:
            places.append(len(output))
            output += part
        value = places
    if isinstance(value, str):
        kind, count, packed = 2, len(value) + 1, value.encode() + b"\x00"
    else:
        numbers = value if isinstance(value, Sequence) else [value]
        kind, code = (4, "I") if max(numbers) > 0xFFFF else (3, "H")
        count, packed = len(numbers), struct.pack(f"{order}{len(numbers)}{code}", *numbers)
    if len(packed) > pointer.size:
        output += bytes(len(output) % 2)
        packed, place = pointer.pack(len(output)), packed
        output += place
    return kind, count, packed.ljust(pointer.size, b"\x00")


def page(
    values: Values, photometric: int | None = None, order: str = "<", **options: Option
) -> dict[int, Any]:
    """The tags of a TIFF page of values (H, W) or (H, W, C).

    Options: extra (kinds of the bands behind the colours), deflate, planar, rows (of a strip),
    bits (less than 8: the values are packed already), width, and tags (a mapping that wins).
    """
    height, width = values.shape[0], options.get("width", values.shape[1])
    bands = 1 if values.ndim == 2 else values.shape[2]
    if photometric is None:
        photometric = RGB if bands >= 3 else BLACK_IS_ZERO
    stored = values.astype(values.dtype.newbyteorder(order))
    rows = options.get("rows", height)
    planes = [stored[..., band] for band in range(bands)] if options.get("planar") else [stored]
    parts = [
        plane[top : top + rows].tobytes() for plane in planes for top in range(0, height, rows)
    ]
    if options.get("deflate"):
        parts = [zlib.compress(part) for part in parts]
    kinds = {"u": UNSIGNED, "b": UNSIGNED, "i": SIGNED, "f": FLOAT}
    tags = {
        256: width,
        257: height,
        258: [options.get("bits", 8 * values.dtype.itemsize)] * bands,
        259: 8 if options.get("deflate") else 1,
        262: photometric,
        273: parts,
        277: bands,
        278: rows,
        279: [len(part) for part in parts],
        284: 2 if options.get("planar") else 1,
        339: [kinds[values.dtype.kind]] * bands,
    }
    tags = {tag: tuple(v) if isinstance(v, list) and tag != 273 else v for tag, v in tags.items()}
    if options.get("extra"):
        tags[338] = tuple(options["extra"])
    return tags | options.get("tags", {})


def raw_tiff(values: Values, photometric: int | None = None, **options: Option) -> bytes:
    """A TIFF of one page; `order` and `wide` as for `tiff`, all else as for `page`."""
    order, wide = options.pop("order", "<"), options.pop("wide", False)
    return tiff(page(values, photometric, order, **options), order=order, wide=wide)


def huge(kind: str) -> bytes:
    """A header that claims 60,000 x 60,000 pixels (WebP: all that it can, 16,383), and no more."""
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    if kind == "JPEG":
        data = bytearray(jpeg())
        frame = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, frame + 5, HUGE, HUGE)
        return bytes(data)
    if kind == "TIFF":
        return raw_tiff(scene(), tags={256: HUGE, 257: HUGE})
    data = bytearray(webp())
    struct.pack_into("<I", data, data.index(b"VP8L") + 9, 0x3FFE | 0x3FFE << 14)
    return bytes(data)
