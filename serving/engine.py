"""From bytes to tensors: the part that gateway and command line share."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import answers
from serving.jobs import Ask, Job, TileJob, Values
from serving.lanes import BACKFILL, INTERACTIVE, Lanes
from serving.metrics import Metrics
from serving.models import Models
from serving.repository import Bundle
from serving.runtime import Runtime
from serving.settings import Settings
from serving.timing import Timing
from tilesight import imaging

# Runs of backfills at a time in another process, so that people wait for no more than these.
_REMOTE_BACKFILLS = 2


@dataclass(frozen=True, slots=True)
class Seen:
    """A tile, and what a model made of it: one row of each output."""

    info: answers.Tile
    warnings: tuple[str, ...]
    values: Values


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
        self._limits = settings.image_limits
        # In this process threads stand back; another one would not know who has to.
        self._backfills = asyncio.Semaphore(_REMOTE_BACKFILLS)
        self.lanes = Lanes(settings, metrics)
        metrics.queues(self.lanes.states)
        self.models = Models(settings, metrics, self.lanes, runtime)

    def ask(self, lane: str = INTERACTIVE, seconds: float | None = None) -> Ask:
        """A wish that begins now; `seconds` until its deadline, as set where absent."""
        left = self.settings.deadline_s if seconds is None else seconds
        return Ask(lane, time.monotonic() + left, Timing(lane))

    async def look(
        self,
        bundle: Bundle[Any],
        images: Sequence[bytes],
        outputs: Sequence[str],
        ask: Ask,
        extra: Mapping[str, NDArray[Any]] | None = None,
    ) -> list[Seen]:
        """The named outputs for each tile, in the given order; `extra` goes with every row.

        Raises:
            TilesightError: of the first tile that cannot be read; names it if there are several.
            ModelOutputError: a value is not a number.
            RequestError: the runtime does not answer, or not in time.
        """
        tile = bundle.tile
        station = self.models.station(bundle, ask.lane)
        decode = partial(imaging.fitted, height=tile.height, width=tile.width, limits=self._limits)
        job = TileJob(station, outputs, images, decode, tile.name, extra or {}, ask)
        rows = await self.lanes[ask.lane].crew.finish(job)
        if station is None:
            rows = await self._elsewhere(bundle, job, rows, outputs, ask)
        return [
            Seen(answers.Tile.of(tile), tile.warnings, row)
            for tile, row in zip(job.tiles, rows, strict=True)
        ]

    async def run(
        self, bundle: Bundle[Any], rows: Sequence[Values], outputs: Sequence[str], ask: Ask
    ) -> list[Values]:
        """The named outputs for each row of inputs.

        Raises:
            ModelOutputError: a value is not a number.
            RequestError: the runtime does not answer, or not in time.
        """
        station = self.models.station(bundle, ask.lane)
        if station is None:
            return await self._batches(bundle, rows, outputs, ask)
        return await self.lanes[ask.lane].crew.finish(Job(station, outputs, rows, ask))

    async def _elsewhere(
        self,
        bundle: Bundle[Any],
        job: TileJob,
        rows: Sequence[Values],
        outputs: Sequence[str],
        ask: Ask,
    ) -> list[Values]:
        """Has another process run the decoded tiles."""
        whole = [{**given, **decoded} for given, decoded in zip(job.inputs, rows, strict=True)]
        return await self._batches(bundle, whole, outputs, ask)

    async def _batches(
        self, bundle: Bundle[Any], rows: Sequence[Values], outputs: Sequence[str], ask: Ask
    ) -> list[Values]:
        inputs = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        async with self._backfills if ask.lane == BACKFILL else nullcontext():
            found = await self.models.infer(bundle, inputs, outputs, ask)
        return [{name: found[name][index] for name in outputs} for index in range(len(rows))]
