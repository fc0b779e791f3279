"""Numbers on a page of metrics."""

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse_metrics(page: str) -> Samples:
    """The numbers on a page of metrics, by name and labels."""
    families = text_string_to_metric_families(page)
    return {
        (sample.name.removeprefix("drawbridge_"), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def metric_value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)
