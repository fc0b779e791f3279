"""The wheel and the sdist: what they contain, and what an installation does that has no checkout.

Two environments get the wheel: `bare` has httpx and what that needs, `full` has all packages of this environment.
"""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

import drawbridge
from harness.server import ROOT, Server, environment, run_server
from models import store
from models.directories import NEAREST

pytestmark = pytest.mark.slow

PACKAGES = ("drawbridge", "models", "pictures", "service", "training")
DATA = {"weights": "service/_data/weights", "docs/lab": "service/_data/lab"}
EXAMPLE = """
import importlib.util, sys
from drawbridge import AsyncClient, Client
assert not any(importlib.util.find_spec(name) for name in ("torch", "numpy", "PIL"))
with Client(sys.argv[1]) as client:
    assert client.generate("cgan", digit=range(3), n=3).content.startswith(b"PK")
    print(len(client.models()), client.generate("cgan", digit=7, seed=1, format="png").content[1:4].decode())
"""


def files(directory: str) -> set[str]:
    """The files below a directory of the checkout, relative to the checkout, without those that git ignores there."""
    paths = (path for path in (ROOT / directory).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in paths if path.suffix != NEAREST}


def hatchling(directory: Path, target: str, output: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(output)]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sdist")
    hatchling(ROOT, "sdist", output)
    return next(output.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    hatchling(next(source.iterdir()), "wheel", output)
    return next(output.glob("*.whl"))


def install(wheel: Path, directory: Path, *packages: str) -> Path:
    """Make a virtual environment with the wheel, which also sees the `packages` directories. Returns its bin/."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=60)
    (site_packages,) = directory.glob("lib/python*/site-packages")
    (site_packages / "others.pth").write_text("\n".join(packages) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python")]
    options = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([*pip, *options], check=True, capture_output=True, timeout=120)
    return directory / "bin"


def requirements_of(name: str) -> set[str]:
    """A distribution and all that it requires."""
    found: set[str] = set()
    pending = [name]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with the wheel, httpx and what httpx requires."""
    packages = tmp_path_factory.mktemp("packages")
    for name in requirements_of("httpx"):
        distribution = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (packages / part).symlink_to(str(distribution.locate_file(part)))
    return install(wheel, tmp_path_factory.mktemp("bare"), str(packages))


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with the wheel and all packages of this environment, without its .pth files."""
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    return install(wheel, tmp_path_factory.mktemp("full"), *packages)


@pytest.fixture(scope="module")
def server(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`drawbridge serve` with default weights, in an empty directory."""
    command = ["env", "--chdir", str(tmp_path_factory.mktemp("empty")), str(full / "drawbridge"), "serve"]
    with run_server(command, clean_environment(port=0, device="cpu", workers=1)) as running:
        yield running


def clean_environment(**settings: object) -> dict[str, str]:
    """An environment in which only the installation decides what Python imports."""
    return {name: value for name, value in environment(**settings).items() if not name.startswith("PYTHON")}


def run(directory: Path, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment in `directory`."""
    return subprocess.run(
        [str(program), *arguments], cwd=directory, env=clean_environment(), capture_output=True, text=True, timeout=120
    )


def test_the_sdist_has_what_the_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    expected = set().union(*(files(directory) for directory in (*PACKAGES, *DATA)))
    assert expected <= names
    top = {name.partition("/")[0] for name in names - expected}
    assert top == {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO", ".gitignore"}


def test_the_wheel_has_four_packages_and_the_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = set().union(*(files(package) for package in PACKAGES))
    for directory, place in DATA.items():
        expected |= {name.replace(directory, place, 1) for name in files(directory)}
    metadata = f"drawbridge-{drawbridge.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(metadata)} == expected
    assert "service/_data/weights/cgan/model.safetensors" in expected
    assert "training/classifiers/report/model.safetensors" in expected


def test_with_httpx_alone_the_client_and_draw_work(bare: Path, server: Server, tmp_path: Path) -> None:
    example = run(tmp_path, bare / "python", "-c", EXAMPLE, server.url)
    assert example.stdout.split() == [str(len(store.list_weights(ROOT / "weights"))), "PNG"], example.stderr
    for name in ("sevens.PNG", "sevens.npz"):
        drawn = run(tmp_path, bare / "drawbridge", "draw", "cgan", "--digit", "7", "-n", "4", "-o", name,
                    "--url", server.url)  # fmt: skip
        assert drawn.returncode == 0, drawn.stderr
        assert (tmp_path / name).stat().st_size > 0


def test_with_httpx_alone_the_help_and_the_version_are_printed(bare: Path, tmp_path: Path) -> None:
    done = run(tmp_path, bare / "drawbridge", "--help")
    assert done.returncode == 0, done.stderr
    assert "draw --url needs no extra" in done.stdout
    assert run(tmp_path, bare / "drawbridge", "--version").stdout == f"drawbridge {drawbridge.__version__}\n"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("fit", "training"),
        ("report", "training"),
        ("serve", "serve"),
        ("health", "serve"),
        ("dataset cgan -o x", "serve"),
        ("draw cgan -o x.png", "serve"),
    ],
)
def test_with_httpx_alone_other_commands_name_their_extra(command: str, extra: str, bare: Path, tmp_path: Path) -> None:
    done = run(tmp_path, bare / "drawbridge", *command.split())
    assert done.returncode == 2
    advice = f"needs the {extra} extra: pip install '.[{extra}]' in a checkout of Drawbridge"
    assert re.fullmatch(rf"error: drawbridge \w+ {re.escape(advice)}.*\n", done.stderr), done.stderr


def test_an_installation_serves_its_own_weights_and_pages(full: Path, server: Server, tmp_path: Path) -> None:
    where = run(
        tmp_path, full / "python", "-c", "import service, models, drawbridge; from service.settings import Settings;"
        "print(service.VERSION, service.__file__, models.__file__, drawbridge.__file__, Settings().weights)",
    )  # fmt: skip
    version, *paths = where.stdout.split()
    assert version == drawbridge.__version__
    assert all(Path(path).is_relative_to(full.parent) for path in paths), paths
    assert {model["name"] for model in httpx.get(f"{server.url}/models").json()["models"]} == set(
        store.list_weights(ROOT / "weights")
    )
    for page in ("/", "/lab/"):
        assert httpx.get(f"{server.url}{page}").status_code == 200
    query = {"model": "cgan", "digit": 7, "seed": 1, "n": 2, "format": "npz"}
    local = run(tmp_path, full / "drawbridge", "draw", "cgan", "--digit", "7", "--seed", "1", "-n", "2", "-o", "x.npz")
    assert local.returncode == 0, local.stderr
    assert (tmp_path / "x.npz").read_bytes() == httpx.get(f"{server.url}/generate", params=query).content


def test_an_installation_has_the_commands_of_training(full: Path, tmp_path: Path) -> None:
    done = run(tmp_path, full / "drawbridge", "fit", "cgan", "--help")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
