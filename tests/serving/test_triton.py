"""The gateway over a real Triton: the same answers, the same switches, and every way to lose it."""

import os
import shutil
import signal
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tritonclient import grpc as client

from serving.app import create_app
from serving.settings import Settings
from tests.serving import bundles, traffic
from tests.serving.gateway import (
    get,
    in_flight,
    post,
    served,
    settings_for,
    started,
    tile,
    versions,
    wait_for,
)
from tests.triton.triton_server import triton_home
from tilesight.errors import BundleError, ConfigError, TilesightError
from tilesight.repository import Repository
from tilesight.triton import Installation, TritonServer

__all__ = ["triton_home"]

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton_home")]

KEY = "a key of this test"
RESTRICTED = f"--grpc-restricted-protocol=model-repository,model-config:admin-key={KEY}"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models in two versions, the first one promoted."""
    return two_versions(tmp_path_factory.mktemp("triton") / "model_repository")


def two_versions(root: Path) -> Path:
    for version in (1, 2):
        bundles.write_repository(root, version)
    shelf = Repository(root)
    shelf.configure(threads=1, max_batch_size=2)
    shelf.promote(dict.fromkeys(traffic.MODELS, 1))
    shelf.write_configs()
    return root


@pytest.fixture(scope="module")
def triton(triton_home: Installation, repository: Path) -> Iterator[TritonServer]:
    """A Triton without models: the gateway loads them."""
    with TritonServer(repository, [], options=[RESTRICTED]) as server:
        yield server


def over(server: TritonServer, repository: Path, **options: object) -> Settings:
    behind = {"runtime": "triton", "triton_url": server.grpc_url, "triton_key": KEY}
    return settings_for(repository, **(behind | {"follow_s": 0.1} | options))


def refused(settings: Settings) -> TilesightError:
    """What a gateway that cannot be started says."""
    told: list[TilesightError] = []
    with TestClient(create_app(settings, told.append)):
        wait_for(lambda: bool(told))
    return told[0]


def loaded(server: TritonServer) -> set[tuple[str, str]]:
    headers = {"triton-grpc-protocol-admin-key": KEY}
    with client.InferenceServerClient(server.grpc_url) as asking:
        index = asking.get_model_repository_index(headers=headers).models
    return {(one.name, one.version) for one in index if one.state == "READY"}


def test_the_answers_are_those_of_the_embedded_runtime(
    triton: TritonServer, repository: Path
) -> None:
    paths = [*traffic.PATHS, "/labels?explain=true", "/caption?beams=3&explain=true"]
    colours = ["blue", "lime", "white", traffic.COLOUR]
    files = [("image", (f"{index}.png", tile(one))) for index, one in enumerate(colours)]
    with started(settings_for(repository)) as one, started(over(triton, repository)) as other:
        for path in paths:
            embedded, remote = (gateway.post(path, files=files) for gateway in (one, other))
            assert (embedded.status_code, remote.status_code) == (200, 200)
            pairs = zip(embedded.json()["results"], remote.json()["results"], strict=True)
            for expected, found in pairs:
                assert found["model"] == expected["model"] | {"backend": "triton"}
                assert traffic.said(found) == traffic.said(expected)


def test_models_tells_of_the_server(triton: TritonServer, repository: Path) -> None:
    with started(over(triton, repository)) as gateway:
        models = gateway.get("/models").json()["models"]
    assert [one["backend"] for one in models] == ["triton"] * 4
    runtime = models[0]["runtime"]
    assert (runtime["runtime"], runtime["max_batch_size"]) == ("triton", 2)
    assert runtime["triton"].startswith("2.")


@pytest.mark.slow
def test_no_request_fails_and_no_answer_is_mixed_while_versions_change(
    triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    expected = traffic.references(shutil.copytree(repository, tmp_path / "copy"))
    with served(over(triton, repository)) as address:
        replies = traffic.under_change(address, repository, count=200, changes=4)
        assert {status for _, status, _ in replies} == {200}
        for path, _, answer in replies:
            assert traffic.said(answer) == expected[path, answer["model"]["version"]]
        assert {one["model"]["version"] for _, _, one in replies} == {1, 2}
        # What nobody asks any more goes.
        wait_for(lambda: loaded(triton) == {(name, "1") for name in bundles.MODELS})


def test_a_version_that_answers_otherwise_is_not_served(
    triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    golden = {"outputs": {"scores": [0.5] * 4}, "tolerance": 1e-3}
    # The server's folder is another one than the gateway's, which knows better.
    copy = shutil.copytree(repository, tmp_path / "copy")
    bundles.edit_manifest(copy / "signa" / "2", "golden", value=golden)
    with served(over(triton, copy)) as address:
        Repository(copy).promote({"signa": 2})
        wait_for(lambda: "follow_failures_total 0.0" not in get(address, "/metrics"))
        status, answer = post(address, "/labels", tile("blue"))
        assert (status, answer["model"]["version"]) == (200, 1)
        wait_for(lambda: ("signa", "2") not in loaded(triton))
        assert ("signa", "1") in loaded(triton)


def test_a_server_of_other_models_is_refused(
    triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(repository, tmp_path / "copy")
    folder = bundles.replace_graph(copy, "jtts", bundles.caption_graph(version=3)[0])
    bundles.record_golden(folder)
    error = refused(over(triton, copy))
    assert isinstance(error, BundleError)
    assert "Triton's configuration of jtts: parameters: sha256.1 is " in str(error)


def test_a_file_that_is_not_the_configured_one_is_refused(
    triton_home: Installation, repository: Path, tmp_path: Path
) -> None:
    theirs = shutil.copytree(repository, tmp_path / "theirs")
    (theirs / "signa" / "1" / "model.onnx").write_bytes(bundles.labels_graph(bias=-2.0)[0])
    with TritonServer(theirs, []) as server:
        error = refused(over(server, repository))
    assert isinstance(error, BundleError)
    assert "Triton cannot load it" in str(error)
    assert "sha256 is" in str(error)


def test_a_wrong_key_is_named(triton: TritonServer, repository: Path) -> None:
    error = refused(over(triton, repository, triton_key="guessed"))
    assert isinstance(error, ConfigError)
    assert str(error).startswith("TILESIGHT_TRITON_KEY: ")


def test_a_server_that_loads_its_models_itself(triton_home: Installation, repository: Path) -> None:
    with TritonServer(repository, control="none") as server:
        with started(over(server, repository, triton_control=False)) as gateway:
            answer = gateway.post("/labels", content=tile("blue"), headers=PNG)
            assert answer.json()["model"]["backend"] == "triton"
        # Control that the server does not give is not missed while nothing has to be loaded.
        Repository(repository).promote({"signa": 2})
        try:
            error = refused(over(server, repository))
        finally:
            Repository(repository).rollback(["signa"])
    assert isinstance(error, ConfigError)
    assert str(error).startswith("TILESIGHT_TRITON_CONTROL: ")


@pytest.mark.slow
def test_a_server_that_comes_late_goes_and_comes_back(
    triton_home: Installation, repository: Path
) -> None:
    server = TritonServer(repository, [], options=[RESTRICTED])
    with TestClient(create_app(over(server, repository))) as gateway:

        def labels() -> tuple[int, str | None, str]:
            answer = gateway.post("/labels", content=tile("blue"), headers=PNG)
            return answer.status_code, answer.headers.get("Retry-After"), answer.text

        def is_away() -> bool:
            status, retry, text = labels()
            return (status, retry) == (503, "1") and "backend-unavailable" in text

        wait_for(is_away)
        assert gateway.get("/healthz").status_code == 200
        try:
            server.start()
            wait_for(lambda: gateway.get("/readyz").status_code == 200)
            assert labels()[0] == 200
            server.stop()
            assert is_away(), "also before anybody has noticed"
            wait_for(lambda: gateway.get("/readyz").status_code == 503)
            server.start()
            wait_for(lambda: gateway.get("/readyz").status_code == 200)
            assert labels()[0] == 200
        finally:
            server.close()


def test_a_model_that_somebody_unloads_is_loaded_again(
    triton: TritonServer, repository: Path
) -> None:
    headers = {"triton-grpc-protocol-admin-key": KEY}
    with started(over(triton, repository)) as gateway:
        with client.InferenceServerClient(triton.grpc_url) as somebody:
            somebody.unload_model("jtts", headers=headers)
        wait_for(lambda: gateway.get("/readyz").status_code == 503)
        wait_for(lambda: gateway.get("/readyz").status_code == 200)
        assert gateway.post("/caption", content=tile("blue"), headers=PNG).status_code == 200


@pytest.mark.slow
def test_a_server_that_hangs(triton_home: Installation, repository: Path) -> None:
    with (
        TritonServer(repository, [], options=[RESTRICTED]) as server,
        started(over(server, repository, deadline_s=1.0)) as gateway,
    ):
        os.kill(server.pid, signal.SIGSTOP)
        begun = time.monotonic()
        answer = gateway.post("/labels", content=tile("blue"), headers=PNG)
        assert answer.status_code == 504, answer.text
        assert answer.json()["type"] == "/problems/deadline-exceeded"
        assert time.monotonic() - begun < 5
        # Once the hanging is noticed nobody has to wait for the deadline.
        wait_for(lambda: gateway.get("/readyz").status_code == 503)
        answer = gateway.post("/labels", content=tile("blue"), headers=PNG)
        assert answer.json()["type"] == "/problems/backend-unavailable"
        os.kill(server.pid, signal.SIGCONT)
        wait_for(lambda: gateway.get("/readyz").status_code == 200)
        assert gateway.post("/labels", content=tile("blue"), headers=PNG).status_code == 200


@pytest.fixture(scope="module")
def slow(
    triton_home: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TritonServer, Path]]:
    """A Triton whose labels take 84 billion operations, one at a time, and one more may wait."""
    root = bundles.write_repository(tmp_path_factory.mktemp("slow") / "model_repository")
    bundles.record_golden(bundles.replace_graph(root, "signa", bundles.slow_graph()))
    Repository(root).configure(threads=1, max_batch_size=1, max_queue_size=1)
    with TritonServer(root, []) as server:
        yield server, root


def failed(address: str, reason: str) -> float:
    """How many requests of the labels Triton counts as failed for the reason."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        page = answer.read().decode()
    lines = [line for line in page.splitlines() if line.startswith("nv_inference_request_failure")]
    found = [one for one in lines if f'reason="{reason}"' in one and 'model="signa"' in one]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


