"""Tiny graphs with all that an export asks of a part, whose answers a test can reckon with."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.certificate import Decision, Difference, decision, difference
from export.onnx_file import Source
from export.part import Part, Shown, Which, evenly
from export.runner import Outputs, Runner
from tilesight.manifest import LabelsHead

LABELS = ["water", "trees", "sand"]
SIDE = 8
_TILES = 9  # in each part of the split


class Convolutions(nn.Module):
    """Two convolutions as a backbone has them, then a large product and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 16, 3), nn.ReLU6()
        )
        self.classifier = nn.Sequential(
            nn.Linear(16, 1024), nn.ReLU(), nn.Linear(1024, len(LABELS))
        )

    def forward(self, tiles: Tensor) -> Tensor:
        """(B, 8, 8, 3) uint8 -> (B, 3)."""
        features = self.features(tiles.permute(0, 3, 1, 2).float() / 64 - 2)
        return (4 * self.classifier(features.mean(dim=(2, 3)))).sigmoid()


class Products(nn.Module):
    """Matrix products and no convolution; the first two are worth int8."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(SIDE * SIDE * 3, 128)
        self.second = nn.Linear(128, 128, bias=False)
        self.small = nn.Linear(128, len(LABELS))

    def forward(self, tiles: Tensor) -> Tensor:
        """(B, 8, 8, 3) uint8 -> (B, 3)."""
        hidden = self.large(tiles.flatten(1).float() / 64 - 2).relu()
        return self.small(self.second(hidden)).sigmoid()


class Only(nn.Module):
    """A network with a single output, as a tuple of outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> tuple[Tensor]:
        """Tiles -> (scores,)."""
        return (self.network(tiles),)


class TinyPart(Part):
    """A tiny network; `closeness` is 1 where a form answers what torch does, and less elsewhere."""

    name = "tiny"
    title = "Tiny labels"
    reads_tile = True
    task_metric = "closeness"
    head = LabelsHead(labels=LABELS, thresholds=[0.5] * len(LABELS))

    def __init__(self, network: nn.Module, seed: int = 0) -> None:
        """A part whose weights and tiles are drawn from the seed."""
        torch.manual_seed(seed)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        random = np.random.default_rng(seed)
        self.tiles: dict[str, NDArray[np.uint8]] = {
            which: random.integers(0, 256, (_TILES, SIDE, SIDE, 3), dtype=np.uint8)
            for which in ("train", "val", "test")
        }
        self.asked: list[Which] = []
        self.served: Runner | None = None
        self.source = Source(
            Only(network), (torch.from_numpy(self.tiles["test"][:2]),), ("tiles",), ("scores",)
        )

    @property
    def shown(self) -> Shown:
        """The scores."""
        return Shown("scores", LABELS, self._stems)

    @property
    def _stems(self) -> list[str]:
        return [f"tile{index}" for index in range(_TILES)]

    def outputs(self, form: Runner, which: Which) -> Outputs:
        """The scores."""
        self.asked.append(which)
        return form.run_in_batches(4, tiles=self.tiles[which])

    def compare(
        self, expected: Outputs, found: Outputs, limit: float | None
    ) -> tuple[dict[str, Difference], dict[str, Decision]]:
        """Scores, and whether each label is present."""
        return (
            {"scores": difference(expected["scores"], found["scores"], self._stems, limit)},
            {"labels": decision(expected["scores"] >= 0.5, found["scores"] >= 0.5)},
        )

    def measure(self, outputs: Outputs, which: Which) -> dict[str, float]:
        """How near the scores are to torch's."""
        own = self.source.torch.run(tiles=self.tiles[which])["scores"]
        return {"closeness": 1.0 - float(np.abs(own - outputs["scores"]).mean())}

    def feeds(self, rows: int) -> dict[str, NDArray[Any]]:
        """Training tiles."""
        return {"tiles": evenly(self.tiles["train"], rows)}

    def served_by(self, form: Runner) -> None:
        """Notes the form."""
        self.served = form
