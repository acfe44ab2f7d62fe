import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.errors import BodyTooLargeError, SlowBodyError
from serving.limits import BodyLimit

pytestmark = pytest.mark.anyio

POST: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/",
    "headers": [(b"content-length", b"3")],
}


async def _sent(message: Message) -> None:
    pass


def coming(*pieces: tuple[float, bytes]) -> Receive:
    """A body whose pieces come after so many seconds each; the last one ends it."""
    left = list(pieces)

    async def receive() -> Message:
        seconds, data = left.pop(0)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": data, "more_body": bool(left)}

    return receive


def reading(found: list[bytes]) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            found.append(message["body"])
            more = message["more_body"]

    return app


async def test_a_body_in_time_is_passed_on() -> None:
    found: list[bytes] = []
    limit = BodyLimit(reading(found), 100, 5.0)
    await limit(POST, coming((0, b"a"), (0.02, b"b"), (0, b"c")), _sent)
    assert found == [b"a", b"b", b"c"]


async def test_the_time_is_that_of_the_whole_body() -> None:
    limit = BodyLimit(reading([]), 100, 0.2)
    with pytest.raises(SlowBodyError, match=r"after 0.2 s") as failure:
        await limit(POST, coming(*[(0.05, b"a")] * 100), _sent)
    assert failure.value.extensions == {"limit": 0.2}


async def test_each_exchange_has_its_own_time() -> None:
    """One timer serves all: whoever came later is not cut off with who came first."""
    limit = BodyLimit(reading([]), 100, 0.3)
    ends: dict[str, str] = {}

    async def one(name: str, after: float, seconds: float) -> None:
        await asyncio.sleep(after)
        try:
            await limit(POST, coming((seconds, b"a")), _sent)
            ends[name] = "whole"
        except SlowBodyError:
            ends[name] = "slow"

    await asyncio.gather(
        one("quick", 0, 0.01), one("never", 0, 9), one("late", 0.2, 0.2), one("late never", 0.2, 9)
    )
    assert ends == {"quick": "whole", "never": "slow", "late": "whole", "late never": "slow"}


async def test_a_slow_body_is_found_while_the_app_does_something_else() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.2)  # must not be cut short
        done.append(True)
        await receive()

    done: list[bool] = []
    with pytest.raises(SlowBodyError):
        await BodyLimit(app, 100, 0.05)(POST, coming((0, b"a"), (0, b"b")), _sent)
    assert done


async def test_a_cancelled_request_is_not_a_slow_one() -> None:
    limit = BodyLimit(reading([]), 100, 5.0)
    task = asyncio.create_task(limit(POST, coming((9, b"a")), _sent))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_around_it_is_still_a_timeout() -> None:
    limit = BodyLimit(reading([]), 100, 5.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await limit(POST, coming((9, b"a")), _sent)


async def test_a_body_that_goes_on_is_cut_off() -> None:
    with pytest.raises(BodyTooLargeError, match="the limit is 4 bytes"):
        await BodyLimit(reading([]), 4, 5.0)(POST, coming(*[(0, b"ab")] * 10), _sent)


async def test_nothing_of_a_request_is_kept() -> None:
    limit = BodyLimit(reading([]), 100, 60.0)
    for _ in range(10):
        await limit(POST, coming((0, b"a")), _sent)
        with pytest.raises(BodyTooLargeError):
            await BodyLimit(reading([]), 4, 60.0)(POST, coming((0, b"abcde"), (0, b"f")), _sent)
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one).__name__ == "_Exchange"]
