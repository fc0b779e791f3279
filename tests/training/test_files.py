"""Files and directories that cannot be written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.server import ROOT, environment
from training import files
from training.cli import main

RUN_ALL = "import json, sys; from training.cli import main; [print(main(args)) for args in json.loads(sys.argv[1])]"
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""Root may write everywhere, unless it gives these capabilities up."""


@pytest.mark.skipif(bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root needs setpriv for this test")
@pytest.mark.slow
def test_every_command_names_the_directory_that_it_cannot_write_in_one_line(weights: Path, tmp_path: Path) -> None:
    digits = ["--data", "digits", "--device", "cpu"]
    run, locked, models = tmp_path / "run", tmp_path / "locked", tmp_path / "models"
    assert main(["fit", "gan", *digits, "--batch", "32", "--epochs", "0.1", "--run", str(run)]) == 0
    shutil.copytree(run, locked / "run")
    shutil.copytree(weights / "pca", models / "pca")
    commands = [
        (["fit", "pca", *digits, "--run", str(locked / "new")], locked / "new"),
        (["fit", "gan", *digits, "--batch", "32", "--epochs", "0.1", "--run", str(locked / "run")], "locked/run"),
        (["export", str(run), "--weights", str(locked)], locked),
        (["export", str(run), "--weights", str(locked / "weights")], locked / "weights"),
        (["strip", str(run), str(locked / "strip.png")], "locked/strip.png"),
        (["report", str(locked / "report.html"), "--weights", str(ROOT / "weights")], "locked/report.html"),
        (["evaluate", "pca", "--write", "--weights", str(models)], models / "pca"),
        (["evaluate", "pca", "--worst", str(locked / "worst"), "--weights", str(models)], locked / "worst"),
        (["caveat", "pca", "x", "--weights", str(models)], models / "pca"),
        (["lab", "xy_game", "--quick", "--output", str(locked)], locked),
    ]
    folders = [locked, locked / "run", locked / "run" / "grids", models / "pca"]
    for folder in folders:
        folder.chmod(0o500)
    try:
        result = subprocess.run(
            [*UNPRIVILEGED, sys.executable, "-c", RUN_ALL, json.dumps([arguments for arguments, _ in commands])],
            cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert [line for line in result.stdout.splitlines() if line.isdigit()] == ["2"] * len(commands), result.stderr
    errors = [line for line in result.stderr.splitlines() if line]
    assert len(errors) == len(commands), result.stderr
    for error, (_, directory) in zip(errors, commands, strict=True):
        assert error.startswith("error: "), error
        assert f"{directory}" in error, error
        assert "Permission denied for user id" in error, error


def test_a_file_in_place_of_a_directory_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["fit", "pca", "--data", "digits", "--device", "cpu", "--run", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/run: Not a directory\n"


def test_an_error_without_a_file_or_a_number_has_a_line_too() -> None:
    assert files.explain(OSError("cannot identify\nimage")) == "cannot identify image"
    assert files.explain(OSError()) == "OSError"
    assert files.explain(OSError(errno.EIO, "Input/output error")) == "Input/output error"
