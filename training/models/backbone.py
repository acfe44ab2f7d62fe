"""MobileNetV2 cut into four stages, so that a module can be plugged in after any of them.

Source: Sandler et al., MobileNetV2 (CVPR 2018), as torchvision implements it. The weights of the
project's data folder were trained on inputs of pixels / 127.5 - 1 (normalisation `half`);
torchvision's own expect the ImageNet statistics (normalisation `imagenet`).
"""

from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from tilesight.errors import WeightsError

Stage = Literal["layer1", "layer2", "layer3", "layer4"]
Normalization = Literal["half", "imagenet"]

STAGES: tuple[Stage, ...] = ("layer1", "layer2", "layer3", "layer4")
STAGE_CHANNELS: dict[Stage, int] = {"layer1": 24, "layer2": 32, "layer3": 96, "layer4": 1280}
STAGE_STRIDES: dict[Stage, int] = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
# The blocks of torchvision's `features` at which the stages end.
_STAGE_ENDS = (4, 7, 14, 19)

_STATISTICS: dict[Normalization, tuple[list[float], list[float]]] = {
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


class Normalize(nn.Module):
    """From the pixel pipeline's tensor to the network's: (B, H, W, 3) uint8 -> (B, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        mean, std = _STATISTICS[normalization]
        self.register_buffer("mean", _per_channel(mean) * 255, persistent=False)
        self.register_buffer("std", _per_channel(std) * 255, persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """The normalised images; float tiles (augmented) are taken as they are."""
        return (tiles.permute(0, 3, 1, 2).float() - self.mean) / self.std


def _per_channel(values: list[float]) -> Tensor:
    """(1, 3, 1, 1), or (1, 1, 1, 1) where all channels share one value.

    One value for all is several times faster in ONNX Runtime, which counts beside int8
    convolutions.
    """
    shared = values[:1] if len(set(values)) == 1 else values
    return torch.tensor(shared).view(1, -1, 1, 1)


class Backbone(nn.Module):
    """The first stages of MobileNetV2: (B, 3, H, W) -> (B, channels, H / stride, W / stride)."""

    def __init__(self, last: Stage = "layer4") -> None:
        super().__init__()
        features = mobilenet_v2(weights=None).features
        for name, (start, end) in zip(STAGES, pairwise((0, *_STAGE_ENDS)), strict=True):
            self.add_module(name, features[start:end])
            if name == last:
                break
        self.channels = STAGE_CHANNELS[last]
        self.stride = STAGE_STRIDES[last]

    def forward(self, images: Tensor) -> Tensor:
        """The feature map of the last stage."""
        for stage in self.children():
            images = stage(images)
        return images

    def load_features(self, state: dict[str, Tensor], source: str) -> None:
        """Takes the weights of torchvision's `features.*` names; a classifier is passed over.

        Raises:
            WeightsError: a tensor is missing or has another shape.
        """
        own = self.state_dict()
        taken = {}
        for name, tensor in own.items():
            # A slice of torchvision's `features` keeps the blocks' own numbers.
            key = f"features.{name.split('.', 1)[1]}"
            if key not in state:
                if key.endswith("num_batches_tracked"):
                    taken[name] = tensor
                    continue
                raise WeightsError(f"{source}: {key} is missing; MobileNetV2 features are needed")
            if state[key].shape != tensor.shape:
                raise WeightsError(
                    f"{source}: {key} has shape {tuple(state[key].shape)}, "
                    f"the model needs {tuple(tensor.shape)}"
                )
            taken[name] = state[key]
        self.load_state_dict(taken)


def load_base_weights(backbone: Backbone, weights: str) -> None:
    """Fills the backbone from a safetensors file, or from torchvision's weights by name.

    Raises:
        WeightsError: no such file or name, an unreadable file, or other names and shapes.
    """
    path = Path(weights)
    if path.suffix == ".safetensors" or path.exists():
        if not path.is_file():
            raise WeightsError(f"--weights {weights}: no such file")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"--weights {weights}: not a safetensors file: {error}") from None
        backbone.load_features(state, str(path))
        return
    if weights not in MobileNet_V2_Weights.__members__:
        names = ", ".join(MobileNet_V2_Weights.__members__)
        raise WeightsError(f"--weights {weights}: neither a file nor one of {names}")
    try:
        state = MobileNet_V2_Weights[weights].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise WeightsError(
            f"--weights {weights}: download failed ({error}); give a safetensors file instead"
        ) from None
    backbone.load_features(dict(state), weights)
