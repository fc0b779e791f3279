"""`drawbridge serve --class`: the settings of a class, the addresses of this machine, and the QR code."""

import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from unittest import mock

import httpx
import pytest

from drawbridge.cli import main
from drawbridge.commands import classroom
from drawbridge.commands.settings import read_environment
from harness.server import ROOT, environment
from service.server import serve
from service.settings import PREFIX, Settings

Matrix = list[list[bool]]
"""Modules of a QR code, True for dark ones."""
CELL = re.compile(r"\x1b\[38;5;(\d+)m\x1b\[48;5;(\d+)m▀")
MASKS: list[Callable[[int, int], bool]] = [
    lambda i, j: (i + j) % 2 == 0,
    lambda i, _: i % 2 == 0,
    lambda _, j: j % 3 == 0,
    lambda i, j: (i + j) % 3 == 0,
    lambda i, j: (i // 2 + j // 3) % 2 == 0,
    lambda i, j: i * j % 2 + i * j % 3 == 0,
    lambda i, j: (i * j % 2 + i * j % 3) % 2 == 0,
    lambda i, j: ((i + j) % 2 + i * j % 3) % 2 == 0,
]
"""The data masks of ISO/IEC 18004, 7.8.2, by row and column."""


def modules(text: str) -> Matrix:
    """The modules that the half blocks of `text` show, without the light ones around the code."""
    rows: list[list[bool]] = []
    for line in text.splitlines():
        if cells := CELL.findall(line):
            rows += ([int(cell[half]) < 244 for cell in cells] for half in (0, 1))
    edge = classroom.QUIET_ZONE
    width = len(rows[0])
    assert not any(any(row) for row in rows[:edge] + rows[width - edge : width])
    assert not any(any(row[:edge] + row[-edge:]) for row in rows[:width])
    return [row[edge:-edge] for row in rows[edge : width - edge]]


def decoded(matrix: Matrix) -> str:
    """The text of a QR code of version 1 to 3, in byte mode, whose codewords are one block (ISO/IEC 18004, 7)."""
    size = len(matrix)
    assert size in (21, 25, 29)
    mask = MASKS[
        sum((matrix[8][column] ^ flipped) << bit for column, bit, flipped in ((2, 2, 1), (3, 1, 0), (4, 0, 1)))
    ]

    def is_data(i: int, j: int) -> bool:
        finder = (i < 9 and (j < 9 or j >= size - 8)) or (i >= size - 8 and j < 9)
        alignment = size > 21 and abs(i - size + 7) <= 2 and abs(j - size + 7) <= 2
        return not (finder or alignment or i == 6 or j == 6)

    bits = []
    pairs = [column for column in range(size - 1, 0, -2) if column > 6] + [5, 3, 1]
    for number, right in enumerate(pairs):
        for i in range(size) if number % 2 else reversed(range(size)):
            bits += [matrix[i][j] ^ mask(i, j) for j in (right, right - 1) if is_data(i, j)]
    stream = "".join("01"[bit] for bit in bits)
    assert stream[:4] == "0100", "byte mode"
    length = int(stream[4:12], 2)
    return bytes(int(stream[12 + 8 * k : 20 + 8 * k], 2) for k in range(length)).decode()


@pytest.fixture
def variables() -> Iterator[MutableMapping[str, str]]:
    """The environment, in which no setting is set; the test's changes end with it."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        yield os.environ


@pytest.mark.parametrize("url", ["http://10.0.0.7:8000", "http://192.168.178.100:8000"])
def test_the_printed_qr_code_decodes_to_the_url(url: str) -> None:
    assert decoded(modules(classroom.qr_code(url, 80))) == url


def test_a_qr_code_that_does_not_fit_the_terminal_is_left_out() -> None:
    assert classroom.qr_code("http://192.168.178.100:8000", 30) == ""


def test_a_terminal_shows_the_address_and_its_qr_code_and_the_service_answers_without_a_key() -> None:
    terminal, end = pty.openpty()
    variables = environment(port=0, device="cpu", workers=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--class"], cwd=ROOT, env=variables, stdout=end, stderr=end
    )
    os.close(end)
    try:
        shown = b""
        while b"to stop.\r\n" not in shown:
            shown += os.read(terminal, 65536)
        text = shown.decode().replace("\r", "")
        url = re.search(r"^The class opens (http://\d+\.\d+\.\d+\.\d+:\d+)$", text, re.M)[1]
        assert decoded(modules(text)) == url
        assert text.endswith("\nPress Ctrl-C to stop.\n")
        loopback = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        assert httpx.get(f"{loopback}/livez", timeout=60, trust_env=False).status_code == 200
        few = httpx.get(f"{loopback}/generate?model=pca&seed=1&n=2", timeout=60, trust_env=False)
        many = httpx.get(f"{loopback}/generate?model=pca&n=129", timeout=60, trust_env=False)
        assert (few.status_code, many.status_code) == (200, 422)
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_a_class_gets_settings_that_the_environment_may_override(
    variables: MutableMapping[str, str],
) -> None:
    settings = read_environment(classroom.defaults())
    assert (settings.host, settings.allow_anonymous, settings.keys) == ("0.0.0.0", True, None)
    assert (settings.max_images, settings.queue_images) == (128, 2048)
    assert settings.max_images < Settings.model_fields["max_images"].default
    assert variables["DRAWBRIDGE_MAX_IMAGES"] == "128", "workers inherit it"
    variables["DRAWBRIDGE_HOST"] = "127.0.0.1"
    variables["DRAWBRIDGE_MAX_IMAGES"] = "16"
    settings = read_environment(classroom.defaults())
    assert (settings.host, settings.max_images) == ("127.0.0.1", 16)


def test_a_class_with_a_file_of_keys_needs_them(variables: MutableMapping[str, str], tmp_path: Path) -> None:
    variables["DRAWBRIDGE_KEYS"] = str(tmp_path / "keys.toml")
    settings = read_environment(classroom.defaults())
    assert (settings.keys, settings.allow_anonymous) == (tmp_path / "keys.toml", False)


@pytest.mark.usefixtures("variables")
def test_without_class_nothing_is_announced_and_the_service_stays_on_loopback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Settings] = []

    def start(settings: Settings, on_listen: Callable[[socket.socket], None]) -> int:
        started.append(settings)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            on_listen(listener)
        return 0

    monkeypatch.setattr(serve, "serve", start)
    assert main(["serve"]) == 0
    assert (started[0].host, started[0].allow_anonymous) == ("127.0.0.1", False)
    assert not capsys.readouterr().out
    assert main(["serve", "--class"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"The class opens http://127\.0\.0\.1:\d+\nPress Ctrl-C to stop\.\n", out), (
        "no QR code where the output is not a terminal"
    )


def test_a_port_that_is_taken_is_reported_and_nothing_is_announced(
    variables: MutableMapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        variables["DRAWBRIDGE_PORT"] = str(taken.getsockname()[1])
        assert main(["serve", "--class"]) == 1
    assert not capsys.readouterr().out


def test_every_address_of_this_machine_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    routes = {classroom.OUTSIDE: "192.168.1.20", "10.8.0.1": "10.8.0.6", "192.168.1.1": "192.168.1.20"}
    monkeypatch.setattr(classroom, "_routed_networks", lambda: ["192.168.1.1", "10.8.0.1", "172.17.0.1"])
    monkeypatch.setattr(classroom, "_host_addresses", lambda: ["127.0.1.1"])
    monkeypatch.setattr(classroom, "_source_address", routes.get)
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        classroom.announce(listener)
    assert capsys.readouterr().out == (
        f"The class opens http://192.168.1.20:{port}\n"
        f"or, on another network of this machine, http://10.8.0.6:{port}\n"
        "Press Ctrl-C to stop.\n"
    )


def test_the_networks_are_those_of_the_routing_table(tmp_path: Path) -> None:
    table = tmp_path / "route"
    networks = {"192.168.1.0": "192.168.1.1", "10.8.0.0": "10.8.0.1"}
    lines = [f"eth0\t{int.from_bytes(socket.inet_aton(network), sys.byteorder):08X}\t00000000" for network in networks]
    table.write_text("\n".join(["Iface\tDestination\tGateway", *lines]) + "\n")
    assert list(classroom._routed_networks(table)) == list(networks.values())
    assert list(classroom._routed_networks(tmp_path / "missing")) == []


@pytest.mark.parametrize("target", ["127.0.0.1", "127.0.1.1", "not an address"])
def test_an_address_that_no_other_machine_reaches_is_not_one_of_the_network(target: str) -> None:
    assert classroom._source_address(target) is None


@pytest.mark.parametrize(
    ("host", "url"), [("192.168.1.20", "http://192.168.1.20:8000"), ("fd00::7", "http://[fd00::7]:8000")]
)
def test_a_named_host_is_the_only_address(host: str, url: str) -> None:
    assert classroom.urls(host, 8000) == [url]


def test_without_a_network_the_address_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classroom, "lan_addresses", list)
    assert classroom.urls("0.0.0.0", 8000) == ["http://127.0.0.1:8000"]
