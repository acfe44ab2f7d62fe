import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import tilesight
from tests.serving import bundles
from tests.serving.gateway import tile, wait_for
from tilesight.cli import Room, build


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(one) for one in arguments])


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tilesight.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def tiles(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "blue [x].png", tmp_path / "lime.png"]
    for path, colour in zip(paths, ["blue", "lime"], strict=True):
        path.write_bytes(tile(colour))
    return paths


def test_version() -> None:
    assert run("--version").output == f"tilesight {tilesight.__version__}\n"


def test_help_lists_the_commands_of_all_rooms() -> None:
    listing = run("--help").output
    for name in ("serve", "describe", "train", "evaluate", "export"):
        assert re.search(rf"\b{name}\b", listing), name


def test_describe_can_be_read(shared_repository: Path, tiles: list[Path]) -> None:
    answer = run("describe", *tiles, "--question", "Are there trees?",
                 "--model-repository", shared_repository)  # fmt: skip
    assert answer.exit_code == 0, answer.output
    blue, lime = re.split(r"lime\.png", answer.stdout)
    assert "blue [x].png" in blue
    assert re.search(r"water +1\.00 +█+ +present", blue)
    assert re.search(r"trees +1\.00 +█+ +present", lime)
    assert re.search(r"Are there trees\? +no ", blue)
    assert re.search(r"Are there trees\? +yes ", lime)


def test_describe_as_json_is_the_gateways_answer(
    shared_repository: Path, tiles: list[Path]
) -> None:
    options = ("--json", "--model-repository", shared_repository)
    one = json.loads(run("describe", tiles[0], *options).stdout)
    assert one["labels"]["labels"][0]["name"] == "water"
    assert one["caption"]["caption"] == "A dark place."
    assert "vqa" not in one
    both = json.loads(run("describe", *tiles, *options).stdout)["results"]
    assert [Path(answer["path"]) for answer in both] == tiles


def test_a_bad_tile_does_not_hide_the_others(shared_repository: Path, tiles: list[Path]) -> None:
    tiles[0].write_bytes(b"no tile")
    answer = run("describe", *tiles, "--json", "--model-repository", shared_repository)
    assert answer.exit_code == 2
    assert str(tiles[0]) in answer.stderr
    assert json.loads(answer.stdout)["path"] == str(tiles[1])


def test_a_question_that_cannot_be_asked(shared_repository: Path, tiles: list[Path]) -> None:
    answer = run("describe", tiles[0], "-q", "", "--model-repository", shared_repository)
    assert answer.exit_code == 2
    assert "question: empty" in answer.stderr


@pytest.mark.parametrize("name", ["serve", "describe"])
def test_missing_models_are_a_message_and_a_status(tmp_path: Path, name: str) -> None:
    arguments = [__file__] if name == "describe" else []
    answer = command(name, *arguments, "--model-repository", "absent", cwd=tmp_path)
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert last.startswith(f"tilesight {name}: absent: no such model repository")
    assert "Traceback" not in answer.stderr


def test_a_triton_that_is_not_there_is_a_message_and_a_status(
    shared_repository: Path, tiles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("TILESIGHT_RUNTIME", "triton")
    monkeypatch.setenv("TILESIGHT_TRITON_URL", f"127.0.0.1:{port}")
    answer = run("describe", tiles[0], "--model-repository", shared_repository)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("tilesight describe: Triton does not answer")


def test_a_misspelt_setting_is_a_message_and_a_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TILESIGHT_PROT", "1")
    answer = run("serve")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("tilesight serve: TILESIGHT_PROT: no such setting")


def test_serve_ends_when_a_model_cannot_be_loaded(repository: Path, tmp_path: Path) -> None:
    folder = bundles.replace_graph(repository, "jtts", b"no graph")
    answer = command("serve", "--port", "0", "--model-repository", repository, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith(f"tilesight serve: {folder / 'model.onnx'}: ")


def test_serve_answers_and_stops_when_told(shared_repository: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tilesight.cli", "serve", "--port", "0"],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TILESIGHT_MODEL_REPOSITORY": str(shared_repository),
            },
            stderr=log,
        )
        try:
            wait_for(lambda: '"event": "ready"' in (tmp_path / "log").read_text())
            text = (tmp_path / "log").read_text()
            (url,) = re.findall(r"running on (http://[\d.:]+)", text)
            with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
                assert json.load(answer) == {"status": "ready"}
        finally:
            process.terminate()
            process.wait(30)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "settings"
    assert events.count("model loaded") == 4
    assert lines[events.index("request")]["path"] == "/readyz"


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room_for_this_test.py").write_text(
        "def paint() -> None:\n    import no_such_dye\n\ndef wash() -> None:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # Two commands: Typer would run a single one without its name.
    rooms = (Room("room_for_this_test", ("paint", "wash"), "colour"),)
    answer = CliRunner().invoke(build(rooms), ["paint"])
    assert answer.exit_code == 2
    assert "paint needs the package no_such_dye" in answer.stderr
    assert "pip install 'tilesight[colour]'" in answer.stderr


def test_an_absent_room_names_the_extra() -> None:
    rooms = (Room("no_such_room.cli", ("paint", "draw"), "colour"),)
    answer = CliRunner().invoke(build(rooms), ["draw", "--with", "chalk", "here"])
    assert answer.exit_code == 2
    assert "pip install 'tilesight[colour]'" in answer.stderr
