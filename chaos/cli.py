"""The command line: does trials one after the other, and writes what was lost as a table."""

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
"""What the table's place in a page is called."""
Findings = list[tuple[str, list[Line]]]
"""The title of each trial, and its lines."""


def main(arguments: Sequence[str] | None = None, get: Callable[[str], Scenario] = scenarios.get) -> int:
    """Do the trials that `arguments` name, or all. 1 where anything was lost, 2 for a mistake of the caller's."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Hurt the service, and count what is lost.")
    parser.add_argument(
        "trials", nargs="*", metavar="TRIAL", help=f"any of {', '.join(scenarios.NAMES)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="the short form, as the tests run it")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the marks in this file")
    args = parser.parse_args(arguments)
    for name in args.trials:
        if name not in scenarios.NAMES:
            parser.error(f"no trial is called {name}; there are {', '.join(scenarios.NAMES)}")
    if args.write is not None:
        if args.trials:
            parser.error("--write is for the table of all trials; name none")
        try:
            filled(args.write.read_text(), MARK, "")
        except (OSError, ValueError) as error:
            parser.error(f"--write: {args.write} has no place for the table: {error}")
    begun = time.monotonic()
    findings: Findings = []
    for name in args.trials or scenarios.NAMES:
        trial = get(name)
        findings.append((title(trial), done(trial, quick=args.quick, seed=args.seed)))
    minutes = (time.monotonic() - begun) / 60
    form = "quick form" if args.quick else "full form"
    page = f"The {form}, seed {args.seed}, in {minutes:.0f} minutes on {os.cpu_count()} cores:\n\n{table(findings)}"
    print(f"\n{page}", flush=True)
    if args.write is not None:
        args.write.write_text(filled(args.write.read_text(), MARK, page))
    return 1 if any(line.lost for _, lines in findings for line in lines) else 0


def title(trial: Scenario) -> str:
    """The first line of its docstring."""
    return (trial.__doc__ or "").partition("\n")[0].removesuffix(".")


def done(trial: Scenario, *, quick: bool, seed: int) -> list[Line]:
    """What one trial finds, printed as it comes. One that breaks off has lost something, and the others go on."""
    print(title(trial), flush=True)
    lines = list[Line]()
    with tempfile.TemporaryDirectory(prefix="chaos-") as root:
        try:
            for line in trial.run(Setting(quick, seed, Path(root))):
                lines.append(line)
                _print(line)
        except Exception as error:
            lines.append(Line(f"the trial broke off: {error!r}", 1, 1))
            _print(lines[-1])
    return lines


def _print(line: Line) -> None:
    verdict = f"LOST {line.lost}" if line.lost else "nothing lost"
    print(
        f"  {line.action}: {line.count:,} times, {verdict}" + (f"; {line.figures}" if line.figures else ""), flush=True
    )


def table(findings: Findings) -> str:
    """All lines as Markdown."""
    rows = ["| | what was done | times | lost | found |", "|---|---|---|---|---|"]
    for name, lines in findings:
        for i, line in enumerate(lines):
            cells = (name if i == 0 else "", line.action, f"{line.count:,}", f"{line.lost:,}", line.figures)
            rows.append("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)
