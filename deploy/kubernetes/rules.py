"""Writes the rules of deploy/prometheus once more, as the Prometheus operator reads them."""

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "prometheus"
OUT = HERE / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Written by deploy/kubernetes/rules.py from deploy/prometheus: change it there.\n"


def main() -> None:
    """Writes the file."""
    groups = [
        group
        for path in sorted(RULES.rglob("*.y*ml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).get("groups", [])
    ]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tilesight"},
        "spec": {"groups": groups},
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    OUT.write_text(HEAD + text, encoding="utf-8")


if __name__ == "__main__":
    main()
