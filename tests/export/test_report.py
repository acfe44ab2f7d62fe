import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.certificate import (
    Certificate,
    Decision,
    Difference,
    Form,
    FormName,
    Gates,
    Speed,
    Worst,
)
from export.report import PICTURE_NAME, REPORT_NAME, write_report
from export.report_facts import furthest, most_different, points_lost
from export.report_picture import drawn
from export.report_text import report_text

MAGENTA = (255, 0, 255)


def difference(maximum: float, limit: float | None = 1e-3, worst: str = "forest07") -> Difference:
    return Difference(maximum=maximum, mean=maximum / 10, limit=limit, worst=worst)


def speeds(**of_batch: float) -> list[Speed]:
    return [
        Speed(batch=int(name.removeprefix("b")), ms_per_tile=ms, spread=ms / 8)
        for name, ms in of_batch.items()
    ]


def worst(form: str, *gaps: float, tile: str = "forest07") -> Worst:
    return Worst(
        form=form,
        output="scores",
        tile=tile,
        names=[f"label {index}" for index in range(len(gaps))],
        expected=[0.25] * len(gaps),
        found=[0.25 + gap for gap in gaps],
    )


def forms() -> dict[FormName, Form]:
    return {
        "torch": Form(
            file=None,
            bytes=9_000_000,
            metrics={"f1_samples": 0.94, "map": 0.98},
            speed=speeds(b1=32.0, b8=16.0),
            verdict="reference",
        ),
        "onnx": Form(
            file="model.onnx",
            bytes=8_900_000,
            differences={"scores": difference(2e-6), "evidence": difference(5e-6)},
            decisions={"labels": Decision(compared=51, differing=0)},
            metrics={"f1_samples": 0.94, "map": 0.98},
            speed=speeds(b1=12.0, b8=8.0),
            verdict="served",
        ),
        "int8": Form(
            file=None,
            bytes=2_600_000,
            differences={"scores": difference(0.2, limit=None, worst="beach01: is it | dry?")},
            decisions={"labels": Decision(compared=51, differing=3)},
            metrics={"f1_samples": 0.9175},
            speed=speeds(b1=5.0),
            verdict="refused",
            reasons=["loses 2.25 points\nof f1_samples", "1.6 times as fast"],
        ),
        "triton": Form(file=None, bytes=0, verdict="not run", reasons=["no Triton here"]),
    }


def certificate(
    of_form: dict[FormName, Form] | None = None, tiles: list[Worst] | None = None
) -> Certificate:
    return Certificate(
        model="signa",
        version=2,
        split="ucm test",
        split_sha256="ab" * 32,
        tiles=420,
        software={"torch": "2.15.0", "onnxruntime": "1.30.0"},
        machine={"cpu": "a CPU", "threads": 2},
        task_metric="f1_samples",
        gates=Gates(),
        float16_share=0.12,
        forms=forms() if of_form is None else of_form,
        worst=[worst("onnx", 0.0, 1e-6), worst("int8", 0.125, -0.5)] if tiles is None else tiles,
    )


def magenta(_tile: str) -> NDArray[np.uint8]:
    return np.full((64, 64, 3), MAGENTA, dtype=np.uint8)


def table(text: str, heading: str) -> list[list[str]]:
    """The cells below the heading, the header's first."""
    after = text.split(f"{heading}\n", 1)[1]
    lines = [line for line in after.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]


# Text


def test_the_report_says_what_was_compared_where_and_by_which_gates() -> None:
    text = report_text(certificate(), PICTURE_NAME)
    assert text.startswith("# Certificate of signa, version 2\n")
    for said in (
        "420 tiles of `ucm test` (list `abababababab`)",
        "torch 2.15.0, onnxruntime 1.30.0",
        "cpu a CPU, threads 2",
        "further than 0.001 from torch's",
        "at most 0.5 points",
        "at least 2 times",
        "at least 1.05 times",
        "12%",
    ):
        assert said in text, said


