"""The scenarios, for seconds, against a gateway that runs as a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from loadtest import lanes, overload, reload, soak
from loadtest.client import Load, Plan
from loadtest.follower import Follower
from loadtest.forms import Precision, promoted, served_as
from loadtest.gateway import MODELS, Gateway, GatewayError, ready, serving
from loadtest.memory import MIB, Watch, sample
from loadtest.mix import Expectation, mixed, wrong
from loadtest.tiles import drawn_tiles
from loadtest.trend import LEAKING
from loadtest.two_versions import two_versions
from tests.conftest import ROOT
from tests.serving.bundles import write_repository
from tests.serving.gateway import wait_for
from tilesight.repository import Repository
from tilesight.runtimes import passed_pairs

# Small enough for a test: what is found is not judged here, only that it is found.
SHORT = ["--tiles-limit", "8"]
_LEAK = 1_000_000  # bytes a request: seconds have to do


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of all tiny models."""
    folder = tmp_path_factory.mktemp("models")
    return write_repository(write_repository(folder), version=2)


@pytest.fixture(scope="module")
def gateway(repository: Path) -> Iterator[Gateway]:
    with serving(model_repository=repository, device="cpu", follow_s=0.05) as started:
        yield started


def checks(report: Path) -> dict[str, dict[str, Any]]:
    document = json.loads(report.read_text(encoding="utf-8"))
    assert document["machine"]["cores"] >= 1
    return {one["what"]: one for one in document["checks"]}


