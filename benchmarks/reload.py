"""New weights under load: failed requests, versions seen, and memory afterwards.

    python -m benchmarks reload [--reloads 20] [--clients 64]

Clients request single images without a pause while the weights of one model are replaced again and again, by different
weights each time, and SIGHUP makes the service reload them. The benchmark counts responses that are not images, the
digests that were seen, and the memory of all processes of the service (shared pages once) before, after two reloads,
and at the end. The service keeps two versions of weights, so memory should not grow after two reloads.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import httpx

from harness.load import build_request, merge, run_load
from harness.server import memory_mb, run_service
from harness.weights import copy_weights, perturb_weights

MODEL = "cgan"
PAUSE = 1.5
"""Seconds between the end of one reload and the next."""
WORKERS = 2


def wait_for_digest(url: str, digest: str, workers: int) -> None:
    """Return once every worker serves `digest`. Each request has its own connection, so all workers are asked."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        digests = {httpx.get(f"{url}/models/{MODEL}", timeout=30).json()["digest"] for _ in range(4 * workers)}
        if digests == {digest}:
            return
        time.sleep(0.1)
    raise SystemExit("the service did not load the new weights within a minute")


class Load:
    """Clients in threads, which count responses and collect digests until `stopped`."""

    def __init__(self, url: str, clients: int) -> None:
        self.url, self.clients, self.stopped = url, clients, threading.Event()
        self.digests, self.responses, self.failed = set[str](), 0, 0
        self.threads = [threading.Thread(target=self._collect_digests), threading.Thread(target=self._send)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Stop the clients and wait for their last responses."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _collect_digests(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stopped.is_set():
                self.digests.add(client.post("/generate", params={"model": MODEL}).headers["x-model-digest"])

    def _send(self) -> None:
        requests = [lambda: build_request("/generate", f"model={MODEL}&digit=7")] * self.clients
        while not self.stopped.is_set():
            result = merge(run_load(self.url, requests, 2.0, warm=0.0))
            self.failed, self.responses = self.failed + result.failed, self.responses + len(result.latencies)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks reload", description=__doc__)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--clients", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = copy_weights(Path(folder))
        with run_service(weights=weights, workers=WORKERS) as (url, pid):
            digests = {httpx.get(f"{url}/models/{MODEL}").json()["digest"]}
            load = Load(url, args.clients)
            time.sleep(PAUSE)
            memory = [memory_mb(pid)]
            for i in range(args.reloads):
                digests.add(digest := perturb_weights(weights / MODEL, i))
                os.kill(pid, signal.SIGHUP)
                wait_for_digest(url, digest, WORKERS)
                time.sleep(PAUSE)
                memory.append(memory_mb(pid))
                print(f"reload {i + 1}: {memory[-1]:.0f} MB", flush=True)
            load.stop()
            time.sleep(PAUSE)
    print(f"{load.responses} responses to {args.clients} clients, {load.failed} failed")
    print(f"{len(load.digests & digests)} of {len(digests)} digests seen")
    print(
        f"memory: {memory[0]:.0f} MB before, {memory[min(2, args.reloads)]:.0f} after two, {memory[-1]:.0f} at the end"
    )
    raise SystemExit(1 if load.failed or load.digests != digests else 0)


if __name__ == "__main__":
    main()
