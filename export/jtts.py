"""JTTS as one graph, the whole beam search inside."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.certificate import Decision, decision, difference
from export.graphs import JttsGraph
from export.onnx_file import Session, Source
from export.part import Part, Plan, Proof
from tilesight.manifest import CaptionHead
from training.config import JttsRun
from training.models.jtts import BeamSearch
from training.tasks import jtts
from training.tasks.base import EVALUATION_BATCH, batches

NAME = "jtts"
OUTPUTS = ("tokens", "log_probs", "attributes", "sampled")


def plan(run: Path, config: JttsRun, data: Path) -> Plan:
    """The graph of a JTTS run, proved on the test tiles with every beam width."""
    card, network = jtts.load(run, config)
    network = network.cpu()
    examples = jtts.read_part(data, "test", config.image_size)
    most = config.architecture.max_beams
    default = min(jtts.DEFAULT_BEAMS, most)
    widths = sorted({1, default, most})
    example = torch.tensor([[1], [most]])
    part = Part(
        name=NAME,
        title="JTTS: a sentence about a tile",
        source=Source(
            JttsGraph(network),
            (torch.from_numpy(examples.tiles[:2]), example),
            ("tiles", "beams"),
            OUTPUTS,
        ),
        head=CaptionHead(
            vocabulary=card.vocabulary,
            attributes=card.attributes,
            max_length=config.architecture.max_length,
            max_beams=most,
            default_beams=default,
        ),
        reads_tile=True,
    )

    def prove(files: dict[str, Path]) -> dict[str, Proof]:
        session = Session(files[NAME])
        decisions: dict[str, Decision] = {}
        for width in widths:
            beams = np.full((len(examples.tiles), 1), width, dtype=np.int64)
            expected = _torch_outputs(network, examples.tiles, width)
            found = session.run_in_batches(EVALUATION_BATCH, tiles=examples.tiles, beams=beams)
            key = f"captions, beams {width}"
            decisions[key] = _sentences(expected["tokens"], found["tokens"], width)
            if width == default:
                differences = {
                    name: difference(expected[name], found[name], examples.stems)
                    for name in ("log_probs", "attributes")
                }
                sampled = decision(expected["sampled"], found["sampled"])
                torch_metrics, onnx_metrics = (
                    jtts.measure(examples, jtts.sentences_of(outputs["tokens"][:, 0], card)).values
                    for outputs in (expected, found)
                )
        return {
            NAME: Proof(
                differences, {**decisions, "attributes": sampled}, torch_metrics, onnx_metrics
            )
        }

    return Plan([part], len(examples.stems), prove)


@torch.no_grad()
def _torch_outputs(
    network: Any,  # noqa: ANN401 (torch's modules are untyped)
    tiles: NDArray[np.uint8],
    width: int,
) -> dict[str, NDArray[Any]]:
    search = BeamSearch(network)
    parts = [
        search(batch, torch.full((len(batch), 1), width, dtype=torch.int64))
        for batch in batches(tiles)
    ]
    return {
        name: np.concatenate([part[index].numpy() for part in parts])
        for index, name in enumerate(OUTPUTS)
    }


def _sentences(expected: NDArray[Any], found: NDArray[Any], width: int) -> Decision:
    """Whole sentences compared token for token, all that the width offers: (N, K, T)."""
    return decision(
        np.zeros(expected[:, :width, 0].shape, dtype=bool),
        (expected[:, :width] != found[:, :width]).any(axis=2),
    )
