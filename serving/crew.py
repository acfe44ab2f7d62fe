"""Threads that decode tiles and run models, whichever is due: one crew a lane.

There is no thread that only collects a batch: whoever decoded the last tile that waited runs the
model on all that are ready. So a lone tile never changes threads, tiles that arrive while all
threads are busy are run together, and nothing waits while a core is idle.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from serving.errors import OverloadedError
from serving.jobs import Job, Row, TileJob, Values, deliver
from serving.metrics import Metrics
from serving.run import Run
from serving.sessions import Session
from serving.stations import Station
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.crew")

RETRY_S = 1
# A crew that goes second begins something this often however busy the first one is.
_AT_LEAST_EVERY_S = 0.1
# So long no row gets all cores after one had to wait for a row that did: two clients that take
# turns would each wait for the other's run, where a core for each answers both at once.
_COMPANY_S = 0.1


class Crew:
    """The threads of one lane and what waits for them; all of it under one lock."""

    def __init__(
        self,
        lane: str,
        cores: int,
        metrics: Metrics,
        *,
        threads: int,
        nice: int = 0,
        max_delay_s: float = 0.0,
        max_wait_s: float = float("inf"),
        first: "Crew | None" = None,
    ) -> None:
        """A crew that has not begun; runs of models share the cores, decoding takes what is left.

        Args:
            lane: what its threads are called.
            cores: how many threads of runs may be busy at the same time.
            metrics: told the size of each batch.
            threads: of this crew, for decoding and for running.
            nice: how far its threads stand back behind the others of this machine.
            max_delay_s: how long a decoded tile waits for others that are still to be decoded.
            max_wait_s: what has waited longer is given up before it costs anything.
            first: a crew that goes first: while it is at work, this one hardly begins anything.
        """
        self.lane = lane
        self.metrics = metrics
        self.nice = nice
        self._max_delay_s = max_delay_s
        self._max_wait_s = max_wait_s
        self._due = threading.Condition(threading.Lock())
        self._tiles: deque[Row] = deque()
        self._stations: list[Station] = []
        self._cores = self._all_cores = cores
        self._closed = False
        self._awake = 0  # threads that do not wait for something to do
        self._begun_s = 0.0
        self._one_alone = False  # whether a run has the machine for itself
        self._company_s = -_COMPANY_S  # when a row last came during such a run
        self._first = first
        self._second: Crew | None = None
        if first:
            first._second = self
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"{lane}-{number}", daemon=True)
            for number in range(threads)
        ]

    def open(self, station: Station) -> None:
        """From now on jobs may name the station."""
        with self._due:
            self._stations.append(station)

    def shut(self, station: Station) -> None:
        """Forgets the station; rows that are being run end first."""
        with self._due:
            self._stations.remove(station)

    def put(self, job: Job) -> None:
        """Begins with the job; called in the event loop in which its future is."""
        if self._loop is None:
            self._loop = job.future.get_loop()
            self._awake = len(self._threads)
            for thread in self._threads:
                thread.start()
        rows = job.rows()
        with self._due:
            if self._one_alone:
                self._company_s = time.monotonic()
            if isinstance(job, TileJob):
                self._tiles.extend(rows)
                if job.station:
                    job.station.undecoded += len(rows)
            elif job.station:
                job.station.ready.extend(rows)
            self._due.notify(len(rows))

    async def finish(self, job: Job) -> list[Values]:
        """What became of each row; a job that nobody waits for any more is given up.

        Raises:
            TilesightError: a tile cannot be decoded, or was not begun in time.
            Exception: as the model's library raises it.
        """
        self.put(job)
        try:
            await job.future
        finally:
            if not job.future.done() or job.future.cancelled():
                self.cancel(job)
        return job.results

    def cancel(self, job: Job) -> None:
        """Nobody waits for the job: what has not begun is not begun, and its runs are stopped."""
        with self._due:
            job.cancelled = True
            runs, job.runs = job.runs, set()
        for stop in runs:
            stop()

    def oldest_s(self) -> float:
        """How long the row that has waited longest has waited."""
        with self._due:
            waiting = [self._tiles[0]] if self._tiles else []
            waiting += [station.ready[0] for station in self._stations if station.ready]
        if not waiting:
            return 0.0
        return time.monotonic() - min(row.job.submitted_s for row in waiting)

    @property
    def at_work(self) -> bool:
        """Whether anything waits, is decoded or is run here; as good as a look without the lock."""
        return bool(self._awake) or self._waiting()

    def close(self) -> None:
        """Its threads end with what they are doing."""
        with self._due:
            self._closed = True
            self._due.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    # --- In the threads

    def _work(self) -> None:
        if self.nice:
            # Of this thread alone, on Linux; threads that a session starts here inherit it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.nice)
        while True:
            with self._due:
                while (due := self._next()) is None:
                    if self._closed:
                        return
                    self._rest()
            # A fault in here would cost a thread for good, and its job would never end.
            try:
                if isinstance(due, Row):
                    self._decode(due)
                else:
                    due.run()
            except Exception as error:
                log.error("a job failed", exc_info=error)
                self.fail([due] if isinstance(due, Row) else due.rows, error)
            # While the thread waits it must not keep a version that is dropped meanwhile.
            due = None

    def _rest(self) -> None:
        """Waits until there may be something to do; under the lock."""
        self._awake -= 1
        if not self._awake and self._second:
            self._second.go_on()
        self._due.wait(_AT_LEAST_EVERY_S if self._first and self._waiting() else None)
        self._awake += 1

    def go_on(self) -> None:
        """The crew that goes first has nothing more to do."""
        with self._due:
            # Else each request of the first crew would wake all threads of this one for nothing.
            if self._waiting():
                self._due.notify_all()

    def _waiting(self) -> bool:
        return bool(self._tiles or any(station.ready for station in self._stations))

    def _next(self) -> Row | Run | None:
        """The next tile to decode or batch to run; under the lock."""
        if self._first and self._waiting():
            now = time.monotonic()
            if self._first.at_work and now - self._begun_s < _AT_LEAST_EVERY_S:
                return None
            self._begun_s = now
        while True:
            station = self._runnable()
            if station and self._complete(station):
                if rows := self._take(station):
                    return self._begin(station, rows)
                continue
            if self._tiles:
                row = self._tiles.popleft()
                if row.job.station:
                    row.job.station.undecoded -= 1
                if self._wanted(row):
                    self._wake()
                    return row
                continue
            return None

    def _runnable(self) -> Station | None:
        """The station with the row of the oldest request, if there is room to run it."""
        waiting = [station for station in self._stations if station.ready]
        if not waiting:
            return None
        # By the request, not by the job: what is half done is ended before others are begun.
        first = min(waiting, key=lambda station: station.ready[0].job.asked_s)
        # A run of many threads is not overtaken for ever by runs of few: the cores wait for it.
        return first if first.free and first.plan.threads <= self._cores else None

    def _complete(self, station: Station) -> bool:
        """Whether the batch is full, or nothing that could join it is worth waiting for."""
        return (
            len(station.ready) >= station.share
            or not station.undecoded
            or time.monotonic() - station.ready[0].ready_s >= self._max_delay_s
        )

    def _take(self, station: Station) -> list[Row]:
        """The next batch, without the rows that nobody waits for."""
        rows: list[Row] = []
        size = station.share
        while station.ready and len(rows) < size:
            row = station.ready.popleft()
            if self._wanted(row):
                rows.append(row)
        return rows

    def _wanted(self, row: Row) -> bool:
        job, now = row.job, time.monotonic()
        if job.cancelled or job.failure or now >= job.deadline_s:
            return False
        if now - job.submitted_s > self._max_wait_s:
            error = OverloadedError(
                f"not begun within {self._max_wait_s:g} s",
                limit=self._max_wait_s,
                retry_after=RETRY_S,
            )
            job.failure = error
            self._tell([job])
            return False
        return True

    def _begin(self, station: Station, rows: list[Row]) -> Run:
        run = self._alone(station, rows) or Run(
            self, station, station.free.pop(), rows, station.plan.threads
        )
        self._cores -= run.threads
        for row in rows:
            row.job.runs.add(run.stop)
        self._wake()
        return run

    def _alone(self, station: Station, rows: list[Row]) -> Run | None:
        """A run on all cores, for a row that nothing else runs, is decoded or waits beside."""
        if station.lone is None or len(rows) > 1 or self._cores < self._all_cores:
            return None
        # This thread is awake; another one that is decodes a tile.
        if self._waiting() or self._awake > 1:
            return None
        if time.monotonic() - self._company_s < _COMPANY_S:
            return None
        self._one_alone = True
        return Run(self, station, station.lone, rows, self._all_cores)

    def _wake(self) -> None:
        """Another thread may find something to do as well."""
        if self._waiting():
            self._due.notify()

    def _decode(self, row: Row) -> None:
        job = row.job
        assert isinstance(job, TileJob)
        data, job.data[row.index] = job.data[row.index], None
        assert data is not None
        row.decoding_s = time.monotonic()
        try:
            tile = job.decode(data)
        except TilesightError as error:
            self.fail([row], _of_image(error, row.index, len(job.results)))
            return
        row.decoded_s = row.ready_s = time.monotonic()
        row.inputs[job.tile_name] = tile.pixels
        with self._due:
            job.tiles[row.index] = tile
            if job.station:
                job.station.ready.append(row)
                return
        self.done([row], [{job.tile_name: tile.pixels}], row.decoded_s)

    def ended(self, station: Station, session: Session, threads: int) -> None:
        """A run has given back its cores."""
        with self._due:
            if session is station.lone:
                self._one_alone = False
            else:
                station.free.append(session)
            self._cores += threads
            self._wake()

    def done(self, rows: Sequence[Row], values: Sequence[Values], ended_s: float) -> None:
        """Hands out what the rows became; the jobs that are complete are told, all at once."""
        finished: list[Job] = []
        with self._due:
            # What an answer brings at once, as a tile's code brings its questions, is no company.
            self._one_alone = False
            for row, found in zip(rows, values, strict=True):
                job = row.job
                job.results[row.index] = found
                job.missing -= 1
                if not job.missing and not job.failure:
                    job.timed(row, ended_s)
                    finished.append(job)
        self._tell(finished)

    def fail(self, rows: Sequence[Row], error: Exception) -> None:
        """The jobs of these rows end with the error, each of them once."""
        failed: list[Job] = []
        with self._due:
            for row in rows:
                if not row.job.failure:
                    row.job.failure = error
                    failed.append(row.job)
        self._tell(failed)

    def _tell(self, jobs: list[Job]) -> None:
        if not jobs or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(deliver, jobs)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            log.debug("answers for a loop that is closed")


def _of_image(error: TilesightError, index: int, count: int) -> TilesightError:
    """The error, told of which image it is where there are several."""
    if count == 1:
        return error
    return error.told(f"image {index + 1} of {count}: {error}")
