"""Command line: runs scenarios one after the other and prints their losses as a table."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos import scenarios
from chaos.scenario import Line, Scenario, Setting
from training.docs import filled

MARK = "chaos"
"""The name of the table's place in a file: `<!-- chaos -->`."""
LOST, SKIPPED = 1, 3
"""Exit statuses. 2 is a mistake on the command line."""
Report = list[tuple[str, list[Line]]]
"""The title of each scenario, and its lines."""


def main(arguments: Sequence[str] | None = None, get: Callable[[str], Scenario] = scenarios.get) -> int:
    """Run the scenarios that `arguments` name, or all.

    Returns 0 if every line was run and lost nothing, 1 if something was lost, and 3 if nothing was lost but a line was
    not run.
    """
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Inject faults into the service and into training, and count the losses."
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
    if args.write is not None:
        if args.scenarios:
            parser.error("--write needs the table of all scenarios; name none")
        try:
            filled(args.write.read_text(), MARK, "")
        except (OSError, ValueError) as error:
            parser.error(f"--write: {args.write} has no place for the table: {error}")
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
                _print(line)
        except Exception as error:
            lines.append(Line("the scenario ended with an exception", 1, 1, repr(error)))
            _print(lines[-1])
    return lines


def _print(line: Line) -> None:
    result = f"LOST {line.lost}" if line.failed else f"{line.lost} lost"
    if line.skipped:
        result = f"NOT RUN: {line.skipped}"
    figures = f"; {line.figures}" if line.figures else ""
    print(f"  {line.action}: {line.count:,} times, {result}{figures}", flush=True)


def summary(lines: Sequence[Line]) -> tuple[int, str]:
    """Return the exit status for `lines`, and a sentence that says the same."""
    failed, skipped = sum(line.failed for line in lines), [line for line in lines if line.skipped]
    verdict = f"{failed} of {len(lines)} checks failed"
    if skipped:
        reasons = "; ".join(dict.fromkeys(line.skipped for line in skipped))
        verdict += f", {len(skipped)} not run ({reasons})"
    return (LOST if failed else SKIPPED if skipped else 0), f"{verdict}."


def table(report: Report) -> str:
    """Return all lines as a Markdown table."""
    rows = ["| scenario | action | count | lost | figures |", "|---|---|---|---|---|"]
    for name, lines in report:
        for i, line in enumerate(lines):
            lost, figures = f"{line.lost:,}", line.figures
            if line.skipped:
                lost, figures = "not run", line.skipped
            elif line.failed and not line.lost:
                lost = "failed"
            cells = (name if i == 0 else "", line.action, f"{line.count:,}", lost, figures)
            rows.append("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)
