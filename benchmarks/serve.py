"""This service beside others, on the same weights: requests a second, one PNG each.

    python -m benchmarks serve [--repeats 3] [--seconds 3] [--only NAME ...]

Every server is started alone, measured and ended, one after the other, and all of that `--repeats` times; medians. The
load generator shares the machine. Those of the others that are not installed are left out: naive FastAPI is always
there, and `pip install .[peers]` brings the rest (TorchServe needs Java besides).

- W1: one image of `dcgan`; W2: one of `ddpm` in 20 steps, plain; W3: 16 clients ask 10 steps while 16 ask 50.
- "limit" is what the machine gives without any server: processes of one thread, or one process of two, drawing batches
  of 16 or 32 and encoding them, whichever is the quickest; and the time that one process takes for one image.
"""

import argparse
import importlib.util
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.load import build_request, merge, run_load
from harness.server import run_service

ROOT = Path(__file__).parent.parent
SEEDS = itertools.count()
Asks = Callable[[str, int, int], bytes]
"""A request for one image of a model, by seed and steps."""


@dataclass(frozen=True)
class Peer:
    """Somebody else's server: `benchmarks.peers.NAME`, how it is asked, and how it is run."""

    name: str
    ask: Asks
    command: tuple[str, ...] = ()
    needs: str = ""

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Its URL, once it draws."""
        port = free()
        fill = {"port": str(port)}
        run = [part.format(**fill) for part in self.command] or ["-m", f"benchmarks.peers.{self.name}"]
        environment = os.environ | {"PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        binaries = Path(sys.executable).parent
        command = [str(binaries / run[0]), *run[1:]] if self.command and run[0] != "-m" else [sys.executable, *run]
        log = subprocess.DEVNULL if "PEERS_LOG" not in os.environ else None
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, self.ask("dcgan", 0, 1), process)
            yield url
        finally:
            _end(process)


def _query(model: str, seed: int, steps: int) -> bytes:
    return build_request("/generate", f"model={model}&seed={seed}&steps={steps}")


def ours(model: str, seed: int, steps: int) -> bytes:
    extra = f"&steps={steps}&guidance=1" if model == "ddpm" else ""
    return build_request("/generate", f"model={model}&seed={seed}{extra}")


def _json(path: str) -> Asks:
    return lambda model, seed, steps: build_request(
        path, body=json.dumps({"model": model, "seed": seed, "steps": steps})
    )


def _rows(model: str, seed: int, steps: int) -> bytes:
    return build_request("/generate", body=json.dumps({"asked": [[model, str(seed), str(steps)]]}))


BARE = Peer("bare", _query)
PEERS = (
    Peer("naive", _query),
    Peer("mosec", _json("/inference"), ("-m", "benchmarks.peers.mosec", "--port", "{port}"), "mosec"),
    Peer("litserve", _json("/predict"), needs="litserve"),
    Peer("ray", _json("/generate"), needs="ray"),
    Peer("bentoml", _rows, ("bentoml", "serve", "benchmarks.peers.bentoml:Draw", "--port", "{port}"), "bentoml"),
    Peer("torchserve", _json("/predictions/draw"), needs="ts"),
)


def free() -> int:
    """A port such that it and the two after it are free, as far as one can tell."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait(url: str, request: bytes, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Return once the server answers `request` with 200."""
    end = time.monotonic() + seconds
    host, port = url.removeprefix("http://").split(":")
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}; PEERS_LOG=1 shows why")
        try:
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(request)
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"{process.args!r} does not answer; PEERS_LOG=1 shows why")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


def measure(url: str, asks: Asks, seconds: float) -> dict[str, float]:
    """Answers a second, and medians in milliseconds, by the workload."""
    found: dict[str, float] = {}

    def run(asked: list[tuple[str, int]], duration: float) -> list[list[float]]:
        clients = [lambda one=one: asks(one[0], next(SEEDS), one[1]) for one in asked]
        answers = run_load(url, clients, duration)
        if failed := merge(answers).failed:
            raise SystemExit(f"{url}: {failed} requests failed")
        return [one.latencies for one in answers]

    for name, model, steps, clients in (
        ("W1, 1", "dcgan", 1, 1),
        ("W1, 8", "dcgan", 1, 8),
        ("W1, 64", "dcgan", 1, 64),
        ("W2, 8", "ddpm", 20, 8),
        ("W2, 32", "ddpm", 20, 32),
    ):
        answers = run([(model, steps)] * clients, seconds)
        found[name] = sum(map(len, answers)) / seconds
        if name == "W1, 1":
            found["p50"] = 1000 * statistics.median(answers[0])
    mixed = run([("ddpm", 10)] * 16 + [("ddpm", 50)] * 16, 3 * seconds)
    for name, part in (("W3, 10", mixed[:16]), ("W3, 50", mixed[16:])):
        latencies = [each for one in part for each in one]
        found[name] = 1000 * statistics.median(latencies) if latencies else float("nan")
    return found


DRAW = """
import sys, time
import torch
from harness import workload
model, steps, batch, threads, seconds = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
workload.prepared_model(model)
workload.generate_pngs([(model, seed, steps) for seed in range(batch)])
torch.set_num_threads(threads)
print("ready", flush=True)
sys.stdin.readline()
start, count = time.perf_counter(), 0
while time.perf_counter() - start < seconds:
    workload.generate_pngs([(model, count + i, steps) for i in range(batch)])
    count += batch
print(count / (time.perf_counter() - start))
"""


