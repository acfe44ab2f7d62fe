"""What every peer does alike: its options, the tile's pixels, the answer.

A peer is a script that runs in an environment without Tilesight: it does by hand, in the few lines
that an engineer would write, what the gateway does with more care.
"""

import json
import os
from io import BytesIO

import numpy as np
import onnxruntime as ort
from PIL import Image

OPTIONS = json.loads(os.environ["PEER_OPTIONS"])
"""model (path), labels, height, width, port, and the settings of the peer."""


def pixels(tile: bytes) -> np.ndarray:
    """(height, width, 3) uint8, as the models were trained on them."""
    image = Image.open(BytesIO(tile)).convert("RGB")
    size = (OPTIONS["width"], OPTIONS["height"])
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def answer(scores: np.ndarray) -> dict:
    """The labels of one tile, best first; `scores` (L,)."""
    order = np.argsort(-scores)
    return {
        "labels": [
            {
                "name": OPTIONS["labels"][index],
                "score": float(scores[index]),
                "present": bool(scores[index] >= 0.5),
            }
            for index in order
        ]
    }


def onnx_session(threads: int) -> ort.InferenceSession:
    """The graph, with this many threads a run that sleep while there is nothing to do."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(OPTIONS["model"], options, providers=["CPUExecutionProvider"])


def scores(session: ort.InferenceSession, tiles: np.ndarray) -> np.ndarray:
    """(N, L) for (N, height, width, 3) tiles; the evidence is not computed for nothing."""
    return session.run(["scores"], {"tiles": tiles})[0]
