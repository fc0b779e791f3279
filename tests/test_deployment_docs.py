"""docs/deployment.md lists every setting and every metric as the code describes them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.server.worker_process import WorkerMetrics
from service.settings import Settings
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "deployment.md"
SERIES_SUFFIX = r"_(bucket|sum|count)\b"


def settings_rows() -> Iterator[str]:
    """The table's row for each setting."""
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, Path):
            default = default.relative_to(ROOT)
        text = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        yield f"| `DRAWBRIDGE_{name.upper()}` | {text} | {field.description} |"


def metrics_rows() -> Iterator[str]:
    """The table's row for each metric, under the name that Prometheus shows."""
    metrics = [*Metrics().registry.collect(), *WorkerMetrics().registry.collect()]
    for metric in sorted(metrics, key=lambda metric: metric.name):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        yield f"| `{name}` | {metric.type} | {metric.documentation} |"


@pytest.mark.parametrize("rows", [settings_rows, metrics_rows])
def test_the_table_equals_the_code(rows) -> None:
    expected = list(rows())
    prefix = expected[0].partition("_")[0]
    written = [line for line in PAGE.read_text().splitlines() if re.match(rf"{re.escape(prefix)}\w+` \|", line)]
    assert written == expected, "copy these rows into docs/deployment.md:\n" + "\n".join(expected)


def test_the_page_names_only_existing_settings_and_metrics() -> None:
    text = PAGE.read_text()
    settings = {f"DRAWBRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"DRAWBRIDGE_[A-Z_]+", text)) <= settings
    metrics = {re.match(r"\| `(\w+)`", row)[1] for row in metrics_rows()} | {"drawbridge_model_info"}
    named = {re.sub(SERIES_SUFFIX, "", name) for name in re.findall(r"\bdrawbridge_[a-z_]+", text)}
    assert named <= metrics
