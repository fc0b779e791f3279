"""Queries that were understood before mean what they would have meant anew."""

import httpx
import pytest
from fastapi import FastAPI

from service.api import parsing
from tests.service.conftest import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "said",
    ["", "digit=7", "digit=3&digit=4&n=3", "first=5&n=2&format=json", "steps=3&sampler=ddim&guidance=2&format=npz"],
)
async def test_a_seed_draws_the_same_from_a_query_known_and_unknown(
    app: FastAPI, client: httpx.AsyncClient, said: str
) -> None:
    model = "ddpm" if "steps" in said else "cgan"
    app.state.service.understood.clear()
    unknown = [await client.get(f"/generate?model={model}&{said}&seed={seed}") for seed in (1,)]
    known = [await client.get(f"/generate?seed={seed}&model={model}&{said}") for seed in (2, 1, 2)]
    known += [await client.get(f"/generate?model={model}&{said}&seed={seed}") for seed in (2, 1)]
    assert {answer.status_code for answer in unknown + known} == {200}
    first, *others = unknown + known
    for other in others:
        same = other.headers["x-seed"] == "1"
        assert (other.content == first.content) == same
        told = ("etag", "content-location", "cache-control", "x-model-digest")
        assert ([other.headers[name] for name in told] == [first.headers[name] for name in told]) == same


async def test_without_a_seed_each_draw_has_one_of_its_own_and_is_not_kept(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/generate?model=cgan&digit=7") for _ in range(4)]
    assert len({answer.headers["x-seed"] for answer in answers}) == 4
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}
    again = await client.get(answers[0].headers["content-location"])
    assert again.content == answers[0].content


async def test_what_else_a_request_says_is_heard_each_time(client: httpx.AsyncClient) -> None:
    path = "/generate?model=gan&seed=1"
    for accept, kind in (("image/webp", "image/webp"), ("*/*", "image/png")):
        assert (await client.get(path, headers={"Accept": accept})).headers["content-type"] == kind
    assert (await client.post(path, headers={"X-Timeout": "1e-9"})).status_code == 504
    assert (await client.post(path)).status_code == 200
    assert "steps" in problem(await client.post(path, json={"steps": 7}), 422)


@pytest.mark.parametrize("odd", ["seed=1&seed=2", "seed=1&%73eed=2", "seed=-1", "seed=", "seed=99999999999999999999"])
async def test_a_seed_that_is_none_is_refused_however_often(client: httpx.AsyncClient, odd: str) -> None:
    for _ in range(2):
        assert (await client.post("/generate?model=gan")).status_code == 200
        problem(await client.post(f"/generate?model=gan&{odd}"), 422)


async def test_no_more_is_remembered_than_there_is_room_for(app: FastAPI, client: httpx.AsyncClient) -> None:
    known = app.state.service.understood
    for first in range(3):
        await client.post(f"/generate?model=gan&first={first}")
    assert len(known) >= 3
    known.update((number, None) for number in range(parsing.MOST))
    await client.post("/generate?model=gan&first=4")
    assert len(known) == 1
    await client.post(f"/generate?model=gan&n={parsing.FEW + 1}&format=npz")
    await client.post("/generate?model=gan", headers={"Accept": "*/*," * parsing.SHORT})
    assert len(known) == 1
