"""Origins as browsers write them, which is the only way in which they can be compared."""

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

# What is left of a host's name in a browser: no space, no wildcard.
_HOST = re.compile(r"[a-z0-9._-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
ANY = "*"


def origins(text: str) -> tuple[str, ...]:
    """The origins of a list with commas: each `scheme://host[:port]`, or `*` alone.

    Raises:
        ValueError: one of them is written in a way that no browser's origin ever equals.
    """
    found = tuple(part for one in text.split(",") if (part := one.strip()))
    if ANY in found:
        if len(found) > 1:
            raise ValueError(f"{ANY} allows every origin: nothing can stand beside it")
        return found
    for one in found:
        if (wanted := _as_browsers_write(one)) != one:
            raise ValueError(f"{one} is no origin; a browser sends {wanted}")
    return found


def _as_browsers_write(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return "http://host[:port] or https://host[:port]"
    host = _host(parts.hostname)
    port = parts.port
    known = port is None or port == _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if known else f":{port}")


def _host(name: str) -> str:
    if ":" in name:
        return f"[{IPv6Address(name).compressed}]"
    host = name if name.isascii() else name.encode("idna").decode("ascii")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{name} is no name of a host")
    return host
