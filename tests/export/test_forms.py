import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from export.certificate import FormName, Gates
from export.forms import Forms, Options, droppable, write_forms
from export.int8_choice import fit_int8
from export.onnx_file import Session, Source, write_onnx
from export.speed import best
from export.torchscript import TorchScriptModel
from tests.export.conftest import BATCHES
from tests.export.parts import Convolutions, Products, TinyPart
from tilesight.errors import ExportError
from tilesight.manifest import MODEL_NAME

ANY = 1e6
Judge = Callable[..., Forms]
# Every form passes, int8 is served, and the graph for one tile is written.
GENEROUS = Gates(max_metric_loss=ANY, min_speedup=0, min_batch1_speedup=0)
# Whatever may be refused is.
STRICT = Gates(max_metric_loss=0, min_speedup=ANY, min_batch1_speedup=ANY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file whose size stands for torch's."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.safetensors"
    path.write_bytes(bytes(123))
    return path


@pytest.fixture
def judged(tmp_path: Path, checkpoint: Path, few_batches: None) -> Judge:
    """Writes and judges the forms of a part in the test's folder."""

    def judge(part: TinyPart, gates: Gates, **options: object) -> Forms:
        said: list[str] = []
        asked = Options(gates=gates, triton=False, **options)
        forms = write_forms(part, tmp_path, checkpoint, asked, said.append)
        steps = ("torch on the test tiles", "ONNX", "TorchScript", "int8", "speed")
        assert said == [f"tiny: {step}" for step in steps]
        return forms

    return judge


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def verdicts(forms: Forms) -> dict[FormName, str]:
    return {name: form.verdict for name, form in forms.forms.items()}


def told(forms: Forms, name: FormName) -> str:
    return "; ".join(forms.forms[name].reasons)


def test_int8_is_served_when_it_passes_both_gates_and_float32_lies_beside_it(
    judged: Judge, tmp_path: Path
) -> None:
    forms = judged(TinyPart(Convolutions()), GENEROUS)
    assert forms.served == "int8"
    assert verdicts(forms) == {
        "torch": "reference",
        "onnx": "kept",
        "torchscript": "kept",
        "int8": "served",
        "batch1": "kept",
    }
    of_form = {name: form.file for name, form in forms.forms.items()}
    assert of_form == {
        "torch": None,
        "onnx": "model.fp32.onnx",
        "torchscript": "model.pt",
        "int8": "model.onnx",
        "batch1": "model.batch1.onnx",
    }
    assert files(tmp_path) == set(of_form.values()) - {None}
    for name, file in of_form.items():
        if file is not None:
            assert forms.forms[name].bytes == (tmp_path / file).stat().st_size, name
    assert forms.forms["torch"].bytes == 123
    # The names are not swapped: one file has quantised convolutions, the other has none.
    assert "QuantizeLinear" in operators(tmp_path / "model.onnx")
    assert "QuantizeLinear" in operators(tmp_path / "model.batch1.onnx")
    assert "QuantizeLinear" not in operators(tmp_path / "model.fp32.onnx")
    assert "points of closeness lost" in told(forms, "int8")
    assert "times the throughput of float32" in told(forms, "int8")


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_a_form_is_measured_and_held_against_torch(judged: Judge, tmp_path: Path) -> None:
    part = TinyPart(Convolutions())
    forms = judged(part, GENEROUS)
    for name in ("onnx", "torchscript", "int8"):
        form = forms.forms[name]
        assert form.differences["scores"].maximum > 0 or name != "int8"
        assert form.decisions["labels"].compared == 27
        assert [speed.batch for speed in form.speed] == list(BATCHES)
        assert form.metrics["closeness"] <= 1
    limits = {name: forms.forms[name].differences["scores"].limit for name in ("onnx", "int8")}
    assert limits == {"onnx": 1e-3, "int8": None}
    assert [worst.form for worst in forms.examiner.worst] == ["onnx", "torchscript", "int8"]
    int8 = forms.examiner.worst[2]
    own = part.source.torch.run(tiles=part.tiles["test"])["scores"]
    found = Session(tmp_path / MODEL_NAME).run_in_batches(4, tiles=part.tiles["test"])["scores"]
    row = int(np.abs(own - found).max(axis=1).argmax())
    assert int8.tile == f"tile{row}"
    assert int8.expected == pytest.approx(own[row].tolist())
    assert int8.found == pytest.approx(found[row].tolist(), abs=1e-3)


def test_int8_that_is_too_slow_is_kept_and_float32_is_served(judged: Judge, tmp_path: Path) -> None:
    gates = GENEROUS.model_copy(update={"min_speedup": ANY, "min_batch1_speedup": ANY})
    forms = judged(TinyPart(Convolutions()), gates)
    assert forms.served == "onnx"
    assert verdicts(forms)["onnx"] == "served"
    assert verdicts(forms)["int8"] == "kept"
    assert verdicts(forms)["batch1"] == "refused"
    assert "too slow to be served (asked 1e+06)" in told(forms, "int8")
    assert "no gain worth a file (1e+06 asked)" in told(forms, "batch1")
    assert files(tmp_path) == {"model.onnx", "model.int8.onnx", "model.pt"}
    assert "QuantizeLinear" not in operators(tmp_path / "model.onnx")
    speedup = best(forms.forms["onnx"].speed) / best(forms.forms["int8"].speed)
    assert f"{speedup:.2f} times the throughput" in told(forms, "int8")


def test_int8_that_loses_too_much_is_refused_and_leaves_no_file(
    judged: Judge, tmp_path: Path
) -> None:
    forms = judged(TinyPart(Convolutions()), STRICT)
    assert forms.served == "onnx"
    assert verdicts(forms)["int8"] == "refused"
    assert forms.forms["int8"].file is None
    assert re.search(r"loses 0\.\d+ points of closeness \(limit 0\.0\)$", told(forms, "int8"))
    assert files(tmp_path) == {"model.onnx", "model.pt"}


def test_int8_is_judged_on_the_test_tiles(judged: Judge, tmp_path: Path) -> None:
    class Unlucky(TinyPart):
        """Its test tiles are harder than those that the recipe is chosen with."""

        def measure(self, outputs: dict[str, np.ndarray], which: str) -> dict[str, float]:
            near = super().measure(outputs, which)["closeness"]
            return {"closeness": 1 - 1e4 * (1 - near) if which == "test" else near}

    gates = Gates(max_metric_loss=20, min_speedup=0)
    assert verdicts(judged(TinyPart(Convolutions()), gates))["int8"] == "served"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    forms = judged(Unlucky(Convolutions()), gates)
    assert verdicts(forms)["int8"] == "refused"
    assert "points of closeness (limit 20.0)" in told(forms, "int8")
    assert forms.served == "onnx"
    assert "model.int8.onnx" not in files(tmp_path)


class Recipe(NamedTuple):
    """An int8 recipe as the certificate tells it."""

    kept: int
    speedup: float
    distance: float


def recipes(reason: str) -> list[Recipe]:
    """All that were tried, the chosen one first."""
    found = re.findall(
        r"(?:first (\d+) convolutions float32|all int8): ([\d.]+) times as fast, "
        r"scores ([\d.e-]+) off on average on validation tiles",
        reason,
    )
    return [Recipe(int(kept or 0), float(speed), float(gap)) for kept, speed, gap in found]


def fitted(part: TinyPart, folder: Path, min_speedup: float) -> list[Recipe]:
    write_onnx(part.source, folder / "float.onnx")
    gates = Gates(min_speedup=min_speedup)
    said = fit_int8(part, folder / "float.onnx", folder / "int8.onnx", gates)
    # No other candidate is left.
    assert files(folder) == {"float.onnx", "int8.onnx"}
    return recipes(said)


def test_the_recipe_of_int8_is_chosen_without_the_test_tiles(tmp_path: Path) -> None:
    part = TinyPart(Convolutions())
    del part.tiles["test"]  # whoever asks for them fails
    assert sorted(recipe.kept for recipe in fitted(part, tmp_path, 0)) == [0, 3, 9]
    assert set(part.asked) == {"val"}


def test_of_the_recipes_that_are_fast_enough_the_closest_to_float32_is_chosen(
    tmp_path: Path,
) -> None:
    part = TinyPart(Convolutions())
    chosen, *others = fitted(part, tmp_path, 0)
    assert chosen.distance == min(one.distance for one in (chosen, *others))
    # Here that is the one that leaves all convolutions as they are.
    assert chosen.kept > 0
    assert max(one.distance for one in others) > chosen.distance
    own = Session(tmp_path / "float.onnx").run(tiles=part.tiles["val"])["scores"]
    found = Session(tmp_path / "int8.onnx").run(tiles=part.tiles["val"])["scores"]
    assert np.abs(own - found).mean() == pytest.approx(chosen.distance, rel=0.1)


def test_where_none_is_fast_enough_the_fastest_is_chosen(tmp_path: Path) -> None:
    chosen, *others = fitted(TinyPart(Convolutions()), tmp_path, ANY)
    assert len(others) == 2
    assert chosen.speedup == max(one.speedup for one in (chosen, *others))


def test_a_recipe_that_fails_leaves_no_candidate(tmp_path: Path) -> None:
    class Unfit(TinyPart):
        """The tiles that calibrate the second recipe are of another size."""

        calibrations = 0

        def calibration(self) -> Iterator[dict[str, np.ndarray]]:
            self.calibrations += 1
            for inputs in super().calibration():
                yield inputs if self.calibrations == 1 else {"tiles": inputs["tiles"][:, 1:]}

    part = Unfit(Convolutions())
    write_onnx(part.source, tmp_path / "float.onnx")
    with pytest.raises(ExportError, match=r"float\.onnx as int8"):
        fit_int8(part, tmp_path / "float.onnx", tmp_path / "int8.onnx", GENEROUS)
    assert files(tmp_path) == {"float.onnx"}


def test_a_graph_without_convolutions_becomes_int8_too(judged: Judge, tmp_path: Path) -> None:
    forms = judged(TinyPart(Products()), GENEROUS)
    assert forms.served == "int8"
    assert "QuantizeLinear" in operators(tmp_path / "model.onnx")
    assert [recipe.kept for recipe in recipes(told(forms, "int8"))] == [0]


@pytest.mark.parametrize(
    ("dropped", "kept"),
    [
        (["onnx"], {"model.onnx", "model.pt"}),
        (["torchscript"], {"model.onnx", "model.fp32.onnx"}),
        # float32 is served then, whatever is asked for.
        (["int8"], {"model.onnx", "model.pt"}),
        (["int8", "onnx"], {"model.onnx", "model.pt"}),
    ],
)
def test_what_is_dropped_is_measured_and_leaves_no_file(
    dropped: list[FormName], kept: set[str], judged: Judge, tmp_path: Path
) -> None:
    forms = judged(TinyPart(Convolutions()), GENEROUS, drop=droppable(dropped))
    assert files(tmp_path) == {*kept, "model.batch1.onnx"}
    assert forms.served == ("onnx" if "int8" in dropped else "int8")
    assert ("QuantizeLinear" in operators(tmp_path / "model.onnx")) == ("int8" not in dropped)
    for name in set(dropped) - {forms.served}:
        form = forms.forms[name]
        assert form.speed and form.metrics
        assert (form.file, form.verdict) == (None, "kept")
        assert form.reasons[-1] == "file not kept"


def test_only_forms_with_a_file_of_their_own_can_be_dropped() -> None:
    assert droppable([]) == frozenset()
    with pytest.raises(ExportError, match="--drop triton: no such form; there are onnx, int8"):
        droppable(["onnx", "triton"])


def test_half_weights_may_differ_and_the_task_metric_decides(judged: Judge, tmp_path: Path) -> None:
    part = TinyPart(Products())
    forms = judged(part, GENEROUS, half_weights=True)
    assert forms.float16_share > 0.9
    assert forms.forms["onnx"].differences["scores"].limit is None
    # TorchScript keeps the weights as they were trained.
    assert forms.forms["torchscript"].differences["scores"].limit == 1e-3
    whole = tmp_path / "whole.onnx"
    write_onnx(part.source, whole)
    halved = tmp_path / "model.fp32.onnx"
    assert halved.stat().st_size < 0.6 * whole.stat().st_size
    with pytest.raises(ExportError, match=r"tiny: ONNX against torch: loses .* points of clos"):
        judged(part, STRICT, half_weights=True)


def test_the_gate_of_float32_is_the_largest_difference(judged: Judge, tmp_path: Path) -> None:
    exact = GENEROUS.model_copy(update={"max_difference": 0.0})
    with pytest.raises(ExportError, match=r"tiny: \w+ against torch: scores differs by .*, tile\d"):
        judged(TinyPart(Products()), exact)


def test_onnx_that_is_not_torch_ends_the_export(
    judged: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(_source: Source, path: Path, _half_weights: bool) -> float:
        return write_onnx(TinyPart(Convolutions(), seed=1).source, path)

    monkeypatch.setattr("export.forms.write_onnx", another)
    with pytest.raises(
        ExportError, match=r"tiny: ONNX against torch: scores differs .*; \d+ of 27 labels differ"
    ):
        judged_only_onnx(judged)


def judged_only_onnx(judged: Judge) -> None:
    judged(TinyPart(Convolutions()), GENEROUS)


def test_torchscript_that_is_not_torch_ends_the_export(
    judged: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.torchscript import write_torchscript

    def another(_source: Source, path: Path) -> None:
        write_torchscript(TinyPart(Convolutions(), seed=1).source, path)

    monkeypatch.setattr("export.forms.write_torchscript", another)
    with pytest.raises(ExportError, match="tiny: TorchScript against torch: scores differs"):
        judged(TinyPart(Convolutions()), GENEROUS)


def test_what_cannot_be_quantised_is_refused_and_the_export_goes_on(
    judged: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unfit(TinyPart):
        """A quantiser that calibrates with it meets tiles of another size."""

        def feeds(self, rows: int) -> dict[str, np.ndarray]:
            fed = super().feeds(rows)
            return {"tiles": fed["tiles"][:, 1:]} if rows > 32 else fed

    forms = judged(Unfit(Convolutions()), GENEROUS)
    assert verdicts(forms)["int8"] == "refused"
    assert "model.fp32.onnx as int8" in told(forms, "int8")
    assert str(tmp_path) not in told(forms, "int8")
    assert forms.forms["int8"].speed == []
    assert forms.served == "onnx"
    assert files(tmp_path) == {"model.onnx", "model.pt", "model.batch1.onnx"}


def test_the_written_forms_answer_alike(judged: Judge, tmp_path: Path) -> None:
    part = TinyPart(Convolutions())
    judged(part, GENEROUS)
    tiles = part.tiles["val"]
    own = part.source.torch.run(tiles=tiles)["scores"]
    script = TorchScriptModel(tmp_path / "model.pt", ["scores"]).run(tiles=tiles)["scores"]
    onnx_found = Session(tmp_path / "model.fp32.onnx").run(tiles=tiles)["scores"]
    int8 = Session(tmp_path / "model.onnx").run(tiles=tiles)["scores"]
    np.testing.assert_allclose(script, own, atol=1e-6)
    np.testing.assert_allclose(onnx_found, own, atol=1e-6)
    assert 0 < np.abs(int8 - own).max() < 0.05
    shutil.rmtree(tmp_path)
