"""What a tagger costs when it is used: weights, multiply-adds and milliseconds a tile."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training.config import SignaRun
from training.models.label_graph import LabelGraph
from training.models.signa import Signa

_ROUNDS = 15
_LABELS = 17


@dataclass(frozen=True)
class Cost:
    """Of one tile, the label branch folded into constants as an export has it."""

    parameters: int
    macs: int
    ms: float  # the median of rounds in which all that are compared take turns


def costs(configs: Mapping[str, SignaRun], labels: int = _LABELS) -> dict[str, Cost]:
    """The cost of each configuration's network on this machine, one tile at a time, on the CPU.

    Parameters are those that an export keeps. Multiply-adds are half of the operations that torch
    counts in convolutions and products. Times are only to be compared with those beside them.
    """
    networks = {name: _folded(config, labels) for name, config in configs.items()}
    tiles = {
        name: torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
        for name, config in configs.items()
    }
    ms = _timed(networks, tiles)
    return {
        name: Cost(_parameters(network), _macs(network, tiles[name]), ms[name])
        for name, network in networks.items()
    }


def _folded(config: SignaRun, labels: int) -> Signa:
    # The cost does not depend on the edges: what they change is folded.
    graph = LabelGraph(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0))
    network = Signa(labels, graph, config.architecture).eval()
    network.fold()
    return network


def _parameters(network: Signa) -> int:
    """The weights that are left when the label branch is a constant, the constant with them."""
    names = (".branches.", ".vectors.")
    kept = sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not any(part in f".{name}" for part in names)
    )
    constant = getattr(network.attention, "constant", None)
    return kept + (constant.numel() if constant is not None else 0)


@torch.no_grad()
def _macs(network: Signa, tile: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(tile)
    return counter.get_total_flops() // 2


@torch.no_grad()
def _timed(networks: Mapping[str, Signa], tiles: Mapping[str, Tensor]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(_ROUNDS + 2):
        for name, network in networks.items():
            begin = time.perf_counter()
            network(tiles[name])
            seconds[name].append(time.perf_counter() - begin)
    # The first two rounds warm up.
    return {name: 1e3 * float(np.median(found[2:])) for name, found in seconds.items()}
