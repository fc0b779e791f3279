"""Bad input: requests, files and connections that make no sense, or mean harm.

Whatever comes in is answered with what was asked for, or with a problem that says what is wrong; none of it takes more
time or memory than its bounds, or leaves a traceback; and the service draws the same bytes after it as before.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
from hypothesis import strategies as st

from chaos.connections import LONGEST, SAID, spoken
from chaos.files import corpus
from chaos.scenario import Line, Setting
from chaos.weights import copied
from harness.server import SERVICE, Server, environment, memory_mb, run_server
from service.auth import keys
from service.codecs.png import png
from service.settings import Settings

BOUNDS = {"header_timeout": 1, "body_timeout": 1, "write_timeout": 2, "keep_alive_timeout": 2, "max_body_bytes": 2**20}
CONFIG = """
[parameters]
"path.name" = "cgan"
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "406", "413", "422", "429", "504"]
"""
"""What a description cannot say: who asks for less time than a draw takes gets 504; models differ in what they take."""
SEEDED = "/generate?model=cgan&seed=1&digit=3&n=4&format=npz"


def run(setting: Setting) -> Iterator[Line]:
    described, guessed, often = (1, 150, 1) if setting.quick else (25, 6000, 4)
    weights = copied(setting.root, "cgan", "ddpm", "vae")
    settings = environment(port=0, weights=weights, workers=1, device="cpu", max_images=64, **BOUNDS)
    with run_server(SERVICE, settings) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        before, room = client.post(SEEDED).content, memory_mb(server.process.pid)
        yield by_description(setting, server, described)
        yield guesses(setting, client, guessed)
        yield files(client)
        yield connections(server, often)
        yield paths(server)
        lines = server.lines
        told = [line for line in lines if "Traceback" in line or '"level": "error"' in line or not line.startswith("{")]
        yield Line("lines of the log looked through", len(lines), len(told), "no traceback, no error, all of them JSON")
        grown = memory_mb(server.process.pid) - room
        lost = (client.post(SEEDED).content != before) + (client.get("/readyz").status_code != 200) + (grown > 300)
        yield Line("drawn again after all of it", 1, lost, f"the same bytes, ready, {grown:.0f} MB more in use")


def by_description(setting: Setting, server: Server, examples: int) -> Line:
    """What the API's own description makes one try."""
    (setting.root / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run",
               f"{server.url}/openapi.json", "--checks", "all", "--max-examples", str(examples), "--no-color",
               "--request-timeout", "30", "--seed", str(setting.seed)]  # fmt: skip
    done = subprocess.run(command, cwd=setting.root, capture_output=True, text=True, check=False)
    cases = re.search(r"([0-9,]+) generated", done.stdout)
    wrong = re.findall(r"^=+ (?:.*?(\d+) failures?)?(?:.*?(\d+) errors?)?.* in [0-9.]+s =+$", done.stdout, re.M)
    lost = sum(int(number or 0) for numbers in wrong for number in numbers) if done.returncode else 0
    tests = re.search(r"Tested: (\d+)", done.stdout)
    found = f"schemathesis, all checks, {tests[1] if tests else 0} operations"
    if done.returncode:
        found += f": {done.stdout[-2000:]} {done.stderr[-500:]}"
    return Line(
        "requests made from /openapi.json",
        int(cases[1].replace(",", "")) if cases else 0,
        lost or done.returncode,
        found,
    )


NAMES = st.sampled_from(
    ["model", "steps", "sampler", "prior", "guidance", "priority", "timeout", "format", "digit", "n", "seed", "first",
     "previews", "frames", "path", "codes", "prompt", "size", "stream", "inputs", "parameters", "outputs", "id"]
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["cgan", "vae", "ddpm", "cgan@", "png", "npz", "events", "bulk", "nan", "inf", "1e400", "yes"]),
    st.integers(-(2**70), 2**70).map(str), st.floats().map(str), st.text(max_size=40),
)  # fmt: skip
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=200).map(
    str.strip
)
"""What a header may hold."""
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | WORDS
    | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["n", "seed", "digit"]), "datatype": st.sampled_from(["INT64", "UINT8", "UINT64"]),
     "shape": st.lists(st.integers(-1, 2**66), max_size=9) | st.just([1])},
    optional={"data": JSON, "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 99)}) | JSON},
)  # fmt: skip
POSTED = (*("/generate",) * 4, "/interpolate", "/encode", "/reconstruct", "/decode", "/v1/images/generations",
          "/v2/models/cgan/infer")  # fmt: skip
