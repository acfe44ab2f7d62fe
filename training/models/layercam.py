"""LayerCAM: where on a tile a network saw a label.

Source: Jiang, Zhang, Hou, Cheng, Wei, LayerCAM: Exploring Hierarchical Class Activation Maps for
Localization, IEEE TIP 30 (2021), section III. Each place of each channel is weighted by its own
positive gradient, where Grad-CAM has one weight a channel, so that maps of early stages with their
fine grid mean something, too.

Deviation: the map is divided by its maximum for every stage; the paper passes those of the early
stages through a tanh besides.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tilesight.errors import DataError


def layer_cam(network: nn.Module, layer: nn.Module, tiles: Tensor, label: int) -> Tensor:
    """(B, H, W) maps between 0 and 1 of what speaks for a label at the output of a layer.

    With the layer's output A (B, D, h, w): relu(sum over d of relu(d logit / d A_d) * A_d), each
    tile's map divided by its maximum, then enlarged bilinearly to the tile. A map is 0 everywhere
    where no place speaks for the label. The network is run as for evaluation; its modes and its
    parameters' gradients are as before afterwards, and it keeps no hook.

    Args:
        network: (B, H, W, 3) tiles -> (B, C) logits.
        layer: one of the network's modules, run once a pass, with an output of four axes.
        tiles: (B, H, W, 3) as the network reads them.
        label: the label's place among the C logits.

    Raises:
        DataError: the tiles have another shape, the layer is not of the network, does not run
            exactly once, has another output, or does not reach the logit; or there is no such
            logit.
    """
    if tiles.ndim != 4 or tiles.shape[-1] != 3:
        raise DataError(f"LayerCAM: tiles (B, H, W, 3) are needed, not {tuple(tiles.shape)}")
    if all(layer is not module for module in network.modules()):
        raise DataError("LayerCAM: the layer is not one of the network's modules")
    with _evaluating(network), torch.enable_grad(), _watched(layer) as outputs:
        logits = network(tiles)
        features = _only(outputs)
        gradients = _gradients(logits, features, label)
    maps = (gradients.relu() * features.detach()).sum(dim=1, keepdim=True).relu()  # (B, 1, h, w)
    highest = maps.amax(dim=(2, 3), keepdim=True)
    # A map of zeros stays one.
    maps = maps / highest.where(highest > 0, torch.ones_like(highest))
    return nn.functional.interpolate(
        maps, size=tuple(tiles.shape[1:3]), mode="bilinear", align_corners=False
    ).squeeze(1)  # (B, 1, H, W) -> (B, H, W)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    # Module by module: a network in training may have parts that are kept in evaluation.
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The layer's outputs, from which alone the gradient graph of the rest starts."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise DataError("LayerCAM: the layer's output is not of the shape (B, D, H, W)")
        # No graph before the layer: nothing there needs a gradient, frozen or not.
        outputs.append(output.detach().requires_grad_())
        # A copy goes on, because a following ReLU may write into its input.
        return outputs[-1].clone()

    handle = layer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def _only(outputs: list[Tensor]) -> Tensor:
    if len(outputs) != 1:
        raise DataError(f"LayerCAM: the layer ran {len(outputs)} times in one pass, not once")
    return outputs[0]


def _gradients(logits: Tensor, features: Tensor, label: int) -> Tensor:
    """(B, D, h, w): tiles do not mix in evaluation, so the sum's gradient is each tile's own."""
    if logits.ndim != 2 or not 0 <= label < logits.shape[1]:
        raise DataError(f"LayerCAM: no logit {label} among logits {tuple(logits.shape)}")
    logit = logits[:, label].sum()
    found = (
        torch.autograd.grad(logit, features, allow_unused=True)[0] if logit.requires_grad else None
    )
    if found is None:
        raise DataError("LayerCAM: the logit does not depend on the layer's output")
    return found
