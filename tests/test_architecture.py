"""Imports point down only: between the packages, and between the folders of the service."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "models": {"models"},
    "pictures": {"pictures"},
    "training": {"training", "models", "pictures", "drawbridge.client"},
    "service": {"service", "models", "pictures"},
    "drawbridge": {"drawbridge", "service", "training", "models", "pictures"},
    "harness": {"harness", "service", "models", "pictures"},
    "benchmarks": {"benchmarks", "harness", "service", "training", "models", "pictures", "drawbridge"},
    "chaos": {"chaos", "harness", "service", "training", "models", "pictures", "drawbridge"},
}
"""What each package may import. `drawbridge.client` needs httpx alone, so everything may import it."""
SHARED = {"errors", "settings", "data_files", "VERSION"}
FOLDERS = {
    "engine": {"engine"},
    "codecs": {"codecs"},
    "auth": {"auth"},
    "telemetry": {"telemetry", "engine", "auth"},
    "generation": {"generation", "engine", "telemetry"},
    "api": {"api", "generation", "codecs", "engine", "telemetry"},
    "compat": {"compat", "api", "generation", "codecs", "engine"},
    "app.py": {"api", "compat", "generation", "engine", "telemetry", "auth"},
    "server": {"server", "app", "api", "engine", "telemetry", "auth"},
}
"""What each folder of the service may import of the others, besides SHARED."""
FRAMEWORKS = ("fastapi", "starlette", "uvicorn")
WITHOUT_HTTP = ("engine", "codecs", "generation")


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, with the imported member last."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(place: str) -> list[Path]:
    """The Python files of a package or folder; entry points (`__main__.py`) may import anything."""
    path = ROOT / place
    found = [path] if path.suffix else sorted(path.rglob("*.py"))
    return [file for file in found if file.name != "__main__.py"]


def strings(path: Path) -> set[str]:
    """The string constants of a file that are not docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_packages_below_it(package: str) -> None:
    allowed = PACKAGES[package]
    for path in files(package):
        for name in imports(path):
            top = name.partition(".")[0]
            if top in {*PACKAGES, "tests"}:
                assert top in allowed or any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed), (path, name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_service_imports_only_folders_below_it(folder: str) -> None:
    for path in files(f"service/{folder}"):
        for name in imports(path):
            if name.startswith("service."):
                part = name.split(".")[1]
                assert part in FOLDERS[folder] | SHARED, (path, name)


def test_every_folder_of_the_service_has_a_rule() -> None:
    folders = {path.name for path in (ROOT / "service").iterdir() if (path / "__init__.py").exists()}
    assert folders == {name for name in FOLDERS if not name.endswith(".py")}


@pytest.mark.parametrize("folder", WITHOUT_HTTP)
def test_the_engine_codecs_and_plans_know_no_http(folder: str) -> None:
    for path in files(f"service/{folder}"):
        assert not [name for name in imports(path) if name.startswith(FRAMEWORKS)], path


def test_the_server_names_no_route() -> None:
    for path in files("service/server"):
        assert not [
            text for text in strings(path) if text.startswith("/") and not text.startswith(("/dev/", "/sys/"))
        ], path


def test_models_need_few_libraries() -> None:
    allowed = {"torch", "numpy", "safetensors", "filelock", "models", *sys.stdlib_module_names}
    for path in files("models"):
        extra = {"triton"} if path.stem == "fused" else set()  # imported on machines with a GPU alone
        assert not {name.partition(".")[0] for name in imports(path)} - allowed - extra, path
        assert not any(name.startswith(("torch.optim", "time")) for name in imports(path)), path


def test_pictures_need_only_pillow_and_numpy() -> None:
    allowed = {"PIL", "numpy", "pictures", *sys.stdlib_module_names}
    for path in files("pictures"):
        assert not {name.partition(".")[0] for name in imports(path)} - allowed, path


def test_the_client_needs_only_httpx() -> None:
    optional = {"numpy", "PIL"}  # inside functions or for type checkers
    allowed = {"httpx", "drawbridge", *optional, *sys.stdlib_module_names}
    for path in (ROOT / "drawbridge/client.py", ROOT / "drawbridge/__init__.py"):
        assert not {name.partition(".")[0] for name in imports(path)} - allowed, path


def test_the_scheduler_has_no_tensors_clock_or_threads() -> None:
    forbidden = ("torch", "numpy", "time", "threading", "asyncio", "queue")
    assert not [name for name in imports(ROOT / "service/engine/scheduler.py") if name.startswith(forbidden)]


def test_every_family_has_one_file_and_one_test_file() -> None:
    names = {path.stem for path in (ROOT / "models/families").glob("[!_]*.py")}
    assert names == {path.stem.removeprefix("test_") for path in (ROOT / "tests/models/families").glob("test_*.py")}


@pytest.mark.parametrize("package", ["service", "training", "drawbridge"])
def test_nothing_above_models_depends_on_a_family(package: str) -> None:
    names = {path.stem for path in (ROOT / "models/families").glob("[!_]*.py")}
    for path in files(package):
        if path == ROOT / "service/settings.py":  # the default models are settings
            continue
        if path.is_relative_to(ROOT / "training/lab"):  # experiments are about certain families
            continue
        assert not strings(path) & names, path
        families = {f"models.families.{family}" for family in names}
        assert not families & {name.rpartition(".")[0] for name in imports(path)}, path