def test_the_gateway_is_a_process_that_ends(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILESIGHT_FOLLOW_S", "nonsense, but of no concern here")
    with serving(model_repository=repository, device="cpu") as one:
        assert one.pid is not None
        assert sample(one.pid).anonymous > 10 * MIB
        assert ready(one.url)
    assert not psutil.pid_exists(one.pid)
    assert not ready(one.url)


def test_a_gateway_that_does_not_start_says_why() -> None:
    with pytest.raises(GatewayError, match="TILESIGHT_FOLLOW_S"), serving(follow_s=-1):
        pass


def test_memory_counts_the_children() -> None:
    code = "import sys; kept = bytearray(b'x') * (64 << 20); print(flush=True); sys.stdin.read()"
    before = sample(psutil.Process().pid)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdin
        child.stdout.readline()
        during = sample(psutil.Process().pid)
        child.stdin.close()
    assert during.anonymous - before.anonymous > 60 * MIB
    assert during.processes == before.processes + 1


def test_a_watch_loses_nothing_when_it_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    with Watch(psutil.Process().pid, every_s=0.01, requests=lambda: 7, file=file) as watch:
        wait_for(lambda: len(watch.samples) > 3)
        assert len(soak.read_samples(file)) >= 3
    assert soak.read_samples(file) == watch.samples
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"at": 1.0, "reque')
    assert soak.read_samples(file) == watch.samples


def test_every_request_of_the_mix_is_answered_as_it_says(gateway: Gateway) -> None:
    tiles = drawn_tiles(4)
    requests = mixed(gateway.url, tiles)
    expectation = Expectation()

    def note(status: int, answer: bytes) -> None:
        expectation(status, answer)
        if expectation.answers.total() >= len(requests):
            load.stop()

    plan = Plan(url=gateway.url, connections=2, warmup_s=0.0, seconds=30.0)
    load = Load(plan, requests, note)
    uvloop.run(load.run())
    assert dict(expectation.unexpected) == {}
    seen = {name.partition(" ")[0] for name in expectation.answers}
    assert seen >= {one.name for one in wrong(tiles[0])}


def test_overload(gateway: Gateway, tmp_path: Path) -> None:
    out = tmp_path / "overload.json"
    words = ["--url", gateway.url, "--seconds", "0.5", "--repeats", "1", "--factors", "0.5", "4"]
    status = overload.main([*words, *SHORT, "--out", str(out)])
    found = checks(out)
    assert status == int(any(one["holds"] is False for one in found.values()))
    assert found["answers other than 200, 429, 503"]["holds"]
    assert found["429 and 503 without Retry-After"]["holds"]
    assert found["memory: before, most, after"]["holds"] is not None
    written = json.loads(out.read_text(encoding="utf-8"))
    stages = written["stages"]
    assert 0 < written["refuser_ms"] < 10
    assert [one["factor"] for one in stages] == [0.5, 4.0]
    assert all(one["raw"] for one in stages if "raw" in one)
    assert out.with_suffix(".png").stat().st_size > 1000


def test_lanes(gateway: Gateway, tmp_path: Path) -> None:
    out = tmp_path / "lanes.json"
    words = ["--url", gateway.url, "--seconds", "1", "--turns", "2", "--rate", "40"]
    lanes.main([*words, "--batch", "4", *SHORT, "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    turns = found["turns"]
    assert [one["turn"] for one in turns] == ["alone", "beside a backfill"] * 2
    assert all(one["answered"] > 10 and not one["failed"] for one in turns)
    # A busy machine answers a backfill late, but it does.
    assert [one["backfill_answered"] > 0 for one in turns] == [False, True] * 2
    assert out.with_suffix(".png").stat().st_size > 1000


def test_reload(gateway: Gateway, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "reload.json"
    words = ["--url", gateway.url, "--repository", str(repository), "--seconds", "0.5"]
    reload.main([*words, "--promotions", "6", "--pause", "0.1", *SHORT, "--out", str(out)])
    found = checks(out)
    for what in (
        "promotions that the gateway followed",
        "requests that failed or were answered by a mixture",
        "versions that answered",
    ):
        assert found[what]["holds"], found[what]


def test_reload_needs_two_versions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="signa has no two versions"):
        Follower("http://127.0.0.1:1", write_repository(tmp_path), "signa")


def test_reload_of_a_gateway_needs_its_repository(gateway: Gateway) -> None:
    with pytest.raises(ValueError, match="--url needs --repository"):
        reload.main(["--url", gateway.url])


@pytest.mark.parametrize(
    ("model", "precision", "passed"),
    [
        ("signa", "int8", ["onnxruntime int8", "openvino int8"]),
        ("jtts", "float32", ["onnxruntime float16-weights", "openvino bfloat16"]),
    ],
)
def test_a_second_version_of_a_committed_model_is_its_other_graph(
    model: str, precision: str, passed: list[str], tmp_path: Path
) -> None:
    made = two_versions(MODELS, tmp_path / "models", model)
    served = made.current(model)
    added = max(made.versions(model))
    assert served == Repository(MODELS).current(model)
    assert made.verified(model, added).graph.precision == precision
    assert made.manifest(model, served).graph.precision != precision
    assert made.stale_configs() == {}
    # What passed with this graph, and nothing of the others.
    pairs = passed_pairs(made.folder(model, added), made.manifest(model, added))
    assert [str(pair) for pair in pairs] == [f"{pair} of model.onnx" for pair in passed]
    # The same again, of a repository whose served version is not its only one.
    again = two_versions(made.root, tmp_path / "again", model)
    assert again.versions(model)[-2:] == [added, added + 1]
    assert again.current(model) == served


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("model", ["signa", "jtts"])
def test_a_comparison_serves_the_precision_that_is_asked_for(
    model: str, precision: Precision, tmp_path: Path
) -> None:
    served = served_as(MODELS, model, precision, tmp_path)
    assert Repository(served).manifest(model, promoted(served, model)).graph.precision == precision


def test_a_model_without_a_second_graph_has_no_other_precision(tmp_path: Path) -> None:
    source = write_repository(tmp_path / "tiny")
    Repository(source).promote({"signa": 1})
    with pytest.raises(ValueError, match=r"neither model\.fp32\.onnx nor model\.int8\.onnx"):
        served_as(source, "signa", "int8", tmp_path / "out")


def test_the_soak_calls_the_leaking_control_a_leak(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "_STARTED_WITH", {"model_repository": repository, "device": "cpu"})
    out, file = tmp_path / "soak.json", tmp_path / "samples.jsonl"
    words = ["--minutes", "0.12", "--every", "0.05", "--capacity", "25", "--samples", str(file)]
    leak = ["--control", "--leak", str(_LEAK)]
    assert soak.main([*words, *leak, *SHORT, "--out", str(out)]) == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["trend"]["verdict"] == LEAKING
    planted = 10_000 * _LEAK / MIB
    assert planted / 2 < document["trend"]["slope"]["middle"] < planted * 2
    assert document["unexpected"] == {}
    assert out.with_suffix(".png").stat().st_size > 1000
    # The same samples are no success where no leak was asked for.
    assert soak.main(["--judge", str(file)]) == 1


def test_locust_runs_all_its_users(gateway: Gateway) -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    options = ["-u", "20", "-r", "20", "-t", "3s", "--host", gateway.url, "--json"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    entries = json.loads(done.stdout)
    failures = {one["name"]: one["num_failures"] for one in entries if one["num_failures"]}
    assert (failures, done.returncode) == ({}, 0), done.stderr[-2000:]
    names = {one["name"] for one in entries}
    assert {"/labels", "/metrics"} <= names
    assert any(name.startswith("wrong: ") for name in names)
