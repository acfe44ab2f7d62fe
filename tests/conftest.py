"""What all tests share: where the real data lies, and a word about the tests that missed it."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "TILESIGHT_DATA"

# A busy machine must not fail a test: what a property costs is not what it says.
settings.register_profile("tilesight", deadline=None)
settings.load_profile("tilesight")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets and weights; a test that asks for it skips without it."""
    folder = Path(os.environ.get(DATA_VARIABLE, ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder, {DATA_VARIABLE} names another")
    return folder


@pytest.fixture(scope="session")
def ucm_real(data: Path) -> Path:
    """The folder of the real UC Merced tiles and annotations."""
    return data / "ucm"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the tests that ran on no real data, so that a green run does not hide them."""
    missed = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and DATA_VARIABLE in report.longrepr[2]
    ]
    if missed:
        terminalreporter.section(f"{len(missed)} skipped without real data ({DATA_VARIABLE})")
        for nodeid in missed:
            terminalreporter.write_line(nodeid)
