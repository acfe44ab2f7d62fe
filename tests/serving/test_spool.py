import errno
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.types import Message

from serving import bodies
from serving.errors import StorageError
from serving.settings import Settings
from serving.spool import Spool
from tests.serving.gateway import settings_for, started, tile

pytestmark = pytest.mark.anyio


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that are made."""
    made: list[Any] = []
    whole = tempfile.TemporaryFile

    def counted(*args: object, **options: Any) -> Any:  # noqa: ANN401
        made.append(whole(*args, **options))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr("tempfile.TemporaryFile", counted)
    return made


async def test_little_stays_in_memory(files: list[Any]) -> None:
    with Spool(10) as spool:
        for _ in range(5):
            await spool.write(b"ab")
        assert await spool.whole() == b"ab" * 5
    assert files == []


async def test_more_goes_to_the_disk_and_comes_back(files: list[Any]) -> None:
    parts = [bytes([index]) * 7 for index in range(100)]
    with Spool(10) as spool:
        for part in parts:
            await spool.write(part)
            assert sum(map(len, spool._held)) <= 10
        assert await spool.whole() == b"".join(parts)
    assert len(files) == 1
    assert files[0].closed


async def test_a_body_that_is_given_up_leaves_nothing(files: list[Any]) -> None:
    with pytest.raises(ZeroDivisionError), Spool(1) as spool:
        await spool.write(b"abc")
        raise ZeroDivisionError
    assert files[0].closed


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "/var/tmp/secret")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", full)


@pytest.fixture(scope="module")
def small(shared_repository: Path) -> Any:  # noqa: ANN401
    with started(settings_for(shared_repository, spool_bytes=1000)) as client:
        yield client


PADDED = tile("blue") + bytes(20_000)


async def test_a_raw_body_needs_the_disk_only_while_it_arrives(full_disk: None) -> None:
    pieces = [PADDED[:9000], PADDED[9000:]]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    request = Request({"type": "http", "headers": [(b"content-type", b"image/png")]}, receive)
    with pytest.raises(StorageError, match="no room for large bodies"):
        await bodies.read(request, Settings(spool_bytes=1000), bodies.TilesJson)


def test_a_full_disk_is_no_failure_of_the_gateway(small: TestClient, full_disk: None) -> None:
    answer = small.post("/labels", files={"image": ("a.png", PADDED)})
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/no-storage"
    assert answer.headers["Retry-After"] == "30"
    assert "secret" not in answer.text


def test_large_parts_are_read_from_the_disk(small: TestClient) -> None:
    assert small.post("/labels", files={"image": ("a.png", PADDED)}).status_code == 200


def test_many_parts_share_the_memory(small: TestClient, full_disk: None) -> None:
    """Each is below the bound; together they are not."""
    parts = [("image", (f"{index}.png", tile("blue", size=16) + bytes(400))) for index in range(4)]
    assert small.post("/labels", files=parts[:1]).status_code == 200
    assert small.post("/labels", files=parts).status_code == 503