def test_each_form_has_its_line_with_verdict_size_and_figures() -> None:
    header, *rows = table(report_text(certificate(), PICTURE_NAME), "## Forms")
    lines = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(lines) == ["torch", "onnx", "int8", "triton"]
    onnx, int8, triton = lines["onnx"], lines["int8"], lines["triton"]
    assert (onnx["Verdict"], onnx["File"], onnx["MB"]) == ("**served**", "`model.onnx`", "8.9")
    assert onnx["Largest difference"] == "5.0e-06 (evidence)"
    assert onnx["Mean of that output"] == "5.0e-07"
    assert (onnx["Decisions that differ"], onnx["Points lost"]) == ("0 of 51", "0.00")
    assert (onnx["Fastest, ms a tile"], onnx["at batch"]) == ("8.00", "8")
    assert (int8["f1_samples"], int8["Points lost"]) == ("0.9175", "2.25")
    assert int8["Decisions that differ"] == "3 of 51"
    assert set(triton.values()) == {"triton", "**not run**", "-"}


def test_the_reasons_stand_below_the_forms() -> None:
    text = report_text(certificate(), PICTURE_NAME)
    assert "- int8, refused: loses 2.25 points of f1_samples; 1.6 times as fast\n" in text
    assert "- triton, not run: no Triton here\n" in text


def test_every_output_decision_figure_and_batch_is_in_a_table() -> None:
    text = report_text(certificate(), PICTURE_NAME)
    assert table(text, "## Outputs against torch")[1:] == [
        ["onnx", "scores", "2.0e-06", "2.0e-07", "0.001", "forest07"],
        ["onnx", "evidence", "5.0e-06", "5.0e-07", "0.001", "forest07"],
        ["int8", "scores", "0.2", "0.02", "-", r"beach01: is it \| dry?"],
    ]
    assert table(text, "## Decisions against torch")[1:] == [
        ["onnx", "labels", "51", "0"],
        ["int8", "labels", "51", "3"],
    ]
    assert table(text, "## Figures on these tiles") == [
        ["Figure", "torch", "onnx", "int8"],
        ["f1_samples", "0.9400", "0.9400", "0.9175"],
        ["map", "0.9800", "0.9800", "-"],
    ]
    assert table(text, "## Milliseconds a tile") == [
        ["Form", "batch 1", "batch 8"],
        ["torch", "32.00 ± 4.00", "16.00 ± 2.00"],
        ["onnx", "12.00 ± 1.50", "8.00 ± 1.00"],
        ["int8", "5.00 ± 0.62", "-"],
    ]


def test_the_worst_tile_of_each_form_is_shown_value_by_value() -> None:
    text = report_text(certificate(), PICTURE_NAME)
    heading = "## Where int8 is furthest from torch: scores of forest07"
    assert table(text, heading)[1:] == [
        ["label 1", "0.25", "-0.25", "0.5"],
        ["label 0", "0.25", "0.375", "0.125"],
    ]
    assert text.index(heading) < text.index("## Where onnx is furthest")


def test_a_certificate_of_torch_alone_can_be_read() -> None:
    of_form: dict[FormName, Form] = {"torch": Form(file=None, bytes=1, verdict="reference")}
    text = report_text(certificate(of_form, []), PICTURE_NAME)
    assert text.count("None was measured.") == 4
    assert "furthest" not in text


# Facts


def test_a_gain_is_no_loss_and_an_absent_figure_is_none() -> None:
    told = certificate()
    better = Form(file=None, bytes=1, metrics={"f1_samples": 0.95}, verdict="kept")
    assert points_lost(told, better) == pytest.approx(-1)
    assert points_lost(told, told.forms["triton"]) is None
    of_form = told.forms
    without_torch = certificate({"onnx": of_form["onnx"]})
    assert points_lost(without_torch, of_form["onnx"]) is None


def test_the_furthest_form_comes_first_and_a_form_that_is_torch_is_left_out() -> None:
    tiles = [worst("torchscript", 0.0), worst("onnx", 1e-6), worst("int8", -0.3)]
    assert [found.form for found in furthest(certificate(tiles=tiles))] == ["int8", "onnx"]


def test_values_that_are_no_numbers_are_further_off_than_all_others() -> None:
    told = Worst(
        form="int8",
        output="log_probs",
        tile="forest07",
        names=["same", "near", "far", "lost", "gone"],
        expected=[-math.inf, 0.5, 0.5, -math.inf, 0.5],
        found=[-math.inf, 0.75, 8.0, -3.0, math.nan],
    )
    assert [name for name, *_ in most_different(told)] == ["lost", "gone", "far", "near", "same"]
    assert "| lost | -inf | -3 | inf |" in report_text(certificate(tiles=[told]), PICTURE_NAME)
    figure = drawn(certificate(tiles=[told]), magenta)
    figure.draw_without_rendering()
    values = figure.axes[-1]
    assert "-inf → -3" in [text.get_text() for text in values.texts]


