import hashlib
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import miniature
from tilesight.errors import DataError
from tilesight.imaging import prepare
from tilesight.questions import words
from training.datasets import captions, questions, splits, ucm
from training.datasets.questions import Question

SIZES = {
    ("ucm", "train"): 1470,
    ("ucm", "val"): 210,
    ("ucm", "test"): 420,
    ("ucm_captions", "train"): 1680,
    ("ucm_captions", "val"): 210,
    ("ucm_captions", "test"): 210,
}
# The recipe only sorts names, so the committed lists can be checked without a tile.
ALL_STEMS = {scene: [f"{scene}{index:02d}" for index in range(100)] for scene in ucm.SCENES}


# Splits


@pytest.mark.parametrize(("dataset", "part"), SIZES)
def test_a_committed_list_has_its_size_and_hash(dataset: str, part: str) -> None:
    stems = splits.read_split(dataset, part)
    assert len(stems) == len(set(stems)) == SIZES[dataset, part]
    file = Path(splits.__file__).parent / "splits" / f"{dataset}_{part}.txt"
    assert splits.split_sha256(dataset, part) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("dataset", ["ucm", "ucm_captions"])
def test_the_parts_hold_every_tile_once(dataset: str) -> None:
    stems = [stem for part in splits.PARTS for stem in splits.read_split(dataset, part)]
    assert sorted(stems) == sorted(stem for of_scene in ALL_STEMS.values() for stem in of_scene)


def test_the_committed_ucm_lists_come_from_the_recipe() -> None:
    backwards = {scene: ALL_STEMS[scene][::-1] for scene in reversed(ALL_STEMS)}
    made = splits.make_ucm_split(backwards)
    assert made == {part: splits.read_split("ucm", part) for part in splits.PARTS}


def test_an_unknown_list_names_those_there_are() -> None:
    with pytest.raises(DataError, match=r"ucm_trial.*ucm_captions_test"):
        splits.read_split("ucm", "trial")


# Tiles and labels


def test_numbers_count_the_tiles_from_one_in_the_order_of_the_scenes() -> None:
    assert ucm.stem_of_number(1) == "agricultural00"
    assert ucm.stem_of_number(100) == "agricultural99"
    assert ucm.stem_of_number(101) == "airplane00"
    assert ucm.stem_of_number(2100) == "tenniscourt99"
    assert list(ucm.SCENES) == sorted(ucm.SCENES)


@pytest.mark.parametrize("number", [0, 2101])
def test_a_number_outside_the_set_is_an_error(number: int) -> None:
    with pytest.raises(DataError, match="2100 tiles"):
        ucm.stem_of_number(number)


def test_a_stem_of_no_scene_is_an_error() -> None:
    with pytest.raises(DataError, match="volcano07"):
        ucm.scene_of("volcano07")


def test_tiles_come_in_order_through_the_pixel_pipeline(ucm_miniature: Path) -> None:
    stems = ucm.present(ucm_miniature, splits.read_split("ucm", "test"))[:3]
    tiles = ucm.read_tiles(ucm_miniature, stems, 32)
    assert tiles.shape == (3, 32, 32, 3)
    assert tiles.dtype == np.uint8
    for tile, stem in zip(tiles, stems, strict=True):
        expected = prepare(ucm.tile_path(ucm_miniature, stem).read_bytes(), 32, 32)
        np.testing.assert_array_equal(tile, expected)


def test_missing_tiles_are_counted_and_five_are_named(ucm_miniature: Path) -> None:
    rivers = [f"river{index:02d}" for index in range(7)]
    assert ucm.present(ucm_miniature, rivers) == []
    with pytest.raises(DataError, match=r"7 stems: river00, .*river04, \.\.\.$"):
        ucm.read_tiles(ucm_miniature, rivers, 32)
    with pytest.raises(DataError, match="river00"):
        ucm.tile_path(ucm_miniature, "river00")


