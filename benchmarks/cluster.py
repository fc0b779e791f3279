"""Replicas on Ray Serve: requests lost with a replica, a node or old weights, and the throughput of two replicas.

    python -m benchmarks cluster [--repeats 3] [--seconds 3] [--clients 16] [--only loss|throughput]

Loss: a cluster of three Ray nodes on this machine with a replica on each, and clients that send seeded requests to four
models and retry when they are cut off. Under that load, one event after the other: the process of a replica is killed,
the weights of one model are replaced (`user_config`), a node is killed, and a new node joins. Every response is
compared with the bytes of the same request alone, before the event or, if weights are replaced, after it.

Throughput: one image of `ddpm` in 20 steps, 32 clients; one and two workers of this service, the same application as
one and two replicas of Ray Serve, and Ray Serve's own `@serve.batch`. Interleaved; medians. Needs the extra `cluster`.
"""

import argparse
import asyncio
import importlib.util
import itertools
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.reload import MODEL, wait_for_digest
from benchmarks.serve import PEERS, SEEDS, Peer, checked_load, json_request
from harness.load import merge
from harness.server import ROOT, free_port, run_service
from harness.weights import copy_weights, perturb_weights

MODELS = {"cgan": "&digit=7", "dcgan": "", "vae": "", "ddpm": "&steps=10"}
URLS = tuple(f"/generate?model={model}&seed={seed}{query}" for seed in range(24) for model, query in MODELS.items())
NODES = 3
ATTEMPTS = 50
"""Attempts of a client at one request, a tenth of a second apart."""


@dataclass
class Responses:
    """What all clients received."""

    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    """The URL and body of every response."""
    lost: int = 0
    """Requests without a response after all attempts."""
    errors: list[float] = field(default_factory=list)
    """When an attempt was cut off or got a status other than 200."""


async def send(client: httpx.AsyncClient, url: str, responses: Responses) -> bytes | None:
    """Return the body after as many attempts as it takes, or None after too many."""
    for _ in range(ATTEMPTS):
        try:
            response = await client.post(url)
            if response.status_code == 200:
                return response.content
        except httpx.TransportError:
            pass
        responses.errors.append(time.perf_counter())
        await asyncio.sleep(0.1)
    return None


async def run_client(base_url: str, responses: Responses, stopped: threading.Event, first: int) -> None:
    """Send all requests in turn from the `first` on, each over a connection of its own, until `stopped`."""
    for url in itertools.islice(itertools.cycle(URLS), first, None):
        if stopped.is_set():
            return
        async with httpx.AsyncClient(base_url=base_url, timeout=20) as client:
            body = await send(client, url, responses)
        if body is None:
            responses.lost += 1
        else:
            responses.bodies.append((url, body))


async def run_all_clients(base_url: str, responses: Responses, stopped: threading.Event, clients: int) -> None:
    """Run all clients, each starting at another request."""
    await asyncio.gather(*(run_client(base_url, responses, stopped, 5 * k) for k in range(clients)))


async def bodies_alone(base_url: str) -> dict[str, bytes]:
    """Return the body of each request when it is alone."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
        bodies = {url: await send(client, url, Responses()) for url in URLS}
    return {url: body for url, body in bodies.items() if body is not None}


def run_event(base_url: str, event: Callable[[], None], clients: int, seconds: float) -> tuple[Responses, float, float]:
    """Run clients before, during and after an event.

    Returns their responses, the seconds until their last error, and the seconds that the event took. The event runs on
    the main thread, because Ray requires that.
    """
    responses, stopped = Responses(), threading.Event()
    load = threading.Thread(target=asyncio.run, args=(run_all_clients(base_url, responses, stopped, clients),))
    load.start()
    try:
        time.sleep(seconds)
        started_at = time.perf_counter()
        event()
        took = time.perf_counter() - started_at
        time.sleep(seconds)
    finally:
        stopped.set()
        load.join()
    return responses, max((at - started_at for at in responses.errors), default=0.0), took


class Replicas:
    """One replica on each of `NODES` nodes, and the events that happen to them."""

    def __init__(self, cluster: Any, weights: Path) -> None:
        self.cluster = cluster
        self.config = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
        (application,) = self.config["applications"]
        application["args"]["settings"] |= {"log_level": "warning", "weights": str(weights)}
        (self.deployment,) = application["deployments"]
        del self.deployment["autoscaling_config"]
        self.deployment |= {"num_replicas": NODES, "max_replicas_per_node": 1}
        self.nodes = [cluster.head_node, *(cluster.add_node(num_cpus=1) for _ in range(NODES - 1))]

    def deploy(self, weights: str) -> None:
        """Deploy the committed configuration as `serve deploy` does, with `weights` in its `user_config`.

        `serve.run` would replace the replicas, because it treats all code as new.
        """
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        self.deployment["user_config"] = {"weights": weights}
        _get_global_client().deploy_apps(ServeDeploySchema(**self.config))
        self.wait()

    def wait(self) -> None:
        """Return once a healthy replica runs on each node."""
        from ray import serve

        while True:
            application = serve.status().applications.get("drawbridge")
            if application is not None and application.status == "RUNNING":
                states = application.deployments["Replica"].replica_states
                if states.get("RUNNING") == len(self.nodes) and all(map(pids, self.nodes)):
                    return
            time.sleep(0.2)

    def kill_replica(self) -> None:
        """Kill the last node's replica, as the kernel does when memory is short."""
        for pid in pids(self.nodes[-1]):
            os.kill(pid, signal.SIGKILL)
        self.wait()

    def kill_node(self, seconds: float) -> None:
        """Kill the last node and wait."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        time.sleep(seconds)

    def add_node(self) -> None:
        """Start another node."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        self.wait()


