"""The report of a SIGNA run: figures, classes, confusions, the label graph and heat maps."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training import run, thresholds
from training.attention_use import attention_use
from training.config import SignaRun
from training.datasets.multilabel import MultiLabelSet, open_set
from training.models.layercam import layer_cam
from training.models.signa import Signa
from training.reports import HeatMaps, LabelEvaluation, write_label_report
from training.tasks import signa
from training.tasks.base import Measurement, batches

_SHOWN_TILES, _SHOWN_LABELS = 5, 3


def write_report(folder: Path, config: SignaRun, data: Path, out: Path) -> Measurement:
    """The figures of the test part; the report of the run is in `out` when it returns.

    Raises:
        DataError: the data folder lacks images or annotations.
        RunError: the run folder is incomplete.
    """
    card, network = signa.load(folder, config)
    _, made_of = run.read_run(folder)
    tagged = open_set(config.dataset, data)
    val, test = (
        signa.read_part(data, part, config.image_size, config.dataset) for part in ("val", "test")
    )
    scores = signa.predict(network, test.tiles)
    chosen = thresholds.read(folder, card.labels)
    measurement = signa.measure(test, scores, tagged, chosen)
    write_label_report(
        LabelEvaluation(
            model=config.architecture.method,
            labels=card.labels,
            train_truth=tagged.matrix(tagged.present(tagged.part_stems("train"))),
            val_truth=val.truth,
            val_scores=signa.predict(network, val.tiles),
            test_truth=test.truth,
            test_scores=scores,
            test_stems=test.stems,
            split=made_of["split"],
            split_sha256=made_of["split_sha256"]["test"],
            seed=config.seed,
            commit=made_of["commit"],
            edge_threshold=config.architecture.label_threshold,
            floors=measurement.floors,
            notes={"Exported thresholds": chosen.reason},
            tuned=chosen.of(card.labels),
            features=_features(network, test.tiles),
            scenes=signa.scenes_of(tagged, test.stems),
            heat_maps=_heat_maps(network, passed_on(tagged, test), card.labels),
            attention=attention_use(network, val.tiles, test.tiles, test.truth),
        ),
        out,
    )
    return measurement


@torch.no_grad()
def _features(network: Signa, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, D) what the classifier reads."""
    device = next(network.parameters()).device
    return np.concatenate(
        [
            network.pooled(network.features(batch.to(device))).cpu().numpy()
            for batch in batches(tiles)
        ]
    )


def passed_on(tagged: MultiLabelSet, part: signa.SignaPart) -> signa.SignaPart:
    """The tiles that may be passed on with a report; all of them where the set has none such."""
    rows = np.flatnonzero([tagged.public_domain(stem) for stem in part.stems])
    if not len(rows):
        return part
    return signa.SignaPart([part.stems[row] for row in rows], part.tiles[rows], part.truth[rows])


def _heat_maps(network: Signa, part: signa.SignaPart, labels: list[str]) -> HeatMaps | None:
    """Tiles from all over the part, with the maps of the rarest labels that each of them has.

    At the third stage: its grid is twice as fine as the last one's. None where no tile has as many
    labels as are shown.
    """
    rich = np.flatnonzero(part.truth.sum(axis=1) >= _SHOWN_LABELS)
    if not len(rich):
        return None
    rows = rich[np.linspace(0, len(rich) - 1, min(_SHOWN_TILES, len(rich))).astype(int)]
    rarest = np.argsort(part.truth.sum(axis=0), kind="stable")
    columns = np.array([rarest[part.truth[row, rarest] > 0][:_SHOWN_LABELS] for row in rows])
    device = next(network.parameters()).device
    tiles = torch.from_numpy(part.tiles[rows]).to(device)
    layer = network.backbone.get_submodule("layer3")
    of_label = {
        int(column): layer_cam(network, layer, tiles, int(column)).cpu().numpy()
        for column in np.unique(columns)
    }
    return HeatMaps(
        [part.stems[row] for row in rows],
        part.tiles[rows],
        [[labels[column] for column in of_tile] for of_tile in columns],
        np.array([[of_label[c][k] for c in of_tile] for k, of_tile in enumerate(columns)]),
    )
