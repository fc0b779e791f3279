"""Command line of the soak: runs it, prints a line a minute, and writes its table."""

import argparse
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from chaos.report import check_place, summary, table
from chaos.scenario import Line
from chaos.soak.soak import Soak
from training.docs import filled

MARK = "soak"
"""The name of the table's place in a file: `<!-- soak -->`."""
TITLE = "Soak"


def main(arguments: Sequence[str]) -> int:
    """Run the soak, or write the table of one that has run. Returns the exit status as `chaos.cli.main` does."""
    args = _parse(arguments)
    if args.table_of is not None:
        saved = json.loads(args.table_of.read_text())
        return _finish(saved["head"], [Line(**line) for line in saved["lines"]], args.write)
    args.summary.parent.mkdir(parents=True, exist_ok=True)
    soak = Soak(args.hours, args.seed)

    def save() -> None:
        _save(args.summary, soak)

    with_stop(lambda: soak.run(save), soak.stop)
    save()
    return _finish(soak.head(), soak.lines(), args.write)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos soak",
        description="Send every kind of request for hours while faults are injected at random, and count the losses. "
        "Prints a line a minute. Ctrl-C ends it after the current fault, with the table so far.",
    )
    parser.add_argument("--hours", type=_hours, default=8.0, metavar="H", help="duration (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    parser.add_argument(
        "--summary",
        type=Path,
        default=Path("runs/soak.json"),
        metavar="FILE",
        help="file that the table so far is written to every minute (default: %(default)s)",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between the marks in this file")
    parser.add_argument("--table-of", type=Path, metavar="FILE", help="run nothing; show the table of a summary file")
    args = parser.parse_args(arguments)
    if args.table_of is not None:
        try:
            saved = json.loads(args.table_of.read_text())
            [Line(**line) for line in saved["lines"]], saved["head"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"--table-of: {args.table_of} is not the summary of a soak: {error}")
    check_place(parser, args.write, MARK)
    return args


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 < hours < 10_000:
        raise argparse.ArgumentTypeError(f"{text} is not a number of hours above 0")
    return hours


def with_stop(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call `run`. The first SIGINT or SIGTERM calls `stop`; the second one has its usual effect."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        restore()
        stop()

    def restore() -> None:
        for number in numbers:
            signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        run()
    finally:
        restore()


def _save(path: Path, soak: Soak) -> None:
    """Write the table so far. The file is replaced at once, so that it is complete whenever the soak is interrupted."""
    new = path.with_name(path.name + ".new")
    series = {series.name: [series.times, series.values] for series in soak.series()}
    saved = {"head": soak.head(), "lines": [asdict(line) for line in soak.lines()], "series": series}
    new.write_text(json.dumps(saved))
    new.replace(path)


def _finish(head: str, lines: list[Line], write: Path | None) -> int:
    """Print the table, write it into a file if there is one, and return the exit status."""
    status, verdict = summary(lines)
    page = f"{head} {verdict}\n\n{table([(TITLE, lines)])}"
    print(f"\n{page}\n\n{verdict} Exit status {status}.", flush=True)
    if write is not None:
        write.write_text(filled(write.read_text(), MARK, page))
    return status
