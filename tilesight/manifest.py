"""What a model version promises: `manifest.json`, the one contract between export and serving.

The exporter writes it, the gateway and the scorer read it. It is strict: an unknown field or a
wrong type is an error that names it, so a bundle never means something else than it says.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tilesight.errors import BundleError, ManifestError
from tilesight.files import sha256

FORMAT_VERSION: Literal[2] = 2
MANIFEST_NAME = "manifest.json"
CERTIFICATE_NAME = "certificate.json"
MODEL_NAME = "model.onnx"
# The same graph for one tile alone, where the export found it faster.
BATCH1_NAME = "model.batch1.onnx"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """A frozen record that knows all its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InputSpec(Strict):
    """The tile tensor that the graph eats: uint8, (N, height, width, bands)."""

    name: str = "tiles"
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    bands: list[str] = Field(min_length=1, description="band names in channel order")
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    gsd_m: tuple[float, float] = Field(
        description="smallest and largest ground sampling distance of the training tiles, metres"
    )
    resize: Literal["bilinear-stretch"] = Field(
        default="bilinear-stretch",
        description="antialiased bilinear to height x width, the aspect ratio not kept",
    )
    golden_sha256: Sha256 = Field(
        description="hash of the tensor that the pixel pipeline makes of the golden image"
    )


class TensorSpec(Strict):
    """One input or output of the graph; -1 stands for the batch."""

    name: str
    dtype: Literal["uint8", "bool", "int32", "int64", "float32"]
    shape: list[int]


class LabelsHead(Strict):
    """What the outputs of a multi-label tagger mean."""

    task: Literal["labels"] = "labels"
    labels: list[str] = Field(min_length=1)
    thresholds: list[Probability] = Field(description="present when the score reaches it")
    calibration: Literal["none"] = "none"

    @model_validator(mode="after")
    def _one_threshold_a_label(self) -> Self:
        if len(self.thresholds) != len(self.labels):
            raise ValueError(
                f"thresholds: {len(self.thresholds)} values for {len(self.labels)} labels"
            )
        return self


class CaptionHead(Strict):
    """What the outputs of a captioner mean, and how it decodes."""

    task: Literal["caption"] = "caption"
    vocabulary: list[str] = Field(min_length=4, description="word of each token id")
    attributes: list[str] = Field(min_length=1)
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
    max_length: int = Field(gt=0, description="tokens a sentence has at most, the end included")
    max_beams: int = Field(gt=0)
    default_beams: int = Field(gt=0)


class EncodingHead(Strict):
    """What the outputs of a tile encoder mean; a question head reads its memory."""

    task: Literal["encoding"] = "encoding"
    land_use: list[str] = Field(min_length=1)


class AnswerHead(Strict):
    """What the outputs of a question head mean, and how it reads a question."""

    task: Literal["vqa"] = "vqa"
    encoder: str = Field(description="the model whose memory this head reads")
    encoder_sha256: Sha256 | None = Field(
        default=None, description="that model's graph; a head without it is not served"
    )
    vocabulary: list[str] = Field(min_length=2, description="word of each token id")
    pad_id: int = 0
    unk_id: int = 1
    max_tokens: int = Field(gt=0, description="tokens a question has at most")
    max_characters: int = Field(default=500, gt=0)
    answers: list[str] = Field(min_length=2)
    answer_types: list[str] = Field(description="the question type that each answer belongs to")

    @model_validator(mode="after")
    def _one_type_an_answer(self) -> Self:
        if len(self.answer_types) != len(self.answers):
            raise ValueError(
                f"answer_types: {len(self.answer_types)} values for {len(self.answers)} answers"
            )
        return self


Head = Annotated[LabelsHead | CaptionHead | EncodingHead | AnswerHead, Field(discriminator="task")]


class Metrics(Strict):
    """What the model reached on a named split, with the floors that show what it is worth."""

    dataset: str
    split: str
    split_sha256: Sha256
    tiles: int = Field(gt=0, description="how many of the split's tiles were measured")
    seed: int
    values: dict[str, float]
    floors: dict[str, dict[str, float]] = Field(
        default={}, description="the same figures of systems that learn little or nothing"
    )


class Lineage(Strict):
    """Where the model comes from."""

    commit: str
    config_sha256: Sha256
    checkpoint_sha256: Sha256
    data_sha256: dict[str, Sha256]
    base_weights_sha256: Sha256 | None


class Graph(Strict):
    """The file format of the graph."""

    precision: Literal["float32", "float16-weights", "int8"]
    opset: int
    ir_version: int
    minimum_onnxruntime: str


class Golden(Strict):
    """What the model answers to the golden tile: floats in the order of the flattened tensors."""

    outputs: dict[str, list[float]]
    tolerance: float = Field(gt=0, description="the largest absolute difference that passes")


class Manifest(Strict):
    """All that a reader must know of a model version."""

    format_version: Literal[2] = FORMAT_VERSION
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(gt=0)
    title: str
    input: InputSpec | None = Field(description="absent where the model reads no tile")
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    head: Head
    metrics: Metrics
    lineage: Lineage
    graph: Graph
    golden: Golden = Field(description="what a runtime has to answer before it is trusted")
    files: dict[str, Sha256] = Field(description="SHA-256 of every other file of the version")

    @property
    def digest(self) -> str:
        """The identity of the weights: the hash of the graph's file."""
        return f"sha256:{self.files[MODEL_NAME]}"


def parse(text: str, source: str) -> Manifest:
    """The manifest in the JSON text.

    Raises:
        ManifestError: naming `source` and each field that is wrong.
    """
    try:
        version = json.loads(text).get("format_version")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ManifestError(f"{source}: not a JSON object: {error}") from None
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "a later Tilesight reads it" if newer else "export the model again"
        raise ManifestError(
            f"{source}: format_version is {version!r}, this version reads {FORMAT_VERSION}; "
            f"{remedy}"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'manifest'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ManifestError(f"{source}: {problems}") from None


def read_unchecked(version_folder: Path) -> Manifest:
    """The manifest of a version folder as it stands; its files are not checked.

    Raises:
        BundleError: it is missing.
        ManifestError: it cannot be read.
    """
    path = version_folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{path}: missing")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8: {error}") from None
    return parse(text, str(path))


def read(version_folder: Path) -> Manifest:
    """The manifest of a version folder, its files checked against their hashes.

    Raises:
        BundleError: a file is missing or differs from its hash.
        ManifestError: the manifest itself cannot be read.
    """
    manifest = read_unchecked(version_folder)
    path = version_folder / MANIFEST_NAME
    if MODEL_NAME not in manifest.files:
        raise BundleError(f"{path}: files: {MODEL_NAME} is not listed")
    for name, expected in manifest.files.items():
        file = version_folder / name
        if Path(name).name != name or file.is_symlink():
            raise BundleError(f"{path}: files: {name!r} is not a plain file name")
        if not file.is_file():
            raise BundleError(f"{file}: missing, and the manifest lists it")
        found = sha256(file)
        if found != expected:
            raise BundleError(f"{file}: sha256 is {found}, the manifest says {expected}")
    return manifest
