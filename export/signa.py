"""SIGNA as one graph."""

from pathlib import Path

import numpy as np
import torch

from export.certificate import decision, difference
from export.graphs import SignaGraph
from export.onnx_file import Session, Source
from export.part import Part, Plan, Proof
from tilesight.manifest import LabelsHead
from training.config import SignaRun
from training.tasks import signa
from training.tasks.base import EVALUATION_BATCH, batches

NAME = "signa"


def plan(run: Path, config: SignaRun, data: Path) -> Plan:
    """The graph of a SIGNA run, proved on the test tiles."""
    card, network = signa.load(run, config)
    network = network.cpu()
    examples = signa.read_part(data, "test", config.image_size)
    expected = signa.predict(network, examples.tiles)
    graph = SignaGraph(network)
    part = Part(
        name=NAME,
        title="SIGNA: land-cover labels of a tile",
        source=Source(
            graph, (torch.from_numpy(examples.tiles[:2]),), ("tiles",), ("scores", "evidence")
        ),
        head=LabelsHead(labels=card.labels, thresholds=[0.5] * len(card.labels)),
        reads_tile=True,
    )

    def prove(files: dict[str, Path]) -> dict[str, Proof]:
        outputs = Session(files[NAME]).run_in_batches(EVALUATION_BATCH, tiles=examples.tiles)
        with torch.no_grad():
            evidence = np.concatenate([graph(tiles)[1] for tiles in batches(examples.tiles)])
        found = outputs["scores"]
        return {
            NAME: Proof(
                differences={
                    "scores": difference(expected, found, examples.stems),
                    "evidence": difference(evidence, outputs["evidence"], examples.stems),
                },
                decisions={"labels": decision(expected >= 0.5, found >= 0.5)},
                torch_metrics=signa.figures(examples, expected),
                onnx_metrics=signa.figures(examples, found),
            )
        }

    return Plan([part], len(examples.stems), prove)
