"""One of several processes that serve: `python -m serving.worker`, started by the supervisor."""

import argparse
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from serving.channel import Failure, Message, Ready, send
from serving.logs import configure
from serving.sharing import Shared
from tilesight.errors import TilesightError

FAILED = 2


def main() -> None:
    """Serves on the inherited sockets until it is told to stop, or the supervisor is gone."""
    options = _options()
    configure(options.slot)
    channel = socket.socket(fileno=options.channel)
    threading.Thread(target=_stop_with_supervisor, args=[channel], daemon=True).start()
    shared = Shared(options.folder, options.slot)
    shared.install()
    try:
        _serve(options, shared, channel)
    except TilesightError as error:
        _tell(channel, Failure(reason=str(error)))
        sys.exit(FAILED)


def _serve(options: argparse.Namespace, shared: Shared, channel: socket.socket) -> None:
    # Imported here: the instruments are made in the folder that was installed before.
    from serving.metrics import Metrics
    from serving.process import Process
    from serving.server import serve
    from serving.settings import Settings

    process = Process(
        metrics=Metrics(shared),
        worker=options.slot,
        on_ready=lambda: _tell(channel, Ready()),
    )
    listeners = [socket.socket(fileno=one) for one in options.listener]
    serve(Settings.from_environment(), process, listeners, options.patient)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slot", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--listener", type=int, action="append", required=True)
    parser.add_argument("--patient", action="store_true")
    return parser.parse_args()


def _tell(channel: socket.socket, message: Message) -> None:
    try:
        send(channel, message)
    except OSError:
        # The supervisor is gone; the other thread sees to that.
        return


def _stop_with_supervisor(channel: socket.socket) -> None:
    """Nothing ever comes through the channel but its end, when the supervisor has died."""
    channel.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
