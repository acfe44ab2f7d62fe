"""The audit: what counts as wrong, and that advisories which were not had are no clean bill."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.test_house import pins

SCRIPT = ROOT / "deploy" / "audit" / "audit.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


audit = _load()
CLEAN = {"name": "one", "version": "1.0", "vulns": []}
SKIPPED = {"name": "two", "skip_reason": "not found"}
OURS = {"name": "tilesight", "skip_reason": "distribution marked as editable"}
WRONG = {
    "name": "three",
    "version": "3.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.1"]}],
}


@pytest.mark.parametrize(
    ("packages", "status"),
    [([CLEAN, OURS], 0), ([CLEAN, SKIPPED], 3), ([SKIPPED, WRONG], 1), ([WRONG], 1)],
)
def test_the_status_says_what_was_found(packages: list[dict[str, Any]], status: int) -> None:
    report = audit.advisories({"dependencies": packages})
    assert report.status == status
    assert report.asked == sum("vulns" in package for package in packages)


def test_an_advisory_names_its_package_and_the_release_without_it() -> None:
    (line,) = audit.advisories({"dependencies": [WRONG]}).wrong
    assert line == "three 3.0: PYSEC-1, CVE-1; fixed in 3.1"


def test_an_advisory_service_that_is_away_is_not_a_clean_bill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the tool's module the answer is no JSON, as when the service cannot be reached.
    monkeypatch.setattr(audit.sys, "executable", "/bin/false")
    report = audit.ask_advisories(tmp_path)
    assert report.status == audit.NOT_ASKED
    assert report.unasked == ["all packages: pip-audit said nothing"]


def test_another_version_than_the_pinned_one_is_drift() -> None:
    installed = {"same": "1.0", "newer": "2.0", "unpinned": "3.0"}
    assert audit.drift(installed, {"same": "1.0", "newer": "1.0", "absent": "1.0"}) == [
        "newer 2.0: pinned at 1.0",
        "unpinned 3.0: no line in constraints.txt",
    ]


def test_the_pins_are_read_as_everywhere() -> None:
    assert audit.read_pins(ROOT / "constraints.txt") == pins()


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT\nClassifier: License :: OSI Approved :: BSD License", "MIT"),
        ("License: see below\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
        ("License: MIT License\n with its whole text", "MIT License"),
        ("Summary: nothing said", "unknown"),
    ],
)
def test_the_licence_is_what_the_package_says_of_itself(
    tmp_path: Path, metadata: str, licence: str
) -> None:
    folder = tmp_path / "one-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: one\nVersion: 1.0\n{metadata}\n", encoding="utf-8")
    assert audit.licences(tmp_path) == {"one 1.0": licence}


def test_what_is_installed_is_listed_without_ourselves() -> None:
    found = audit.installed_in(Path(sys.executable))
    assert "tilesight" not in found
    assert found["numpy"] == version("numpy")


@pytest.mark.parametrize(
    ("extras", "folder"), [("serve", "serve"), ("serve,openvino", "serve-openvino")]
)
def test_make_audit_keeps_its_tools_away_from_what_it_looks_at(
    tmp_path: Path, extras: str, folder: str
) -> None:
    steps = subprocess.run(
        ["make", "--dry-run", "audit", f"VENV={tmp_path}/absent", f"EXTRAS={extras}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tools, serving = f"{tmp_path}/absent-audit", f"{tmp_path}/absent-audit/{folder}"
    assert f"{tools}/bin/python -m pip install --quiet -c constraints.txt -r deploy/audit/" in steps
    assert f"{tools}/bin/python -m pip --python {serving}/bin/python install" in steps
    assert f"-e '.[{extras}]'" in steps
    assert f"{tools}/bin/python deploy/audit/audit.py {serving}/bin/python" in steps
