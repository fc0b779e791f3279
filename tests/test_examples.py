"""The notebooks of examples/ run from their first cell to the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = {"minutes": "0.05", "epochs": "2"}
"""Values of the notebooks' own parameters with which they end soon."""


def code(notebook: Path) -> str:
    """The code of all cells as one program, with short training."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    for name, value in SHORT.items():
        text = re.sub(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
    return text


def run(name: str, directory: Path) -> str:
    environment = {
        **os.environ,
        "MPLBACKEND": "agg",
        "PYTHONWARNINGS": "error,ignore:FigureCanvasAgg is non-interactive",
    }
    program = directory / "notebook.py"
    program.write_text(code(EXAMPLES / f"{name}.ipynb"))
    result = subprocess.run(
        [sys.executable, program], cwd=directory, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_notebooks_are_committed_without_outputs() -> None:
    for notebook in EXAMPLES.glob("*.ipynb"):
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_draw_and_compare(tmp_path: Path) -> None:
    output = run("draw_and_compare", tmp_path)
    assert re.search(r"cgan +Conditional GAN +takes .*label", output)
    assert re.search(r"ddpm +\d+ ms for 8 images", output)


@pytest.mark.slow
def test_your_own_images(tmp_path: Path) -> None:
    run("your_own_images", tmp_path)
    manifest = json.loads((tmp_path / "weights" / "shapes" / "manifest.json").read_text())
    assert manifest["classes"] == ["circle", "square", "triangle"]


@pytest.mark.slow
def test_your_own_family(tmp_path: Path) -> None:
    assert "equal: True" in run("your_own_family", tmp_path)
