"""The gateway as its containers run it: a read-only file system, no root, no capabilities."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serving.bundles import write_repository
from tests.serving.gateway import _answers, post, tile, wait_for

USER = "10001"
# Everything read-only but one small tmpfs. What the image has at /tmp lies at TMPDIR here, and
# interpreter, packages and code are mounted where another user may go: this user's home may be
# closed to it.
CONFINED = f"""
set -e
mount --make-rprivate /
for one in python packages code; do eval mount --bind '"$'$one'"' "$HERE/$one"; done
mount -t tmpfs -o size=32m,mode=1777,noexec,nosuid,nodev tmpfs "$TMPDIR"
mount -o remount,bind,ro /
exec setpriv --reuid {USER} --regid {USER} --clear-groups --bounding-set=-all --no-new-privs "$@"
"""


def _may_confine() -> bool:
    if not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(
    not _may_confine(), reason="needs the right to make a file system read-only"
)


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that another user may enter, as pytest's are its owner's alone."""
    folder = tmp_path_factory.mktemp("read_only")
    for path in [folder, *folder.parents]:
        if path.stat().st_mode & 0o001:
            break
        path.chmod(path.stat().st_mode | 0o055)
    yield folder


@pytest.fixture(scope="module")
def gateway(open_folder: Path) -> Iterator[tuple[tuple[str, int], subprocess.Popen[bytes]]]:
    """Address and process of a gateway that may write to one tmpfs and nowhere else."""
    mounted = {
        "python": sys.base_prefix,
        "packages": sysconfig.get_path("purelib"),
        "code": str(ROOT),
    }
    for name in ("tmp", *mounted):
        (open_folder / name).mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    environment = mounted | {
        "HERE": str(open_folder),
        "LD_LIBRARY_PATH": f"{open_folder}/python/lib",  # for a shared libpython
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{open_folder}/code:{open_folder}/packages",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(open_folder / "tmp"),
        "TILESIGHT_AUTOTUNE_S": "0",
        "TILESIGHT_CACHE_DIR": "/var/cache/tilesight",
        "TILESIGHT_DEVICE": "cpu",
        "TILESIGHT_MODEL_REPOSITORY": str(write_repository(open_folder / "models")),
        "TILESIGHT_PORT": str(address[1]),
        "TILESIGHT_SPOOL_BYTES": "4096",
        "TILESIGHT_WORKERS": "2",
    }
    python = f"{open_folder}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", CONFINED, "sh", python, "-m", "tilesight.cli", "serve"],
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: process.poll() is not None or _ready(address), 90)
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        print(said.decode()[-4000:])


def _ready(address: tuple[str, int]) -> bool:
    try:
        return _answers(address, b"GET /readyz HTTP/1.0\r\n\r\n", b" 200 ")
    except (ConnectionError, TimeoutError):
        return False


def test_it_gets_ready_and_reads_a_spooled_tile(
    gateway: tuple[tuple[str, int], subprocess.Popen[bytes]],
) -> None:
    address, process = gateway
    assert process.poll() is None
    body = tile("blue") + bytes(1 << 20)
    answers: list[tuple[int, dict[str, Any]]] = []

    def answered() -> bool:
        # One of the two workers may be ready before the other.
        answers.append(post(address, "/labels", body))
        return answers[-1][1].get("title") != "The gateway is not ready"

    wait_for(answered)
    status, answer = answers[-1]
    assert status == 200, json.dumps(answer)


def test_it_is_neither_root_nor_able(
    gateway: tuple[tuple[str, int], subprocess.Popen[bytes]],
) -> None:
    _, process = gateway
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {USER}
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_its_file_system_is_read_only(
    gateway: tuple[tuple[str, int], subprocess.Popen[bytes]],
) -> None:
    _, process = gateway
    mounts = Path(f"/proc/{process.pid}/mounts").read_text(encoding="utf-8").splitlines()
    (root,) = (line.split() for line in mounts if line.split()[1] == "/")
    assert "ro" in root[3].split(",")