def test_an_unreadable_tile_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "river"
    folder.mkdir(parents=True)
    (folder / "river00.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"river00\.png"):
        ucm.read_tiles(tmp_path, ["river00"], 32)


def test_label_rows_come_in_the_order_of_the_stems(ucm_miniature: Path) -> None:
    table = ucm.read_labels(ucm_miniature)
    forest, harbor = (miniature.chosen_stems(scene, 1)[0] for scene in ("forest", "harbor"))
    matrix = table.matrix([harbor, forest])
    assert matrix.shape == (2, 17)
    assert matrix[:, table.labels.index("ship")].tolist() == [1, 0]
    assert matrix[:, table.labels.index("trees")].tolist() == [0, 1]
    with pytest.raises(DataError, match="1 stems: river00"):
        table.matrix([harbor, "river00"])


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["IMAGE\\LABEL\tcars\ttrees", "river00\t1"], ":2: expected a stem and 2 times 0 or 1"),
        (["IMAGE\\LABEL\tcars\ttrees", "river00\t1\t2"], ":2: expected"),
        (["IMAGE\\LABEL\tcars", "river00\t1", "river00\t0"], ":3: a second row for river00"),
        ([], "empty"),
    ],
)
def test_a_broken_label_table_names_the_line(tmp_path: Path, lines: list[str], reason: str) -> None:
    (tmp_path / "multilabels.tsv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=reason):
        ucm.read_labels(tmp_path)


def test_a_folder_without_annotations_is_an_error(tmp_path: Path) -> None:
    for read in (ucm.read_labels, captions.read_captions, questions.read_theme):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path)


# Captions


def test_sentences_are_the_raw_ones_without_the_full_stop(ucm_miniature: Path) -> None:
    read = captions.read_captions(ucm_miniature)
    stem = miniature.chosen_stems("beach", 1)[0]
    assert read[stem][1:3] == [
        "This is a beach with blue sea and white sands",
        "There is a beach with white sand",
    ]
    assert {len(sentences) for sentences in read.values()} == {5}


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"images": [{"filename": "1.tif"}]}'])
def test_captions_in_another_layout_are_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(DataError, match=r"captions\.json"):
        captions.read_captions(tmp_path)


def test_attributes_are_whole_words_of_any_sentence() -> None:
    spoken = {"river00": ["Green plants", "a carpark"], "river01": ["Two cars, parked"]}
    matrix = captions.attribute_matrix(spoken, ["river01", "river00"], ["cars", "green", "car"])
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(DataError, match="river02"):
        captions.attribute_matrix(spoken, ["river02"], ["cars"])


# Questions


def test_presence_questions_ask_as_often_for_absent_labels(ucm_miniature: Path) -> None:
    table = ucm.read_labels(ucm_miniature)
    asked = questions.presence_questions(table, list(table.rows), seed=3)
    for stem, row in table.rows.items():
        answers = Counter(question.answer for question in asked if question.stem == stem)
        assert answers == {"yes": row.sum(), "no": row.sum()}


def test_presence_answers_are_the_labels(ucm_miniature: Path) -> None:
    table = ucm.read_labels(ucm_miniature)
    label_of = {
        text: label
        for label, nouns in questions.SPOKEN.items()
        for noun in nouns
        for text in questions.phrasings(noun)
    }
    assert len(label_of) == sum(
        len(questions.phrasings(noun)) for nouns in questions.SPOKEN.values() for noun in nouns
    )
    for question in questions.presence_questions(table, list(table.rows), seed=3):
        present = table.rows[question.stem][table.labels.index(label_of[question.text])]
        assert question.answer == ("yes" if present else "no")


def test_what_is_asked_of_a_tile_depends_on_it_and_the_seed_alone(ucm_miniature: Path) -> None:
    table = ucm.read_labels(ucm_miniature)
    stems = list(table.rows)

    def asked(of: list[str], seed: int) -> set[Question]:
        return set(questions.presence_questions(table, of, seed))

    assert asked(stems, 3) == asked(stems[::-1], 3)
    assert asked(stems[5:6], 3) <= asked(stems, 3)
    assert asked(stems, 3) != asked(stems, 4)


