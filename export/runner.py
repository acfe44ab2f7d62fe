"""Whatever computes a graph: torch, ONNX Runtime, TorchScript, a server; all asked alike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Outputs = dict[str, NDArray[Any]]


class Runner(ABC):
    """A form of a graph that can be run."""

    @abstractmethod
    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The outputs by name for one batch."""

    def run_in_batches(self, size: int, **inputs: NDArray[Any]) -> Outputs:
        """The outputs of all rows, `size` at a time."""
        count = len(next(iter(inputs.values())))
        parts = [
            self.run(**{name: rows[start : start + size] for name, rows in inputs.items()})
            for start in range(0, count, size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class TorchRunner(Runner):
    """A torch module as it was trained, without any export: what every form is held against."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._module = module.eval()
        self._inputs, self._outputs = inputs, outputs

    @torch.inference_mode()
    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The outputs by name for one batch."""
        found = self._module(*(torch.tensor(inputs[name]) for name in self._inputs))
        return {name: values.numpy() for name, values in zip(self._outputs, found, strict=True)}