KIND = st.sampled_from(
    [*["application/json"] * 5, *["multipart/form-data; boundary=x"] * 3, "application/x-www-form-urlencoded", "",
     "text/plain", "multipart/form-data; boundary=x; charset=undefined", "multipart/form-data"]
)  # fmt: skip
HEADERS: st.SearchStrategy[dict[str, str]] = st.just({}) | st.dictionaries(
    st.sampled_from(["Accept", "If-None-Match", "X-Timeout", "X-Request-ID", "traceparent", "Content-Encoding",
                     "Inference-Header-Content-Length", "Authorization", "X-API-Key", "X-Forwarded-For", "Range"]),
    PLAIN | st.integers(1, 6000).map("9".__mul__), max_size=3,
)  # fmt: skip
ODD = st.lists(st.tuples(NAMES | st.text(max_size=8), WORDS), max_size=5).map(urllib.parse.urlencode)
EVEN = st.sampled_from(
    ["model=cgan&digit=3", "model=ddpm&steps=2&n=3", "model=vae", "model=vae&seed=1&seed=2&frames=3", ""]
)
QUERY = EVEN | ODD | st.tuples(EVEN, ODD).map("&".join)
GOOD = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["cgan", "vae", "ddpm"]), "n": st.integers(0, 70), "seed": st.integers(-1, 2**64),
        "digit": st.lists(st.integers(-1, 10), max_size=3), "prompt": st.text(max_size=20) | st.just("a seven"),
        "codes": st.lists(st.lists(st.floats(width=32) | st.integers(), min_size=16, max_size=16), max_size=2),
    },
)  # fmt: skip
"""What is right, or nearly so."""


