"""The two lanes: people who wait, and backfills that take what is left of the machine."""

import math
from collections.abc import Iterator

from serving.crew import RETRY_S, Crew
from serving.errors import OverloadedError
from serving.metrics import Metrics
from serving.settings import Settings
from serving.timing import LaneState
from tilesight.cores import usable_cores

INTERACTIVE = "interactive"
BACKFILL = "backfill"
# The kernel gives such a thread a core that others want for less than 2 % of the time.
_BACKFILL_NICE = 19


class Lane:
    """The requests of one kind: how many tiles are held for them, and the crew that works."""

    def __init__(self, crew: Crew, max_images: int, max_wait_s: float) -> None:
        """A lane without requests."""
        self.crew = crew
        self.name = crew.lane
        self._max_images = max_images
        self._max_wait_s = max_wait_s
        self._images = 0
        self._in_flight = 0

    def state(self) -> LaneState:
        """How full it is at this moment."""
        return LaneState(self.name, self._images, self.crew.oldest_s(), self._in_flight)

    def require_place(self, images: int = 1) -> None:
        """Returns where the lane can take so many tiles more.

        Raises:
            OverloadedError: it is full, or what waits in it has waited too long already.
        """
        if self._images and self._images + images > self._max_images:
            raise self.overload(self._retry_s())

    def overload(self, retry_s: int = RETRY_S) -> OverloadedError:
        """The failure of a request that there is no place for."""
        return OverloadedError(
            f"the lane {self.name} holds as many tiles as it may: {self._max_images}",
            limit=self._max_images,
            retry_after=retry_s,
        )

    @property
    def full(self) -> bool:
        """Whether not even one tile more is taken."""
        return self._images >= self._max_images

    def places(self, images: int) -> "_Places":
        """A block during which the lane holds these tiles.

        Raises:
            OverloadedError: there is no place for them; when the block is entered.
        """
        return _Places(self, images)

    def take(self, images: int) -> None:
        """Holds a request with so many tiles; raises OverloadedError where there is no place."""
        self.require_place(images)
        self._images += images
        self._in_flight += 1

    def give_back(self, images: int) -> None:
        """Holds the request no more."""
        self._images -= images
        self._in_flight -= 1

    def _retry_s(self) -> int:
        """When a place may be free: as long as the oldest has waited, others will wait too."""
        return max(RETRY_S, math.ceil(self.crew.oldest_s()))


class _Places:
    """The block; a class, because a generator costs each request several times as much."""

    __slots__ = ("_images", "_lane")

    def __init__(self, lane: Lane, images: int) -> None:
        self._lane, self._images = lane, images

    def __enter__(self) -> None:
        self._lane.take(self._images)

    def __exit__(self, *error: object) -> None:
        self._lane.give_back(self._images)


class Lanes:
    """Both lanes."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Lanes whose crews have not begun."""
        self.cores = max(1, usable_cores() // settings.workers)
        runs = settings.sessions * (settings.threads or 1) if settings.sessions else self.cores

        def lane(name: str, nice: int, first: Crew | None = None) -> Lane:
            crew = Crew(
                name,
                runs,
                metrics,
                # What was set by hand may be more: runs that wait for a GPU need no core.
                threads=max(self.cores, settings.sessions or 0),
                nice=nice,
                max_delay_s=settings.max_batch_delay_s,
                max_wait_s=settings.max_queue_s,
                first=first,
            )
            return Lane(crew, settings.max_queued_images, settings.max_queue_s)

        people = lane(INTERACTIVE, 0)
        # The kernel takes the cores from its threads at once, but it cannot take the interpreter:
        # so they do not begin either while people are served.
        backfill = lane(BACKFILL, _BACKFILL_NICE, people.crew)
        self._lanes = {one.name: one for one in (people, backfill)}

    def __getitem__(self, name: str) -> Lane:
        """The lane of this name."""
        return self._lanes[name]

    def __iter__(self) -> Iterator[Lane]:
        """Interactive, then backfill."""
        return iter(self._lanes.values())

    def states(self) -> list[LaneState]:
        """How full each is at this moment."""
        return [lane.state() for lane in self]

    def close(self) -> None:
        """Ends the crews with what they are doing; blocks until then."""
        for lane in self:
            lane.crew.close()
