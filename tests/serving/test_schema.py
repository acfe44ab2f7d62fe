"""What the OpenAPI document says, held against a gateway that runs as a process of its own.

Schemathesis makes requests out of the document, right ones and wrong ones; here it makes few. More
of them, against any gateway, from the root of the checkout:

    schemathesis --config-file tests/serving/schemathesis.toml run \
        http://127.0.0.1:8000/openapi.json --max-examples 1000
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.gateway import Gateway, serving
from tests.conftest import ROOT

CONFIG = "tests/serving/schemathesis.toml"
EXAMPLES = 25
SEED = 4


@pytest.fixture(scope="module")
def gateway(shared_repository: Path) -> Iterator[Gateway]:
    with serving(model_repository=shared_repository, device="cpu") as started:
        yield started


def answers(report: Path) -> Counter[tuple[str, int]]:
    """How many answers of each status each operation gave."""
    found: Counter[tuple[str, int]] = Counter()
    for line in report.read_text(encoding="utf-8").splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for one in recorder.get("interactions", {}).values():
            if one["response"] is not None:
                found[recorder["label"], one["response"]["status_code"]] += 1
    return found


def test_every_answer_is_what_the_document_says(gateway: Gateway, tmp_path: Path) -> None:
    report = tmp_path / "report.ndjson"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "run"]
    options = ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--report", "ndjson"]
    done = subprocess.run(
        [*command, f"{gateway.url}/openapi.json", *options, "--report-ndjson-path", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    found = answers(report)
    # Requests that are all refused would prove little.
    for path in ("/labels", "/caption", "/vqa"):
        assert found[f"POST {path}", 200] >= 5
        assert found[f"POST {path}", 422] >= 5
    for path in ("/healthz", "/readyz", "/models", "/metrics"):
        assert found[f"GET {path}", 200] >= 1
