import importlib.metadata
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import ways
from serving.autotune import Cache, cache_key
from serving.openvino_session import OpenVinoSession, open_session, usable_pairs
from serving.repository import Bundle
from serving.sessions import CPU, OrtSession, Stop
from serving.stations import Plan
from tests.serving.bundles import (
    MODELS,
    edit_manifest,
    labels_graph,
    slow_graph,
    write_bundle,
    write_repository,
)
from tests.serving.gateway import settings_for, started, tile
from tilesight.cores import usable_cores
from tilesight.errors import BundleError, ConfigError, ManifestError
from tilesight.files import sha256
from tilesight.manifest import Golden, TensorSpec, read
from tilesight.openvino_graph import StoppedError, installed
from tilesight.processor import flags, has_bfloat16
from tilesight.runtimes import RUNTIMES_NAME, Pair, Precision, RuntimeName, runtimes_text

needs_openvino = pytest.mark.skipif(not installed(), reason="OpenVINO is not installed")
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(flags()), reason="this processor has no bfloat16"
)
WITH, WITHOUT = frozenset({"avx512f", "avx512_bf16"}), frozenset({"avx512f", "avx2"})


def drawn(specs: list[TensorSpec], rows: int) -> dict[str, NDArray[Any]]:
    """Random inputs that every tiny graph can read."""
    random = np.random.default_rng(rows)
    made = {}
    for spec in specs:
        shape = [rows, *spec.shape[1:]]
        high = 256 if spec.dtype == "uint8" else 3
        values = (
            random.random(shape) if spec.dtype == "float32" else random.integers(1, high, shape)
        )
        made[spec.name] = values.astype(spec.dtype)
    return made


def labels_session(**options: Any) -> OpenVinoSession:  # noqa: ANN401
    return OpenVinoSession(labels_graph()[0], **options)


@needs_openvino
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_it_answers_what_onnx_runtime_answers(name: str, rows: int) -> None:
    graph, inputs, outputs = MODELS[name][0]()
    session = OpenVinoSession(graph)
    assert (session.inputs, session.outputs) == (inputs, outputs)
    names = [spec.name for spec in reversed(outputs)]
    fed = drawn(inputs, rows)
    expected = OrtSession(graph, None, 1, [CPU]).run(names, fed, Stop())
    for spec, wanted, found in zip(
        reversed(outputs), expected, session.run(names, fed, Stop()), strict=True
    ):
        assert found.dtype == wanted.dtype == spec.dtype
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@needs_openvino
def test_an_answer_stays_the_callers_own() -> None:
    session = labels_session()
    fed = drawn(session.inputs, 2)
    before = fed["tiles"].copy()
    (first,) = session.run(["scores"], fed)
    kept = first.copy()
    session.run(["scores"], {"tiles": 255 - fed["tiles"]})
    assert np.array_equal(first, kept)
    assert np.array_equal(fed["tiles"], before)
    first[:] = 7
    (again,) = session.run(["scores"], fed)
    assert np.array_equal(again, kept)


@needs_openvino
@pytest.mark.parametrize(
    "laid_out",
    [
        lambda tiles: tiles[:, ::-1],
        lambda tiles: np.asfortranarray(tiles[:, ::-1]),
        lambda tiles: np.lib.stride_tricks.as_strided(tiles[:, ::-1].copy(), writeable=False),
    ],
    ids=["backwards", "columns", "read-only"],
)
def test_however_a_tile_lies_in_memory_it_is_read_right(
    laid_out: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    session = labels_session()
    tiles = drawn(session.inputs, 2)["tiles"]
    expected = session.run(["evidence"], {"tiles": tiles[:, ::-1].copy()})
    assert np.array_equal(session.run(["evidence"], {"tiles": laid_out(tiles)}), expected)


@needs_openvino
@pytest.mark.parametrize("runs", [1, 2])
def test_many_threads_get_each_its_own_answer(runs: int) -> None:
    session = labels_session(runs=runs)
    fed = [{"tiles": np.full((1, 224, 224, 3), 30 * index, np.uint8)} for index in range(6)]
    expected = [session.run(["scores"], one)[0] for one in fed]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(session.run(["scores"], fed[index])[0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(fed))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.tobytes() for one in expected}) == len(fed)
    assert wrong == []


