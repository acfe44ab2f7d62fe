"""What a measurement was made on: the processor, and the versions of what ran."""

import json
import platform
import subprocess
import sys
from pathlib import Path

_PACKAGES = (
    *("onnxruntime-gpu", "pillow", "torch", "uvicorn", "fastapi"),
    *("litserve", "bentoml"),
)
_ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(python: Path | None = None) -> str:
    """The packages in the environment of a Python, this one's by default."""
    command = [str(python or sys.executable), "-c", _ASK, *_PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return ", ".join(f"{name} {one}" for name, one in found.items())
