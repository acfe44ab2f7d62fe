"""The load generator: closed and open loop over HTTP/1.1, and no more work than that.

    python -m loadtest.client http://127.0.0.1:8000/labels --connections 8 --seconds 5
    python -m loadtest.client http://127.0.0.1:8000/labels --rate 150 --seconds 10 --tiles FOLDER

It shares the cores with the server, so what it costs is taken from what it measures: 15 to 27
microseconds of CPU a request of 14 kB against a server that does nothing (aiohttp 125, httpx 1900
there). Where cores sleep between requests, the kernel's waking makes it about 200.

Closed loop: each of N connections sends again as soon as its answer is there. Open loop: requests
are due at Poisson times whatever the server does, and latency counts from the time a request was
due; what finds no free connection waits, and its waiting counts (no coordinated omission).
"""

import asyncio
import json
import random
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import uvloop

from loadtest.connection import Connection
from loadtest.outcome import UNANSWERED, Outcome, Summary
from loadtest.payload import Address, tile_requests
from loadtest.plan import Plan, command, plan_of
from loadtest.tiles import load_tiles

__all__ = ["Load", "Plan", "measure", "measure_apart", "run_load"]

_AGAIN_S = 0.05  # until a refused connection is tried again
# A server that closes what idles (uvicorn after 5 s) must not do so while a request is on its way.
_IDLE_S = 3.0
_SWEEP_S = 0.1  # how often it looks for requests that wait too long


class Load:
    """One load under way: `await Load(plan, requests).run()` gives its `Outcome`.

    `on_answer(status, answer)` sees the bytes of each answer (status 0: the reason), and costs
    what it costs.
    """

    def __init__(
        self,
        plan: Plan,
        requests: Sequence[bytes],
        on_answer: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """Nothing is sent yet; `requests` are whole HTTP requests (`payload.tile_requests`)."""
        self._plan, self._address = plan, Address.of(plan.url)
        self._on_answer = on_answer
        self._requests = _shuffled(requests, plan.seed)
        self._gaps = random.Random(plan.seed + 1)  # between the arrivals of an open loop
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._idle: list[Connection] = []  # last in, first out: the others may close in peace
        self._waiting: deque[float] = deque()  # when they were due
        self._next_due = self._end = 0.0
        self._broken: BaseException | None = None
        self.outcome = Outcome(warmup_s=plan.warmup_s, seconds=plan.seconds)

    async def run(self) -> Outcome:
        """Makes the load and waits for what is under way at its end."""
        cpu = time.process_time()
        plan, outcome = self._plan, self.outcome
        outcome.started = self._next_due = time.perf_counter()
        self._end = outcome.started + plan.warmup_s + plan.seconds
        if plan.rate is None:
            for _ in range(plan.connections):
                self._open()
        else:
            self._arrive()
        while (now := time.perf_counter()) < self._end + plan.drain_s:
            if now >= self._end and not self._waiting and not self._under_way:
                break
            if self._broken is not None:
                raise self._broken
            self._sweep(now - plan.timeout_s, b"no answer in time")
            await asyncio.sleep(min(_SWEEP_S, self._end - now) if now < self._end else 0.01)
        self._finish()
        outcome.cpu_s = time.process_time() - cpu
        return outcome

    def stop(self) -> None:
        """Ends the load now, as if its seconds were over."""
        self._end = min(self._end, time.perf_counter())

    @property
    def _under_way(self) -> bool:
        return any(one.sent for one in self._connections)

    def _finish(self) -> None:
        for task in self._opening:
            task.cancel()
        while self._waiting:
            now = time.perf_counter()
            self._record(self._waiting.popleft(), now, UNANSWERED, b"no connection was free")
        self._sweep(time.perf_counter() + 1, b"unfinished at the end")
        for connection in list(self._connections):
            connection.close()

    def _sweep(self, before: float, reason: bytes) -> None:
        for connection in list(self._connections):
            if connection.sent and connection.sent < before:
                connection.fail(reason)

    def _record(self, intended: float, sent: float, status: int, answer: bytes) -> None:
        self.outcome.add(intended, sent, status)
        if status == UNANSWERED:
            self.outcome.errors[answer.decode()] += 1
        if self._on_answer is not None:
            self._on_answer(status, answer)

    # --- Connections: opened beside the load, handed on when an answer is there

    def _open(self) -> None:
        task = asyncio.ensure_future(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: "asyncio.Task[None]") -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error

    async def _connect(self) -> None:
        loop, address = asyncio.get_running_loop(), self._address
        while True:
            began = time.perf_counter()
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self._answered), address.host, address.port
                )
            except OSError as error:
                due = self._waiting.popleft() if self._waiting else began
                if due < self._end:
                    self._record(due, began, UNANSWERED, type(error).__name__.encode())
                if self._over():
                    return
                await asyncio.sleep(_AGAIN_S)
                continue
            self._connections.add(connection)
            self._free(connection)
            return

    def _answered(self, connection: Connection, status: int, answer: bytes) -> None:
        intended, sent = connection.intended, connection.sent
        connection.sent = 0.0
        self._record(intended, sent, status, answer)
        if connection.usable:
            self._free(connection)
            return
        self._connections.discard(connection)
        if not self._over():
            self._open()

    def _over(self) -> bool:
        return time.perf_counter() >= self._end and not self._waiting

    def _free(self, connection: Connection) -> None:
        """Give a free connection its next request, if there is one."""
        if self._plan.rate is None:
            now = time.perf_counter()
            if now < self._end:
                connection.send(next(self._requests), now)
        elif self._waiting:
            connection.send(next(self._requests), self._waiting.popleft())
        else:
            connection.freed = time.perf_counter()
            self._idle.append(connection)

    # --- Arrivals of an open loop

    def _arrive(self) -> None:
        """Send what is due by now, and come again when the next is."""
        assert self._plan.rate is not None
        now = time.perf_counter()
        while self._next_due <= now and self._next_due < self._end:
            self._send_due(self._next_due)
            self._next_due += self._gaps.expovariate(self._plan.rate)
        if self._next_due < self._end:
            asyncio.get_running_loop().call_later(self._next_due - now, self._arrive)

    def _send_due(self, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and time.perf_counter() - connection.freed < _IDLE_S:
                connection.send(next(self._requests), due)
                return
            connection.close()
            self._connections.discard(connection)
        self._waiting.append(due)
        if len(self._connections) + len(self._opening) < self._plan.connections:
            self._open()


def _shuffled(requests: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """All requests in random order, then all again in another; without end."""
    order, generator = list(requests), random.Random(seed)
    while True:
        generator.shuffle(order)
        yield from order


async def run_load(plan: Plan, on_answer: Callable[[int, bytes], None] | None = None) -> Outcome:
    """The outcome of the plan, in the loop that runs; several may run side by side."""
    tiles = load_tiles(plan.tiles, plan.tiles_limit, plan.seed)
    requests = tile_requests(plan.url, tiles, plan.questions, plan.headers)
    return await Load(plan, requests, on_answer).run()


def measure(plan: Plan) -> Summary:
    """The figures of the plan, made in this process."""
    return uvloop.run(run_load(plan)).summary()


def measure_apart(plan: Plan) -> Summary:
    """The figures of the plan, made in a process of its own."""
    done = subprocess.run(command(plan), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator ended with {done.returncode}:\n{done.stderr}")
    return Summary(**json.loads(done.stdout))


def main(words: Sequence[str] | None = None) -> None:
    """Makes the load that the command line describes, and prints its figures as JSON."""
    print(json.dumps(measure(plan_of(words)).as_json(), indent=1))


if __name__ == "__main__":
    main()
