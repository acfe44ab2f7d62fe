"""What a worker tells its supervisor: lines of JSON through a pair of sockets."""

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass

_CHUNK = 65536


@dataclass(frozen=True)
class Ready:
    """The worker's models answer."""

    kind: str = "ready"


@dataclass(frozen=True)
class Failure:
    """The worker cannot serve, and trying again would not help."""

    reason: str
    kind: str = "failure"


Message = Ready | Failure


def send(channel: socket.socket, message: Message) -> None:
    """Tells the supervisor."""
    channel.sendall(json.dumps(asdict(message)).encode() + b"\n")


class Inbox:
    """The supervisor's end of a channel."""

    def __init__(self, channel: socket.socket) -> None:
        """Nothing has come yet."""
        self.channel = channel
        self._rest = b""

    def read(self) -> Iterator[Message | None]:
        """What has come, once the channel is readable; None at last if it has ended."""
        try:
            found = self.channel.recv(_CHUNK)
        except ConnectionResetError:
            found = b""
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            fields = json.loads(line)
            yield Failure(fields["reason"]) if fields["kind"] == "failure" else Ready()
        if not found:
            yield None
