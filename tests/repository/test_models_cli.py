"""`tilesight models`: what one reads, and what one gives it."""

import json
import shutil

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import ROOT
from tests.repository.versions import ENCODER, HEAD, served
from tests.serving.bundles import edit_manifest
from tilesight.errors import BundleError, ConfigError
from tilesight.models_cli import models as app
from tilesight.repository import Repository


def run(repository: Repository, *arguments: str, columns: str = "") -> Result:
    environment = {"COLUMNS": columns or None, "TERM": "dumb"}
    return CliRunner().invoke(
        app, [*arguments, "--repository", str(repository.root)], env=environment
    )


def output(repository: Repository, *arguments: str, columns: str = "") -> str:
    result = run(repository, *arguments, columns=columns)
    assert result.exit_code == 0, result.output
    return result.stdout


def row(text: str, version: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f" {version} "))


def test_the_list(repository: Repository) -> None:
    repository.promote({"signa": 1})
    repository.promote({"signa": 2})
    found = output(repository, "list")
    assert "promoted" in row(found, "signa@2")
    assert "before" in row(found, "signa@1")
    assert "highest" in row(found, "jtts@2")
    assert row(found, "jtts@1").split() == ["jtts@1", "float32", "f1", "1.000", "colours", "none"]


def test_the_committed_models_fit_in_a_hundred_columns() -> None:
    committed = Repository(ROOT / "model_repository")
    found = output(committed, "list")
    assert max(map(len, found.splitlines())) <= 100
    for name, version in served(committed).items():
        manifest = committed.manifest(name, version)
        line = row(found, f"{name}@{version}")
        assert manifest.graph.precision in line
        assert manifest.lineage.commit[:7] in line
    for figure in ("f1_samples 0.", "map 0.", "cider 3.", "presence 0.", "theme 0."):
        assert figure in found
    assert "420 tiles" in found


def test_the_forms(repository: Repository) -> None:
    folder = repository.folder("signa", 1)
    for name in ("model.fp32.onnx", "model.pt"):
        edit_manifest(folder, "files", name, value="0" * 64)
    edit_manifest(folder, "graph", "precision", value="int8")
    edit_manifest(repository.folder("signa", 2), "files", "model.int8.onnx", value="0" * 64)
    found = {
        (one["name"], one["version"]): one["forms"]
        for one in json.loads(output(repository, "list", "--json"))
    }
    assert found["signa", 1] == ["int8", "onnx", "torchscript"]
    assert found["signa", 2] == ["onnx", "int8"]
    assert found["jtts", 1] == ["onnx"]


def test_the_list_in_json(repository: Repository) -> None:
    repository.promote({HEAD: 1})
    found = json.loads(output(repository, "list", "--json"))
    assert {(one["name"], one["version"]): one["status"] for one in found} == {
        ("jtts", 1): "",
        ("jtts", 2): "highest",
        ("signa", 1): "",
        ("signa", 2): "highest",
        (ENCODER, 1): "promoted",
        (ENCODER, 2): "before",
        (HEAD, 1): "promoted",
        (HEAD, 2): "before",
    }
    assert found[0]["metrics"]["values"] == {"f1": 1.0}
    assert found[0]["bytes"] == (repository.folder("jtts", 1) / "model.onnx").stat().st_size


def test_damaged_and_missing_versions_are_listed(repository: Repository) -> None:
    repository.promote({"signa": 2, "jtts": 2, HEAD: 2})
    (repository.folder("signa", 1) / "manifest.json").write_text("{", encoding="utf-8")
    (repository.folder("jtts", 1) / "model.onnx").unlink()
    shutil.rmtree(repository.root / HEAD)
    found = output(repository, "list", columns="300")
    for version in ("signa@1", "jtts@1", f"{HEAD}@2"):
        assert "damaged" in row(found, version)
    assert f"signa@1: {repository.folder('signa', 1) / 'manifest.json'}: not a JSON" in found
    assert f"jtts@1: {repository.folder('jtts', 1) / 'model.onnx'}: missing" in found
    assert f"{HEAD}@2: {repository.folder(HEAD, 2)}: no such version" in found


