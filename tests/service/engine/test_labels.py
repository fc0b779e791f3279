"""Labels of requests: named ones, any, and none."""

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from models import families, noise, store
from service.engine.request import ANY_LABEL, NO_LABEL, Request, Sample, StartState
from service.engine.runner import Runner
from tests.conftest import small

CONDITIONAL = [name for name in families.names() if families.get(name).conditional]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_seed_determines_the_label_of_families_that_sample_labels(name: str) -> None:
    family = small(name)
    runner = Runner(family, torch.device("cpu"), 4)
    samples = tuple(Sample(StartState(7, i)) for i in range(50))
    labels = runner.labels(Request("m", samples, 1))
    seeds, indices = torch.full((50,), 7), torch.arange(50)
    expected = noise.classes(seeds, indices, 10).numpy() if family.samples_label else np.full(50, -1)
    assert labels.tolist() == expected.tolist()
    named = runner.labels(Request("m", (Sample(StartState(7, 0, 3)), Sample(StartState(7, 1, ANY_LABEL))), 1))
    assert named.tolist() == [3, int(expected[1])]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_no_label_is_none(name: str) -> None:
    runner = Runner(small(name), torch.device("cpu"), 4)
    samples = (Sample(StartState(7, 0, NO_LABEL)), Sample(StartState(7, 1, 2)))
    assert runner.labels(Request("m", samples, 1)).tolist() == [-1, 2]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_without_a_digit_is_that_of_the_digit_which_its_response_names(
    client: httpx.AsyncClient, weights: Path
) -> None:
    for model in store.list_weights(weights):
        described = (await client.get(f"/models/{model}")).json()["takes"]
        if "digit" not in described:
            continue
        url = f"/generate?model={model}&seed=5&format=json"
        image = (await client.post(url)).json()["images"][0]
        if image["label"] >= 0:
            assert (await client.post(f"{url}&digit={image['label']}")).json()["images"][0] == image
        none = await client.post(f"{url}&digit=none")
        assert none.status_code == (200 if described["digit"]["none"] else 422), model
        if none.status_code == 200:
            assert none.json()["images"][0]["label"] == -1
            assert "label=none" in none.json()["url"]
            in_json = {"model": model, "seed": 5, "format": "json", "digit": "none"}
            assert (await client.post("/generate", json=in_json)).content == none.content