def test_wordings_are_english() -> None:
    spoken = {
        text
        for nouns in questions.SPOKEN.values()
        for noun in nouns
        for text in questions.phrasings(noun)
    }
    assert {
        "Are there trees?",
        "Is there a ship?",
        "Is there an airplane?",
        "Is there water?",
        "Is there any grass in the picture?",
        "Does this picture contain mobile homes?",
        "Does this picture contain a storage tank?",
    } <= spoken
    assert not {"Are there water?", "Is there ships?", "Is there a grass?"} & spoken


def test_a_label_without_a_spoken_name_is_an_error() -> None:
    table = ucm.LabelTable(["volcano"], {"river00": np.ones(1, np.float32)})
    with pytest.raises(DataError, match="volcano"):
        questions.all_presence_questions(table, ["river00"])


def test_every_label_is_asked_in_its_plainest_wording(ucm_miniature: Path) -> None:
    table = ucm.read_labels(ucm_miniature)
    stem = miniature.chosen_stems("forest", 1)[0]
    asked = {q.text: q.answer for q in questions.all_presence_questions(table, [stem])}
    assert len(asked) == 17
    assert asked["Are there trees?"] == "yes"
    assert asked["Is there water?"] == "no"


def test_questions_without_their_noun_are_dropped_and_counted(
    ucm_miniature: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        read = questions.read_people(ucm_miniature)
    assert "48 of 144 questions lost their noun" in caplog.text
    assert Counter(q.kind for q in read) == dict.fromkeys(
        ("theme", "presence", "count", "location"), 24
    )


def test_texts_and_answers_are_normalised(tmp_path: Path) -> None:
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "human.txt").write_text(
        "1.tif:what is the  location of the cars in this picture?Up, center and  bottom \n"
    )
    assert questions.read_people(tmp_path) == [
        Question(
            "agricultural00",
            "What is the location of the cars in this picture?",
            "up, center and bottom",
            "location",
            "people",
        )
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1.tif:How many cars in the picture?", "not `N.tif"),
        ("1.png:How many cars in the picture?two", "not `N.tif"),
        ("1.tif:Who lives here?two", "no known kind"),
        ("2101.tif:How many cars in the picture?two", "2100 tiles"),
    ],
)
def test_a_line_that_is_no_question_is_an_error(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "human.txt").write_text(line)
    with pytest.raises(DataError, match=reason):
        questions.read_people(tmp_path)


def test_questions_of_a_part_ask_of_its_tiles_alone(ucm_miniature: Path) -> None:
    stems = ucm.present(ucm_miniature, splits.read_split("ucm", "val"))
    asked = questions.questions(ucm_miniature, stems, seed=3)
    assert {question.stem for question in asked} == set(stems)
    assert {question.source for question in asked} == {"labels", "theme", "people"}


def test_only_the_theme_has_paraphrases() -> None:
    theme = Question("river00", "What is the theme of this picture?", "river", "theme", "theme")
    reworded = questions.paraphrases(theme)
    assert "What is this place?" in {question.text for question in reworded}
    assert theme not in reworded
    assert {(q.stem, q.answer, q.kind) for q in reworded} == {("river00", "river", "theme")}
    assert (
        questions.paraphrases(Question("river00", "Is there sea?", "no", "presence", "labels"))
        == []
    )


def test_the_answer_list_is_sorted_by_frequency_and_cut() -> None:
    asked = [
        Question("river00", "?", answer, "count", "people")
        for answer in ("two", "one", "two", "ten", "one", "six", "two")
    ]
    assert questions.answer_list(asked, 2) == ["two", "one"]
    assert questions.answer_list(asked, 1) == ["two", "one", "six", "ten"]


