"""Between the app and the process around it: what one tells the other."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.connection import Shed
from serving.drain import Drain
from serving.errors import OverloadedError
from serving.metrics import Metrics
from serving.problems import KINDS
from serving.settings import Settings
from serving.wire import protocol


@dataclass
class Process:
    """What an app gets from its process, and what it tells it."""

    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)
    # The slot of this worker, where there are several.
    worker: int | None = None
    # Whether the models have answered; `on_ready` is told when they do.
    ready: bool = False
    on_ready: Callable[[], None] = lambda: None
    # What the app refuses before a request is begun; None: nothing.
    shed: Shed | None = None

    def wire(self, settings: Settings) -> type[asyncio.Protocol]:
        """How connections are read, for `uvicorn.Config(http=...)`, once the app is made."""
        return protocol(settings, self.shed, self._count_shed, self.metrics.rejection)

    def _count_shed(self, path: bytes) -> None:
        self.metrics.rejection(KINDS[OverloadedError].slug)
        self.metrics.request(path.decode("ascii"), KINDS[OverloadedError].status, 0.0)

    def now_ready(self) -> None:
        """Notes that the models have answered."""
        self.ready = True
        self.on_ready()