def test_only_the_values_that_differ_most_are_shown() -> None:
    shown = most_different(worst("int8", *(index / 100 for index in range(40))))
    assert [name for name, *_ in shown] == [f"label {index}" for index in range(39, 27, -1)]


# Picture


def test_the_picture_draws_the_curves_and_the_bars_of_the_forms_that_ran() -> None:
    speed, metric, *_ = drawn(certificate(), magenta).axes
    curves = {bars.get_label(): bars.lines[0].get_xydata() for bars in speed.containers}
    assert {name: data.tolist() for name, data in curves.items()} == {
        "torch": [[1, 32], [8, 16]],
        "onnx": [[1, 12], [8, 8]],
        "int8": [[1, 5]],
    }
    assert [bar.get_height() for bar in metric.patches] == [0.94, 0.94, 0.9175]
    assert [label.get_text() for label in metric.get_xticklabels()] == ["torch", "onnx", "int8"]


def test_the_picture_shows_the_tiles_of_the_forms_that_are_furthest() -> None:
    asked = []

    def tile_of(tile: str) -> NDArray[np.uint8]:
        asked.append(tile)
        return magenta(tile)

    tiles = [
        worst("onnx", 1e-7, tile="beach01"),
        worst("triton", 1e-6, tile="river02"),
        worst("int8", 0.5, tile="harbor03"),
    ]
    _, _, picture, values, *_ = drawn(certificate(tiles=tiles), tile_of).axes
    assert asked == ["harbor03", "river02"]
    assert "harbor03" in picture.get_title()
    assert [bar.get_width() for bar in values.patches] == [0.25, 0.75]


def test_a_tile_that_may_not_be_passed_on_is_named_and_not_shown() -> None:
    tiles = [worst("int8", 0.5, tile="aid/port_3")]
    _, _, picture, values = drawn(certificate(tiles=tiles), lambda _stem: None).axes
    assert "aid/port_3" in picture.get_title()
    assert not picture.images
    assert [told.get_text() for told in picture.texts] == [
        "not shown: the tile is not in the public domain"
    ]
    assert [bar.get_width() for bar in values.patches] == [0.25, 0.75]


@pytest.mark.parametrize("name", ["a tile of $5, not $6_{", "$", "how many\n" + 40 * "very "])
def test_any_name_can_be_drawn(name: str) -> None:
    told = Worst(form="int8", output=name, tile=name, names=[name], expected=[0], found=[1])
    figure = drawn(certificate(tiles=[told]), magenta)
    figure.draw_without_rendering()


# Files


def test_text_and_picture_are_written_together(tmp_path: Path) -> None:
    write_report(certificate(), magenta, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {REPORT_NAME, PICTURE_NAME}
    text = (tmp_path / REPORT_NAME).read_text(encoding="utf-8")
    assert f"]({PICTURE_NAME})" in text
    with Image.open(tmp_path / PICTURE_NAME) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == MAGENTA).all(axis=2).sum() > 20_000


def test_nothing_measured_is_said_in_the_picture(tmp_path: Path) -> None:
    of_form: dict[FormName, Form] = {"torch": Form(file=None, bytes=1, verdict="reference")}
    write_report(certificate(of_form, []), magenta, tmp_path)
    axes = drawn(certificate(of_form, []), magenta).axes
    assert [axis.texts[0].get_text() for axis in axes] == 2 * ["nothing was measured"]


def test_the_same_certificate_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_report(certificate(), magenta, tmp_path / name)
    for name in (REPORT_NAME, PICTURE_NAME):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def missing(tile: str) -> NDArray[np.uint8]:
    raise FileNotFoundError(tile)


def test_a_tile_that_cannot_be_shown_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / REPORT_NAME).write_text("before")
    with pytest.raises(FileNotFoundError, match="forest07"):
        write_report(certificate(), missing, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [REPORT_NAME]
    assert (tmp_path / REPORT_NAME).read_text() == "before"
