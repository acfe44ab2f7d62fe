"""TCP ports that nobody listens on."""

import random
import socket
from itertools import islice

from tilesight.errors import TritonError

# Below the range that Linux gives to outgoing connections: nothing takes a port from here between
# the moment it is found free and the moment the server listens on it, seconds later.
_RANGE = range(20_000, 32_768)


def free_ports(host: str, count: int) -> list[int]:
    """`count` different ports that can be listened on at `host`."""
    candidates = random.SystemRandom().sample(_RANGE, len(_RANGE))
    found = list(islice((port for port in candidates if is_free(host, port)), count))
    if len(found) < count:
        raise TritonError(f"{host}: not an IPv4 address of this machine, or no port of it is free")
    return found


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True
