"""Another checkout of this service beside this one: requests per second before and after a change.

    python -m benchmarks compare --before DIR [--set NAME=VALUE ...] [--clients 1 8 64] [--seconds 2] [--rounds 5]
    python -m benchmarks compare --before . --set http_processes=1

Both services run at the same time, in the same Python environment and with the same weights, and get the same load in
turn; the other one is idle meanwhile. `--set` gives this checkout's service settings that the other one does not get.
A round measures every workload, form of request and number of clients. The table has the median requests per second of
each service, and the median of each round's ratio, because the speed of a machine varies between rounds.

- W1: one image of `dcgan`; W2: one image of `ddpm` in 20 steps of the sampler `ddpm`, without guidance.
- query: parameters in the query; JSON: parameters in the body; proxied: JSON with the header `X-Forwarded-For`.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import httpx

from benchmarks.serve import FORWARDED, SEEDS, checked_load
from harness.load import build_request, merge
from harness.server import ROOT, SERVICE, environment, run_server
from harness.weights import WEIGHTS

Parameters = dict[str, object]
WORKLOADS: dict[str, Parameters] = {
    "W1": {"model": "dcgan"},
    "W2": {"model": "ddpm", "steps": 20, "sampler": "ddpm", "guidance": 1},
}
FORMS: dict[str, Callable[[Parameters], bytes]] = {
    "query": lambda parameters: build_request("/generate", query=urlencode(parameters)),
    "JSON": lambda parameters: build_request("/generate", body=json.dumps(parameters)),
    "proxied": lambda parameters: build_request("/generate", body=json.dumps(parameters), headers=FORWARDED),
}
Case = tuple[str, str, int]
"""Workload, form of request and number of clients."""


@contextmanager
def checkout(root: Path, **more: str) -> Iterator[str]:
    """Run the service of the checkout at `root` with the settings `more` until the block ends. Yields its URL.

    Without `more` it gets only settings that every version knows.
    """
    settings = environment(port=0, device="cpu", weights=WEIGHTS, **more)
    with run_server(SERVICE, settings | {"PYTHONPATH": str(root)}, cwd=root, loaded=False) as server:
        while httpx.get(f"{server.url}/readyz", timeout=60).is_error:
            time.sleep(0.1)
        yield server.url


def setting(text: str) -> tuple[str, str]:
    """A name and its value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, as in http_processes=1")
    return name, value


def rate(url: str, case: Case, seconds: float) -> float:
    """Return the responses per second."""
    workload, form, clients = case

    def request() -> bytes:
        return FORMS[form](WORKLOADS[workload] | {"seed": next(SEEDS)})

    return merge(checked_load(url, [request] * clients, seconds)).rate


def measure(urls: dict[str, str], cases: list[Case], rounds: int, seconds: float) -> dict[Case, dict[str, list[float]]]:
    """Return the rates of every round, by case and service. The services take turns in going first."""
    rates: dict[Case, dict[str, list[float]]] = {case: defaultdict(list) for case in cases}
    for k in range(rounds):
        for i, case in enumerate(cases):
            order = list(urls) if (k + i) % 2 == 0 else list(urls)[::-1]
            for name in order:
                rates[case][name].append(rate(urls[name], case, seconds))
        print(f"round {k + 1} of {rounds} is done", file=sys.stderr)
    return rates


def table(rates: dict[Case, dict[str, list[float]]]) -> Iterator[str]:
    """Yield the table, one line for each case."""
    yield f"{'requests/s':12}{'form':10}{'clients':>8}{'before':>10}{'after':>10}{'after/before':>14}"
    for (workload, form, clients), by_service in rates.items():
        before, after = by_service["before"], by_service["after"]
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        figures = f"{statistics.median(before):10.1f}{statistics.median(after):10.1f}{ratio:14.3f}"
        yield f"{workload:12}{form:10}{clients:8}{figures}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="a checkout of another version")
    parser.add_argument(
        "--set", type=setting, nargs="+", default=[], metavar="NAME=VALUE", help="settings of this checkout's service"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not (args.before / "service").is_dir():
        parser.error(f"--before: {args.before} is not a checkout of this project")
    cases = list(itertools.product(WORKLOADS, FORMS, args.clients))
    with checkout(args.before.resolve()) as before, checkout(ROOT, **dict(args.set)) as after:
        rates = measure({"before": before, "after": after}, cases, args.rounds, args.seconds)
    print(f"medians of {args.rounds} rounds of {args.seconds:g} s; the ratio is the median of each round's ratio")
    print(*table(rates), sep="\n")


if __name__ == "__main__":
    main()
