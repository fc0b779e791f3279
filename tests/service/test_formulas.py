"""The pages about families in service/playground/formulas: complete, in keeping with the code, and served."""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import httpx
import pytest

from harness.server import ROOT
from models import families, losses, prior
from models.families import ddpm, meanflow
from service.api.pages import PLAYGROUND
from service.app import create_app
from service.settings import Settings
from training.lab import experiments

NAMES = families.names()
EXAMPLE = "naive_bayes"
"""The family that docs/own-family.md shows, with its page."""
PAGES = [*NAMES, EXAMPLE]
HTML = {"article", "section", "h3", "ol", "li", "dl", "dt", "dd", "footer", "p", "a", "code"}
MATH = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msub", "msup", "msubsup", "munder", "mover"),
    *("mfrac", "msqrt", "mtable", "mtr", "mtd"),
}
ATTRIBUTES = {"display", "displaystyle", "data-symbol", "mathvariant", "accent", "width", "href"}
"""Those that need neither styles nor scripts, which the page's policy forbids."""
LONGEST_MEANING = 170
"""Characters that fit two lines beside the controls."""


def page_of(name: str) -> Element:
    file = f"service/playground/formulas/{name}.html"
    if name == EXAMPLE:
        _, _, page = (ROOT / "docs" / "own-family.md").read_text().partition(f"`{file}`:\n\n```html\n")
        return ElementTree.fromstring(page.partition("```")[0])
    return ElementTree.parse(ROOT / file).getroot()


