"""deploy/nginx.conf in a real nginx before real services: what is drawn once is drawn for all, and nothing else is."""

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
    pytest.skip("no nginx; Debian's package nginx-light has one", allow_module_level=True)

URL = "/generate?model=gan&seed=1"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A key, and the file that knows it."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    return keys.add(file, "lab", {}), file


@pytest.fixture(scope="module")
def servers(
    weights: Path, key: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Two that stay, one that a test kills, one that wants a key: of few weights, and all at once, which is sooner."""
    few = tmp_path_factory.mktemp("few")
    for name in ("gan", "cgan", "ddpm"):
        (few / name).symlink_to(weights / name)
    settings = {"one": {}, "two": {}, "mortal": {}, "locked": {"keys": key[1]}}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = pool.map(lambda each: stack.enter_context(serving(few, **each)), settings.values())
        made = dict(zip(settings, started, strict=True))
        yield made
        for server in made.values():
            server.process.terminate()  # all at once, too


@pytest.fixture
def client(servers: dict[str, Server]) -> Iterator[httpx.Client]:
    """A caller of an empty cache before two replicas."""
    with (
        nginx_cache(servers["one"].url, servers["two"].url) as (url, _),
        httpx.Client(base_url=url, timeout=30) as made,
    ):
        yield made


def seen(*answers: httpx.Response) -> list[str | None]:
    """What the cache had to do with the answers; None where it was not asked."""
    return [answer.headers.get("x-cache") for answer in answers]


def pinned(client: httpx.Client, url: str = URL) -> str:
    """The URL that names the version of its model too, by a draw that is not kept."""
    return client.post(url).headers["content-location"]


def test_what_was_drawn_once_is_drawn_for_all(client: httpx.Client, servers: dict[str, Server]) -> None:
    url = pinned(client)
    first, second = client.get(url), client.get(url)
    direct = [httpx.get(f"{servers[name].url}{url}") for name in ("one", "two")]
    assert seen(first, second) == ["MISS", "HIT"]
    assert len({answer.content for answer in (first, second, *direct)}) == 1
    assert len({answer.headers["etag"] for answer in (first, second, *direct)}) == 1
    head = client.head(url)
    assert (head.status_code, head.headers["etag"], seen(head)) == (200, first.headers["etag"], ["HIT"])


def test_who_has_it_is_told_so_by_the_cache(client: httpx.Client) -> None:
    url = pinned(client)
    held = {"If-None-Match": client.get(url).headers["etag"]}
    unchanged = client.get(url, headers=held)
    assert (unchanged.status_code, unchanged.content, seen(unchanged)) == (304, b"", ["HIT"])
    assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_many_callers_of_what_is_not_there_yet_are_one_draw(client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.get, ["/generate?model=ddpm&seed=3&steps=100"] * 8))
    assert sorted(seen(*answers)) == ["HIT"] * 7 + ["MISS"]
    assert len({answer.content for answer in answers}) == 1


def test_a_draw_by_a_models_name_is_asked_about_and_not_drawn_again(client: httpx.Client) -> None:
    first, second = client.get(URL), client.get(URL)
    time.sleep(2.1)  # a second, and what is missing of one by nginx's clock
    third = client.get(URL)
    assert seen(first, second, third) == ["MISS", "HIT", "REVALIDATED"]
    assert first.content == second.content == third.content


def test_what_a_caller_accepts_is_what_he_gets(client: httpx.Client) -> None:
    kinds = ["image/png", "application/json", "image/webp"] * 2
    answers = [client.get(URL, headers={"Accept": kind}) for kind in kinds]
    assert [answer.headers["content-type"] for answer in answers] == kinds
    assert seen(*answers) == ["MISS"] * 3 + ["HIT"] * 3
    assert [answer.content for answer in answers[:3]] == [answer.content for answer in answers[3:]]


def test_streamed_packages_are_kept_whole(client: httpx.Client) -> None:
    url = pinned(client, "/generate?model=cgan&digit=3&seed=1&n=40&format=zip")
    first, second = client.get(url), client.get(url)
    assert seen(first, second) == ["MISS", "HIT"]
    assert first.content == second.content == client.post(url).content


@pytest.mark.parametrize("url", ["/generate?model=gan", "/generate?digit=1&seed=1", f"{URL}&format=events"])
def test_what_may_come_out_otherwise_is_not_kept(client: httpx.Client, url: str) -> None:
    answers = [client.get(url) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {200}
    assert "HIT" not in seen(*answers)
    assert answers[0].headers["x-request-id"] != answers[1].headers["x-request-id"]


@pytest.mark.parametrize(
    ("url", "status"),
    [
        (f"{URL}&n=0", 422),
        ("/generate?model=nobody&seed=1", 404),
        ("/generate?model=ddpm&seed=1&n=64&steps=1000&timeout=0.01", 504),
        ("/interpolate?model=gan&seed=1", 422),
    ],
)
def test_what_went_wrong_is_not_kept(client: httpx.Client, url: str, status: int) -> None:
    for answer in (client.get(url), client.get(url)):
        assert (answer.status_code, answer.headers["content-type"], seen(answer)) == (status, MEDIA_TYPE, ["MISS"])
        assert answer.json()["instance"] == httpx.URL(url).path


def test_a_post_passes_through(client: httpx.Client) -> None:
    answers = [client.post("/generate", json={"model": "gan", "seed": 1}) for _ in range(2)]
    assert seen(*answers) == [None, None]
    assert answers[0].content == answers[1].content == client.get(URL).content
    named = client.post(URL, headers={"X-Request-ID": "mine"})
    assert named.headers["x-request-id"] == "mine"


def test_events_come_as_they_are_told(client: httpx.Client) -> None:
    query = {"model": "ddpm", "steps": 300, "format": "events", "previews": True}
    with client.stream("POST", "/generate", params=query) as answer:
        parts = list(answer.iter_raw())
    assert len(parts) > 10
    assert b"event: end" not in b"".join(parts[:-1])


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_what_a_key_is_shown_for_is_not_asked_of_the_cache(client: httpx.Client, header: str) -> None:
    shown = {header: "Bearer db_key"}
    alone, kept, beside = client.get(URL, headers=shown), client.get(URL), client.get(URL, headers=shown)
    assert seen(alone, kept, beside) == [None, "MISS", None]


def test_a_cache_is_no_way_around_keys(servers: dict[str, Server], key: tuple[str, Path]) -> None:
    shown = {"Authorization": f"Bearer {key[0]}"}
    with nginx_cache(servers["locked"].url) as (url, _):
        drawn = httpx.get(f"{url}{URL}", headers=shown)
        assert drawn.status_code == 200
        assert [httpx.get(f"{url}{URL}").status_code for _ in range(2)] == [401, 401]
        held = {"If-None-Match": drawn.headers["etag"]}
        assert httpx.get(f"{url}{URL}", headers=shown | held).status_code == 304


def test_what_is_for_operators_is_not_to_be_had(client: httpx.Client) -> None:
    for path in ("/metrics", "/readyz", "/livez", "/%6detrics"):
        assert client.get(path).status_code == 404, path
    assert client.get("/models").status_code == 200


def test_a_body_that_is_too_large_is_refused_as_the_service_does(client: httpx.Client) -> None:
    answer = client.post("/encode", content=b"0" * (4 * 2**20 + 1))
    assert (answer.status_code, answer.headers["content-type"]) == (413, MEDIA_TYPE)
    assert answer.json()["type"] == "urn:drawbridge:problem:body-too-large"


def test_a_replica_that_dies_is_not_missed(servers: dict[str, Server]) -> None:
    front = servers["mortal"].process.pid
    workers = Path(f"/proc/{front}/task/{front}/children").read_text().split()
    with (
        nginx_cache(servers["mortal"].url, servers["one"].url) as (url, _),
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        calls = [pool.submit(client.post, URL) for _ in range(400)]
        while sum(call.done() for call in calls) < 100:
            time.sleep(0.001)
        for pid in (front, *map(int, workers)):
            os.kill(pid, signal.SIGKILL)
        broken = [call for call in calls if isinstance(call.exception(), httpx.RemoteProtocolError)]
        answers = [call.result() for call in calls if call not in broken] + [client.get(URL)]
    assert len(broken) <= 4, "an answer that had begun cannot begin again, and four were under way"
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert any("/generate" in line for line in servers["mortal"].lines), "it had its share"


class Draining(BaseHTTPRequestHandler):
    """A replica that is told to end: 503 for everything, and nothing about caches."""

    def answer(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_a_replica_cannot_do_now_another_does_and_no_503_is_kept(servers: dict[str, Server]) -> None:
    with HTTPServer(("127.0.0.1", 0), Draining) as ending, ThreadPoolExecutor() as pool:
        pool.submit(ending.serve_forever)
        down = f"http://127.0.0.1:{ending.server_port}"
        with nginx_cache(down) as (url, _):
            alone = [httpx.get(f"{url}{URL}") for _ in range(2)]
        with nginx_cache(down, servers["one"].url) as (url, _):
            beside = [httpx.post(f"{url}{URL}") for _ in range(8)]
        ending.shutdown()
    assert [answer.status_code for answer in alone] == [503] * 2
    assert seen(*alone) == ["MISS"] * 2
    assert {answer.status_code for answer in beside} == {200}


def test_without_replicas_it_answers_as_the_service_would() -> None:
    with nginx_cache("http://127.0.0.1:1") as (url, _):
        for answer in (httpx.get(f"{url}{URL}"), httpx.post(f"{url}{URL}"), httpx.get(f"{url}/models")):
            assert (answer.status_code, answer.headers["content-type"]) == (503, MEDIA_TYPE)
            assert answer.headers["retry-after"].isdigit()
            assert answer.headers["x-request-id"]
