"""The environment that settings are read from: service links, empty variables, and checks at the start."""

import os
from pathlib import Path

import pytest

from models.cores import available_cores
from service import settings
from service.server.serve import check_weights
from service.settings import Settings, read_settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings, restored after the test."""
    for name in list(os.environ):
        if name.startswith(settings.PREFIX):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("service", ["", "WEB_"])
def test_kubernetes_service_links_are_not_settings(environment: pytest.MonkeyPatch, service: str) -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    for name, value in links.items():
        environment.setenv(f"DRAWBRIDGE_{service}{name}", value)
    environment.setenv("DRAWBRIDGE_WORKERS", "3")
    found = read_settings()
    assert (found.port, found.workers) == (8000, 3)


def test_a_port_number_is_a_setting(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DRAWBRIDGE_PORT", "8001")
    assert read_settings().port == 8001


def test_a_misspelled_setting_is_an_error_that_names_the_right_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DRAWBRIDGE_WORKER", "3")
    with pytest.raises(ValueError, match="DRAWBRIDGE_WORKER is not a setting; did you mean DRAWBRIDGE_WORKERS"):
        read_settings()


def test_an_empty_variable_is_not_set(environment: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        environment.setenv(f"DRAWBRIDGE_{name.upper()}", "")
    assert read_settings() == Settings()


def test_choices_may_be_in_any_case(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DRAWBRIDGE_LOG_LEVEL", "INFO")
    environment.setenv("DRAWBRIDGE_DEVICE", "CPU")
    environment.setenv("DRAWBRIDGE_LOG_FORMAT", "Json")
    found = read_settings()
    assert (found.log_level, found.device, found.log_format) == ("info", "cpu", "json")


def test_an_ipv6_host_may_have_brackets() -> None:
    assert Settings(host="[::1]").host == "::1"


@pytest.mark.parametrize("root", ["digits", "/a?b", "/a b"])
def test_a_root_path_is_a_path(root: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        Settings(root_path=root)


def test_missing_weights_and_default_models_are_errors(weights: Path, tmp_path: Path) -> None:
    check_weights(Settings(weights=weights))
    check_weights(Settings(weights=weights, conditional_model="cgan"))
    with pytest.raises(ValueError, match=r"DRAWBRIDGE_CONDITIONAL_MODEL: no 'nope' in .*; available models: acgan, ae"):
        check_weights(Settings(weights=weights, conditional_model="nope"))
    with pytest.raises(ValueError, match=r"no weights in .*; export some there"):
        check_weights(Settings(weights=tmp_path))


@pytest.mark.parametrize(
    ("limit", "cores"), [("50000 100000", 1), ("max 100000", None), ("100000 100000", 1), ("", None)]
)
def test_the_quota_of_a_cgroup_limits_the_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    everything = available_cores(tmp_path / "none")
    assert available_cores(tmp_path) == (everything if cores is None else cores)
