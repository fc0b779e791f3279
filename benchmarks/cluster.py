"""Replicas on Ray Serve: what is lost with a replica, a node, or old weights, and what two draw that one does not.

    python -m benchmarks cluster [--repeats 3] [--seconds 3] [--clients 16] [--only loss|throughput]

Loss: a cluster of three Ray nodes on this machine, a replica on each, seeded requests of four models from clients that
ask again when they are cut off. Under that load, one after another: a replica's process is killed, one model's weights
are replaced (`user_config`), a node is killed, and another takes its place. Every answer is held against the bytes that
the same request has when it is alone, before or, where weights are replaced, after.

Throughput: one image of `ddpm` in 20 steps, 32 clients; one and two workers of this service, the same application as
one and two replicas of Ray Serve, and Ray Serve's own `@serve.batch`. Interleaved; medians. Needs `.[cluster]`.
"""

import argparse
import asyncio
import importlib.util
import itertools
import os
import shutil
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

from benchmarks.reload import MODEL, renew, serves
from benchmarks.serve import PEERS, Peer, free, ours
from harness.load import merge, run_load
from harness.server import ROOT, run_service

MODELS = {"cgan": "&digit=7", "dcgan": "", "vae": "", "ddpm": "&steps=10"}
ASKED = tuple(f"/generate?model={model}&seed={seed}{how}" for seed in range(24) for model, how in MODELS.items())
NODES = 3
TRIES = 50
"""How often a client asks for the same, a tenth of a second apart, before it gives up."""
SEEDS = itertools.count()


@dataclass
class Seen:
    """What clients saw."""

    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    """Answers, each with what was asked."""
    lost: int = 0
    troubles: list[float] = field(default_factory=list)
    """When attempts were cut off, or answered by 5xx."""


async def ask(client: httpx.AsyncClient, path: str, seen: Seen) -> bytes | None:
    """The body, after as many attempts as it takes; None where that is too many."""
    for _ in range(TRIES):
        try:
            answer = await client.post(path)
            if answer.status_code == 200:
                return answer.content
        except httpx.TransportError:
            pass
        seen.troubles.append(time.perf_counter())
        await asyncio.sleep(0.1)
    return None


async def press(url: str, seen: Seen, over: threading.Event, first: int) -> None:
    """One client: seeded requests in turn, each over a connection of its own, until `over`."""
    for path in itertools.islice(itertools.cycle(ASKED), first, None):
        if over.is_set():
            return
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            body = await ask(client, path, seen)
        if body is None:
            seen.lost += 1
        else:
            seen.bodies.append((path, body))


async def press_all(url: str, seen: Seen, over: threading.Event, clients: int) -> None:
    """All clients, each beginning elsewhere."""
    await asyncio.gather(*(press(url, seen, over, 5 * k) for k in range(clients)))


async def solo(url: str) -> dict[str, bytes]:
    """What each request gets when it is alone."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        found = {path: await ask(client, path, Seen()) for path in ASKED}
    return {path: body for path, body in found.items() if body is not None}


def endure(url: str, happen: Callable[[], None], clients: int, seconds: float) -> tuple[Seen, float, float]:
    """Load, what happens, load. What clients saw, the seconds until their last trouble, and those that it took.

    Ray wants what happens on the main thread.
    """
    seen, over = Seen(), threading.Event()
    pressing = threading.Thread(target=asyncio.run, args=(press_all(url, seen, over, clients),))
    pressing.start()
    try:
        time.sleep(seconds)
        begun = time.perf_counter()
        happen()
        took = time.perf_counter() - begun
        time.sleep(seconds)
    finally:
        over.set()
        pressing.join()
    return seen, max((at - begun for at in seen.troubles), default=0.0), took


class Replicas:
    """One replica on each of `NODES` nodes, and what may happen to them."""

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
        """What `serve deploy` does with the committed configuration, and `weights` for a word in its `user_config`.

        (`serve.run` would replace the replicas, since it takes all code for new.)
        """
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        self.deployment["user_config"] = {"weights": weights}
        _get_global_client().deploy_apps(ServeDeploySchema(**self.config))
        self.wait()

    def wait(self) -> None:
        """Return once there is one on each node, and all of them run as they should."""
        from ray import serve

        while True:
            application = serve.status().applications.get("drawbridge")
            if application is not None and application.status == "RUNNING":
                states = application.deployments["Replica"].replica_states
                if states.get("RUNNING") == len(self.nodes) and all(map(pids, self.nodes)):
                    return
            time.sleep(0.2)

    def kill_replica(self) -> None:
        """End the last node's, as the kernel does where memory is short."""
        for pid in pids(self.nodes[-1]):
            os.kill(pid, signal.SIGKILL)
        self.wait()

    def kill_node(self, seconds: float) -> None:
        """End the last node, and do without it for a while."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        time.sleep(seconds)

    def add_node(self) -> None:
        """Another in its place."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        self.wait()


