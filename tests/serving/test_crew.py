"""What a crew makes of many jobs: batches, their bounds, and what is not done at all."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import crew as crew_module
from serving.crew import Crew
from serving.errors import ModelOutputError, OverloadedError
from serving.jobs import Ask, Job, TileJob
from serving.lanes import INTERACTIVE, Lanes
from serving.metrics import Metrics
from serving.sessions import Session, Stop
from serving.stations import Plan, Station
from serving.timing import Timing
from tests.serving.gateway import settings_for
from tilesight.cores import usable_cores
from tilesight.errors import UndecodableImageError

pytestmark = pytest.mark.anyio


class Doubling:
    """A session that doubles its rows, when it is let; notes each batch and who ran it."""

    provider = "test"

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[float]] = []
        self.nice: list[int] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.stopped = threading.Event()
        if not held:
            self.go.set()

    def run(
        self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]], stop: Stop
    ) -> list[NDArray[Any]]:
        stop.arm(self.stopped.set)
        rows = inputs["x"]
        self.batches.append(rows.tolist())
        self.nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self.begun.set()
        while not self.go.wait(0.005):
            if self.stopped.is_set():
                raise RuntimeError("stopped")
        if (rows == 13).any():
            raise RuntimeError("thirteen")
        return [np.where(rows == 7, np.nan, rows * 2.0)]


class Pixels:
    def __init__(self, value: float) -> None:
        self.pixels = np.array(value)


def crew_of(session: Doubling, plan: Plan, **options: float | Crew) -> tuple[Crew, Station]:
    crew = Crew("test", 2, Metrics(), **{"threads": 2, **options})
    station = Station("model", plan, [session] * plan.sessions)
    crew.open(station)
    return crew, station


def job(station: Station, *values: float, seconds: float = 60) -> Job:
    ask = Ask("test", time.monotonic() + seconds, Timing())
    return Job(station, ["y"], [{"x": np.array(value)} for value in values], ask)


def tiles(
    station: Station | None, *values: float, decode: Callable[[bytes], Pixels] | None = None
) -> TileJob:
    def read(data: bytes) -> Pixels:
        return Pixels(float(data))

    data = [str(value).encode() for value in values]
    ask = Ask("test", time.monotonic() + 60, Timing())
    return TileJob(station, ["y"], data, decode or read, "x", {}, ask)


async def found(crew: Crew, wanted: Job) -> list[float]:
    return [float(row["y"]) for row in await crew.finish(wanted)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def test_jobs_of_several_requests_run_as_one_batch_and_come_back_apart() -> None:
    session = Doubling(held=True)
    crew, station = crew_of(session, Plan("way", 1, 1, 8))
    first = asyncio.create_task(found(crew, job(station, 1)))
    await until(session.begun.is_set)
    others = [asyncio.create_task(found(crew, job(station, value))) for value in (2, 3, 4)]
    both = asyncio.create_task(found(crew, job(station, 5, 6)))
    await until(lambda: len(station.ready) == 5)
    session.go.set()
    assert await first == [2]
    assert [await one for one in others] == [[4], [6], [8]]
    assert await both == [10, 12]
    assert session.batches == [[1], [2, 3, 4, 5, 6]]
    crew.close()


@pytest.mark.parametrize(("apart", "sizes"), [(True, [3, 1, 1]), (False, [5])])
async def test_what_waits_is_shared_out_among_the_sessions(apart: bool, sizes: list[int]) -> None:
    session = Doubling(held=True)
    crew, station = crew_of(session, Plan("way", 2, 1, 8, apart=apart))
    crew._cores = 0  # nothing can begin until all of it waits
    rows = asyncio.create_task(found(crew, job(station, 1, 2, 3, 4, 5)))
    await until(lambda: len(station.ready) == 5)
    with crew._due:
        crew._cores = 2
        crew._due.notify()
    await until(lambda: len(session.batches) == min(2, len(sizes)))
    session.go.set()
    assert await rows == [2, 4, 6, 8, 10]
    assert [len(batch) for batch in session.batches] == sizes
    crew.close()


async def test_no_batch_is_larger_than_planned_and_a_job_may_span_several() -> None:
    session = Doubling()
    crew, station = crew_of(session, Plan("way", 1, 1, 3))
    assert await found(crew, job(station, *range(20, 30))) == [2 * x for x in range(20, 30)]
    assert max(len(batch) for batch in session.batches) == 3
    crew.close()


async def test_tiles_that_wait_are_decoded_first_and_run_together() -> None:
    session = Doubling()
    crew, station = crew_of(session, Plan("way", 1, 1, 4), threads=1, max_delay_s=60)
    assert await found(crew, tiles(station, 1, 2, 3, 4, 5, 6)) == [2, 4, 6, 8, 10, 12]
    assert session.batches == [[1, 2, 3, 4], [5, 6]]
    crew.close()


async def test_a_decoded_tile_waits_no_longer_than_the_delay() -> None:
    session = Doubling()
    crew, station = crew_of(session, Plan("way", 1, 1, 4), threads=1, max_delay_s=0)
    assert await found(crew, tiles(station, 1, 2, 3)) == [2, 4, 6]
    assert session.batches == [[1], [2], [3]]
    crew.close()


async def test_one_bad_tile_harms_no_other_request() -> None:
    session = Doubling()
    crew, station = crew_of(session, Plan("way", 1, 1, 4), threads=1, max_delay_s=60)

    def read(data: bytes) -> Pixels:
        if data == b"9":
            raise UndecodableImageError("damaged")
        return Pixels(float(data))

    good = asyncio.create_task(found(crew, tiles(station, 1, 2)))
    bad = asyncio.create_task(found(crew, tiles(station, 3, 9, decode=read)))
    alone = asyncio.create_task(found(crew, tiles(station, 9, decode=read)))
    assert await good == [2, 4]
    with pytest.raises(UndecodableImageError, match=r"^image 2 of 2: damaged$"):
        await bad
    with pytest.raises(UndecodableImageError, match=r"^damaged$"):
        await alone
    crew.close()


@pytest.mark.parametrize(("poison", "kind"), [(13, RuntimeError), (7, ModelOutputError)])
async def test_one_row_that_the_model_cannot_run_harms_no_other(
    poison: int, kind: type[Exception]
) -> None:
    session = Doubling(held=True)
    crew, station = crew_of(session, Plan("way", 1, 1, 8))
    first = asyncio.create_task(found(crew, job(station, 1)))
    await until(session.begun.is_set)
    good = asyncio.create_task(found(crew, job(station, 2)))
    bad = asyncio.create_task(found(crew, job(station, 3, poison)))
    await until(lambda: len(station.ready) == 3)
    session.go.set()
    assert (await first, await good) == ([2], [4])
    with pytest.raises(kind):
        await bad
    assert await found(crew, job(station, 5)) == [10]
    crew.close()


async def test_what_is_late_or_left_is_dropped_before_it_costs_anything() -> None:
    session = Doubling(held=True)
    crew, station = crew_of(session, Plan("way", 1, 1, 8), threads=1)
    decoded: list[bytes] = []

    def read(data: bytes) -> Pixels:
        decoded.append(data)
        return Pixels(float(data))

    first = asyncio.create_task(found(crew, job(station, 1)))
    await until(session.begun.is_set)
    late = asyncio.create_task(found(crew, job(station, 2, seconds=0.01)))
    left = asyncio.create_task(found(crew, tiles(station, 3, decode=read)))
    stays = asyncio.create_task(found(crew, job(station, 4)))
    await until(lambda: len(station.ready) == 2 and len(crew._tiles) == 1)
    left.cancel()
    await asyncio.sleep(0.02)
    session.go.set()
    assert (await first, await stays) == ([2], [8])
    assert (session.batches, decoded) == ([[1], [4]], [])
    assert not late.done()
    late.cancel()
    crew.close()


async def test_a_run_stops_when_the_last_that_wanted_it_has_left() -> None:
    session = Doubling(held=True)
    crew, station = crew_of(session, Plan("way", 1, 1, 8), threads=1)
    first = asyncio.create_task(found(crew, job(station, 0)))
    await until(session.begun.is_set)
    waiting = [asyncio.create_task(found(crew, job(station, value))) for value in (1, 2)]
    await until(lambda: len(station.ready) == 2)
    first.cancel()
    await until(lambda: len(session.batches) == 2)
    session.stopped.clear()
    waiting[0].cancel()
    await asyncio.sleep(0.05)
    assert not session.stopped.is_set(), "the other one still waits"
    waiting[1].cancel()
    await until(session.stopped.is_set)
    session.go.set()
    assert await found(crew, job(station, 5)) == [10]
    crew.close()


async def test_what_waits_too_long_is_given_up_as_overload() -> None:
    session = Doubling(held=True)
    crew, station = crew_of(session, Plan("way", 1, 1, 8), threads=1, max_wait_s=0.05)
    first = asyncio.create_task(found(crew, job(station, 1)))
    await until(session.begun.is_set)
    second = asyncio.create_task(found(crew, job(station, 2)))
    await until(lambda: crew.oldest_s() > 0.06)
    session.go.set()
    assert await first == [2]
    with pytest.raises(OverloadedError) as failure:
        await second
    assert failure.value.extensions["limit"] == 0.05
    assert session.batches == [[1]]
    crew.close()


async def test_a_crew_that_stands_back_does_so_in_its_runs() -> None:
    session = Doubling()
    crew, station = crew_of(session, Plan("way", 1, 1, 8), nice=19)
    await found(crew, job(station, 1))
    assert session.nice == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19
    crew.close()


async def test_a_crew_hardly_begins_anything_while_the_one_that_goes_first_is_at_work() -> None:
    served, filled = Doubling(held=True), Doubling()
    people, station = crew_of(served, Plan("way", 1, 1, 1))
    backfill, behind = crew_of(filled, Plan("way", 2, 1, 1), first=people)
    asked = asyncio.create_task(found(people, job(station, 1)))
    await until(served.begun.is_set)
    rows = asyncio.create_task(found(backfill, job(behind, *range(20, 100))))
    await asyncio.sleep(0.5)
    # It is never starved, but it could have run all of them a hundred times.
    assert 1 <= len(filled.batches) <= 7
    served.go.set()
    assert await asked == [2]
    async with asyncio.timeout(5):  # at that pace they would take seven seconds
        assert await rows == [2 * value for value in range(20, 100)]
    backfill.close()
    people.close()


async def test_runs_of_many_threads_keep_to_the_cores() -> None:
    session = Doubling(held=True)
    crew, narrow = crew_of(session, Plan("way", 2, 1, 1), threads=3)
    wide_session = Doubling()
    wide = Station("wide", Plan("way", 1, 2, 1), [wide_session])
    crew.open(wide)
    first = asyncio.create_task(found(crew, job(narrow, 1)))
    await until(session.begun.is_set)
    second = asyncio.create_task(found(crew, job(wide, 2)))
    third = asyncio.create_task(found(crew, job(narrow, 3)))
    await asyncio.sleep(0.05)
    assert (session.batches, wide_session.batches) == ([[1]], [])
    session.go.set()
    assert (await first, await second, await third) == ([2], [4], [6])
    crew.close()


async def test_what_is_half_done_is_ended_before_others_are_begun() -> None:
    """A request's second job goes before the first one of a request that came later."""
    session = Doubling(held=True)
    crew, encoder = crew_of(session, Plan("way", 1, 1, 1), threads=1)
    head = Station("head", Plan("way", 1, 1, 1), [session])
    crew.open(head)
    early = Ask("test", time.monotonic() + 60, Timing())
    running = asyncio.create_task(found(crew, job(encoder, 1)))
    await until(session.begun.is_set)
    later = asyncio.create_task(found(crew, job(encoder, 2)))
    await until(lambda: len(encoder.ready) == 1)
    second = Job(head, ["y"], [{"x": np.array(3)}], early)
    half_done = asyncio.create_task(found(crew, second))
    await until(lambda: len(head.ready) == 1)
    session.go.set()
    assert (await running, await later, await half_done) == ([2], [4], [6])
    assert session.batches == [[1], [3], [2]]
    crew.close()


