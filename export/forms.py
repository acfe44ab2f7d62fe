"""All forms of one graph: written, held against torch on real tiles, and judged by their gates."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from export.batch1 import batch1_speedup, write_batch1
from export.certificate import Form, FormName, Gates, Verdict, Worst, disagreements
from export.int8 import write_int8
from export.onnx_file import Session, write_onnx
from export.part import Part
from export.runner import Outputs, Runner
from export.speed import batch_curves, best, speedup
from export.torchscript import TORCHSCRIPT_NAME, TorchScriptModel, write_torchscript
from tilesight.cores import usable_cores
from tilesight.errors import ExportError
from tilesight.manifest import BATCH1_NAME, MODEL_NAME

FLOAT_NAME = "model.fp32.onnx"
INT8_NAME = "model.int8.onnx"
# Convolutions at the start that stay float32 beside int8: none if that loses little, else some.
_FLOAT_CONVOLUTIONS = (0, 3, 9)
# At which the recipes' speeds are compared.
_CHOICE_BATCH = 8

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
    gates = options.gates
    limit = None if options.half_weights else gates.max_difference
    files = {name: folder / file for name, file in _FILES.items()}
    say(f"{part.name}: torch on the test tiles")
    examiner = Examiner(part, checkpoint)
    runners: dict[FormName, Runner] = {"torch": part.source.torch}
    forms: dict[FormName, Form] = {"torch": examiner.torch}

    say(f"{part.name}: ONNX")
    share = write_onnx(part.source, files["onnx"], options.half_weights)
    runners["onnx"] = Session(files["onnx"], usable_cores())
    forms["onnx"] = examiner.examine("onnx", runners["onnx"], files["onnx"], limit)
    examiner.require("ONNX", forms["onnx"], gates)

    say(f"{part.name}: TorchScript")
    write_torchscript(part.source, files["torchscript"])
    runners["torchscript"] = TorchScriptModel(files["torchscript"], part.source.outputs)
    forms["torchscript"] = examiner.examine(
        "torchscript", runners["torchscript"], files["torchscript"], gates.max_difference
    )
    examiner.require("TorchScript", forms["torchscript"], gates)

    say(f"{part.name}: int8")
    try:
        recipe = fit_int8(part, files["onnx"], files["int8"], gates)
    except ExportError as error:
        forms["int8"] = Form(file=None, bytes=0, verdict="refused", reasons=[str(error)])
    else:
        runners["int8"] = Session(files["int8"], usable_cores())
        tried = examiner.examine("int8", runners["int8"], files["int8"], None)
        forms["int8"] = tried.model_copy(update={"reasons": [recipe]})

    say(f"{part.name}: speed")
    curves = batch_curves(runners, part.feeds)
    forms = {name: form.model_copy(update={"speed": curves.get(name, [])})
             for name, form in forms.items()}  # fmt: skip
    if "int8" in runners:
        forms["int8"] = _judged(forms, examiner, options)
    served: FormName = "int8" if forms["int8"].verdict == "served" else "onnx"
    if served == "onnx":
        forms["onnx"] = forms["onnx"].model_copy(update={"verdict": "served"})
    files[served] = files[served].rename(folder / MODEL_NAME)
    forms[served] = forms[served].model_copy(update={"file": MODEL_NAME})
    forms["batch1"] = _batch1(part, folder, gates)
    for name in _FILES:
        forms[name] = _kept(forms[name], files[name], dropped=name in options.drop)
    return Forms(examiner, forms, served, share)


class _Candidate(NamedTuple):
    """An int8 graph, how fast it is, and how far from float32 on validation tiles."""

    path: Path
    recipe: str
    speedup: float
    distance: float


def fit_int8(part: Part, source: Path, target: Path, gates: Gates) -> str:
    """Writes the int8 graph of the recipe that suits the model; returns what was tried.

    Of the recipes that are fast enough the one that stays closest to float32 on validation tiles,
    of which the task's figures are too coarse to tell; else the fastest. Test tiles take no part
    in the choice: the certificate judges with them.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    # Beside the target, so that renaming is one step; a failing recipe leaves no candidate.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fit-") as folder:
        candidates = _candidates(part, source, Path(folder))
        fast = [one for one in candidates if one.speedup >= gates.min_speedup]
        chosen = (
            min(fast, key=lambda one: one.distance)
            if fast
            else max(candidates, key=lambda one: one.speedup)
        )
        chosen.path.rename(target)
    return f"chosen {'; '.join(one.recipe for one in sorted(candidates, key=chosen.__ne__))}"


def _candidates(part: Part, source: Path, folder: Path) -> list[_Candidate]:
    """The graph quantised by each recipe."""
    before = Session(source, usable_cores())
    expected = part.outputs(before, "val")[part.shown.output]
    convolutional = any(node.op_type == "Conv" for node in onnx.load(source).graph.node)
    candidates = []
    for count in _FLOAT_CONVOLUTIONS if convolutional else (0,):
        path = folder / f"{count}.onnx"
        write_int8(source, path, part.calibration, count)
        after = Session(path, usable_cores())
        distance = float(np.abs(part.outputs(after, "val")[part.shown.output] - expected).mean())
        faster = speedup(before, after, part.feeds(_CHOICE_BATCH))
        recipe = (
            f"{f'first {count} convolutions float32' if count else 'all int8'}: {faster:.2f} times "
            f"as fast, {part.shown.output} {distance:.2g} off on average on validation tiles"
        )
        candidates.append(_Candidate(path, recipe, faster, distance))
    return candidates


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
