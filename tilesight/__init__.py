"""Tilesight: aerial and satellite tiles into words that GIS people can use."""

import os

__all__ = ["__version__"]

# Official builds of ONNX Runtime tell their maker of each session and keep an id of the machine,
# unless this is set before they are imported. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
