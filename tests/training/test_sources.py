"""Samples from weights and from a service, the same up to the arithmetic of other batches."""

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
def url(weights: Path) -> Iterator[str]:
    with serving(weights) as server:
        yield server.url


def gap(one: SampleSet, two: SampleSet) -> float:
    """Mean difference of the pixels, of 255."""
    return float((one.images.float() - two.images.float()).abs().mean())


def test_a_service_draws_what_its_weights_draw(url: str, weights: Path) -> None:
    here, there = Weights(weights), Service(url)
    assert here.names() == there.names() == families.names()
    for name in families.names():
        one, two = (source.sample(name, seed=4, count=sources.BATCH + 3) for source in (here, there))
        assert gap(one, two) < 0.5, name
        assert (one.requested_labels is None) == (two.requested_labels is None)
        assert one.requested_labels is None or torch.equal(one.requested_labels, two.requested_labels)


def test_both_tell_what_is_published(url: str, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "pca", tmp_path / "pca")
    store.annotate(tmp_path / "pca", metrics={"recall": 0.5})
    with serving(tmp_path, unconditional_model="pca") as server:
        assert (
            Weights(tmp_path).published_metrics("pca")
            == Service(server.url).published_metrics("pca")
            == {"recall": 0.5}
        )
    with pytest.raises(ConfigError, match="has no model 'dall-e'; it has acgan"):
        Service(url).published_metrics("dall-e")


def test_what_is_asked_reaches_the_service(url: str, weights: Path) -> None:
    one, two = (source.sample("ddpm", 0, 2, steps=3, guidance=1.0) for source in (Weights(weights), Service(url)))
    assert gap(one, two) < 0.5
    assert gap(one, Weights(weights).sample("ddpm", 0, 2, steps=3)) > 2


def test_priors_are_asked_for_by_their_name(url: str, weights: Path) -> None:
    one, two = (source.sample("vae", 0, 2, sampler="standard") for source in (Weights(weights), Service(url)))
    assert gap(one, two) < 0.1 * gap(one, Weights(weights).sample("vae", 0, 2))


def test_a_service_that_refuses_is_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match="ddpm takes 1 to 1000"):
        Service(url).sample("ddpm", 0, 1, steps=5000)
    with pytest.raises(ConfigError, match="has no model 'dall-e'; it has acgan"):
        Service(url).sample("dall-e", 0, 1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nowhere", "http://["])
def test_where_no_service_is_one_line_says_so(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--all", "--against", url]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --against")
    assert error.count("\n") == 1


def answering(*answers: httpx.Response) -> httpx.MockTransport:
    """A service that lists one model and then gives `answers` in turn."""
    models = httpx.Response(200, json={"models": [{"name": "gan", "takes": {}}]})
    left = iter((models, *answers))
    return httpx.MockTransport(lambda _: next(left))


def archive() -> httpx.Response:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.full((1, 28, 28), 7, np.uint8))
    return httpx.Response(200, content=buffer.getvalue())


def test_a_busy_service_is_asked_again_when_it_says() -> None:
    busy = httpx.Response(429, headers={"Retry-After": "0"})
    drawn = Service("http://it", answering(busy, busy, archive())).sample("gan", 0, 1)
    assert drawn.images.unique().tolist() == [7]


def test_a_service_that_stays_busy_is_given_up() -> None:
    busy = httpx.Response(429, headers={"Retry-After": str(sources.TIMEOUT_SECONDS + 1)})
    with pytest.raises(ConfigError, match="429"):
        Service("http://it", answering(busy)).sample("gan", 0, 1)


@pytest.mark.parametrize("body", ["<html>hello</html>", '{"data": []}', "[]"])
def test_another_kind_of_server_is_told_apart(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    with pytest.raises(ConfigError, match="is no Drawbridge"):
        Service("http://it", transport)
