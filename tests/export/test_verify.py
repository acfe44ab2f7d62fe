import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from typer.testing import CliRunner

from export.verify import verify
from tests.export.conftest import GRAPHS
from tests.export.test_bundle import outputs_shifted
from tests.serving.bundles import edit_manifest
from tilesight.cli import build
from tilesight.errors import BundleError, ManifestError
from tilesight.files import sha256
from tilesight.manifest import read
from tilesight.repository import Repository

ALL_GRAPHS = [graph for graphs in GRAPHS.values() for graph in graphs]
# The smallest model: what is wrong with it is found in a second.
HEAD, ENCODER = "spatialnet_vit_head", "spatialnet_vit_encoder"


@pytest.fixture
def version(copied: Path) -> Path:
    """The head's version in a repository that a test may damage."""
    return copied / HEAD / "1"


def refusal(
    version: Path, kind: type[BundleError] | type[ManifestError] = BundleError, **options: Path
) -> str:
    with pytest.raises(kind) as caught:
        list(verify(version.parents[1], version.parent.name, **options))
    return str(caught.value)


def made_to_fit(version: Path) -> None:
    """Writes the hashes of the files as they are into the manifest, and the configuration anew."""
    listed = json.loads((version / "manifest.json").read_text())["files"]
    files = {name: sha256(version / name) for name in listed}
    edit_manifest(version, "files", value=files)
    Repository(version.parents[1]).write_configs([version.parent.name])


def edit_certificate(version: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = version / "certificate.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    made_to_fit(version)


def edit_graph(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    made_to_fit(path.parent)


# What is whole


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_an_untouched_version_passes_with_its_figures(
    name: str, repository: Path, tiles: Path
) -> None:
    manifest = read(repository / name / "1")
    lines = list(verify(repository, f"{name}@1", tiles))
    assert lines[0] == f"{name}@1: {len(manifest.files)} files have the manifest's hashes"
    for file in manifest.files:
        if file.endswith((".onnx", ".pt")):
            assert any(line.startswith(f"{file}: answers the golden tile") for line in lines)
    for file in ("model.onnx", "model.batch1.onnx"):
        assert f"{file}: answers the golden tile as the manifest says" in lines
    assert "config.pbtxt is the generated one and agrees with the graph" in lines
    assert "certificate.json: of this version, its forms passed their gates" in lines
    made_for = f"made for {ENCODER}@1, which is here"
    assert (made_for in lines) == (name == HEAD)
    main = {"signa": "f1_samples", "jtts": "cider", ENCODER: "land_use", HEAD: "presence"}[name]
    figure = manifest.metrics.values[main]
    dataset = "ucm_captions" if name == "jtts" else "ucm"
    assert f"{main} {figure:.4f} on {dataset} test" in lines


def test_the_served_version_is_meant_where_none_is_named(copied: Path) -> None:
    shutil.copytree(copied / HEAD / "1", copied / HEAD / "2")
    edit_manifest(copied / HEAD / "2", "version", value=2)
    edit_certificate(copied / HEAD / "2", lambda content: content.update(version=2))
    assert next(iter(verify(copied, HEAD))).startswith(f"{HEAD}@1: ")
    # A version that is not served is checked as well.
    assert len(list(verify(copied, f"{HEAD}@2"))) == len(list(verify(copied, HEAD)))


def test_the_command_says_what_it_checked(repository: Path) -> None:
    arguments = ["verify", f"{HEAD}@1", "--repository", str(repository)]
    told = CliRunner().invoke(build(), arguments)
    assert told.exit_code == 0, told.output
    assert all(line.startswith("ok  ") for line in told.stdout.splitlines())
    assert f"ok  made for {ENCODER}@1, which is here" in told.stdout


# What is not


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"{HEAD}@x", "the version after @ is a number"),
        (f"{HEAD}@", "the version after @ is a number"),
        (f"{HEAD}@2", f"no such version; {HEAD} has 1"),
        ("nobody", "no version of this model"),
        ("../signa", "is no name of a model"),
    ],
)
def test_what_is_not_there_is_named(target: str, said: str, repository: Path) -> None:
    with pytest.raises(BundleError, match=said):
        list(verify(repository, target))


