"""HTTP in detail: bodies, HEAD, sub-paths and caching."""

import asyncio
import gzip
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from harness.scraping import metric_value, parse_metrics
from service.api.direct import DirectCall
from service.app import Application, create_app
from service.compat.openai import Generations
from service.generation.parameters import Decode, Encode, Generate, Interpolate
from service.settings import Settings
from tests.service.conftest import problem
from tests.service.listening import listen

module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", params=["direct", "asgi"])
async def http(request: pytest.FixtureRequest, app: Application) -> AsyncIterator[httpx.AsyncClient]:
    """A client over a socket, of a server that responds directly and of one that does not."""
    async with connect(app, direct=request.param == "direct") as client:
        yield client


@asynccontextmanager
async def connect(app: Application, *, direct: bool = True, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application over a socket."""
    async with (
        listen(app, direct=direct) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, **options) as client,
    ):
        yield client


# -- bodies without a Content-Type, bodies of GET, encoded bodies ------------------------------------------------------

POST_ROUTES = (
    "/generate",
    "/interpolate",
    "/encode",
    "/decode",
    "/reconstruct",
    "/nearest",
    "/inpaint",
    "/vary",
    "/v1/images/generations",
)
GET_ROUTES = (
    "/", "/docs", "/models", "/models/gan", "/livez", "/readyz", "/metrics", "/generate?model=gan",
    "/interpolate?model=gan&seed=1&seed=2", "/v1/models", "/v1/models/gan", "/v2", "/v2/health/ready",
    "/v2/models/gan", "/v2/models/gan/ready",
)  # fmt: skip


@module
@pytest.mark.parametrize("path", [*POST_ROUTES, "/v2/models/gan/infer"])
async def test_json_without_a_content_type_is_read_on_every_route(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, content=b'{"colour": "red"}')
    assert response.status_code in (400, 422)
    assert "colour" in response.text


@module
@pytest.mark.parametrize("path", POST_ROUTES)
async def test_other_bodies_without_a_content_type_get_415_on_every_route(http: httpx.AsyncClient, path: str) -> None:
    for content in (b"model=gan", b"\x89PNG\r\n\x1a\n", gzip.compress(b"{}")):
        response = await http.post(path, content=content)
        assert response.status_code == 415
        assert "application/json" in response.text


@module
@pytest.mark.parametrize("path", GET_ROUTES)
async def test_a_get_with_a_body_gets_415_on_every_route(http: httpx.AsyncClient, path: str) -> None:
    response = await http.request("GET", path, content=b'{"seed": 1}')
    assert response.status_code == 415
    assert "send a body with POST" in response.text


@module
async def test_an_encoded_body_gets_415(http: httpx.AsyncClient) -> None:
    for headers in ({"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=x"}):
        headers |= {"Content-Encoding": "gzip"}
        response = await http.post("/generate", content=gzip.compress(b'{"model": "gan"}'), headers=headers)
        assert "Content-Encoding" in problem(response, 415)


# -- null and single values in JSON ------------------------------------------------------------------------------------


@module
@pytest.mark.parametrize(
    ("path", "schema", "body"),
    [
        ("/generate", Generate, {"model": "gan", "seed": 1}),
        ("/interpolate", Interpolate, {"model": "gan", "seed": [1, 2]}),
        ("/decode", Decode, {"model": "pca", "codes": [[0.0] * 8]}),
        ("/v1/images/generations", Generations, {"model": "gan", "prompt": "any", "seed": 1}),
    ],
)
async def test_null_is_the_same_as_leaving_a_parameter_out(
    http: httpx.AsyncClient, path: str, schema: Any, body: dict[str, Any]
) -> None:
    def content(response: httpx.Response) -> object:
        assert response.status_code == 200, response.text
        return response.json()["data"] if path.startswith("/v1") else response.content

    expected = content(await http.post(path, json=body))
    optional = {name: None for name in schema.model_fields if name not in body}
    assert content(await http.post(path, json=body | optional)) == expected
    for name in optional:
        assert content(await http.post(path, json={**body, name: None})) == expected, name


@module
async def test_null_for_a_required_parameter_says_that_it_is_missing(http: httpx.AsyncClient) -> None:
    assert "codes: Field required" in problem(await http.post("/decode", json={"model": "pca", "codes": None}), 422)
    assert {name for name, field in Encode.model_fields.items() if field.is_required()} == {"model"}
    assert "model: Field required" in problem(await http.post("/encode", json={"model": None}), 422)


@module
async def test_a_single_value_is_a_list_of_one(http: httpx.AsyncClient) -> None:
    for path, single, listed in (
        ("/generate", {"model": "cgan", "seed": 1, "digit": 7}, {"digit": [7]}),
        ("/interpolate", {"model": "cgan", "seed": 1, "digit": [3, 8]}, {"seed": [1]}),
        ("/interpolate", {"model": "cgan", "seed": [1, 2], "digit": 4}, {"digit": [4]}),
    ):
        for _ in range(2):  # parsed, then cached
            responses = [await http.post(path, json=body) for body in (single, single | listed)]
            assert [response.status_code for response in responses] == [200, 200]
            assert responses[0].content == responses[1].content
    assert "digit.0" in problem(await http.post("/generate", json={"model": "cgan", "digit": "7"}), 422)


# -- HEAD --------------------------------------------------------------------------------------------------------------


@module
@pytest.mark.parametrize("path", [*GET_ROUTES, "/playground/main.js", "/docs/assets/swagger-ui.css", "/openapi.json"])
async def test_head_gets_the_headers_of_get(http: httpx.AsyncClient, path: str) -> None:
    get, head = await http.get(path), await http.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    changing = {"date", "x-request-id", "server-timing", "x-seed", "content-location"}
    generated = {"x-batch", "content-length"} if "generate" in path or "interpolate" in path else set()
    if path == "/metrics":
        changing.add("content-length")
    expected = {name: value for name, value in get.headers.items() if name not in changing | generated}
    assert {name: value for name, value in head.headers.items() if name not in changing} == expected


@module
async def test_head_generates_nothing_and_knows_the_etag(app: Application, http: httpx.AsyncClient) -> None:
    def accepted() -> float:
        return metric_value(parse_metrics(app.metrics.render([]).decode()), "accepted_total")

    before, path = accepted(), "/generate?model=ddpm&seed=1&n=64&steps=1000&format=npz"
    head = await asyncio.wait_for(http.head(path), 5)
    assert (head.status_code, head.headers["content-type"]) == (200, "application/x-npz")
    assert (app.state.service.engine.outstanding, accepted()) == (0, before)
    again = await http.head(path, headers={"If-None-Match": head.headers["etag"]})
    assert again.status_code == 304
    assert (await http.head("/generate?model=gan&n=0")).status_code == 422
    random = await http.head("/generate?model=gan&format=json")
    reproduced = await http.get(random.headers["content-location"])
    assert reproduced.headers["x-seed"] == random.headers["x-seed"]


@module
async def test_head_is_refused_where_get_is(http: httpx.AsyncClient) -> None:
    response = await http.head("/encode")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    response = await http.head("/nowhere")
    assert (response.status_code, response.content) == (404, b"")
    assert "POST, not PUT" in problem(await http.put("/encode"), 405)


@module
async def test_a_connection_goes_on_after_head(app: Application) -> None:
    async with listen(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        paths = ("/generate?model=gan&n=20&format=npz", "/models", "/playground/main.js", "/nowhere")
        for path in paths:
            writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            assert b"transfer-encoding" not in head.lower()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 30)).endswith(b'{"status":"alive"}')
        writer.close()


# -- a sub-path --------------------------------------------------------------------------------------------------------

ROOT = "/digits"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mounted(settings: Settings) -> AsyncIterator[Application]:
    """An application whose setting names the path that a proxy serves it at."""
    app = create_app(settings.model_copy(update={"root_path": ROOT}), only="gan")
    async with app.router.lifespan_context(app):
        yield app


@module
@pytest.mark.parametrize("direct", [True, False])
async def test_addresses_contain_the_root_path(mounted: Application, direct: bool) -> None:
    async with connect(mounted, direct=direct) as client:  # which sends what a proxy sends: paths without the root
        for query in ("seed=1", "seed=1&format=json", "n=20&seed=1&format=json"):
            response = await client.get(f"/generate?model=gan&{query}")
            assert response.headers["content-location"].startswith(f"{ROOT}/generate?model=gan@")
            if "json" in query:
                assert response.json()["url"] == response.headers["content-location"]
        assert problem(await client.get("/nowhere"), 404) == f"nothing is at {ROOT}/nowhere; see {ROOT}/docs"
        assert {"url": ROOT} in (await client.get("/openapi.json")).json()["servers"]
        for page in ("/", "/docs", "/playground/main.js", "/docs/assets/swagger-ui.css", "/readyz", "/v1/models"):
            assert (await client.get(page)).status_code == 200, page
        lab = await client.get("/lab")
        if lab.status_code != 404:
            assert httpx.URL(lab.headers["location"]).path == f"{ROOT}/lab/"


@module
async def test_requests_at_a_root_path_are_answered_directly(
    mounted: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, start = list[DirectCall](), DirectCall.start
    monkeypatch.setattr(DirectCall, "start", lambda call: (calls.append(call), start(call)))
    async with connect(mounted) as client:
        await client.get("/generate?model=gan&seed=1")
    assert len(calls) == 1


@module
async def test_pages_link_to_each_other_without_leaving_the_root_path(mounted: Application) -> None:
    async with connect(mounted) as client:
        for path in ("/", "/docs", "/lab/live"):
            page = (await client.get(path)).text
            links = re.findall(r"(?:href|src|url)\s*[=:]\s*[\"']([^\"']*)", page)
            assert links
            assert not [link for link in links if link.startswith("/")], path


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/digits", "/digits"), ("/digits/", "/digits"), ("/", ""), ("", ""), ("/a/b-c.d_e~f", "/a/b-c.d_e~f")],
)
def test_a_root_path_is_a_path(weights: Path, path: str, expected: str) -> None:
    assert Settings(weights=weights, root_path=path).root_path == expected


@pytest.mark.parametrize("path", ["digits", "//", "/a//b", "/a?b", "/a b", "/zahlen-für-alle", "/%41", "http://x/"])
def test_other_root_paths_are_refused(weights: Path, path: str) -> None:
    with pytest.raises(ValueError, match="such as /digits"):
        Settings(weights=weights, root_path=path)


# -- immutable URLs ----------------------------------------------------------------------------------------------------

DEFAULTS = {"steps": 3, "sampler": "euler", "guidance": 1.5}
QUERIES = {
    "": False,
    "&steps=2": False,
    "&steps=2&sampler=heun": False,
    "&steps=2&guidance=2": False,
    "&steps=2&sampler=heun&guidance=2": True,
}
"""Options in a URL of `flow` that names its version, and whether they are all that its manifest has defaults for."""


@pytest_asyncio.fixture(loop_scope="module")
async def reloadable(settings: Settings, weights: Path, tmp_path: Path) -> AsyncIterator[Application]:
    """An application whose weights may be edited."""
    for name in ("flow", "gan"):
        shutil.copytree(weights / name, tmp_path / name)
    app = create_app(settings.model_copy(update={"weights": tmp_path}))
    async with app.router.lifespan_context(app):
        yield app


def edit_defaults(app: Application, defaults: dict[str, Any]) -> None:
    """Change the default options in the manifest of `flow`."""
    path = app.settings.weights / "flow" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"defaults": defaults}))


@module
@pytest.mark.parametrize("direct", [True, False])
async def test_what_an_immutable_url_gives_never_changes(reloadable: Application, direct: bool) -> None:
    async with connect(reloadable, direct=direct) as client:
        version = (await client.get("/generate?model=flow&seed=1")).headers["content-location"].partition("&")[0]
        paths = [version + query + "&seed=1&n=2" for query in QUERIES]
        paths += [path.replace("/generate", "/interpolate").replace("n=2", "seed=2") for path in paths]
        immutable = [*QUERIES.values()] * 2

        def policies(responses: list[httpx.Response]) -> list[bool]:
            return ["immutable" in response.headers["cache-control"] for response in responses]

        before = [await client.get(path) for path in paths for _ in range(2)][1::2]  # the second from the parse cache
        assert policies(before) == immutable
        for response in before:
            assert policies([await client.get(response.headers["content-location"])]) == [True]

        edit_defaults(reloadable, DEFAULTS)
        await reloadable.reload()
        after = [await client.get(path) for path in paths]
        assert before[0].content != after[0].content
        assert {response.headers["x-model-digest"] for response in after} == {before[0].headers["x-model-digest"]}
        assert policies(after) == immutable
        for old, new, fixed in zip(before, after, immutable, strict=True):
            assert old.content == new.content or not fixed
            assert (old.headers["etag"] == new.headers["etag"]) == fixed
            tag = {"If-None-Match": old.headers["etag"]}
            assert (await client.get(new.request.url.raw_path.decode(), headers=tag)).status_code == (
                304 if fixed else 200
            )
            reproduced = await client.get(old.headers["content-location"])
            assert reproduced.content == old.content


@module
async def test_a_model_without_options_needs_only_its_version(reloadable: Application) -> None:
    async with connect(reloadable) as client:
        version = (await client.get("/generate?model=gan&seed=1")).headers["content-location"].partition("&")[0]
        for query, expected in (("&seed=1", True), ("", False)):
            response = await client.get(version + query)
            assert ("immutable" in response.headers["cache-control"]) == expected