def tasks() -> set[str]:
    """The threads of this process, those without a Python side too."""
    return set(os.listdir("/proc/self/task"))


@needs_openvino
def test_a_run_of_one_thread_takes_place_in_the_thread_that_asks() -> None:
    before = tasks()
    session = OpenVinoSession(slow_graph(400), threads=1, runs=2)
    fed = drawn(session.inputs, 1)
    cores = os.sched_getaffinity(0)
    own, of_all = time.thread_time(), time.process_time()
    session.run(["scores"], fed)
    own, of_all = time.thread_time() - own, time.process_time() - of_all
    assert own > of_all / 2
    assert tasks() <= before
    assert os.sched_getaffinity(0) == cores


@needs_openvino
def test_a_run_of_several_threads_answers_the_same() -> None:
    fed = drawn(labels_graph()[1], 3)
    expected = labels_session().run(["scores", "evidence"], fed)
    for one, other in zip(
        expected, labels_session(threads=2).run(["scores", "evidence"], fed), strict=True
    ):
        np.testing.assert_allclose(other, one, atol=1e-4)


# Stopping


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_nobody_waits_for_is_ended_and_the_session_goes_on(threads: int) -> None:
    session = OpenVinoSession(slow_graph(800), threads, runs=1)
    fed = drawn(session.inputs, 1)
    expected = session.run(["scores"], fed, Stop())
    failures: list[Exception] = []
    stop = Stop()

    def ask() -> None:
        try:
            session.run(["scores"], fed, stop)
        except StoppedError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        # A stop that comes between the check and the first node ends nothing.
        stop()
        thread.join(0.01)
    assert [str(error) for error in failures] in (["stopped"], ["stopped before it began"])
    assert np.array_equal(session.run(["scores"], fed, Stop()), expected)


@needs_openvino
def test_what_was_stopped_before_does_not_begin() -> None:
    session = OpenVinoSession(slow_graph(800), runs=1)
    stop = Stop()
    stop()
    with pytest.raises(StoppedError, match="before it began"):
        session.run(["scores"], drawn(session.inputs, 1), stop)


@needs_openvino
def test_a_stop_that_comes_late_ends_no_other_run() -> None:
    session = OpenVinoSession(slow_graph(200), runs=1)
    fed = drawn(session.inputs, 1)
    late = Stop()
    expected = session.run(["scores"], fed, late)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(session.run(["scores"], fed, Stop())))
    thread.start()
    while thread.is_alive():
        late()
        thread.join(0.001)
    assert np.array_equal(answers, expected)


# What is refused


