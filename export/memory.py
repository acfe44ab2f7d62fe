"""How much memory a graph will take when it runs: an estimate from its shapes alone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

# Their output is their first input's buffer, seen with another shape.
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# Not computed when loading, though all their inputs are constants: 8-bit weights stay 8-bit until
# the node that reads them, and what is drawn at random is drawn in each run.
_UNFOLDED = frozenset(
    {"Bernoulli", "DequantizeLinear", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
)
# ONNX Runtime's arena asks for powers of two, keeps them, and plans the second run into a block of
# its own: over the committed models it took 1.3 times the tensors that are alive at once.
_ARENA = 1.5
_TYPES = helper.get_all_tensor_dtypes()


@dataclass(frozen=True)
class Memory:
    """Bytes of one instance of a graph at one batch size."""

    file: int
    weights: int
    activations: int
    unsized: tuple[str, ...]
    """Tensors whose size the graph does not tell; they count nothing."""

    @property
    def total(self) -> int:
        """What a process grows by: the file once read, its weights ready to use, the tensors."""
        return self.file + self.weights + int(_ARENA * self.activations)


def estimate(model: ModelProto, batch: int) -> Memory:
    """What the weights take, and the most that tensors alive at the same time take at `batch`.

    Weights are what remains after the constants were folded, as ONNX Runtime does when it loads:
    a float16 weight that is cast counts as the float32 that it becomes. Tensors live from the
    node that makes them to the last node that reads them, in the order of the file; the bodies of
    loops and branches count with the node that holds them.
    """
    graph = _with_shapes(model, batch).graph
    ledger = _Ledger()
    activations = ledger.peak(graph)
    return Memory(model.ByteSize(), ledger.weights(), activations, tuple(sorted(ledger.unsized)))


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies that a node holds: of a loop, or the branches of an If."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


class _Ledger:
    """Sizes and constants of a graph and of the bodies inside it, as far as they were walked."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._constants: set[str] = set()
        self._weights: set[str] = set()
        self.unsized: set[str] = set()

    def weights(self) -> int:
        """Bytes of the constants that nodes read which are no constants themselves."""
        return sum(self._size(name) for name in self._weights)

    def peak(self, graph: GraphProto) -> int:
        """The most bytes alive at once while the graph's nodes run in their order."""
        self._sizes |= _sizes(graph)
        self._constants |= {tensor.name for tensor in graph.initializer}
        nodes = [node for node in graph.node if not self._folds(node)]
        outputs = [value.name for value in graph.output]
        read = {name for node in nodes for name in _reads(node)}
        self._weights |= self._constants & (read | set(outputs))
        owner = self._owners(nodes)
        last = _last_uses(nodes, outputs, owner)
        given = [value.name for value in graph.input if value.name not in self._constants]
        alive = {name: self._size(name) for name in given}
        most = sum(alive.values())
        for index, node in enumerate(nodes):
            inside = self._inside(node)
            made = [name for name in node.output if name and name not in owner]
            alive |= {name: self._size(name) for name in made}
            most = max(most, sum(alive.values()) + inside)
            alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
        return most

    def _inside(self, node: NodeProto) -> int:
        """The peak of the node's bodies, of which one runs at a time."""
        peaks = [0]
        for body in subgraphs(node):
            if node.op_type == "Loop":
                self._carry(node, body)
            peaks.append(self.peak(body))
        return max(peaks)

    def _carry(self, node: NodeProto, body: GraphProto) -> None:
        """What a loop carries is as large when it comes in, goes around and comes out."""
        sizes = _sizes(body)
        # The inputs before it are the limit and the condition; the outputs after it are rows that
        # the loop collects.
        carried = body.output[1 : len(node.input) - 1]
        for came, goes, result in zip(body.input[2:], carried, node.output, strict=False):
            if goes.name in sizes:
                self._sizes.setdefault(came.name, sizes[goes.name])
                self._sizes.setdefault(result, sizes[goes.name])

    def _folds(self, node: NodeProto) -> bool:
        """Whether the node's outputs are constants; notes them."""
        reads = [name for name in node.input if name]
        decided = node.op_type == "Constant" or (bool(reads) and self._constants.issuperset(reads))
        if not decided or node.op_type in _UNFOLDED or any(subgraphs(node)):
            return False
        self._constants |= set(node.output)
        return True

    def _owners(self, nodes: Iterable[NodeProto]) -> dict[str, str]:
        """For each view the tensor whose buffer it is."""
        owner: dict[str, str] = {}
        for node in nodes:
            if node.op_type in _VIEWS and node.input[0] not in self._constants:
                owner[node.output[0]] = owner.get(node.input[0], node.input[0])
        return owner

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            self.unsized.add(name)
        return self._sizes.get(name, 0)


def _last_uses(
    nodes: Sequence[NodeProto], outputs: Iterable[str], owner: Mapping[str, str]
) -> dict[str, int]:
    """For each buffer the index of the last node that touches it; results outlive all nodes."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in (*_reads(node), *node.output):
            last[owner.get(name, name)] = index
    for name in outputs:
        last[owner.get(name, name)] = len(nodes)
    return last


def _reads(node: NodeProto) -> Iterator[str]:
    """What a node reads, its bodies included (also names that are only known inside them)."""
    yield from (name for name in node.input if name)
    for body in subgraphs(node):
        for inner in body.node:
            yield from _reads(inner)
        yield from (value.name for value in body.output)


def _with_shapes(model: ModelProto, batch: int) -> ModelProto:
    """A copy whose batch is a number and whose shapes are worked out from it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    symbols = {
        value.type.tensor_type.shape.dim[0].dim_param: batch
        for value in copy.graph.input
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param
    }
    _fix(copy.graph, symbols)
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def _fix(graph: GraphProto, symbols: Mapping[str, int]) -> None:
    """Replaces each symbolic size by its number, or opens it where nobody knows the number."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                number = _number(str(dim.dim_param), symbols)
                dim.Clear()
                if number is not None:
                    dim.dim_value = number
    for node in graph.node:
        for body in subgraphs(node):
            _fix(body, symbols)


def _number(size: str, symbols: Mapping[str, int]) -> int | None:
    """The value of a symbol or of a product such as `5*batch`; the exporter writes no others."""
    factors = [
        int(f) if f.isdecimal() else symbols.get(f) for f in size.replace(" ", "").split("*")
    ]
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def _sizes(graph: GraphProto) -> dict[str, int]:
    """Bytes of each tensor whose shape is fixed."""
    sizes = {
        tensor.name: math.prod(tensor.dims) * _itemsize(tensor.data_type)
        for tensor in graph.initializer
        if tensor.data_type in _TYPES
    }
    for value in (*graph.input, *graph.value_info, *graph.output):
        size = _bytes(value)
        if size is not None:
            sizes[value.name] = size
    return sizes


def _bytes(value: ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    fixed = all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    if not (tensor.HasField("shape") and fixed and tensor.elem_type in _TYPES):
        return None
    return math.prod(dim.dim_value for dim in tensor.shape.dim) * _itemsize(tensor.elem_type)


def _itemsize(elem_type: int) -> int:
    return helper.tensor_dtype_to_np_dtype(elem_type).itemsize
