"""The process around the app: one uvicorn server, stopped if the models cannot be loaded."""

import logging.config

import uvicorn

from serving.app import create_app
from serving.logs import CONFIG
from serving.settings import Settings
from tilesight.errors import TilesightError

log = logging.getLogger("tilesight.server")

_DRAIN_S = 30


def run(settings: Settings) -> None:
    """Serves until it is told to stop, then answers what it has begun.

    Raises:
        TilesightError: the models cannot be served.
    """
    logging.config.dictConfig(CONFIG)
    log.info("settings", extra=settings.model_dump(mode="json"))
    failures: list[TilesightError] = []

    def stop(failure: TilesightError) -> None:
        failures.append(failure)
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, stop),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )
    server.run()
    if failures:
        raise failures[0]
