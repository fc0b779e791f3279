"""Replicas of Ray Serve: what is checked before there are any, and those that the committed configuration runs."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml

pytest.importorskip("ray.serve", reason="Ray Serve is not installed; pip install .[cluster]")

from service.server.ray_serve import SECONDS_BEHIND, build, scale
from tests.service.conftest import pixels
from tests.serving import ROOT

CONFIGURATIONS = {"ray.yaml": {"/": None}, "ray-models.yaml": {f"/{name}": name for name in ("dcgan", "cgan", "ddpm")}}
"""The committed files, and the models that they serve alone, by path."""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "settings: set `open: true`, or `keys` to a file of keys"),
        ({"settings": {"allow_anonymous": True, "seat": 4}}, "seat: Extra inputs are not permitted"),
        (
            {"settings": {"allow_anonymous": True, "max_batch_size": 0}},
            "max_batch_size: Input should be greater than or equal to 1",
        ),
        ({"settings": {"allow_anonymous": True}, "model": "none"}, "model: no 'none' in "),
        ({"modell": "cgan"}, "modell: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_served_is_refused_before_any_replica(arguments, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        build(arguments)


@pytest.mark.parametrize(("behind", "replicas"), [({}, 1), ({"a": 0.0, "b": 0.0}, 1), ({"a": 3.2, "b": 0.5}, 4)])
def test_there_are_as_many_as_draw_in_a_second_what_waits(behind, replicas):
    context = SimpleNamespace(aggregated_metrics={SECONDS_BEHIND: behind})
    assert scale(context, seconds=1.0) == (replicas, {})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_committed_configurations_are_such(name):
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema(**yaml.safe_load((ROOT / "deploy" / name).read_text()))
    assert {one.route_prefix: one.args.get("model") for one in found.applications} == CONFIGURATIONS[name]
    for application in found.applications:
        assert application.import_path == "service.server.ray_serve:build"
        assert build(application.args) is not None


@pytest.fixture(scope="module")
def running(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen]]:
    """`serve run deploy/ray-models.yaml` on small weights, a port of its own, and without keeping others waiting."""
    folder = tmp_path_factory.mktemp("cluster")
    config = yaml.safe_load((ROOT / "deploy" / "ray-models.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config["http_options"]["port"] = port = listener.getsockname()[1]
    for application in config["applications"]:
        application["args"]["settings"] |= {"weights": str(weights), "log_level": "warning"}
        application["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.1
    (folder / "ray.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        command = [shutil.which("serve", path=str(Path(sys.executable).parent)), "run", folder / "ray.yaml"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        for model in CONFIGURATIONS["ray-models.yaml"].values():
            answers(f"{url}/{model}/generate?seed=1", process)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(url: str, process: subprocess.Popen, seconds: float = 200) -> httpx.Response:
    """What `url` answers, as soon as it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(url, timeout=20)
            if answer.status_code == 200:
                return answer
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def replicas(model: str, of: int) -> list[int]:
    """The processes of a model's replicas among the descendants of a process."""
    found = []
    for task in Path(f"/proc/{of}/task").glob("*/children"):
        for pid in map(int, task.read_text().split()):
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            found += [pid] * title.startswith(f"ray::ServeReplica:{model}:".encode())
            found += replicas(model, pid)
    return found


@pytest.mark.timeout(400)
def test_each_model_is_an_application_of_its_own(running):
    url, _ = running
    for model in CONFIGURATIONS["ray-models.yaml"].values():
        answer = httpx.get(f"{url}/{model}/generate?seed=1", timeout=20)
        assert pixels(answer).shape == (28, 28)
        assert answer.headers["content-location"].startswith(f"/{model}/generate?model={model}@")
        assert httpx.get(url + answer.headers["content-location"], timeout=20).content == answer.content
        assert [one["name"] for one in httpx.get(f"{url}/{model}/models").json()["models"]] == [model]


@pytest.mark.timeout(400)
def test_a_seed_has_its_bytes_from_the_replica_after_one_that_was_killed(running):
    url, process = running
    before = httpx.get(f"{url}/cgan/generate?seed=7&digit=3", timeout=20)
    (killed,) = replicas("cgan", process.pid)
    os.kill(killed, signal.SIGKILL)
    after = answers(f"{url}/cgan/generate?seed=7&digit=3", process)
    assert after.content == before.content
    assert killed not in replicas("cgan", process.pid)
