"""The report of a run: its lines as a table, and the exit status."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from chaos.scenario import Line
from training.docs import filled

LOST, SKIPPED = 1, 3
"""Exit statuses. 2 is a mistake on the command line."""
Report = list[tuple[str, list[Line]]]
"""The title of each scenario, and its lines."""


def check_place(parser: ArgumentParser, file: Path | None, mark: str) -> None:
    """End with an error of `parser` if `--write` named a `file` without a place for the table `mark`."""
    if file is not None:
        try:
            filled(file.read_text(), mark, "")
        except (OSError, ValueError) as error:
            parser.error(f"--write: {file} has no place for the table: {error}")


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


def show(line: Line) -> None:
    """Print one line as soon as it is known."""
    result = f"LOST {line.lost}" if line.failed else f"{line.lost} lost"
    if line.skipped:
        result = f"NOT RUN: {line.skipped}"
    figures = f"; {line.figures}" if line.figures else ""
    print(f"  {line.action}: {line.count:,} times, {result}{figures}", flush=True)
