"""JTTS as one graph, the whole beam search inside."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.certificate import Decision, Difference, decision, difference
from export.graphs import JttsGraph
from export.onnx_file import Source
from export.part import Part, Plan, Shown, Which, evenly
from export.runner import Outputs, Runner
from tilesight.manifest import CaptionHead
from training import metrics
from training.config import JttsRun
from training.models.jtts import BeamSearch
from training.tasks import jtts
from training.tasks.base import EVALUATION_BATCH

NAME = "jtts"
OUTPUTS = ("tokens", "log_probs", "attributes", "sampled")


class JttsPart(Part):
    """Tiles and beam widths -> sentences and attributes."""

    name = NAME
    title = "JTTS: a sentence about a tile"
    reads_tile = True
    task_metric = "cider"

    def __init__(self, run: Path, config: JttsRun, data: Path) -> None:
        """The graph of a run; reads its weights, and the tiles of validation and test."""
        self._card, network = jtts.load(run, config)
        network = network.cpu()
        self._data, self._size = data, config.image_size
        self._parts = {
            which: jtts.read_part(data, which, config.image_size) for which in ("val", "test")
        }
        most = config.architecture.max_beams
        self._default = min(jtts.DEFAULT_BEAMS, most)
        self._widths = sorted({1, self._default, most})
        self.source = Source(
            JttsGraph(network),
            (torch.from_numpy(self._parts["test"].tiles[:2]), torch.tensor([[1], [most]])),
            ("tiles", "beams"),
            OUTPUTS,
            eager=BeamSearch(network),
        )
        self.head = CaptionHead(
            vocabulary=self._card.vocabulary,
            attributes=self._card.attributes,
            max_length=config.architecture.max_length,
            max_beams=most,
            default_beams=self._default,
        )

    @property
    def shown(self) -> Shown:
        """The attributes."""
        return Shown("attributes", self._card.attributes, self._parts["test"].stems)

    def outputs(self, form: Runner, which: Which) -> Outputs:
        """What the form answers at its default width, and its tokens at the others."""
        tiles = self._parts[which].tiles
        found: Outputs = {}
        for width in self._widths if which == "test" else [self._default]:
            beams = np.full((len(tiles), 1), width, dtype=np.int64)
            answered = form.run_in_batches(EVALUATION_BATCH, tiles=tiles, beams=beams)
            found[_tokens(width)] = answered["tokens"]
            if width == self._default:
                found |= {name: answered[name] for name in OUTPUTS[1:]}
        return found

    def compare(
        self, expected: Outputs, found: Outputs, limit: float | None
    ) -> tuple[dict[str, Difference], dict[str, Decision]]:
        """Log probabilities and attributes; whole sentences at each width, sampled attributes."""
        stems = self._parts["test"].stems
        differences = {
            name: difference(expected[name], found[name], stems, limit)
            for name in ("log_probs", "attributes")
        }
        decisions = {
            f"captions, beams {width}": _sentences(
                expected[_tokens(width)], found[_tokens(width)], width
            )
            for width in self._widths
        }
        sampled = decision(expected["sampled"], found["sampled"])
        return differences, {**decisions, "attributes": sampled}

    def measure(self, outputs: Outputs, which: Which) -> dict[str, float]:
        """The caption metrics of the best sentences; METEOR, which is slow, of the test only."""
        part = self._parts[which]
        best = outputs[_tokens(self._default)][:, 0]
        spoken = dict(zip(part.stems, jtts.sentences_of(best, self._card), strict=True))
        return metrics.caption_metrics(part.captions, spoken, meteor=which == "test")

    def feeds(self, rows: int) -> dict[str, NDArray[Any]]:
        """Training tiles from all over the split, at the default width."""
        return {
            "tiles": evenly(self._training_tiles, rows),
            "beams": np.full((rows, 1), self._default, dtype=np.int64),
        }

    @cached_property
    def _training_tiles(self) -> NDArray[np.uint8]:
        return jtts.read_part(self._data, "train", self._size).tiles


def plan(run: Path, config: JttsRun, data: Path) -> Plan:
    """The graph of a JTTS run."""
    part = JttsPart(run, config, data)
    return Plan([part], len(part.shown.tiles))


def _tokens(width: int) -> str:
    return f"tokens, beams {width}"


def _sentences(expected: NDArray[Any], found: NDArray[Any], width: int) -> Decision:
    """Whole sentences compared token for token, all that the width offers: (N, K, T)."""
    return decision(
        np.zeros(expected[:, :width, 0].shape, dtype=bool),
        (expected[:, :width] != found[:, :width]).any(axis=2),
    )