def pids(node: Any) -> list[int]:
    """Return the process ids of the replicas on a Ray node, which are children of its raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = [pid for path in Path(f"/proc/{raylet}/task").glob("*/children") for pid in path.read_text().split()]
    replicas = []
    for pid in children:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # the process has ended
            continue
        replicas += [int(pid)] * title.startswith(b"ray::ServeReplica:")
    return replicas


@contextmanager
def run_cluster(weights: Path) -> Iterator[tuple[str, Replicas]]:
    """Run a cluster with replicas that serve `weights` until the block ends. Yields its URL and the replicas."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    port = free_port()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        replicas = Replicas(cluster, weights)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
        replicas.deploy("first")
        yield f"http://127.0.0.1:{port}", replicas
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure_loss(clients: int, seconds: float) -> None:
    """Print what each event cost. Exits with 1 if a response was wrong or lost."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        weights = copy_weights(Path(folder), *MODELS)
        with run_cluster(weights) as (url, replicas):

            def replace_weights() -> None:
                digest = perturb_weights(weights / MODEL, 1)
                replicas.deploy("second")
                wait_for_digest(url, digest, NODES)

            before = asyncio.run(bodies_alone(url))
            names = ("responses", "wrong", "lost", "retries", "last error", "recovered")
            print(f"{'':18}" + "".join(f"{name:>{width}}" for name, width in zip(names, WIDTHS, strict=True)))
            for name, event in (
                ("replica killed", replicas.kill_replica),
                ("weights replaced", replace_weights),
                ("node killed", lambda: replicas.kill_node(4 * seconds)),
                ("node added", replicas.add_node),
            ):
                responses, last_error, took = run_event(url, event, clients, seconds)
                after = asyncio.run(bodies_alone(url))
                wrong = sum(body not in (before[path], after[path]) for path, body in responses.bodies)
                recovered = "" if name == "node killed" else f"{took:.1f} s"
                cells = (len(responses.bodies), wrong, responses.lost, len(responses.errors), f"{last_error:.1f} s")
                row = zip((*cells, recovered), WIDTHS, strict=True)
                print(f"{name:18}" + "".join(f"{cell:>{width}}" for cell, width in row), flush=True)
                changed = {path.partition("&")[0] for path in URLS if after[path] != before[path]}
                expected = {f"/generate?model={MODEL}"} if event is replace_weights else set()
                failed |= bool(wrong or responses.lost or changed != expected)
                before = after
    if failed:
        raise SystemExit(1)


WIDTHS = (11, 7, 6, 9, 12, 11)
REPLICAS = Peer("replicas", json_request, needs="ray")
(BATCHED,) = (peer for peer in PEERS if peer.name == "ray")


def rate(url: str, peer: Peer, seconds: float) -> float:
    """Return the images per second for 32 clients, each image in 20 steps."""
    return merge(checked_load(url, [lambda: peer.request("ddpm", next(SEEDS), 20)] * 32, seconds)).rate


def measure_throughput(repeats: int, seconds: float) -> None:
    """Print the table."""
    rounds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for k in range(repeats):
        for count in (1, 2):
            with run_service(device="cpu", workers=count) as (url, _):
                rounds["drawbridge", count].append(rate(url, REPLICAS, seconds))
            os.environ["REPLICAS"] = str(count)
            for name, peer in (("drawbridge on Ray Serve", REPLICAS), ("Ray's @serve.batch", BATCHED)):
                with peer.serve() as url:
                    rounds[name, count].append(rate(url, peer, seconds))
        print(f"round {k + 1} of {repeats} is done", file=sys.stderr)
    medians = {key: statistics.median(rates) for key, rates in rounds.items()}
    print(f"{'images/s, medians of ' + str(repeats):28}{'1':>8}{'2':>8}{'2 over 1':>10}")
    for name in dict.fromkeys(name for name, _ in medians):
        single, double = medians[name, 1], medians[name, 2]
        print(f"{name:28}{single:8.1f}{double:8.1f}{double / single:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", choices=("loss", "throughput"))
    args = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("error: Ray is not installed; pip install .[cluster] installs it", file=sys.stderr)
        raise SystemExit(2)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if args.only != "throughput":
        measure_loss(args.clients, args.seconds)
    if args.only != "loss":
        measure_throughput(args.repeats, args.seconds)


if __name__ == "__main__":
    main()
