"""What an ONNX file asks of the runtime that opens it: formats, operators, other files."""

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, inliner

from export.memory import subgraphs
from export.releases import OLDEST_OPSET, Runtime

# ONNX Runtime's own operators, which every official build has and no other runtime.
CONTRIB = "com.microsoft"

_ONNX = ("", "ai.onnx")


def inlined(model: ModelProto) -> ModelProto:
    """The model with its own functions unfolded; what is left has to be known to the runtime."""
    return inliner.inline_local_functions(model) if model.functions else model


def format_problems(model: ModelProto, runtime: Runtime) -> list[str]:
    """Why the runtime refuses the file's IR version or opsets; empty where it does not."""
    problems = []
    if model.ir_version > runtime.ir_version:
        problems.append(
            f"IR version {model.ir_version}; ONNX Runtime {runtime.version} reads up to "
            f"{runtime.ir_version}"
        )
    newest = runtime.opsets()
    for domain, version in opsets(model).items():
        if domain not in newest:
            problems.append(f"domain {domain}: no operators of it in ONNX Runtime")
        elif version > newest[domain]:
            problems.append(
                f"opset {version} of {domain or 'ai.onnx'}; ONNX Runtime {runtime.version} "
                f"reads up to {newest[domain]}"
            )
        elif not domain and version < OLDEST_OPSET:
            problems.append(f"opset {version}; ONNX Runtime reads from {OLDEST_OPSET} on")
    return problems


def opsets(model: ModelProto) -> dict[str, int]:
    """The opset of each domain that the file imports, the default domain under the empty name."""
    return {_domain(entry.domain): entry.version for entry in model.opset_import}


def unknown_operators(model: ModelProto) -> list[str]:
    """Each operator that its domain's opset does not have, as a sentence.

    What ONNX Runtime adds in its own domain is not described by ONNX; `contrib_operators` lists it.
    """
    imported = opsets(model)
    problems = []
    found = {(_domain(node.domain), str(node.op_type)) for node in nodes(model)}
    for domain, name in sorted(found):
        shown = f"operator {domain or 'ai.onnx'}.{name}"
        if domain not in imported:
            problems.append(f"{shown}: the file imports no opset of its domain")
        elif domain != CONTRIB and not _known(name, domain, imported[domain]):
            problems.append(f"{shown}: not in opset {imported[domain]}")
    return problems


def contrib_operators(model: ModelProto) -> list[str]:
    """The operators that ONNX Runtime alone has."""
    return sorted({str(node.op_type) for node in nodes(model) if node.domain == CONTRIB})


def external_tensors(model: ModelProto) -> list[str]:
    """Each tensor whose values lie in another file, as a sentence that names the file."""
    problems = []
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            places = {entry.key: entry.value for entry in tensor.external_data}
            problems.append(
                f"tensor {tensor.name}: its values lie in {places.get('location', 'no file')!r}; "
                "a graph holds all of its own"
            )
    return problems


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """All nodes, those of loop bodies and branches included."""
    for graph in _graphs(model.graph):
        yield from graph.node


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from _graphs(body)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Weights, and the constants that nodes carry, those of the file's functions included."""
    graphs = list(_graphs(model.graph))
    carriers = [node for graph in graphs for node in graph.node]
    for function in model.functions:
        for node in function.node:
            inside = [graph for body in subgraphs(node) for graph in _graphs(body)]
            graphs += inside
            carriers += [node, *(one for graph in inside for one in graph.node)]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in carriers:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _domain(name: str) -> str:
    return "" if name in _ONNX else str(name)


def _known(name: str, domain: str, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(name, opset, domain).deprecated
    except onnx.defs.SchemaError:
        return False
