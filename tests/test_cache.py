"""deploy/nginx.conf in a real nginx in front of real services."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from harness.server import NGINX, Server, nginx_cache
from service.auth import keys
from service.errors import MEDIA_TYPE
from tests.serving import serving

if NGINX is None:
    pytest.skip("no nginx; Debian's package is nginx-light", allow_module_level=True)

URL = "/generate?model=gan&seed=1"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A key, and the file that holds it."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    return keys.add(file, "lab", {}), file


@pytest.fixture(scope="module")
def servers(
    weights: Path, key: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Two replicas, one that a test kills, and one that requires a key, started in parallel with few weights."""
    directory = tmp_path_factory.mktemp("weights")
    for name in ("gan", "cgan", "ddpm"):
        (directory / name).symlink_to(weights / name)
    settings = {"first": {}, "second": {}, "killed": {}, "authenticated": {"keys": key[1]}}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = pool.map(lambda each: stack.enter_context(serving(directory, **each)), settings.values())
        running = dict(zip(settings, started, strict=True))
        yield running
        for server in running.values():
            server.process.terminate()  # all before the first is awaited


@pytest.fixture
def client(servers: dict[str, Server]) -> Iterator[httpx.Client]:
    """A client of an empty cache in front of two replicas."""
    with (
        nginx_cache(servers["first"].url, servers["second"].url) as (url, _),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def cache_statuses(*responses: httpx.Response) -> list[str | None]:
    """What the cache did for each response. None if the request bypassed it."""
    return [response.headers.get("x-cache") for response in responses]


def pinned(client: httpx.Client, url: str = URL) -> str:
    """The same URL with the version of its model, from a POST, which is not cached."""
    return client.post(url).headers["content-location"]


def test_a_response_from_the_cache_equals_that_of_every_replica(
    client: httpx.Client, servers: dict[str, Server]
) -> None:
    url = pinned(client)
    first, second = client.get(url), client.get(url)
    direct = [httpx.get(f"{servers[name].url}{url}") for name in ("first", "second")]
    assert cache_statuses(first, second) == ["MISS", "HIT"]
    assert len({response.content for response in (first, second, *direct)}) == 1
    assert len({response.headers["etag"] for response in (first, second, *direct)}) == 1
    head = client.head(url)
    assert (head.status_code, head.headers["etag"], cache_statuses(head)) == (200, first.headers["etag"], ["HIT"])


def test_the_cache_answers_a_matching_etag_with_304(client: httpx.Client) -> None:
    url = pinned(client)
    condition = {"If-None-Match": client.get(url).headers["etag"]}
    unchanged = client.get(url, headers=condition)
    assert (unchanged.status_code, unchanged.content, cache_statuses(unchanged)) == (304, b"", ["HIT"])
    assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_concurrent_requests_for_one_url_are_generated_once(client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(client.get, ["/generate?model=ddpm&seed=3&steps=100"] * 8))
    assert sorted(cache_statuses(*responses)) == ["HIT"] * 7 + ["MISS"]
    assert len({response.content for response in responses}) == 1


def test_a_url_without_a_version_is_revalidated_and_not_generated_again(client: httpx.Client) -> None:
    first, second = client.get(URL), client.get(URL)
    time.sleep(2.1)  # one second, and up to one more by nginx's clock
    third = client.get(URL)
    assert cache_statuses(first, second, third) == ["MISS", "HIT", "REVALIDATED"]
    assert first.content == second.content == third.content


def test_the_cache_keeps_one_response_for_each_accept_header(client: httpx.Client) -> None:
    types = ["image/png", "application/json", "image/webp"] * 2
    responses = [client.get(URL, headers={"Accept": media_type}) for media_type in types]
    assert [response.headers["content-type"] for response in responses] == types
    assert cache_statuses(*responses) == ["MISS"] * 3 + ["HIT"] * 3
    assert [response.content for response in responses[:3]] == [response.content for response in responses[3:]]


def test_a_streamed_archive_is_cached_complete(client: httpx.Client) -> None:
    url = pinned(client, "/generate?model=cgan&digit=3&seed=1&n=40&format=zip")
    first, second = client.get(url), client.get(url)
    assert cache_statuses(first, second) == ["MISS", "HIT"]
    assert first.content == second.content == client.post(url).content


@pytest.mark.parametrize("url", ["/generate?model=gan", "/generate?digit=1&seed=1", f"{URL}&format=events"])
def test_a_response_that_may_differ_next_time_is_not_cached(client: httpx.Client, url: str) -> None:
    responses = [client.get(url) for _ in range(2)]
    assert {response.status_code for response in responses} == {200}
    assert "HIT" not in cache_statuses(*responses)
    assert responses[0].headers["x-request-id"] != responses[1].headers["x-request-id"]


@pytest.mark.parametrize(
    ("url", "status"),
    [
        (f"{URL}&n=0", 422),
        ("/generate?model=unknown&seed=1", 404),
        ("/generate?model=ddpm&seed=1&n=64&steps=1000&timeout=0.01", 504),
        ("/interpolate?model=gan&seed=1", 422),
    ],
)
def test_an_error_is_not_cached(client: httpx.Client, url: str, status: int) -> None:
    for response in (client.get(url), client.get(url)):
        assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)
        assert cache_statuses(response) == ["MISS"]
        assert response.json()["instance"] == httpx.URL(url).path


