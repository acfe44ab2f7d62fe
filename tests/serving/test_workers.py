"""Several workers behind one port, as real processes: metrics, deaths, failures."""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving import cli
from serving.supervisor import OPTIONS
from tests.serving import bundles
from tests.serving.command import Samples, Serving, samples, send, serving, total
from tests.serving.gateway import tile, wait_for

REQUESTS = 40
COUNT = "tilesight_request_duration_seconds_count"
SCORES = "tilesight_label_score_count"


@pytest.fixture
def pair(shared_repository: Path, tmp_path: Path) -> Iterator[Serving]:
    with serving(shared_repository, tmp_path, "--workers", "2", ready=2) as found:
        yield found


def label_many(pair: Serving) -> None:
    """Sends the requests, each over a connection of its own."""
    body = tile("blue")
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(
            lambda _: send(pair.address, "POST", "/labels", body), range(REQUESTS)
        )
        assert [status for status, _, _ in answers] == [200] * REQUESTS


def went_back(before: Samples, after: Samples) -> dict[object, tuple[float, float]]:
    """The counters and histograms of the gateway that have fallen, or are gone."""
    ends = ("_total", "_count", "_sum", "_bucket")
    return {
        key: (value, after.get(key, 0.0))
        for key, value in before.items()
        if key[0].startswith("tilesight_") and key[0].endswith(ends) and after.get(key, 0.0) < value
    }


def pids(pair: Serving) -> dict[int, int]:
    """The process in each slot, the newest."""
    return {line["worker"]: line["pid"] for line in pair.events("worker started")}


def asked(pair: Serving, path: str) -> list[int]:
    """Which worker answered each request for the path, as far as the log has them."""
    return [line["worker"] for line in pair.events("request") if line["path"] == path]


def order(pair: Serving, worker: int) -> list[str]:
    """When this slot's models answered, and when it began to accept connections."""
    lines = [one for one in pair.events("") if one.get("worker") == worker]
    return [line["event"] for line in lines if re.match("ready|Application startup", line["event"])]


def test_whichever_worker_is_asked_tells_the_sum_of_all(pair: Serving) -> None:
    label_many(pair)
    wait_for(lambda: len(asked(pair, "/labels")) == REQUESTS)
    assert set(asked(pair, "/labels")) == {0, 1}, (
        "one worker answered everything: the test shows nothing"
    )
    # A worker counts the scores of its last tiles when it is asked, or soon.
    wait_for(lambda: total(pair.samples(), SCORES, label="water") == REQUESTS)
    scraped: set[int] = set()
    # Connections go to either worker; both must be seen to tell the same.
    while scraped != {0, 1}:
        found = pair.samples()
        scraped = set(asked(pair, "/metrics"))
        assert total(found, COUNT, endpoint="/labels", status="200") == REQUESTS
        assert total(found, "tilesight_stage_duration_seconds_count", stage="total") == REQUESTS
        assert total(found, "tilesight_label_present_total", label="water") == REQUESTS
        assert total(found, SCORES, label="water") == REQUESTS
        assert total(found, "tilesight_workers") == 2
        assert total(found, "tilesight_model_info", name="signa") == 1
        assert {dict(one)["worker"] for name, one in found if name == "process_open_fds"} == {
            "0",
            "1",
        }


def test_a_killed_worker_is_replaced_and_nothing_is_forgotten(pair: Serving) -> None:
    label_many(pair)
    before = pair.samples()
    old = pids(pair)
    os.kill(old[0], signal.SIGKILL)
    wait_for(lambda: total(pair.samples(), "tilesight_workers") == 1)
    statuses = []

    def replaced() -> bool:
        statuses.append(send(pair.address, "GET", "/readyz")[0])
        return len(pair.events("ready")) == 3

    wait_for(replaced)
    wait_for(lambda: len(order(pair, 0)) == 4)
    assert set(statuses) == {200}
    assert order(pair, 0)[-2:] == ["ready", "Application startup complete."]
    assert pids(pair)[0] != old[0] and pids(pair)[1] == old[1]
    after = pair.samples()
    assert went_back(before, after) == {}
    assert total(after, COUNT, endpoint="/labels") == REQUESTS
    assert total(after, "tilesight_workers") == 2
    label_many(pair)
    assert total(pair.samples(), COUNT, endpoint="/labels") == 2 * REQUESTS
    pair.process.terminate()
    assert pair.process.wait(30) == 0
    (line,) = [one for one in pair.events("worker ended") if one["pid"] == old[0]]
    assert line["exit_status"] == -signal.SIGKILL


def test_workers_stop_when_their_supervisor_is_killed(pair: Serving) -> None:
    workers = pids(pair).values()
    pair.process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


def test_a_model_that_cannot_be_loaded_ends_all(repository: Path, tmp_path: Path) -> None:
    folder = bundles.replace_graph(repository, "jtts", b"no graph")
    answer = subprocess.run(
        [sys.executable, "-m", "tilesight.cli", "serve", "--port", "0", "--workers", "2"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TILESIGHT_MODEL_REPOSITORY": str(repository),
            "TILESIGHT_AUTOTUNE_S": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith(f"tilesight serve: {folder / 'model.onnx'}: ")
    assert "Traceback" not in answer.stderr


def test_an_address_that_is_taken_is_a_message_and_a_status(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = subprocess.run(
            [sys.executable, "-m", "tilesight.cli", "serve", "--port", str(port), "--workers", "2"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert f"TILESIGHT_HOST, TILESIGHT_PORT: cannot listen at 127.0.0.1 port {port}" in last


def test_every_option_of_the_command_reaches_the_workers() -> None:
    assert set(inspect.signature(cli.serve).parameters) == set(OPTIONS)


def test_one_worker_shares_nothing(shared_repository: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serving(shared_repository, tmp_path, TMPDIR=str(temporary)) as alone:
        assert send(alone.address, "POST", "/labels", tile("blue"))[0] == 200
        assert [one for one in temporary.iterdir() if "metrics" in one.name] == []
        page = send(alone.address, "GET", "/metrics")[2].decode()
    assert total(samples(page), "process_open_fds") > 0
    assert 'worker="' not in page
    assert alone.process.returncode == 0
