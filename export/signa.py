"""SIGNA as one graph."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from export.certificate import Decision, Difference, decision, difference
from export.graphs import SignaGraph
from export.onnx_file import Source
from export.part import Part, Plan, Shown, Which, evenly
from export.runner import Outputs, Runner
from tilesight.manifest import LabelsHead
from training import thresholds
from training.config import SignaRun
from training.label_figures import all_figures
from training.tasks import signa
from training.tasks.base import EVALUATION_BATCH

NAME = "signa"


class SignaPart(Part):
    """Tiles -> scores and evidence."""

    name = NAME
    title = "SIGNA: land-cover labels of a tile"
    reads_tile = True
    task_metric = "f1_samples"

    def __init__(self, run: Path, config: SignaRun, data: Path) -> None:
        """The graph of a run; reads its weights and all tiles of the split."""
        card, network = signa.load(run, config)
        self._tiles = {
            which: signa.read_part(data, which, config.image_size, config.dataset)
            for which in ("val", "test")
        }
        self._data, self._config = data, config
        self.source = Source(
            SignaGraph(network.cpu()),
            (torch.from_numpy(self._tiles["test"].tiles[:2]),),
            ("tiles",),
            ("scores", "evidence"),
        )
        self._labels = card.labels
        self._thresholds = thresholds.read(run, card.labels).served(card.labels)
        self.head = LabelsHead(labels=card.labels, thresholds=self._thresholds.tolist())

    @cached_property
    def _training_tiles(self) -> NDArray[Any]:
        config = self._config
        return signa.read_part(self._data, "train", config.image_size, config.dataset).tiles

    def outputs(self, form: Runner, which: Which) -> Outputs:
        """Scores and evidence of each tile."""
        return form.run_in_batches(EVALUATION_BATCH, tiles=self._tiles[which].tiles)

    def compare(
        self, expected: Outputs, found: Outputs, limit: float | None
    ) -> tuple[dict[str, Difference], dict[str, Decision]]:
        """Scores, evidence, and whether each label of each tile is present."""
        stems = self._tiles["test"].stems
        present = (scores["scores"] >= self._thresholds for scores in (expected, found))
        return (
            {
                name: difference(expected[name], found[name], stems, limit)
                for name in ("scores", "evidence")
            },
            {"labels": decision(*present)},
        )

    def measure(self, outputs: Outputs, which: Which) -> dict[str, float]:
        """All label figures at the thresholds that are served."""
        truth = self._tiles[which].truth
        return all_figures(truth, outputs["scores"], self._thresholds)

    def feeds(self, rows: int) -> dict[str, NDArray[Any]]:
        """Training tiles from all over the split."""
        return {"tiles": evenly(self._training_tiles, rows)}

    @property
    def shown(self) -> Shown:
        """The scores."""
        return Shown("scores", self._labels, self._tiles["test"].stems)


def plan(run: Path, config: SignaRun, data: Path) -> Plan:
    """The graph of a SIGNA run."""
    part = SignaPart(run, config, data)
    return Plan([part], len(part.shown.tiles))
