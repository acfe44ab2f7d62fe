"""Milliseconds a tile, all forms of a graph measured in turns on the same cores."""

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.certificate import FormName, Speed
from export.runner import Runner
from tilesight.cores import usable_cores

BATCHES = (1, 2, 4, 8, 16, 32)
_REPEATS = 7
# Runs of a new shape in which memory is planned, and TorchScript compiles itself anew.
_WARM_UP = 3


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {"cpu": _processor(), "threads": usable_cores()}


def batch_curves(
    runners: Mapping[FormName, Runner], feeds: Callable[[int], dict[str, NDArray[Any]]]
) -> dict[FormName, list[Speed]]:
    """The speed of each form at each batch size.

    The forms take turns, so that whatever else the machine does slows all of them alike.
    """
    curves: dict[FormName, list[Speed]] = {name: [] for name in runners}
    for batch in BATCHES:
        inputs = feeds(batch)
        for runner in runners.values():
            for _ in range(_WARM_UP):
                runner.run(**inputs)
        times: dict[FormName, list[float]] = {name: [] for name in runners}
        for _ in range(_REPEATS):
            for name, runner in runners.items():
                times[name].append(_milliseconds(runner, inputs) / batch)
        for name, of_one in times.items():
            curves[name].append(_speed(batch, of_one))
    return curves


def speedup(before: Runner, after: Runner, inputs: dict[str, NDArray[Any]]) -> float:
    """How many times as fast `after` answers these inputs as `before` does.

    The two take turns, and the median is that of the pairs' ratios: what slows the machine for a
    while slows both of a pair.
    """
    ratios = [
        _milliseconds(before, inputs) / _milliseconds(after, inputs)
        for _ in range(_WARM_UP + 4 * _REPEATS)
    ]
    return float(np.median(ratios[_WARM_UP:]))


def best(curve: list[Speed]) -> float:
    """Milliseconds a tile at the batch size that suits the form most."""
    return min(speed.ms_per_tile for speed in curve)


def _milliseconds(runner: Runner, inputs: dict[str, NDArray[Any]]) -> float:
    started = time.perf_counter()
    runner.run(**inputs)
    return (time.perf_counter() - started) * 1e3


def _speed(batch: int, times: list[float]) -> Speed:
    return Speed(
        batch=batch,
        ms_per_tile=round(float(np.median(times)), 4),
        spread=round(float(np.subtract(*np.percentile(times, (75, 25)))) / 2, 4),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