def test_a_post_bypasses_the_cache(client: httpx.Client) -> None:
    responses = [client.post("/generate", json={"model": "gan", "seed": 1}) for _ in range(2)]
    assert cache_statuses(*responses) == [None, None]
    assert responses[0].content == responses[1].content == client.get(URL).content
    named = client.post(URL, headers={"X-Request-ID": "mine"})
    assert named.headers["x-request-id"] == "mine"


def test_events_are_not_buffered(client: httpx.Client) -> None:
    query = {"model": "ddpm", "steps": 300, "format": "events", "previews": True}
    with client.stream("POST", "/generate", params=query) as response:
        parts = list(response.iter_raw())
    assert len(parts) > 10
    assert b"event: end" not in b"".join(parts[:-1])


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_request_with_a_key_bypasses_the_cache(client: httpx.Client, header: str) -> None:
    headers = {header: "Bearer db_key"}
    first, cached, second = client.get(URL, headers=headers), client.get(URL), client.get(URL, headers=headers)
    assert cache_statuses(first, cached, second) == [None, "MISS", None]


def test_a_response_to_a_key_is_not_served_without_one(servers: dict[str, Server], key: tuple[str, Path]) -> None:
    headers = {"Authorization": f"Bearer {key[0]}"}
    with nginx_cache(servers["authenticated"].url) as (url, _):
        response = httpx.get(f"{url}{URL}", headers=headers)
        assert response.status_code == 200
        assert [httpx.get(f"{url}{URL}").status_code for _ in range(2)] == [401, 401]
        condition = {"If-None-Match": response.headers["etag"]}
        assert httpx.get(f"{url}{URL}", headers=headers | condition).status_code == 304


def test_admin_endpoints_are_not_reachable_through_nginx(client: httpx.Client) -> None:
    for path in ("/metrics", "/readyz", "/livez", "/%6detrics"):
        assert client.get(path).status_code == 404, path
    assert client.get("/models").status_code == 200


def test_nginx_refuses_a_large_body_with_the_services_problem(client: httpx.Client) -> None:
    response = client.post("/encode", content=b"0" * (16 * 2**20 + 1))
    assert (response.status_code, response.headers["content-type"]) == (413, MEDIA_TYPE)
    assert response.json()["type"] == "urn:drawbridge:problem:body-too-large"


def test_requests_to_a_replica_that_dies_go_to_another(servers: dict[str, Server]) -> None:
    pids = [servers["killed"].process.pid, *servers["killed"].workers]
    with (
        nginx_cache(servers["killed"].url, servers["first"].url) as (url, _),
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        requests = [pool.submit(client.post, URL) for _ in range(400)]
        while sum(request.done() for request in requests) < 100:
            time.sleep(0.001)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        broken = [each for each in requests if isinstance(each.exception(), httpx.RemoteProtocolError)]
        responses = [each.result() for each in requests if each not in broken] + [client.get(URL)]
    assert len(broken) <= 4, "only responses that had begun may break, and four requests were in flight"
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert any("/generate" in line for line in servers["killed"].lines), "the killed replica had received requests"


class Draining(BaseHTTPRequestHandler):
    """A replica that shuts down: 503 for every request, without cache headers."""

    def respond(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = respond

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_503_is_not_cached_and_another_replica_is_tried(servers: dict[str, Server]) -> None:
    with HTTPServer(("127.0.0.1", 0), Draining) as replica, ThreadPoolExecutor() as pool:
        pool.submit(replica.serve_forever)
        draining = f"http://127.0.0.1:{replica.server_port}"
        with nginx_cache(draining) as (url, _):
            alone = [httpx.get(f"{url}{URL}") for _ in range(2)]
        with nginx_cache(draining, servers["first"].url) as (url, _):
            with_another = [httpx.post(f"{url}{URL}") for _ in range(8)]
        replica.shutdown()
    assert [response.status_code for response in alone] == [503] * 2
    assert cache_statuses(*alone) == ["MISS"] * 2
    assert {response.status_code for response in with_another} == {200}


def test_without_replicas_nginx_answers_with_the_services_problem() -> None:
    with nginx_cache("http://127.0.0.1:1") as (url, _):
        for response in (httpx.get(f"{url}{URL}"), httpx.post(f"{url}{URL}"), httpx.get(f"{url}/models")):
            assert (response.status_code, response.headers["content-type"]) == (503, MEDIA_TYPE)
            assert response.headers["retry-after"].isdigit()
            assert response.headers["x-request-id"]
