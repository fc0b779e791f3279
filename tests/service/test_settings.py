"""Settings: their names in version 0.1, and errors that say what to do."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pydantic import ValidationError

from harness.server import ROOT, environment
from service.errors import describe
from service.settings import OTHER_VARIABLES, PREFIX, RENAMED, Settings, read_settings, with_current_names

VALUES: dict[str, tuple[str, Any]] = {
    "open": ("true", True),
    "operations_port": ("9001", 9001),
    "seats": ("4", 4),
    "drain_seconds": ("3", 3.0),
    "stall_seconds": ("9", 9.0),
    "head_seconds": ("2.5", 2.5),
    "body_seconds": ("4.5", 4.5),
    "read_seconds": ("6", 6.0),
    "keep_alive_seconds": ("7", 7),
    "watch_seconds": ("1.5", 1.5),
}
"""A variable's text, and the setting's value, by the name in version 0.1."""

Read = Callable[..., Settings]


@pytest.fixture
def read() -> Iterator[Read]:
    """Reads settings from an environment with only these variables of this service."""

    def read(**variables: str) -> Settings:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ |= {PREFIX + name.upper(): value for name, value in variables.items()}
        return read_settings()

    with mock.patch.dict(os.environ):
        yield read


# -- renamed settings --------------------------------------------------------------------------------------------------


def test_the_settings_of_version_0_1_are_known() -> None:
    assert RENAMED.keys() == VALUES.keys()
    assert set(RENAMED.values()) <= Settings.model_fields.keys()
    assert not RENAMED.keys() & Settings.model_fields.keys()


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_works_and_warns_in_one_line(read: Read, capsys: pytest.CaptureFixture[str], old: str) -> None:
    new, (text, value) = RENAMED[old], VALUES[old]
    settings = read(**{old: text})
    assert getattr(settings, new) == value
    assert value != Settings.model_fields[new].default, "the test could not fail"
    warning = f"warning: the setting {old} is now called {new}; version 0.3 drops the old name\n"
    assert capsys.readouterr().err == warning
    assert f"{PREFIX}{old.upper()}" not in os.environ
    assert os.environ[f"{PREFIX}{new.upper()}"] == text, "workers inherit the new name"
    assert getattr(read_settings(), new) == value
    assert not capsys.readouterr().err, "workers do not warn again"


@pytest.mark.parametrize("old", RENAMED)
def test_both_names_of_a_setting_are_an_error(read: Read, old: str) -> None:
    new, (text, _) = RENAMED[old], VALUES[old]
    message = f"{PREFIX}{old.upper()} is the old name of {PREFIX}{new.upper()}; set the new one only"
    with pytest.raises(ValueError, match=message):
        read(**{old: text, new: text})


def test_all_old_names_work_together(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    settings = read(**{old: text for old, (text, _) in VALUES.items()})
    assert all(getattr(settings, RENAMED[old]) == value for old, (_, value) in VALUES.items())
    assert capsys.readouterr().err.count("\n") == len(VALUES)


def test_current_names_are_not_changed(capsys: pytest.CaptureFixture[str]) -> None:
    current = {new: VALUES[old][1] for old, new in RENAMED.items()} | {"port": 1}
    assert with_current_names(current) == current
    assert not capsys.readouterr().err


# -- invalid settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": "http"}, "port: "),
        ({"port": "70000"}, "port: "),
        ({"max_batch_size": "0"}, "max_batch_size: "),
        ({"max_batch_size": "48"}, "48 is not a power of two; 32 is"),
        ({"device": "tpu"}, "device: "),
        ({"host": "0.0.0.0"}, "DRAWBRIDGE_ALLOW_ANONYMOUS=true"),
        ({"host": "::"}, "DRAWBRIDGE_ALLOW_ANONYMOUS=true"),
        ({"host": "example.com"}, "other machines can reach"),
        ({"allow_anonymous": "true", "keys": "keys.toml"}, "contradict each other; set one of them"),
        ({"weights": "/nowhere"}, "weights: Value error, /nowhere is not a directory"),
        ({"max_images": "9000"}, "more than DRAWBRIDGE_QUEUE_IMAGES"),
        ({"admin_port": "8000"}, "are both 8000"),
    ],
)
def test_an_invalid_setting_is_refused(read: Read, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        read(**settings)
    assert message in describe(raised.value)


@pytest.mark.parametrize(
    ("name", "suggestion"), [("prot", "; did you mean DRAWBRIDGE_PORT?"), ("xyzzy", ""), ("seat", "")]
)
def test_a_variable_that_is_not_a_setting_is_refused(read: Read, name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=f"{PREFIX}{name.upper()} is not a setting") as raised:
        read(**{name: "1"})
    assert str(raised.value).endswith(suggestion or "is not a setting")


def test_the_variables_of_other_parts_are_no_settings(read: Read) -> None:
    variables = {name.removeprefix(PREFIX).lower(): "x" for name in OTHER_VARIABLES}
    assert read(**variables) == read()


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "127.0.0.2"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "allow_anonymous": "true"},
        {"host": "0.0.0.0", "keys": "keys.toml"},
        {"port": "0", "admin_port": "0"},
    ],
)
def test_valid_settings_are_accepted(read: Read, settings: dict[str, str]) -> None:
    assert str(read(**settings).host) == settings.get("host", "127.0.0.1")


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


# -- the command -------------------------------------------------------------------------------------------------------


def start(**settings: object) -> "subprocess.CompletedProcess[str]":
    """Run `python -m service` with settings that keep it from serving."""
    command = [sys.executable, "-m", "service"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**settings), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 48}, "DRAWBRIDGE_MAX_BATCH_SIZE: 48 is not a power of two; 32 is"),
        ({"prot": 8000}, "DRAWBRIDGE_PROT is not a setting; did you mean DRAWBRIDGE_PORT?"),
        ({"keys": "/nowhere/keys.toml"}, "create it with `drawbridge key NAME`"),
        ({"open": "true", "allow_anonymous": "true"}, "DRAWBRIDGE_OPEN is the old name of DRAWBRIDGE_ALLOW_ANONYMOUS"),
    ],
)
def test_the_service_exits_with_status_2_and_one_line(settings: dict[str, object], message: str) -> None:
    process = start(**settings)
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1


def test_the_service_warns_of_an_old_name() -> None:
    warning, error = start(seats=48).stderr.splitlines()
    assert warning == "warning: the setting seats is now called max_batch_size; version 0.3 drops the old name"
    assert "48 is not a power of two" in error


def test_a_port_in_use_is_reported_in_one_line(weights: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = start(weights=weights, port=port, device="cpu")
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in process.stderr
    assert process.stderr.count("\n") == 1
