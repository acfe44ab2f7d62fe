"""The image: what it is built from, who runs in it, and that each variant gets what it needs."""

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import onnxruntime.capi.build_and_package_info as onnxruntime_build
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.deploy.settings import PREFIX, taken
from tests.test_house import pins

DOCKERFILE = ROOT / "Dockerfile"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Keyword and the rest of each instruction, its lines joined."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", "", kept).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def stages() -> dict[str, list[Instruction]]:
    """The instructions of each stage by its name, with those of the stages it stands on before."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for keyword, rest in instructions():
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = list(found.get(base, []))
        current.append((keyword, rest))
    return found


def only(stage: str, keyword: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == keyword]


def environment(stage: str) -> dict[str, str]:
    words = re.findall(r'(\w+)=("[^"]*"|\S+)', " ".join(only(stage, "ENV")))
    return {name: value.strip('"') for name, value in words}


def test_the_linter_is_content() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    answer = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_every_base_is_one_pinned_image_that_a_digest_can_replace() -> None:
    arguments = dict(rest.split("=", 1) for found, rest in instructions() if found == "ARG")
    bases = [rest.partition(" AS ")[0] for found, rest in instructions() if found == "FROM"]
    assert set(bases) - stages().keys() == {"${PYTHON_IMAGE}"}
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", arguments["PYTHON_IMAGE"])


def test_the_base_is_a_python_that_the_project_takes_and_tests() -> None:
    arguments = dict(rest.split("=", 1) for found, rest in instructions() if found == "ARG")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = project["tool"]["mypy"]["python_version"]
    assert arguments["PYTHON_IMAGE"].startswith(f"python:{tested}.")


def test_the_image_without_a_target_is_for_cpus() -> None:
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_what_runs_is_not_root_and_gets_its_signals(stage: str) -> None:
    assert only(stage, "USER")[-1] == "10001:10001"
    assert only(stage, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(only(stage, "CMD")[-1]) == ["tilesight", "serve"]
    assert only(stage, "ENTRYPOINT") == []
    # Who runs may read the program and the models, and change neither.
    assert not any("--chown" in rest for rest in only(stage, "COPY"))


def test_nothing_is_fetched_but_packages() -> None:
    commands = " ".join(rest for found, rest in instructions() if found == "RUN")
    assert not re.search(r"\b(curl|wget|git|apt|apt-get|https?)\b", commands)
    assert not any(found == "ADD" for found, _ in instructions())


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_gateway_takes_the_settings(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {n: v for n, v in environment(stage).items() if n.startswith(PREFIX)}
    settings = taken(given, monkeypatch)
    (copied,) = (rest.split()[-1] for rest in only(stage, "COPY") if "model_repository" in rest)
    assert str(settings.model_repository) == copied
    assert only(stage, "EXPOSE") == [str(settings.port)]
    assert settings.host == "0.0.0.0"
    (user,) = only(stage, "RUN")
    assert f"--owner 10001 --group 10001 {settings.cache_dir}" in user


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    taken_in = {line[1:] for line in ignore if line.startswith("!")}
    sources = {
        source
        for found, rest in instructions()
        if found == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert sources == taken_in
    assert all((ROOT / source).exists() for source in sources)


def test_the_rooms_that_the_gateway_imports_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {source for rest in only("source", "COPY") for source in rest.split()[:-1]}
    assert {"serving", "tilesight", "pyproject.toml"} <= copied
    assert project["project"]["readme"] in copied
    assert set(project["project"]["license-files"]) <= copied


def test_the_cpu_image_gets_onnxruntime_without_cuda(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (install,) = only("build-cpu", "RUN")
    rename = install.partition("&&")[0].strip()
    subprocess.run(["sh", "-c", rename], cwd=tmp_path, check=True)

    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {Requirement(one).name for one in project["optional-dependencies"]["serve"]}
    assert "onnxruntime" in names
    assert "onnxruntime-gpu" not in names
    lines = (tmp_path / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"onnxruntime=={pins()['onnxruntime-gpu']}" in lines
    assert not any(line.startswith("onnxruntime-gpu") for line in lines)


def test_the_gpu_image_gets_pinned_libraries_of_the_cuda_that_onnxruntime_was_built_for() -> None:
    (install,) = only("build-gpu", "RUN")
    assert '"onnxruntime-gpu[cuda,cudnn]"' in install
    needed = [
        wanted
        for wanted in map(Requirement, requires("onnxruntime-gpu") or [])
        if wanted.marker
        and any(wanted.marker.evaluate({"extra": extra}) for extra in ("cuda", "cudnn"))
    ]
    assert len(needed) >= 5
    for wanted in needed:
        assert wanted.specifier.contains(pins()[canonicalize_name(wanted.name)]), wanted
    assert environment("gpu")["NVIDIA_REQUIRE_CUDA"] == f"cuda>={onnxruntime_build.cuda_version}"


@pytest.mark.parametrize("stage", ["build-cpu", "build-gpu"])
def test_what_is_installed_is_pinned_and_checked(stage: str) -> None:
    (install,) = only(stage, "RUN")
    assert "install --no-cache-dir -c constraints.txt" in install
    assert install.endswith("check")


@pytest.fixture(params=[200, 503])
def health(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A server whose /healthz has this status, and its port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield request.param, server.server_port
        server.shutdown()
        thread.join()


def test_the_health_check_tells_health_from_illness(health: tuple[int, int]) -> None:
    status, port = health
    (check,) = only("cpu", "HEALTHCHECK")
    python, *arguments = json.loads(check.partition("CMD ")[2])
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *arguments], env={"TILESIGHT_PORT": str(port)}, capture_output=True
    )
    assert (done.returncode == 0) == (status == 200)
