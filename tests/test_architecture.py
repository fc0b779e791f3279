"""Imports only ever point down."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "training": {"training", "models"},
    "service": {"service", "models"},
    "trust": {"trust", "service", "training", "models", "benchmarks"},
}
FLOORS = set(ALLOWED) | {"tests", "benchmarks"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(floor):
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", ALLOWED)
def test_a_floor_imports_only_what_lies_below(floor):
    for path in files(floor):
        above = {
            name for name in imports(path) if (top := name.partition(".")[0]) in FLOORS and top not in ALLOWED[floor]
        }
        assert not above, f"{path} imports {above}"


def test_nothing_stands_on_trials():
    for path in files("benchmarks"):  # for the others see above
        assert not [name for name in imports(path) if name.partition(".")[0] == "trust"], path


def test_models_stand_on_torch_numpy_and_safetensors_alone():
    standard = {"torch", "numpy", "safetensors", "models"}
    import sys

    for path in files("models"):
        others = {name.partition(".")[0] for name in imports(path)} - standard - set(sys.stdlib_module_names)
        assert not others, f"{path} imports {others}"
        assert not any(name.startswith(("torch.optim", "time")) for name in imports(path)), path


def test_the_engine_knows_no_http():
    for path in files("service/engine"):
        outside = {
            name for name in imports(path)
            if name.startswith(("fastapi", "starlette", "uvicorn", "pydantic", "PIL"))
            or (name.startswith("service.") and not name.startswith("service.engine"))
        }  # fmt: skip
        assert not outside, f"{path} imports {outside}"


def test_the_scheduler_has_no_tensors_clock_or_threads():
    forbidden = ("torch", "numpy", "time", "threading", "asyncio", "queue")
    assert not [name for name in imports(ROOT / "service/engine/scheduler.py") if name.startswith(forbidden)]


def test_every_family_is_one_file_and_one_test_file():
    names = {path.stem for path in (ROOT / "models/families").glob("[!_]*.py")}
    assert names == {path.stem.removeprefix("test_") for path in (ROOT / "tests/models/families").glob("test_*.py")}


@pytest.mark.parametrize("floor", ["service", "training"])
def test_nothing_above_models_asks_which_family_it_holds(floor):
    names = {path.stem for path in (ROOT / "models/families").glob("[!_]*.py")}
    for path in files(floor):
        if path == ROOT / "service/settings.py":  # which of the weights are the default is an operator's choice
            continue
        if path.is_relative_to(ROOT / "training/lab"):  # experiments are about certain families
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings}
        assert not said & names, f"{path} names {said & names}"
        assert not {f"models.families.{family}" for family in names} & {
            name.rpartition(".")[0] for name in imports(path)
        }
