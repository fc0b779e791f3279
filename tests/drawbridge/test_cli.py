"""The command `drawbridge`: how it finds and runs a subcommand."""

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import drawbridge
import service
from drawbridge import cli
from drawbridge.cli import main
from harness.server import ROOT, Server, environment
from models.families import names
from training import cli as training_cli


def test_the_help_lists_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for title, commands in cli.GROUPS.items():
        (listed,) = re.findall(rf"^{re.escape(title)}:\n((?:  .*\n)+)", text, re.M)
        assert [line.split()[0] for line in listed.splitlines()] == list(commands)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


def test_the_commands_of_training_are_those_that_training_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_cli.main(["nothing"]) == 2
    choices = capsys.readouterr().err.partition("choose from")[2].partition(")")[0]
    assert sorted(re.findall(r"\w+", choices)) == sorted(cli.TRAINING)
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert set(names()) <= set(capsys.readouterr().out.split())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"drawbridge {drawbridge.__version__}\n"
    assert drawbridge.__version__ == service.VERSION, "install the project again, as `make` does"


def test_without_a_command_the_help_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: drawbridge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["key"], "required: name"),
        (["key", "a b", "--file", "KEYS"], "String should match pattern"),
        (["key", "a", "--requests", "many", "--file", "KEYS"], "50/second"),
        (["serve", "now"], "unrecognized arguments: now"),
        (["export", "no-run"], "no-run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "health", "draw"])
def test_a_wrong_setting_is_one_line_that_names_the_variable(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRAWBRIDGE_PORT", "many")
    arguments = ["cgan", "-o", "x.png"] if command == "draw" else []
    assert main([command, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: DRAWBRIDGE_PORT: Input should be a valid integer")
    assert error.count("\n") == 1


def test_a_key_is_printed_and_its_hash_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    assert main(["key", "physics", "--images", "100/day", "--concurrent", "2", "--file", str(file)]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(r"db_[\w-]{43}\n", printed.out)
    assert printed.out.strip() not in file.read_text() + printed.err
    assert 'images = "100/day"' in file.read_text()


def test_health_is_that_of_the_service_with_the_same_settings(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRAWBRIDGE_PORT", server.url.rpartition(":")[2])
    assert main(["health"]) == 0
    assert '"status":"ready"' in capsys.readouterr().out
    monkeypatch.setenv("DRAWBRIDGE_PORT", "9")
    assert main(["health"]) == 1
    assert "no service responds at port 9" in capsys.readouterr().err


@pytest.mark.parametrize("proxy", ["HTTP_PROXY=http://127.0.0.1:9", "ALL_PROXY=socks5://127.0.0.1:9"])
def test_health_uses_no_proxy(
    proxy: str, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(*proxy.split("="))
    monkeypatch.setenv("DRAWBRIDGE_PORT", server.url.rpartition(":")[2])
    assert main(["health"]) == 0
    assert '"status":"ready"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["draw", "cgan", "-o", "x.png"], "service.app", "serve"),
        (["dataset", "cgan", "-o", "x"], "drawbridge.commands.dataset", "serve"),
        (["serve"], "drawbridge.commands.serve", "serve"),
        (["fit", "cgan"], "training.cli", "training"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    command: list[str], module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(missing: str) -> None:
        finder = MissingPackage(module, missing)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        monkeypatch.delitem(sys.modules, module, raising=False)
        parent, _, name = module.rpartition(".")
        monkeypatch.delattr(importlib.import_module(parent), name, raising=False)

    fail("starlette.routing")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: drawbridge {command[0]} needs the {extra} extra: pip install '.[{extra}]' in a checkout of Drawbridge"
    )
    assert error.count("\n") == 1
    fail("service.misspelled")
    with pytest.raises(ModuleNotFoundError, match=r"service\.misspelled"):
        main(command)


class MissingPackage:
    """An importer with which the import of `module` fails as if that had imported `missing`."""

    def __init__(self, module: str, missing: str) -> None:
        self.module, self.missing = module, missing

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.module:
            raise ModuleNotFoundError(f"No module named {self.missing!r}", name=self.missing)


def test_errors_of_training_that_are_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(training_cli, "main", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["fit"])


@pytest.mark.parametrize(
    "command", [["service", "draw", "cgan", "-o", "x.png", "--url"], ["training", "evaluate", "--all", "--against"]]
)
def test_an_interrupt_is_one_line_and_exit_status_130(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", *command, url], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
        )
        connection, _ = listener.accept()
        with connection:  # the command now waits for a response
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("module", "command"),
    [("httpx", ["draw", "cgan"]), ("httpx", ["health"]), ("structlog", ["serve"]), ("torch", ["fit", "pca"])],
)
def test_ctrl_c_during_imports_is_one_line(module: str, command: list[str], tmp_path: Path) -> None:
    """`module` interrupts the process while it is imported, and ignores the exception."""
    interrupt = (
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    (tmp_path / f"{module}.py").write_text(interrupt)
    # As the script does that an installation makes.
    script = "import sys; from drawbridge.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "module",
    ["drawbridge.cli", "drawbridge.commands.serve, service.server.supervisor"],
    ids=["before it handles Ctrl-C", "in the supervisor"],
)
def test_the_command_imports_nothing_slow(module: str) -> None:
    script = f"import sys, {module}; print({{'httpx', 'numpy', 'torch'}} & {{*sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "set()\n"
