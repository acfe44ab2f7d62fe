"""The written graphs in OpenVINO, held against torch like every other form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.certificate import Form, FormName, Gates
from export.forms import FLOAT_NAME, INT8_NAME, Examiner, Say, too_lossy
from export.onnx_file import Session
from export.openvino_runner import OpenVinoRunner
from export.speed import batch_curves, best
from tilesight.cores import usable_cores
from tilesight.errors import BundleError
from tilesight.manifest import MODEL_NAME
from tilesight.openvino_graph import REMEDY, installed, version
from tilesight.processor import flags, has_bfloat16
from tilesight.runtimes import Precision


@dataclass(frozen=True)
class Candidate:
    """A way in which OpenVINO may compute the model."""

    precision: Precision
    int8: bool  # of which of the two graphs

    @property
    def bfloat16(self) -> bool:
        """Whether it computes floats in bfloat16."""
        return self.precision.endswith("bfloat16")


# float32 in OpenVINO is no faster than in ONNX Runtime.
CANDIDATES: dict[FormName, Candidate] = {
    "openvino-bf16": Candidate("bfloat16", int8=False),
    "openvino-int8": Candidate("int8", int8=True),
    "openvino-int8-bf16": Candidate("int8-bfloat16", int8=True),
}


def examine_on_openvino(
    examiner: Examiner,
    folder: Path,
    forms: Mapping[FormName, Form],
    gates: Gates,
    say: Say,
    processor: frozenset[str] | None = None,
) -> dict[FormName, Form]:
    """What OpenVINO answers with the files that the version keeps; `forms` are the written ones.

    A form that loses more than int8 may is refused. Its speed decides nothing here: whoever serves
    the version measures on the machine that does.
    """
    found: dict[FormName, Form] = {}
    runners: dict[FormName, OpenVinoRunner] = {}
    here = flags() if processor is None else processor
    for name, candidate in CANDIDATES.items():
        path = _file(folder, forms, candidate.int8)
        if path is None:
            found[name] = _not_run("no file of its graph is kept")
        elif not installed():
            found[name] = _not_run(f"OpenVINO is not installed: {REMEDY}")
        elif candidate.bfloat16 and not has_bfloat16(here):
            found[name] = _not_run("this processor has neither avx512_bf16 nor amx_bf16")
        else:
            say(f"{examiner.part.name}: {name}")
            try:
                runner = OpenVinoRunner(path, usable_cores(), candidate.bfloat16)
                found[name] = _judged(examiner, name, runner, path, gates)
            except (BundleError, RuntimeError) as error:
                found[name] = Form(file=None, bytes=0, verdict="refused", reasons=[str(error)])
            else:
                runners[name] = runner
    return found | dict(_timed(examiner, folder, found, runners))


def _file(folder: Path, forms: Mapping[FormName, Form], int8: bool) -> Path | None:
    """The file of the int8 graph, or of the one in floats; None where it was not kept."""
    served = (forms["int8"].verdict == "served") == int8
    path = folder / (MODEL_NAME if served else INT8_NAME if int8 else FLOAT_NAME)
    return path if path.is_file() else None


def _not_run(reason: str) -> Form:
    return Form(file=None, bytes=0, verdict="not run", reasons=[reason])


def _judged(
    examiner: Examiner, name: FormName, runner: OpenVinoRunner, path: Path, gates: Gates
) -> Form:
    form = examiner.examine(name, runner, path, None)
    loss, metric = examiner.loss(form), examiner.part.task_metric
    problems = too_lossy(loss, metric, gates)
    return form.model_copy(
        update={
            "verdict": "refused" if problems else "kept",
            "reasons": [
                f"openvino {version()}",
                f"{loss:+.2f} points of {metric} lost",
                *problems,
            ],
        }
    )


def _timed(
    examiner: Examiner,
    folder: Path,
    found: Mapping[FormName, Form],
    runners: Mapping[FormName, OpenVinoRunner],
) -> Iterator[tuple[FormName, Form]]:
    """The forms that ran with their speed, measured in turns with the served graph."""
    if not runners:
        return
    served = Session(folder / MODEL_NAME, usable_cores())
    curves = batch_curves({"onnx": served, **runners}, examiner.part.feeds)
    for name in runners:
        faster = best(curves["onnx"]) / best(curves[name])
        said = f"{faster:.2f} times the throughput of {MODEL_NAME} in ONNX Runtime"
        form = found[name]
        yield (
            name,
            form.model_copy(update={"speed": curves[name], "reasons": [*form.reasons, said]}),
        )
