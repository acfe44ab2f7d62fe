"""Label vectors from a file: what a label of several words gets, and one that the file lacks."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.test_config import tiny_config
from tilesight.errors import ConfigError, DataError
from training.fit import make_task
from training.label_vectors import read_vectors, words_of
from training.tasks.signa import SignaTask

_LABELS = ["water", "bare-soil", "mobile-home", "chaparral"]


def written(folder: Path, text: str) -> Path:
    path = folder / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return written(tmp_path, "water 3 4\nsoil 0 2\nbare 4 0\nhome 1 1\ncat 9 9\n")


def test_a_label_gets_the_mean_of_its_words_and_its_source_is_told(vectors: Path) -> None:
    values, sources = read_vectors(vectors, _LABELS, 2)
    assert values[:3].tolist() == [[3, 4], [2, 1], [1, 1]]
    found = {one.label: (one.words, one.missing) for one in sources}
    assert found == {
        "water": (["water"], []),
        "bare-soil": (["bare", "soil"], []),
        "mobile-home": (["home"], ["mobile"]),
        "chaparral": ([], ["chaparral"]),
    }


def test_a_label_without_a_word_gets_the_same_random_vector_in_every_run(vectors: Path) -> None:
    (first, _), (again, _) = (read_vectors(vectors, _LABELS, 2) for _ in range(2))
    other, _ = read_vectors(vectors, ["chaparral", "water"], 2)
    assert np.array_equal(first, again)
    direction = first[3] / np.linalg.norm(first[3])
    np.testing.assert_allclose(other[0] / np.linalg.norm(other[0]), direction, rtol=1e-5)
    # As long as the others are on average.
    length = np.mean([5, 2, 4, np.sqrt(2)])
    assert np.linalg.norm(first[3]) == pytest.approx(length, rel=1e-5)


def test_words_of_a_label() -> None:
    assert words_of("Bare-soil") == ["bare", "soil"]
    assert words_of("mobile_home park") == ["mobile", "home", "park"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("water 1 2\nsoil 1 2 3\n", r"vectors\.txt:2: 3 numbers, label_vector_width is 2"),
        ("water 1 two\n", "not word vectors in GloVe's text format"),
        ("cat 1 2\n", "has not one word of the labels water, bare-soil"),
        ("", "has not one word"),
    ],
)
def test_what_is_no_file_of_vectors_is_told(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_vectors(written(tmp_path, text), _LABELS, 2)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--vectors .*absent: no such file"):
        read_vectors(tmp_path / "absent", _LABELS, 2)


def test_the_vectors_reach_the_network_and_the_card(ucm_miniature: Path, tmp_path: Path) -> None:
    architecture = {"heads": 2, "label_vector_width": 2, "label_vectors": "file"}
    config = tiny_config("signa", architecture=architecture)
    with pytest.raises(ConfigError, match="--vectors FILE is needed"):
        make_task(config, ucm_miniature, None)
    path = written(tmp_path, "trees 0.5 -2\nwater 1 1\n")
    task = make_task(config, ucm_miniature, None, path)
    assert isinstance(task, SignaTask)
    index = task.card.labels.index("trees")
    assert task.network.vectors is not None
    assert task.network.vectors.values[index].tolist() == [0.5, -2]
    assert task.card.vectors[index].words == ["trees"]


def test_a_file_for_learned_vectors_is_refused(ucm_miniature: Path, vectors: Path) -> None:
    with pytest.raises(ConfigError, match="label_vectors is learned"):
        make_task(tiny_config("signa"), ucm_miniature, None, vectors)