async def test_as_many_runs_as_were_set_by_hand(shared_repository: Path) -> None:
    """Also where that is more than cores: runs that wait for a GPU need none."""
    count = usable_cores() + 3
    lanes = Lanes(settings_for(shared_repository, sessions=count, threads=1), Metrics())
    session = Doubling(held=True)
    station = Station("model", Plan("way", count, 1, 1), [session] * count)
    crew = lanes[INTERACTIVE].crew
    crew.open(station)
    rows = asyncio.create_task(found(crew, job(station, *range(20, 20 + count))))
    await until(lambda: len(session.batches) == count)
    session.go.set()
    assert await rows == [2 * value for value in range(20, 20 + count)]
    lanes.close()


async def test_a_row_that_is_alone_gets_all_cores_and_others_wait_for_them() -> None:
    shared, lone = Doubling(), Doubling(held=True)
    crew = Crew("test", 2, Metrics(), threads=3)
    station = Station("model", Plan("way", 2, 1, 4, lone=2, apart=False), [shared, shared], lone)
    crew.open(station)
    first = asyncio.create_task(found(crew, job(station, 1)))
    await until(lone.begun.is_set)
    both = asyncio.create_task(found(crew, job(station, 2, 3)))
    await asyncio.sleep(0.05)
    assert shared.batches == []
    lone.go.set()
    assert (await first, await both) == ([2], [4, 6])
    assert (lone.batches, shared.batches) == ([[1]], [[2, 3]])
    shared.begun.clear()
    shared.go.clear()
    several = asyncio.create_task(found(crew, job(station, 4, 5)))
    await until(shared.begun.is_set)
    beside = asyncio.create_task(found(crew, job(station, 6)))
    await until(lambda: len(shared.batches) == 3)
    shared.go.set()
    assert (await several, await beside) == ([8, 10], [12])
    assert lone.batches == [[1]], "another run held a core"
    # A run is answered before it gives its cores back.
    await until(lambda: not crew.at_work)
    await asyncio.sleep(2 * crew_module._COMPANY_S)
    assert await found(crew, job(station, 7.5)) == [15]
    assert lone.batches == [[1], [7.5]]
    crew.close()


