"""The served graph behind the real Triton, held against torch like every other form."""

from pathlib import Path

from export.certificate import Form
from export.forms import Forms, Options
from export.speed import batch_curves
from export.triton_runner import TritonRunner
from tilesight.cores import usable_cores
from tilesight.errors import TritonMissingError
from tilesight.files import write_text
from tilesight.manifest import MODEL_NAME, Manifest
from tilesight.repository import CONFIG_NAME, TritonOptions
from tilesight.triton.installation import REMEDY
from tilesight.triton.server import TritonServer
from tilesight.triton_config import config_text


def examine_on_triton(forms: Forms, folder: Path, manifest: Manifest, options: Options) -> Form:
    """What Triton answers with the version in `folder`; "not run" where there is no Triton.

    Raises:
        ExportError: Triton's answers are not torch's.
        TritonError: it cannot load the version, or ends.
    """
    if not options.triton:
        return Form(file=None, bytes=0, verdict="not run", reasons=["not asked for"])
    digests = {manifest.version: manifest.files[MODEL_NAME]}
    knobs = TritonOptions(threads=usable_cores())
    config = folder.parent / CONFIG_NAME
    write_text(config, config_text(manifest, digests, manifest.version, knobs))
    try:
        with TritonServer(folder.parent.parent, [manifest.name]) as server:
            return _examine(forms, folder, manifest, options, server.grpc_url)
    except TritonMissingError:
        # Its message names a folder of this machine.
        said = f"no Triton is installed: {REMEDY}"
        return Form(file=None, bytes=0, verdict="not run", reasons=[said])
    finally:
        config.unlink()


def _examine(forms: Forms, folder: Path, manifest: Manifest, options: Options, url: str) -> Form:
    examiner, part = forms.examiner, forms.examiner.part
    lossy = forms.served == "int8" or options.half_weights
    limit = None if lossy else options.gates.max_difference
    runner = TritonRunner(url, manifest.name, manifest.version, part.source.outputs)
    try:
        form = examiner.examine("triton", runner, folder / MODEL_NAME, limit)
        examiner.require("Triton", form, options.gates)
        said = f"tritonserver {runner.server()}, over gRPC, with the served graph"
        speed = batch_curves({"triton": runner}, part.feeds)["triton"]
        return form.model_copy(update={"speed": speed, "reasons": [said]})
    finally:
        runner.close()