def text_of(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def config_of(name: str) -> object:
    """The default configuration of a family."""
    return families.get(name).Config()


def test_every_family_has_a_page() -> None:
    assert sorted(path.name for path in (PLAYGROUND / "formulas").iterdir()) == [f"{name}.html" for name in NAMES]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_formulas_of_training_and_sampling_and_about_five_lines_of_algorithm(name: str) -> None:
    page = page_of(name)
    assert [child.tag for child in page] == ["section"] * (len(page) - 2) + ["dl", "footer"]
    titles = [text_of(section.find("h3")) for section in page.iter("section")]
    assert titles[-2:] == ["Sampling", "Algorithm"]
    assert len(titles) in (3, 4), "one or two sections about training"
    for section in page.findall("section")[:-1]:
        assert [formula.get("display") for formula in section.findall("math")] in (["block"], ["block"] * 2)
    lines = [text_of(line) for line in page.iter("li")]
    assert 4 <= len(lines) <= 6
    assert any(line.startswith("To sample: ") for line in lines[1:]), "training first, then sampling"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_only_elements_that_browsers_draw_and_the_policy_allows(name: str) -> None:
    page = page_of(name)
    assert {element.tag for element in page.iter()} <= HTML | MATH
    assert {attribute for element in page.iter() for attribute in element.keys()} <= ATTRIBUTES  # noqa: SIM118
    for formula in page.iter("math"):
        assert {element.tag for element in formula.iter()} <= MATH


@pytest.mark.parametrize("name", PAGES)
def test_every_symbol_has_one_meaning_and_every_meaning_is_of_a_symbol(name: str) -> None:
    page = page_of(name)
    (terms,) = page.iter("dl")
    assert [child.tag for child in terms] == ["dt", "dd"] * (len(terms) // 2)
    meanings = {
        term.get("data-symbol"): text_of(meaning) for term, meaning in zip(terms[::2], terms[1::2], strict=True)
    }
    assert len(meanings) == len(terms) // 2, "no symbol has two meanings"
    assert all(meanings.values())
    assert max(map(len, meanings.values())) <= LONGEST_MEANING

    page.remove(terms)
    marked = [element for element in page.iter() if element.get("data-symbol")]
    assert {element.get("data-symbol") for element in marked} == set(meanings)
    inside = [inner for element in marked for inner in element.iter()]
    assert [inner.get("data-symbol") for inner in inside if inner not in marked] == [None] * (len(inside) - len(marked))
    explained = set(map(id, inside))
    assert [letter.text for letter in page.iter("mi") if id(letter) not in explained] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_files_the_lecture_the_experiments_and_the_papers_exist(name: str) -> None:
    page = page_of(name)
    (footer,) = page.iter("footer")
    *files, lecture, command = [text_of(code) for code in footer.iter("code")]
    assert command == f"drawbridge fit {name}"
    assert files[0] == f"models/families/{name}.py"
    assert all((ROOT / file).is_file() for file in files)
    step, title = re.search(r"Lecture: step (\d+), ([^.]*), in ", text_of(footer)).groups()
    assert f"\n## {step}. {title}\n" in (ROOT / lecture).read_text()
    source = (ROOT / files[0]).read_text()
    for link in footer.iter("a"):
        kind, _, place = link.get("href").rpartition("/abs/" if "abs" in link.get("href") else "#")
        if kind == "lab":
            assert text_of(link) == place
            assert place in experiments.NAMES
        else:
            assert kind == "https://arxiv.org"
            assert text_of(link) == f"arXiv {place}"
            assert place in source, "the family cites the paper, too"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kde", "at most {points:,} training images by default"),
        ("kde", "scale of the noise, {spread} by default"),
        ("kde", "first {code} principal components"),
        ("gmm", "first {code} principal components"),
        ("gmm", "a class has at most {most}"),
        ("pca", "{code} numbers that describe an image by default"),
        ("pca", "of an image has {code} numbers"),
        *((name, "{latent} numbers that describe an image") for name in ("ae", "supervised_ae", "swae", "vae")),
        *((name, f"a mixture of {prior.COMPONENTS} Gaussians") for name in ("ae", "swae", "vae")),
        ("supervised_ae", "weight of the classification, {weight:.0f} by default"),
        ("supervised_ae", "a mixture of at most {most} Gaussians"),
        ("swae", "weight of the distance, {weight:.0f} by default"),
        ("swae", "{projections} random directions"),
        ("vae", "{beta:.0f}, the default, makes this a lower bound"),
        ("ddpm", f"max(1−ᾱt,{ddpm.MIN_SIGMA**2:.2f})"),
        ("ddpm", "to {timesteps}, almost pure noise"),
        ("flow", f"max(1−t,{losses.MIN_REMAINING_TIME})"),
        ("meanflow", "guidance scale, {guidance} by default"),
        ("meanflow", f"in {meanflow.PATH_STEPS} steps of equal length"),
        ("gan", "{latent} by default"),
        *((name, "{latent} by default") for name in ("dcgan", "wgan_gp", "cgan", "acgan")),
        *((name, "truncation, {truncation} by default") for name in ("dcgan", "wgan_gp", "cgan", "acgan")),
        *((name, "gradient penalties, {gamma} by default") for name in ("dcgan", "cgan", "acgan")),
        *((name, "The largest of its first {groups} numbers") for name in ("dcgan", "wgan_gp")),
        ("wgan_gp", "weight of the gradient penalty, {penalty:.0f} by default"),
        ("acgan", "weight of the classification, {classifier_weight:.0f} by default"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_code(name: str, text: str) -> None:
    page = text_of(page_of(name)).replace("α¯", "ᾱ")
    assert text.format(**vars(config_of(name))) in page


def test_numbers_in_words_are_those_of_the_code() -> None:
    assert meanflow.WHOLE_SHARE == 3 / 4
    assert "three times in four the whole one" in text_of(page_of("meanflow"))
    for name in ("ddpm", "flow", "meanflow"):
        assert config_of(name).drop_label == 1 / 10
        assert "Forget one class in ten" in text_of(page_of(name))
    assert config_of("wgan_gp").critic_steps == 5
    assert "Do 1 and 2 five times by default." in text_of(page_of("wgan_gp"))
    assert config_of("gan").loss == "non_saturating"
    assert "maxGElogD(G(z))" in text_of(page_of("gan")).replace(" ", "")


@pytest.mark.asyncio
async def test_a_page_is_served_and_a_family_without_one_is_no_error(weights) -> None:
    app = create_app(Settings(weights=weights))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge") as client:
        page = await client.get("/playground/formulas/ddpm.html")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.content == (PLAYGROUND / "formulas" / "ddpm.html").read_bytes()
        none = await client.get("/playground/formulas/own.html")
        assert (none.status_code, none.content) == (204, b"")
        for response in (page, none):
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["cache-control"] == "no-cache", "a page that is written later appears"
        assert (await client.get("/playground/formulas.html")).status_code == 404
        assert (await client.post("/playground/formulas/ddpm.html")).status_code == 405