async def test_a_row_that_another_had_to_wait_for_is_followed_by_rows_of_a_core_each() -> None:
    shared, lone = Doubling(), Doubling(held=True)
    crew = Crew("test", 2, Metrics(), threads=2)
    station = Station("model", Plan("way", 2, 1, 1, lone=2), [shared, shared], lone)
    crew.open(station)
    first = asyncio.create_task(found(crew, job(station, 1)))
    await until(lone.begun.is_set)
    second = asyncio.create_task(found(crew, job(station, 2)))
    await until(lambda: len(station.ready) == 1)
    lone.go.set()
    assert (await first, await second) == ([2], [4])
    # Whoever asks next is likely to have company again.
    for value in (3, 4):
        await until(lambda: not crew.at_work)
        assert await found(crew, job(station, value)) == [2 * value]
    assert (lone.batches, shared.batches) == ([[1]], [[2], [3], [4]])
    crew.close()


async def test_what_an_answer_brings_at_once_is_no_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, lone = Doubling(), Doubling()
    crew = Crew("test", 2, Metrics(), threads=2)
    station = Station("model", Plan("way", 2, 1, 1, lone=2), [shared, shared], lone)
    crew.open(station)
    told, go = threading.Event(), threading.Event()
    ended = crew.ended

    def later(station: Station, session: Session, threads: int) -> None:
        """The next row comes before the run has given its cores back."""
        told.set()
        go.wait(20)
        ended(station, session, threads)

    monkeypatch.setattr(crew, "ended", later)
    assert await found(crew, job(station, 1)) == [2]
    await until(told.is_set)
    second = asyncio.create_task(found(crew, job(station, 2)))
    await until(lambda: len(station.ready) == 1)
    go.set()
    assert await second == [4]
    await until(lambda: not crew.at_work)
    assert await found(crew, job(station, 3)) == [6]
    assert [3] in lone.batches
    crew.close()


