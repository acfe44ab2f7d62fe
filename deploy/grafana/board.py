"""Writes dashboards/tilesight.json: what is on the board, row by row, in 24 columns.

`python deploy/grafana/board.py` after a change; tests/deploy/test_monitoring.py says when that was
forgotten, and holds every query against the metrics of a running gateway.
"""

import json
from itertools import count
from pathlib import Path
from typing import Any

from models_rows import drift, models, process, triton
from panels import Panel
from requests_rows import queue, stages, traffic

OUT = Path(__file__).resolve().parent / "dashboards" / "tilesight.json"

_COLUMNS = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "$source"}

ROWS = {
    "Traffic": traffic(),
    "Where the time goes": stages(),
    "Queue and batches": queue(),
    "Models": models(),
    "What the models say": drift(),
    "Processes": process(),
    "Triton": triton(),
}


def board() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "tilesight",
        "title": "Tilesight",
        "tags": ["tilesight"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    ids, top = count(1), 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        panels.append(
            {
                "id": next(ids),
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        width = _COLUMNS // len(row)
        for index, panel in enumerate(row):
            place = {"x": index * width, "y": top + 1, "w": width, "h": _HEIGHT}
            panels.append({"id": next(ids), "gridPos": place, **_drawn(panel)})
        top += 1 + _HEIGHT
    return panels


def _drawn(panel: Panel) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "range": panel.kind != "table",
                "instant": panel.kind == "table",
                "format": panel.kind if panel.kind != "timeseries" else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
    }
    if panel.kind == "timeseries":
        drawn["fieldConfig"]["defaults"]["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "showPoints": "never",
        }
        drawn["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "table":
        drawn["transformations"] = [
            {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}
        ]
    if panel.kind == "heatmap":
        drawn["options"] = {"calculate": False, "yAxis": {"unit": "percentunit"}}
    return drawn


def _variables() -> list[dict[str, Any]]:
    def asked(name: str, query: str, label: str) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }

    return [
        {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
        asked("job", "label_values(tilesight_ready, job)", "Job"),
        asked("instance", 'label_values(tilesight_ready{job=~"$job"}, instance)', "Gateway"),
        asked("model", "label_values(tilesight_model_info, name)", "Model"),
    ]


def _alerts() -> dict[str, Any]:
    """Marks on every panel where an alert fired."""
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Tilesight.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    }


def text() -> str:
    """What stands in the file."""
    return json.dumps(board(), indent=2) + "\n"


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
