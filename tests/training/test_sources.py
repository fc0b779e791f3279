"""Samples from weights and from a service, equal up to rounding in other batch sizes."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from models import families, store
from tests.serving import serving
from training import sources
from training.cli import main
from training.config import ConfigError
from training.sources import SampleSet, Service, Weights


@pytest.fixture(scope="module")
def published(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small weights of all families; those of pca have published metrics."""
    root = tmp_path_factory.mktemp("published") / "weights"
    shutil.copytree(weights, root)
    store.annotate(root / "pca", metrics={"recall": 0.5})
    return root


@pytest.fixture(scope="module")
def url(published: Path) -> Iterator[str]:
    with serving(published) as server:
        yield server.url


def difference(one: SampleSet, two: SampleSet) -> float:
    """Mean absolute difference of the pixels, of 255."""
    return float((one.images.float() - two.images.float()).abs().mean())


def test_a_service_and_its_weights_give_the_same_samples(url: str, weights: Path) -> None:
    local, remote = Weights(weights), Service(url)
    assert local.names() == remote.names() == families.names()
    for name in families.names():
        one, two = (source.sample(name, seed=4, count=sources.BATCH + 3) for source in (local, remote))
        assert difference(one, two) < 0.5, name
        assert (one.requested_labels is None) == (two.requested_labels is None)
        assert one.requested_labels is None or torch.equal(one.requested_labels, two.requested_labels)


def test_samples_may_begin_at_any_image(url: str, weights: Path) -> None:
    for source in (Weights(weights), Service(url)):
        all_, last = source.sample("ddpm", 4, 73), source.sample("ddpm", 4, 8, first=65)
        assert difference(last, SampleSet(all_.images[65:], None)) < 0.5
        assert torch.equal(last.requested_labels, all_.requested_labels[65:])


def test_samples_without_a_label_are_those_of_the_label_none(url: str, weights: Path) -> None:
    local, remote = Weights(weights), Service(url)
    for name in ("ddpm", "flow", "gmm", "supervised_ae"):
        one, two = (source.sample(name, 4, 12, unlabelled=True) for source in (local, remote))
        assert one.requested_labels is None, name
        assert two.requested_labels is None, name
        assert difference(one, two) < 0.5, name
        assert not torch.equal(one.images, local.sample(name, 4, 12).images), name


def test_both_sources_give_the_manifest(url: str, published: Path) -> None:
    manifest = store.read_manifest(published / "pca")
    assert manifest.metrics == {"recall": 0.5}
    assert Weights(published).manifest("pca") == manifest
    assert Service(url).manifest("pca") == manifest
    with pytest.raises(ConfigError, match="has no model 'dall-e'; it has acgan"):
        Service(url).manifest("dall-e")


def test_options_reach_the_service(url: str, weights: Path) -> None:
    one, two = (source.sample("ddpm", 0, 2, steps=3, guidance=1.0) for source in (Weights(weights), Service(url)))
    assert difference(one, two) < 0.5
    assert difference(one, Weights(weights).sample("ddpm", 0, 2, steps=3)) > 2


def test_the_option_sampler_is_sent_as_prior_to_models_with_priors(url: str, weights: Path) -> None:
    one, two = (source.sample("vae", 0, 2, sampler="standard") for source in (Weights(weights), Service(url)))
    assert difference(one, two) < 0.1 * difference(one, Weights(weights).sample("vae", 0, 2))


def test_the_error_quotes_the_service(url: str) -> None:
    with pytest.raises(ConfigError, match="ddpm takes 1 to 1000"):
        Service(url).sample("ddpm", 0, 1, steps=5000)
    with pytest.raises(ConfigError, match="has no model 'dall-e'; it has acgan"):
        Service(url).sample("dall-e", 0, 1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nowhere", "http://["])
def test_a_url_without_a_service_is_a_one_line_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--all", "--against", url]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --against")
    assert error.count("\n") == 1


def service_with(*responses: httpx.Response) -> httpx.MockTransport:
    """A service that lists one model and then gives `responses` in turn."""
    models = httpx.Response(200, json={"models": [{"name": "gan", "takes": {}}]})
    remaining = iter((models, *responses))
    return httpx.MockTransport(lambda _: next(remaining))


def archive() -> httpx.Response:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.full((1, 28, 28), 7, np.uint8), labels=np.full(1, -1))
    headers = {"x-seed": "0", "x-model-digest": "", "content-location": ""}
    return httpx.Response(200, content=buffer.getvalue(), headers=headers)


def test_requests_to_a_busy_service_are_retried() -> None:
    busy = httpx.Response(429, headers={"Retry-After": "0"})
    samples = Service("http://it", service_with(busy, busy, archive())).sample("gan", 0, 1)
    assert samples.images.unique().tolist() == [7]


def test_retries_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RETRIES", 1)
    busy = httpx.Response(429, headers={"Retry-After": "0"})
    with pytest.raises(ConfigError, match="--against http://it: 429"):
        Service("http://it", service_with(busy, busy)).sample("gan", 0, 1)


def test_a_manifest_of_another_version_is_one_clear_line() -> None:
    model = httpx.Response(200, json={"name": "gan", "manifest": {"family": "gan", "colour": 1}})
    with pytest.raises(ConfigError, match="the service is of another version"):
        Service("http://it", service_with(model)).manifest("gan")


@pytest.mark.parametrize("body", ["<html>hello</html>", '{"data": []}', "[]"])
def test_another_kind_of_server_is_recognised(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    with pytest.raises(ConfigError, match="is not Drawbridge"):
        Service("http://it", transport)
