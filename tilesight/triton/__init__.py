"""The real Triton on this machine: its installation, the running server, our backend for it."""

from tilesight.triton.installation import Installation, find, install
from tilesight.triton.server import TritonServer

__all__ = ["Installation", "TritonServer", "find", "install"]