@needs_openvino
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, r"inputs are \[\], the graph has \['tiles'\]"),
        ({"tile": np.zeros((1, 224, 224, 3), np.uint8)}, r"inputs are \['tile'\]"),
        (
            {"tiles": np.zeros((1, 224, 224, 3), np.float32)},
            r"tiles is float32 \[1, 224, 224, 3\], the graph wants uint8 \[-1, 224, 224, 3\]",
        ),
        ({"tiles": np.zeros((1, 224, 223, 3), np.uint8)}, r"tiles is uint8 \[1, 224, 223, 3\]"),
        ({"tiles": np.zeros((224, 224, 3), np.uint8)}, r"tiles is uint8 \[224, 224, 3\]"),
        ({"tiles": np.zeros((0, 224, 224, 3), np.uint8)}, r"tiles is uint8 \[0, 224, 224, 3\]"),
    ],
    ids=["none", "other name", "other type", "other size", "no batch", "no rows"],
)
def test_other_inputs_are_refused_and_not_converted(
    inputs: dict[str, NDArray[Any]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        labels_session().run(["scores"], inputs)


@needs_openvino
@pytest.mark.parametrize("graph", [b"", b"nothing that anybody could run"])
def test_what_is_no_graph_is_refused(graph: bytes) -> None:
    with pytest.raises(BundleError, match="OpenVINO cannot load it: ") as caught:
        OpenVinoSession(graph)
    assert "src/" not in str(caught.value)


def test_bfloat16_needs_a_processor_that_has_it() -> None:
    with pytest.raises(ConfigError, match="bfloat16: this processor has neither avx512_bf16 nor"):
        labels_session(bfloat16=True, processor=WITHOUT)


@needs_openvino
@needs_bfloat16
def test_bfloat16_is_near_float32_and_float32_is_exact() -> None:
    fed = drawn(labels_graph()[1], 3)
    exact = OrtSession(labels_graph()[0], None, 1, [CPU]).run(["evidence"], fed, Stop())[0]
    (plain,) = labels_session().run(["evidence"], fed)
    (rounded,) = labels_session(bfloat16=True).run(["evidence"], fed)
    # The processor has bfloat16, and float32 was asked for.
    np.testing.assert_allclose(plain, exact, rtol=1e-5, atol=1e-2)
    assert np.abs(rounded - exact).max() > 1e-1
    np.testing.assert_allclose(rounded, exact, rtol=0.05, atol=30)


def run_alone(program: str, home: Path) -> str:
    """What a Python of its own prints; the user's folder is an empty one."""
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["openvino"] = None
from tilesight.errors import ConfigError
from tilesight.openvino_graph import OpenVinoGraph, installed
try:
    OpenVinoGraph(b"")
except ConfigError as error:
    print(installed(), error)
"""
    told = run_alone(program, tmp_path)
    assert told == "False OpenVINO is not installed: pip install 'tilesight[openvino]'\n"


@needs_openvino
def test_nothing_is_told_to_the_vendor(tmp_path: Path) -> None:
    program = """
import sys
asked = []
sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else None)
import serving.openvino_session
import tilesight.openvino_graph as graphs
before = set(sys.modules)
assert "openvino" not in before, "imported before anybody asked for it"
graphs.version()
loaded = [name for name, module in sys.modules.items() if module and name not in before]
print(asked, [name for name in loaded if "telemetry" in name or "multiprocessing" in name])
"""
    assert importlib.metadata.version("openvino-telemetry"), "nothing to keep out"
    assert run_alone(program, tmp_path) == "[] []\n"
    # An identity would be kept there.
    assert not (tmp_path / "intel").exists()


# What a version may be served in


def pair(precision: Precision, file: str = "model.onnx", runtime: RuntimeName = "openvino") -> Pair:
    golden = Golden(outputs={"scores": [0.5]}, tolerance=0.05)
    return Pair(runtime=runtime, precision=precision, file=file, golden=golden)


def bundle(root: Path, pairs: list[Pair] | None) -> Bundle[Any]:
    """The tiny tagger, with a list of what it passed in."""
    folder = write_bundle(root, "signa")
    if pairs is not None:
        (folder / RUNTIMES_NAME).write_text(runtimes_text(pairs))
        edit_manifest(folder, "files", RUNTIMES_NAME, value=sha256(folder / RUNTIMES_NAME))
    manifest = read(folder)
    return Bundle(folder, manifest, manifest.head)


def test_a_version_that_nobody_measured_is_not_served_with_openvino(tmp_path: Path) -> None:
    assert usable_pairs(bundle(tmp_path, None), WITH) == []


@pytest.mark.parametrize(
    ("processor", "usable"),
    [(WITH, ["bfloat16", "int8", "int8-bfloat16"]), (WITHOUT, ["int8"])],
    ids=["with bfloat16", "without"],
)
def test_only_what_passed_and_can_run_here_is_used(
    processor: frozenset[str], usable: list[str], tmp_path: Path
) -> None:
    passed = [
        pair("int8", runtime="onnxruntime"),
        pair("bfloat16"),
        pair("int8"),
        pair("int8-bfloat16"),
    ]
    found = usable_pairs(bundle(tmp_path, passed), processor)
    assert [one.precision for one in found] == usable
    assert found == [one for one in passed[1:] if one.precision in usable]


def test_a_graph_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"openvino int8 of \.\./x\.onnx: the manifest lists"):
        usable_pairs(bundle(tmp_path, [pair("int8", "../x.onnx")]), WITH)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format_version": 2, "passed": []}', '{"passed": [{"runtime": "tvm"}]}'],
)
def test_a_list_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    listed = bundle(tmp_path, [])
    (listed.folder / RUNTIMES_NAME).write_text(text)
    with pytest.raises(ManifestError, match=RUNTIMES_NAME):
        usable_pairs(listed, WITH)


@needs_openvino
def test_a_passed_pair_is_opened(tmp_path: Path) -> None:
    session = open_session(bundle(tmp_path, [pair("int8")]), pair("int8"), runs=2)
    assert session.provider == "CPU"
    assert session.run(["scores"], drawn(session.inputs, 2))[0].shape == (2, 4)


@needs_openvino
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ["inputs", 0, "name"],
            "pixels",
            r"inputs are \['tiles'\], the manifest says \['pixels'\]",
        ),
        (["outputs", 0, "dtype"], "int32", "scores is float32 .* the manifest says int32"),
        (["outputs", 0, "shape"], [-1, 5], r"scores is .* the manifest says float32 \[-1, 5\]"),
        (["outputs", 0, "shape"], [-1], r"scores is .* the manifest says float32 \[-1\]"),
    ],
    ids=["name", "type", "size", "axes"],
)
def test_a_graph_with_other_tensors_is_refused(
    path: list[Any], value: object, said: str, tmp_path: Path
) -> None:
    folder = bundle(tmp_path, [pair("int8")]).folder
    edit_manifest(folder, *path, value=value)
    manifest = read(folder)
    with pytest.raises(BundleError, match=rf"model\.onnx: .*{said}"):
        open_session(Bundle(folder, manifest, manifest.head), pair("int8"))


def test_the_processors_flags_are_read(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert flags(cpuinfo) == frozenset()
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: x\n")
    assert flags(cpuinfo) == {"sse2", "amx_bf16"}
    assert has_bfloat16(flags(cpuinfo))
    assert not has_bfloat16(WITHOUT)


# The gateway


@needs_openvino
def test_the_gateway_answers_with_it_what_it_answers_without(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    folder = repository / "signa" / "1"
    served = read(folder)
    passed = [pair("float32").model_copy(update={"golden": served.golden})]
    (folder / RUNTIMES_NAME).write_text(runtimes_text(passed))
    edit_manifest(folder, "files", RUNTIMES_NAME, value=sha256(folder / RUNTIMES_NAME))
    settings = settings_for(
        repository,
        runtime="openvino",
        autotune_s=0.1,
        cache_dir=tmp_path / "cache",
    )
    # As if the measurement had found it: which one is faster with graphs so small is chance.
    manifest = read(folder)
    labels = Bundle(folder, manifest, manifest.head)
    several = [ways.onnxruntime(labels, False), *ways.openvino(labels)]
    key = cache_key(labels, several, usable_cores(), settings.max_batch)
    Cache(tmp_path / "cache").keep(key, Plan("openvino float32", 2, 1, 2))
    body = tile((40, 90, 160))
    kind = {"Content-Type": "image/png"}
    with started(settings_for(repository)) as client:
        expected = client.post("/labels", content=body, headers=kind).json()
    with started(settings) as client:
        for lane in ("interactive", "backfill"):
            asked = kind | {"Tilesight-Lane": lane}
            answer = client.post("/labels", content=body, headers=asked).json()
            assert answer["model"]["backend"] == "openvino-cpu"
            assert answer["model"]["precision"] == "float32"
            for one, other in zip(answer["labels"], expected["labels"], strict=True):
                assert one["name"] == other["name"]
                assert one["score"] == pytest.approx(other["score"], abs=1e-3)
    assert expected["model"]["backend"] == "onnxruntime-cpu"
