"""What is in a repository, and which version is meant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.repository.versions import ENCODER, HEAD, add_version, served
from tests.serving.bundles import edit_manifest
from tilesight.errors import BundleError, ManifestError
from tilesight.repository import Repository, State, TritonOptions


def write_state(repository: Repository, **fields: object) -> None:
    repository.state_path.write_text(json.dumps({"format_version": 1, **fields}), encoding="utf-8")


def test_models_and_versions(repository: Repository) -> None:
    assert repository.models() == ["jtts", "signa", ENCODER, HEAD]
    assert repository.versions("signa") == [1, 2]
    assert repository.versions("absent") == []


def test_what_is_no_version(repository: Repository) -> None:
    root = repository.root
    for name in ("03", "0", "-1", "x", "\u0664", ".7", "4.tmp"):
        (root / "signa" / name).mkdir()
    (root / "signa" / "5").touch()
    for name in (".export-x1", ".removed-signa-9", "Upper", "with-dash"):
        (root / name / "1").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "notes").touch()
    assert repository.versions("signa") == [1, 2]
    assert repository.models() == ["jtts", "signa", ENCODER, HEAD]


def test_versions_count_as_numbers(repository: Repository) -> None:
    add_version(repository.root, "signa", 10)
    assert repository.versions("signa") == [1, 2, 10]
    assert repository.current("signa") == 10


@pytest.mark.parametrize("name", ["../models/signa", "", "signa/1", "Signa", ".", "signa\n"])
def test_no_name_leads_out_of_the_folder(repository: Repository, name: str) -> None:
    with pytest.raises(BundleError, match="no name of a model"):
        repository.folder(name, 1)


def test_a_missing_repository(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "nowhere")
    for action in (repository.models, repository.write_configs, repository.stale_configs):
        with pytest.raises(BundleError) as caught:
            action()
        assert str(caught.value) == f"{tmp_path / 'nowhere'}: no such model repository"
    assert not (tmp_path / "nowhere").exists()


def test_the_highest_version_where_nothing_was_promoted(repository: Repository) -> None:
    assert repository.state() == State()
    assert set(served(repository).values()) == {2}


def test_the_promoted_version(repository: Repository) -> None:
    write_state(repository, promoted={"signa": {"version": 1}})
    assert repository.current("signa") == 1
    assert repository.current("jtts") == 2


def test_one_state_for_several_models(repository: Repository) -> None:
    before = repository.state()
    repository.promote({"signa": 1, "jtts": 1})
    assert (repository.current("signa", before), repository.current("jtts", before)) == (2, 2)


def test_a_model_without_versions(repository: Repository) -> None:
    with pytest.raises(BundleError) as caught:
        repository.current("absent")
    assert str(caught.value).startswith(f"{repository.root / 'absent'}: no version of this model")


def test_a_promoted_version_that_is_gone(repository: Repository) -> None:
    write_state(repository, promoted={"signa": {"version": 7}})
    with pytest.raises(BundleError) as caught:
        repository.current("signa")
    gone = repository.root / "signa" / "7"
    assert str(caught.value) == (
        f"{repository.state_path}: promoted.signa.version: {gone} is missing"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promoted": {"signa": {"version": 0}}}, "promoted.signa.version: "),
        ({"promoted": {"signa": {"version": "1"}}}, "promoted.signa.version: "),
        ({"promoted": {"signa": {"version": True}}}, "promoted.signa.version: "),
        ({"promoted": {"signa": {"version": 1, "previous": [2, -1]}}}, "promoted.signa.previous.1"),
        ({"promoted": {"signa": {}}}, "promoted.signa.version: Field required"),
        ({"promoted": {"signa": {"version": 1, "by": "me"}}}, "promoted.signa.by: Extra inputs"),
        ({"aliases": {}}, "aliases: Extra inputs"),
        ({"triton": {"threads": 0}}, "triton.threads: "),
        ({"triton": {"max_batch_size": 1.5}}, "triton.max_batch_size: "),
        ({"format_version": 2}, "format_version is 2, this version reads 1; a later Tilesight"),
        ({"format_version": "1"}, "format_version is '1', this version reads 1"),
        ({"format_version": None}, "format_version is None, this version reads 1"),
    ],
)
def test_a_wrong_field_is_named(
    repository: Repository, fields: dict[str, object], message: str
) -> None:
    write_state(repository, **fields)
    with pytest.raises(ManifestError) as caught:
        repository.current("signa")
    assert str(caught.value).startswith(f"{repository.state_path}: {message}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"format_version": 1', "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_no_json(repository: Repository, data: bytes, message: str) -> None:
    repository.state_path.write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        repository.state()
    assert str(caught.value).startswith(f"{repository.state_path}: {message}")


def test_a_folder_in_place_of_the_file(repository: Repository) -> None:
    repository.state_path.mkdir()
    with pytest.raises(BundleError, match=r"repository\.json: Is a directory"):
        repository.state()


def test_options_have_bounds_on_the_queue() -> None:
    options = TritonOptions()
    assert (options.instances, options.threads, options.max_batch_size) == (1, 2, 32)
    assert 0 < options.max_queue_size < 100_000
    assert options.queue_timeout_us == 30_000_000


def test_digests_are_those_of_the_manifests(repository: Repository) -> None:
    found = repository.digests("signa")
    assert list(found) == [1, 2]
    for version, digest in found.items():
        assert digest == repository.manifest("signa", version).files["model.onnx"]


def test_versions_without_a_manifest_have_no_digest(repository: Repository) -> None:
    add_version(repository.root, "signa", 3)
    (repository.folder("signa", 1) / "manifest.json").unlink()
    edit_manifest(repository.folder("signa", 2), "format_version", value=99)
    assert list(repository.digests("signa")) == [3]
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        repository.manifest("signa", 1)
    with pytest.raises(ManifestError, match="format_version is 99"):
        repository.manifest("signa", 2)


def test_a_missing_version_names_those_that_are_there(repository: Repository) -> None:
    with pytest.raises(BundleError, match=r"signa/9: no such version; signa has 1, 2$"):
        repository.manifest("signa", 9)
    with pytest.raises(BundleError, match=r"absent/1: no such version; absent has none$"):
        repository.verified("absent", 1)


def test_reading_needs_neither_torch_nor_onnx_nor_the_client_of_triton() -> None:
    program = """
import sys
from pathlib import Path
from tilesight.models_report import entries
from tilesight.repository import Repository
print(len(entries(Repository(Path("model_repository")))) > 3)
print({"torch", "onnx", "onnxruntime", "tritonclient"} & sys.modules.keys())
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (answer.stdout, answer.stderr) == ("True\nset()\n", "")
