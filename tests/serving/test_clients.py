"""A share for each client: the bucket against a plain one, with a clock of its own."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from serving.clients import CAPACITY, Clients, address_of
from tests.serving.gateway import settings_for

# Sums and quotients of these are exact, so each decision can be held against another computation.
TICK = 1 / 16
rates = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
bursts = st.integers(1, 6)
pauses = st.integers(0, 200).map(lambda ticks: ticks * TICK)
anybody = st.sampled_from(["a", "b", "c"])


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bucket:
    """The bucket as textbooks have it: tokens that are refilled."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self.rate, self.burst = Fraction(rate), burst
        self.tokens, self.at = Fraction(burst), Fraction(now)

    def take(self, now: float) -> Fraction:
        gained = (Fraction(now) - self.at) * self.rate
        self.tokens, self.at = min(Fraction(self.burst), self.tokens + gained), Fraction(now)
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


@given(rates, bursts, st.lists(st.tuples(pauses, anybody), max_size=60))
def test_it_decides_as_a_bucket_of_tokens_does(
    rate: float, burst: int, asked: list[tuple[float, str]]
) -> None:
    clock = Clock()
    clients = Clients(rate, burst, clock=clock)
    buckets = {name: Bucket(rate, burst, clock.now) for name in "abc"}
    for pause, name in asked:
        clock.now += pause
        assert clients.take(name) == float(buckets[name].take(clock.now))


@given(
    st.floats(1e-3, 1e3),
    bursts,
    st.lists(st.floats(0, 10), min_size=1, max_size=60),
)
def test_no_window_lets_in_more_than_the_burst_and_the_rate(
    rate: float, burst: int, waits: list[float]
) -> None:
    clock = Clock()
    clients = Clients(rate, burst, clock=clock)
    admitted = []
    for wait in waits:
        clock.now += wait
        if clients.take("a") == 0:
            admitted.append(clock.now)
    for first, begin in enumerate(admitted):
        for last in range(first, len(admitted)):
            most = burst + rate * (admitted[last] - begin)
            assert last - first + 1 <= most + 0.01


@given(rates, bursts, st.integers(0, 20))
def test_the_time_it_tells_is_the_time_it_takes(rate: float, burst: int, in_vain: int) -> None:
    clock = Clock()
    clients = Clients(rate, burst, clock=clock)
    assert [clients.take("a") for _ in range(burst)] == [0.0] * burst
    wait_s = clients.take("a")
    assert wait_s > 0
    # Who asks again and again in vain is not put off.
    assert {clients.take("a") for _ in range(in_vain)} <= {wait_s}
    clock.now += wait_s - TICK
    assert clients.take("a") == TICK
    clock.now += TICK
    assert clients.take("a") == 0
    assert clients.take("a") == 1 / rate


@given(st.integers(1, 5), st.lists(st.integers(0, 7).map(str), max_size=60))
def test_the_memory_is_bounded_and_who_asked_last_is_known(capacity: int, asked: list[str]) -> None:
    clock = Clock()
    clients = Clients(1.0, 1, capacity, clock)
    recent: list[str] = []
    for name in asked:
        assert (clients.take(name) == 0) == (name not in recent)
        recent = [*(one for one in recent if one != name), name][-capacity:]
        assert clients.known == len(recent)


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 1), (1, 1), (1.5, 2), (10, 10)])
def test_without_a_burst_it_is_a_seconds_worth(rate: float, burst: int) -> None:
    assert Clients(rate).burst == burst


def test_a_real_clock_refills(shared_repository: Path) -> None:
    settings = settings_for(shared_repository, client_rate=1000.0, client_burst=1)
    clients = Clients.of(settings)
    assert clients is not None
    admitted = 0
    while admitted < 5:
        admitted += clients.take("a") == 0
    assert Clients.of(settings_for(shared_repository)) is None


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::"),
        (("2001:db8:1:2::9", 1), "2001:db8:1:2::"),
        (("2001:db8:1:3::9", 1), "2001:db8:1:3::"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("fe80::1%eth0", 1), "fe80::"),
        (("no:address", 1), "unknown"),
        (("x" * 46, 1), "unknown"),
        ((":" * 46, 1), "unknown"),
        (("", 0), "unknown"),
        (None, "unknown"),
    ],
)
def test_who_asks(client: tuple[str, int] | None, address: str) -> None:
    scope: Scope = {"type": "http", "client": client}
    assert address_of(scope) == address


def test_addresses_fill_no_memory() -> None:
    clients = Clients(1.0)
    for number in range(CAPACITY + 100):
        clients.take(f"address {number}")
    assert clients.known == CAPACITY
