"""Removing: only what nothing needs, and never half."""

import shutil

import pytest

from tests.repository.versions import ENCODER, HEAD, add_version, contents
from tilesight.errors import BundleError
from tilesight.repository import Promotion, Repository


def refusal(repository: Repository, name: str, version: int) -> str:
    repository.write_configs()
    before = contents(repository.root)
    with pytest.raises(BundleError) as caught:
        repository.remove(name, version)
    assert contents(repository.root) == before
    return str(caught.value)


def test_a_version_that_is_not_served(repository: Repository) -> None:
    repository.promote({"signa": 1})
    repository.remove("signa", 2)
    assert repository.versions("signa") == [1]
    assert "sha256.2" not in repository.config_path("signa").read_text(encoding="utf-8")
    assert repository.stale_configs(["signa"]) == {}
    assert [path.name for path in repository.root.glob(".removed-*")] == []


def test_the_served_version_stays(repository: Repository) -> None:
    message = "is served; promote another version first"
    assert refusal(repository, "signa", 2) == f"signa@2 {message}"
    repository.promote({"signa": 1})
    assert refusal(repository, "signa", 1) == f"signa@1 {message}"


def test_a_version_that_is_not_there(repository: Repository) -> None:
    assert refusal(repository, "signa", 9).endswith("signa/9: no such version; signa has 1, 2")


def test_it_is_not_gone_back_to(repository: Repository) -> None:
    add_version(repository.root, "signa", 3)
    for version in (1, 2, 3):
        repository.promote({"signa": version})
    repository.remove("signa", 2)
    assert repository.state().promoted["signa"] == Promotion(version=3, previous=[1])


def test_an_encoder_that_a_kept_head_was_made_for(repository: Repository) -> None:
    assert refusal(repository, ENCODER, 1) == (
        f"{ENCODER}@1: {HEAD}@1 was made for it; remove the head first"
    )
    repository.remove(HEAD, 1)
    repository.remove(ENCODER, 1)
    assert (repository.versions(HEAD), repository.versions(ENCODER)) == ([2], [2])


def test_an_encoder_of_which_another_version_has_the_weights(repository: Repository) -> None:
    add_version(repository.root, ENCODER, 3, note="version 2")
    repository.promote({HEAD: 2, ENCODER: 2})
    repository.remove(ENCODER, 3)
    assert repository.versions(ENCODER) == [1, 2]


def test_a_damaged_version_goes(repository: Repository) -> None:
    (repository.folder("signa", 1) / "manifest.json").unlink()
    repository.remove("signa", 1)
    assert repository.versions("signa") == [2]


def test_beside_a_damaged_one_that_is_served_nothing_goes(repository: Repository) -> None:
    repository.write_configs()
    manifest = repository.folder("signa", 2) / "manifest.json"
    manifest.unlink()
    with pytest.raises(BundleError, match=r"signa/2/manifest\.json: missing"):
        repository.remove("signa", 1)
    assert repository.versions("signa") == [1, 2]


def test_leftovers_of_a_command_that_was_killed(repository: Repository) -> None:
    leftover = repository.root / ".removed-signa-1"
    shutil.copytree(repository.folder("signa", 1), leftover)
    repository.remove("signa", 1)
    assert not leftover.exists()


def test_a_linked_version_loses_its_link_only(repository: Repository) -> None:
    elsewhere = repository.root.parent / "elsewhere"
    repository.folder("signa", 1).rename(elsewhere)
    repository.folder("signa", 1).symlink_to(elsewhere)
    repository.remove("signa", 1)
    assert repository.versions("signa") == [2]
    assert (elsewhere / "model.onnx").is_file()
