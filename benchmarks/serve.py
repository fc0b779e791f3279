"""This service beside other servers on the same weights: requests per second, one PNG each.

    python -m benchmarks serve [--repeats 3] [--seconds 3] [--only NAME ...] [--plot FILE]

Each server is started alone, measured and stopped, one after the other, and all of that `--repeats` times; medians. The
load generator shares the machine. Servers that are not installed are left out: naive FastAPI is always there, and
`pip install .[peers]` brings the others (TorchServe needs Java besides).

Every server gets the same request: a POST with a JSON body of model, seed and steps. This service also gets
`guidance: 1` for `ddpm`, because the others do not use guidance. Two more rows show what the form of a request costs
this service: `drawbridge, query` sends the same parameters in the query, and `drawbridge, proxied` adds the header
`X-Forwarded-For` to the JSON request, as a proxy does.

- W1: one image of `dcgan`; W2: one image of `ddpm` in 20 steps; W3: 16 clients request 10 steps while 16 request 50.
- "limit" is what the machine does without a server: single-threaded processes, or one process with all threads, that
  generate batches of 16 or 32 and encode them, whichever is fastest; and the time of one process for one image.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from harness.load import LoadResult, build_request, merge, run_load
from harness.server import ROOT, free_port, run_service

SEEDS = itertools.count()
FORWARDED = "X-Forwarded-For: 203.0.113.7\r\n"
"""The header that a proxy adds. The address is reserved for documentation (RFC 5737)."""
RequestBuilder = Callable[[str, int, int], bytes]
"""Returns the request for one image, by model, seed and steps."""


def _parameters(model: str, seed: int, steps: int) -> dict[str, object]:
    """Return the parameters of a request to this service."""
    parameters: dict[str, object] = {"model": model, "seed": seed, "steps": steps}
    return parameters | {"guidance": 1} if model == "ddpm" else parameters


def json_request(model: str, seed: int, steps: int) -> bytes:
    """Return a request to this service with a JSON body."""
    return build_request("/generate", body=json.dumps(_parameters(model, seed, steps)))


def query_request(model: str, seed: int, steps: int) -> bytes:
    """Return the same request with its parameters in the query."""
    return build_request("/generate", query=urlencode(_parameters(model, seed, steps)))


def proxied_request(model: str, seed: int, steps: int) -> bytes:
    """Return the JSON request with the header that a proxy adds."""
    return build_request("/generate", body=json.dumps(_parameters(model, seed, steps)), headers=FORWARDED)


OURS: dict[str, RequestBuilder] = {
    "drawbridge": json_request,
    "drawbridge, query": query_request,
    "drawbridge, proxied": proxied_request,
}


def _json_to(path: str) -> RequestBuilder:
    return partial(_json_request_to, path)  # which another process can get, unlike a lambda


def _json_request_to(path: str, model: str, seed: int, steps: int) -> bytes:
    return build_request(path, body=json.dumps({"model": model, "seed": seed, "steps": steps}))


def _bentoml_request(model: str, seed: int, steps: int) -> bytes:
    return build_request("/generate", body=json.dumps({"requests": [[model, str(seed), str(steps)]]}))


@dataclass(frozen=True)
class Peer:
    """Another server: the module `benchmarks.peers.NAME`, its requests, and how to start it."""

    name: str
    request: RequestBuilder
    command: tuple[str, ...] = ()
    needs: str = ""
    """A module without which it cannot run."""

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Run the server until the block ends. Yields its URL once it returns an image."""
        port = free_port()
        arguments = [part.format(port=port) for part in self.command] or ["-m", f"benchmarks.peers.{self.name}"]
        if arguments[0] == "-m":
            command = [sys.executable, *arguments]
        else:
            command = [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]
        environment = os.environ | {"PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log = subprocess.DEVNULL if "PEERS_LOG" not in os.environ else None
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, self.request("dcgan", 0, 1), process)
            yield url
        finally:
            _stop(process)


BARE = Peer("bare", _json_to("/generate"))
PEERS = (
    Peer("naive", _json_to("/generate")),
    Peer("mosec", _json_to("/inference"), ("-m", "benchmarks.peers.mosec", "--port", "{port}"), "mosec"),
    Peer("litserve", _json_to("/predict"), needs="litserve"),
    Peer("ray", _json_to("/generate"), needs="ray"),
    Peer(
        "bentoml",
        _bentoml_request,
        ("bentoml", "serve", "benchmarks.peers.bentoml:Generator", "--port", "{port}"),
        "bentoml",
    ),
    Peer("torchserve", _json_to("/predictions/generator"), needs="ts"),
)


