"""The compose files: hardened services, closed doors, settings that the gateway takes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.settings import PREFIX, taken

FOLDER = ROOT / "deploy"
BASE = "compose.yaml"
OVERRIDES = sorted(path.name for path in FOLDER.glob("compose.*.yaml"))
COMBINATIONS = [[BASE], *([BASE, name] for name in OVERRIDES), [BASE, *OVERRIDES]]
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def merged(names: list[str]) -> dict[str, Any]:
    """The files as compose joins them: mappings by key, sequences one after the other."""
    whole: dict[str, Any] = {}
    for name in names:
        whole = _join(whole, yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")))
    return whole


def _join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    joined = {**first, **second}
    for key in first.keys() & second.keys():
        match first[key], second[key]:
            case dict() as one, dict() as other:
                joined[key] = _join(one, other)
            case list() as one, list() as other:
                joined[key] = one + other
    return joined


def services(names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    return list(merged(names)["services"].items())


def filled(text: str) -> str:
    """The text with each variable at its default, or at a value that is given for it."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return re.sub(r"\$\{(\w+):\?[^}]*\}", r"given-\1", text)


def size(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1]]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


ALL = pytest.mark.parametrize(("name", "service"), services(COMBINATIONS[-1]))


@ALL
def test_every_service_is_hardened(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys()


@ALL
def test_every_service_has_its_share_and_no_more(name: str, service: dict[str, Any]) -> None:
    assert size(service["mem_limit"]) > 0
    assert service["cpus"] > 0
    assert service["pids_limit"] > 0


@ALL
def test_every_service_says_how_it_is(name: str, service: dict[str, Any]) -> None:
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) < seconds(check["interval"])


@ALL
def test_every_image_is_built_here_or_pinned(name: str, service: dict[str, Any]) -> None:
    if name == "gateway":
        assert "image" not in service
        assert (FOLDER / service["build"]["context"] / "Dockerfile").is_file()
    else:
        _, _, tag = service["image"].rpartition(":")
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-py3)?", tag)


@ALL
def test_what_is_mounted_from_here_exists_and_is_not_written(
    name: str, service: dict[str, Any]
) -> None:
    for volume in service.get("volumes", []):
        source, target, *options = filled(volume).split(":")
        if source.startswith("."):
            assert (FOLDER / source).exists(), volume
            assert options == ["ro"], volume
        elif source == "/dev/null":
            assert volume.startswith("${TILESIGHT_METRICS_TOKEN_FILE:-")
        elif not source.startswith("given-"):
            assert source in merged([BASE])["volumes"], volume
        assert target.startswith("/")


@ALL
def test_ports_are_of_this_machine_alone(name: str, service: dict[str, Any]) -> None:
    assert all(filled(port).startswith("127.0.0.1:") for port in service.get("ports", []))


@ALL
def test_who_is_waited_for_exists_and_says_when_it_is_ready(
    name: str, service: dict[str, Any]
) -> None:
    others = merged(COMBINATIONS[-1])["services"]
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in others[other]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_the_gateway_takes_the_settings(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = merged(names)["services"]["gateway"]
    environment = {name: filled(value) for name, value in gateway["environment"].items()}
    assert all(name.startswith(PREFIX) for name in environment)
    settings = taken(environment, monkeypatch)
    assert seconds(gateway["stop_grace_period"]) > settings.drain_wait_s + settings.drain_s
    assert filled(gateway["ports"][0]).endswith(f":{settings.port}")
    mounted = {filled(volume).split(":")[1] for volume in gateway["volumes"]}
    assert "/srv/model_repository" in mounted
    if settings.api_keys_file:
        assert str(settings.api_keys_file.parent) in mounted


def test_a_file_of_keys_is_mounted_with_its_folder() -> None:
    gateway = merged(["compose.keys.yaml"])["services"]["gateway"]
    assert not any(volume.split(":")[-2].endswith(".json") for volume in gateway["volumes"])


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_targets_exist(target: str) -> None:
    names = [BASE] if target == "cpu" else [BASE, "compose.gpu.yaml"]
    assert merged(names)["services"]["gateway"]["build"]["target"] == target
    assert f" AS {target}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_one_command_starts_the_gateway_alone() -> None:
    starting = [name for name, service in services([BASE]) if not service.get("profiles")]
    assert starting == ["gateway"]


def test_an_override_names_nothing_that_is_not_there() -> None:
    known = merged([BASE])["services"].keys() | {"triton"}
    for name in OVERRIDES:
        assert merged([name])["services"].keys() <= known


def test_the_spool_is_a_part_of_the_gateways_memory() -> None:
    gateway = merged([BASE])["services"]["gateway"]
    (spool,) = gateway["tmpfs"]
    size_of = dict(option.split("=") for option in spool.split(":")[1].split(",") if "=" in option)
    assert size(size_of["size"]) <= size(gateway["mem_limit"]) // 2


def _mounts(service: str) -> dict[str, Path]:
    volumes = merged([BASE])["services"][service]["volumes"]
    return {v.split(":")[1]: FOLDER / v.split(":")[0] for v in volumes if v.startswith(".")}


def test_prometheus_finds_its_configuration_and_rules() -> None:
    folder = _mounts("prometheus")["/etc/prometheus"]
    document = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
    for pattern in document.get("rule_files", []):
        assert list(folder.glob(pattern.removeprefix("/etc/prometheus/"))), pattern


def test_prometheus_asks_those_who_are_there() -> None:
    folder = _mounts("prometheus")["/etc/prometheus"]
    document = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in document["scrape_configs"]}
    gateway, triton = jobs.pop("gateway"), jobs.pop("triton")
    assert jobs == {}
    assert gateway["static_configs"] == [{"targets": ["gateway:8000"]}]
    (lookup,) = triton["dns_sd_configs"]
    assert lookup["names"] == ["triton"]
    # In a network with both; what Triton tells is at the port of its health check.
    services = merged(["compose.yaml", "compose.triton.yaml"])["services"]
    shared = set(services["prometheus"]["networks"])
    assert shared & set(services["gateway"]["networks"]) & set(services["triton"]["networks"])
    assert f":{lookup['port']}/metrics" in services["triton"]["healthcheck"]["test"][-1]
    mounted = {filled(volume).split(":")[1] for volume in services["prometheus"]["volumes"]}
    assert gateway["authorization"]["credentials_file"] in mounted


def test_grafana_finds_its_source_and_boards() -> None:
    mounts = _mounts("grafana")
    provisioning = mounts["/etc/grafana/provisioning"]
    (sources,) = provisioning.glob("datasources/*.y*ml")
    (source,) = yaml.safe_load(sources.read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (providers,) = provisioning.glob("dashboards/*.y*ml")
    for provider in yaml.safe_load(providers.read_text(encoding="utf-8"))["providers"]:
        path = provider["options"]["path"]
        assert path in mounts
        assert list(mounts[path].glob("*.json"))
