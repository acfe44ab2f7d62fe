"""Promotes versions of a model a hundred times under a gateway that is asked all the while.

The gateway serves a copy of the committed models in which signa has a second version, its float32
graph. `Repository.promote` and `rollback` take turns, each as soon as the gateway has followed
the one before. What has to hold: no request fails, every answer is the answer of one whole
version, and the gateway never falls silent for long.

A gateway of `--url` is given with the repository that it serves, `--repository`, which has two
versions of signa.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvloop

from loadtest.client import Load, Plan
from loadtest.follower import Follower
from loadtest.gateway import MODELS, Gateway, reached
from loadtest.jury import Jury, Seen, references, tagged
from loadtest.memory import MIB, Watch
from loadtest.outcome import Outcome, percentiles
from loadtest.scenario import Check, arguments, end, finish, show, spread, tiles_of
from loadtest.two_versions import two_versions

_MODEL = "signa"
_LONGEST_SILENCE_S = 1.0
# A version that is not let go is ten or a hundred of these after a hundred promotions.
_MEMORY_GROWTH_MB = 64.0


@dataclass(frozen=True)
class Figures:
    """What the load saw."""

    latency_ms: dict[str, float]
    rate: float
    silence_s: float  # the longest time without any answer


def figures(outcome: Outcome) -> Figures:
    """Of the answers after the warm-up."""
    begin = outcome.started + outcome.warmup_s
    done = np.frombuffer(outcome.done)
    kept = done >= begin
    latencies = (done - np.frombuffer(outcome.intended))[kept]
    times = np.sort(done[kept])
    wall = times[-1] - begin
    return Figures(
        percentiles(latencies), len(times) / wall, float(np.diff(times).max(initial=0.0))
    )


class Run:
    """The load against one gateway, and the promotions in its repository."""

    def __init__(self, gateway: Gateway, follower: Follower, given: argparse.Namespace) -> None:
        """Asks for what each version answers."""
        self._gateway, self._follower, self._given = gateway, follower, given
        tiles = tiles_of(given)
        known = references(gateway.url, follower, tiles)
        self._jury = Jury(known)
        url = f"{gateway.url}/labels"
        self._requests = tagged(url, tiles, known)
        self._plan = Plan(url=url, connections=given.connections, warmup_s=1.0)
        self.followed: list[float] = []

    @property
    def versions(self) -> list[int]:
        """Those that take turns."""
        return [self._follower.first, self._follower.second]

    @property
    def seen(self) -> Seen:
        """What the answers were so far."""
        return self._jury.seen

    def before(self) -> Figures:
        """The load when nothing changes."""
        plan = replace(self._plan, seconds=self._given.seconds)
        return figures(uvloop.run(Load(plan, self._requests, self._jury).run()))

    def during(self) -> Figures:
        """The load under change."""
        return uvloop.run(self._during())

    async def _during(self) -> Figures:
        # It goes on until the promotions are done, and they are stopped by their own patience.
        load = Load(replace(self._plan, seconds=1e6, drain_s=30), self._requests, self._jury)
        running = asyncio.ensure_future(load.run())
        try:
            await asyncio.to_thread(self._promote)
        finally:
            load.stop()
        return figures(await running)

    def _promote(self) -> None:
        time.sleep(self._plan.warmup_s)
        for number in range(self._given.promotions):
            first, second = self._follower.first, self._follower.second
            self.followed.append(self._follower.serve(first if number % 2 else second))
            # Both versions answer for a while, not only the moments of the change.
            time.sleep(self._given.pause)


@contextmanager
def _repository(given: argparse.Namespace) -> Iterator[Path]:
    if given.url is not None:
        if given.repository is None:
            raise ValueError("--url needs --repository, the folder that this gateway serves")
        yield given.repository
        return
    with tempfile.TemporaryDirectory(prefix="tilesight-reload-") as folder:
        repository = two_versions(given.repository or MODELS, Path(folder) / "models", _MODEL)
        yield repository.root


def criteria(
    run: Run, during: Figures, sizes_mb: Sequence[float], given: argparse.Namespace
) -> list[Check]:
    """What has to hold of the promotions."""
    wrong = run.seen.wrong
    versions, both = set(run.seen.by_version), run.versions
    return [
        Check(
            "promotions that the gateway followed",
            f"{len(run.followed)} in {spread(run.followed)} s",
            str(given.promotions),
            len(run.followed) == given.promotions,
        ),
        Check(
            "requests that failed or were answered by a mixture",
            f"{len(wrong)} of {run.seen.by_version.total() + len(wrong)}",
            "0",
            not wrong,
        ),
        Check("versions that answered", str(sorted(versions)), str(both), versions == set(both)),
        Check(
            "longest time without an answer",
            f"{during.silence_s:.2f} s",
            f"<= {_LONGEST_SILENCE_S:g} s",
            during.silence_s <= _LONGEST_SILENCE_S,
        ),
        _memory(sizes_mb),
    ]


def _memory(sizes_mb: Sequence[float]) -> Check:
    """The first promotions may still take what two versions need; later ones have no reason."""
    what = "memory, growth from the second quarter to the last"
    quarter = len(sizes_mb) // 4
    if not quarter:
        return Check(what, "not watched long enough on this machine", "", None)
    grown = min(sizes_mb[-quarter:]) - min(sizes_mb[quarter : 2 * quarter])
    limit = f"<= {_MEMORY_GROWTH_MB:.0f} MiB"
    return Check(what, f"{grown:+.0f} MiB", limit, grown <= _MEMORY_GROWTH_MB)


def main(words: Sequence[str] | None = None) -> int:
    """Runs it."""
    parser = arguments("reload", __doc__)
    parser.add_argument("--repository", type=Path, help="[the committed models, copied]")
    parser.add_argument("--promotions", type=int, default=100, help="[%(default)s]")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between them")
    parser.add_argument("--connections", type=int, default=8, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the load before")
    parser.add_argument(
        "--follow", type=float, default=0.1, help="TILESIGHT_FOLLOW_S of the gateway [%(default)s]"
    )
    given = parser.parse_args(words)
    with (
        _repository(given) as root,
        reached(given.url, model_repository=root, follow_s=given.follow) as gateway,
    ):
        run = Run(gateway, Follower(gateway.url, root, _MODEL), given)
        before = run.before()
        if gateway.pid is None:
            during, sizes = run.during(), []
        else:
            with Watch(gateway.pid, every_s=0.25) as watch:
                during = run.during()
            sizes = [one.rss / MIB for one in watch.samples]
    show(
        "Requests",
        [_row("nothing changes", before), _row(f"{given.promotions} promotions", during)],
    )
    print(f"answers by version: {dict(sorted(run.seen.by_version.items()))}")
    if sizes:
        print(f"memory: {sizes[0]:.0f} MiB before, at most {max(sizes):.0f}, {sizes[-1]:.0f} after")
    print(*run.seen.wrong[:3], sep="\n")
    found = {
        "before": before,
        "during": during,
        "followed_s": run.followed,
        "answers_by_version": run.seen.by_version,
        "wrong": run.seen.wrong[:20],
        "rss_mb": {"before": sizes[0], "most": max(sizes), "after": sizes[-1]} if sizes else None,
    }
    return finish(given, criteria(run, during, sizes, given), found)


def _row(name: str, one: Figures) -> dict[str, object]:
    ms = one.latency_ms
    return {
        "": name,
        "answers/s": f"{one.rate:.0f}",
        "p50 ms": f"{ms['p50']:.1f}",
        "p99 ms": f"{ms['p99']:.1f}",
        "max ms": f"{ms['max']:.0f}",
        "longest silence": f"{one.silence_s:.2f} s",
    }


if __name__ == "__main__":
    end(main)
