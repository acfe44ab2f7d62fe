"""What is refused before a request is begun: where a lane is full, each microsecond is missing."""

from serving.lanes import BACKFILL, INTERACTIVE, Lanes
from serving.refusals import Ready
from serving.wishes import LANE

_TILES = frozenset({b"/labels", b"/caption", b"/vqa"})
_LANE = LANE.lower().encode()
_BACKFILL = BACKFILL.encode()


class Shedding:
    """Answers for `serving.wire`: a whole 503 for a tile whose lane is full, else None."""

    def __init__(self, lanes: Lanes) -> None:
        """Refusals of these lanes."""
        self._people, self._backfill = lanes[INTERACTIVE], lanes[BACKFILL]
        self._answers = {lane: Ready(lane.overload()) for lane in (self._people, self._backfill)}

    def __call__(self, path: bytes, headers: list[tuple[bytes, bytes]]) -> bytes | None:
        """The answer to a request that is not begun; None for one that is."""
        if path not in _TILES:
            return None
        lane = self._backfill if (_LANE, _BACKFILL) in headers else self._people
        return self._answers[lane](path) if lane.full else None
