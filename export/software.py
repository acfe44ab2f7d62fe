"""The versions of what wrote and ran the forms."""

import importlib.metadata

from tilesight.openvino_graph import installed
from tilesight.openvino_graph import version as openvino_version

_PACKAGES = ("torch", "onnx", "onnxruntime-gpu")


def software() -> dict[str, str]:
    """Each package with its version; OpenVINO where it is installed."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {**found, "openvino": openvino_version()} if installed() else found
