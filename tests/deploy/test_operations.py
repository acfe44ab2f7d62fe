"""The operators' page: it knows every setting, every limit and every alert, and leads somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from serving.problems import KINDS
from serving.settings import PREFIX, Settings
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "operations.md"
# What a caller cannot know beforehand, and an operator can change.
LIMITS = {401, 403, 408, 413, 429, 431, 503, 504}


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_table_of_settings_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location(
        "settings_table", PAGE.with_name("settings_table.py")
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == text(), "write it again: python docs/settings_table.py"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_row_with_its_default(name: str) -> None:
    (row,) = re.findall(rf"^\| `{PREFIX}{name.upper()}` \| (.*?) \|", text(), re.MULTILINE)
    default = Settings.model_fields[name].default
    if default in (None, ()):
        assert row == "absent"
    elif isinstance(default, bool):
        assert row == f"`{str(default).lower()}`"
    else:
        assert type(default)(row.strip("`")) == default


def test_no_setting_is_named_that_is_not_there() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    others = {"TILESIGHT_DATA", "TILESIGHT_TRITON_HOME", "TILESIGHT_SERVICE_HOST"}
    assert set(re.findall(r"\bTILESIGHT_[A-Z_]*[A-Z]\b", text())) <= known | others


@pytest.mark.parametrize(
    ("slug", "status"), sorted((k.slug, k.status) for k in KINDS.values() if k.status in LIMITS)
)
def test_every_limit_is_explained(slug: str, status: int) -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \|", text(), re.MULTILINE)
    assert any(str(status) in statuses and f"`{slug}`" in slugs for statuses, slugs in rows)


def alerts() -> list[str]:
    return [
        rule["alert"]
        for path in sorted((ROOT / "deploy" / "prometheus").rglob("*.y*ml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).get("groups", [])
        for rule in group["rules"]
        if "alert" in rule
    ]


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_is_in_the_runbook(alert: str) -> None:
    assert re.search(rf"^\| `{alert}` \|", text(), re.MULTILINE)


@pytest.mark.parametrize("page", [PAGE, ROOT / "deploy" / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
