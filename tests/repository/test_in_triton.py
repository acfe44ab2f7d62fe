"""The genuine Triton over a repository as it is: it reads, keeps and follows what is written."""

import shutil

import pytest
from tritonclient import grpc

from tests.conftest import ROOT
from tests.repository.versions import ENCODER, HEAD, served
from tests.triton.triton_server import triton_home
from tilesight.repository import Repository
from tilesight.triton import Installation, TritonServer
from tilesight.triton_config import parse_config

__all__ = ["triton_home"]

pytestmark = pytest.mark.triton

KEPT = (
    "name",
    "backend",
    "version_policy",
    "max_batch_size",
    "input",
    "output",
    "parameters",
    "model_warmup",
)


def ready(client: grpc.InferenceServerClient, name: str) -> list[int]:
    """The versions of the model that Triton answers with."""
    return [version for version in (1, 2) if client.is_model_ready(name, str(version))]


def test_triton_follows_promotions(triton_home: Installation, repository: Repository) -> None:
    repository.promote({"signa": 1, HEAD: 1})
    repository.configure(instances=2, max_queue_size=17)
    with (
        TritonServer(repository.root, models=["signa", ENCODER, HEAD]) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        for name in ("signa", ENCODER, HEAD):
            assert ready(client, name) == [1]
            loaded = client.get_model_config(name).config
            written = parse_config(repository.config_path(name).read_text(encoding="utf-8"))
            for field in KEPT:
                assert getattr(loaded, field) == getattr(written, field), field
            # Triton adds what it means by itself: a full batch is worth no more waiting.
            written.dynamic_batching.preferred_batch_size.append(written.max_batch_size)
            assert loaded.dynamic_batching == written.dynamic_batching
            assert sum(group.count for group in loaded.instance_group) == 2
        repository.promote({HEAD: 2, "signa": 2})
        for name in (ENCODER, HEAD, "signa"):
            client.load_model(name)
            assert ready(client, name) == [2]
        repository.rollback([ENCODER, "signa"])
        for name in (ENCODER, HEAD, "signa"):
            client.load_model(name)
            assert ready(client, name) == [1]
    assert served(repository) == {"signa": 1, ENCODER: 1, HEAD: 1, "jtts": 2}


def test_triton_loads_the_committed_models_with_their_warm_up(
    triton_home: Installation, repository: Repository
) -> None:
    """Through links, with configurations of their own: the committed files are not touched."""
    committed = Repository(ROOT / "model_repository")
    for name in committed.models():
        version = committed.current(name)
        for old in repository.versions(name):
            shutil.rmtree(repository.folder(name, old))
        repository.folder(name, version).symlink_to(committed.folder(name, version).resolve())
    repository.promote({name: committed.current(name) for name in committed.models()})
    with (
        TritonServer(repository.root) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        for name in committed.models():
            assert client.is_model_ready(name)
            (stats,) = client.get_inference_statistics(name).model_stats
            assert stats.execution_count == 1, "the warm-up ran, and nothing else"
