"""The Kubernetes manifests: of the API's form, hardened, and with every reference met."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.guard import OPEN
from serving.metrics import Metrics
from serving.settings import Settings
from serving.timing import LaneState
from tests.conftest import ROOT
from tests.deploy import test_compose as compose
from tests.deploy.manifests import (
    BASE,
    COMPONENTS,
    FOLDER,
    PRODUCTION,
    Manifest,
    built,
    containers,
    gateway,
    one,
    pod,
    written,
)
from tests.deploy.settings import PREFIX, taken

# From an extension of Kubernetes, whose forms the schemas do not have.
EXTENSIONS = "monitoring.coreos.com/"
SCHEMAS = ["1.32", "1.37"]
# Made by the operator, as the comment of the component says.
SECRETS = {
    "keys": {"tilesight-api-keys", "tilesight-metrics-token"},
    "triton": {"tilesight-triton"},
}
WAYS: list[tuple[str, ...]] = [
    (BASE,),
    (PRODUCTION,),
    *((BASE, name) for name in COMPONENTS),
    (PRODUCTION, "triton"),
    (PRODUCTION, "gpu"),
]
EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids="+".join)


def variables(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """What is in the gateway's environment; a secret's value is a word."""
    container = gateway(manifests)
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        (config,) = (
            m for m in manifests if (m["kind"], m["metadata"]["name"]) == ("ConfigMap", name)
        )
        found |= config["data"]
    return found | {one["name"]: one.get("value", "a-secret") for one in container.get("env", [])}


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("path", [path for path, _ in written()], ids=lambda path: path.name)
def test_each_file_of_the_base_has_the_form(path: Path, version: str) -> None:
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", SCHEMAS)
@EVERY_WAY
def test_what_is_put_together_has_the_form(way: tuple[str, ...], version: str) -> None:
    for manifest in built(*way):
        if not manifest["apiVersion"].startswith(EXTENSIONS):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_see_a_misspelt_field() -> None:
    deployment = next(m for path, m in written() if path.name == "deployment.yaml")
    wrong = {**deployment, "spec": {**deployment["spec"], "replicaz": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replicaz"):
        kubernetes_validate.validate(wrong, SCHEMAS[0], strict=True)


@EVERY_WAY
def test_everything_runs_confined(way: tuple[str, ...]) -> None:
    spec = pod(built(*way))["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in containers(built(*way)):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context.get("runAsUser", spec["securityContext"]["runAsUser"]) > 0
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


@EVERY_WAY
def test_the_user_is_that_of_the_image(way: tuple[str, ...]) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    user = pod(built(*way))["spec"]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in text


@EVERY_WAY
def test_the_gateway_takes_the_settings_and_gets_the_time_to_drain(
    way: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables(built(*way))
    assert all(name.startswith(PREFIX) for name in given)
    settings = taken(given, monkeypatch)
    grace = pod(built(*way))["spec"]["terminationGracePeriodSeconds"]
    assert grace >= settings.drain_wait_s + settings.drain_s + 5
    # Endpoints are taken out after the readiness probe has failed.
    probe = gateway(built(*way))["readinessProbe"]
    assert settings.drain_wait_s >= probe["periodSeconds"] * (probe["failureThreshold"] - 1) + 1


@EVERY_WAY
def test_variables_of_services_do_not_reach_the_gateway(way: tuple[str, ...]) -> None:
    # The gateway would refuse to start: TILESIGHT_SERVICE_HOST is no setting of it.
    assert one(built(*way), "Service")["metadata"]["name"].upper() == PREFIX.rstrip("_")
    assert pod(built(*way))["spec"]["enableServiceLinks"] is False


@EVERY_WAY
def test_what_is_mounted_exists_and_is_used(way: tuple[str, ...]) -> None:
    volumes = {volume["name"] for volume in pod(built(*way))["spec"]["volumes"]}
    mounts = [mount for c in containers(built(*way)) for mount in c.get("volumeMounts", [])]
    assert {mount["name"] for mount in mounts} == volumes
    # What is mounted with subPath never changes, so that a revoked key would go on working.
    assert not any("subPath" in mount for mount in mounts)
    assert {"/tmp", "/var/cache/tilesight"} <= {
        mount["mountPath"] for mount in gateway(built(*way))["volumeMounts"]
    }


@EVERY_WAY
def test_ports_are_found_by_their_names(way: tuple[str, ...]) -> None:
    ports = {
        p["name"]: p["containerPort"] for c in containers(built(*way)) for p in c.get("ports", [])
    }
    service = one(built(*way), "Service")["spec"]["ports"]
    assert {port["targetPort"] for port in service} == ports.keys()
    for container in containers(built(*way)):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["port"] in ports
    asked = {
        endpoint["port"]
        for manifest in built(*way)
        if manifest["kind"] == "ServiceMonitor"
        for endpoint in manifest["spec"]["endpoints"]
    }
    assert asked <= {port["name"] for port in service}
    policy = one(built(*way), "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in policy for port in rule["ports"]} >= set(ports.values())


@EVERY_WAY
def test_selectors_find_the_pods(way: tuple[str, ...]) -> None:
    labels = pod(built(*way))["metadata"]["labels"].items()
    manifests = built(*way)
    selectors = [
        one(manifests, "Deployment")["spec"]["selector"]["matchLabels"],
        one(manifests, "Service")["spec"]["selector"],
        one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            c["labelSelector"]["matchLabels"]
            for c in pod(manifests)["spec"]["topologySpreadConstraints"]
        ),
    ]
    assert all(selector.items() <= labels for selector in selectors)


@EVERY_WAY
def test_secrets_are_those_that_the_comments_tell_how_to_make(way: tuple[str, ...]) -> None:
    text = yaml.safe_dump_all(map(dict, built(*way)))
    named = set(re.findall(r"\btilesight-(?:api-keys|metrics-token|triton)\b", text))
    assert not any(manifest["kind"] == "Secret" for manifest in built(*way))
    for component, secrets in SECRETS.items():
        comment = (FOLDER / "components" / component / "kustomization.yaml").read_text("utf-8")
        assert all(f"create secret generic {name} " in comment for name in secrets & named)


def test_with_keys_prometheus_shows_one() -> None:
    (endpoint, *_) = one(built(PRODUCTION), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == "tilesight-metrics-token"
    assert "TILESIGHT_API_KEYS_FILE" in variables(built(PRODUCTION))


def test_probes_ask_what_is_open_without_a_key() -> None:
    container = gateway(built(BASE))
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    paths = [container[probe]["httpGet"]["path"] for probe in probes]
    assert paths == ["/readyz", "/readyz", "/healthz"]
    assert set(paths) <= OPEN


def test_the_start_has_time_for_the_autotune() -> None:
    probe = gateway(built(BASE))["startupProbe"]
    tuned = 4 * Settings.model_fields["autotune_s"].default
    assert probe["periodSeconds"] * probe["failureThreshold"] > 5 * tuned


def test_nobody_is_asked_by_the_gateway_and_only_two_may_ask_it() -> None:
    policy = one(built(BASE), "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    who = [
        source["namespaceSelector"]["matchLabels"]
        for r in policy["ingress"]
        for source in r["from"]
    ]
    assert who == [{"tilesight/clients": "true"}, {"tilesight/monitoring": "true"}]


def test_the_autoscaler_owns_the_number_of_pods() -> None:
    assert "replicas" not in one(built(PRODUCTION), "Deployment")["spec"]
    scaler = one(built(PRODUCTION), "HorizontalPodAutoscaler")["spec"]
    assert (
        scaler["scaleTargetRef"]["name"] == one(built(PRODUCTION), "Deployment")["metadata"]["name"]
    )
    assert scaler["minReplicas"] >= 2
    names = {metric["containerResource"]["container"] for metric in scaler["metrics"][1:]}
    assert names == {"gateway"}


def _rule() -> dict[str, Any]:
    path = FOLDER / "components" / "autoscaling" / "adapter-values.yaml"
    (rule,) = yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]["custom"]
    return rule


def test_the_autoscaler_asks_for_what_the_adapter_offers() -> None:
    scaler = one(built(PRODUCTION), "HorizontalPodAutoscaler")["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == _rule()["name"]["as"]


def test_the_adapter_asks_for_what_the_gateway_tells() -> None:
    metrics = Metrics()
    metrics.queues(lambda: [LaneState(lane="interactive", images=1, oldest_s=0.5, in_flight=1)])
    metrics.publish()
    series = _rule()["seriesQuery"].partition("{")[0]
    assert f'{series}{{lane="interactive"}} 0.5' in metrics.page().decode()


def test_the_rules_are_those_of_the_other_prometheus() -> None:
    made = yaml.safe_load((FOLDER / "components/monitoring/prometheusrule.yaml").read_text("utf-8"))
    groups = [
        group
        for path in sorted((ROOT / "deploy" / "prometheus").rglob("*.y*ml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).get("groups", [])
    ]
    assert groups
    assert made["spec"]["groups"] == groups, "write it again: python deploy/kubernetes/rules.py"


def test_tritons_flags_are_those_of_compose() -> None:
    (triton,) = (c for c in containers(built(BASE, "triton")) if c["name"] == "triton")
    service = compose.merged(["compose.triton.yaml"])["services"]["triton"]
    theirs = {re.sub(r"\$\{(\w+):\?[^}]*\}", r"$(\1)", flag) for flag in service["command"][1:]}
    assert set(triton["args"]) == theirs | {"--grpc-address=127.0.0.1"}
    assert triton["restartPolicy"] == "Always"


def test_triton_and_the_gateway_read_one_folder() -> None:
    spec = built(BASE, "triton")
    mounts = {
        c["name"]: m["mountPath"]
        for c in containers(spec)
        for m in c["volumeMounts"]
        if m["name"] == "models"
    }
    assert mounts["gateway"] == "/srv/model_repository"
    (triton,) = (c for c in containers(spec) if c["name"] == "triton")
    assert f"--model-repository={mounts['triton']}" in triton["args"]
