"""A request is worked on until its deadline, and while its client is there; then the work stops."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import onnxruntime as ort
import pytest

from serving.embedded import EmbeddedRuntime
from serving.jobs import Ask
from serving.lanes import INTERACTIVE, Lanes
from serving.metrics import Metrics
from serving.models import Models
from serving.timing import Timing
from tests.serving import bundles
from tests.serving.gateway import get, in_flight, post, served, settings_for, tile, wait_for

REQUEST = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
TILES = {"tiles": np.zeros((1, bundles.SIDE, bundles.SIDE, 3), np.uint8)}


def ask() -> Ask:
    """A wish that has time."""
    return Ask(INTERACTIVE, time.monotonic() + 60, Timing())


@pytest.fixture(scope="module")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models, whose labels take more than a second."""
    root = bundles.write_repository(tmp_path_factory.mktemp("slow") / "model_repository")
    bundles.record_golden(bundles.replace_graph(root, "signa", bundles.slow_graph()))
    return root


@pytest.fixture(scope="module")
def whole(slow_repository: Path) -> float:
    """The seconds that the labels take now, on this machine with all that runs beside."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(slow_repository / "signa" / "1" / "model.onnx", options)
    started = time.monotonic()
    session.run(None, TILES)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def address(slow_repository: Path, whole: float) -> Iterator[tuple[str, int]]:
    with served(settings_for(slow_repository, deadline_s=whole / 8, threads=1)) as found:
        yield found


def test_an_answer_that_takes_too_long_is_a_problem_that_names_the_limit(
    address: tuple[str, int], whole: float
) -> None:
    started = time.monotonic()
    status, problem = post(address, "/labels", tile("blue"))
    assert (status, problem["type"]) == (504, "/problems/deadline-exceeded")
    assert problem["limit"] == whole / 8
    assert time.monotonic() - started < 0.7 * whole


def test_the_run_of_a_late_answer_gives_its_place_to_others(
    address: tuple[str, int], whole: float
) -> None:
    started = time.monotonic()
    assert post(address, "/labels", tile("blue"))[0] == 504
    assert post(address, "/caption", tile("blue"))[0] == 200
    assert time.monotonic() - started < 0.7 * whole


def test_the_work_stops_when_the_client_leaves(slow_repository: Path, whole: float) -> None:
    body = tile("blue")
    with served(settings_for(slow_repository, threads=1)) as address:
        with socket.create_connection(address, 10) as connection:
            connection.sendall(REQUEST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: in_flight(1) in get(address, "/metrics"))
            started = time.monotonic()
        wait_for(lambda: in_flight(0) in get(address, "/metrics"))
        assert time.monotonic() - started < 0.7 * whole
        assert 'endpoint="/labels",lane="interactive",status="499"' in get(address, "/metrics")


@pytest.mark.anyio
async def test_a_cancelled_run_ends_long_before_its_time(
    slow_repository: Path, whole: float
) -> None:
    settings = settings_for(slow_repository, threads=1)
    lanes = Lanes(settings, Metrics())
    runtime = EmbeddedRuntime(settings, lanes)
    bundle = Models(settings, Metrics(), lanes, runtime).served.labels
    await runtime.load(bundle)
    started = time.monotonic()
    with anyio.move_on_after(whole / 8) as scope:
        await runtime.infer(bundle, TILES, ["scores"], ask())
    assert scope.cancelled_caught
    assert time.monotonic() - started < 0.7 * whole
    again = await runtime.infer(bundle, TILES, ["scores"], ask())
    assert again["scores"].shape == (1, len(bundles.LABELS))


@pytest.mark.anyio
async def test_a_failing_run_is_the_failure_itself(shared_repository: Path) -> None:
    settings = settings_for(shared_repository)
    lanes = Lanes(settings, Metrics())
    runtime = EmbeddedRuntime(settings, lanes)
    bundle = Models(settings, Metrics(), lanes, runtime).served.labels
    await runtime.load(bundle)
    with pytest.raises(Exception, match="Invalid rank"):
        await runtime.infer(bundle, {"tiles": np.zeros((1, 1), np.uint8)}, ["scores"], ask())
