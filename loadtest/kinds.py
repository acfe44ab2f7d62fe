"""Who is compared, and the settings among which the best of each is looked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilesight.cores import usable_cores

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """One of the servers, and the settings among which its best is looked for."""

    name: str
    title: str
    settings: Sequence[Setting] = field(default_factory=lambda: [{}])  # the first is the guess
    script: str | None = None  # of a peer
    own_python: bool = False  # a peer that runs in this environment
    exact: bool = False  # answers what the float32 graph does, whatever the others are given
    runtime: str = "embedded"  # of a gateway
    environment: Mapping[str, str] = field(default_factory=dict)  # of a gateway
    tolerance: float = 1e-3  # of a score
    optional: bool = False  # only where it is asked for


_THREADS = {"threads": 1, "slots": None, "workers": 1}

KINDS = (
    Kind("gateway", "this gateway"),
    Kind(
        "fastapi_torch",
        "FastAPI + torch eager",
        [
            _THREADS | {"folded": True},
            _THREADS | {"folded": True, "slots": 2},
            _THREADS | {"folded": True, "workers": 2},
            _THREADS | {"folded": True, "threads": 2},
            _THREADS | {"folded": False, "threads": 2},  # nothing thought of
        ],
        script="fastapi_torch.py",
        own_python=True,
        exact=True,
    ),
    Kind(
        "fastapi_onnxruntime",
        "FastAPI + ONNX Runtime",
        [_THREADS, _THREADS | {"slots": 2}, _THREADS | {"threads": 2}, _THREADS | {"workers": 2}],
        script="fastapi_onnxruntime.py",
    ),
    Kind(
        "litserve",
        "LitServe",
        [
            {"workers": workers, "api_servers": servers, "batch": batch, "delay_s": delay,
             "threads": threads, "fast_queue": fast}
            for workers, servers, batch, delay, threads, fast in [
                (2, 2, 1, 0, 1, True),
                (2, 1, 1, 0, 1, True),
                (2, 1, 1, 0, 1, False),
                (2, 1, 4, 0.005, 1, True),
                (1, 1, 8, 0.01, 2, True),
            ]
        ],
        script="litserve_onnxruntime.py",
    ),
    Kind(
        "bentoml",
        "BentoML",
        [
            {"workers": workers, "slots": slots, "threads": threads, "batch": batch,
             "delay_ms": 1000}
            for workers, slots, threads, batch in [
                (1, 2, 1, 0),
                (2, 1, 1, 0),
                (1, 2, 1, 8),
            ]
        ],
        script="bentoml_onnxruntime.py",
    ),
    Kind(
        "gateway_processes",
        "this gateway, a process a core",
        environment={"TILESIGHT_WORKERS": str(usable_cores())},
        optional=True,
    ),
    Kind(
        "gateway_single_rows",
        "this gateway without batches",
        environment={"TILESIGHT_MAX_BATCH": "1"},
        optional=True,
    ),
    Kind("gateway_triton", "this gateway over Triton", runtime="triton"),
    # bfloat16 or int8, whatever passed the gates of the export. Its golden answer and that of the
    # graph the others run may each be 0.05 from torch's, on either side.
    Kind(
        "gateway_openvino",
        "this gateway with OpenVINO",
        runtime="openvino",
        tolerance=1e-1,
        optional=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What all servers are given."""

    model: str
    repository: Path
    folder: Path  # of the served version
    graph: Path
    exact_graph: Path  # in float32, which torch computes in
    labels: Sequence[str]
    height: int
    width: int
    run: Path | None  # of the training, for torch
    peers_python: Path | None
    logs: Path
