"""Every failure that Tilesight reports: one base class, one class per failure.

The gateway turns these classes into HTTP answers by one table (`serving/problems.py`); the command
line prints the message and exits with status 2. A message names the field and the limit it broke.
"""

import copy
from typing import Self


class TilesightError(Exception):
    """The base of all failures that a user can mend."""

    def told(self, message: str) -> Self:
        """The same failure in other words, with all else that it knows."""
        other = copy.copy(self)
        other.args = (message,)
        return other


class LimitError(TilesightError):
    """A failure that knows which bound was broken, as a number and in words."""

    def __init__(self, message: str, limit: float | None = None, unit: str | None = None) -> None:
        """A failure over `limit`, counted in `unit`; None where no bound was broken."""
        super().__init__(message)
        self.limit = limit
        self.unit = unit


class EmptyImageError(TilesightError):
    """No bytes were sent where an image was expected."""


class UnsupportedFormatError(TilesightError):
    """The bytes are not in one of the formats that the pixel pipeline reads."""


class UndecodableImageError(TilesightError):
    """The bytes claim to be an image and cannot be decoded: damaged or cut off."""


class ImageTooLargeError(LimitError):
    """More bytes or more pixels than the limits allow; found before anything is decoded."""


class ImageTooSmallError(LimitError):
    """Fewer pixels on a side than a model can tell anything from."""


class AnimatedImageError(LimitError):
    """An image of several frames or pages, where one tile is asked for."""


class BandError(TilesightError):
    """The image has not the bands that the model was trained on."""


class QuestionError(LimitError):
    """A question that cannot be asked: empty, too long, or without a known word."""


class ManifestError(TilesightError):
    """A manifest that is not what this version of Tilesight reads; the message names the field."""


class BundleError(TilesightError):
    """A model version whose files are missing or differ from what its manifest promises."""


class ConfigError(TilesightError):
    """A configuration file with an unknown key, a wrong type or a value out of range."""


class DataError(TilesightError):
    """A data folder, an annotation file or a split list that is not what the reader expects."""


class WeightsError(TilesightError):
    """A weights file that does not fit the model: names or shapes differ."""


class RunError(TilesightError):
    """A run folder that is missing, incomplete, or of another model."""


class ExportError(TilesightError):
    """A written model that does not agree with the one it was made from; nothing was kept."""


class MissingExtraError(TilesightError):
    """A command needs packages that this installation was made without."""


class TritonMissingError(TilesightError):
    """No Triton is installed where this machine's is looked for, or another one than pinned."""


class TritonError(TilesightError):
    """The Triton of this machine cannot be installed, started or kept running."""
