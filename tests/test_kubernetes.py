"""deploy/kubernetes is valid for Kubernetes and agrees with the service: ports, paths, settings, metrics, images."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.server.supervisor import SHUTDOWN_GRACE
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.kustomize import build, containers

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "nvidia")
VERSIONS = ("1.30", "1.32", "1.34")
"""Versions of Kubernetes whose schemas the manifests must meet."""
SETTINGS = {f"DRAWBRIDGE_{name.upper()}" for name in Settings.model_fields}
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
USER = 10001
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}
SERVICE_MONITOR = {
    # https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "labels": LABELS},
            "additionalProperties": False,
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["endpoints", "selector"],
            "properties": {
                "jobLabel": {"type": "string"},
                "selector": {
                    "type": "object",
                    "required": ["matchLabels"],
                    "properties": {"matchLabels": LABELS},
                    "additionalProperties": False,
                },
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["port"],
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        },
                    },
                },
            },
        },
    },
}
"""The part of the custom resource's schema that the manifest uses; kubernetes_validate has no custom resources."""

Manifests = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(overlay: str) -> Manifests:
    """The manifests of an overlay by kind and name."""
    return {(each["kind"], each["metadata"]["name"]): each for each in build(KUBERNETES / "overlays" / overlay)}


@pytest.fixture(scope="module")
def pod(manifests: Manifests) -> dict[str, Any]:
    """The specification of the service's pods."""
    spec: dict[str, Any] = manifests["Deployment", "drawbridge"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(manifests: Manifests) -> dict[str, Any]:
    """The pods' only container."""
    (container,) = containers(manifests["Deployment", "drawbridge"])
    return container


@pytest.fixture(scope="module")
def environment(container: dict[str, Any]) -> dict[str, Any]:
    """The container's environment; None for a value that Kubernetes finds out."""
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_meets_the_schemas_of_kubernetes(manifests: Manifests, version: str) -> None:
    for (kind, _), manifest in manifests.items():
        if kind == "ServiceMonitor":
            jsonschema.validate(manifest, SERVICE_MONITOR)
        else:
            assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_the_validation_is_strict(manifests: Manifests) -> None:
    deployment = manifests["Deployment", "drawbridge"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**deployment, "spec": {**deployment["spec"], "replica": 2}}, "1.32", strict=True)


def test_kubectl_composes_the_same_manifests(overlay: str, manifests: Manifests) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    composed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(composed)} == manifests


def test_every_file_belongs_to_an_overlay() -> None:
    files = {
        path for path in KUBERNETES.rglob("*.yaml") if path.name not in ("kustomization.yaml", "adapter-values.yaml")
    }
    used = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        names = kustomization.get("resources", []) + [patch["path"] for patch in kustomization.get("patches", [])]
        used |= {path.parent / name for name in names if name.endswith(".yaml")}
    assert files == used


def test_no_manifest_holds_a_secret(manifests: Manifests) -> None:
    assert "Secret" not in {kind for kind, _ in manifests}


