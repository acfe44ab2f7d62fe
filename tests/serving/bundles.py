"""Tiny real bundles: ONNX graphs with the tensors of the real models, made by hand in a second.

Every output depends on the tile's colours, so that an answer given to the wrong tile is seen, and
on the version, so that an answer of the wrong version is.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tilesight.files import sha256
from tilesight.golden import golden_inputs, record
from tilesight.imaging import golden_sha256
from tilesight.manifest import (
    AnswerHead,
    CaptionHead,
    EncodingHead,
    Golden,
    Graph,
    InputSpec,
    LabelsHead,
    Lineage,
    Manifest,
    Metrics,
    TensorSpec,
)

SIDE = 224
LABELS = ["water", "trees", "sand", "buildings"]
THRESHOLDS = [0.5, 0.5, 0.5, 0.9]
ATTRIBUTES = ["many", "blue", "green"]
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "dark", "bright", "place", "many", "trees"]
BEAMS = 3
LAND_USE = ["forest", "harbor"]
QUESTION_WORDS = ["<pad>", "<unk>", "are", "there", "trees", "how", "many", "what", "is", "this"]
ANSWERS = ["yes", "no", "forest", "harbor", "3"]
ANSWER_TYPES = ["presence", "presence", "theme", "theme", "count"]
TOKENS = 12

_ONNX_TYPES = {
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}


class GraphMaker:
    """Nodes and constants of a graph, collected one by one."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, values: NDArray[Any]) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def node(
        self, op: str, inputs: Sequence[str], name: str | None = None, **options: object
    ) -> str:
        output = name or f"node{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **options))
        return output

    def mean_colour(self) -> str:
        """(N, 3) in 0..1."""
        pixels = self.node("Cast", ["tiles"], to=TensorProto.FLOAT)
        axes = self.constant(np.array([1, 2]))
        mean = self.node("ReduceMean", [pixels, axes], keepdims=0)
        return self.node("Div", [mean, self.constant(np.array(255, np.float32))])

    def grid(self) -> str:
        """(N, 3, 7, 7) in 0..255."""
        pixels = self.node("Cast", ["tiles"], to=TensorProto.FLOAT)
        planes = self.node("Transpose", [pixels], perm=[0, 3, 1, 2])
        size = SIDE // 7
        return self.node("AveragePool", [planes], kernel_shape=[size, size], strides=[size, size])

    def linear(self, values: str, weights: NDArray[np.float32], bias: float = 0.0) -> str:
        product = self.node("MatMul", [values, self.constant(weights.astype(np.float32))])
        return self.node("Add", [product, self.constant(np.array(bias, np.float32))])

    def model(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "tiny",
            [_value(spec) for spec in inputs],
            [_value(spec) for spec in outputs],
            self._constants,
        )
        opset = helper.make_opsetid("", 20)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    shape = ["N" if size == -1 else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.dtype], shape)


TILES = TensorSpec(name="tiles", dtype="uint8", shape=[-1, SIDE, SIDE, 3])


def labels_graph(
    version: int = 1, bias: float = -3.0
) -> tuple[bytes, list[TensorSpec], list[TensorSpec]]:
    """Blue means water, green trees, red sand, brightness buildings."""
    bias -= (version - 1) / 8
    maker = GraphMaker()
    weights = np.array([[-6, -6, 9, 3], [-6, 9, -6, 3], [9, -6, -6, 3]])  # (3, L)
    maker.node("Sigmoid", [maker.linear(maker.mean_colour(), weights, bias)], "scores")
    kernels = maker.constant(weights.T.reshape(len(LABELS), 3, 1, 1).astype(np.float32))
    maker.node("Conv", [maker.grid(), kernels], "evidence")
    outputs = [
        TensorSpec(name="scores", dtype="float32", shape=[-1, len(LABELS)]),
        TensorSpec(name="evidence", dtype="float32", shape=[-1, len(LABELS), 7, 7]),
    ]
    return maker.model([TILES], outputs), [TILES], outputs


def slow_graph(steps: int = 2500) -> bytes:
    """The labels' tensors, some tenths of a second late: 84 billion operations change nothing."""
    maker = GraphMaker()
    colour = maker.mean_colour()
    side = maker.constant(np.eye(256, dtype=np.float32))
    product = maker.node("Mul", [side, maker.node("ReduceMean", [colour], keepdims=0)])
    for _ in range(steps):
        product = maker.node("MatMul", [product, side])
    nothing = maker.node("Mul", [maker.node("ReduceMean", [product], keepdims=0), _zero(maker)])
    weights = np.array([[-6, -6, 9, 3], [-6, 9, -6, 3], [9, -6, -6, 3]])
    logits = maker.node("Add", [maker.linear(colour, weights, -3.0), nothing])
    maker.node("Sigmoid", [logits], "scores")
    kernels = maker.constant(weights.T.reshape(len(LABELS), 3, 1, 1).astype(np.float32))
    maker.node("Conv", [maker.grid(), kernels], "evidence")
    return maker.model([TILES], labels_graph()[2])


