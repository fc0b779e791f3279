"""Reads the service's Prometheus metrics."""

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by metric name, without the prefix `drawbridge_`, and labels."""


def parse_metrics(page: str) -> Samples:
    """Parse the text that GET /metrics returns."""
    return {
        (sample.name.removeprefix("drawbridge_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def metric_value(samples: Samples, name: str, **labels: str) -> float:
    """Return the value of one sample, 0 if it is absent."""
    return samples.get((name, frozenset(labels.items())), 0.0)
