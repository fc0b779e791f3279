"""Ray Serve: the arguments of an application, the committed configurations, and running replicas."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("ray.serve", reason="Ray Serve is not installed; pip install .[cluster]")

from harness.server import ROOT
from service.server.ray_serve import SECONDS_BEHIND, build, scale
from service.settings import RENAMED
from tests.service.conftest import pixels

CONFIGURATIONS = {"ray.yaml": {"/": None}, "ray-models.yaml": {f"/{name}": name for name in ("dcgan", "cgan", "ddpm")}}
"""The models of the committed configurations by path; None serves all."""
MODELS = [model for model in CONFIGURATIONS["ray-models.yaml"].values() if model is not None]

pytestmark = pytest.mark.timeout(400)


# -- before there are replicas -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "settings: set `allow_anonymous: true`, or `keys` to a file of keys"),
        ({"settings": {"allow_anonymous": True, "seat": 4}}, "seat: Extra inputs are not permitted"),
        ({"settings": {"allow_anonymous": True, "max_batch_size": 0}}, "max_batch_size: Input should be greater than"),
        ({"settings": {"allow_anonymous": True}, "model": "none"}, "model: no 'none' in "),
        ({"modell": "cgan"}, "modell: Extra inputs are not permitted"),
        (
            {"settings": {"open": True, "allow_anonymous": True}},
            "DRAWBRIDGE_OPEN is the old name of DRAWBRIDGE_ALLOW_ANONYMOUS; set the new one only",
        ),
    ],
)
def test_invalid_arguments_are_refused_before_any_replica_starts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(arguments)


@pytest.mark.parametrize("old", RENAMED)
def test_settings_may_have_their_old_names(capsys: pytest.CaptureFixture[str], old: str) -> None:
    settings = {"open": True} if old == "open" else {"allow_anonymous": True, old: 4}
    assert build({"settings": settings}) is not None
    warning = f"warning: the setting {old} is now called {RENAMED[old]}; version 0.3 drops the old name\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(("behind", "replicas"), [({}, 1), ({"a": 0.0, "b": 0.0}, 1), ({"a": 3.2, "b": 0.5}, 4)])
def test_the_number_of_replicas_follows_the_waiting_work(behind: dict[str, float], replicas: int) -> None:
    context: Any = SimpleNamespace(aggregated_metrics={SECONDS_BEHIND: behind})
    assert scale(context, seconds=1.0) == (replicas, {})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_committed_configurations_are_valid(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema(**yaml.safe_load((ROOT / "deploy" / name).read_text()))
    assert {app.route_prefix: app.args.get("model") for app in schema.applications} == CONFIGURATIONS[name]
    for app in schema.applications:
        assert app.import_path == "service.server.ray_serve:build"
        assert build(app.args) is not None


# -- running replicas --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """`serve run deploy/ray-models.yaml` on small weights and a free port; its replicas take little of a core."""
    folder = tmp_path_factory.mktemp("cluster")
    config = yaml.safe_load((ROOT / "deploy" / "ray-models.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config["http_options"]["port"] = port = listener.getsockname()[1]
    for application in config["applications"]:
        application["args"]["settings"] |= {"weights": str(weights), "log_level": "warning"}
        application["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.1
    (folder / "ray.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    command = shutil.which("serve", path=str(Path(sys.executable).parent))
    assert command is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "run", folder / "ray.yaml"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for model in MODELS:
            wait_for_response(f"{url}/{model}/generate?seed=1", process)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for_response(url: str, process: "subprocess.Popen[bytes]", seconds: float = 200) -> httpx.Response:
    """The first successful response of `url`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            response = httpx.get(url, timeout=20)
            if response.status_code == 200:
                return response
        time.sleep(0.2)
    raise AssertionError(f"no response at {url}")


def replicas(model: str, pid: int) -> list[int]:
    """The processes of a model's replicas among the descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            title = Path(f"/proc/{child}/cmdline").read_bytes()
            found += [child] * title.startswith(f"ray::ServeReplica:{model}:".encode())
            found += replicas(model, child)
    return found


@pytest.mark.slow
def test_each_model_is_an_application_of_its_own(running: "tuple[str, subprocess.Popen[bytes]]") -> None:
    url, _ = running
    for model in MODELS:
        response = httpx.get(f"{url}/{model}/generate?seed=1", timeout=20)
        assert pixels(response).shape == (28, 28)
        location = response.headers["content-location"]
        assert location.startswith(f"/{model}/generate?model={model}@")
        assert httpx.get(url + location, timeout=20).content == response.content
        served = httpx.get(f"{url}/{model}/models", timeout=20).json()["models"]
        assert [item["name"] for item in served] == [model]


@pytest.mark.slow
def test_a_replica_that_replaces_a_killed_one_gives_the_same_bytes(
    running: "tuple[str, subprocess.Popen[bytes]]",
) -> None:
    url, process = running
    before = httpx.get(f"{url}/cgan/generate?seed=7&digit=3", timeout=20)
    (killed,) = replicas("cgan", process.pid)
    os.kill(killed, signal.SIGKILL)
    after = wait_for_response(f"{url}/cgan/generate?seed=7&digit=3", process)
    assert after.content == before.content
    assert killed not in replicas("cgan", process.pid)
