"""What happens beside the requests: promotions are followed, lost models are loaded again."""

import logging
import time

import anyio

from serving.crew import RETRY_S
from serving.errors import BackendUnavailableError
from serving.metrics import Metrics
from serving.models import Models
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.keeper")

_WATCH_S = 1.0
# What failed is tried again: what was missing may come. Slower each time, up to this.
_SLOWEST_S = 60.0


async def start(models: Models) -> None:
    """Loads the models, waiting for whatever runs them as long as it takes.

    Raises:
        TilesightError: the models cannot be served, and waiting would not help.
    """
    while True:
        try:
            return await models.start()
        except BackendUnavailableError as error:
            models.suspend(error)
        await anyio.sleep(RETRY_S)


async def keep(models: Models, metrics: Metrics, follow_s: float) -> None:
    """Never returns; keeps the models as the repository has them, and loaded."""
    async with anyio.create_task_group() as group:
        group.start_soon(watch, models)
        if follow_s:
            group.start_soon(follow, models, metrics, follow_s)


async def follow(models: Models, metrics: Metrics, every_s: float) -> None:
    """Never returns; serves what is promoted, looking every so many seconds."""
    failed, pause, again = None, every_s, 0.0
    while True:
        await anyio.sleep(every_s)
        stamp = models.stamp
        if stamp == failed and time.monotonic() < again:
            continue
        try:
            if await models.follow():
                log.info("serves the promoted versions")
        # Whatever goes wrong here must not end the following.
        except Exception as error:
            metrics.follow_failure()
            _log_failure("promoted versions cannot be served; those before go on", error)
            pause = min(_SLOWEST_S, 2 * pause) if stamp == failed else every_s
            failed, again = stamp, time.monotonic() + pause
        else:
            pause, again = every_s, 0.0


async def watch(models: Models) -> None:
    """Never returns; takes the gateway out of service while the models do not answer."""
    pause = _WATCH_S
    while True:
        await anyio.sleep(pause)
        try:
            if models.ready:
                if await models.check():
                    continue
                models.suspend(BackendUnavailableError("the models are being loaded again"))
            await models.restore()
        except BackendUnavailableError as error:
            models.suspend(error)
            pause = _WATCH_S
        # Whatever goes wrong here must not end the watching.
        except Exception as error:
            _log_failure("models cannot be loaded again", error)
            models.suspend(BackendUnavailableError("the models cannot be loaded again"))
            pause = min(_SLOWEST_S, 2 * pause)
        else:
            log.info("serves again")
            pause = _WATCH_S


def _log_failure(event: str, error: Exception) -> None:
    """The reason for what the user can mend, the whole trace for anything else."""
    expected = isinstance(error, TilesightError)
    log.error(event, extra={"reason": str(error)}, exc_info=None if expected else error)
