import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import f1_score

from tilesight.errors import DataError
from training import label_figures, metrics
from training.floors import label_floors
from training.models.label_graph import label_graph
from training.reports import HeatMaps, LabelEvaluation, label_pictures, write_label_report
from training.reports.label_report import label_report
from training.reports.label_text import report_text

# A bar would end a cell of a table, a dollar would begin a formula, an underscore is only itself.
LABELS = ["trees", "water", "cars|lorries", "sand", "$ea_shore"]
STEMS = [f"river{number:02d}" for number in range(12)] + [f"beach{n:02d}" for n in range(12)]
SCENES = [stem.rstrip("0123456789") for stem in STEMS]


def part(seed: int, tiles: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    truth = (generator.random((tiles, 5)) < [0.7, 0.4, 0.3, 0.4, 0.2]).astype(np.int64)
    return truth, np.clip(generator.random((tiles, 5)) * 0.8 + truth * 0.25 - 0.1, 0, 1)


def evaluation(**changes: object) -> LabelEvaluation:
    (train, _), (val, val_scores) = part(1, 40), part(2, 30)
    test, test_scores = part(3, len(STEMS))
    # The last label has no positive test tile.
    test[:, 4] = 0
    of_train = ["river", "beach"] * 20
    whole = LabelEvaluation(
        model="signa",
        labels=LABELS,
        train_truth=train,
        val_truth=val,
        val_scores=val_scores,
        test_truth=test,
        test_scores=test_scores,
        test_stems=STEMS,
        split="ucm",
        split_sha256="5" * 64,
        seed=42,
        commit="c0ffee",
        edge_threshold=0.4,
        floors=label_floors(train, test, of_train, SCENES),
        notes={"Input": "224 x 224\npixels"},
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def pictured() -> LabelEvaluation:
    generator = np.random.default_rng(4)
    tiles = generator.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    labels = [["water", "$ea_shore"], ["sand", "water"]]
    return evaluation(
        features=generator.normal(size=(len(STEMS), 6)),
        scenes=SCENES,
        heat_maps=HeatMaps([STEMS[0], STEMS[20]], tiles, labels, generator.random((2, 2, 32, 32))),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    write_label_report(pictured(), folder)
    return folder


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with this text."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# Files


def test_every_linked_picture_is_a_png_that_shows_something(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    facts = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert (
        sorted(linked) == sorted(facts["pictures"]) == sorted(p.name for p in written.glob("*.png"))
    )
    assert len(linked) == 6
    for name in linked:
        with Image.open(written / name) as picture:
            assert picture.format == "PNG"
            assert all(300 <= side <= 3000 for side in picture.size), (name, picture.size)
            assert len(set(picture.convert("L").get_flattened_data())) > 20, name
    # Nothing half written is left.
    assert len(list(written.iterdir())) == len(linked) + 2


def test_the_same_arrays_give_the_same_files(written: Path, tmp_path: Path) -> None:
    facts = write_label_report(pictured(), tmp_path)
    for file in written.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    assert facts == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_without_features_and_heat_maps_there_are_four_pictures() -> None:
    facts = label_report(evaluation())
    assert set(facts["pictures"]) == {
        "class-f1.png",
        "precision-recall.png",
        "co-occurrence.png",
        "label-graph.png",
    }
    text = report_text(facts)
    assert "features.png" not in text
    assert "heat-maps.png" not in text


def test_a_report_that_cannot_be_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        write_label_report(evaluation(test_scores=np.full((24, 5), 2.0)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Figures


def test_thresholds_are_tuned_on_validation_and_judged_on_test() -> None:
    whole = evaluation()
    facts = label_report(whole)
    tuned = label_figures.tuned_thresholds(whole.val_truth, whole.val_scores)
    assert facts["thresholds"]["tuned"] == dict(zip(LABELS, tuned.tolist(), strict=True))
    assert set(facts["thresholds"]["half"].values()) == {0.5}
    for name, thresholds in {"half": np.full(5, 0.5), "tuned": tuned}.items():
        expected = metrics.label_metrics(whole.test_truth, whole.test_scores, thresholds)
        assert expected.items() <= facts["values"][name].items()
        predicted = whole.test_scores >= thresholds
        for index, row in enumerate(facts["classes"][name][:4]):
            assert row["f1"] == pytest.approx(
                f1_score(whole.test_truth[:, index], predicted[:, index], zero_division=0.0)
            )
    assert facts["values"]["half"] != facts["values"]["tuned"]
    assert facts["val_values"]["tuned"]["f1_macro"] >= facts["val_values"]["half"]["f1_macro"]


def test_the_graphs_edges_are_those_that_signa_is_built_with() -> None:
    for threshold in (0.2, 0.4, 0.5, 0.9):
        facts = label_report(evaluation(edge_threshold=threshold))["label_graph"]
        edges = label_graph(torch.from_numpy(part(1, 40)[0]), threshold).edges.T.tolist()
        assert [(edge["from"], edge["to"]) for edge in facts["edges"]] == [
            (LABELS[i], LABELS[j]) for i, j in edges
        ]


def test_confused_pairs_name_the_tiles() -> None:
    facts = label_report(evaluation())["confused_pairs"]["half"]
    assert facts
    truth, scores = evaluation().test_truth, evaluation().test_scores
    for pair in facts:
        assert pair["tiles"]
        for stem in pair["tiles"]:
            row = STEMS.index(stem)
            missed, added = LABELS.index(pair["missed"]), LABELS.index(pair["added"])
            assert truth[row, missed] == 1 and scores[row, missed] < 0.5
            assert truth[row, added] == 0 and scores[row, added] >= 0.5
    assert [len(pair["tiles"]) for pair in facts] == sorted(
        (len(pair["tiles"]) for pair in facts), reverse=True
    )


# Text


def test_the_headline_has_the_floors_beside_the_figures(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    facts = json.loads((written / "report.json").read_text(encoding="utf-8"))
    header = cells(text, "Test tiles")
    assert header[1:] == [
        "Threshold 0.5",
        "Tuned thresholds",
        "Floor: constant set",
        "Floor: oracle scene",
    ]
    systems = [*facts["values"].values(), *facts["floors"].values()]
    for name, first in {
        "f1_samples": "**F1, mean over the tiles (headline)**",
        "f1_paper": "F1 of the tiles' mean P and mean R (SIGNA, Eq. 6-7)",
    }.items():
        assert cells(text, first)[1:] == [f"{values[name]:.3f}" for values in systems]
    own = cells(text, "F1 of the classes' mean P and mean R (SIGNA, Eq. 8-9; CF1)")
    assert own[1:] == [f"{values['f1_class_means']:.3f}" for values in systems]
    assert cells(text, "Classes without a positive tile")[1:] == ["1", "1", "1", "1"]


def test_the_text_states_where_its_figures_come_from(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    for told in (
        "`ucm` (SHA-256 `" + "5" * 64 + "`), 40 training, 30 validation and 24 test tiles",
        "Seed: 42",
        "Commit: `c0ffee`",
        "Threshold: 0.5 for every label",
        "A class without a positive tile",
        "- Input: 224 x 224 pixels",
    ):
        assert told in text


def test_the_classes_table_has_a_dash_where_nothing_can_be_said(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    facts = json.loads((written / "report.json").read_text(encoding="utf-8"))
    for index, label in enumerate(["trees", "water", r"cars\|lorries", "sand", "$ea_shore"]):
        row = cells(text, label)
        half, tuned = (facts["classes"][name][index] for name in ("half", "tuned"))
        assert len(row) == 12
        assert row[0] == label
        assert row[1] == str(half["support"])
        assert row[3] == str(half["predicted"])
        assert row[7] == f"{tuned['threshold']:.3f}"
    assert [cells(text, "$ea_shore")[column] for column in (1, 2, 4, 5, 6, 9, 10, 11)] == (
        ["0"] + ["-"] * 7
    )


def test_right_answers_leave_no_pair(tmp_path: Path) -> None:
    truth = evaluation().test_truth
    text = report_text(label_report(evaluation(test_scores=truth.astype(np.float64))))
    assert "There is no such tile." in text


# What does not fit


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": LABELS[:4]}, "train truth"),
        ({"labels": [*LABELS[:4], "trees"]}, "occurs twice"),
        ({"test_stems": STEMS[1:]}, r"test truth \(24, 5\) for \(23, 5\)"),
        ({"val_scores": np.full((29, 5), 0.5)}, "val scores"),
        ({"features": np.zeros((3, 6))}, r"features \(3,\)"),
        ({"scenes": SCENES[1:]}, r"scenes \(23,\)"),
        ({"test_truth": np.zeros((24, 5))}, "no class has a positive"),
    ],
)
def test_arrays_that_do_not_fit_are_an_error(changes: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        label_report(evaluation(**changes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: replace(h, stems=["river99", STEMS[0]]), "not evaluated are river99"),
        (lambda h: replace(h, labels=[["fog", "water"], h.labels[1]]), "not evaluated are fog"),
        (lambda h: replace(h, maps=h.maps[:, :, 1:]), "31, 32"),
        (lambda h: replace(h, stems=h.stems[:1]), "1 stems"),
        (lambda h: replace(h, labels=[["water"], h.labels[1]]), r"\[1, 2\] labels each"),
        (lambda h: replace(h, labels=[[], []], maps=h.maps[:, :0]), r"\[0\] labels each"),
        (lambda h: HeatMaps([], h.tiles[:0], [], h.maps[:0]), "0 stems"),
    ],
)
def test_heat_maps_of_something_else_are_an_error(
    change: Callable[[HeatMaps], HeatMaps], told: str
) -> None:
    whole = pictured()
    assert whole.heat_maps is not None
    with pytest.raises(DataError, match=told):
        label_report(replace(whole, heat_maps=change(whole.heat_maps)))


# Pictures


def test_class_bars_are_as_long_as_f1_and_ordered_by_support() -> None:
    whole = evaluation()
    tables = [
        label_figures.class_table(LABELS, whole.test_truth, whole.test_scores, np.full(5, t))
        for t in (0.5, 0.3)
    ]
    axes = label_pictures.class_bars(*tables).axes[0]
    order = sorted(range(5), key=lambda index: -tables[0][index].support)
    widths = [bar.get_width() for bar in axes.patches]
    expected = [table[index].f1 or 0 for table in tables for index in order]
    assert widths == pytest.approx(expected)
    assert axes.get_yticklabels()[-1].get_text() == r"\$ea_shore (0)"
    assert "no positive tile" in [text.get_text() for text in axes.texts]


def test_a_tile_stands_beside_its_own_labels_with_their_scores() -> None:
    whole = pictured()
    heat = whole.heat_maps
    assert heat is not None
    remarks = [["score 0.10, absent", "b"], ["c", "d"]]
    figure = label_pictures.heat_map_grid(heat.tiles, heat.maps, heat.stems, heat.labels, remarks)
    titles = [axes.get_title() for axes in figure.axes[:6]]
    assert titles == [
        "river00",
        "water\nscore 0.10, absent",
        "\\$ea_shore\nb",
        "beach08",
        "sand\nc",
        "water\nd",
    ]


def test_the_graph_has_an_arrow_for_each_edge() -> None:
    truth = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]])
    # trees -> water 2/3, water -> trees 1, and sand alone.
    for threshold, arrows in ((0.5, 2), (0.9, 1)):
        axes = label_pictures.label_graph(["trees", "water", "sand"], truth, threshold).axes[0]
        assert len(axes.patches) == arrows
        texts = [text.get_text() for text in axes.texts]
        assert sorted(texts) == ["sand (40%)", "trees (60%)", "water (40%)"]


def test_at_most_500_tiles_are_drawn_and_by_the_seed_alone() -> None:
    rows = label_pictures.drawn_rows(520, seed=1).tolist()
    assert len(rows) == 500
    assert rows == sorted(set(rows))
    assert rows[-1] < 520
    assert label_pictures.drawn_rows(520, seed=1).tolist() == rows
    assert label_pictures.drawn_rows(520, seed=2).tolist() != rows
    assert label_pictures.drawn_rows(500, seed=1).tolist() == list(range(500))


def test_tiles_that_are_alike_lie_together() -> None:
    generator = np.random.default_rng(0)
    features = np.concatenate([generator.normal(size=(15, 8)), generator.normal(20, 1, (15, 8))])
    places = label_pictures.embedded(features, seed=3)
    assert places.shape == (30, 2)
    assert (label_pictures.embedded(features, seed=3) == places).all()
    centres = places[:15].mean(axis=0), places[15:].mean(axis=0)
    nearer = np.linalg.norm(places[:, None] - np.stack(centres), axis=2).argmin(axis=1)
    assert nearer.tolist() == [0] * 15 + [1] * 15


def test_features_that_make_no_map_are_an_error_or_still_drawn() -> None:
    with pytest.raises(DataError, match="3 tiles"):
        label_pictures.embedded(np.zeros((3, 4)), seed=0)
    places = label_pictures.embedded(np.zeros((8, 4)), seed=0)
    assert np.isfinite(places).all()
    assert len(label_pictures.scene_map(places, None).axes[0].collections) == 1


@pytest.mark.parametrize("count", [3, 21, 51])
def test_the_legend_of_many_scenes_is_in_the_picture(count: int) -> None:
    scenes = [f"aid/MediumResidential{number:02d}" for number in range(count)]
    figure = label_pictures.scene_map(np.random.default_rng(0).normal(size=(count, 2)), scenes)
    figure.draw_without_rendering()
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == count
    assert 0 <= legend.y0
    assert legend.y1 <= whole.y1
    # The map itself has at least half of the width.
    assert figure.axes[0].get_window_extent().width > 0.5 * whole.width
