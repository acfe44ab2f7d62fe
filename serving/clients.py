"""How much one client may ask for: a token bucket each, in bounded memory."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address

from starlette.types import Scope

from serving.settings import Settings

# A client that is forgotten starts with a full bucket; who has as many addresses as this has as
# many buckets anyway.
CAPACITY = 10_000
# Longer than any address: a trusted proxy that passes nonsense on must not fill the memory.
_LONGEST = 45
_NETWORK = ~((1 << 64) - 1)
# Floating-point noise in a sum of intervals; nobody gains from it.
_NOISE_S = 1e-6


class Clients:
    """A bucket of `burst` requests for each client, refilled with `rate` requests a second.

    Kept as one number a client: the moment at which its bucket is full again.
    """

    def __init__(
        self,
        rate: float,
        burst: int | None = None,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Full buckets; without a burst a second's worth, and at least one request."""
        self.rate = rate
        self.burst = burst or max(1, math.ceil(rate))
        self._interval_s = 1 / rate
        # A request is let in while the bucket lacks no more than all but one.
        self._slack_s = (self.burst - 1) / rate
        self._capacity = capacity
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> "Clients | None":
        """What the settings allow one client; None where that is anything."""
        rate = settings.client_rate
        return None if rate is None else cls(rate, settings.client_burst)

    @property
    def known(self) -> int:
        """How many clients are kept track of."""
        return len(self._full_at)

    def take(self, client: str) -> float:
        """Seconds until the client may ask again; 0 lets it in, and takes one of its requests."""
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now)
        wait_s = full_at - now - self._slack_s
        if wait_s <= _NOISE_S:
            full_at += self._interval_s
            wait_s = 0.0
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > self._capacity:
            self._full_at.popitem(last=False)
        return wait_s


def address_of(scope: Scope) -> str:
    """Who asks, as far as the connection tells; the hosts of an IPv6 network are one client."""
    client = scope.get("client")
    host: str = client[0] if client else ""
    if ":" in host and len(host) <= _LONGEST:
        return _network(host)
    return host if 0 < len(host) <= _LONGEST else "unknown"


@lru_cache(maxsize=CAPACITY)
def _network(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError:
        return "unknown"
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    # A subscriber gets a /64 at least, and may take any of its addresses.
    return str(IPv6Address(int(address) & _NETWORK))
