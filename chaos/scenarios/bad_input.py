"""Bad input: malformed and hostile requests, files and connections.

Every response is the result or a problem that says what is wrong. No input takes more time or memory than its limits
allow, and none leaves a traceback. Afterwards the service generates the same bytes as before.
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

from chaos.files import corpus
from chaos.scenario import Line, Setting
from harness.connections import EXCHANGES, LIMITS, MAX_SECONDS, run_exchange
from harness.server import SERVICE, Server, environment, memory_mb, run_server
from harness.weights import copy_weights
from service.auth import keys
from service.codecs.png import png
from service.settings import Settings

CONFIG = """
[parameters]
"path.name" = "cgan"
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "406", "413", "422", "429", "504"]
"""
"""What an OpenAPI schema cannot say: a short timeout gives 504, and models take different parameters."""
MAX_MEMORY_MB = 300
"""Memory that the service may use in addition afterwards."""
SEEDED = "/generate?model=cgan&seed=1&digit=3&n=4&format=npz"


def run(setting: Setting) -> Iterator[Line]:
    schema_examples, random_examples, repeats = (1, 150, 1) if setting.quick else (25, 6000, 4)
    weights = copy_weights(setting.root, "cgan", "ddpm", "vae")
    settings = environment(port=0, weights=weights, workers=1, device="cpu", max_images=64, **LIMITS)
    with run_server(SERVICE, settings) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        before, memory_before = client.post(SEEDED).content, memory_mb(server.process.pid)
        yield schema_requests(setting, server, schema_examples)
        yield random_requests(setting, client, random_examples)
        yield files(client)
        yield connections(server, repeats)
        yield paths(server)
        yield log_lines(server)
        grown = memory_mb(server.process.pid) - memory_before
        lost = (client.post(SEEDED).content != before) + (client.get("/readyz").status_code != 200)
        lost += grown > MAX_MEMORY_MB
        yield Line("the first request again", 1, lost, f"the same bytes, ready, {grown:.0f} MB more in use")


def schema_requests(setting: Setting, server: Server, examples: int) -> Line:
    """Send the requests that schemathesis derives from the OpenAPI schema."""
    (setting.root / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run",
               f"{server.url}/openapi.json", "--checks", "all", "--max-examples", str(examples), "--no-color",
               "--request-timeout", "30", "--seed", str(setting.seed)]  # fmt: skip
    done = subprocess.run(command, cwd=setting.root, capture_output=True, text=True, check=False)
    cases = re.search(r"([0-9,]+) generated", done.stdout)
    failures = re.findall(r"^=+ (?:.*?(\d+) failures?)?(?:.*?(\d+) errors?)?.* in [0-9.]+s =+$", done.stdout, re.M)
    lost = sum(int(number or 0) for numbers in failures for number in numbers) if done.returncode else 0
    operations = re.search(r"Tested: (\d+)", done.stdout)
    figures = f"schemathesis, all checks, {operations[1] if operations else 0} operations"
    if done.returncode:
        figures += f": {done.stdout[-2000:]} {done.stderr[-500:]}"
    count = int(cases[1].replace(",", "")) if cases else 0
    return Line("requests derived from /openapi.json", count, lost or done.returncode, figures)


NAMES = st.sampled_from(
    ["model", "steps", "sampler", "prior", "guidance", "priority", "timeout", "format", "label", "digit", "n", "seed",
     "first", "previews", "frames", "path", "codes", "prompt", "size", "stream", "inputs", "parameters", "outputs",
     "id"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["cgan", "vae", "ddpm", "cgan@", "png", "npz", "events", "bulk", "nan", "inf", "1e400", "yes"]),
    st.integers(-(2**70), 2**70).map(str), st.floats().map(str), st.text(max_size=40),
)  # fmt: skip
HEADER_VALUES = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=200
).map(str.strip)
"""Values that a header may have."""
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | VALUES
    | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["n", "seed", "label", "digit"]), "datatype": st.sampled_from(["INT64", "UINT8", "BYTES"]),
     "shape": st.lists(st.integers(-1, 2**66), max_size=9) | st.just([1])},
    optional={"data": JSON, "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 99)}) | JSON},
)  # fmt: skip
PATHS = (*("/generate",) * 4, "/interpolate", "/encode", "/reconstruct", "/decode", "/inpaint", "/vary",
         "/v1/images/generations", "/v1/images/edits", "/v2/models/cgan/infer")  # fmt: skip
CONTENT_TYPE = st.sampled_from(
    [*["application/json"] * 5, *["multipart/form-data; boundary=x"] * 3, "application/x-www-form-urlencoded", "",
     "text/plain", "multipart/form-data; boundary=x; charset=undefined", "multipart/form-data"]
)  # fmt: skip
HEADERS: st.SearchStrategy[dict[str, str]] = st.just({}) | st.dictionaries(
    st.sampled_from(["Accept", "If-None-Match", "X-Timeout", "X-Request-ID", "traceparent", "Content-Encoding",
                     "Inference-Header-Content-Length", "Authorization", "X-API-Key", "X-Forwarded-For", "Range"]),
    HEADER_VALUES | st.integers(1, 6000).map("9".__mul__), max_size=3,
)  # fmt: skip
RANDOM_QUERY = st.lists(st.tuples(NAMES | st.text(max_size=8), VALUES), max_size=5).map(urllib.parse.urlencode)
VALID_QUERY = st.sampled_from(
    ["model=cgan&digit=3", "model=ddpm&steps=2&n=3", "model=vae", "model=vae&seed=1&seed=2&frames=3", ""]
)
QUERY = VALID_QUERY | RANDOM_QUERY | st.tuples(VALID_QUERY, RANDOM_QUERY).map("&".join)
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["cgan", "vae", "ddpm"]), "n": st.integers(0, 70), "seed": st.integers(-1, 2**64),
        "digit": st.lists(st.integers(-1, 10), max_size=3), "prompt": st.text(max_size=20) | st.just("a seven"),
        "label": st.lists(st.text(max_size=2) | st.integers(-1, 10), max_size=3),
        "codes": st.lists(st.lists(st.floats(width=32) | st.integers(), min_size=16, max_size=16), max_size=2),
    },
)  # fmt: skip
"""JSON bodies that are valid or nearly valid."""


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """Multipart bodies that are complete or nearly complete, with valid, damaged and random files."""
    body = b""
    for _ in range(draw(st.integers(0, 4))):
        name = draw(NAMES | st.sampled_from(["image", "image", "mask"]))
        content = draw(VALUES.map(str.encode) | st.binary(max_size=99) | damaged_files())
        file = draw(st.sampled_from(["", '; filename="a"', '; filename="../../a\\"', "; filename*=utf-8''%ff"]))
        body += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + draw(st.sampled_from([b"--x--\r\n", b"", b"--x", b"\r\n--x--"]))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Valid files, truncated or with some of their bytes changed."""
    data = bytearray(draw(st.sampled_from([file.data for file in corpus() if file.pixels is not None])))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


