"""How late the event loop is: what every request waits for, and no request can see."""

import asyncio
import time

from serving.metrics import Metrics

_EVERY_S = 0.1
# So often the lanes are told to the other workers.
_PUBLISH = 5


async def watch(metrics: Metrics) -> None:
    """Never returns; measures ten times a second."""
    count = 0
    while True:
        asked = time.perf_counter()
        await asyncio.sleep(_EVERY_S)
        metrics.loop_lag(max(0.0, time.perf_counter() - asked - _EVERY_S))
        count += 1
        if count % _PUBLISH == 0:
            metrics.publish()
