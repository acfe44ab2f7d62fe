"""Where Triton lies: a virtual environment of its own, made once and used by every server.

The wheel `nvidia-pytriton` carries the genuine `tritonserver` and the stub processes of its Python
backend. It needs numpy 1 and Tilesight needs numpy 2, hence the second environment.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from tilesight.errors import TritonError, TritonMissingError

HOME_VARIABLE = "TILESIGHT_TRITON_HOME"
REMEDY = "tilesight triton --install"

# Asked of the environment's own Python, which alone knows where its packages and library lie.
_PROBE = """
import json, sysconfig
from importlib.metadata import distributions
print(json.dumps({
    "packages": sysconfig.get_path("purelib"),
    "library": sysconfig.get_config_var("LIBDIR"),
    "python": sysconfig.get_python_version(),
    "installed": {d.metadata["Name"]: d.version for d in distributions()},
}))
"""
# What the stub ends with when it is called without arguments: it was loaded, and says its usage.
_STUB_USAGE = 1


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds Triton."""

    home: Path
    packages: Path  # its site-packages
    library: Path  # folder of the libpython that the stubs load
    python: str  # its version, as in "3.11"

    @property
    def binary(self) -> Path:
        """The tritonserver."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The process that runs Python backends under this version of Python."""
        stubs = self.packages / "pytriton" / "tritonserver" / "python_backend_stubs"
        return stubs / self.python / "triton_python_backend_stub"

    def environment(self) -> dict[str, str]:
        """The variables that the server and its stubs run with."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        libraries = [self.packages / "nvidia_pytriton.libs", self.library]
        return inherited | {
            # A stub ignores PYTHONPATH and PYTHONHOME: it is at home where it finds `python3`.
            "PATH": os.pathsep.join([str(self.home / "bin"), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }

    def write_backends(self, folder: Path) -> None:
        """Puts together what `--backend-directory` names: Python's parts and our onnxruntime.

        They are copies: Triton refuses libraries that a link leads out of the folder to.
        """
        python = self.packages / "pytriton" / "tritonserver" / "backends" / "python"
        shutil.copytree(python, folder / "python", ignore=shutil.ignore_patterns("__pycache__"))
        stub = Path(shutil.copy(self.stub, folder / "python"))
        stub.chmod(0o755)
        (folder / "onnxruntime").mkdir()
        model = files("tilesight.triton") / "backends" / "onnxruntime" / "model.py"
        (folder / "onnxruntime" / "model.py").write_bytes(model.read_bytes())


def home() -> Path:
    """The folder of the environment: TILESIGHT_TRITON_HOME, else a sibling of this one."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).absolute() if given else Path(f"{sys.prefix}-triton")


def pins() -> dict[str, str]:
    """The version of each package that the environment holds."""
    text = (files("tilesight.triton") / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("==") for line in text.splitlines())
    return {name: version for name, version in lines}


def find() -> Installation:
    """The installation, fit to start a server.

    Raises:
        TritonMissingError: it is absent or not as pinned; the message says what to do.
        TritonError: it is there, and this machine cannot run it.
    """
    folder = home()
    python = folder / "bin" / "python"
    if not python.is_file():
        raise TritonMissingError(f"no Triton in {folder}: {REMEDY}")
    answer = _run([str(python), "-I", "-c", _PROBE])
    if answer.returncode != 0:
        raise TritonMissingError(f"{python} does not run: {_last_line(answer)}; {REMEDY}")
    found = json.loads(answer.stdout)
    for name, wanted in pins().items():
        version = found["installed"].get(name)
        if version != wanted:
            raise TritonMissingError(
                f"{folder}: {name} {version or 'is absent'}, {wanted} is needed: {REMEDY}"
            )
    installation = Installation(
        folder, Path(found["packages"]), Path(found["library"]), found["python"]
    )
    _check_stub(installation)
    return installation


def install() -> Installation:
    """The installation, made or mended; pip says what it does on the way.

    Raises:
        TritonError: the folder holds something else, or a package cannot be installed.
    """
    folder = home()
    if folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
        raise TritonError(f"{folder}: holds files and is no virtual environment ({HOME_VARIABLE})")
    with as_file(files("tilesight.triton") / "requirements.txt") as requirements:
        # The list is complete; what the wheel's own Python parts need besides is never imported.
        for step in (
            [sys.executable, "-m", "venv", str(folder)],
            [
                *(str(folder / "bin" / "python"), "-m", "pip", "install"),
                *("--disable-pip-version-check", "--no-deps", "-r", str(requirements)),
            ],
        ):
            status = subprocess.run(step, check=False).returncode
            if status != 0:
                raise TritonError(
                    f"{folder}: Triton was not installed (status {status} of "
                    f"{' '.join(step[1:3])}); its wheel is for Linux on x86-64"
                )
    return find()


def _check_stub(installation: Installation) -> None:
    """Refuses a stub that is absent or lacks a library: every model would fail later, unclearly."""
    stub = installation.stub
    if not stub.is_file():
        versions = sorted(folder.name for folder in stub.parent.parent.glob("3.*"))
        raise TritonError(
            f"{installation.home}: made with Python {installation.python}, "
            f"and the wheel serves {', '.join(versions) or 'none'}"
        )
    answer = _run([str(stub)], installation.environment())
    if answer.returncode != _STUB_USAGE:
        raise TritonError(f"{stub} does not run: {_last_line(answer)}")


def _run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _last_line(answer: subprocess.CompletedProcess[str]) -> str:
    lines = (answer.stderr or answer.stdout).strip().splitlines()
    return lines[-1] if lines else f"status {answer.returncode}"
