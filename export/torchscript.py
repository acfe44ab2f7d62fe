"""TorchScript: a file that runs wherever torch is, without a line of ours.

The graph is captured as for ONNX and compiled, not traced: the loop of the beam search stays a loop
that ends early, and no batch size is baked in.
"""

import io
import operator
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from export.onnx_file import BATCH, Source
from export.runner import Outputs, Runner
from tilesight.errors import ExportError
from tilesight.files import written_whole

TORCHSCRIPT_NAME = "model.pt"


def write_torchscript(source: Source, path: Path) -> None:
    """Writes the module as TorchScript with a free batch size; its weights are torch's to the bit.

    The file follows `map_location` to another device. It takes the inputs by `source`'s names and
    answers a tuple in the order of `source`'s outputs.

    Raises:
        ExportError: torch cannot express the module.
    """
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Torch warns that TorchScript is deprecated; the comparison decides what is right.
        warnings.simplefilter("ignore")
        try:
            captured = _captured(source)
            torch.jit.save(torch.jit.script(_scriptable(captured)), content)
        except Exception as error:
            raise ExportError(f"{type(source.module).__name__}: {error}") from error
    with written_whole(path) as temporary:
        _pack(content, temporary)


def _captured(source: Source) -> fx.GraphModule:
    """The module as one graph of torch's operators, its inputs called as the source calls them."""
    batch = torch.export.Dim(BATCH, min=1, max=1024)
    program = torch.export.export(
        source.module.eval(),
        source.examples,
        dynamic_shapes=tuple({0: batch} for _ in source.examples),
    )
    module = program.module(check_guards=False)
    inputs = module.graph.find_nodes(op="placeholder")
    for node, name in zip(inputs, source.inputs, strict=True):
        node.target = name
    with module.graph.inserting_before(inputs[-1].next):
        for node in inputs:
            _require_type(module.graph, node)
    return module


def _require_type(graph: fx.Graph, node: fx.Node) -> None:
    """Refuses another type than the example's; the network would take it for something else."""
    wanted = node.meta["val"].dtype
    told = graph.call_function(getattr, (node, "dtype"))
    agrees = graph.call_function(operator.eq, (told, wanted))
    graph.call_function(torch._assert, (agrees, f"{node.target} has to be {wanted}"))


def _scriptable(module: fx.GraphModule) -> fx.GraphModule:
    """The captured graph in the words that TorchScript's compiler knows."""
    graph = module.graph
    inputs = graph.find_nodes(op="placeholder")
    for node in inputs:
        if not _is_tensor(node):
            node.type = int  # a size that a loop is given
    for loop in graph.find_nodes(op="call_function", target=torch.ops.higher_order.while_loop):
        _compile_loop(module, loop)
    tensor = next(node for node in inputs if _is_tensor(node))
    with graph.inserting_before(inputs[-1].next):
        device = graph.call_function(getattr, (tensor, "device"))
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            # The compiler picks the overload by itself.
            node.target = node.target.overloadpacket
        if "device" in node.kwargs:
            # The capture notes the exporting machine's device.
            node.update_kwarg("device", device)
    graph.set_codegen(CodeGen())
    # A module of its own, without the hooks of the capture, which cannot be compiled.
    return fx.GraphModule(module, graph)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], Tensor)


def _compile_loop(module: fx.GraphModule, node: fx.Node) -> None:
    """Puts a compiled `while` in the place of the captured one."""
    arguments: Any = node.args  # torch types them as all that an argument can be
    condition, body, carried, constants = arguments
    name = f"loop_{node.name}"
    kinds = ["Tensor" if _is_tensor(constant) else "int" for constant in constants]
    compiled = _loop(
        getattr(module, condition.target), getattr(module, body.target), len(carried), kinds
    )
    module.add_submodule(name, compiled)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, (*carried, *constants))
    node.replace_all_uses_with(call)
    for replaced in (node, condition, body):
        module.graph.erase_node(replaced)


def _loop(
    condition: fx.GraphModule, body: fx.GraphModule, carried: int, kinds: Sequence[str]
) -> nn.Module:
    """A compiled module: the carried tensors and the constants -> the carried tensors."""
    parts = nn.Module()
    parts.unfinished, parts.step = _scriptable(condition), _scriptable(body)
    loop = torch.jit.script(parts)
    state = ", ".join(f"state_{index}" for index in range(carried))
    constants = [f"constant_{index}" for index in range(len(kinds))]
    typed = [f"{name}: {kind}" for name, kind in zip(constants, kinds, strict=True)]
    everything = ", ".join([state, *constants])
    loop.define(
        f"def forward(self, {', '.join([state, *typed])}):\n"
        f"    while bool(self.unfinished({everything})):\n"
        f"        {state} = self.step({everything})\n"
        f"    return {state}\n"
    )
    return loop


def _pack(content: io.BytesIO, path: Path) -> None:
    """Writes the archive anew: without the debug files, which hold paths and lines of the code.

    Compressed, because weights that are float16 numbers have zeros in half of their bits.
    """
    with zipfile.ZipFile(content) as whole, zipfile.ZipFile(path, "w") as packed:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                # An entry of its own has no date.
                packed.writestr(
                    zipfile.ZipInfo(entry.filename), whole.read(entry), zipfile.ZIP_DEFLATED
                )


class TorchScriptModel(Runner):
    """A written TorchScript file in torch, on the CPU."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        self._outputs = outputs
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            self._module = torch.jit.load(path, map_location="cpu").eval()

    @torch.inference_mode()
    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The outputs by name for one batch."""
        found = self._module(**{name: torch.tensor(values) for name, values in inputs.items()})
        return {name: values.numpy() for name, values in zip(self._outputs, found, strict=True)}
