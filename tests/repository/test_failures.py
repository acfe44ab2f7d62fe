"""Commands that meet each other, are killed, or find the disk full: whole before or whole after."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.repository.versions import ENCODER, HEAD, contents
from tilesight.errors import BundleError
from tilesight.locks import held
from tilesight.repository import Repository

PROMOTE = """
import sys
from pathlib import Path
from tilesight.repository import Repository
repository = Repository(Path(sys.argv[1]))
for version in sys.argv[3:]:
    repository.promote({sys.argv[2]: int(version)})
"""
KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from tilesight import repository
write_text = repository.write_text
def killed(path, text):
    if path.name == repository.REPOSITORY_NAME:
        os.kill(os.getpid(), signal.SIGKILL)
    write_text(path, text)
repository.write_text = killed
repository.Repository(Path(sys.argv[1])).promote({"signa": 1})
"""
# The system lets no file grow beyond the limit, as a disk does that has no room left.
FULL_DISK = """
import resource, sys
from pathlib import Path
from tilesight.errors import BundleError
from tilesight.repository import Repository
repository = Repository(Path(sys.argv[1]))
repository.promote({"jtts": 2})
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    repository.promote({"signa": 1})
except BundleError as error:
    print(error)
"""
HOLD = """
import sys
from pathlib import Path
from tilesight.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_reader_never_sees_half_a_promotion(repository: Repository) -> None:
    repository.promote({HEAD: 1})
    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            state = repository.state()
            seen.add((repository.current(ENCODER, state), repository.current(HEAD, state)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in (2, 1) * 20:
            repository.promote({HEAD: version})
    finally:
        done.set()
        reader.join()
    assert seen == {(1, 1), (2, 2)}


def test_two_commands_at_once_lose_nothing(repository: Repository) -> None:
    flips = (1, 2) * 10 + (1,)
    commands = [started(PROMOTE, repository.root, name, *flips) for name in ("signa", "jtts")]
    for command in commands:
        code, _, err = finished(command)
        assert code == 0, err
    promoted = repository.state().promoted
    assert {name: promotion.version for name, promotion in promoted.items()} == {
        "signa": 1,
        "jtts": 1,
    }
    assert repository.stale_configs(["signa", "jtts"]) == {}


def test_killed_between_configuration_and_state(repository: Repository) -> None:
    repository.promote({"signa": 2})
    code, _, _ = finished(started(KILLED_BEFORE_THE_RENAME, repository.root))
    assert code == -9
    assert repository.current("signa") == 2
    assert "is '    versions: 1\\n'" in repository.stale_configs(["signa"])["signa"]
    assert repository.write_configs(["signa"]) == ["signa"]
    repository.promote({"signa": 1})
    assert repository.current("signa") == 1
    assert repository.stale_configs(["signa"]) == {}


def test_a_full_disk(repository: Repository) -> None:
    repository.promote({"jtts": 2, "signa": 2})
    before = contents(repository.root)
    code, out, err = finished(started(FULL_DISK, repository.root))
    assert code == 0, err
    assert out.strip().endswith("File too large")
    assert out.startswith(str(repository.root))
    assert contents(repository.root) == before


def test_the_second_command_waits(repository: Repository) -> None:
    repository.promote({"signa": 2})
    holder = started(HOLD, repository.root / ".repository.lock")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiting = threading.Thread(target=repository.promote, args=({"signa": 1},))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert repository.current("signa") == 2
    holder.kill()
    finished(holder)
    waiting.join(30)
    assert repository.current("signa") == 1


def test_a_lock_that_is_never_freed(tmp_path: Path) -> None:
    holder = started(HOLD, tmp_path / "lock")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(BundleError) as caught, held(tmp_path / "lock", wait_s=0.2):
            pytest.fail("the lock was taken twice")
    finally:
        finished(holder)
    assert str(caught.value) == (
        f"{tmp_path}: another command has been changing it for 0.2 seconds"
    )


def test_a_lock_that_cannot_be_made(repository: Repository) -> None:
    (repository.root / ".repository.lock").mkdir()
    with pytest.raises(BundleError, match=r"\.repository\.lock: Is a directory"):
        repository.promote({"signa": 1})
