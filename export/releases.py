"""Which Triton release carries which ONNX Runtime, and which graphs that one opens.

Sources. Triton: the table "ONNX Runtime Versions" of its compatibility page
(docs/introduction/compatibility.md of triton-inference-server/server). ONNX Runtime: its own
refusals. A graph of one node was opened with the released CPU wheel of each version, IR version
and opset raised until it said "max supported IR version" and "official support for domain ... is
till opset"; ONNX's versioning table agrees with every row (ONNX 1.15, 1.16, 1.16, 1.16, 1.17,
1.17, 1.18, 1.20, 1.21, 1.21).
"""

from typing import NamedTuple

from tilesight.errors import ConfigError

# Every ONNX Runtime reads the default domain's opsets from this one on.
OLDEST_OPSET = 7


class Runtime(NamedTuple):
    """A minor version of ONNX Runtime, and the newest that it opens."""

    version: str
    opset: int
    ml_opset: int
    ir_version: int

    def opsets(self) -> dict[str, int]:
        """The newest opset of each domain whose operators it has."""
        return {"": self.opset, "ai.onnx.ml": self.ml_opset, "com.microsoft": 1}


RUNTIMES = (
    Runtime("1.17", opset=20, ml_opset=4, ir_version=9),
    Runtime("1.18", opset=21, ml_opset=5, ir_version=10),
    Runtime("1.19", opset=21, ml_opset=5, ir_version=10),
    Runtime("1.20", opset=21, ml_opset=5, ir_version=10),
    Runtime("1.21", opset=22, ml_opset=5, ir_version=10),
    Runtime("1.22", opset=22, ml_opset=5, ir_version=10),
    Runtime("1.23", opset=23, ml_opset=5, ir_version=11),
    Runtime("1.24", opset=25, ml_opset=5, ir_version=13),
    Runtime("1.27", opset=26, ml_opset=5, ir_version=13),
    Runtime("1.28", opset=26, ml_opset=5, ir_version=13),
)

# Oldest first. 25.08 carries a snapshot on the way to 1.23; it opens at least what 1.22 opens.
RELEASES = {
    "24.04": "1.17.3",
    "24.05": "1.18.0",
    "24.06": "1.18.0",
    "24.07": "1.18.1",
    "24.08": "1.18.1",
    "24.09": "1.19.2",
    "24.10": "1.19.2",
    "24.11": "1.19.2",
    "24.12": "1.20.1",
    "25.01": "1.20.1",
    "25.02": "1.20.1",
    "25.03": "1.21.0",
    "25.04": "1.21.0",
    "25.05": "1.22.0",
    "25.06": "1.22.0",
    "25.07": "1.22.0",
    "25.08": "1.22.0",
    "25.09": "1.23.0",
    "25.10": "1.23.1",
    "25.11": "1.23.2",
    "25.12": "1.23.2",
    "26.01": "1.23.2",
    "26.02": "1.24.1",
    "26.03": "1.24.2",
    "26.04": "1.24.4",
    "26.05": "1.24.4",
    "26.06": "1.24.4",
    "26.07": "1.27.0",
    "26.08": "1.28.0",
}


def onnxruntime_of(release: str) -> str:
    """The version of ONNX Runtime in the Triton release, which is named as in 26.07.

    Raises:
        ConfigError: the table does not know the release; it lists those that it knows.
    """
    if release not in RELEASES:
        raise ConfigError(
            f"--triton: {release!r} is no release that is known here; known are "
            f"{', '.join(RELEASES)}"
        )
    return RELEASES[release]


def runtime_of(release: str) -> Runtime:
    """What the Triton release opens.

    Raises:
        ConfigError: the table does not know the release.
    """
    minor = onnxruntime_of(release).rpartition(".")[0]
    return next(runtime for runtime in RUNTIMES if runtime.version == minor)


def minimum_onnxruntime(opset: int, ir_version: int) -> str:
    """The first ONNX Runtime that opens a graph of this opset and IR version.

    Raises:
        ConfigError: none of the table does.
    """
    for runtime in RUNTIMES:
        if _opens(runtime, opset, ir_version):
            return runtime.version
    raise _none_opens(opset, ir_version)


def minimum_release(opset: int, ir_version: int) -> str:
    """The first Triton release that opens a graph of this opset and IR version.

    Raises:
        ConfigError: none of the table does.
    """
    for release in RELEASES:
        if _opens(runtime_of(release), opset, ir_version):
            return release
    raise _none_opens(opset, ir_version)


def _opens(runtime: Runtime, opset: int, ir_version: int) -> bool:
    return OLDEST_OPSET <= opset <= runtime.opset and ir_version <= runtime.ir_version


def _none_opens(opset: int, ir_version: int) -> ConfigError:
    newest = RUNTIMES[-1]
    return ConfigError(
        f"no known release opens opset {opset} with IR version {ir_version}; the newest, "
        f"ONNX Runtime {newest.version}, reads opsets {OLDEST_OPSET} to {newest.opset} and IR "
        f"versions up to {newest.ir_version}"
    )
