"""What holds the repository together: one entry for CI, pinned versions, light files, no torch."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tilesight.manifest import MODEL_NAME
from tilesight.repository import Repository

MIB = 1 << 20
LARGEST_FILE = 40 * MIB
LARGEST_REPOSITORY = 80 * MIB

# In pieces, so that this file is not found by its own search.
INDEX_WORDS = [
    ".".join(["pypi", "org"]),
    ".".join(["pythonhosted", "org"]),
    ".".join(["download", "pytorch", "org"]),
    ".".join(["registry", "npmjs", "org"]),
    "--" + "index-url",
    "--extra-" + "index-url",
    "--find-" + "links",
]

# What reads a file runs what is in it; what asks another machine carries tiles out of this one.
UNSAFE = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve",
}  # fmt: skip
OUTWARD = {
    "urllib.request", "urllib3", "requests", "httpx", "httpx2", "aiohttp", "http.client",
    "ftplib", "smtplib", "telnetlib", "xmlrpc",
}  # fmt: skip
# The server that it started itself, on the own machine.
ASKS_ITS_OWN = {("tilesight/triton/server.py", "http.client")}

IMPORT_ALL = """
import importlib, pkgutil, sys
room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
heavy = {"torch", "torchvision", "torch_geometric", "lightning"}
print(sorted(heavy & sys.modules.keys()))
"""


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    lines = [*project()["dependencies"], *(line for extra in extras for line in extra)]
    return [wanted for wanted in map(Requirement, lines) if wanted.name != "tilesight"]


def committed() -> list[Path]:
    """The files that git knows or would take."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


def test_make_test_checks_and_tests() -> None:
    steps = make("--dry-run", "test", "VENV=absent").stdout
    for step in ("ruff format --check .", "ruff check .", "mypy", "lint-imports", "pytest"):
        assert re.search(rf"^absent/bin/{re.escape(step)}$", steps, re.MULTILINE), step
    installed = re.search(r"-e '\.\[(.*)\]'", steps)
    assert installed and set(installed[1].split(",")) == set(project()["optional-dependencies"])


def test_make_serve_installs_what_the_gateway_needs() -> None:
    steps = make("--dry-run", "serve", "VENV=absent", "HOST=::1", "PORT=9").stdout
    assert "-e '.[serve]'" in steps
    assert "absent/bin/tilesight serve --host '::1' --port '9'" in steps


def test_make_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    answer = make(f"VENV={tmp_path}/venv", "PYTHON=/bin/false", f"{tmp_path}/venv/.made")
    assert answer.returncode != 0
    assert "needs Python 3.11 or later, and /bin/false is not that" in answer.stderr
    assert not (tmp_path / "venv").exists()


def test_constraints_are_plain_pins() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


def test_constraints_pin_torch_and_its_torchvision() -> None:
    assert (pins()["torch"], pins()["torchvision"]) == ("2.15.0", "0.29.2")


@pytest.mark.parametrize("wanted", requirements(), ids=lambda wanted: wanted.name)
def test_each_requirement_is_pinned_within_its_range(wanted: Requirement) -> None:
    pinned = pins().get(canonicalize_name(wanted.name))
    assert pinned is not None, "no line in constraints.txt"
    assert wanted.specifier.contains(pinned)


def test_no_file_names_a_package_index() -> None:
    words = re.compile(b"|".join(re.escape(word.encode()) for word in INDEX_WORDS))
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in committed()
        if (match := words.search(path.read_bytes()))
    ]
    assert found == []


def test_no_file_is_large() -> None:
    large = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in committed()
        if path.stat().st_size > LARGEST_FILE
    }
    assert large == {}


def test_the_models_are_light() -> None:
    sizes = [path.stat().st_size for path in committed() if "model_repository" in path.parts]
    assert sum(sizes) <= LARGEST_REPOSITORY


@pytest.mark.parametrize("room", ["tilesight", "serving"])
def test_no_module_of_the_room_loads_torch(room: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, room], cwd=ROOT, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout == "[]\n"


def imported(source: str) -> set[str]:
    """The modules that a file imports, wherever in it, and the packages that they are in."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    parts = (name.split(".") for name in found)
    return {".".join(one[: size + 1]) for one in parts for size in range(len(one))}


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from urllib import request", "urllib.request"),
        ("import urllib.request as r", "urllib.request"),
        ("from requests.adapters import HTTPAdapter", "requests"),
    ],
)
def test_imports_are_found(source: str, module: str) -> None:
    assert module in imported(source)


def test_what_serves_reads_no_pickles_and_asks_no_other_machine() -> None:
    files = [path for room in ("tilesight", "serving") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 50
    found = {
        (str(path.relative_to(ROOT)), module)
        for path in files
        for module in imported(path.read_text(encoding="utf-8")) & (UNSAFE | OUTWARD)
    }
    assert found == ASKS_ITS_OWN


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="tilesight")
    assert callable(command.load())


def sessions_told(home: Path, first: str) -> list[Path]:
    """What ONNX Runtime keeps of its sessions to tell, in a home of its own."""
    repository = Repository(ROOT / "model_repository")
    graph = repository.folder("signa", repository.current("signa")) / MODEL_NAME
    program = f"{first}; import onnxruntime; onnxruntime.InferenceSession({str(graph)!r})"
    environment = {name: one for name, one in os.environ.items() if "TELEMETRY" not in name}
    subprocess.run(
        [sys.executable, "-c", program], env=environment | {"HOME": str(home)}, check=True
    )
    return [path for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_tells_nobody_of_its_sessions(tmp_path: Path) -> None:
    if not sessions_told(tmp_path / "alone", "pass"):
        pytest.skip("this build of ONNX Runtime tells nobody by itself")
    assert sessions_told(tmp_path / "ours", "import tilesight") == []