BINARY = st.tuples(st.lists(TENSOR, max_size=3), st.dictionaries(NAMES, JSON, max_size=3), st.binary(max_size=40)).map(
    lambda drawn: json.dumps({"inputs": drawn[0], "parameters": drawn[1]}).encode() + drawn[2]
)
BODY = st.one_of(
    PLAUSIBLE.map(json.dumps).map(str.encode),
    JSON.map(json.dumps).map(str.encode),
    st.binary(max_size=200),
    BINARY,
    forms(),
)
REQUEST = st.tuples(
    st.sampled_from(["GET", "POST", "POST", "POST"]), st.sampled_from(PATHS), QUERY, HEADERS, CONTENT_TYPE, BODY
)
TOML = st.text() | st.dictionaries(NAMES | st.sampled_from(["name", "sha256", "requests"]), VALUES).map(
    lambda table: "[[keys]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
)


def random_requests(setting: Setting, client: httpx.Client, examples: int) -> Line:
    """Send random values wherever something parses them: requests, key files and settings."""
    statuses, errors, parsed = Counter[int](), list[str](), 0

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[*hypothesis.HealthCheck],
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.seed(setting.seed)
    @hypothesis.given(REQUEST, TOML, st.sampled_from([*Settings.model_fields]), VALUES)
    def try_one(request: tuple[Any, ...], toml: str, name: str, value: str) -> None:
        nonlocal parsed
        method, path, query, headers, content_type, body = request
        encoded = {key: text.encode("latin-1")[:9000] for key, text in headers.items()}
        response = client.request(
            method, f"{path}?{query}", headers={**encoded, "Content-Type": content_type}, content=body
        )
        statuses[response.status_code] += 1
        if not proper(response):
            errors.append(f"{method} {path}?{query} {headers} {content_type} {body!r}: {response.status_code}"[:500])
        file = _written(setting.root / "keys.toml", toml)
        for parse in (partial(keys.read, file), partial(Settings.model_validate, {name: value})):
            parsed += 1
            with contextlib.suppress(ValueError):
                parse()

    try_one()
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    action = "random queries, headers, bodies, forms, tensors, key files and settings from hypothesis"
    return Line(action, statuses.total() + parsed, len(errors), "; ".join([counts, *dict.fromkeys(errors)]))


