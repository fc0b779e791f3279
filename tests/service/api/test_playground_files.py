"""The playground's files: their addresses, headers and compression, and how changes appear."""

import gzip
import re
import shutil
from pathlib import Path

import httpx
import pytest

from service.api.direct import DirectCall
from service.api.pages import PLAYGROUND
from service.api.playground_files import PAGES, PlaygroundFiles, accepts_gzip
from service.app import Application
from tests.service.conftest import asgi_client
from tests.service.listening import listen

asynchronous = pytest.mark.asyncio(loop_scope="module")
PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture
def copy(tmp_path: Path) -> PlaygroundFiles:
    """A copy of the playground that may be edited."""
    return PlaygroundFiles(Path(shutil.copytree(PLAYGROUND, tmp_path / "playground")))


def text(files: PlaygroundFiles, path: str) -> str:
    """The content at a path."""
    file = files.find(path)
    assert file is not None, path
    return file.content.decode()


def script_of(page: str) -> str:
    """The address of a page's script."""
    (address,) = re.findall(r'<script type="module" src="(?:\.\./)?([^"]+)"', page)
    return f"/{address}"


# -- addresses ---------------------------------------------------------------------------------------------------------


@asynchronous
@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("direct", [True, False])
async def test_browsers_keep_what_a_page_loads_and_revalidate_the_page(
    app: Application, path: str, direct: bool
) -> None:
    async with (
        listen(app, direct=direct) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=PLAIN) as client,
    ):
        page = await client.get(path)
        assert page.headers["cache-control"] == "no-cache"
        links = [link for link in re.findall(r'(?:href|src)="([^"]+)"', page.text) if "playground/" in link]
        assert len(links) >= 3
        for link in links:
            response = await client.get(str(page.url.join(link)))
            assert response.headers["cache-control"] == "public, max-age=31536000, immutable", link
            name = re.sub(r".*playground/[0-9a-f]{16}/", "", link)
            assert response.content == (PLAYGROUND / name).read_bytes()
            assert response.headers["content-type"].startswith(("text/css", "text/javascript"))


@asynchronous
async def test_other_addresses_of_a_file_are_revalidated(app: Application) -> None:
    client = asgi_client(app)
    for path in ("/playground/main.js", f"/playground/{'0' * 16}/main.js"):  # without a version, and of an older page
        response = await client.get(path)
        assert response.content == (PLAYGROUND / "main.js").read_bytes()
        assert response.headers["cache-control"] == "no-cache"
    assert (await client.get("/playground/0000/main.js")).status_code == 404
    assert (await client.get(f"/playground/{'0' * 16}/nothing.js")).status_code == 404
    assert (await client.post(script_of((await client.get("/")).text))).status_code == 405


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_served_at_a_new_address_when_the_page_is_loaded_again(copy: PlaygroundFiles) -> None:
    before = script_of(text(copy, "/"))
    assert script_of(text(copy, "/")) == before
    (copy.directory / "main.js").write_text("// new\n")
    after = script_of(text(copy, "/"))
    assert after != before
    assert text(copy, after) == "// new\n"
    assert before not in copy
    assert script_of(text(copy, "/lab/live")).split("/")[2] == after.split("/")[2]


def test_new_and_removed_files_change_the_address_too(copy: PlaygroundFiles) -> None:
    versions = {script_of(text(copy, "/"))}
    (copy.directory / "lab" / "new.js").write_text("")
    versions.add(added := script_of(text(copy, "/")))
    assert text(copy, added.replace("main.js", "lab/new.js")) == ""
    (copy.directory / "lab" / "new.js").unlink()
    versions.add(removed := script_of(text(copy, "/")))
    assert len(versions) == 2, "the same files have the same address"
    assert removed.replace("main.js", "lab/new.js") not in copy


# -- responses ---------------------------------------------------------------------------------------------------------


@asynchronous
@pytest.mark.parametrize("path", ["/", "script"])
async def test_a_direct_response_equals_the_one_over_asgi(
    app: Application, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, changing = list[dict[str, object]](), ("date", "x-request-id", "server-timing")
    calls, start = list[DirectCall](), DirectCall.start
    monkeypatch.setattr(DirectCall, "start", lambda call: (calls.append(call), start(call)))
    for direct in (True, False):
        async with (
            listen(app, direct=direct) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            address = script_of((await client.get("/")).text) if path == "script" else path
            calls.clear()
            for headers in (PLAIN, {"Accept-Encoding": "gzip"}):
                whole = await client.get(address, headers=headers)
                tag = {"If-None-Match": whole.headers["etag"]}
                none = await client.get(address, headers=headers | tag)
                assert (whole.status_code, none.status_code, none.content) == (200, 304, b"")
                for response in (whole, none):
                    assert "default-src 'none'" in response.headers["content-security-policy"]
                    assert response.headers["x-content-type-options"] == "nosniff"
                    fields = {name: value for name, value in response.headers.items() if name not in changing}
                    files.append(fields | {"content": response.content})
            assert len(calls) == (4 if direct else 0)
    assert files[:4] == files[4:]


@asynchronous
async def test_a_file_is_compressed_for_clients_that_take_it(app: Application) -> None:
    client = asgi_client(app)
    plain, compressed = [await client.get("/", headers={"Accept-Encoding": coding}) for coding in ("identity", "gzip")]
    assert "content-encoding" not in plain.headers
    assert compressed.headers["content-encoding"] == "gzip"
    assert plain.content == compressed.content
    assert int(compressed.headers["content-length"]) < len(plain.content) / 2
    assert plain.headers["etag"] != compressed.headers["etag"]
    assert plain.headers["vary"] == compressed.headers["vary"] == "Accept-Encoding"
    raw = app.pages.find("/")
    assert raw is not None
    assert gzip.decompress(raw.compressed[0]) == plain.content


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"gzip, deflate, br, zstd", True), (b"br;q=1.0, GZIP ;q=0.5", True), (b"deflate, gzip;q=1.000", True),
        (b"gzip;q=0", False), (b"gzip; q=0.000", False), (b"br", False), (b"gzipped", False), (b"", False),
    ],
)  # fmt: skip
def test_a_client_may_take_or_refuse_gzip(header: bytes, expected: bool) -> None:
    assert accepts_gzip({"headers": [(b"accept", b"*/*"), (b"accept-encoding", header)]}) is expected
    assert not accepts_gzip({"headers": []})
