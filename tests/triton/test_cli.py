"""The command `tilesight triton`: what it prints, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.triton.triton_server import ask, regions, row, sum_graph, sum_model, write_model
from tilesight.triton.installation import HOME_VARIABLE
from tilesight.triton.ports import free_ports, is_free

# The room alone: the other rooms of the command line take seconds to import.
COMMAND = [
    *(sys.executable, "-c"),
    "from tilesight.cli import Room, build; "
    "build((Room('tilesight.triton.cli', ('triton',), 'serve'),))()",
    "triton",
]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "repository", "sum", sum_graph(), sum_model())
    return tmp_path / "repository"


@pytest.fixture(autouse=True)
def hang_up_counts() -> Iterator[None]:
    """The command inherits what pytest does on SIGHUP, which under nohup is nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def greeting(process: subprocess.Popen[str]) -> list[str]:
    """The lines up to the last one that is printed when it is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


@pytest.mark.triton
@pytest.mark.usefixtures("triton_home")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_a_signal_ends_it(repository: Path, number: signal.Signals) -> None:
    grpc, http, metrics = free_ports("127.0.0.1", 3)
    log = repository.with_name("triton.log")
    ports = ["--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
    with command("--repository", repository, "--log", log, *ports) as process:
        text = "".join(greeting(process))
        assert "Triton serves sum\n" in text
        assert f"TILESIGHT_RUNTIME=triton TILESIGHT_TRITON_URL=127.0.0.1:{grpc} tilesight" in text
        assert ask(f"127.0.0.1:{grpc}", "sum", {"x": row(4, 2)}, ["y"])["y"].item() == 6
        process.send_signal(number)
        assert process.wait(30) == 0
    assert all(is_free("127.0.0.1", port) for port in (grpc, http, metrics))
    assert not regions(log.read_text(encoding="utf-8"))


@pytest.mark.triton
@pytest.mark.usefixtures("triton_home")
def test_a_triton_that_dies_is_an_error_with_the_end_of_its_log(
    repository: Path, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    options = ["--grpc-port", 0, "--http-port", 0, "--metrics-port", 0, "--log", log]
    with command("--repository", repository, *options) as process:
        greeting(process)
        (server,) = [
            int(entry.name)
            for entry in Path("/proc").glob("[0-9]*")
            if str(repository).encode() in _command_line(entry) and int(entry.name) != process.pid
        ]
        os.kill(server, signal.SIGKILL)
        assert process.wait(30) == 2
        assert process.stderr is not None
        error = process.stderr.read()
    assert "tilesight triton: Triton has ended, status -9; the end of its log:" in error
    assert "Started GRPCInferenceService" in error


def _command_line(process: Path) -> bytes:
    """What the process was started with, where it is a tritonserver."""
    try:
        line = (process / "cmdline").read_bytes()
    except OSError:
        return b""
    return line if b"bin/tritonserver" in line else b""


def test_without_triton_it_says_how_to_get_it(repository: Path, tmp_path: Path) -> None:
    answer = subprocess.run(
        [*COMMAND, "--repository", str(repository)],
        cwd=ROOT,
        env=os.environ | {HOME_VARIABLE: str(tmp_path / "absent")},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"tilesight triton: no Triton in {tmp_path}")
    assert "tilesight triton --install" in answer.stderr


def test_a_repository_that_is_missing_is_named(tmp_path: Path) -> None:
    answer = subprocess.run(
        [*COMMAND, "--repository", str(tmp_path / "absent")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert "absent: no such folder" in answer.stderr
