"""The cache of parsed requests: a cached request is parsed as if there were no cache."""

import json
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api import parsing
from service.api.context import AppContext
from service.errors import Problem
from tests.service.conftest import problem

module_loop = pytest.mark.asyncio(loop_scope="module")

RANDOM_SEED = 4711
"""The seed of requests that name none, in the tests below."""


class Context(AppContext):
    """A context whose random seeds are known."""

    def new_seed(self) -> int:
        return RANDOM_SEED


class NoCache(dict[Hashable, Any]):
    """A cache that stores nothing."""

    def __setitem__(self, key: Hashable, value: Any) -> None:
        pass


@pytest.fixture(scope="module")
def context(app: FastAPI) -> AppContext:
    """The application's context with known random seeds."""
    service = app.state.service
    return Context(service.settings, service.catalog, service.engine, service.scope)


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parameters of each request that is parsed in full."""
    calls: list[dict[str, Any]] = []
    validate = parsing.validate

    def counted(schema: Any, values: dict[str, Any], *, strict: bool = False) -> Any:
        if not strict:
            calls.append(values)
        return validate(schema, values, strict=strict)

    monkeypatch.setattr(parsing, "validate", counted)
    return calls


def parse(context: AppContext, query: str = "", body: str = "", **headers: str) -> parsing.ParsedRequest:
    """Parse a request to /generate: a POST if it has a body."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST" if body else "GET", "query_string": query.encode(), "headers": pairs}
    return parsing.parse_generate(context, scope, body.encode())


# -- equality with an uncached parse -----------------------------------------------------------------------------------

VALID = {
    "model": ['"cgan"', '"ddpm"', '"\\u0063gan"'],
    "n": ["1", " 1 ", "2"],
    "digit": ["[1]", "[]", "[1, 2]", "[2, 1]"],
    "label": ["[1]", '["1"]', "1", '"1"', '["2", 1]', '"none"'],
    "first": ["0", "1", "9007199254740992"],
    "priority": ['"bulk"', '"interactive"'],
    "timeout": ["5", "5.0", "5e0", "null"],
}
INVALID = {
    "model": ["null", "1", '"gan"'],
    "n": ["true", '"1"', "1.5", "-0", "NaN"],
    "digit": ["[true]", '["1"]', "[1.5]", "1", "[NaN]"],
    "label": ["[true]", "true", "1.0", '"01"', '"ten"', "null"],
    "first": ["true", '"1"', "9007199254740993", "99999999999999999999999"],
    "priority": ["null", '"urgent"'],
    "timeout": ['"5"', "NaN", "Infinity", "1e400", "true"],
    "colour": ['"red"', '{"n": 1}'],
}
"""JSON texts of values. Most of the invalid ones resemble a valid one: they are equal in Python, or print alike."""
BODY_SEEDS = [
    '"seed": 1', '"seed": 2', '"seed": null', '"seed": true', '"seed": "1"', '"seed": 1.0', '"seed": -1', '"seed": 01',
    '"seed": 1e0', '"seed": NaN', '"seed": 9223372036854775807', '"seed": 9223372036854775808', '"s\\u0065ed": 3',
    '"seed": 1, "seed": 2', '"seed": true, "seed": 2', '"seed": 2, "seed": true',
]  # fmt: skip
QUERY_SEEDS = [
    "seed=1", "seed=2", "seed=01", "seed=", "seed=-1", "seed=+1", "seed=%31", "seed=1.0", "seed=true", "%73eed=2",
    "seed=999999999999999999", "seed=9223372036854775807", "seed=9223372036854775808", "seed=1&seed=2", "SEED=1",
]  # fmt: skip
HEADERS = [{}, {"accept": "*/*"}, {"accept": "image/webp"}, {"x_timeout": "7"}, {"x_timeout": "x"}]


