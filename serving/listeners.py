"""The sockets that several workers accept connections from."""

import socket

from tilesight.errors import ConfigError

_BACKLOG = 2048


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of the host, all at the same port.

    Raises:
        ConfigError: naming the address, if nobody can listen there.
    """
    found: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            if found and port == 0:
                # The first has picked one for all.
                address = (address[0], found[0].getsockname()[1], *address[2:])
            found.append(socket.create_server(address, family=family, backlog=_BACKLOG))
    except OSError as error:
        for one in found:
            one.close()
        raise ConfigError(
            f"TILESIGHT_HOST, TILESIGHT_PORT: cannot listen at {host} port {port}: {error}"
        ) from error
    return found


def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    """The address family and the address of each, in order, none twice."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in infos))  # type: ignore[misc]