async def test_a_row_is_not_alone_while_another_tile_is_decoded() -> None:
    shared, lone = Doubling(), Doubling()
    crew = Crew("test", 2, Metrics(), threads=2)
    station = Station("model", Plan("way", 2, 1, 1, lone=2), [shared, shared], lone)
    crew.open(station)
    begun, go = threading.Event(), threading.Event()

    def slow(data: bytes) -> Pixels:
        begun.set()
        go.wait(20)
        return Pixels(float(data))

    other = asyncio.create_task(found(crew, tiles(station, 1, decode=slow)))
    await until(begun.is_set)
    assert await found(crew, job(station, 2)) == [4]
    assert (lone.batches, shared.batches) == ([], [[2]])
    go.set()
    assert await other == [2]
    crew.close()


async def test_a_job_says_where_its_time_went() -> None:
    session = Doubling()
    crew, station = crew_of(session, Plan("way", 1, 1, 4), threads=1, max_delay_s=60)

    def slow(data: bytes) -> Pixels:
        time.sleep(0.02)
        return Pixels(float(data))

    wanted = tiles(station, 1, 2, decode=slow)
    started = time.monotonic()
    await found(crew, wanted)
    whole = time.monotonic() - started
    timing = wanted.timing
    assert timing.decode >= 0.02
    assert timing.queue >= 0.02, "the second tile waited for the first"
    assert timing.decode + timing.queue + timing.infer <= whole
    crew.close()


async def test_without_a_station_the_tiles_come_back_decoded() -> None:
    crew = Crew("test", 2, Metrics(), threads=2)
    wanted = tiles(None, 1, 2)
    assert [row["x"] for row in await crew.finish(wanted)] == [1, 2]
    assert [tile.pixels for tile in wanted.tiles] == [1, 2]
    crew.close()
