"""The board, the rules and docs/metrics.md against the metrics of a gateway that runs."""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.conftest import ROOT
from tests.serving.bundles import write_repository
from tests.serving.command import Samples, send, serving
from tests.serving.gateway import tile

GRAFANA = ROOT / "deploy" / "grafana"
BOARD = GRAFANA / "dashboards" / "tilesight.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
PAGE = ROOT / "docs" / "metrics.md"
# What Prometheus itself adds to what it asks for, and makes.
TARGET = {"job", "instance"}
OWN = {"up": TARGET, "ALERTS": {"alertname", "alertstate"}}
# https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
TRITON = {"model", "version", "gpu_uuid"}
TRITONS = {
    "nv_inference_request_success": TRITON,
    "nv_inference_request_failure": TRITON | {"reason"},
    "nv_inference_count": TRITON,
    "nv_inference_exec_count": TRITON,
    "nv_inference_pending_request_count": TRITON,
    "nv_inference_queue_duration_us": TRITON,
    "nv_inference_compute_infer_duration_us": TRITON,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What a gateway with two workers tells after some requests, the refused among them."""
    repository = write_repository(tmp_path_factory.mktemp("repository"))
    folder = tmp_path_factory.mktemp("gateway")
    with serving(repository, folder, "--workers", "2", ready=2) as gateway:
        for path in ("/labels", "/caption", "/vqa?question=Are+there+trees%3F"):
            assert send(gateway.address, "POST", path, tile("blue"))[0] == 200
        assert send(gateway.address, "POST", "/labels", b"no tile")[0] == 415
        return gateway.samples()


@pytest.fixture(scope="module")
def known(told: Samples) -> dict[str, set[str]]:
    """The names of all metrics with their labels: the gateway's, recorded ones, Triton's."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, labels in told:
        found[name] |= dict(labels).keys() | TARGET
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = kept(promql_parser.parse(rule["expr"]))
    return {**found, **OWN, **{name: labels | TARGET for name, labels in TRITONS.items()}}


def board() -> dict[str, Any]:
    return json.loads(BOARD.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    """Every query, the variables of Grafana filled in."""
    panels = [panel for panel in board()["panels"] if panel["type"] != "row"]
    drawn = [target["expr"] for panel in panels for target in panel["targets"]]
    drawn += [one["expr"] for one in board()["annotations"]["list"]]
    filled = [re.sub(r"\$(job|instance|model)\b", ".*", one) for one in drawn]
    filled = [one.replace("$__rate_interval", "1m") for one in filled]
    return filled + [rule["expr"] for rule in rules()]


def parts(expression: object) -> Iterator[Any]:
    """The expression and all within it."""
    yield expression
    for name in ("lhs", "rhs", "expr", "args", "param", "vector_selector"):
        inner = getattr(expression, name, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None:
                yield from parts(one)


def kept(expression: object) -> set[str]:
    """The labels that the outermost aggregation leaves."""
    first = next(one for one in parts(expression) if hasattr(one, "modifier") and one.modifier)
    return set(first.modifier.labels) - {"le"}


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_metrics_and_labels_that_there_are(
    query: str, known: dict[str, set[str]]
) -> None:
    asked = promql_parser.parse(query)
    selectors = [one for one in parts(asked) if isinstance(one, promql_parser.VectorSelector)]
    assert selectors
    for one in selectors:
        assert one.name in known
        assert {matcher.name for matcher in one.matchers.matchers} <= known[one.name]
    for one in parts(asked):
        if isinstance(one, promql_parser.AggregateExpr) and one.modifier:
            inner = [x for x in parts(one.expr) if isinstance(x, promql_parser.VectorSelector)]
            for selector in inner:
                assert set(one.modifier.labels) <= known[selector.name], selector.name


def test_values_of_labels_that_are_asked_for_are_told(told: Samples) -> None:
    values = {pair for _, labels in told for pair in labels}
    for query in queries():
        for name, value in re.findall(r'(\w+)="([^"]+)"', query):
            if name not in ("alertstate", "alertname") and value != "*":
                assert (name, value) in values, query


def test_the_board_is_what_its_script_writes() -> None:
    code = "import board; print(board.text(), end='')"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=GRAFANA, capture_output=True, text=True, check=True
    ).stdout
    assert made == BOARD.read_text(encoding="utf-8"), "write it again: deploy/grafana/board.py"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_board_asks_the_source_that_one_can_choose() -> None:
    document = board()
    names = {one["name"] for one in document["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", json.dumps(document))) <= names | {"__rate_interval", "__all"}
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "$source"}


def test_every_alert_has_a_severity_and_says_what_is_wrong() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


def families(told: Samples) -> set[str]:
    """The names without the endings of histograms."""
    return {re.sub("_(bucket|count|sum)$", "", name) for name, _ in told}


def rows() -> dict[str, set[str]]:
    """The metrics that the page lists, with their labels."""
    found = re.findall(
        r"^\| `((?:tilesight|process)_\w+)` \| \w+ \|([^|]*)\|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in found}


def test_the_page_lists_every_metric_and_no_other(told: Samples) -> None:
    assert rows().keys() == families(told)


def test_the_page_lists_the_labels(told: Samples) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for name, labels in told:
        seen[re.sub("_(bucket|count|sum)$", "", name)] |= dict(labels).keys() - {"le"}
    assert rows() == seen


def test_the_page_names_no_metric_of_triton_that_is_not_known() -> None:
    named = set(re.findall(r"`(nv_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert named >= set(TRITONS)


def test_the_rules_do_what_they_say(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: the rules are parsed, and not run")
    cases = Path(__file__).with_name("rules_cases.yaml").read_text(encoding="utf-8")
    (tmp_path / "cases.yaml").write_text(cases.replace("RULES", str(RULES)), encoding="utf-8")
    answer = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "cases.yaml")], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
