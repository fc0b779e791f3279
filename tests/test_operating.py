"""docs/operating.md tells the truth: every setting and every metric is there, as the code has it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.server.supervisor import WorkerMetrics
from service.settings import ROOT, Settings
from service.telemetry.metrics import Metrics

PAGE = ROOT / "docs" / "operating.md"


def settings_table() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, Path):
            default = default.relative_to(ROOT)
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        yield f"| `DRAWBRIDGE_{name.upper()}` | {shown} | {field.description} |"


def metrics_table() -> Iterator[str]:
    """The metrics by the names that Prometheus has them under."""
    described = list(Metrics().registry.collect()) + list(WorkerMetrics().registry.collect())
    for metric in sorted(described, key=lambda metric: metric.name):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        yield f"| `{name}` | {metric.type} | {metric.documentation} |"


@pytest.mark.parametrize("table", [settings_table, metrics_table])
def test_the_page_has_every_line_and_no_other(table) -> None:
    expected = list(table())
    kind = expected[0].partition("_")[0]
    written = [line for line in PAGE.read_text().splitlines() if re.match(rf"{re.escape(kind)}\w+` \|", line)]
    assert written == expected, "\n" + "\n".join(expected)


def test_it_names_only_settings_and_commands_that_there_are() -> None:
    text = PAGE.read_text()
    known = {f"DRAWBRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"DRAWBRIDGE_[A-Z_]+", text)) <= known
    metrics = {re.match(r"\| `(\w+)`", line)[1] for line in metrics_table()} | {"drawbridge_model_info"}
    suffix = r"_(bucket|sum|count)\b"
    assert {re.sub(suffix, "", name) for name in re.findall(r"\bdrawbridge_[a-z_]+", text)} <= metrics
