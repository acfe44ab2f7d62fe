"""Whether memory grows with the requests: the slope of its floor, with bounds.

A leak lifts the floor, and goes on: what is held after each collection and each burst. An allocator
moves the ceiling: it sawtooths, it takes a step for a burst, it settles after a warm-up. So the
start is cut off, the rest is parted into windows of which only the lowest sample counts, and a
robust line (Theil-Sen: the median of the slopes of all pairs) is laid through these, over the
requests that were answered.

Both verdicts have to be shown. `leaking`: the lower bound of the slope is above a limit, and so is
the slope of each third of the run, of which the last has not faded; a step is in one of them, and a
warm-up fades. `flat`: the slope is below the limits,
and in the later half its upper bound too, over so many requests that a leak at the limit would be
larger than what an allocator takes at once. Anything else is `undecided`: a run too short for its
noise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes

from loadtest.memory import MIB, Sample

FLAT, LEAKING, UNDECIDED = "flat", "leaking", "undecided"
_WINDOWS = 24
_LEAST_SAMPLES = 3 * _WINDOWS
_CONFIDENCE = 0.95
_FADED = 0.6
_GAP = 10  # times the usual time between samples
_GRAIN_MB = 2.0  # an allocator's step; growth below it shows in lumps or not at all


@dataclass(frozen=True)
class Limits:
    """How much may grow before it is a leak; what the run cannot tell from nothing is allowed."""

    mb_per_10k: float = 1.0  # MiB for 10,000 requests: about a hundred bytes each
    mb_per_hour: float = 10.0  # at the rate of the run
    fds: int = 8
    threads: int = 4
    warmup: float = 0.25  # of the samples, not judged


@dataclass(frozen=True, slots=True)
class Slope:
    """MiB for 10,000 requests, with the bounds of 95 % confidence; nan where none was answered."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The verdict and what it was found by."""

    verdict: str
    slope: Slope
    late: Slope  # of the later half
    limit: float  # the stricter of the two limits, in MiB for 10,000 requests
    per_hour: float  # the slope at the rate of the run
    samples: int  # that were judged, the last ones
    requests: int
    hours: float
    fds: int  # growth of the floor, from the first quarter to the last
    threads: int

    def as_json(self) -> dict[str, Any]:
        """What `json.dumps` takes."""
        return asdict(self)


def judge(samples: Sequence[Sample], limits: Limits | None = None) -> Trend:
    """Whether what the samples hold grows with the requests.

    Raises:
        ValueError: too few samples, or no request was answered between them.
    """
    limits = limits or Limits()
    kept = samples[int(len(samples) * limits.warmup) :]
    if len(kept) < _LEAST_SAMPLES:
        raise ValueError(
            f"{len(kept)} samples after the warm-up, {_LEAST_SAMPLES} are the least that tell"
        )
    requests = kept[-1].requests - kept[0].requests
    if requests <= 0:
        raise ValueError("no request was answered between the samples")
    slope, late = _slope(kept), _slope(kept[len(kept) // 2 :])
    hours = _busy_s(kept) / 3600
    rate = requests / hours / 10_000
    limit = min(limits.mb_per_10k, limits.mb_per_hour / rate)
    fds = _growth([one.fds for one in kept])
    threads = _growth([one.threads for one in kept])
    verdict = _verdict(kept, slope, late, limit)
    if fds > limits.fds or threads > limits.threads:
        verdict = LEAKING
    return Trend(
        verdict, slope, late, limit, slope.middle * rate, len(kept), requests, hours, fds, threads
    )


def floors(samples: Sequence[Sample]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Requests in tens of thousands, and MiB, of the lowest sample of each window."""
    lowest = [
        min(window, key=lambda one: one.anonymous)
        for window in np.array_split(np.array(samples, dtype=object), _WINDOWS)
        if len(window)
    ]
    requests = np.array([one.requests for one in lowest]) / 10_000
    return requests, np.array([one.anonymous for one in lowest]) / MIB


def _slope(samples: Sequence[Sample]) -> Slope:
    requests, memory = floors(samples)
    if np.ptp(requests) == 0:
        return Slope(np.nan, np.nan, np.nan)
    found = theilslopes(memory, requests, alpha=_CONFIDENCE)
    return Slope(float(found.low_slope), float(found.slope), float(found.high_slope))


def _verdict(kept: Sequence[Sample], slope: Slope, late: Slope, limit: float) -> str:
    requests = (kept[-1].requests - kept[0].requests) / 10_000
    thirds = [_slope(kept[k * len(kept) // 3 : (k + 1) * len(kept) // 3]) for k in range(3)]
    steady = all(third.middle > limit for third in thirds)
    goes_on = steady and thirds[-1].middle > _FADED * slope.middle
    if slope.low > limit and goes_on and slope.middle * requests > _GRAIN_MB:
        return LEAKING
    fine_enough = limit * requests / 2 > _GRAIN_MB
    if slope.middle < limit and late.high < limit and fine_enough:
        return FLAT
    return UNDECIDED


def _busy_s(samples: Sequence[Sample]) -> float:
    """Without the gaps: a watch may have been cut off and taken up again."""
    steps = np.diff([one.at for one in samples])
    return float(steps[steps <= _GAP * np.median(steps)].sum())


def _growth(counts: Sequence[int]) -> int:
    quarter = len(counts) // 4
    return min(counts[-quarter:]) - min(counts[:quarter])
