"""docs/own-family.md: its family, in one file, keeps the contract, trains, exports, is served and is listed."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from drawbridge.cli import main
from models import families, store
from models.base import Family
from service.app import create_app
from service.settings import Settings
from tests.conftest import small
from tests.models.test_contract import IMAGES, POINTS, TestEveryFamily  # noqa: F401  these tests run here, too
from training import cli, docs

PAGE = (Path(__file__).parent.parent / "docs" / "own-family.md").read_text()
NAME = "naive_bayes"


def block(language: str, after: str) -> str:
    """The code block of `language` that follows the text `after` on the page."""
    match = re.search(rf"{re.escape(after)}.*?```{language}\n(.*?)```", PAGE, re.S)
    assert match is not None, f"the page has no {language} block after {after!r}"
    return match[1]


def commands(after: str) -> list[list[str]]:
    """The arguments of each `drawbridge` command in the shell block that follows the text `after`."""
    return [shlex.split(line, comments=True)[1:] for line in block("sh", after).splitlines()]


@pytest.fixture(scope="module", autouse=True)
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A second directory of families, with the page's family in it."""
    directory = tmp_path_factory.mktemp("families")
    (directory / f"{NAME}.py").write_text(block("python", f"`models/families/{NAME}.py`:"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "__path__", [*families.__path__, str(directory)])
        yield


@pytest.fixture(params=[IMAGES, POINTS], ids=["images", "points"], scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    """The page's family, for the tests of the contract."""
    return small(NAME, request.param).for_sampling()


def test_the_page_s_own_tests_pass(tmp_path: Path) -> None:
    path = tmp_path / f"test_{NAME}.py"
    path.write_text(block("python", f"`tests/models/families/test_{NAME}.py`:"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of weights after the page's commands that train, export and draw."""
    directory = tmp_path_factory.mktemp("project")
    fit, export, draw = commands("## Train, export, serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("DRAWBRIDGE_DEVICE", "cpu")
        assert main([*fit, "--device", "cpu"]) == 0
        assert main(export) == 0
        patch.setenv("DRAWBRIDGE_WEIGHTS", str(directory / "weights"))
        assert main(draw) == 0
    assert (directory / "sevens.png").read_bytes().startswith(b"\x89PNG")
    return directory / "weights"


async def test_a_file_is_all_that_a_family_needs(weights: Path) -> None:
    assert store.read_manifest(weights / NAME).config == {"min_std": 0.1}
    app = create_app(Settings(weights=weights, device="cpu", max_batch_size=4))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge") as client,
    ):
        (model,) = (await client.get("/models")).json()["models"]
        assert (model["name"], model["family"], model["title"]) == (NAME, NAME, "Gaussian naive Bayes")
        assert model["takes"]["digit"]["one_of"] == list(range(10))
        responses = [await client.post(f"/generate?model={NAME}&seed=1&digit={digit}") for digit in (0, 1)]
        assert {response.headers["content-type"] for response in responses} == {"image/png"}
        assert responses[0].content != responses[1].content
        assert (await client.get("/readyz")).status_code == 200


def test_the_generated_pages_list_it_without_a_link_to_a_picture_that_is_missing(weights: Path, tmp_path: Path) -> None:
    for name in ("README.md", "docs/quality.md", "docs/lecture.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in docs.MARKS))
    (tmp_path / "weights").symlink_to(weights)
    pages = {path.name: text for path, text in docs.pages(tmp_path).items()}
    assert f"## {NAME}\n" in pages["models.md"]
    assert f"[`{NAME}`]" in pages["README.md"]
    assert f"| {NAME} |" in pages["quality.md"]
    assert "worst/" not in pages["quality.md"]
    (tmp_path / "docs" / "worst").mkdir()
    (tmp_path / "docs" / "worst" / f"{NAME}.png").touch()
    assert f"(worst/{NAME}.png)" in docs.pages(tmp_path)[tmp_path / "docs" / "quality.md"]


@pytest.mark.parametrize("arguments", commands("## Contribute the weights"), ids=lambda arguments: arguments[0])
def test_the_commands_for_contributing_weights_exist(arguments: list[str]) -> None:
    assert cli.parser().parse_args(arguments)