def limit(model: str, steps: int, seconds: float) -> float:
    """Images a second without any server, in the layout that is quickest."""
    cores = len(os.sched_getaffinity(0))
    return max(
        _drawn(model, steps, batch, threads, cores // threads, seconds) for threads in {1, cores} for batch in (16, 32)
    )


def _drawn(model: str, steps: int, batch: int, threads: int, count: int, seconds: float) -> float:
    options = [model, *map(str, (steps, batch, threads, seconds))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, *options], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    return sum(float(process.communicate("\n")[0]) for process in processes)


def bare(seconds: float) -> dict[str, dict[str, float]]:
    """What HTTP costs without a model: answers a second, and one client's median in milliseconds."""
    found: dict[str, dict[str, float]] = {}
    with BARE.serve() as url:
        for name, path in (("bare ASGI", "/generate"), ("FastAPI route", "/fastapi")):
            request = build_request(path, "model=dcgan&seed=1&steps=1")
            found[name] = {}
            for clients in (1, 8, 64):
                answers = merge(run_load(url, [lambda request=request: request] * clients, seconds))
                found[name][f"W1, {clients}"] = answers.rate
                if clients == 1:
                    found[name]["p50"] = 1000 * statistics.median(answers.latencies)
    return found


COLUMNS = ("W1, 1", "W1, 8", "W1, 64", "W2, 8", "W2, 32", "p50", "W3, 10", "W3, 50")


def once(peers: list[Peer], seconds: float) -> dict[str, dict[str, float]]:
    """One round of everything."""
    found = bare(seconds)
    w1, w2 = limit("dcgan", 1, seconds), limit("ddpm", 20, seconds)
    alone = 1000 / _drawn("dcgan", 1, batch=1, threads=1, count=1, seconds=seconds)
    found["limit"] = {"W1, 8": w1, "W1, 64": w1, "W2, 8": w2, "W2, 32": w2, "p50": alone}
    with run_service(device="cpu") as (url, _):
        found["drawbridge"] = measure(url, ours, seconds)
    for peer in peers:
        with peer.serve() as url:
            found[peer.name] = measure(url, peer.ask, seconds)
    return found


def table(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """The figures, a line a server."""
    yield f"{'requests/s':16}" + "".join(f"{name:>9}" for name in COLUMNS)
    for name, row in found.items():
        yield f"{name:16}" + "".join(f"{row[column]:9.4g}" if column in row else " " * 9 for column in COLUMNS)


def ratios(rounds: list[dict[str, dict[str, float]]], found: dict[str, dict[str, float]]) -> Iterator[str]:
    """What the figures are compared for: medians of the rounds' own ratios, since a machine is not always as quick."""

    def over(name: str, column: str, other: str = "") -> str:
        return f"{statistics.median(row['drawbridge'][column] / row[name][other or column] for row in rounds):.2f}"

    others = found.keys() - {"drawbridge", "limit", "bare ASGI", "FastAPI route", "naive"}
    for column in ("W1, 64", "W1, 8", "W2, 32", "W2, 8"):
        yield f"{column}: {over('limit', column)} of the limit"
        if others:
            _, best = max((found[name][column], name) for name in others)
            yield f"{column}: {over(best, column)} of the best peer ({best})"
    if "naive" in found:
        yield f"W1, 1: {over('naive', 'W1, 1')} of naive FastAPI"
    floor = statistics.median(
        row["drawbridge"]["p50"] / (row["limit"]["p50"] + row["bare ASGI"]["p50"]) for row in rounds
    )
    yield f"W1, 1: the median is {floor:.2f} of one image drawn alone and a bare ASGI route together"
    yield f"W3: the 10-step median is {over('drawbridge', 'W3, 10', 'W3, 50')} of the 50-step median"


def plot(found: dict[str, dict[str, float]], path: Path) -> None:
    """The servers that draw, beside one another, with the limit as a line."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    names = [name for name in found if name not in ("bare ASGI", "FastAPI route", "limit")]
    figure, all_axes = pyplot.subplots(1, 5, figsize=(13, 3), layout="constrained")
    for axes, column in zip(all_axes, COLUMNS[:5], strict=True):
        values = [found[name].get(column, 0.0) for name in names]
        axes.barh(names, values, color=["#1f6feb" if name == "drawbridge" else "#9aa4af" for name in names])
        if column in found["limit"]:
            axes.axvline(found["limit"][column], color="black", linestyle=":")
        axes.set_title(f"{column} at a time", fontsize=10)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not all_axes[0]:
            axes.set_yticks([])
    figure.supxlabel("requests a second; dotted: no server at all", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", help="of the others, these alone")
    parser.add_argument("--plot", type=Path, help="a picture of it")
    args = parser.parse_args()
    there = [peer for peer in PEERS if not peer.needs or importlib.util.find_spec(peer.needs)]
    peers = [peer for peer in there if args.only is None or peer.name in args.only]
    rounds = []
    for k in range(args.repeats):
        rounds.append(once(peers, args.seconds))
        print(f"round {k + 1} of {args.repeats} is done", file=sys.stderr)
    found = {
        name: {column: statistics.median(one[name][column] for one in rounds) for column in row}
        for name, row in rounds[0].items()
    }
    print(f"medians of {args.repeats} rounds; W3 and p50 (one client of W1) in milliseconds")
    print(*table(found), "", *ratios(rounds, found), sep="\n")
    if args.plot is not None:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
