"""The readable side of a certificate: `certificate.md`, and its picture `certificate.png`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.certificate import Certificate
from export.report_picture import drawn
from export.report_text import report_text
from tilesight.files import write_text, written_whole

REPORT_NAME = "certificate.md"
PICTURE_NAME = "certificate.png"


def write_report(
    certificate: Certificate, tile_of: Callable[[str], NDArray[np.uint8]], folder: Path
) -> None:
    """Writes both files into the folder, each whole or not at all.

    Args:
        certificate: what was measured.
        tile_of: the picture (H, W, 3) of what a `Worst` calls its tile.
        folder: the version's folder.
    """
    figure = drawn(certificate, tile_of)
    with written_whole(folder / PICTURE_NAME) as temporary:
        # Without the name of what drew it, the same figures give the same bytes.
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    write_text(folder / REPORT_NAME, report_text(certificate, PICTURE_NAME))
