"""The files of a certificate: for programs, and to read with its picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.certificate import Certificate
from export.report_picture import drawn
from export.report_text import report_text
from tilesight.files import write_text, written_whole
from tilesight.manifest import CERTIFICATE_NAME
from training.datasets.multilabel import MultiLabelSet

REPORT_NAME = "certificate.md"
PICTURE_NAME = "certificate.png"


def write_certificate(
    certificate: Certificate, measured_on: MultiLabelSet, size: int, folder: Path
) -> None:
    """Writes all three files into the version's folder.

    Args:
        certificate: what was measured.
        measured_on: the set that has the tiles of the picture; those that are not in the public
            domain are named and not shown, because a version is passed on.
        size: the side of a tile as the model reads it, pixels.
        folder: the version's folder.
    """
    write_text(folder / CERTIFICATE_NAME, certificate.model_dump_json(indent=2) + "\n")

    def tile_of(stem: str) -> NDArray[np.uint8] | None:
        return measured_on.tiles([stem], size)[0] if measured_on.public_domain(stem) else None

    write_report(certificate, tile_of, folder)


def write_report(
    certificate: Certificate, tile_of: Callable[[str], NDArray[np.uint8] | None], folder: Path
) -> None:
    """Writes both files into the folder, each whole or not at all.

    Args:
        certificate: what was measured.
        tile_of: the picture (H, W, 3) of what a `Worst` calls its tile; None: it is not shown.
        folder: the version's folder.
    """
    figure = drawn(certificate, tile_of)
    with written_whole(folder / PICTURE_NAME) as temporary:
        # Without the name of what drew it, the same figures give the same bytes.
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    write_text(folder / REPORT_NAME, report_text(certificate, PICTURE_NAME))
