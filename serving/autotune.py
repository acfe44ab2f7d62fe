"""Sessions x threads x batch: what runs a model fastest here, found by a short measurement."""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving.repository import Bundle
from serving.sessions import Session, Stop
from serving.stations import Plan
from serving.ways import Way
from tilesight.errors import BundleError
from tilesight.files import write_text
from tilesight.golden import golden_inputs
from tilesight.locks import held

log = logging.getLogger("tilesight.autotune")

_CACHE_NAME = "autotune.json"
_CELL_S = 0.06
_BEHIND, _FAR = 1.25, 1.5
# A larger batch makes each of its tiles wait for the others: it has to be worth it. But one that
# is as fast is worth it up to a size: its tiles change hands together, which is not seen here.
_BATCH_WORTH = 1.05
_AS_FAST, _TOGETHER = 0.97, 4
# A run on several cores has them wait for one another, and for whoever decodes the next tile.
_THREADS_WORTH = 1.15
_SOONER = 1.15
_BATCHES = (1, 2, 4, 8)
# Of the rules above: a plan that was found by others is not used.
_RULES = 2


def untuned(way: str, cores: int, max_batch: int) -> Plan:
    """A plan without a measurement: on CPUs, single threads side by side lose least."""
    return Plan(way, sessions=cores, threads=1, batch=min(_TOGETHER, max_batch))


class Cache:
    """The plans found on this machine, kept in a file; one that cannot be used is done without."""

    def __init__(self, folder: Path) -> None:
        """A cache in the folder, which is made when something is kept."""
        self._path = folder / _CACHE_NAME

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block in which no other process measures: each would see the other's load."""
        with ExitStack() as stack:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(self._path.with_suffix(".lock")))
            except (OSError, BundleError) as error:
                log.info("measures beside others, if there are any", extra={"reason": str(error)})
            yield

    def get(self, key: str) -> Plan | None:
        """The plan that was kept under the key."""
        try:
            return Plan(**self._all()[key])
        except (KeyError, TypeError):
            return None

    def keep(self, key: str, plan: Plan) -> None:
        """Keeps the plan."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(self._all() | {key: asdict(plan)}, indent=1))
        except OSError as error:
            log.info("plan not kept: found again at the next start", extra={"reason": str(error)})

    def _all(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def cache_key(bundle: Bundle[Any], ways: Iterable[Way], cores: int, max_batch: int) -> str:
    """What a plan depends on: rules, graph, libraries, processor, and how much of it is ours."""
    known = [f"{way.name} {way.version}" for way in ways]
    parts = [f"rules {_RULES}", bundle.manifest.digest, *known, _cpu(), str(cores), str(max_batch)]
    return "|".join(parts)


def tuned(
    bundle: Bundle[Any], ways: Iterable[Way], cores: int, max_batch: int, seconds: float
) -> tuple[Plan, float]:
    """The plan of the most rows a second, and that figure; blocks for about so many seconds.

    First single rows decide which ways are worth a look, then batches grow as long as that helps,
    and at last whoever is left takes turns. The best time of each counts: whatever else the
    machine does can only make it slower.
    """
    until = time.monotonic() + seconds
    first = _hopeful([_Trial(bundle, way, 1, cores, 1) for way in ways], _FAR)
    every = [trial for one in first for trial in _grown(bundle, one, cores, max_batch)]
    trials = every
    singles = [trial for trial in every if trial.plan.batch == 1]
    while True:
        # What is far behind will not win; the time is better spent on the others.
        trials = _hopeful(trials, _BEHIND)
        if time.monotonic() >= until:
            break
        # Single rows go on: how soon one is answered alone is another question.
        for trial in dict.fromkeys([*trials, *singles]):
            trial.run()
    chosen, *others = sorted(trials, key=lambda one: (one.plan.threads, one.plan.batch))
    for trial in others:
        if trial.rate > chosen.rate * _worth(trial.plan, chosen.plan):
            chosen = trial
    alone = [one for one in singles if one.plan.way == chosen.plan.way]
    return replace(chosen.plan, lone=_soonest(alone, chosen.plan.threads)), chosen.rate


def _worth(plan: Plan, other: Plan) -> float:
    """How many times as fast as the other the plan has to be."""
    threads = _THREADS_WORTH if plan.threads > other.threads else 1.0
    if plan.batch <= other.batch:
        return threads
    return threads * (_AS_FAST if plan.batch <= _TOGETHER else _BATCH_WORTH)


def _hopeful(trials: list["_Trial"], factor: float) -> list["_Trial"]:
    """Those that are not behind the fastest by more than the factor."""
    fastest = max(trial.rate for trial in trials)
    return [trial for trial in trials if trial.rate * factor >= fastest]


def _grown(bundle: Bundle[Any], single: "_Trial", cores: int, max_batch: int) -> Iterator["_Trial"]:
    """The way of the trial with other threads, and with batches up to where they help no more."""
    for threads in _divisors(cores):
        last = single if threads == 1 else _Trial(bundle, single.way, threads, cores, 1)
        yield last
        for batch in (size for size in _BATCHES if 1 < size <= max_batch):
            larger = _Trial(bundle, single.way, threads, cores, batch, last.sessions)
            yield larger
            if larger.rate < _AS_FAST * last.rate:
                break
            last = larger


def _soonest(trials: Sequence["_Trial"], threads: int) -> int:
    """The threads with which one row is answered soonest; more than the plan's have to be worth it.

    Runs side by side slow one another down, so this tells too little of a run that is alone.
    """
    seconds = {one.plan.threads: one.plan.sessions / one.rate for one in trials}
    best = min(seconds, key=lambda count: seconds[count], default=threads)
    return best if seconds.get(best, 0) * _SOONER < seconds.get(threads, 0) else threads


class _Trial:
    """A plan, and the most rows a second that it was seen to run."""

    def __init__(
        self,
        bundle: Bundle[Any],
        way: Way,
        threads: int,
        cores: int,
        batch: int,
        sessions: list[Session] | None = None,
    ) -> None:
        self.way = way
        self.plan = Plan(way.name, cores // threads, threads, batch)
        self.rate = 0.0
        self.sessions = sessions or way.open(threads, cores // threads)
        self._names = [spec.name for spec in bundle.manifest.outputs]
        golden = golden_inputs(bundle.manifest)
        self._inputs = {name: np.repeat(one, batch, axis=0) for name, one in golden.items()}
        self.sessions[0].run(self._names, self._inputs, Stop())
        self.run()

    def run(self) -> None:
        """All its sessions side by side for a moment."""
        counts = [0] * len(self.sessions)
        started = time.monotonic()

        def work(index: int) -> None:
            while not counts[index] or time.monotonic() - started < _CELL_S:
                self.sessions[index].run(self._names, self._inputs, Stop())
                counts[index] += self.plan.batch

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.rate = max(self.rate, sum(counts) / (time.monotonic() - started))


def _divisors(cores: int) -> Iterator[int]:
    """1, 2, 4, ... threads: those that share the cores out without a rest."""
    threads = 1
    while threads <= cores:
        if cores % threads == 0:
            yield threads
        threads *= 2


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_folder(given: Path | None) -> Path:
    """Where plans are kept: as set, or where the desktop's standard has caches."""
    if given:
        return given
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tilesight"
