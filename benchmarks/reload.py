"""New weights under load: whether anybody notices, and what stays behind.

    python -m benchmarks reload [--reloads 20] [--clients 64]

Clients ask for single images without a pause while the weights of one model are replaced again and again, by other
weights each time, and SIGHUP says so. Counted are answers that are no images, the digests that were seen, and the
memory of all processes of the service (shared pages once) before, after the first two reloads, and at the end. Two
versions of weights are kept, so that after two memory is where it should stay.
"""

import argparse
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import httpx
import torch

from harness.load import build_request, merge, run_load
from harness.server import memory_mb, run_service
from models import store

ROOT = Path(__file__).parent.parent
MODEL = "cgan"
SETTLED = 1.5
"""Seconds between one reload's end and the next."""


def renew(directory: Path, seed: int) -> str:
    """Other weights of the same model, a thousandth away from those that are there; returns their digest."""
    family, manifest = store.load(directory)
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in family.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1e-3 * tensor.abs().mean() * torch.randn_like(tensor))
    return store.save(directory, family, manifest, (directory / store.SAMPLES).read_bytes()).digest


def serves(url: str, digest: str, workers: int) -> None:
    """Return once every worker, each asked over a connection of its own, serves `digest`."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = {httpx.get(f"{url}/models/{MODEL}", timeout=30).json()["digest"] for _ in range(4 * workers)}
        if found == {digest}:
            return
        time.sleep(0.1)
    raise SystemExit("the new weights were not taken up within a minute")


def draw() -> bytes:
    """A request for one image."""
    return build_request("/generate", f"model={MODEL}&digit=7")


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks reload")
    options.add_argument("--reloads", type=int, default=20)
    options.add_argument("--clients", type=int, default=64)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "weights"
        shutil.copytree(ROOT / "weights", root)
        with run_service(weights=root, workers=2) as (url, front):
            digests = {httpx.get(f"{url}/models/{MODEL}").json()["digest"]}
            seen, failed, answered = set[str](), 0, 0
            over = threading.Event()

            def watch() -> None:
                """Which digests answers have."""
                with httpx.Client(base_url=url, timeout=30) as client:
                    while not over.is_set():
                        seen.add(client.post("/generate", params={"model": MODEL}).headers["x-model-digest"])

            def press() -> None:
                nonlocal failed, answered
                while not over.is_set():
                    found = merge(run_load(url, [draw] * args.clients, 2.0, warm=0.0))
                    failed, answered = failed + found.failed, answered + len(found.latencies)

            threads = [threading.Thread(target=watch), threading.Thread(target=press)]
            for thread in threads:
                thread.start()
            time.sleep(SETTLED)
            marks = [memory_mb(front)]
            for i in range(args.reloads):
                digests.add(digest := renew(root / MODEL, i))
                os.kill(front, signal.SIGHUP)
                serves(url, digest, 2)
                time.sleep(SETTLED)
                marks.append(memory_mb(front))
                print(f"reload {i + 1}: {marks[-1]:.0f} MB", flush=True)
            over.set()
            for thread in threads:
                thread.join()
            time.sleep(SETTLED)
    print(f"{answered} answers to {args.clients} clients, {failed} failed")
    print(f"{len(seen & digests)} of {len(digests)} digests seen")
    print(f"memory: {marks[0]:.0f} MB before, {marks[min(2, args.reloads)]:.0f} after two, {marks[-1]:.0f} after all")
    raise SystemExit(1 if failed or seen != digests else 0)
