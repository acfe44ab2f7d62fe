"""What an image says of itself before anything of it is decoded, and what one may cost.

Pillow reads a header without limits of its own: it walks chunks and segments one by one in Python
and parses all EXIF tags. So the format and the size are checked here, and what only costs time is
kept from it.
"""

import struct
from dataclasses import dataclass

from tilesight.errors import (
    AnimatedImageError,
    ConfigError,
    EmptyImageError,
    ImageTooLargeError,
    ImageTooSmallError,
    UndecodableImageError,
    UnsupportedFormatError,
)

# Beyond this Pillow itself warns of a decompression bomb, in the middle of decoding a TIFF.
PILLOW_MAX_PIXELS = 89_478_485
# Segments of a JPEG's header or chunks of a PNG.
_MAX_STEPS = 1 << 16


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


DEFAULT_LIMITS = ImageLimits()


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Refuses an empty image and one of too many bytes."""
    if not data:
        raise EmptyImageError("the image is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,} bytes",
            limits.max_bytes,
            "bytes",
        )


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuses an image of too many pixels and one with too short a side."""
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"the image has {width:,} x {height:,} = {width * height:,} pixels; "
            f"the limit is {limits.max_pixels:,} pixels",
            limits.max_pixels,
            "pixels",
        )
    if min(width, height) < limits.min_side:
        raise ImageTooSmallError(
            f"the image has {width} x {height} pixels; "
            f"each side needs at least {limits.min_side} pixels",
            limits.min_side,
            "pixels of a side",
        )


def check_single(kind: str, count: int, what: str) -> None:
    """Refuses an image of several frames or pages."""
    if count > 1:
        raise AnimatedImageError(
            f"the {kind} image holds {count} {what}; a tile is 1 image", 1, what
        )


# --- Format


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


def image_format(data: bytes) -> str:
    """JPEG, PNG, WebP or TIFF, by the first bytes; raises UnsupportedFormatError."""
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


# --- JPEG, PNG, WebP (TIFF is a room of its own)


# Pillow passes over these, which have no length, byte by byte.
_BARE_MARKERS = frozenset([0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xFF])


def hide_exif(data: bytes) -> tuple[bytes, bytes]:
    """The JPEG without its EXIF blocks, and the first block.

    On opening, Pillow parses all EXIF tags of a JPEG: a small file with tags that overlap costs
    it gigabytes, and a damaged block makes it print warnings. One tag is needed.
    """
    blocks: list[int] = []
    exif = b""
    position = 2
    for _ in range(_MAX_STEPS):
        marker = data[position + 1 : position + 2]
        if marker == b"\xda" or position + 4 > len(data):
            return (_without(data, blocks), exif) if exif else (data, b"")
        if data[position] != 0xFF or marker[0] < 0xC0 or marker[0] in _BARE_MARKERS:
            position += 1
            continue
        size = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xe1" and data[position + 4 : position + 10] == b"Exif\x00\x00":
            exif = exif or data[position + 10 : position + 2 + size]
            blocks.append(position + 4)
        position += 2 + max(size, 2)
    raise UndecodableImageError(
        f"the JPEG image is damaged: no picture within {_MAX_STEPS:,} segments"
    )


def _without(data: bytes, blocks: list[int]) -> bytes:
    """The JPEG with another name on the EXIF blocks that begin there, so that none is found."""
    hidden = bytearray(data)
    for start in blocks:
        hidden[start : start + 4] = b"none"
    return bytes(hidden)


def check_chunks(data: bytes) -> None:
    """Refuses a PNG cut into so many chunks that walking them takes seconds."""
    position, steps = 8, 0
    while position < len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        steps += 1
        if steps > _MAX_STEPS:
            raise UndecodableImageError(
                f"the PNG image is damaged: more than {_MAX_STEPS:,} chunks"
            )


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP; raises struct.error where the header is cut off."""
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
