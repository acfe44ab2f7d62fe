"""Promoting: verified first, all together, never half."""

import shutil
from pathlib import Path

import pytest

from tests.repository.versions import ENCODER, HEAD, add_pair, add_version, contents, served
from tests.serving.bundles import edit_manifest
from tilesight.errors import BundleError, ManifestError
from tilesight.files import sha256
from tilesight.repository import Change, Promotion, Repository
from tilesight.triton_config import parse_config


def refusal(repository: Repository, **targets: int) -> str:
    """The message of a promotion that is refused and changes nothing."""
    repository.write_configs()
    before = contents(repository.root)
    with pytest.raises((BundleError, ManifestError)) as caught:
        repository.promote(targets)
    assert contents(repository.root) == before
    return str(caught.value)


def test_what_changed(repository: Repository) -> None:
    assert repository.promote({"signa": 1}) == [Change("signa", 2, 1)]
    assert repository.promote({"signa": 2, "jtts": 2}) == [
        Change("signa", 1, 2),
        Change("jtts", 2, 2),
    ]
    assert repository.promote({"signa": 2, "jtts": 2}) == []
    assert repository.state().promoted == {
        "signa": Promotion(version=2, previous=[1]),
        "jtts": Promotion(version=2),
    }


def test_a_new_version_is_not_served_by_itself(repository: Repository) -> None:
    repository.promote({"signa": 2})
    add_version(repository.root, "signa", 3)
    assert repository.current("signa") == 2


def test_history_has_each_version_once_newest_first(repository: Repository) -> None:
    add_version(repository.root, "signa", 3)
    for version in (1, 2, 3, 1, 3, 2):
        repository.promote({"signa": version})
    assert repository.state().promoted["signa"] == Promotion(version=2, previous=[3, 1])


def test_the_configuration_names_version_and_hashes(repository: Repository) -> None:
    repository.promote({"signa": 1})
    config = parse_config(repository.config_path("signa").read_text(encoding="utf-8"))
    assert list(config.version_policy.specific.versions) == [1]
    for version in (1, 2):
        graph = repository.folder("signa", version) / "model.onnx"
        assert config.parameters[f"sha256.{version}"].string_value == sha256(graph)
    assert repository.stale_configs(["signa"]) == {}


def test_a_head_brings_its_encoder_along(repository: Repository) -> None:
    assert repository.promote({HEAD: 1}) == [Change(HEAD, 2, 1), Change(ENCODER, 2, 1)]
    assert (repository.current(HEAD), repository.current(ENCODER)) == (1, 1)
    assert repository.stale_configs([HEAD, ENCODER]) == {}


def test_an_encoder_alone_is_refused(repository: Repository) -> None:
    message = refusal(repository, **{ENCODER: 1})
    assert message.startswith(f"{ENCODER}@1: {HEAD}@2 was made for another one")


def test_an_encoder_with_its_head(repository: Repository) -> None:
    repository.promote({ENCODER: 1, HEAD: 1})
    assert (repository.current(HEAD), repository.current(ENCODER)) == (1, 1)


def test_a_head_with_another_encoder_is_refused(repository: Repository) -> None:
    message = refusal(repository, **{ENCODER: 2, HEAD: 1})
    assert message.startswith(f"{ENCODER}@2: {HEAD}@1 was made for another one")


def test_a_head_whose_encoder_is_gone(repository: Repository) -> None:
    digest = repository.digests(ENCODER)[1]
    shutil.rmtree(repository.folder(ENCODER, 1))
    message = refusal(repository, **{HEAD: 1})
    assert message == f"{HEAD}@1: head: encoder_sha256: no version of {ENCODER} is {digest}"


def test_a_head_that_names_no_encoder(repository: Repository) -> None:
    edit_manifest(repository.folder(HEAD, 1), "head", "encoder_sha256", value=None)
    assert refusal(repository, **{HEAD: 1}).startswith(f"{HEAD}@1: head: encoder_sha256: missing")


