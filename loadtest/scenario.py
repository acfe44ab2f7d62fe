"""What the scenarios have in common: their arguments, their criteria, their report."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.gateway import GatewayError
from loadtest.tiles import load_tiles

Rows = Sequence[Mapping[str, object]]
_HEADERS_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Check:
    """A stated criterion, what was found, and whether it holds; None: it could not be measured."""

    what: str
    found: str
    limit: str
    holds: bool | None


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with what every scenario takes."""
    text = description or ""
    parser = argparse.ArgumentParser(
        f"python -m loadtest.{name}",
        description=text.split("\n")[0],
        epilog=text.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="a gateway that runs; without it one is started")
    parser.add_argument("--tiles", type=Path, help="folder of tiles; without it they are drawn")
    parser.add_argument("--tiles-limit", type=int, default=256, help="most of them [%(default)s]")
    parser.add_argument("--out", type=Path, help="JSON to write; a plot lies beside it as PNG")
    return parser


def tiles_of(given: argparse.Namespace) -> list[bytes]:
    """The tiles that the arguments name."""
    return load_tiles(given.tiles, given.tiles_limit)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the least and the greatest in brackets."""
    if not values:
        return "-"
    low, middle, high = (
        f"{one:.{digits}f}" for one in (min(values), statistics.median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def head_of(answer: bytes) -> bytes:
    """Status line and headers of an answer, in lower case."""
    return answer.partition(_HEADERS_END)[0].lower()


def body_of(answer: bytes) -> bytes:
    """The body of an answer."""
    return answer.partition(_HEADERS_END)[2]


def show(title: str, rows: Rows) -> None:
    """Prints the rows as a table; their keys are its columns."""
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(str(column), justify="left" if column == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def finish(given: argparse.Namespace, checks: Sequence[Check], found: Mapping[str, Any]) -> int:
    """Prints the criteria and writes the report; the exit status."""
    words = {True: "holds", False: "FAILS", None: "not measured"}
    show(
        "Criteria",
        [
            {"criterion": one.what, "found": one.found, "limit": one.limit, "": words[one.holds]}
            for one in checks
        ],
    )
    passed = all(one.holds is not False for one in checks)
    if given.out is not None:
        document = {
            "passed": passed,
            "checks": [asdict(one) for one in checks],
            "arguments": {name: value for name, value in vars(given).items()},
            "machine": machine(),
            **found,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
        print(f"written: {given.out}")
    return 0 if passed else 1


def machine() -> dict[str, Any]:
    """What the figures were made on, and when."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def end(scenario: Callable[[], int]) -> None:
    """Runs the scenario as a command: its exit status, and a line where there is no gateway."""
    try:
        sys.exit(scenario())
    except (GatewayError, ValueError) as error:
        sys.exit(f"{error}")
