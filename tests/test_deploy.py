"""What is deployed beside the service fits it: dashboard, alerts, compose file, Dockerfile."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.server.supervisor import WorkerMetrics
from service.settings import ROOT, Settings
from service.telemetry.metrics import Metrics

DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\bdrawbridge_[a-z_]+")
SERIES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def exposed() -> dict[str, set[str]]:
    """The series of every metric that the service has, by the metric's name."""
    metrics = [*Metrics().registry.collect(), *WorkerMetrics().count.collect()]
    found = {metric.name: {metric.name + ending for ending in SERIES[metric.type]} for metric in metrics}
    return found | {"drawbridge_model_info": {"drawbridge_model_info"}}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "drawbridge.json").read_text())


def test_the_dashboard_shows_every_metric_and_no_other(dashboard: dict[str, Any]) -> None:
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in NAME.findall(target["expr"])
    }
    for name, series in exposed().items():
        assert asked & series, f"{name} is shown nowhere"
    assert asked <= set().union(*exposed().values())


def test_alerts_look_at_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in NAME.findall(rule["expr"])}
    assert asked
    assert asked <= set().union(*exposed().values())
    assert all(rule["annotations"]["summary"] for rule in rules)


def test_every_panel_asks_the_source_that_there_is(dashboard: dict[str, Any]) -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_compose_mounts_what_there_is_and_opens_no_port_to_others() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            if volume.endswith(":ro"):
                assert (ROOT / volume.split(":")[0]).exists(), volume
    known = {f"DRAWBRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert set(services["service"]["environment"]) <= known
    assert set(services["replica"]["environment"]) <= known | {"FORWARDED_ALLOW_IPS"}
    targets = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    assert {target.split(":")[0] for target in targets} <= services.keys()


def test_the_cache_fits_the_service_and_the_compose_file() -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    def said(pattern: str) -> str:
        (found,) = re.findall(pattern, text)
        return found

    assert said(r"server ([a-z]+):8000 ") in services["cache"]["depends_on"]
    port = said(r"listen (\d+);")
    assert services["cache"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    default = {name: field.default for name, field in Settings.model_fields.items()}
    assert int(said(r"client_max_body_size (\d+)m;")) * 2**20 == default["max_body_bytes"]
    assert int(said(r"client_header_timeout (\d+)s;")) == default["header_timeout"]
    assert int(said(r"client_body_timeout (\d+)s;")) == default["body_timeout"]
    assert int(said(r"keepalive_timeout (\d+)s;")) < default["keep_alive_timeout"]
    assert all(path.startswith("/tmp/") for path in re.findall(r"(?:_path|pid) ([^ ;]+)", text))


def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("no hadolint for this platform")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_every_package_is_pinned_with_hashes_and_both_locks_agree() -> None:
    entries = {}
    for lock in ("requirements.lock", "service.lock"):
        text = re.sub(r"^#.*\n", "", (ROOT / lock).read_text(), flags=re.M)
        entries[lock] = dict(
            re.findall(r"^([a-z0-9-]+)(==[^\n]*(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)$", text, re.M)
        )
        assert len(entries[lock]) == len(re.findall(r"^\S", text, re.M)), "each has its hashes"
    assert entries["service.lock"].items() <= entries["requirements.lock"].items()
    assert "torch" in entries["requirements.lock"].keys() - entries["service.lock"].keys()
