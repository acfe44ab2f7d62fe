"""Triton in the production files: every flag is one that it knows, and the doors are shut."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tests.conftest import ROOT
from tests.deploy.test_compose import merged
from tests.triton.triton_server import ask, quick
from tilesight.triton import Installation

FOLDER = ROOT / "deploy"
KEY = "the-key-of-this-test"
HEADER = {"triton-grpc-protocol-admin-key": KEY}
# In the image's release, and not yet in the wheel's, which is two years older.
NEWER_THAN_THE_WHEEL = {"--allow-client-shm", "--grpc-max-response-pool-size"}
# What this machine decides: where the models lie, and the door by which a test sees readiness.
OURS = {"--model-repository", "--model-control-mode", "--allow-http", "--exit-timeout-secs"}


def services() -> dict[str, Any]:
    return merged(["compose.yaml", "compose.triton.yaml"])["services"]


def flags() -> list[str]:
    """Triton's flags with the key in its place, as compose fills it in."""
    command = services()["triton"]["command"]
    assert command[0] == "tritonserver"
    return [re.sub(r"\$\{TILESIGHT_TRITON_KEY:\?[^}]*\}", KEY, flag) for flag in command[1:]]


def name_of(flag: str) -> str:
    return flag.partition("=")[0]


def test_the_image_is_pinned_and_its_registry_is_the_operators() -> None:
    image = services()["triton"]["image"]
    assert re.fullmatch(r"\$\{TRITON_REGISTRY:\?[^}]+\}/nvidia/tritonserver:26\.07-py3", image)


def test_only_the_gateway_and_prometheus_reach_triton() -> None:
    document = merged(["compose.yaml", "compose.triton.yaml"])
    server = document["services"]["triton"]
    assert "ports" not in server
    assert server["networks"] == ["inside"]
    assert document["networks"]["inside"] == {"internal": True}
    assert server["user"] == "1000:1000"


def test_triton_and_the_gateway_read_the_same_folder() -> None:
    folders = {
        service: [
            volume for volume in services()[service]["volumes"] if "model_repository" in volume
        ]
        for service in ("triton", "gateway")
    }
    sources = {volume.split(":")[0] for found in folders.values() for volume in found}
    assert {(FOLDER / source).resolve() for source in sources} == {ROOT / "model_repository"}
    assert all(volume.endswith(":ro") for found in folders.values() for volume in found)


@pytest.mark.triton
def test_triton_knows_every_flag(triton_home: Installation) -> None:
    answer = subprocess.run(
        [triton_home.binary, "--help"],
        env=triton_home.environment(),
        capture_output=True,
        text=True,
    )
    known = set(re.findall(r"^\s+(--[a-z-]+)", answer.stdout + answer.stderr, re.MULTILINE))
    assert {name_of(flag) for flag in flags()} - known == NEWER_THAN_THE_WHEEL


@pytest.mark.triton
@pytest.mark.usefixtures("triton_home")
def test_with_these_flags_only_the_key_loads_and_anyone_infers(tiny_repository: Path) -> None:
    options = [f for f in flags() if name_of(f) not in NEWER_THAN_THE_WHEEL | OURS]
    tile = np.zeros((1, 224, 224, 3), np.uint8)
    with (
        quick(tiny_repository, models=[], options=options) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        with pytest.raises(InferenceServerException, match="protocol is restricted"):
            client.load_model("signa")
        client.load_model("signa", headers=HEADER)
        assert ask(server.grpc_url, "signa", {"tiles": tile}, ["scores"])["scores"].shape == (1, 4)
        for refused in (
            client.get_model_repository_index,
            client.get_trace_settings,
            client.get_log_settings,
            client.get_system_shared_memory_status,
            client.get_inference_statistics,
        ):
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                refused()
