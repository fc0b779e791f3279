"""Replicas on Ray Serve: what is lost with a node, and what two replicas draw that one does not.

    python -m benchmarks cluster [--repeats 3] [--seconds 3] [--clients 16] [--only loss|throughput]

Loss: a cluster of three Ray nodes on this machine, a replica on each, seeded requests of four models from clients that
ask again when they are cut off; one node is killed under that load, and another takes its place. Every answer is held
against the bytes that the same request had before.

Throughput: one image of `ddpm` in 20 steps, 32 clients; one and two workers of this service, the same application as
one and two replicas of Ray Serve, and Ray Serve's own `@serve.batch`. Interleaved; medians. Needs `.[cluster]`.
"""

import argparse
import asyncio
import importlib.util
import itertools
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.load import load, merged
from benchmarks.serve import PEERS, Peer, free, ours
from benchmarks.server import serving

ASKED = tuple(
    f"/generate?model={model}&seed={seed}"
    for seed in range(24)
    for model in ("cgan&digit=7", "dcgan", "vae", "ddpm&steps=10")
)
TRIES = 50
"""How often a client asks for the same, a tenth of a second apart, before it gives up."""
SEEDS = itertools.count()


@dataclass
class Seen:
    """What clients saw."""

    answered: int = 0
    repeated: int = 0
    """Attempts that were cut off, or answered by 5xx."""
    wrong: int = 0
    lost: int = 0
    troubles: list[float] = field(default_factory=list)
    """When attempts failed."""


async def ask(client: httpx.AsyncClient, path: str, seen: Seen) -> bytes | None:
    """The body, after as many attempts as it takes; None where that is too many."""
    for _ in range(TRIES):
        try:
            answer = await client.post(path)
            if answer.status_code == 200:
                return answer.content
        except httpx.TransportError:
            pass
        seen.repeated += 1
        seen.troubles.append(time.perf_counter())
        await asyncio.sleep(0.1)
    return None


async def press(url: str, expected: dict[str, bytes], seen: Seen, over: threading.Event, first: int) -> None:
    """One client: seeded requests in turn, each over a connection of its own, until `over`."""
    for path in itertools.islice(itertools.cycle(ASKED), first, None):
        if over.is_set():
            return
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            body = await ask(client, path, seen)
        seen.answered += body is not None
        seen.lost += body is None
        seen.wrong += body is not None and body != expected[path]


async def press_all(url: str, expected: dict[str, bytes], seen: Seen, over: threading.Event, clients: int) -> None:
    """All clients, each beginning elsewhere."""
    await asyncio.gather(*(press(url, expected, seen, over, 5 * k) for k in range(clients)))


async def solo(url: str) -> dict[str, bytes]:
    """What each request gets when it is alone."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        found = {path: await ask(client, path, Seen()) for path in ASKED}
    return {path: body for path, body in found.items() if body is not None}


def loss(url: str, cluster: Any, node: Any, clients: int, seconds: float) -> None:
    """Load, a node killed, load, a node added, load; and what came of it. Ray wants nodes from the main thread."""
    expected, seen, over = asyncio.run(solo(url)), Seen(), threading.Event()
    pressing = threading.Thread(target=asyncio.run, args=(press_all(url, expected, seen, over, clients),))
    pressing.start()
    try:
        time.sleep(seconds)
        before, killed = seen.answered, time.perf_counter()
        cluster.remove_node(node, allow_graceful=False)
        time.sleep(4 * seconds)
        between = seen.answered - before
        cluster.add_node(num_cpus=1)
        added = time.perf_counter()
        while replicas() < 3:
            time.sleep(0.2)
        whole = time.perf_counter() - added
        time.sleep(seconds)
    finally:
        over.set()
        pressing.join()
    last = max((at - killed for at in seen.troubles), default=0.0)
    print(f"{seen.answered} requests answered ({before} before the node was killed, {between} without it)")
    print(f"{seen.wrong} with other bytes than before, {seen.lost} lost; {seen.repeated} attempts had to be repeated,")
    print(f"the last {last:.1f} s after the node was killed; three replicas again {whole:.1f} s after a node was added")
    if seen.wrong or seen.lost:
        raise SystemExit(1)


def replicas() -> int:
    """Those that run."""
    from ray import serve

    deployment = serve.status().applications["drawbridge"].deployments["Replica"]
    return deployment.replica_states.get("RUNNING", 0)


def lose_a_node(clients: int, seconds: float) -> None:
    """A cluster of three nodes, one of which is killed."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from service.cluster import Replica

    port = free()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        _, victim = (cluster.add_node(num_cpus=1) for _ in range(2))
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
        deployment = Replica.options(num_replicas=3, max_replicas_per_node=1, max_ongoing_requests=256)
        settings = {"open": True, "log_level": "warning"}
        serve.run(deployment.bind(settings, None), name="drawbridge", route_prefix="/")
        loss(f"http://127.0.0.1:{port}", cluster, victim, clients, seconds)
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


REPLICAS = Peer("replicas", ours, needs="ray")
(BATCHED,) = (peer for peer in PEERS if peer.name == "ray")


def rate(url: str, peer: Peer, seconds: float) -> float:
    """Images a second for 32 clients, each of one in 20 steps."""
    found = merged(load(url, [lambda: peer.ask("ddpm", next(SEEDS), 20)] * 32, seconds))
    if found.failed:
        raise SystemExit(f"{url}: {found.failed} requests failed")
    return found.rate


def throughput(repeats: int, seconds: float) -> None:
    """Print the table."""
    rounds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for k in range(repeats):
        for count in (1, 2):
            with serving(device="cpu", workers=count) as (url, _):
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
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    if args.only != "throughput":
        lose_a_node(args.clients, args.seconds)
    if args.only != "loss":
        throughput(args.repeats, args.seconds)


if __name__ == "__main__":
    main()