def _zero(maker: GraphMaker) -> str:
    return maker.constant(np.array(0, np.float32))


def caption_graph(version: int = 1) -> tuple[bytes, list[TensorSpec], list[TensorSpec]]:
    """ "A dark place" or "A bright place" first; the beams beyond the asked ones are filler."""
    maker = GraphMaker()
    colour = maker.mean_colour()
    axes = maker.constant(np.array([1]))
    brightness = maker.node("ReduceMean", [colour, axes], keepdims=0)  # (N,)
    bright = maker.node("Greater", [brightness, maker.constant(np.array(0.5, np.float32))])
    row = maker.node("Cast", [bright], to=TensorProto.INT64)
    dark = [[4, 5, 7, 2, 0], [5, 7, 2, 0, 0], [4, 7, 2, 0, 0]]
    light = [[4, 6, 7, 2, 0], [6, 7, 2, 0, 0], [4, 7, 2, 0, 0]]
    maker.node("Gather", [maker.constant(np.array([dark, light])), row], "tokens", axis=0)
    rank = maker.constant(np.arange(BEAMS)[None])  # (1, K)
    kept = maker.node("Less", [rank, "beams"])  # (N, K)
    worse = (version - 1) / 8
    scores = maker.constant(np.array([[-0.5, -1.0, -1.5]], np.float32) - np.float32(worse))
    maker.node("Where", [kept, scores, maker.constant(np.array(-np.inf, np.float32))], "log_probs")
    weights = np.array([[4, 0, 0], [4, 0, 9], [4, 9, 0]])
    maker.node("Sigmoid", [maker.linear(colour, weights, -3.0)], "attributes")
    half = maker.constant(np.array(0.5, np.float32))
    maker.node("Greater", ["attributes", half], "sampled")
    inputs = [TILES, TensorSpec(name="beams", dtype="int64", shape=[-1, 1])]
    outputs = [
        TensorSpec(name="tokens", dtype="int64", shape=[-1, BEAMS, 5]),
        TensorSpec(name="log_probs", dtype="float32", shape=[-1, BEAMS]),
        TensorSpec(name="attributes", dtype="float32", shape=[-1, len(ATTRIBUTES)]),
        TensorSpec(name="sampled", dtype="bool", shape=[-1, len(ATTRIBUTES)]),
    ]
    return maker.model(inputs, outputs), inputs, outputs


def encoder_graph(version: int = 1) -> tuple[bytes, list[TensorSpec], list[TensorSpec]]:
    """The memory is the grid of mean colours, darker in later versions."""
    maker = GraphMaker()
    flat = maker.node("Reshape", [maker.grid(), maker.constant(np.array([0, 3, 49]))])
    memory = maker.node("Transpose", [flat], perm=[0, 2, 1])
    scale = 255 * (1 + (version - 1) / 8)
    maker.node("Div", [memory, maker.constant(np.array(scale, np.float32))], "memory")
    weights = np.array([[0, 0], [5, 0], [0, 5]])
    maker.node("Softmax", [maker.linear(maker.mean_colour(), weights)], "land_use", axis=-1)
    outputs = [
        TensorSpec(name="memory", dtype="float32", shape=[-1, 49, 3]),
        TensorSpec(name="land_use", dtype="float32", shape=[-1, len(LAND_USE)]),
    ]
    return maker.model([TILES], outputs), [TILES], outputs


