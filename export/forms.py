"""All forms of one graph: written, held against torch on real tiles, and judged by their gates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.batch1 import batch1_speedup, write_batch1
from export.certificate import Form, FormName, Gates, Verdict, Worst, disagreements
from export.int8_choice import fit_int8
from export.onnx_file import Session, write_onnx
from export.part import Part
from export.runner import Outputs, Runner
from export.speed import batch_curves, best
from export.torchscript import TORCHSCRIPT_NAME, TorchScriptModel, write_torchscript
from tilesight.cores import usable_cores
from tilesight.errors import ExportError
from tilesight.manifest import BATCH1_NAME, MODEL_NAME

FLOAT_NAME = "model.fp32.onnx"
INT8_NAME = "model.int8.onnx"

# Under which name each form is written; the one that is served is renamed.
_FILES: dict[FormName, str] = {
    "onnx": FLOAT_NAME,
    "int8": INT8_NAME,
    "torchscript": TORCHSCRIPT_NAME,
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What an export is asked for."""

    gates: Gates = field(default_factory=Gates)
    half_weights: bool = False
    drop: frozenset[FormName] = frozenset()  # measured, and not kept as a file
    triton: bool = True
    openvino: bool = True


def droppable(names: Sequence[str]) -> frozenset[FormName]:
    """The forms of these names.

    Raises:
        ExportError: there is no such form, or it is not written to a file of its own.
    """
    for name in names:
        if name not in _FILES:
            raise ExportError(f"--drop {name}: no such form; there are {', '.join(_FILES)}")
    return frozenset(name for name in _FILES if name in names)


class Examiner:
    """Holds the forms of one graph against torch, one after the other."""

    def __init__(self, part: Part, checkpoint: Path) -> None:
        """Asks torch first."""
        self.part = part
        self.expected = part.outputs(part.source.torch, "test")
        self.worst: list[Worst] = []
        self.torch = Form(
            file=None,
            bytes=checkpoint.stat().st_size,
            metrics=part.measure(self.expected, "test"),
            verdict="reference",
        )

    def examine(self, name: FormName, runner: Runner, path: Path, limit: float | None) -> Form:
        """What the form answers on the test tiles, against what torch answers."""
        found = self.part.outputs(runner, "test")
        differences, decisions = self.part.compare(self.expected, found, limit)
        self.worst.append(self._worst(name, found))
        return Form(
            file=path.name,
            bytes=path.stat().st_size,
            differences=differences,
            decisions=decisions,
            metrics=self.part.measure(found, "test"),
            verdict="kept",
        )

    def loss(self, form: Form) -> float:
        """Points (hundredths) of the task metric that the form loses against torch."""
        metric = self.part.task_metric
        return (self.torch.metrics[metric] - form.metrics[metric]) * 100

    def require(self, name: str, form: Form, gates: Gates) -> None:
        """Passes a form that does what torch does.

        Raises:
            ExportError: an output is too far off, a decision differs, or the form was allowed to
                differ and loses too much; each is named.
        """
        if any(found.limit is None for found in form.differences.values()):
            problems = too_lossy(self.loss(form), self.part.task_metric, gates)
        else:
            problems = disagreements(form)
        if problems:
            raise ExportError(f"{self.part.name}: {name} against torch: {'; '.join(problems)}")

    def _worst(self, name: FormName, found: Outputs) -> Worst:
        shown = self.part.shown
        expected, got = self.expected[shown.output], found[shown.output]
        row = int(np.abs(expected - got).max(axis=1).argmax())
        return Worst(
            form=name,
            output=shown.output,
            tile=shown.tiles[row],
            names=list(shown.names),
            expected=expected[row].tolist(),
            found=got[row].tolist(),
        )


@dataclass(frozen=True)
class Forms:
    """The forms of a graph, and which one is served."""

    examiner: Examiner
    forms: dict[FormName, Form]
    served: FormName
    float16_share: float


def write_forms(part: Part, folder: Path, checkpoint: Path, options: Options, say: Say) -> Forms:
    """Writes and judges every form; `folder` keeps the served graph and those that passed.

    Raises:
        ExportError: a form that computes as torch does (ONNX, TorchScript) does not agree with it.
    """
    say(f"{part.name}: torch on the test tiles")
    examiner = Examiner(part, checkpoint)
    say(f"{part.name}: ONNX")
    share = write_onnx(part.source, folder / FLOAT_NAME, options.half_weights)
    runners: dict[FormName, Runner] = {"torch": part.source.torch}
    forms: dict[FormName, Form] = {"torch": examiner.torch}
    forms |= _exact(examiner, folder, options, runners, say)
    say(f"{part.name}: int8")
    forms["int8"] = _int8(examiner, folder, options, runners)
    say(f"{part.name}: speed")
    for name, speed in batch_curves(runners, part.feeds).items():
        forms[name] = forms[name].model_copy(update={"speed": speed})
    if "int8" in runners:
        forms["int8"] = _judged(forms, examiner, options)
    served: FormName = "int8" if forms["int8"].verdict == "served" else "onnx"
    (folder / _FILES[served]).rename(folder / MODEL_NAME)
    forms[served] = forms[served].model_copy(update={"file": MODEL_NAME, "verdict": "served"})
    forms["batch1"] = _batch1(part, folder, options.gates)
    for name, file in _FILES.items():
        forms[name] = _kept(forms[name], folder / file, dropped=name in options.drop)
    return Forms(examiner, forms, served, share)


