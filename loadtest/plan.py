"""What a load is to be, in Python and as the words of a command line."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send and how: `connections` alone is a closed loop, `rate` makes it an open one."""

    url: str
    connections: int = 8  # in an open loop the most that may be open at once
    rate: float | None = None  # requests a second, Poisson
    seconds: float = 5.0  # measured, after the warm-up
    warmup_s: float = 0.5
    timeout_s: float = 30.0  # a request without an answer counts as lost
    drain_s: float = 5.0  # what is under way at the end gets
    tiles: Path | None = None  # a folder; None: generated tiles
    tiles_limit: int = 256
    questions: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def to(self, url: str, **changes: Any) -> "Plan":  # noqa: ANN401 (of other fields)
        """The same for another address, with changes."""
        return replace(self, url=url, **changes)


def command(plan: Plan) -> list[str]:
    """The command line that makes this plan in a process of its own."""
    words = [sys.executable, "-m", "loadtest.client", plan.url]
    for name in ("connections", "seconds", "warmup_s", "timeout_s", "drain_s", "seed"):
        words += [f"--{name.removesuffix('_s')}", str(getattr(plan, name))]
    words += ["--tiles-limit", str(plan.tiles_limit)]
    words += ["--rate", str(plan.rate)] if plan.rate is not None else []
    words += ["--tiles", str(plan.tiles)] if plan.tiles is not None else []
    words += [word for question in plan.questions for word in ("--question", question)]
    for name, value in plan.headers.items():
        words += ["--header", f"{name}: {value}"]
    return words


def plan_of(words: Sequence[str] | None) -> Plan:
    """The plan that the command line describes."""
    parser = argparse.ArgumentParser("python -m loadtest.client", description="The load generator.")
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=Plan.connections)
    parser.add_argument("--rate", type=float, help="requests a second; makes it an open loop")
    parser.add_argument("--seconds", type=float, default=Plan.seconds)
    parser.add_argument("--warmup", dest="warmup_s", type=float, default=Plan.warmup_s)
    parser.add_argument("--timeout", dest="timeout_s", type=float, default=Plan.timeout_s)
    parser.add_argument("--drain", dest="drain_s", type=float, default=Plan.drain_s)
    parser.add_argument("--tiles", type=Path, help="folder of tiles; without it they are drawn")
    parser.add_argument("--tiles-limit", type=int, default=Plan.tiles_limit)
    parser.add_argument("--question", dest="questions", action="append", default=[])
    parser.add_argument("--header", dest="headers", action="append", default=[])
    parser.add_argument("--seed", type=int, default=Plan.seed)
    given = vars(parser.parse_args(words))
    given["questions"] = tuple(given["questions"])
    given["headers"] = dict(line.split(": ", 1) for line in given["headers"])
    return Plan(**given)
