"""Documentation that agrees with the code and the weights."""

import re
from pathlib import Path

import pytest

from models import families, store
from service.app import create_app
from service.settings import Settings
from training import docs
from training.cli import parser
from training.lab.experiments import NAMES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted(docs.pages(ROOT)), ids=lambda path: path.name)
def test_generated_pages_are_up_to_date(path):
    assert path.read_text() == docs.pages(ROOT)[path], "run `python -m training docs`"


def test_models_md_shows_every_family_and_every_sample_grid():
    text = (ROOT / "docs" / "models.md").read_text()
    for name in families.names():
        assert f"## {name}\n" in text
        assert families.get(name).about.formula in text
    for name in store.list_weights(ROOT / "weights"):
        assert f"../weights/{name}/samples.png" in text


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name)
def test_links_point_to_existing_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def lecture_commands() -> list[str]:
    text = (ROOT / "docs" / "lecture.md").read_text()
    return sorted(set(re.findall(r"`drawbridge ((?:draw|fit) [^`]+)`", text)))


@pytest.mark.parametrize("command", lecture_commands())
def test_the_commands_of_the_lecture_are_valid(command: str) -> None:
    name, model, *flags = command.split()
    assert model in store.list_weights(ROOT / "weights")
    if name == "draw":
        parameters = {flag.removeprefix("--") for flag in flags if flag.startswith("--")}
        family = families.get(store.read_manifest(ROOT / "weights" / model).family)
        assert parameters <= {"label", "steps", "guidance", family.sampler_parameter}
    else:
        assert parser().parse_args(command.split()).family == model


def test_the_lecture_names_every_family_and_experiment() -> None:
    text = (ROOT / "docs" / "lecture.md").read_text()
    assert {name for name in families.names() if f"families/{name}.py" not in text and f"#{name}" not in text} == set()
    assert all(f"`{name}`" in text for name in NAMES)


def test_the_readme_links_every_page():
    linked = set(re.findall(r"\]\((docs/[a-z-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")}


def test_the_readme_names_only_existing_paths_of_the_api():
    paths = create_app(Settings()).openapi()["paths"]
    mentioned = set(re.findall(r"(?:`|:8000)(/[a-z]+)(?=[`?{/])", (ROOT / "README.md").read_text()))
    assert {"/generate", "/interpolate"} <= mentioned
    assert all(path in paths or path == "/docs" for path in mentioned)


def test_the_readme_names_only_existing_settings():
    known = {f"DRAWBRIDGE_{name.upper()}" for name in Settings.model_fields} | {
        "DRAWBRIDGE_DATA",
        "DRAWBRIDGE_SCREENSHOTS",
    }
    assert set(re.findall(r"DRAWBRIDGE_[A-Z_]+", (ROOT / "README.md").read_text())) <= known
