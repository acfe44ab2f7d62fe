"""The cells of a comparison, measured in rounds: everybody once, close together in time.

A shared machine may be twice as fast in one minute as in the next, so only figures of the same
round are divided by each other. Every other round goes the other way about.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.bare import BareProcess, Setting
from loadtest.cells import Cell, Key, Store
from loadtest.client import Plan
from loadtest.generator import Generator
from loadtest.machine import Moment, Tree
from loadtest.servers import Server

BARE = "bare"
_DRAIN_S = 3.0
_OPEN_CONNECTIONS = 256
_TOO_MUCH = 1.25  # of its own capacity: a queue that only grows says nothing more


@dataclass(frozen=True)
class Shape:
    """How much is measured."""

    concurrencies: Sequence[int]
    fractions: Sequence[float]  # of the gateway's capacity
    repeats: int
    seconds: float
    cores: int

    def count(self, servers: int) -> int:
        """How many cells that makes, those included that are beyond a server."""
        alone = len(self.alone) - 1 if 1 in self.concurrencies else 0
        closed = len(self.concurrencies) * (servers + 1) + alone
        return self.repeats * (closed + len(self.fractions) * servers)

    @property
    def alone(self) -> list[int]:
        """The threads of a run with which the bare loop is measured beside one connection."""
        return sorted({1, self.cores})


class Rounds:
    """Measures what the store does not have yet."""

    def __init__(
        self,
        store: Store,
        generator: Generator,
        bare: BareProcess,
        setting: Setting,
        servers: Sequence[Server],
        plan: Plan,
        shape: Shape,
        advance: Callable[[str], None],
    ) -> None:
        """`plan` says which tiles are sent; `advance` is told of each cell."""
        self._store, self._generator, self._bare = store, generator, bare
        self._setting, self._servers, self._plan = setting, servers, plan
        self._shape, self._advance = shape, advance

    def measure(self) -> None:
        """All rounds."""
        for repeat in range(self._shape.repeats):
            for number, concurrency in enumerate(self._shape.concurrencies):
                self._closed(concurrency, repeat, backwards=(repeat + number) % 2 == 1)
            for number, fraction in enumerate(self._shape.fractions):
                self._open(fraction, repeat, backwards=(repeat + number) % 2 == 1)

    def _closed(self, concurrency: int, repeat: int, backwards: bool) -> None:
        turns: list[tuple[Key, Callable[[], Cell]]] = []
        if concurrency == 1:
            for threads in self._shape.alone:
                one = Setting(1, threads, 1)
                turns.append((Key(BARE, "one", threads, repeat), self._bare_turn(one)))
        else:
            turns.append((Key(BARE, "closed", concurrency, repeat), self._bare_turn(self._setting)))
        for server in self._servers:
            plan = self._plan.to(server.url, connections=concurrency, rate=None)
            key = Key(server.kind.name, "closed", concurrency, repeat)
            turns.append((key, self._server_turn(server, plan)))
        self._take(turns, backwards)

    def _open(self, fraction: float, repeat: int, backwards: bool) -> None:
        capacities = {server.kind.name: self._capacity(server, repeat) for server in self._servers}
        if not capacities:
            return
        rate = fraction * capacities.get("gateway", max(capacities.values()))
        turns: list[tuple[Key, Callable[[], Cell]]] = []
        for server in self._servers:
            key = Key(server.kind.name, "open", fraction, repeat)
            if rate > _TOO_MUCH * capacities[server.kind.name]:
                self._advance(f"{server.kind.title}: {rate:.0f} a second are beyond it")
                continue
            plan = self._plan.to(
                server.url,
                connections=_OPEN_CONNECTIONS,
                rate=rate,
                seconds=1.5 * self._shape.seconds,
                drain_s=_DRAIN_S,
                seed=repeat,
            )
            turns.append((key, self._server_turn(server, plan)))
        self._take(turns, backwards)

    def _capacity(self, server: Server, repeat: int) -> float:
        found = [
            cell["goodput_rps"]
            for key, cell in self._store.cells.items()
            if (key.subject, key.kind, key.repeat) == (server.kind.name, "closed", repeat)
        ]
        return max(found, default=0.0)

    def _take(self, turns: list[tuple[Key, Callable[[], Cell]]], backwards: bool) -> None:
        # Half a round of before cannot be divided by the other half of now.
        known = all(key in self._store for key, _ in turns)
        for key, turn in reversed(turns) if backwards else turns:
            if not known:
                self._store.add(key, turn())
            self._advance(f"{key.subject}, {key.kind} {key.level:g}, repeat {key.repeat + 1}")

    def _server_turn(self, server: Server, plan: Plan) -> Callable[[], Cell]:
        return lambda: measured(server, self._generator, plan)

    def _bare_turn(self, setting: Setting) -> Callable[[], Cell]:
        return lambda: bare_measured(self._bare, setting, self._shape.seconds)


def measured(server: Server, generator: Generator, plan: Plan) -> Cell:
    """The figures of the plan, and what the server and everybody else used meanwhile."""
    server.resume()
    moment, cpu = Moment.now(), server.cpu_s()
    summary = generator.measure(plan)
    used = server.cpu_s() - cpu
    own = used + summary.client_cpu_us * 1e-6 * max(1, summary.answers)
    meanwhile = Moment.now().since(moment, own)
    rss = server.rss_mib()
    server.pause()
    return {
        **summary.as_json(),
        "rate": plan.rate,
        "cpu_ms": 1e3 * used / max(1, summary.answers),
        "rss_mib": rss,
        "at": time.time(),
        **meanwhile,
    }


def bare_measured(bare: BareProcess, setting: Setting, seconds: float) -> Cell:
    """The figures of the bare loop, in the same form."""
    moment, tree = Moment.now(), Tree(bare.pid)
    cpu = tree.cpu_s()
    found: dict[str, Any] = bare.loop(setting, seconds)
    meanwhile = Moment.now().since(moment, tree.cpu_s() - cpu)
    return {
        **found,
        "goodput_rps": found["throughput_rps"],
        "setting": str(setting),
        "rss_mib": tree.rss_mib(),
        "at": time.time(),
        **meanwhile,
    }