def test_two_versions_of_one_encoder(repository: Repository) -> None:
    """The served one stays; where neither is served, the newer one comes."""
    root = repository.root
    add_version(root, ENCODER, 3, note="version 2")
    assert repository.digests(ENCODER)[3] == repository.digests(ENCODER)[2]
    repository.promote({HEAD: 2, ENCODER: 2})
    add_version(root, HEAD, 3)
    assert repository.promote({HEAD: 3}) == [Change(HEAD, 2, 3)]
    assert repository.current(ENCODER) == 2
    repository.promote({HEAD: 1})
    repository.promote({HEAD: 3})
    assert repository.current(ENCODER) == 3


def test_other_models_do_not_mind_a_broken_pair(repository: Repository) -> None:
    shutil.rmtree(repository.folder(ENCODER, 2))
    repository.promote({"signa": 1})
    assert repository.current("signa") == 1


def test_a_damaged_version_elsewhere_does_not_stop_a_promotion(repository: Repository) -> None:
    for name in ("signa", "jtts", HEAD):
        (repository.folder(name, 2) / "manifest.json").write_text("{", encoding="utf-8")
    repository.promote({"signa": 1})
    assert repository.current("signa") == 1
    assert "sha256.2" not in repository.config_path("signa").read_text(encoding="utf-8")


def test_a_changed_byte(repository: Repository) -> None:
    graph = repository.folder("jtts", 1) / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    assert refusal(repository, signa=1, jtts=1).startswith(f"{graph}: sha256 is ")


def test_a_missing_graph(repository: Repository) -> None:
    graph = repository.folder("signa", 1) / "model.onnx"
    graph.unlink()
    assert refusal(repository, signa=1).startswith(f"{graph}: missing")


def test_a_missing_version(repository: Repository) -> None:
    assert refusal(repository, signa=9).endswith("signa/9: no such version; signa has 1, 2")


def test_a_damaged_encoder_keeps_its_head_back(repository: Repository) -> None:
    (repository.folder(ENCODER, 1) / "model.onnx").unlink()
    assert f"{ENCODER}/1/model.onnx: missing" in refusal(repository, **{HEAD: 1})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), "jtts", "name: 'jtts', the folder says 'signa'"),
        (("version",), 2, "version: 2, the folder says 1"),
        (("input", "golden_sha256"), "f" * 64, "input: golden_sha256: the pixel pipeline"),
        (("input", "bands"), ["blue", "green", "red"], "input: bands: ['blue', 'green', 'red']"),
        (("format_version",), 3, "format_version is 3, this version reads 2; a later Tilesight"),
        (("files",), {}, "files: model.onnx is not listed"),
    ],
)
def test_a_manifest_of_something_else(
    repository: Repository, path: tuple[str, ...], value: object, message: str
) -> None:
    folder = repository.folder("signa", 1)
    edit_manifest(folder, *path, value=value)
    assert refusal(repository, signa=1).startswith(f"{folder / 'manifest.json'}: {message}")


def test_promoting_again_mends_the_configuration(repository: Repository) -> None:
    repository.promote({"signa": 1})
    repository.config_path("signa").write_text("edited", encoding="utf-8")
    assert repository.promote({"signa": 1}) == []
    assert repository.stale_configs(["signa"]) == {}


def test_a_broken_state_is_not_written_over(repository: Repository) -> None:
    repository.state_path.write_text('{"format_version": 2}', encoding="utf-8")
    assert "format_version is 2" in refusal_of_state(repository)
    assert repository.state_path.read_text(encoding="utf-8") == '{"format_version": 2}'


def refusal_of_state(repository: Repository) -> str:
    with pytest.raises(ManifestError) as caught:
        repository.promote({"signa": 1})
    return str(caught.value)


def test_everything_is_served_in_the_end(repository: Repository, tmp_path: Path) -> None:
    add_pair(repository.root, 3)
    repository.promote({"signa": 1, "jtts": 1, HEAD: 3})
    assert served(repository) == {"signa": 1, "jtts": 1, HEAD: 3, ENCODER: 3}
    moved = Repository(shutil.copytree(repository.root, tmp_path / "elsewhere"))
    assert (served(moved), moved.stale_configs()) == (served(repository), {})
