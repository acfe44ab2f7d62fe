"""CNN backbones cut into four stages, so that a module can be plugged in after any of them.

MobileNetV2 (Sandler et al., CVPR 2018), ResNet-18 and ResNet-50 (He et al., CVPR 2016) and VGG16
(Simonyan & Zisserman, ICLR 2015), as torchvision implements them. VGG16 has five blocks: the first
two are stage `layer1`, so that `layer1` to `layer4` have the strides 4, 8, 16 and 32 everywhere.

The MobileNetV2 weights of the project's data folder were trained on inputs of pixels / 127.5 - 1
(normalisation `half`); torchvision's own expect the ImageNet statistics (normalisation `imagenet`).
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from tilesight.errors import WeightsError

Architecture = Literal["mobilenet_v2", "resnet18", "resnet50", "vgg16"]
Stage = Literal["layer1", "layer2", "layer3", "layer4"]
Normalization = Literal["half", "imagenet"]

ARCHITECTURES: tuple[Architecture, ...] = ("mobilenet_v2", "resnet18", "resnet50", "vgg16")
STAGES: tuple[Stage, ...] = ("layer1", "layer2", "layer3", "layer4")
STAGE_STRIDES: dict[Stage, int] = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
_CHANNELS: dict[Architecture, tuple[int, int, int, int]] = {
    "mobilenet_v2": (24, 32, 96, 1280),
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "vgg16": (128, 256, 512, 512),
}
# The modules of torchvision's `features` at which the stages end.
_FEATURE_ENDS = {"mobilenet_v2": (4, 7, 14, 19), "vgg16": (10, 17, 24, 31)}
_STEM = ("conv1", "bn1", "relu", "maxpool")

_STATISTICS: dict[Normalization, tuple[list[float], list[float]]] = {
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


def stage_channels(architecture: Architecture, stage: Stage) -> int:
    """The channels of a stage's features."""
    return _CHANNELS[architecture][STAGES.index(stage)]


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
    """The first stages of a CNN: (B, 3, H, W) -> (B, channels, H / stride, W / stride)."""

    def __init__(self, last: Stage = "layer4", architecture: Architecture = "mobilenet_v2") -> None:
        super().__init__()
        self.architecture: Architecture = architecture
        for name, stage in zip(STAGES, _stages(architecture), strict=True):
            self.add_module(name, stage)
            if name == last:
                break
        self.channels = stage_channels(architecture, last)
        self.stride = STAGE_STRIDES[last]

    def forward(self, images: Tensor) -> Tensor:
        """The feature map of the last stage."""
        for stage in self.children():
            images = stage(images)
        return images

    def load_features(self, state: Mapping[str, Tensor], source: str) -> None:
        """Takes the weights of torchvision's names; a classifier is passed over.

        Raises:
            WeightsError: a tensor is missing or has another shape.
        """
        prefix = "features." if self.architecture in _FEATURE_ENDS else ""
        taken = {}
        for name, tensor in self.state_dict().items():
            # The modules of a stage keep torchvision's own names.
            key = prefix + name.split(".", 1)[1]
            if key not in state:
                if key.endswith("num_batches_tracked"):
                    taken[name] = tensor
                    continue
                raise WeightsError(
                    f"{source}: {key} is missing; weights of {self.architecture} are needed"
                )
            if state[key].shape != tensor.shape:
                raise WeightsError(
                    f"{source}: {key} has shape {tuple(state[key].shape)}, "
                    f"the model needs {tuple(tensor.shape)}"
                )
            taken[name] = state[key]
        self.load_state_dict(taken)


def _stages(architecture: Architecture) -> list[nn.Sequential]:
    """Torchvision's network in four parts, each with the names that its modules have there."""
    network = get_model(architecture, weights=None)
    if architecture in _FEATURE_ENDS:
        ends = (0, *_FEATURE_ENDS[architecture])
        return [network.features[start:end] for start, end in pairwise(ends)]
    parts = [(*_STEM, "layer1"), ("layer2",), ("layer3",), ("layer4",)]
    return [
        nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names))
        for names in parts
    ]


def weight_names(architecture: Architecture) -> list[str]:
    """The names under which torchvision has the network's weights, with ImageNet's statistics."""
    return [name for name in get_model_weights(architecture).__members__ if name[-2] == "V"]


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
    names = weight_names(backbone.architecture)
    if weights not in names:
        raise WeightsError(f"--weights {weights}: neither a file nor one of {', '.join(names)}")
    entry = get_model_weights(backbone.architecture)[weights]
    try:
        state = dict(entry.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise WeightsError(
            f"--weights {weights}: download failed ({error}); give a safetensors file instead"
        ) from None
    backbone.load_features(state, weights)