def pids(node: Any) -> list[int]:
    """The replicas on a Ray node, which are children of its raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = [pid for path in Path(f"/proc/{raylet}/task").glob("*/children") for pid in path.read_text().split()]
    found = []
    for pid in children:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it is gone
            continue
        found += [int(pid)] * title.startswith(b"ray::ServeReplica:")
    return found


@contextmanager
def replicated(weights: Path) -> Iterator[tuple[str, Replicas]]:
    """The URL of a cluster's replicas of `weights`, and these."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    port = free()
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


def loss(clients: int, seconds: float) -> None:
    """Print what came of everything that may happen; exit with 1 where somebody was not served as promised."""
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        for model in MODELS:
            shutil.copytree(ROOT / "weights" / model, weights / model)

        with replicated(weights) as (url, replicas):

            def update() -> None:
                digest = renew(weights / MODEL, 1)
                replicas.deploy("second")
                serves(url, digest, NODES)

            before = asyncio.run(solo(url))
            print(f"{'':18}{'answers':>9}{'wrong':>7}{'lost':>6}{'repeated':>10}{'until':>8}{'whole after':>13}")
            for name, happen in (
                ("a replica killed", replicas.kill_replica),
                ("weights replaced", update),
                ("a node killed", lambda: replicas.kill_node(4 * seconds)),
                ("another node", replicas.add_node),
            ):
                seen, until, took = endure(url, happen, clients, seconds)
                after = asyncio.run(solo(url))
                wrong = sum(body not in (before[path], after[path]) for path, body in seen.bodies)
                whole = "" if name == "a node killed" else f"{took:.1f} s"
                counts = f"{len(seen.bodies):9}{wrong:7}{seen.lost:6}{len(seen.troubles):10}"
                print(f"{name:18}{counts}{until:6.1f} s{whole:>13}", flush=True)
                changed = {path.partition("&")[0] for path in ASKED if after[path] != before[path]}
                expected = {f"/generate?model={MODEL}"} if happen is update else set()
                broken |= bool(wrong or seen.lost or changed != expected)
                before = after
    if broken:
        raise SystemExit(1)


REPLICAS = Peer("replicas", ours, needs="ray")
(BATCHED,) = (peer for peer in PEERS if peer.name == "ray")


def rate(url: str, peer: Peer, seconds: float) -> float:
    """Images a second for 32 clients, each of one in 20 steps."""
    found = merge(run_load(url, [lambda: peer.ask("ddpm", next(SEEDS), 20)] * 32, seconds))
    if found.failed:
        raise SystemExit(f"{url}: {found.failed} requests failed")
    return found.rate


def throughput(repeats: int, seconds: float) -> None:
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
    medians = {which: statistics.median(rates) for which, rates in rounds.items()}
    print(f"{'images/s, medians of ' + str(repeats):28}{'1':>8}{'2':>8}{'2 over 1':>10}")
    for name in dict.fromkeys(name for name, _ in medians):
        one, two = medians[name, 1], medians[name, 2]
        print(f"{name:28}{one:8.1f}{two:8.1f}{two / one:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", choices=("loss", "throughput"))
    args = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("error: Ray is not installed; pip install .[cluster]", file=sys.stderr)
        raise SystemExit(2)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if args.only != "throughput":
        loss(args.clients, args.seconds)
    if args.only != "loss":
        throughput(args.repeats, args.seconds)


if __name__ == "__main__":
    main()