@pytest.mark.parametrize(
    ("answer", "kind", "count"),
    [
        ("yes", "presence", None),
        ("farmland", "theme", None),
        ("airport", "theme", None),
        ("zero", "count", 0),
        ("twelve", "count", 12),
        ("about twenty-eight", "count", 28),
        ("fifty", "count", 50),
        ("up and bottom", "location", None),
        ("i cannot see it", "location", None),
    ],
)
def test_an_answer_tells_its_kind_and_number(answer: str, kind: str, count: int | None) -> None:
    assert questions.answer_type(answer) == kind
    assert questions.count_of(answer) == count


# The miniature itself


def test_the_miniature_has_every_scene_in_every_part(tmp_path: Path) -> None:
    folder = miniature.draw(tmp_path, tiles_per_scene=6, scenes=3)
    for dataset, part in SIZES:
        stems = ucm.present(folder, splits.read_split(dataset, part))
        assert {ucm.scene_of(stem) for stem in stems} == {"forest", "harbor", "parkinglot"}
    assert len(ucm.read_labels(folder).rows) == len(captions.read_captions(folder)) == 18
    assert captions.official_split(folder)["test"]


def test_the_miniature_is_drawn_the_same_again(ucm_miniature: Path, tmp_path: Path) -> None:
    again = miniature.draw(tmp_path)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) == 48 + 4
    for file in files:
        assert (again / file).read_bytes() == (ucm_miniature / file).read_bytes(), file


# Real data


def test_the_real_tiles_and_labels_are_all_there(ucm_real: Path) -> None:
    stems = [stem for part in splits.PARTS for stem in splits.read_split("ucm", part)]
    assert ucm.present(ucm_real, stems) == stems
    table = ucm.read_labels(ucm_real)
    assert sorted(table.rows) == sorted(stems)
    counts = dict(zip(table.labels, table.matrix(stems).sum(axis=0), strict=True))
    assert (counts["pavement"], counts["trees"], counts["dock"]) == (1300, 1009, 100)


def test_the_committed_caption_lists_are_the_official_split(ucm_real: Path) -> None:
    official = captions.official_split(ucm_real)
    assert official == {part: splits.read_split("ucm_captions", part) for part in splits.PARTS}


def test_every_attribute_occurs_over_a_hundred_times_in_train(ucm_real: Path) -> None:
    spoken = captions.read_captions(ucm_real)
    counts = Counter(
        word
        for stem in splits.read_split("ucm_captions", "train")
        for sentence in spoken[stem]
        for word in words(sentence)
    )
    attributes = captions.read_attributes()
    assert len(attributes) == len(set(attributes)) == 78
    assert {word: counts[word] for word in attributes if counts[word] <= 100} == {}
    assert attributes == sorted(attributes, key=lambda word: (-counts[word], word))


def test_the_real_questions_are_read_whole(ucm_real: Path) -> None:
    themes = questions.read_theme(ucm_real)
    assert len(themes) == 2100
    assert all(q.answer == ucm.SCENES[ucm.scene_of(q.stem)] for q in themes)
    kinds = Counter(question.kind for question in questions.read_people(ucm_real))
    assert kinds == {"presence": 1118, "theme": 559, "location": 428, "count": 396}
    asked = questions.questions(ucm_real, splits.read_split("ucm", "test"), seed=1)
    assert Counter(question.source for question in asked) == {
        "labels": 2738,
        "theme": 420,
        "people": 486,
    }


def test_a_real_folder_with_few_tiles_still_reads(ucm_real: Path, tmp_path: Path) -> None:
    source = ucm.tile_path(ucm_real, "river07")
    target = tmp_path / "images" / "river" / source.name
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    assert ucm.present(tmp_path, ["river06", "river07"]) == ["river07"]
    assert ucm.read_tiles(tmp_path, ["river07"], 224).shape == (1, 224, 224, 3)