@st.composite
def parts(draw: st.DrawFn) -> bytes:
    """A form, whole or nearly so, with files that were good once."""
    made = b""
    for _ in range(draw(st.integers(0, 4))):
        name, held = draw(NAMES | st.just("image")), draw(WORDS.map(str.encode) | st.binary(max_size=99) | spoilt())
        file = draw(st.sampled_from(["", '; filename="a"', '; filename="../../a\\"', "; filename*=utf-8''%ff"]))
        made += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + held + b"\r\n"
    return made + draw(st.sampled_from([b"--x--\r\n", b"", b"--x", b"\r\n--x--"]))


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A file that can be read, cut off or with some of its bytes changed."""
    data = bytearray(draw(st.sampled_from([file.data for file in corpus() if file.pixels is not None])))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


BINARY = st.tuples(st.lists(TENSOR, max_size=3), st.dictionaries(NAMES, JSON, max_size=3), st.binary(max_size=40)).map(
    lambda made: json.dumps({"inputs": made[0], "parameters": made[1]}).encode() + made[2]
)
BODY = st.one_of(
    GOOD.map(json.dumps).map(str.encode), JSON.map(json.dumps).map(str.encode), st.binary(max_size=200), BINARY, parts()
)
REQUEST = st.tuples(
    st.sampled_from(["GET", "POST", "POST", "POST"]), st.sampled_from(POSTED), QUERY, HEADERS, KIND, BODY
)


TOML = st.text() | st.dictionaries(NAMES | st.sampled_from(["name", "sha256", "requests"]), WORDS).map(
    lambda said: "[[keys]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in said.items())
)


def guesses(setting: Setting, client: httpx.Client, often: int) -> Line:
    """Random words wherever something reads them."""
    seen = Counter[str]()

    @hypothesis.settings(
        max_examples=often,
        deadline=None,
        database=None,
        suppress_health_check=[*hypothesis.HealthCheck],
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.seed(setting.seed)
    @hypothesis.given(REQUEST, TOML, st.sampled_from([*Settings.model_fields]), WORDS)
    def guess(asked: tuple[Any, ...], toml: str, name: str, value: str) -> None:
        method, path, query, headers, kind, body = asked
        sent = {**{key: text.encode("latin-1")[:9000] for key, text in headers.items()}, "Content-Type": kind}
        answer = client.request(method, f"{path}?{query}", headers=sent, content=body)
        seen[str(answer.status_code)] += 1
        if not clean(answer):
            seen["wrong"] += 1
            seen[f"{method} {path}?{query} {headers} {kind} {body!r}: {answer.status_code}"[:500]] += 1
        file = _written(setting.root / "keys.toml", toml)
        for read in (partial(keys.read, file), partial(Settings.model_validate, {name: value})):
            seen["read"] += 1
            with contextlib.suppress(ValueError):
                read()

    guess()
    times = sum(count for what, count in seen.items() if what.isdigit()) + seen["read"]
    statuses = ", ".join(f"{status}: {seen[status]}" for status in sorted(filter(str.isdigit, seen)))
    wrong = "; ".join(what for what in seen if len(what) > 5)
    done = "queries, headers, bodies, forms, tensors, keys and settings made up by hypothesis"
    return Line(done, times, seen["wrong"], f"{statuses}{'; ' if wrong else ''}{wrong}")


def clean(answer: httpx.Response) -> bool:
    """Whether it is what was asked for, or says what was wrong as its API says it."""
    if answer.status_code < 400:
        return True
    foreign = answer.url.path.startswith(("/v1/", "/v2/"))
    kind = "application/json" if foreign else "application/problem+json"
    fine = answer.status_code < 500 or answer.status_code == 504
    return fine and answer.headers["content-type"] == kind and "Traceback" not in answer.text


def _written(path: Path, text: str) -> Path:
    path.write_text(text, errors="surrogatepass")
    return path


def files(client: httpx.Client) -> Line:
    """Each of the corpus, and what the picture that it holds comes to by itself."""
    ask, wrong, slowest = "/encode?model=vae&format=npz", list[str](), 0.0
    for file in corpus():
        begun = time.monotonic()
        answer = client.post(ask, files={"image": file.data})
        slowest = max(slowest, time.monotonic() - begun)
        right = answer.status_code == 422 if file.pixels is None else answer.status_code == 200
        if right and file.pixels is not None:
            found, meant = (np.load(io.BytesIO(one.content))["codes"]
                            for one in (answer, client.post(ask, files={"image": png(file.pixels)})))  # fmt: skip
            right = bool(np.allclose(found, meant, atol=0.2 if file.name.startswith("JPEG") else 0))
        if not (right and clean(answer)):
            wrong.append(f"{file.name}: {answer.status_code}")
    good = sum(file.pixels is not None for file in corpus())
    found = f"{good} with their pixels, {len(corpus()) - good} refused, the slowest in {slowest:.1f} s"
    return Line("hostile and odd files", len(corpus()), len(wrong) + (slowest > LONGEST), "; ".join([found, *wrong]))


def connections(server: Server, often: int) -> Line:
    """Slow, oversized and ambiguous ones, all at the same time."""
    with ThreadPoolExecutor(len(SAID)) as pool:
        ends = list(pool.map(lambda said: spoken(server.url, said), SAID * often))
    wrong = {f"{said.name}: {end}" for said, end in zip(SAID * often, ends, strict=True) if end not in said.allowed}
    found = f"{len(SAID)} kinds, each answered or closed within {LONGEST:g} s"
    return Line("slow, oversized and ambiguous connections", len(ends), len(wrong), "; ".join([found, *sorted(wrong)]))


UNDER = ("/playground/", "/lab/", "/docs/assets/", "/", "/models/", "/v1/models/", "/v2/models/")
TRICKS = ("..", "../..", "../../pyproject.toml", "%2e%2e/%2e%2e/pyproject.toml", "..%2f..%2fpyproject.toml",
          "%2e%2e%5c%2e%2e%5cpyproject.toml", "..%252f..%252fpyproject.toml", "%c0%ae%c0%ae/pyproject.toml", "%00",
          "index.html%00.png", "%ff", "%ed%a0%80", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", ".", "./",
          "a" * 5000, "a/" * 2000, "%", "%zz",
          "index.html/", "index.html/..", ";/..;/pyproject.toml", "~root", "?..", "#")  # fmt: skip
OURS = (b"[project]", b"root:")
"""What those files have in them."""


def paths(server: Server) -> Line:
    """Ways out of the directories that are served as files."""
    wrong, at, times = list[str](), httpx.URL(server.url), 0
    for under in UNDER:
        for trick in TRICKS:
            times += 1
            connection = HTTPConnection(at.host, at.port, timeout=LONGEST)  # which sends paths as they are
            connection.request("GET", under + trick)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status >= 500 or any(told in body for told in OURS):
                wrong.append(f"{under}{trick[:40]}: {answer.status}")
            connection.close()
    return Line("ways out of what is served as files", times, len(wrong), "; ".join(["nothing of it served", *wrong]))
