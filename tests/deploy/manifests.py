"""The Kubernetes manifests: as they are written, and as kustomize puts them together."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
BASE = "base"
PRODUCTION = "overlays/production"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())

Manifest = Mapping[str, Any]


def written() -> Iterator[tuple[Path, Manifest]]:
    """Each resource of the base with its file."""
    for path in sorted((FOLDER / BASE).glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield path, yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def built(folder: str, *components: str) -> tuple[Manifest, ...]:
    """What `kubectl kustomize` makes of the folder, with more components after its own."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("no kubectl, which puts the manifests together")
    with TemporaryDirectory() as copy:
        root = Path(copy) / "kubernetes"
        shutil.copytree(FOLDER, root)
        path = root / folder / "kustomization.yaml"
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        up = "../" * len(Path(folder).parts)
        document.setdefault("components", []).extend(f"{up}components/{n}" for n in components)
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        done = subprocess.run(
            [kubectl, "kustomize", str(path.parent)], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tuple(yaml.safe_load_all(done.stdout))


def one(manifests: tuple[Manifest, ...], kind: str) -> dict[str, Any]:
    """The only resource of the kind."""
    (found,) = (dict(manifest) for manifest in manifests if manifest["kind"] == kind)
    return found


def pod(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    """The pod that the Deployment makes: its labels are under `metadata`, the rest is `spec`."""
    template: dict[str, Any] = one(manifests, "Deployment")["spec"]["template"]
    return template


def containers(manifests: tuple[Manifest, ...]) -> list[dict[str, Any]]:
    """All containers of the pod, those that run before the others included."""
    spec = pod(manifests)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def gateway(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    """The container of the gateway."""
    (found,) = (c for c in containers(manifests) if c["name"] == "gateway")
    return found
