"""Where a data set lies: one folder for each, or all of them side by side in one."""

from pathlib import Path

from tilesight.errors import DataError


def set_folder(dataset: str, data: Path) -> Path:
    """The folder of a data set: `data` itself, or the one in it that has the set's name.

    Sets that share tiles share a folder: `ucm_captions` and `ucm_aitlas` lie in `ucm`. The two of
    `ucm+aid` lie beside each other in `data`.

    Raises:
        DataError: there is no such folder.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder")
    inside = data / dataset.partition("_")[0]
    return inside if inside.is_dir() else data