def proper(response: httpx.Response) -> bool:
    """Return whether a response is a success, or an error in the format of its API."""
    if response.status_code < 400:
        return True
    compat = response.url.path.startswith(("/v1/", "/v2/"))
    media_type = "application/json" if compat else "application/problem+json"
    expected_status = response.status_code < 500 or response.status_code == 504
    return expected_status and response.headers["content-type"] == media_type and "Traceback" not in response.text


def _written(path: Path, text: str) -> Path:
    path.write_text(text, errors="surrogatepass")
    return path


def files(client: httpx.Client) -> Line:
    """Upload each file. Its codes must be those of a plain PNG with the same pixels."""
    url, errors, slowest = "/encode?model=vae&format=npz", list[str](), 0.0
    for file in corpus():
        started_at = time.monotonic()
        response = client.post(url, files={"image": file.data})
        slowest = max(slowest, time.monotonic() - started_at)
        right = response.status_code == (422 if file.pixels is None else 200)
        if right and file.pixels is not None:
            plain = client.post(url, files={"image": png(file.pixels)})
            codes, expected = (np.load(io.BytesIO(each.content))["codes"] for each in (response, plain))
            right = bool(np.allclose(codes, expected, atol=0.2 if file.name.startswith("JPEG") else 0))
        if not (right and proper(response)):
            errors.append(f"{file.name}: {response.status_code}")
    valid = sum(file.pixels is not None for file in corpus())
    figures = f"{valid} read correctly, {len(corpus()) - valid} refused, the slowest in {slowest:.1f} s"
    lost = len(errors) + (slowest > MAX_SECONDS)
    return Line("unusual and hostile files", len(corpus()), lost, "; ".join([figures, *errors]))


def connections(server: Server, repeats: int) -> Line:
    """Open slow, oversized and ambiguous connections, all at the same time."""
    exchanges = EXCHANGES * repeats
    with ThreadPoolExecutor(len(EXCHANGES)) as pool:
        results = list(pool.map(lambda exchange: run_exchange(server.url, exchange), exchanges))
    pairs = zip(exchanges, results, strict=True)
    errors = {f"{exchange.name}: {result}" for exchange, result in pairs if result not in exchange.allowed}
    figures = f"{len(EXCHANGES)} kinds, each answered or closed within {MAX_SECONDS:g} s"
    action = "slow, oversized and ambiguous connections"
    return Line(action, len(results), len(errors), "; ".join([figures, *sorted(errors)]))


DIRECTORIES = ("/playground/", "/lab/", "/docs/assets/", "/", "/models/", "/v1/models/", "/v2/models/")
TRAVERSALS = ("..", "../..", "../../pyproject.toml", "%2e%2e/%2e%2e/pyproject.toml", "..%2f..%2fpyproject.toml",
              "%2e%2e%5c%2e%2e%5cpyproject.toml", "..%252f..%252fpyproject.toml", "%c0%ae%c0%ae/pyproject.toml",
              "%00", "index.html%00.png", "%ff", "%ed%a0%80", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", ".",
              "./", "a" * 5000, "a/" * 2000, "%", "%zz", "index.html/", "index.html/..", ";/..;/pyproject.toml",
              "~root", "?..", "#")  # fmt: skip
PRIVATE = (b"[project]", b"root:")
"""Contents of the files that the paths aim at."""


def paths(server: Server) -> Line:
    """Request paths that lead out of the directories that are served as files."""
    errors, address = list[str](), httpx.URL(server.url)
    targets = [(directory, traversal) for directory in DIRECTORIES for traversal in TRAVERSALS]
    for directory, traversal in targets:
        connection = HTTPConnection(address.host, address.port, timeout=MAX_SECONDS)  # sends paths unchanged
        connection.request("GET", directory + traversal)
        response = connection.getresponse()
        body = response.read()
        if response.status >= 500 or any(text in body for text in PRIVATE):
            errors.append(f"{directory}{traversal[:40]}: {response.status}")
        connection.close()
    figures = "; ".join(["no file outside the directories served", *errors])
    return Line("paths that lead out of the served directories", len(targets), len(errors), figures)


def log_lines(server: Server) -> Line:
    """Search the log for tracebacks, errors and lines that are not JSON."""
    lines = server.lines
    errors = [line for line in lines if "Traceback" in line or '"level": "error"' in line or line[:1] != "{"]
    return Line("log lines checked", len(lines), len(errors), "no traceback, no error, all of them JSON")
