"""Starting and stopping the real Triton: addresses, errors, and nothing left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tests.conftest import ROOT
from tests.triton.triton_server import (
    ask,
    eventually,
    processes,
    quick,
    regions,
    row,
    sum_graph,
    sum_model,
    write_model,
)
from tilesight.errors import TritonError
from tilesight.triton import TritonServer

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton_home")]

HOLDER = """
import sys, time
from pathlib import Path
from tilesight.triton import TritonServer
server = TritonServer(Path(sys.argv[1])).start()
print(server.pid, server.log_path.parent, flush=True)
time.sleep(600)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, which is loaded in no time."""
    root = tmp_path / "repository"
    write_model(root, "sum", sum_graph(), sum_model())
    return root


def answers(server: TritonServer) -> bool:
    return ask(server.grpc_url, "sum", {"x": row(1, 2)}, ["y"])["y"].item() == 3


def read(url: str) -> bytes:
    with urlopen(url) as page:
        return page.read()


def test_it_serves_and_leaves_nothing_behind(repository: Path) -> None:
    with TritonServer(repository) as server:
        group, folder = server.pid, server.log_path.parent
        assert answers(server)
        assert server.models == ["sum"]
        log = server.log_path.read_text(encoding="utf-8")
        assert "Started GRPCInferenceService" in log
        assert len(processes(group)) == 2  # the server and the stub of one instance
        assert regions(log)
    assert processes(group) == {}
    assert not folder.exists()
    assert not regions(log)


def test_metrics_and_http_are_where_it_says(repository: Path) -> None:
    with quick(repository) as server:
        assert answers(server)
        eventually(lambda: b'_success{model="sum",version="1"} 1' in read(server.metrics_url))
        assert b'"triton"' in read(f"http://{server.http_url}/v2")


def test_a_server_that_was_suspended_is_stopped(repository: Path) -> None:
    server = TritonServer(repository).start()
    group = server.pid
    os.killpg(group, signal.SIGSTOP)
    server.close()
    assert processes(group) == {}


def test_a_killed_server_leaves_no_stub_and_no_shared_memory(repository: Path) -> None:
    server = quick(repository).start()
    group, log = server.pid, server.log_path.read_text(encoding="utf-8")
    assert regions(log)
    os.kill(group, signal.SIGKILL)
    with pytest.raises(TritonError, match="Triton has ended, status -9"):
        server.wait()
    server.close()
    assert processes(group) == {}
    assert not regions(log)


def test_it_starts_again_at_the_same_address(repository: Path) -> None:
    with quick(repository) as server:
        address = server.grpc_url
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        with pytest.raises(TritonError, match="not running"):
            _ = server.pid
        server.start()
        assert server.grpc_url == address
        assert answers(server)


def test_whoever_holds_it_may_be_killed(repository: Path) -> None:
    """No server outlives the process that started it, whatever that died of."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(repository)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        group, folder = holder.stdout.readline().split()
        log = Path(folder, "triton.log").read_text(encoding="utf-8")
        assert regions(log)
        holder.kill()
    eventually(lambda: processes(int(group)) == {})
    eventually(lambda: not Path(folder).exists())
    eventually(lambda: not regions(log))


def test_the_log_is_kept_where_it_was_asked_for(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with quick(repository, log=log) as server:
        assert server.log_path == log
    assert "Started GRPCInferenceService" in log.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_an_error(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(TritonError, match=r"nowhere/triton\.log: cannot be written"):
        quick(repository, log=tmp_path / "nowhere" / "triton.log").start()


def test_a_model_that_cannot_be_loaded_is_named_and_nothing_stays(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "sum" / "1" / "model.onnx").write_bytes(b"no graph")
    log = tmp_path / "triton.log"
    server = quick(repository, log=log)
    with pytest.raises(TritonError, match=r"(?s)did not start, status 1.*'sum'.*INVALID_PROTOBUF"):
        server.start()
    with pytest.raises(TritonError, match="not running"):
        _ = server.pid
    assert not regions(log.read_text(encoding="utf-8"))


def test_a_start_that_takes_too_long_is_given_up(repository: Path) -> None:
    with pytest.raises(TritonError, match=r"not ready after 0\.1 s"):
        quick(repository, start_timeout_s=0.1).start()


def test_a_port_that_is_taken_is_named(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(TritonError, match=f"127.0.0.1:{port}: something listens there"):
            quick(repository, http_port=port).start()


def test_an_address_of_another_machine_is_refused(repository: Path) -> None:
    with pytest.raises(TritonError, match=r"192\.0\.2\.1: not an IPv4 address of this machine"):
        quick(repository, host="192.0.2.1")


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(TritonError, match="nowhere: no such folder"):
        TritonServer(tmp_path / "nowhere")


def test_no_model_is_loaded_before_a_client_asks(repository: Path) -> None:
    with quick(repository, models=[]) as server:
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert not client.is_model_ready("sum")
            client.load_model("sum")
        assert answers(server)


def test_an_export_under_way_is_no_model(repository: Path) -> None:
    shutil.copytree(repository / "sum" / "1", repository / ".export-1")
    with quick(repository) as server:
        assert server.models == ["sum"]
        assert answers(server)


@pytest.mark.parametrize("control", ["explicit", "none"])
def test_files_of_ours_are_no_models_and_no_versions(repository: Path, control: str) -> None:
    shutil.copytree(repository / "sum" / "1", repository / "sum" / ".export-2")
    (repository / "sum" / "1" / "manifest.json").write_text("{}", encoding="utf-8")
    (repository / "repository.json").write_text("{}", encoding="utf-8")
    (repository / ".lock").touch()
    with quick(repository, control=control) as server:
        assert answers(server)


def test_without_control_nobody_unloads(repository: Path) -> None:
    with (
        quick(repository, control="none") as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        with pytest.raises(InferenceServerException, match="explicit model load / unload"):
            client.unload_model("sum")
        assert answers(server)


def test_without_control_models_cannot_be_chosen(repository: Path) -> None:
    with pytest.raises(TritonError, match="models: with control none"):
        quick(repository, models=["sum"], control="none")
