import itertools

import onnx
import pytest

from export.onnx_file import IR_VERSION, MINIMUM_ONNXRUNTIME, OPSET
from export.releases import (
    RELEASES,
    RUNTIMES,
    minimum_onnxruntime,
    minimum_release,
    onnxruntime_of,
    runtime_of,
)
from tilesight.errors import ConfigError

PRODUCTION = "26.07"


def test_what_is_exported_opens_in_the_declared_minimum() -> None:
    assert minimum_onnxruntime(OPSET, IR_VERSION) == MINIMUM_ONNXRUNTIME


def test_the_production_release_opens_what_is_exported() -> None:
    runtime = runtime_of(PRODUCTION)
    assert OPSET <= runtime.opset
    assert IR_VERSION <= runtime.ir_version


def test_every_release_has_a_runtime_of_the_table() -> None:
    assert [runtime_of(release) for release in RELEASES]
    assert onnxruntime_of("26.06") == "1.24.4"
    assert runtime_of("26.06").version == "1.24"


def test_later_is_never_less() -> None:
    assert list(RELEASES) == sorted(RELEASES)
    numbers = [tuple(map(int, version.split("."))) for version in RELEASES.values()]
    assert numbers == sorted(numbers)
    for before, after in itertools.pairwise(RUNTIMES):
        assert before.opset <= after.opset
        assert before.ml_opset <= after.ml_opset
        assert before.ir_version <= after.ir_version


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.version)
def test_each_row_is_a_release_of_onnx(runtime: tuple[str, int, int, int]) -> None:
    _, opset, ml_opset, ir_version = runtime
    released = {(row[1], row[2], row[3]) for row in onnx.helper.VERSION_TABLE}
    assert (ir_version, opset, ml_opset) in released


@pytest.mark.parametrize(
    ("opset", "ir_version", "release", "runtime"),
    [
        (20, 9, "24.04", "1.17"),
        (20, 10, "24.05", "1.18"),  # the opset alone would be older
        (22, 10, "25.03", "1.21"),
        (22, 11, "25.09", "1.23"),
        (26, 13, "26.07", "1.27"),
    ],
)
def test_the_first_release_that_opens_it(
    opset: int, ir_version: int, release: str, runtime: str
) -> None:
    assert minimum_release(opset, ir_version) == release
    assert minimum_onnxruntime(opset, ir_version) == runtime


@pytest.mark.parametrize(("opset", "ir_version"), [(27, 10), (20, 14), (6, 3)])
def test_what_no_release_opens_is_said(opset: int, ir_version: int) -> None:
    for minimum in (minimum_release, minimum_onnxruntime):
        with pytest.raises(ConfigError, match=f"opset {opset} with IR version {ir_version}.*7 to"):
            minimum(opset, ir_version)


def test_an_unknown_release_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'27\.01'.*24\.04, 24\.05.*26\.08"):
        onnxruntime_of("27.01")
