"""Command line: runs scenarios one after the other and prints their losses as a table."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos import scenarios
from chaos.report import Report, check_place, show, summary, table
from chaos.scenario import Line, Scenario, Setting
from chaos.soak import cli as soak
from training.docs import filled

MARK = "chaos"
"""The name of the table's place in a file: `<!-- chaos -->`."""


def main(arguments: Sequence[str] | None = None, get: Callable[[str], Scenario] = scenarios.get) -> int:
    """Run the scenarios that `arguments` name, or all, or the soak.

    Returns 0 if every line was run and lost nothing, 1 if something was lost, and 3 if nothing was lost but a line was
    not run.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["soak"]:
        return soak.main(arguments[1:])
    args = _parse(arguments)
    started_at = time.monotonic()
    report: Report = []
    for name in args.scenarios or scenarios.NAMES:
        scenario = get(name)
        report.append((title(scenario), run_scenario(scenario, quick=args.quick, seed=args.seed)))
    minutes = (time.monotonic() - started_at) / 60
    status, verdict = summary([line for _, lines in report for line in lines])
    form = "quick form" if args.quick else "full form"
    head = f"The {form}, seed {args.seed}, in {minutes:.0f} minutes on {os.cpu_count()} cores. {verdict}"
    page = f"{head}\n\n{table(report)}"
    print(f"\n{page}\n\n{verdict} Exit status {status}.", flush=True)
    if args.write is not None:
        args.write.write_text(filled(args.write.read_text(), MARK, page))
    return status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Inject faults into the service and into training, and count the losses.",
        epilog="`python -m chaos soak --help` describes the soak, which runs for hours.",
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"any of {', '.join(scenarios.NAMES)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="run the short form that the tests run")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between the marks in this file")
    args = parser.parse_args(arguments)
    for name in args.scenarios:
        if name not in scenarios.NAMES:
            parser.error(f"no scenario is called {name}; choose from {', '.join(scenarios.NAMES)}")
    if args.write is not None and args.scenarios:
        parser.error("--write needs the table of all scenarios; name none")
    check_place(parser, args.write, MARK)
    return args


def title(scenario: Scenario) -> str:
    """Return the first line of the scenario's docstring."""
    return (scenario.__doc__ or "").partition("\n")[0].removesuffix(".")


def run_scenario(scenario: Scenario, *, quick: bool, seed: int) -> list[Line]:
    """Run one scenario, print its lines and return them. An exception becomes a line that lost something."""
    print(title(scenario), flush=True)
    lines = list[Line]()
    with tempfile.TemporaryDirectory(prefix="chaos-") as root:
        try:
            for line in scenario.run(Setting(quick, seed, Path(root))):
                lines.append(line)
                show(line)
        except Exception as error:
            lines.append(Line("the scenario ended with an exception", 1, 1, repr(error)))
            show(lines[-1])
    return lines
