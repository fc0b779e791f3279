"""The results of the membership test, as JSON, a table and a sentence."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.privacy.membership import COPIES, HELD_OUT, MODEL, Membership

TITLES = {
    COPIES: "as many training images in place of draws",
    HELD_OUT: "held-out images in place of draws",
}


@dataclass(frozen=True)
class Results:
    """The membership test of one model."""

    model: str
    digest: str
    """Of the model's weights."""
    data: str
    train_images: int
    compared: int
    """Training images, and held-out ones."""
    draws: int
    judge: dict[str, str]
    """`name` and `digest` of the judge whose features are compared; empty without one."""
    tests: dict[str, dict[str, Membership]]
    """By what stands for the draws, and by space."""

    def to_json(self) -> bytes:
        """The file that `read` reads."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def read(path: Path) -> Results:
    """The results in a file."""
    fields = json.loads(path.read_text())
    tests = {
        case: {space: Membership(**values) for space, values in spaces.items()}
        for case, spaces in fields["tests"].items()
    }
    return Results(**{**fields, "tests": tests})


def heading(results: Results) -> str:
    """The line above a table: data, and the numbers of images and draws."""
    by = f", by pixels and by features of the judge `{results.judge['name']}`" if results.judge else ""
    return (
        f"On {results.data}: {results.compared:,} of {results.train_images:,} training images and as many held-out "
        f"ones, {results.draws:,} draws{by}"
    )


def table(results: Sequence[Results]) -> str:
    """AUC with interval, and the share recognised, in each space, as Markdown: a row for each model.

    The rows for comparison follow, those of the first model. All results must be of the same heading.
    """
    first = results[0]
    spaces = list(first.tests[MODEL])
    titles = [f"{title} by {space}" for space in spaces for title in ("AUC", "recognised")]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    rows = [(f"draws of `{one.model}`", one.tests[MODEL]) for one in results]
    rows += [(title, first.tests[case]) for case, title in TITLES.items()]
    for name, tests in rows:
        cells = [cell for space in spaces for cell in _cells(tests[space])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sentence(results: Results) -> str:
    """What was found about a model."""
    found = [_verdict(space, test) for space, test in results.tests[MODEL].items()]
    return f"`{results.model}`: {'; '.join(found)}."


def _verdict(space: str, test: Membership) -> str:
    interval = f"AUC {test.auc:.3f}, {test.low:.3f} to {test.high:.3f}"
    if test.low > 0.5:
        return f"by {space}, draws are nearer to training images than to held-out ones ({interval})"
    return f"by {space}, draws do not tell training images from held-out ones ({interval})"


def _cells(test: Membership) -> list[str]:
    return [f"{test.auc:.3f} ({test.low:.3f} to {test.high:.3f})", f"{test.recognised:.1%}"]