@st.composite
def requests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests that differ in their seed, in the order and spelling of their members, or in one value."""
    names = draw(st.lists(st.sampled_from(list(VALID)), max_size=4, unique=True))
    members = [(name, draw(st.sampled_from(VALID[name]))) for name in names]
    parts = ["model=cgan", "n=2", "digit=1", "label=1", "%6e=2"]
    query = draw(st.lists(st.sampled_from(parts), max_size=2, unique=True))
    found = []
    for _ in range(draw(st.integers(2, 5))):
        parts, body = list(query), draw(st.permutations(members))
        if draw(st.booleans()):
            name = draw(st.sampled_from(names or ["colour"]))
            changed = draw(st.sampled_from(INVALID[name] + VALID.get(name, [])))
            body = [(key, changed if key == name else value) for key, value in body]
        texts = [f'"{name}": {value}' for name, value in body]
        if draw(st.booleans()):
            parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(QUERY_SEEDS)))
        if draw(st.booleans()):
            texts.insert(draw(st.integers(0, len(texts))), draw(st.sampled_from(BODY_SEEDS)))
        request = {"query": "&".join(parts), "body": f"{{{','.join(texts)}}}" if texts else ""}
        found.append(request | draw(st.sampled_from(HEADERS)))
    return found


def outcome(context: AppContext, request: dict[str, Any]) -> object:
    """The result of parsing a request, or the problem with it."""
    try:
        return parse(context, **request)
    except Problem as error:
        return error.body()


@settings(max_examples=300, deadline=None)
@given(requests=requests())
def test_a_cached_parse_equals_an_uncached_one(context: AppContext, requests: list[dict[str, Any]]) -> None:
    cached, uncached = replace(context, parse_cache={}), replace(context, parse_cache=NoCache())
    for request in requests:
        assert outcome(cached, request) == outcome(uncached, request), request


@pytest.mark.parametrize("body_seed", ["", *BODY_SEEDS])
def test_every_spelling_of_a_seed_means_the_same_cached_and_uncached(context: AppContext, body_seed: str) -> None:
    cached, uncached = replace(context, parse_cache={}), replace(context, parse_cache=NoCache())
    for model in ("cgan", "ddpm"):
        parse(cached, f"model={model}")
        parse(cached, "", f'{{"model": "{model}"}}')
    for query_seed in ("", *QUERY_SEEDS):
        for request in (
            {"query": f"model=cgan&{query_seed}".removesuffix("&"), "body": f"{{{body_seed}}}" if body_seed else ""},
            {"query": query_seed, "body": f'{{"model": "ddpm"{", " * bool(body_seed)}{body_seed}}}'},
        ):
            for _ in range(2):
                assert outcome(cached, request) == outcome(uncached, request), request


@pytest.mark.parametrize("name", ["n", "first", "steps"])
def test_values_of_other_types_are_not_taken_for_a_cached_number(context: AppContext, name: str) -> None:
    context = replace(context, parse_cache={})
    parse(context, "model=ddpm", f'{{"{name}": 1}}')
    for value in ("true", '"1"'):
        with pytest.raises(Problem):
            parse(context, "model=ddpm", f'{{"{name}": {value}}}')


def test_the_last_of_two_members_with_one_name_counts(context: AppContext) -> None:
    context = replace(context, parse_cache={})
    for _ in range(2):
        parsed = parse(context, "model=gan", '{"n": 1, "seed": 3, "n": 2, "seed": 4}')
        assert (len(parsed.plan.request.samples), parsed.plan.seed) == (2, 4)


# -- what is cached ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("model=cgan&seed={}&digit=7", ""),
        ("model=cgan&seed={}&label=7", ""),
        ("model=cgan", '{{"label": ["7", 3], "seed": {}}}'),
        ("seed={}&model=cgan", ""),
        ("model=cgan", '{{"digit": [7], "seed": {}}}'),
        ("", '{{"seed": {}, "model": "cgan", "guidance": null}}'),
        ("seed={}", '{{"model": "cgan", "n": 2}}'),
    ],
)
def test_requests_that_differ_in_their_seed_are_parsed_once(
    context: AppContext, validations: list[dict[str, Any]], query: str, body: str
) -> None:
    context = replace(context, parse_cache={})
    plans = [parse(context, query.format(seed), body.format(seed)).plan for seed in range(5)]
    assert [plan.seed for plan in plans] == [0, 1, 2, 3, 4]
    assert [plan.request.samples[0].start.seed for plan in plans] == [0, 1, 2, 3, 4]
    assert len(validations) == 1


def test_a_cached_request_without_a_seed_gets_a_random_one(
    context: AppContext, validations: list[dict[str, Any]]
) -> None:
    context = replace(context, parse_cache={})
    for query, seed, deterministic in (
        ("model=gan&seed=5", 5, True),
        ("model=gan", RANDOM_SEED, False),
        ("model=gan&seed=6", 6, True),
    ):
        parsed = parse(context, query)
        assert (parsed.plan.seed, parsed.deterministic) == (seed, deterministic)
    assert len(validations) == 1


def test_the_cache_is_limited(context: AppContext) -> None:
    context = replace(context, parse_cache={})
    for first in range(3):
        parse(context, f"model=gan&first={first}")
    assert len(context.parse_cache) == 3
    context.parse_cache.update((i, None) for i in range(parsing.MAX_CACHED_REQUESTS))
    parse(context, "model=gan&first=4")
    assert len(context.parse_cache) == 1, "a full cache is emptied"
    parse(context, f"model=gan&n={parsing.MAX_CACHED_IMAGES + 1}&format=npz")
    parse(context, "model=gan", accept="*/*," * parsing.MAX_CACHED_BYTES)
    parse(context, "model=gan", f'{{"n": 1{" " * parsing.MAX_CACHED_BYTES}}}')
    assert len(context.parse_cache) == 1


def test_new_weights_empty_the_cache(context: AppContext) -> None:
    context = replace(context, parse_cache={})
    parse(context, "model=gan")
    context.serve(context.catalog)
    assert not context.parse_cache


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@module_loop
@pytest.mark.parametrize(
    "query",
    ["", "digit=7", "digit=3&digit=4&n=3", "first=5&n=2&format=json", "steps=3&sampler=ddim&guidance=2&format=npz"],
)
async def test_a_seed_gives_the_same_response_cached_and_uncached(
    app: FastAPI, client: httpx.AsyncClient, query: str
) -> None:
    model = "ddpm" if "steps" in query else "cgan"
    app.state.service.parse_cache.clear()
    uncached = await client.get(f"/generate?model={model}&{query}&seed=1")
    cached = [await client.get(f"/generate?seed={seed}&model={model}&{query}") for seed in (2, 1, 2)]
    cached += [await client.get(f"/generate?model={model}&{query}&seed={seed}") for seed in (2, 1)]
    for response in cached:
        assert response.status_code == 200
        same = response.headers["x-seed"] == "1"
        assert (response.content == uncached.content) == same
        names = ("etag", "content-location", "cache-control", "x-model-digest")
        assert all(response.headers[name] == uncached.headers[name] for name in names) == same


@module_loop
async def test_json_and_query_requests_have_the_same_bytes(client: httpx.AsyncClient) -> None:
    for seed in (1, 2, 1):
        parameters = {"model": "cgan", "digit": [7, 3], "n": 2, "seed": seed}
        by_query = await client.post("/generate", params=parameters)
        for body in (parameters, dict(reversed(parameters.items()))):
            assert (await client.post("/generate", json=body)).content == by_query.content
            text = json.dumps(body, indent=3)
            assert (await client.post("/generate", content=text)).content == by_query.content


@module_loop
async def test_headers_and_bodies_of_cached_requests_count(client: httpx.AsyncClient) -> None:
    url = "/generate?model=gan&seed=1"
    for accept, media_type in (("image/webp", "image/webp"), ("*/*", "image/png")):
        assert (await client.get(url, headers={"Accept": accept})).headers["content-type"] == media_type
    assert (await client.post(url, headers={"X-Timeout": "1e-9"})).status_code == 504
    assert (await client.post(url)).status_code == 200
    assert "steps" in problem(await client.post(url, json={"steps": 7}), 422)


@module_loop
@pytest.mark.parametrize("seed", ["seed=1&seed=2", "seed=1&%73eed=2", "seed=-1", "seed=", "seed=99999999999999999999"])
async def test_an_invalid_seed_is_refused_every_time(client: httpx.AsyncClient, seed: str) -> None:
    for _ in range(2):
        assert (await client.post("/generate?model=gan")).status_code == 200
        problem(await client.post(f"/generate?model=gan&{seed}"), 422)
