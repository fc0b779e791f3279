"""The files for deployment match the service: dashboard, alerts, compose file, cache, Dockerfile, locks."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.server.worker_process import WorkerMetrics
from service.settings import Settings
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\bdrawbridge_[a-z_]+")
SERIES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
SETTINGS = {f"DRAWBRIDGE_{name.upper()}" for name in Settings.model_fields}


def exposed_series() -> dict[str, set[str]]:
    """The time series of every metric of the service, by the metric's name."""
    metrics = [*Metrics().registry.collect(), *WorkerMetrics().registry.collect()]
    series = {metric.name: {metric.name + suffix for suffix in SERIES[metric.type]} for metric in metrics}
    return series | {"drawbridge_model_info": {"drawbridge_model_info"}}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "drawbridge.json").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The services of docker-compose.yml."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_the_dashboard_shows_every_metric_of_the_service_and_no_other(dashboard: dict[str, Any]) -> None:
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    queried = {name for target in targets for name in METRIC.findall(target["expr"])}
    for name, series in exposed_series().items():
        assert queried & series, f"no panel shows {name}"
    assert queried <= set().union(*exposed_series().values())


def test_alerts_query_existing_metrics() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    queried = {name for rule in rules for name in METRIC.findall(rule["expr"])}
    assert queried
    assert queried <= set().union(*exposed_series().values())
    assert all(rule["annotations"]["summary"] for rule in rules)


def test_every_panel_uses_the_provisioned_data_source_and_its_own_place(dashboard: dict[str, Any]) -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_compose_mounts_existing_files_and_publishes_ports_on_loopback_only(compose: dict[str, Any]) -> None:
    for service in compose.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            if volume.endswith(":ro"):
                assert (ROOT / volume.split(":")[0]).exists(), volume
    assert set(compose["service"]["environment"]) <= SETTINGS | {"TRITON_CACHE_DIR"}
    assert set(compose["replica"]["environment"]) <= SETTINGS | {"FORWARDED_ALLOW_IPS"}


def test_compiled_kernels_are_kept_in_a_volume_that_the_service_may_write_to(compose: dict[str, Any]) -> None:
    directory = compose["service"]["environment"]["TRITON_CACHE_DIR"]
    volumes = dict(volume.split(":")[:2] for volume in compose["service"]["volumes"])
    assert directory in volumes.values()
    assert all(directory != mount.split(":")[0] for mount in compose["service"]["tmpfs"]), "nothing there is executed"
    image = (ROOT / "Dockerfile").read_text()
    assert f"mkdir {directory}" in image
    (user,) = set(re.findall(r"USER (\S+)", image))
    assert f"chown {user} {directory}" in image


def test_prometheus_scrapes_services_of_the_compose_file(compose: dict[str, Any]) -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (static,) = job["static_configs"]
    assert {target.split(":")[0] for target in static["targets"]} <= compose.keys()


def test_the_cache_agrees_with_the_compose_file_and_the_default_settings(compose: dict[str, Any]) -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())

    def directive(pattern: str) -> str:
        (value,) = re.findall(pattern, text)
        return value

    assert directive(r"server ([a-z]+):8000 ") in compose["cache"]["depends_on"]
    port = directive(r"listen (\d+);")
    assert compose["cache"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    default = {name: field.default for name, field in Settings.model_fields.items()}
    assert int(directive(r"client_max_body_size (\d+)m;")) * 2**20 == default["max_body_bytes"]
    assert int(directive(r"client_header_timeout (\d+)s;")) == default["header_timeout"]
    assert int(directive(r"client_body_timeout (\d+)s;")) == default["body_timeout"]
    assert int(directive(r"keepalive_timeout (\d+)s;")) < default["keep_alive_timeout"]
    assert all(path.startswith("/tmp/") for path in re.findall(r"(?:_path|pid) ([^ ;]+)", text))


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not available for this platform")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_every_package_is_pinned_with_hashes_and_both_locks_agree() -> None:
    pinned = {}
    for lock in ("requirements.lock", "service.lock"):
        text = re.sub(r"^#.*\n", "", (ROOT / lock).read_text(), flags=re.M)
        pinned[lock] = dict(
            re.findall(r"^([a-z0-9-]+)(==[^\n]*(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)$", text, re.M)
        )
        assert len(pinned[lock]) == len(re.findall(r"^\S", text, re.M)), f"a package of {lock} has no hashes"
    assert pinned["service.lock"].items() <= pinned["requirements.lock"].items()
    assert "torch" in pinned["requirements.lock"].keys() - pinned["service.lock"].keys()


def test_make_installs_another_build_of_torch_without_cuda(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "--always-make", f"VENV={tmp_path}", f"{tmp_path}/installed", "TORCH=cpu"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--no-deps --index-url https://download.pytorch.org/whl/cpu" in printed
    local = subprocess.run([*command, f"TORCH_INDEX={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--no-deps --no-index --find-links {tmp_path}" in local.stdout
    script = re.search(r"awk (?:.|\\\n)*?\.lock\n", printed)
    assert script is not None
    subprocess.run(script[0], shell=True, cwd=ROOT, check=True)
    lock, rest = ((path).read_text() for path in (ROOT / "requirements.lock", tmp_path / "without-torch.lock"))
    names, left = (set(re.findall(r"^([a-z0-9-]+)==", text, re.M)) for text in (lock, rest))
    removed = names - left
    assert {"torch", "torchvision", "triton"} < removed
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in removed)
    assert {"torchmetrics", "tritonclient", "fastapi"} < left
    assert "--hash" in rest
