import math
import os
from pathlib import Path

import pytest

from serving.settings import Settings
from tilesight.cores import usable_cores
from tilesight.errors import ConfigError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TILESIGHT_")]:
        monkeypatch.delenv(name)


def test_the_environment_sets_what_options_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILESIGHT_PORT", "9000")
    monkeypatch.setenv("TILESIGHT_HOST", "0.0.0.0")
    settings = Settings.from_environment(port=9001, host=None)
    assert (settings.port, settings.host) == (9001, "0.0.0.0")


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILESIGHT_MAX_BODY_BITES", "1")
    with pytest.raises(ConfigError, match=r"^TILESIGHT_MAX_BODY_BITES: .*TILESIGHT_MAX_BODY_BYTES"):
        Settings.from_environment()


@pytest.mark.parametrize("name", ["TILESIGHT_DATA", "TILESIGHT_TRITON_HOME"])
def test_variables_of_others_are_none_of_ours(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/somewhere")
    assert Settings.from_environment().port == 8000


def test_the_key_of_triton_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILESIGHT_TRITON_KEY", "open sesame")
    settings = Settings.from_environment()
    assert settings.triton_key is not None
    assert settings.triton_key.get_secret_value() == "open sesame"
    assert "sesame" not in str(settings.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("MAX_IMAGES", "0"),
        ("DEVICE", "tpu"),
        ("HOST", "http://x"),
        ("HOST", ""),
        ("BODY_TIMEOUT_S", "-1"),
        ("DEADLINE_S", "0"),
        ("FOLLOW_S", "-1"),
        ("MAX_HEADER_BYTES", "10"),
        ("HEADER_TIMEOUT_S", "0"),
        ("MAX_CONNECTIONS", "0"),
        ("SPOOL_BYTES", "0"),
        ("MAX_DEADLINE_S", "29"),
        ("MAX_DEADLINE_S", "inf"),
        ("RUNTIME", "tensorrt"),
        ("TRITON_URL", "http://127.0.0.1:8001"),
        ("TRITON_URL", "127.0.0.1"),
        ("TRITON_CONTROL", "perhaps"),
    ],
)
def test_an_impossible_value_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TILESIGHT_{name}", value)
    with pytest.raises(ConfigError, match=f"^TILESIGHT_{name}: .*{value!r}$"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("tiles.example.org", "http://tiles.example.org:8000"),
    ],
)
def test_the_url_can_be_opened(host: str, url: str) -> None:
    assert Settings(host=host).url == url


def cores(folder: Path, **files: str) -> int:
    for name, text in files.items():
        path = folder / "group" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    membership = folder / "membership"
    membership.write_text("1:name=systemd:/x\n0::/outer/inner\n")
    return usable_cores(folder / "group", membership)


AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_cores_without_a_quota(tmp_path: Path) -> None:
    assert cores(tmp_path) == AFFINITY
    assert cores(tmp_path, cpu_dot_max="max 100000\n") == AFFINITY


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    found = cores(
        tmp_path,
        cpu_dot_max="9900000 100000",
        outer__cpu_dot_max="150000 100000",
        outer__inner__cpu_dot_max="max 100000",
    )
    assert found == min(AFFINITY or math.inf, 1)


def test_less_than_a_core_is_one(tmp_path: Path) -> None:
    assert cores(tmp_path, cpu_dot_max="20000 100000") == 1


def test_the_older_control_groups(tmp_path: Path) -> None:
    older = {"cpu__cpu.cfs_quota_us": "100000", "cpu__cpu.cfs_period_us": "100000"}
    assert cores(tmp_path, **older) == 1
    assert cores(tmp_path, **(older | {"cpu__cpu.cfs_quota_us": "-1"})) == AFFINITY
