"""From bytes to tensors: the part that gateway and command line share."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from numpy.typing import NDArray

from serving import answers
from serving.errors import OverloadedError
from serving.metrics import Metrics
from serving.models import RETRY_S, Models
from serving.repository import Bundle
from serving.runtime import Runtime
from serving.settings import Settings
from tilesight import imaging
from tilesight.cores import usable_cores
from tilesight.errors import TilesightError


@dataclass(frozen=True)
class PreparedTile:
    """A tile fitted to a model, and what the answer says of it."""

    pixels: NDArray[np.uint8]
    info: answers.Tile
    warnings: tuple[str, ...]


class Engine:
    """What a request needs of the gateway: a place, its tiles as tensors, the models."""

    def __init__(
        self, settings: Settings, metrics: Metrics, runtime: Runtime | None = None
    ) -> None:
        """An engine whose models are verified and not yet loaded.

        Raises:
            BundleError: a bundle is missing or is not what its manifest promises.
        """
        self.settings = settings
        self.metrics = metrics
        self.models = Models(settings, metrics, runtime)
        self._decoders = CapacityLimiter(usable_cores())
        self._in_flight = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place among the requests that are held at once.

        Raises:
            NotReadyError: the models are still being loaded.
            BackendUnavailableError: whatever runs them does not answer.
            OverloadedError: all places are taken.
        """
        self.models.require_ready()
        limit = self.settings.max_in_flight
        if self._in_flight >= limit:
            raise OverloadedError(
                f"{limit} requests are already held, the limit", limit=limit, retry_after=RETRY_S
            )
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)

    async def prepare(self, bundle: Bundle[Any], images: Sequence[bytes]) -> list[PreparedTile]:
        """The tiles, decoded in worker threads and fitted to the model, in the given order.

        Raises:
            TilesightError: of the first tile that cannot be read; names it if there are several.
        """
        tiles: dict[int, PreparedTile | TilesightError] = {}

        async def one(index: int) -> None:
            try:
                tiles[index] = await anyio.to_thread.run_sync(
                    self._prepare, bundle, images[index], limiter=self._decoders
                )
            except TilesightError as error:
                tiles[index] = error

        with self.timed("decode", bundle):
            async with anyio.create_task_group() as group:
                for index in range(len(images)):
                    group.start_soon(one, index)
        return [_or_raise(tiles[index], index, len(images)) for index in range(len(images))]

    @contextmanager
    def timed(self, stage: str, bundle: Bundle[Any]) -> Iterator[None]:
        """A block whose duration is counted as this stage of this model."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.stage(stage, bundle.name, time.perf_counter() - started)

    def _prepare(self, bundle: Bundle[Any], data: bytes) -> PreparedTile:
        tile = imaging.decode(data, self.settings.image_limits)
        return PreparedTile(
            imaging.fit(tile.pixels, bundle.tile.height, bundle.tile.width),
            answers.Tile(width=tile.width, height=tile.height, format=tile.format),
            tile.warnings + imaging.fit_warnings(tile, bundle.tile.height, bundle.tile.width),
        )


def stack(tiles: Sequence[PreparedTile]) -> NDArray[np.uint8]:
    """The tiles as one batch, (N, height, width, 3)."""
    return np.stack([tile.pixels for tile in tiles])


def _or_raise(tile: PreparedTile | TilesightError, index: int, count: int) -> PreparedTile:
    if isinstance(tile, PreparedTile):
        return tile
    if count == 1:
        raise tile
    raise type(tile)(f"image {index + 1} of {count}: {tile}") from tile