def _exact(
    examiner: Examiner, folder: Path, options: Options, runners: dict[FormName, Runner], say: Say
) -> dict[FormName, Form]:
    """ONNX and TorchScript, which compute as torch does; adds what runs them to `runners`."""
    part, gates = examiner.part, options.gates
    limit = None if options.half_weights else gates.max_difference
    onnx_file, script = folder / FLOAT_NAME, folder / TORCHSCRIPT_NAME
    runners["onnx"] = Session(onnx_file, usable_cores())
    plain = examiner.examine("onnx", runners["onnx"], onnx_file, limit)
    examiner.require("ONNX", plain, gates)
    say(f"{part.name}: TorchScript")
    write_torchscript(part.source, script)
    runners["torchscript"] = TorchScriptModel(script, part.source.outputs)
    scripted = examiner.examine("torchscript", runners["torchscript"], script, gates.max_difference)
    examiner.require("TorchScript", scripted, gates)
    return {"onnx": plain, "torchscript": scripted}


def _int8(
    examiner: Examiner, folder: Path, options: Options, runners: dict[FormName, Runner]
) -> Form:
    """int8, not judged yet; refused where the graph cannot be quantised."""
    path = folder / INT8_NAME
    try:
        recipe = fit_int8(examiner.part, folder / FLOAT_NAME, path, options.gates)
    except ExportError as error:
        return Form(file=None, bytes=0, verdict="refused", reasons=[str(error)])
    runners["int8"] = Session(path, usable_cores())
    form = examiner.examine("int8", runners["int8"], path, None)
    return form.model_copy(update={"reasons": [recipe]})


def too_lossy(loss: float, metric: str, gates: Gates) -> list[str]:
    """Why a form that may differ from torch is refused; empty where it is not."""
    if loss <= gates.max_metric_loss:
        return []
    return [f"loses {loss:.2f} points of {metric} (limit {gates.max_metric_loss})"]


def _judged(forms: dict[FormName, Form], examiner: Examiner, options: Options) -> Form:
    """The int8 form with its verdict: served, kept because it is too slow, or refused."""
    int8, gates = forms["int8"], options.gates
    faster = best(forms["onnx"].speed) / best(int8.speed)
    loss, metric = examiner.loss(int8), examiner.part.task_metric
    reasons = [
        *int8.reasons,
        f"{faster:.2f} times the throughput of float32",
        f"{loss:+.2f} points of {metric} lost",
    ]
    verdict: Verdict = "served"
    if problems := too_lossy(loss, metric, gates):
        verdict, reasons = "refused", [*reasons, *problems]
    elif faster < gates.min_speedup:
        verdict, reasons = (
            "kept",
            [*reasons, f"too slow to be served (asked {gates.min_speedup:g})"],
        )
    elif "int8" in options.drop:
        verdict, reasons = "kept", [*reasons, "not wanted"]
    return int8.model_copy(update={"verdict": verdict, "reasons": reasons})


def _batch1(part: Part, folder: Path, gates: Gates) -> Form:
    """The served graph for one tile alone, written where that is measurably faster."""
    speedup = batch1_speedup(folder / MODEL_NAME, part.feeds(1))
    said = f"{speedup:.2f} times as fast as the served graph at one tile"
    if speedup < gates.min_batch1_speedup:
        reasons = [said, f"no gain worth a file ({gates.min_batch1_speedup:g} asked)"]
        return Form(file=None, bytes=0, verdict="refused", reasons=reasons)
    path = folder / BATCH1_NAME
    write_batch1(folder / MODEL_NAME, path)
    return Form(file=path.name, bytes=path.stat().st_size, verdict="kept", reasons=[said])


def _kept(form: Form, path: Path, dropped: bool) -> Form:
    """The form as it is written down; its file goes where it was refused or is not wanted."""
    if form.verdict == "served" or not (dropped or form.verdict == "refused"):
        return form
    path.unlink(missing_ok=True)
    reasons = form.reasons if form.verdict == "refused" else [*form.reasons, "file not kept"]
    return form.model_copy(update={"file": None, "reasons": reasons})