def test_every_variable_is_a_setting_and_the_service_accepts_them_all(
    environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.keys() <= SETTINGS
    assert "DRAWBRIDGE_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()
    monkeypatch.setenv("DRAWBRIDGE_HOST", "0.0.0.0")
    for name, value in environment.items():
        monkeypatch.setenv(name, "2" if value is None else value)
    settings = Settings()
    assert settings.admin_port != settings.port


def test_ports_and_paths_are_those_of_the_service(
    manifests: Manifests, container: dict[str, Any], environment: dict[str, Any]
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": DEFAULTS["port"], "admin": int(environment["DRAWBRIDGE_ADMIN_PORT"])}
    assert f"EXPOSE {ports['http']}\n" in (ROOT / "Dockerfile").read_text()
    info = (ROOT / "service" / "api" / "info.py").read_text()
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"
    }  # fmt: skip
    (endpoint,) = manifests["ServiceMonitor", "drawbridge"]["spec"]["endpoints"]
    for path in (endpoint["path"], *(probe["path"] for probe in probes.values())):
        assert f'"{path}"' in info
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    services = {name: service["spec"]["ports"] for (kind, name), service in manifests.items() if kind == "Service"}
    assert [port["targetPort"] for port in services["drawbridge"]] == ["http"]
    assert [port["targetPort"] for port in services["drawbridge-metrics"]] == ["admin"]
    assert services["drawbridge-metrics"][0]["name"] == endpoint["port"]


def test_the_network_policy_gives_the_admin_port_to_prometheus_only(manifests: Manifests) -> None:
    spec = manifests["NetworkPolicy", "drawbridge"]["spec"]
    sources = {rule["ports"][0]["port"]: rule["from"] for rule in spec["ingress"]}
    assert sources.keys() == {"http", "admin"}
    assert sources["admin"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert spec["egress"] == []
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}


def test_selectors_find_the_pods(manifests: Manifests) -> None:
    deployment = manifests["Deployment", "drawbridge"]["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["selector"]["matchLabels"],
        manifests["Service", "drawbridge"]["spec"]["selector"],
        manifests["Service", "drawbridge-metrics"]["spec"]["selector"],
        manifests["PodDisruptionBudget", "drawbridge"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy", "drawbridge"]["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in deployment["template"]["spec"]["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    monitored = manifests["ServiceMonitor", "drawbridge"]["spec"]["selector"]["matchLabels"].items()
    matching = [
        name
        for (kind, name), each in manifests.items()
        if kind == "Service" and monitored <= each["metadata"]["labels"].items()
    ]
    assert matching == ["drawbridge-metrics"]


def test_a_pod_has_the_time_to_drain(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, Any]
) -> None:
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    drain = float(environment["DRAWBRIDGE_DRAIN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + drain + SHUTDOWN_GRACE


def test_a_worker_that_hangs_is_replaced_before_the_kubelet_restarts_the_container(container: dict[str, Any]) -> None:
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > DEFAULTS["watchdog_timeout"]


def test_the_pod_needs_no_privilege(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert f"USER {USER}:{USER}" in (ROOT / "Dockerfile").read_text()
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == USER
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]


def test_the_keys_are_mounted_where_the_setting_names_them(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, Any]
) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert Path(environment["DRAWBRIDGE_KEYS"]) == Path(mounts["keys"]) / "keys.toml"
    secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "keys"]
    assert (
        f"kubectl create secret generic {secrets[0]} --from-file=keys.toml" in (ROOT / "docs/deployment.md").read_text()
    )
    assert mounts["tmp"] == "/tmp"


def test_the_image_and_the_device_belong_together(
    overlay: str, container: dict[str, Any], environment: dict[str, Any]
) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    images = {name: compose[service]["image"] for name, service in (("cpu", "cpu"), ("nvidia", "service"))}
    assert container["image"] == images[overlay]
    limits = container["resources"]["limits"]
    if overlay == "nvidia":
        assert environment["DRAWBRIDGE_DEVICE"] == "cuda"
        assert limits["nvidia.com/gpu"] == "1"
    else:
        assert environment["DRAWBRIDGE_DEVICE"] == "cpu"
        (workers,) = (each for each in container["env"] if each["name"] == "DRAWBRIDGE_WORKERS")
        assert workers["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
        assert limits["cpu"].isdigit()


def test_the_autoscaler_uses_a_metric_that_the_adapter_computes_from_the_service(manifests: Manifests) -> None:
    autoscaler = manifests["HorizontalPodAutoscaler", "drawbridge"]["spec"]
    target, (metric,) = autoscaler["scaleTargetRef"], autoscaler["metrics"]
    assert (target["kind"], target["name"]) in manifests
    (rule,) = yaml.safe_load((KUBERNETES / "monitoring" / "adapter-values.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    histograms = {each.name for each in Metrics().registry.collect() if each.type == "histogram"}
    series = {f"{name}{suffix}" for name in histograms for suffix in ("_sum", "_count")}
    assert set(re.findall(r"drawbridge_[a-z_]+", rule["metricsQuery"])) <= series
    (found,) = re.findall(r"^drawbridge_[a-z_]+", rule["seriesQuery"])
    assert found in series
    assert re.fullmatch(rule["name"]["matches"], found)
    assert autoscaler["minReplicas"] >= 2, "an update or a lost node would leave no pod"
    assert "replicas" not in manifests["Deployment", "drawbridge"]["spec"]