@pytest.mark.parametrize(
    "file", ["model.onnx", "model.pt", "certificate.json", "certificate.md", "certificate.png"]
)
def test_a_changed_file_is_named(file: str, version: Path) -> None:
    content = bytearray((version / file).read_bytes())
    content[len(content) // 2] ^= 1
    (version / file).write_bytes(content)
    assert refusal(version).startswith(f"{version / file}: sha256 is ")


def test_the_command_fails_with_the_reason(version: Path) -> None:
    (version / "model.pt").unlink()
    arguments = ["verify", HEAD, "--repository", str(version.parents[1])]
    told = CliRunner().invoke(build(), arguments)
    assert told.exit_code == 2
    assert told.stderr == f"tilesight verify: {version / 'model.pt'}: missing, and the " + (
        "manifest lists it\n"
    )


def test_a_missing_manifest_is_named(version: Path) -> None:
    (version / "manifest.json").unlink()
    assert refusal(version) == f"{version / 'manifest.json'}: missing"


def test_a_manifest_of_a_newer_format_is_refused(version: Path) -> None:
    edit_manifest(version, "format_version", value=3)
    message = refusal(version, ManifestError)
    assert "format_version is 3, this version reads 2; a later Tilesight reads it" in message


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["name"], "other", "name: 'other', the folder says"),
        (["version"], 7, "version: 7, the folder says 1"),
        (["graph", "opset"], 19, "opset and IR version are (20, 10), the manifest says (19, 10)"),
        (["graph", "ir_version"], 9, "the manifest says (20, 9)"),
        (["outputs"], [], "its inputs and outputs are not the manifest's"),
        (["golden", "outputs", "count"], [1e3], "count: differs by 1e+03 from the manifest's"),
        (["golden", "outputs", "count"], [], "count: 1 values, the manifest has 0"),
        (["head", "encoder_sha256"], "0" * 64, f"{ENCODER}: no version has the graph 000"),
    ],
)
def test_an_edited_manifest_is_caught(
    path: list[str], value: object, said: str, version: Path
) -> None:
    edit_manifest(version, *path, value=value)
    if path[0] == "outputs":
        made_to_fit(version)
    assert said in refusal(version)


@pytest.mark.parametrize(
    ("name", "field"), [("signa", "golden_sha256"), (ENCODER, "golden_sha256")]
)
def test_another_pixel_pipeline_is_caught(name: str, field: str, copied: Path) -> None:
    edit_manifest(copied / name / "1", "input", field, value="f" * 64)
    assert f"input: {field}: the pixel pipeline" in refusal(copied / name / "1")


def test_an_edited_figure_is_caught_where_it_can_be_measured(version: Path, tiles: Path) -> None:
    figure = read(version).metrics.values["presence"]
    edit_manifest(version, "metrics", "values", "presence", value=figure + 0.002)
    assert list(verify(version.parents[1], HEAD))
    message = refusal(version, data=tiles)
    assert message == (
        f"{HEAD}@1: presence is {figure:.4f} on ucm test, the manifest says {figure + 0.002:.4f}"
    )


@pytest.mark.parametrize("file", ["model.onnx", "model.batch1.onnx"])
def test_another_graph_under_the_same_name_is_caught(file: str, version: Path) -> None:
    edit_graph(version / file, outputs_shifted("answers", by=0.01))
    message = refusal(version)
    assert message.startswith(f"{version / file}: answers: differs by 0.01 from")


