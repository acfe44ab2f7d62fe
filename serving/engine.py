"""From bytes to tensors and back: the part that gateway and command line share."""

import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from numpy.typing import NDArray

from serving import answers
from serving.cores import usable_cores
from serving.embedded import EmbeddedRuntime
from serving.errors import ModelOutputError, NotReadyError, OverloadedError
from serving.metrics import Metrics
from serving.repository import Bundle, Served, open_served
from serving.runtime import Runtime, Tensor
from serving.settings import Settings
from tilesight import imaging
from tilesight.errors import BundleError, TilesightError
from tilesight.golden import disagreement, golden_inputs

log = logging.getLogger("tilesight.engine")

_RETRY_S = 1


@dataclass(frozen=True)
class PreparedTile:
    """A tile fitted to a model, and what the answer says of it."""

    pixels: NDArray[np.uint8]
    info: answers.Tile
    warnings: tuple[str, ...]


class Engine:
    """The served models, ready to be asked."""

    def __init__(
        self, settings: Settings, metrics: Metrics, runtime: Runtime | None = None
    ) -> None:
        """An engine whose bundles are verified and not yet loaded.

        Raises:
            BundleError: a bundle is missing or is not what its manifest promises.
        """
        self.settings = settings
        self.metrics = metrics
        self.served: Served = open_served(settings)
        self.ready = False
        self._runtime: Runtime = runtime or EmbeddedRuntime(settings)
        self._decoders = CapacityLimiter(usable_cores())
        self._in_flight = 0

    async def start(self) -> None:
        """Loads every model and asks each about the golden tile.

        Raises:
            BundleError: a model cannot be loaded or does not answer.
        """
        for bundle in self.served.all():
            started = time.perf_counter()
            await anyio.to_thread.run_sync(self._runtime.load, bundle)
            await self._canary(bundle)
            seconds = round(time.perf_counter() - started, 3)
            info = self.model(bundle)
            self.metrics.model(**info.model_dump())
            log.info("model loaded", extra={**_prefixed(info), "seconds": seconds})
        self.metrics.ready.set(1)
        self.ready = True

    def close(self) -> None:
        """The engine answers no more."""
        self.ready = False
        self.metrics.ready.set(0)
        self._runtime.close()

    def require_ready(self) -> None:
        """Returns once every model has answered its canary.

        Raises:
            NotReadyError: the models are still being loaded.
        """
        if not self.ready:
            raise NotReadyError("the models are still being loaded", retry_after=_RETRY_S)

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place among the requests that are held at once.

        Raises:
            NotReadyError: the models are still being loaded.
            OverloadedError: all places are taken.
        """
        self.require_ready()
        limit = self.settings.max_in_flight
        if self._in_flight >= limit:
            raise OverloadedError(
                f"{limit} requests are already held, the limit", limit=limit, retry_after=_RETRY_S
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

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """The named outputs for all rows, run in batches of at most `max_batch`.

        Raises:
            ModelOutputError: a value is not a number.
        """
        rows = len(next(iter(inputs.values())))
        parts: list[dict[str, NDArray[Any]]] = []
        for start in range(0, rows, self.settings.max_batch):
            batch = {
                name: values[start : start + self.settings.max_batch]
                for name, values in inputs.items()
            }
            run = await self._runtime.infer(bundle.name, batch, outputs)
            self.metrics.stage("queue", bundle.name, run.queue_s)
            self.metrics.stage("infer", bundle.name, run.infer_s)
            parts.append(run.outputs)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        for name, values in joined.items():
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise ModelOutputError(f"{bundle.name}: {name} holds a value that is not a number")
        return joined

    @contextmanager
    def timed(self, stage: str, bundle: Bundle[Any]) -> Iterator[None]:
        """A block whose duration is counted as this stage of this model."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.stage(stage, bundle.name, time.perf_counter() - started)

    def model(self, bundle: Bundle[Any]) -> answers.Model:
        """Which weights answer, and what runs them."""
        return answers.Model(
            name=bundle.name,
            version=bundle.manifest.version,
            digest=bundle.manifest.digest,
            precision=bundle.manifest.graph.precision,
            backend=self._runtime.describe(bundle.name).name,
        )

    def runtime_details(self, bundle: Bundle[Any]) -> dict[str, str | int]:
        """What an operator wants to know of whatever runs the model."""
        return self._runtime.describe(bundle.name).details

    def _prepare(self, bundle: Bundle[Any], data: bytes) -> PreparedTile:
        tile = imaging.decode(data, self.settings.image_limits)
        return PreparedTile(
            imaging.fit(tile.pixels, bundle.tile.height, bundle.tile.width),
            answers.Tile(width=tile.width, height=tile.height, format=tile.format),
            tile.warnings + imaging.fit_warnings(tile, bundle.tile.height, bundle.tile.width),
        )

    async def _canary(self, bundle: Bundle[Any]) -> None:
        """Refuses a model that loads and then does not answer as its exporter saw it answer."""
        outputs = [spec.name for spec in bundle.manifest.outputs]
        try:
            found = await self.infer(bundle, golden_inputs(bundle.manifest), outputs)
        # ONNX Runtime raises its own classes, all of them straight from Exception.
        except Exception as error:
            raise BundleError(
                f"{bundle.graph}: does not answer the golden tile: {error}"
            ) from error
        if problem := disagreement(bundle.manifest.golden, found):
            raise BundleError(f"{bundle.graph}: answers the golden tile otherwise: {problem}")


def stack(tiles: Sequence[PreparedTile]) -> NDArray[np.uint8]:
    """The tiles as one batch, (N, height, width, 3)."""
    return np.stack([tile.pixels for tile in tiles])


def _or_raise(tile: PreparedTile | TilesightError, index: int, count: int) -> PreparedTile:
    if isinstance(tile, PreparedTile):
        return tile
    if count == 1:
        raise tile
    raise type(tile)(f"image {index + 1} of {count}: {tile}") from tile


def _prefixed(info: answers.Model) -> dict[str, Any]:
    """The fields under names that a log record does not use itself."""
    return {f"model_{name}": value for name, value in info.model_dump().items()}