def test_promote_takes_the_highest_or_what_is_named(repository: Repository) -> None:
    assert output(repository, "promote", "signa@1", "jtts") == (
        "signa: 2 -> 1\njtts: 2, promoted by name now\n"
    )
    assert output(repository, "promote", "signa@1") == "signa: 1, as before\n"
    assert output(repository, "promote", f"{HEAD}@1") == f"{HEAD}: 2 -> 1\n{ENCODER}: 2 -> 1\n"
    assert repository.current("signa") == 1


def test_rollback(repository: Repository) -> None:
    repository.promote({"signa": 1})
    assert output(repository, "rollback", "signa") == "signa: 1 -> 2\n"


def test_remove(repository: Repository) -> None:
    assert output(repository, "remove", "signa@1", "jtts@1") == (
        "signa@1: removed\njtts@1: removed\n"
    )
    assert (repository.versions("signa"), repository.versions("jtts")) == ([2], [2])


def test_configure(repository: Repository) -> None:
    assert "threads: 6\nmax_batch_size: 32\n" in output(repository, "configure", "--threads", "6")
    repository.config_path("signa").unlink()
    assert "threads: 6\n" in output(repository, "configure")
    assert repository.stale_configs() == {}


def test_diff(repository: Repository) -> None:
    folder = repository.folder("signa", 2)
    edit_manifest(folder, "metrics", "values", value={"f1": 0.75, "map": 0.5})
    edit_manifest(folder, "lineage", "commit", value="c" * 40)
    edit_manifest(folder, "lineage", "data_sha256", value={"labels.tsv": "d" * 64})
    found = output(repository, "diff", "signa@1", "signa@2")
    assert row(found, "f1").split() == ["f1", "1.0000", "0.7500", "-0.2500"]
    assert row(found, "map").split() == ["map", "-", "0.5000"]
    assert row(found, "commit").split() == ["commit", "none", "c" * 12, "differs"]
    assert row(found, "data labels.tsv").split()[2:] == ["-", "d" * 12, "differs"]
    assert row(found, "config").split() == ["config", "0" * 12, "0" * 12]
    digests = repository.digests("signa")
    assert row(found, "graph").split() == ["graph", digests[1][:12], digests[2][:12], "differs"]
    assert "not comparable" not in found


def test_diff_of_other_tiles(repository: Repository) -> None:
    edit_manifest(repository.folder("signa", 2), "metrics", "tiles", value=2)
    found = output(repository, "diff", "signa@1", "signa@2")
    assert "Measured on different tiles: the figures are not comparable." in found
    compared = json.loads(output(repository, "diff", "signa@1", "signa@2", "--json"))
    assert compared["comparable"] is False
    assert compared["differences"] == {"f1": 0.0}
    assert compared["lineage"]["measured on"] == ["colours test, 1 tiles", "colours test, 2 tiles"]


def test_diff_of_other_tasks(repository: Repository) -> None:
    failure = run(repository, "diff", "signa@1", "jtts@1").exception
    assert isinstance(failure, BundleError)
    assert "'labels', jtts@1 of 'caption'" in str(failure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "signa@"), "'' is no version"),
        (("promote", "signa@0"), "'0' is no version"),
        (("promote", "signa@two"), "'two' is no version"),
        (("promote", "signa@1", "signa@2"), "signa is named twice"),
        (("promote", "absent"), "no version of this model"),
        (("promote",), "Missing argument"),
        (("remove", "signa"), "a version is needed, as in signa@1"),
        (("diff", "signa", "signa@2"), "a version is needed, as in signa@1"),
        (("configure", "--threads", "many"), "Input should be a valid integer"),
    ],
)
def test_what_cannot_be_meant(
    repository: Repository, arguments: tuple[str, ...], message: str
) -> None:
    result = run(repository, *arguments, columns="300")
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("promote", "signa@9"), BundleError),
        (("promote", "../signa@1"), BundleError),
        (("rollback", "absent"), BundleError),
        (("remove", "signa@2"), BundleError),
        (("configure", "--threads", "0"), ConfigError),
    ],
)
def test_what_is_refused(
    repository: Repository, arguments: tuple[str, ...], kind: type[Exception]
) -> None:
    assert isinstance(run(repository, *arguments).exception, kind)
    assert not repository.state_path.exists()


def test_the_repository_of_the_environment(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILESIGHT_MODEL_REPOSITORY", str(repository.root))
    assert CliRunner().invoke(app, ["promote", "signa@1"]).exit_code == 0
    assert repository.current("signa") == 1
