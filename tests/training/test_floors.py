from pathlib import Path

import numpy as np
import pytest

from tilesight.errors import DataError
from training import floors
from training.datasets import captions, questions, splits, ucm
from training.datasets.questions import Question

TRAIN = {
    "river00": ["a river with trees", "a river with trees", "a green river"],
    "river01": ["a river with trees", "some water", "one green river bends"],
    "beach00": ["a white beach", "waves at a white beach", "a white beach"],
}


def test_the_constant_set_is_the_best_on_train() -> None:
    train = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]])
    test = np.array([[1, 1, 0], [0, 0, 1]])
    found = floors.label_floors(train, test, ["a", "a", "b"], ["a", "b"])
    # {0, 1} has a mean F1 of (1 + 1 + 1/2) / 3 on train, more than {0} or {0, 1, 2}.
    assert found["constant_set"]["f1_samples"] == pytest.approx(1 / 2)
    assert found["constant_set"]["f1_micro"] == pytest.approx(2 * 2 / (4 + 3))


def test_the_oracle_scene_gives_the_labels_of_half_its_tiles() -> None:
    train = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]])
    scenes = ["a", "a", "a", "b"]
    found = floors.label_floors(train, np.array([[1, 0, 0], [0, 0, 1]]), scenes, ["a", "b"])
    assert found["oracle_scene"]["f1_samples"] == 1
    with pytest.raises(DataError, match="no train tile of c"):
        floors.label_floors(train, train[:1], scenes, ["c"])


def test_the_template_of_a_scene_is_its_consensus() -> None:
    assert floors.scene_templates(TRAIN) == {
        "river": "a river with trees",
        "beach": "a white beach",
    }


def test_the_neighbour_lends_its_most_frequent_sentence() -> None:
    features = {
        "river00": np.array([1.0, 0.0]),
        "river01": np.array([0.0, 1.0]),
        "beach00": np.array([-1.0, 0.0]),
        "river50": np.array([9.0, 1.0]),
        "beach50": np.array([-0.1, 0.01]),
    }
    assert floors.nearest_sentences(TRAIN, ["beach50", "river50"], features) == {
        "beach50": "a white beach",
        "river50": "a river with trees",
    }
    with pytest.raises(DataError, match="no features for 1 stems: river60"):
        floors.nearest_sentences(TRAIN, ["river60"], features)


def test_caption_floors_score_what_the_miniature_repeats(ucm_miniature: Path) -> None:
    spoken = captions.read_captions(ucm_miniature)
    parts = {
        part: ucm.present(ucm_miniature, splits.read_split("ucm_captions", part))
        for part in splits.PARTS
    }
    train, test = ({stem: spoken[stem] for stem in parts[part]} for part in ("train", "test"))
    tiles = ucm.read_tiles(ucm_miniature, [*train, *test], 16)
    features = dict(zip([*train, *test], tiles.reshape(len(tiles), -1) / 255.0, strict=True))
    found = floors.caption_floors(train, test, features, "words")
    assert found.keys() == {"oracle_scene", "nearest_neighbour"}
    assert found["oracle_scene"]["verbatim_train"] == 1
    assert found["oracle_scene"]["distinct"] == 4
    assert found["oracle_scene"]["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert floors.caption_floors(train, test, tokenizer="words").keys() == {"oracle_scene"}


def test_a_scene_without_train_sentences_is_an_error() -> None:
    with pytest.raises(DataError, match="no train sentence for forest"):
        floors.caption_floors(TRAIN, {"forest00": ["a forest"]})


def _ask(stem: str, text: str, answer: str) -> Question:
    return Question(stem, text, answer, "presence", "labels")


def test_answer_floors_fall_back_where_training_saw_nothing() -> None:
    train = [
        _ask("river00", "Is there water?", "yes"),
        _ask("river01", "Is there water?", "yes"),
        _ask("beach00", "Is there water?", "no"),
        _ask("beach00", "Are there cars?", "no"),
        _ask("river00", "Are there cars?", "no"),
    ]
    test = [
        _ask("river50", "Is there water?", "yes"),
        _ask("beach50", "Is there water?", "no"),
        _ask("forest50", "Is there water?", "yes"),  # the scene is new: the question decides
        _ask("river50", "Is there sand?", "no"),  # the question is new: the kind decides
    ]
    found = floors.answer_floors(train, test)
    assert found["majority_of_kind"]["overall"] == pytest.approx(2 / 4)
    assert found["majority_of_question"]["overall"] == pytest.approx(3 / 4)
    assert found["oracle_scene"]["overall"] == 1


def test_a_kind_unseen_in_training_gets_the_most_frequent_answer() -> None:
    train = [_ask("river00", "Is there water?", "yes")]
    test = [Question("river50", "How many cars in the picture?", "yes", "count", "people")]
    assert floors.answer_floors(train, test)["majority_of_kind"]["overall"] == 1


# Real data: label statistics that the reports stand beside


def test_the_real_label_floors(ucm_real: Path) -> None:
    table = ucm.read_labels(ucm_real)
    train, test = (splits.read_split("ucm", part) for part in ("train", "test"))

    def found(seen: list[str], told: list[str]) -> floors.Floors:
        scenes = [[ucm.scene_of(stem) for stem in stems] for stems in (seen, told)]
        return floors.label_floors(table.matrix(seen), table.matrix(told), *scenes)

    every = found(list(table.rows), list(table.rows))
    assert every["constant_set"]["f1_samples"] == pytest.approx(0.534, abs=5e-4)
    assert every["oracle_scene"]["f1_samples"] == pytest.approx(0.856, abs=5e-4)
    assert every["oracle_scene"]["f1_paper"] == pytest.approx(0.868, abs=5e-4)
    honest = found(train, test)
    assert honest["constant_set"]["f1_samples"] == pytest.approx(0.5255, abs=5e-4)
    assert honest["oracle_scene"]["f1_samples"] == pytest.approx(0.8612, abs=5e-4)
    assert honest["oracle_scene"]["map"] == pytest.approx(0.9379, abs=5e-4)


def test_the_real_answer_floors(ucm_real: Path) -> None:
    asked = {
        part: questions.questions(ucm_real, splits.read_split("ucm", part), seed=7)
        for part in ("train", "test")
    }
    found = floors.answer_floors(asked["train"], asked["test"])
    assert found["majority_of_kind"]["overall"] == pytest.approx(0.4328, abs=5e-4)
    assert found["majority_of_question"]["presence"] == pytest.approx(0.7987, abs=5e-4)
    assert found["oracle_scene"]["overall"] == pytest.approx(0.9072, abs=5e-4)


@pytest.mark.slow
def test_the_real_caption_floor(ucm_real: Path) -> None:
    spoken = captions.read_captions(ucm_real)
    train, test = (
        {stem: spoken[stem] for stem in splits.read_split("ucm_captions", part)}
        for part in ("train", "test")
    )
    oracle = floors.caption_floors(train, test, tokenizer="words")["oracle_scene"]
    assert oracle["cider"] == pytest.approx(3.912, abs=5e-3)
    assert oracle["distinct"] == 21