def _wait(url: str, request: bytes, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Return once the server answers `request` with 200."""
    address, deadline = urlsplit(url), time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}; PEERS_LOG=1 shows why")
        try:
            with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
                connection.sendall(request)
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"{process.args!r} does not respond; PEERS_LOG=1 shows why")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and all processes that it has started."""
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


Row = dict[str, float]
"""Figures of one server by column."""
COLUMNS = ("W1, 1", "W1, 8", "W1, 64", "W2, 8", "W2, 32", "p50", "W3, 10", "W3, 50")
WORKLOADS = (
    ("W1, 1", "dcgan", 1, 1),
    ("W1, 8", "dcgan", 1, 8),
    ("W1, 64", "dcgan", 1, 64),
    ("W2, 8", "ddpm", 20, 8),
    ("W2, 32", "ddpm", 20, 32),
)
"""Column, model, steps and clients."""


def checked_load(url: str, requests: Sequence[Callable[[], bytes]], seconds: float) -> list[LoadResult]:
    """Run the load and return its results. Exits if a request fails."""
    results = run_load(url, requests, seconds)
    if failed := merge(results).failed:
        raise SystemExit(f"{url}: {failed} requests failed")
    return results


def measure(url: str, request: RequestBuilder, seconds: float) -> Row:
    """Measure a server: responses per second, and median latencies in milliseconds."""

    def run(clients: Sequence[tuple[str, int]], duration: float) -> list[LoadResult]:
        requests = [lambda one=one: request(one[0], next(SEEDS), one[1]) for one in clients]
        return checked_load(url, requests, duration)

    row: Row = {}
    for column, model, steps, clients in WORKLOADS:
        result = merge(run([(model, steps)] * clients, seconds))
        row[column] = result.rate
        if clients == 1:
            row["p50"] = 1000 * statistics.median(result.latencies)
    mixed = run([("ddpm", 10)] * 16 + [("ddpm", 50)] * 16, 3 * seconds)
    for column, results in (("W3, 10", mixed[:16]), ("W3, 50", mixed[16:])):
        latencies = merge(results).latencies
        row[column] = 1000 * statistics.median(latencies) if latencies else float("nan")
    return row


OFFLINE = """
import sys, time
import torch
from harness import workload
model, steps, batch, threads, seconds = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
workload.prepared_model(model)
workload.generate_pngs([(model, seed, steps) for seed in range(batch)])
torch.set_num_threads(threads)
print("ready", flush=True)
sys.stdin.readline()
started_at, count = time.perf_counter(), 0
while time.perf_counter() - started_at < seconds:
    workload.generate_pngs([(model, count + i, steps) for i in range(batch)])
    count += batch
print(count / (time.perf_counter() - started_at))
"""


def limit(model: str, steps: int, seconds: float) -> float:
    """Return the images per second without a server, in the fastest layout."""
    cores = len(os.sched_getaffinity(0))
    return max(
        _offline_rate(model, steps, batch, threads, cores // threads, seconds)
        for threads in {1, cores}
        for batch in (16, 32)
    )


def _offline_rate(model: str, steps: int, batch: int, threads: int, count: int, seconds: float) -> float:
    """Return the images per second of `count` processes of so many threads."""
    command = [sys.executable, "-c", OFFLINE, model, *map(str, (steps, batch, threads, seconds))]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    return sum(float(process.communicate("\n")[0]) for process in processes)


def bare(seconds: float) -> dict[str, Row]:
    """Measure HTTP without a model: responses per second, and the median of one client in milliseconds."""
    rows: dict[str, Row] = {}
    with BARE.serve() as url:
        for name, path in (("bare ASGI", "/generate"), ("FastAPI route", "/fastapi")):
            request = partial(_json_to(path), "dcgan", 1, 1)
            rows[name] = {}
            for clients in (1, 8, 64):
                result = merge(checked_load(url, [request] * clients, seconds))
                rows[name][f"W1, {clients}"] = result.rate
                if clients == 1:
                    rows[name]["p50"] = 1000 * statistics.median(result.latencies)
    return rows


def run_round(peers: list[Peer], seconds: float) -> dict[str, Row]:
    """Measure everything once."""
    rows = bare(seconds)
    w1, w2 = limit("dcgan", 1, seconds), limit("ddpm", 20, seconds)
    alone = 1000 / _offline_rate("dcgan", 1, batch=1, threads=1, count=1, seconds=seconds)
    rows["limit"] = {"W1, 8": w1, "W1, 64": w1, "W2, 8": w2, "W2, 32": w2, "p50": alone}
    with run_service(device="cpu") as (url, _):
        for name, request in OURS.items():
            rows[name] = measure(url, request, seconds)
    for peer in peers:
        with peer.serve() as url:
            rows[peer.name] = measure(url, peer.request, seconds)
    return rows


def table(rows: dict[str, Row]) -> Iterator[str]:
    """Yield the table, one line for each server."""
    yield f"{'requests/s':20}" + "".join(f"{name:>9}" for name in COLUMNS)
    for name, row in rows.items():
        yield f"{name:20}" + "".join(f"{row[column]:9.4g}" if column in row else " " * 9 for column in COLUMNS)


def ratios(rounds: list[dict[str, Row]], medians: dict[str, Row]) -> Iterator[str]:
    """Yield the comparisons: medians of each round's ratio, because the speed of a machine varies between rounds."""

    def ratio(name: str, column: str, other_column: str = "", ours: str = "drawbridge") -> str:
        return f"{statistics.median(row[ours][column] / row[name][other_column or column] for row in rounds):.2f}"

    others = medians.keys() - OURS.keys() - {"limit", "bare ASGI", "FastAPI route", "naive"}
    for column in ("W1, 64", "W1, 8", "W2, 32", "W2, 8"):
        yield f"{column}: {ratio('limit', column)} of the limit"
        if others:
            _, best = max((medians[name][column], name) for name in others)
            yield f"{column}: {ratio(best, column)} of the best peer ({best})"
    for name in list(OURS)[1:]:
        yield f"W1, 64: {name} is {ratio('drawbridge', 'W1, 64', ours=name)} of JSON"
    if "naive" in medians:
        yield f"W1, 1: {ratio('naive', 'W1, 1')} of naive FastAPI"
    floor = statistics.median(
        row["drawbridge"]["p50"] / (row["limit"]["p50"] + row["bare ASGI"]["p50"]) for row in rounds
    )
    yield f"W1, 1: the median latency is {floor:.2f} of one image without a server and a bare ASGI route together"
    yield f"W3: the 10-step median latency is {ratio('drawbridge', 'W3, 10', 'W3, 50')} of the 50-step one"


def plot(rows: dict[str, Row], path: Path) -> None:
    """Draw the servers that generate images beside each other, with the limit as a line."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    others = {"bare ASGI", "FastAPI route", "limit", "drawbridge, query", "drawbridge, proxied"}
    names = [name for name in rows if name not in others]
    figure, all_axes = pyplot.subplots(1, 5, figsize=(13, 3), layout="constrained")
    for axes, column in zip(all_axes, COLUMNS[:5], strict=True):
        values = [rows[name].get(column, 0.0) for name in names]
        axes.barh(names, values, color=["#1f6feb" if name == "drawbridge" else "#9aa4af" for name in names])
        if column in rows["limit"]:
            axes.axvline(rows["limit"][column], color="black", linestyle=":")
        axes.set_title(f"{column} clients", fontsize=10)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not all_axes[0]:
            axes.set_yticks([])
    figure.supxlabel("requests per second; dotted: without a server", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="measure only these peers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures as bars into this file")
    args = parser.parse_args()
    installed = [peer for peer in PEERS if not peer.needs or importlib.util.find_spec(peer.needs)]
    peers = [peer for peer in installed if args.only is None or peer.name in args.only]
    rounds = []
    for k in range(args.repeats):
        rounds.append(run_round(peers, args.seconds))
        print(f"round {k + 1} of {args.repeats} is done", file=sys.stderr)
    medians = {
        name: {column: statistics.median(rows[name][column] for rows in rounds) for column in row}
        for name, row in rounds[0].items()
    }
    print(f"medians of {args.repeats} rounds; W3 and p50 (one client of W1) in milliseconds")
    print(*table(medians), "", *ratios(rounds, medians), sep="\n")
    if args.plot is not None:
        plot(medians, args.plot)


if __name__ == "__main__":
    main()
