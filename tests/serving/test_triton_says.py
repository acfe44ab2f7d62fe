"""What Triton says, and what the gateway makes of it; the server itself is asked in test_triton."""

from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as config
from tritonclient.utils import InferenceServerException

from serving import problems
from serving.repository import Bundle, open_served
from serving.triton_failures import failure, refusal
from serving.triton_models import difference
from tests.serving.gateway import settings_for
from tilesight.errors import BundleError, ConfigError
from tilesight.repository import Repository
from tilesight.triton_config import parse_config


@pytest.fixture
def caption(shared_repository: Path) -> Bundle[Any]:
    return open_served(settings_for(shared_repository)).caption


@pytest.fixture
def generated(shared_repository: Path) -> config.ModelConfig:
    return parse_config(Repository(shared_repository).config_text("jtts"))


def error(status: str, message: str) -> InferenceServerException:
    return InferenceServerException(message, f"StatusCode.{status}")


def test_the_generated_configuration_is_what_the_manifest_says(
    caption: Bundle[Any], generated: config.ModelConfig
) -> None:
    assert difference(caption, generated) is None


def test_another_graph(caption: Bundle[Any], generated: config.ModelConfig) -> None:
    generated.parameters["sha256.1"].string_value = "0" * 64
    expected = caption.manifest.files["model.onnx"]
    assert f"sha256.1 is {'0' * 64}, the manifest says {expected}" in str(
        difference(caption, generated)
    )


def test_a_graph_that_nobody_hashed(caption: Bundle[Any], generated: config.ModelConfig) -> None:
    del generated.parameters["sha256.1"]
    assert "sha256.1 is missing" in str(difference(caption, generated))


@pytest.mark.parametrize(
    ("side", "field", "value"),
    [
        ("input", "name", "pixels"),
        ("input", "data_type", config.TYPE_FP32),
        ("output", "name", "words"),
        ("output", "data_type", config.TYPE_INT32),
    ],
)
def test_other_tensors(
    caption: Bundle[Any], generated: config.ModelConfig, side: str, field: str, value: object
) -> None:
    setattr(getattr(generated, side)[0], field, value)
    assert f"Triton's configuration of jtts: {side}: " in str(difference(caption, generated))


def test_another_size(caption: Bundle[Any], generated: config.ModelConfig) -> None:
    generated.output[0].dims[-1] = 7
    assert "output: " in str(difference(caption, generated))


def test_no_batches(caption: Bundle[Any], generated: config.ModelConfig) -> None:
    generated.max_batch_size = 0
    assert "max_batch_size is 0" in str(difference(caption, generated))


@pytest.mark.parametrize(
    ("status", "message", "slug"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", "backend-unavailable"),
        ("UNAVAILABLE", "Stream removed (Connection reset by peer)", "backend-unavailable"),
        ("UNAVAILABLE", "version 1 is not at ready state", "backend-unavailable"),
        ("NOT_FOUND", "Request for unknown model: 'signa'", "backend-unavailable"),
        ("INTERNAL", "Stub process 'signa_0' is not healthy.", "backend-unavailable"),
        ("UNAVAILABLE", "[request id: x] Exceeds maximum queue size", "overloaded"),
        ("UNAVAILABLE", "Request timeout expired", "deadline-exceeded"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "deadline-exceeded"),
        ("INVALID_ARGUMENT", "batch-size must be <= 32", "internal-error"),
        ("INTERNAL", "ONNX Runtime: no memory", "internal-error"),
    ],
)
def test_a_failed_request(status: str, message: str, slug: str) -> None:
    assert problems.kind_of(failure(error(status, message))).slug == slug


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", ConfigError),
        ("UNAVAILABLE", "explicit model load / unload is not allowed", ConfigError),
        ("INVALID_ARGUMENT", "load failed for model 'jtts'", BundleError),
        ("INTERNAL", "failed to load", BundleError),
    ],
)
def test_a_model_that_is_not_loaded(
    caption: Bundle[Any], status: str, message: str, kind: type[Exception]
) -> None:
    assert isinstance(refusal(caption, error(status, message)), kind)