@pytest.mark.slow
def test_a_late_answer_and_a_full_queue(slow: tuple[TritonServer, Path]) -> None:
    server, repository = slow
    with served(over(server, repository, triton_key=None, deadline_s=0.25)) as address:
        assert post(address, "/labels", tile("blue"))[1]["type"] == "/problems/deadline-exceeded"
    with (
        served(over(server, repository, triton_key=None)) as address,
        ThreadPoolExecutor(6) as clients,
    ):
        replies = list(clients.map(lambda _: post(address, "/labels", tile("blue")), range(6)))
    kinds = Counter(answer.get("type", "answered") for _, answer in replies)
    assert kinds["answered"] >= 2
    assert kinds["/problems/overloaded"] >= 1
    assert kinds.total() == kinds["answered"] + kinds["/problems/overloaded"]


def test_a_client_that_leaves_is_forgotten_by_the_server_too(
    slow: tuple[TritonServer, Path],
) -> None:
    server, repository = slow
    body = tile("blue")
    request = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    request += f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    before = failed(server.metrics_url, "CANCELED")
    with (
        served(over(server, repository, triton_key=None)) as address,
        ThreadPoolExecutor(1) as clients,
    ):
        busy = clients.submit(post, address, "/labels", body)
        wait_for(lambda: in_flight(1) in get(address, "/metrics"))
        time.sleep(0.2)
        with socket.create_connection(address, 10) as connection:
            connection.sendall(request)
            wait_for(lambda: in_flight(2) in get(address, "/metrics"))
            time.sleep(0.2)
        assert busy.result()[0] == 200
        wait_for(lambda: failed(server.metrics_url, "CANCELED") > before)


def test_versions_of_other_tensors_are_not_switched_under_way(
    triton_home: Installation, tmp_path: Path
) -> None:
    repository = two_versions(tmp_path / "model_repository")
    memory, *_ = bundles.encoder_graph(version=2)[2]
    folder = repository / "spatialnet_vit_encoder" / "2"
    bundles.edit_manifest(folder, "outputs", value=[memory.model_dump()])
    with (
        TritonServer(repository, []) as server,
        served(over(server, repository, triton_key=None)) as address,
    ):
        Repository(repository).promote({"spatialnet_vit_head": 2})
        wait_for(lambda: "follow_failures_total 0.0" not in get(address, "/metrics"))
        assert versions(address)["spatialnet_vit_head"] == 1
        assert post(address, traffic.PATHS[2], tile("blue"))[0] == 200
