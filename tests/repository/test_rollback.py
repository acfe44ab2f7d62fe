"""Going back: to what was served before, in pairs, also from something broken."""

import shutil

import pytest

from tests.repository.versions import ENCODER, HEAD, add_pair, add_version, contents, served
from tests.serving.bundles import edit_manifest
from tilesight.errors import BundleError
from tilesight.files import sha256
from tilesight.repository import Change, Promotion, Repository


def refusal(repository: Repository, *names: str) -> str:
    repository.write_configs()
    before = contents(repository.root)
    with pytest.raises(BundleError) as caught:
        repository.rollback(names)
    assert contents(repository.root) == before
    return str(caught.value)


def test_to_the_version_before(repository: Repository) -> None:
    add_version(repository.root, "signa", 3)
    for version in (3, 1, 2):
        repository.promote({"signa": version})
    assert repository.rollback(["signa"]) == [Change("signa", 2, 1)]
    assert repository.rollback(["signa"]) == [Change("signa", 1, 3)]
    assert repository.stale_configs(["signa"]) == {}


def test_to_the_next_lower_version_where_nothing_was_served_before(repository: Repository) -> None:
    assert repository.rollback(["signa"]) == [Change("signa", 2, 1)]
    assert refusal(repository, "signa") == "signa@1: no version before it"


def test_to_what_was_served_unpromoted(repository: Repository) -> None:
    repository.promote({"signa": 1})
    assert repository.rollback(["signa"]) == [Change("signa", 1, 2)]
    assert repository.state().promoted["signa"] == Promotion(version=2)


def test_several_models_at_once_or_none(repository: Repository) -> None:
    repository.rollback(["signa"])
    assert refusal(repository, "jtts", "signa") == "signa@1: no version before it"
    assert repository.current("jtts") == 2
    assert refusal(repository, "absent").endswith("(folders named 1, 2, ...)")


@pytest.mark.parametrize("names", [[HEAD], [ENCODER], [HEAD, ENCODER]])
def test_encoder_and_head_go_back_together(repository: Repository, names: list[str]) -> None:
    repository.promote({HEAD: 1})
    repository.promote({HEAD: 2})
    assert sorted(repository.rollback(names)) == [Change(ENCODER, 2, 1), Change(HEAD, 2, 1)]
    assert repository.state().promoted == {
        HEAD: Promotion(version=1),
        ENCODER: Promotion(version=1),
    }


def test_a_head_that_shares_its_encoder_goes_back_alone(repository: Repository) -> None:
    add_version(repository.root, HEAD, 3)
    repository.promote({HEAD: 2})
    repository.promote({HEAD: 3})
    assert repository.rollback([HEAD, ENCODER]) == [Change(HEAD, 3, 2)]


def test_an_encoder_passes_over_heads_of_the_encoder_that_it_leaves(
    repository: Repository,
) -> None:
    """Head 3 was made for encoder 2, like head 2: back at encoder 1, head 1 is the one."""
    add_version(repository.root, HEAD, 3)
    for version in (1, 2, 3):
        repository.promote({HEAD: version})
    repository.rollback([ENCODER])
    assert (repository.current(ENCODER), repository.current(HEAD)) == (1, 1)


def test_an_encoder_of_which_no_earlier_head_is_there(repository: Repository) -> None:
    shutil.rmtree(repository.folder(HEAD, 1))
    message = refusal(repository, ENCODER)
    assert message.startswith(f"{HEAD}@2: no version before it was made for the encoder")


def test_an_encoder_of_the_same_weights_leaves_the_head_alone(repository: Repository) -> None:
    add_version(repository.root, ENCODER, 3, note="version 2")
    repository.promote({HEAD: 2, ENCODER: 2})
    repository.promote({ENCODER: 3})
    repository.rollback([ENCODER])
    assert (repository.current(ENCODER), repository.current(HEAD)) == (2, 2)


def test_away_from_damaged_versions(repository: Repository) -> None:
    repository.promote({"signa": 1, "jtts": 1, HEAD: 1})
    repository.promote({"signa": 2, "jtts": 2, HEAD: 2})
    (repository.folder("signa", 2) / "manifest.json").write_text("{", encoding="utf-8")
    shutil.rmtree(repository.folder("jtts", 2))
    (repository.folder(HEAD, 2) / "model.onnx").unlink()
    repository.rollback(["signa", "jtts", HEAD])
    assert served(repository) == {"signa": 1, "jtts": 1, HEAD: 1, ENCODER: 1}
    assert repository.stale_configs() == {}


def test_never_to_a_damaged_version(repository: Repository) -> None:
    graph = repository.folder("signa", 1) / "model.onnx"
    graph.write_bytes(b"")
    assert refusal(repository, "signa").startswith(f"{graph}: sha256 is ")


def test_versions_that_were_removed_are_passed_over(repository: Repository) -> None:
    add_version(repository.root, "signa", 3)
    for version in (1, 2, 3):
        repository.promote({"signa": version})
    shutil.rmtree(repository.folder("signa", 2))
    assert repository.rollback(["signa"]) == [Change("signa", 3, 1)]


def test_three_generations_of_pairs(repository: Repository) -> None:
    add_pair(repository.root, 3)
    for version in (1, 2, 3):
        repository.promote({HEAD: version})
    for version in (2, 1):
        repository.rollback([ENCODER if version == 2 else HEAD])
        assert (repository.current(ENCODER), repository.current(HEAD)) == (version, version)


def test_a_head_made_for_the_same_encoder_in_a_later_folder(repository: Repository) -> None:
    head = repository.folder(HEAD, 1)
    encoder = repository.folder(ENCODER, 2) / "model.onnx"
    edit_manifest(head, "head", "encoder_sha256", value=sha256(encoder))
    assert repository.rollback([HEAD]) == [Change(HEAD, 2, 1), Change(ENCODER, 2, 2)]