def head_graph(version: int = 1) -> tuple[bytes, list[TensorSpec], list[TensorSpec]]:
    """Green says yes to "trees", "how many" asks for a number, "what" for a theme."""
    maker = GraphMaker()
    axes = maker.constant(np.array([1]))
    colour = maker.node("ReduceMean", ["memory", axes], keepdims=0)  # (N, 3)
    weights = np.array([[0, 1, 0, 0, 0], [4, 0, 2, 0, 0], [0, 2, 0, 4, 0]]) + (version - 1) / 3
    weights[:, 0] -= (version - 1) / 2
    seen = maker.linear(colour, weights)
    words = np.zeros((len(QUESTION_WORDS), len(ANSWERS)), np.float32)
    words[QUESTION_WORDS.index("trees"), :2] = 6
    words[QUESTION_WORDS.index("what"), 2:4] = 12
    words[QUESTION_WORDS.index("how"), 4] = 12
    spoken = maker.node("Gather", [maker.constant(words), "question"], axis=0)  # (N, T, A)
    asked = maker.node("ReduceSum", [spoken, axes], keepdims=0)
    logits = maker.node("Add", [seen, asked])
    maker.node("Softmax", [logits], "answers", axis=-1)
    maker.node("ReduceMean", [colour, axes], "count", keepdims=1)
    inputs = [
        TensorSpec(name="memory", dtype="float32", shape=[-1, 49, 3]),
        TensorSpec(name="question", dtype="int64", shape=[-1, TOKENS]),
    ]
    outputs = [
        TensorSpec(name="answers", dtype="float32", shape=[-1, len(ANSWERS)]),
        TensorSpec(name="count", dtype="float32", shape=[-1, 1]),
    ]
    return maker.model(inputs, outputs), inputs, outputs


LABELS_HEAD = LabelsHead(labels=LABELS, thresholds=THRESHOLDS)
CAPTION_HEAD = CaptionHead(
    vocabulary=WORDS, attributes=ATTRIBUTES, max_length=5, max_beams=BEAMS, default_beams=2
)
ENCODING_HEAD = EncodingHead(land_use=LAND_USE)
ANSWER_HEAD = AnswerHead(
    encoder="spatialnet_vit_encoder",
    vocabulary=QUESTION_WORDS,
    max_tokens=TOKENS,
    answers=ANSWERS,
    answer_types=ANSWER_TYPES,
)
MODELS = {
    "signa": (labels_graph, LABELS_HEAD),
    "jtts": (caption_graph, CAPTION_HEAD),
    "spatialnet_vit_encoder": (encoder_graph, ENCODING_HEAD),
    "spatialnet_vit_head": (head_graph, ANSWER_HEAD),
}


def write_bundle(root: Path, name: str, version: int = 1) -> Path:
    """The version folder of the named tiny model, written under the repository."""
    make, head = MODELS[name]
    graph, inputs, outputs = make(version)
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    manifest = Manifest(
        name=name,
        version=version,
        title=f"Tiny {name}",
        input=_input() if TILES in inputs else None,
        inputs=inputs,
        outputs=outputs,
        head=head,
        metrics=Metrics(
            dataset="colours",
            split="test",
            split_sha256="0" * 64,
            tiles=1,
            seed=0,
            values={"f1": 1.0},
        ),
        lineage=Lineage(
            commit="none",
            config_sha256="0" * 64,
            checkpoint_sha256="0" * 64,
            data_sha256={},
            base_weights_sha256=None,
        ),
        graph=Graph(precision="float32", opset=20, ir_version=10, minimum_onnxruntime="1.20.0"),
        golden=Golden(outputs={}, tolerance=1e-3),
        files={"model.onnx": sha256(folder / "model.onnx")},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    record_golden(folder)
    return folder


def record_golden(folder: Path) -> None:
    """Asks the graph about the golden tile and notes the answer in its manifest."""
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text(encoding="utf-8"))
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in manifest.outputs]
    outputs = dict(zip(names, session.run(names, golden_inputs(manifest)), strict=True))
    edit_manifest(folder, "golden", value=record(manifest, outputs).model_dump())


def write_repository(root: Path, version: int = 1) -> Path:
    """A repository with the version of all four models, beside what is there."""
    folders = {name: write_bundle(root, name, version) for name in MODELS}
    encoder = sha256(folders[ANSWER_HEAD.encoder] / "model.onnx")
    edit_manifest(folders["spatialnet_vit_head"], "head", "encoder_sha256", value=encoder)
    return root


def edit_manifest(folder: Path, *path: str, value: object) -> None:
    """Puts another value at the path of keys in the folder's manifest."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(manifest), encoding="utf-8")


def replace_graph(repository: Path, name: str, graph: bytes, version: int = 1) -> Path:
    """Another graph under the same manifest, the hash made to fit."""
    folder = repository / name / str(version)
    (folder / "model.onnx").write_bytes(graph)
    digest = sha256(folder / "model.onnx")
    edit_manifest(folder, "files", "model.onnx", value=digest)
    if name == ANSWER_HEAD.encoder:
        head = repository / "spatialnet_vit_head" / "1"
        edit_manifest(head, "head", "encoder_sha256", value=digest)
    return folder


def _input() -> InputSpec:
    return InputSpec(
        height=SIDE,
        width=SIDE,
        bands=["red", "green", "blue"],
        gsd_m=(0.3, 0.3),
        golden_sha256=golden_sha256(SIDE, SIDE),
    )