@pytest.mark.parametrize("file", ["model.onnx", "model.pt", "model.int8.onnx"])
def test_a_file_that_is_no_graph_is_caught(file: str, version: Path) -> None:
    shutil.copy(version / "model.onnx", version / file) if file == "model.int8.onnx" else None
    (version / file).write_bytes(b"nothing that anybody could run")
    edit_manifest(version, "files", file, value="")
    made_to_fit(version)
    message = refusal(version)
    assert message.startswith(f"{version / file}: ")
    assert "no ONNX file" in message or "does not answer the golden tile" in message


def test_a_form_with_other_outputs_is_caught(version: Path) -> None:
    shutil.copy(version.parents[1] / ENCODER / "1" / "model.onnx", version / "model.int8.onnx")
    edit_manifest(version, "files", "model.int8.onnx", value="")
    made_to_fit(version)
    assert "model.int8.onnx: does not answer the golden tile" in refusal(version)


def outside(path: Path, location: str) -> None:
    """Moves the values of the graph's largest tensor to a file at this place."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (path.parent / location).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    onnx.save(model, path)
    made_to_fit(path.parent)


@pytest.mark.parametrize("file", ["model.onnx", "model.fp32.onnx"])
@pytest.mark.parametrize("location", ["../outside.bin", "beside.bin"])
def test_values_in_another_file_are_refused(file: str, location: str, version: Path) -> None:
    if file != "model.onnx":
        shutil.copy(version / "model.onnx", version / file)
        edit_manifest(version, "files", file, value="")
    outside(version / file, location)
    message = refusal(version)
    assert message.startswith(f"{version / file}: tensor ")
    assert f"its values lie in '{location}'; a graph holds all of its own" in message


def test_a_configuration_edited_by_hand_is_told_with_its_line(version: Path) -> None:
    path = version.parent / "config.pbtxt"
    lines = path.read_text().splitlines()
    number = lines.index("max_batch_size: 32")
    lines[number] = "max_batch_size: 64"
    path.write_text("\n".join(lines) + "\n")
    message = refusal(version)
    assert f"{path}: line {number + 1} is 'max_batch_size: 64\\n', generated is" in message
    assert "`tilesight models configure` writes it anew" in message
    # The remedy is one.
    told = CliRunner().invoke(
        build(), ["models", "configure", "--repository", str(version.parents[1])]
    )
    assert told.exit_code == 0, told.output
    assert list(verify(version.parents[1], HEAD))


def test_a_missing_configuration_is_told(version: Path) -> None:
    (version.parent / "config.pbtxt").unlink()
    assert "config.pbtxt: missing" in refusal(version)


def test_a_version_without_a_certificate_is_refused(version: Path) -> None:
    (version / "certificate.json").unlink()
    files = read_files(version)
    del files["certificate.json"]
    edit_manifest(version, "files", value=files)
    assert "certificate.json: missing, nothing shows that this version was" in refusal(version)


def read_files(version: Path) -> dict[str, str]:
    files: dict[str, str] = json.loads((version / "manifest.json").read_text())["files"]
    return files


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda content: content.update(version=2), f"certificate.json: is of {HEAD}@2"),
        (lambda content: content.update(model="signa"), "certificate.json: is of signa@1"),
        (
            lambda content: content["forms"]["onnx"].update(verdict="kept"),
            "forms: none is served as model.onnx",
        ),
        (
            lambda content: content["forms"]["onnx"].update(bytes=5),
            "the served graph has 5 bytes, the file has ",
        ),
        (lambda content: content.update(surplus=1), "no certificate: "),
    ],
    ids=["version", "model", "nothing served", "size", "unknown field"],
)
def test_a_certificate_of_something_else_is_refused(
    edit: Callable[[dict[str, Any]], None], said: str, version: Path
) -> None:
    edit_certificate(version, edit)
    assert said in refusal(version)


def test_a_head_whose_encoder_is_gone_is_refused(version: Path) -> None:
    digest = sha256(version.parents[1] / ENCODER / "1" / "model.onnx")
    shutil.rmtree(version.parents[1] / ENCODER)
    assert refusal(version) == (
        f"{ENCODER}: no version has the graph {digest} that the head was made for"
    )
