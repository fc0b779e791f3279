"""Replicas of Ray Serve, as far as they need no cluster."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("ray.serve", reason="Ray Serve is not installed; pip install .[cluster]")

from service.cluster import SECONDS_BEHIND, build, scale

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "settings: set `open: true`, or `keys` to a file of keys"),
        ({"settings": {"open": True, "seat": 4}}, "seat: Extra inputs are not permitted"),
        ({"settings": {"open": True, "seats": 0}}, "seats: Input should be greater than or equal to 1"),
        ({"modell": "cgan"}, "modell: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_served_is_refused_before_any_replica(arguments, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        build(arguments)


@pytest.mark.parametrize(("behind", "replicas"), [({}, 1), ({"a": 0.0, "b": 0.0}, 1), ({"a": 3.2, "b": 0.5}, 4)])
def test_there_are_as_many_as_draw_in_a_second_what_waits(behind, replicas):
    context = SimpleNamespace(aggregated_metrics={SECONDS_BEHIND: behind})
    assert scale(context, seconds=1.0) == (replicas, {})


def test_the_committed_configuration_is_one():
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema(**yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text()))
    (application,) = found.applications
    assert application.import_path == "service.cluster:build"
    assert build(application.args) is not None
