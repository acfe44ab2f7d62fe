"""What is called a leak and what is not, on series that are made up."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.memory import MIB, Sample
from loadtest.trend import FLAT, LEAKING, UNDECIDED, Limits, judge

HOUR = np.arange(3600)
RATE = 100

Series = NDArray[np.float64]


def noise(size: float = 0.5, seed: int = 0) -> Series:
    return np.random.default_rng(seed).normal(0, size, len(HOUR))


def samples(mib: Series, fds: Series | None = None, threads: Series | None = None) -> list[Sample]:
    """One a second, at a hundred requests a second."""
    return [
        Sample(
            at=1e9 + second,
            requests=RATE * second,
            anonymous=int(value * MIB),
            rss=int((value + 50) * MIB),
            fds=20 if fds is None else int(fds[second]),
            threads=10 if threads is None else int(threads[second]),
            processes=1,
            cpu_s=0.5 * second,
        )
        for second, value in enumerate(mib.tolist())
    ]


FLAT_SERIES: dict[str, Callable[[], Series]] = {
    "noise": lambda: 300 + noise(1.0),
    "sawtooth": lambda: 300 + 30 * (HOUR % 47) / 47 + noise(),
    "bursts": lambda: 300 + 80 * (np.abs(noise(1, seed=1)) > 2) + noise(),
    "a warm-up that ends": lambda: 300 - 80 * np.exp(-HOUR / 150) + noise(),
    "memory given back": lambda: 300 - 5 * HOUR / 3600 + noise(),
}
LEAKS: dict[str, Callable[[], Series]] = {
    "two kilobytes a request": lambda: 300 + HOUR * RATE * 2048 / MIB + noise(2.0),
    "two hundred bytes a request": lambda: 300 + HOUR * RATE * 200 / MIB + noise(1.0),
    "under a sawtooth": lambda: 300 + 40 * HOUR / 3600 + 30 * (HOUR % 47) / 47 + noise(),
    "in steps": lambda: 300 + 4.0 * (HOUR // 300) + noise(0.1),
    "after a warm-up": lambda: 300 - 80 * np.exp(-HOUR / 150) + 40 * HOUR / 3600 + noise(),
}
NEITHER: dict[str, Callable[[], Series]] = {
    "one late step": lambda: 300 + 30.0 * (HOUR > 2900) + noise(),
    "one step in the middle": lambda: 300 + 30.0 * (HOUR > 1900) + noise(),
    "a warm-up as long as the run": lambda: 300 - 80 * np.exp(-HOUR / 1500) + noise(),
    "a leak that starts late": lambda: 300 + 0.05 * np.maximum(0, HOUR - 2700) + noise(),
}


@pytest.mark.parametrize("name", FLAT_SERIES)
def test_flat(name: str) -> None:
    assert judge(samples(FLAT_SERIES[name]())).verdict == FLAT


@pytest.mark.parametrize("name", LEAKS)
def test_leaking(name: str) -> None:
    assert judge(samples(LEAKS[name]())).verdict == LEAKING


@pytest.mark.parametrize("name", NEITHER)
def test_neither_is_claimed(name: str) -> None:
    assert judge(samples(NEITHER[name]())).verdict == UNDECIDED


def test_the_slope_is_that_of_the_leak() -> None:
    trend = judge(samples(LEAKS["two kilobytes a request"]()))
    assert trend.slope.middle == pytest.approx(10_000 * 2048 / MIB, rel=0.02)
    assert trend.slope.low < trend.slope.middle < trend.slope.high
    assert trend.per_hour == pytest.approx(3600 * RATE * 2048 / MIB, rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_never_a_leak(seed: int) -> None:
    walk = np.cumsum(noise(0.05, seed))
    assert judge(samples(300 + walk)).verdict != LEAKING


def test_a_minute_is_too_short_to_call_it_flat() -> None:
    minute = samples(300 + noise(0.01))[:100]
    assert judge(minute).verdict == UNDECIDED


def test_the_limit_is_the_stricter_one() -> None:
    series = samples(300 + noise())
    by_hour = judge(series, Limits(mb_per_10k=1.0, mb_per_hour=10.0)).limit
    assert by_hour == pytest.approx(10 / (3600 * RATE / 10_000), rel=0.01)
    assert judge(series, Limits(mb_per_10k=0.1, mb_per_hour=10.0)).limit == 0.1


def test_time_without_requests_does_not_thin_the_leak() -> None:
    series = samples(300 + HOUR * RATE * 2048 / MIB + noise())
    cut = [Sample(one.at + 36_000 * (one.requests > 1000 * RATE), *_rest(one)) for one in series]
    assert judge(cut).per_hour == pytest.approx(judge(series).per_hour, rel=0.01)


def _rest(one: Sample) -> list[float]:
    return [getattr(one, name) for name in list(Sample.__dataclass_fields__)[1:]]


@pytest.mark.parametrize("what", ["fds", "threads"])
def test_descriptors_and_threads_may_come_and_go(what: str) -> None:
    memory = 300 + noise()
    come_and_go = {what: 20 + HOUR % 40}
    assert judge(samples(memory, **come_and_go)).verdict == FLAT
    grow = {what: 20 + HOUR // 100}
    assert judge(samples(memory, **grow)).verdict == LEAKING


def test_a_gateway_that_stops_answering_is_not_called_flat() -> None:
    series = samples(300 + noise())
    stuck = [Sample(one.at, min(one.requests, 2000 * RATE), *_rest(one)[1:]) for one in series]
    assert judge(stuck).verdict == UNDECIDED


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="are the least that tell"):
        judge(samples(300 + noise())[:60])


def test_without_requests_there_is_nothing_to_judge() -> None:
    idle = [Sample(one.at, 7, *_rest(one)[1:]) for one in samples(300 + noise())]
    with pytest.raises(ValueError, match="no request was answered"):
        judge(idle)
