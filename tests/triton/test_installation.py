"""Finding Triton's environment, and what is said where it is absent or unfit."""

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tilesight.errors import TritonError, TritonMissingError
from tilesight.triton import Installation, find, install
from tilesight.triton.installation import HOME_VARIABLE, home, pins

NUMPY_2 = 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the installation is looked for in this test."""
    folder = tmp_path / "triton"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    return folder


def test_it_lies_beside_the_environment_of_tilesight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert home() == Path(f"{sys.prefix}-triton")


def test_the_variable_names_another_folder(folder: Path) -> None:
    assert home() == folder


def test_an_absent_one_names_the_command(folder: Path) -> None:
    with pytest.raises(TritonMissingError, match=rf"no Triton in {folder}: .*triton --install"):
        find()


def test_an_environment_without_the_packages_names_them(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    with pytest.raises(TritonMissingError, match=r"flatbuffers is absent.*triton --install"):
        find()


def test_a_python_that_is_gone_is_named(folder: Path) -> None:
    """As after an upgrade of the system: the environment's Python was a link to the old one."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/nowhere/python\n", encoding="utf-8")
    (folder / "bin" / "python").chmod(0o755)
    with pytest.raises(TritonMissingError, match=r"bin/python does not run: .*triton --install"):
        find()


def test_a_folder_of_something_else_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(TritonError, match="holds files and is no virtual environment"):
        install()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_the_list_is_complete_and_pinned() -> None:
    """pip installs it without asking what else a package wants."""
    assert {"numpy", "nvidia-pytriton", "onnxruntime", "protobuf"} <= pins().keys()


def test_onnx_runtime_is_the_gateways() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"onnxruntime-gpu=={pins()['onnxruntime']}" in lines


def test_numpy_is_older_than_2() -> None:
    """With numpy 2 the stub of this release answers with empty outputs."""
    assert int(pins()["numpy"].split(".")[0]) < NUMPY_2


def test_the_wheel_of_tilesight_carries_the_backend() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    carried = settings["setuptools"]["package-data"]["tilesight"]
    assert {"triton/requirements.txt", "triton/backends/*/*.py"} <= set(carried)


@pytest.mark.triton
def test_the_backends_are_copies_that_run(triton_home: Installation, tmp_path: Path) -> None:
    triton_home.write_backends(tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "onnxruntime/model.py",
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
    }
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    stub = tmp_path / "python" / "triton_python_backend_stub"
    assert stub.stat().st_mode & stat.S_IXUSR


@pytest.mark.triton
def test_nothing_of_this_python_reaches_the_stubs(
    triton_home: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/somebody/else")
    environment = triton_home.environment()
    assert not [name for name in environment if name.startswith("PYTHON")]
    assert environment["PATH"].split(os.pathsep)[0] == str(triton_home.home / "bin")
