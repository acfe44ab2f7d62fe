"""What a request wants of one model: its rows, each a tile to decode or tensors ready to run."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from serving.sessions import Stop
from serving.timing import Timing

if TYPE_CHECKING:
    from serving.stations import Station

Values = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Ask:
    """What a request wants besides its answer: its lane, and by when."""

    lane: str
    deadline_s: float  # a time of `time.monotonic`
    timing: Timing
    since_s: float = field(default_factory=time.monotonic)


class Decoded(Protocol):
    """A tile fitted to a model."""

    @property
    def pixels(self) -> NDArray[Any]:
        """(height, width, 3) uint8."""


class Row:
    """One tile, or one row of tensors, on its way through a crew."""

    __slots__ = ("decoded_s", "decoding_s", "index", "inputs", "job", "ready_s", "started_s")

    def __init__(self, job: "Job", index: int, inputs: Values) -> None:
        """A row that waits."""
        self.job = job
        self.index = index
        self.inputs = inputs
        self.decoding_s = self.decoded_s = self.started_s = 0.0
        self.ready_s = job.submitted_s


class Job:
    """The rows of one request for one model; its future gets them all, or the first failure.

    Everything but the future is changed under the lock of the crew that works on it.
    """

    __slots__ = (
        "asked_s",
        "cancelled",
        "deadline_s",
        "failure",
        "future",
        "inputs",
        "missing",
        "names",
        "results",
        "runs",
        "station",
        "submitted_s",
        "tiles",
        "timing",
    )

    def __init__(
        self,
        station: "Station | None",
        names: Sequence[str],
        inputs: Sequence[Values],
        ask: Ask,
    ) -> None:
        """A job whose rows have these inputs."""
        self.station = station
        self.names = tuple(names)
        self.deadline_s = ask.deadline_s
        self.timing = ask.timing
        self.asked_s = ask.since_s
        self.submitted_s = time.monotonic()
        self.inputs = inputs
        self.results: list[Values] = [{}] * len(inputs)
        self.tiles: list[Any] = []
        self.missing = len(inputs)
        self.runs: set[Stop] = set()
        self.cancelled = False
        self.failure: BaseException | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def rows(self) -> list[Row]:
        """Its rows, for the crew's queues. The job itself keeps none of them.

        They know their job: if it knew them too, each request would leave a ring behind that only
        the collector of garbage finds, with its tiles, its tensors, and a version long dropped.
        """
        return [Row(self, index, values) for index, values in enumerate(self.inputs)]

    def timed(self, row: Row, ended_s: float) -> None:
        """Adds the way of the row that ended last: what went on beside it is counted once."""
        decode = row.decoded_s - row.decoding_s
        infer = ended_s - row.started_s if row.started_s else 0.0
        self.timing.decode += decode
        self.timing.infer += infer
        self.timing.queue += max(0.0, ended_s - self.submitted_s - decode - infer)


class TileJob(Job):
    """A job whose rows begin as the bytes of tiles, which a crew decodes first."""

    __slots__ = ("data", "decode", "extra", "tile_name")

    def __init__(
        self,
        station: "Station | None",
        names: Sequence[str],
        data: Sequence[bytes],
        decode: Callable[[bytes], Decoded],
        tile_name: str,
        extra: Mapping[str, NDArray[Any]],
        ask: Ask,
    ) -> None:
        """A job over the tiles; `extra` are further inputs, the same for each row."""
        super().__init__(station, names, [dict(extra) for _ in data], ask)
        self.data: list[bytes | None] = list(data)
        self.tiles = [None] * len(data)
        self.decode = decode
        self.tile_name = tile_name


def deliver(jobs: Iterable[Job]) -> None:
    """Tells whoever still waits; in the event loop of the jobs."""
    for job in jobs:
        if job.future.done():
            continue
        if job.failure:
            job.future.set_exception(job.failure)
        else:
            job.future.set_result(None)
