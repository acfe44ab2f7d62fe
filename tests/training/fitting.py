"""Runs that tests fit on the miniature, and ways to interrupt them."""

from collections.abc import Callable
from pathlib import Path

from training.config import RunConfig
from training.fit import train
from training.tasks.base import Measurement


class Interrupted(Exception):
    """What a machine that fails does to a training."""


def interrupted_at(line: str) -> Callable[[str], None]:
    def say(said: str) -> None:
        if said.startswith(line):
            raise Interrupted

    return say


def raise_interrupted(*_arguments: object) -> None:
    raise Interrupted


def train_on(data: Path, config: RunConfig, out: Path, **options: object) -> Measurement:
    return train(config, data, None, out, progress=False, **options)  # type: ignore[arg-type]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
