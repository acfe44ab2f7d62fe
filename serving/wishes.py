"""What a request asks of the gateway beside its answer: a lane, and how long it will wait."""

from typing import Any, NamedTuple

from serving.errors import WishError
from serving.settings import Settings

LANE = "Tilesight-Lane"
DEADLINE = "Tilesight-Deadline"
LANES = ("interactive", "backfill")

_LANE = LANE.lower().encode()
_DEADLINE = DEADLINE.lower().encode()
_BY_VALUE = {lane.encode(): lane for lane in LANES}
# A header can be kilobytes long; this much of it is said back.
_SHOWN = 40


class Wishes(NamedTuple):
    """The lane that a request waits in, and the seconds until its answer is of no use."""

    lane: str
    deadline_s: float


def read(headers: list[tuple[bytes, bytes]], settings: Settings) -> Wishes:
    """The wishes among a request's headers, whose names are in lower case.

    Raises:
        WishError: an unknown lane, a deadline that is none or too far, or a header sent twice.
    """
    lane: str | None = None
    deadline_s: float | None = None
    for name, value in headers:
        if name == _LANE:
            if lane is not None:
                raise _twice(LANE)
            lane = _lane(value)
        elif name == _DEADLINE:
            if deadline_s is not None:
                raise _twice(DEADLINE)
            deadline_s = _deadline_s(value, settings.max_deadline_s)
    return Wishes(
        LANES[0] if lane is None else lane,
        settings.deadline_s if deadline_s is None else deadline_s,
    )


def parameters(settings: Settings) -> list[dict[str, Any]]:
    """The headers for OpenAPI."""
    return [
        {
            "name": LANE,
            "in": "header",
            "required": False,
            "description": "a backfill takes what people who wait leave of the machine",
            "schema": {"type": "string", "enum": list(LANES), "default": LANES[0]},
        },
        {
            "name": DEADLINE,
            "in": "header",
            "required": False,
            "description": "seconds from the complete body on, after which nobody waits any more",
            "schema": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": settings.max_deadline_s,
                "default": settings.deadline_s,
            },
        },
    ]


def _lane(value: bytes) -> str:
    lane = _BY_VALUE.get(value)
    if lane is None:
        raise WishError(
            f"{LANE}: {_shown(value)} is no lane; the lanes are {', '.join(LANES)}",
            header=LANE,
            allowed=list(LANES),
        )
    return lane


def _deadline_s(value: bytes, limit: float) -> float:
    # Digits and one point: what `float` reads beyond that (nan, inf, 1_0) is no deadline.
    seconds = float(value) if value.replace(b".", b"", 1).isdigit() else 0.0
    if not 0 < seconds <= limit:
        raise WishError(
            f"{DEADLINE}: {_shown(value)} is no number of seconds above 0, the limit is {limit:g}",
            header=DEADLINE,
            limit=limit,
        )
    return seconds


def _twice(header: str) -> WishError:
    return WishError(f"{header}: sent twice, the limit is once", header=header, limit=1)


def _shown(value: bytes) -> str:
    text = value.decode("latin-1")
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
