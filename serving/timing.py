"""Where the time of a request went, and how full a lane is: what the engine tells the metrics."""

import time
from dataclasses import dataclass

from serving.answers import Model


@dataclass(slots=True)
class Timing:
    """The stages of one request, in seconds; what happened side by side is counted once."""

    lane: str = "interactive"
    model: Model | None = None
    admission: float = 0.0  # from the header to the complete, parsed body and a place in the lane
    decode: float = 0.0  # of its tiles, waiting for a thread not included
    queue: float = 0.0  # waiting for a thread, for others of the batch, for a session
    infer: float = 0.0  # in the models
    postprocess: float = 0.0  # from tensors to the answer


class Postprocessing:
    """A block in which tensors become an answer; its time is counted."""

    __slots__ = ("_started", "_timing")

    def __init__(self, timing: Timing) -> None:
        """A block of the request whose timing it is."""
        self._timing = timing

    def __enter__(self) -> None:
        """Begins."""
        self._started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Ends."""
        self._timing.postprocess += time.monotonic() - self._started


@dataclass(frozen=True, slots=True)
class LaneState:
    """How full a lane is at this moment."""

    lane: str
    images: int  # tiles that wait or are worked on
    oldest_s: float  # how long the tile that waits longest has waited; 0 where none waits
    in_flight: int  # requests with tiles
