"""The page that compares all weights."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from models import store
from models.store import Manifest
from training import docs, report
from training.cli import main
from training.figures import Group, keys

WEIGHTS = Path(__file__).parents[2] / "weights"


class Reader(HTMLParser):
    """Collects the page's link and image targets, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag in ("table", "tr", "td", "section", "div", "figure", "svg", "ul", "style", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_shows_all_weights_and_is_self_contained(tmp_path: Path) -> None:
    assert main(["report", str(tmp_path / "page.html"), "--weights", str(WEIGHTS)]) == 0
    text = (tmp_path / "page.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    names = store.list_weights(WEIGHTS)
    assert re.findall(r'<section id="(\w+)">', text) == names
    in_tables = [target for target in reader.targets if target.startswith("#")]
    assert sorted(in_tables) == [f"#{name}" for name in names]
    assert sum(target.startswith("data:image/png") for target in reader.targets) == len(names)
    assert len(reader.targets) == 2 * len(names), "the page refers to other files"
    for name in names:
        manifest = store.read_manifest(WEIGHTS / name)
        assert f"{manifest.metrics[keys(manifest.dataset['digest']).distance]:.3f}" in text


def of_emoji(manifest: Manifest, judge: str = "a" * 64) -> Manifest:
    """A manifest of weights of other data, with figures by that judge."""
    metrics = {"cnn_fd": 7.25, "accuracy": 0.5, "worst_class": 0.25, "accuracy_by_class": [0.25, 0.75]}
    metrics |= {"samples": 300, "test_images": 120, "seeds": [0], "judge": {"name": "report", "digest": judge}}
    metrics |= {"copies": 0.02, "real": {"cnn_fd": 0.125, "accuracy": 1.0, "accuracy_by_class": [1.0, None]}}
    metrics["judge"]["data"] = "emoji"
    dataset = {"name": "emoji", "digest": "e" * 64, "images": 250}
    return dataclasses.replace(manifest, dataset=dataset, classes=("food <1>", "flags"), metrics=metrics)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with weights of MNIST, of emoji by two judges, and of unlabelled data."""
    flow = store.read_manifest(WEIGHTS / "flow")
    unlabelled = dataclasses.replace(
        flow,
        dataset={"name": "faces", "digest": "f" * 64, "images": 50},
        metrics={"sliced_wasserstein": 0.5, "sharpness": 0.75, "copies": 0.25, "samples": 100},
        classes=(),
    )
    manifests = {"a": of_emoji(flow), "b": of_emoji(flow, "b" * 64), "c": of_emoji(flow), "d": unlabelled, "flow": flow}
    for name, manifest in manifests.items():
        directory = tmp_path / "weights" / name
        directory.mkdir(parents=True)
        (directory / store.MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest)))
        (directory / store.SAMPLES).write_bytes(b"picture")
    for page in ("README.md", "docs/quality.md", "docs/lecture.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in docs.MARKS))
    return tmp_path


def test_distances_of_different_judges_are_never_in_one_table(project: Path) -> None:
    text = report.page(project / "weights")
    tables = [re.findall(r'href="#(\w+)"', table) for table in text.split("<table>")[1:]]
    assert tables == [["flow"], ["a", "c"], ["b"], ["d"]]
    assert text.count("<th>MNIST-CNN-FD</th>") == 1
    assert text.count("<th>emoji-CNN-FD</th>") == 2
    assert "On emoji (1x28x28) against 120 test images, by the judge report of emoji:" in text
    for name in ("README.md", "quality.md"):
        tables = docs.pages(project)[project / name if name == "README.md" else project / "docs" / name].split("\n\n")
        fd = [table for table in tables if "-CNN-FD" in table]
        assert ["MNIST-CNN-FD" in table for table in fd] == [True, False, False]
        assert all("7.250" in table and "0.034" not in table for table in fd[1:])


def test_pages_name_the_figures_of_other_data_by_that_data(project: Path) -> None:
    pages = {path.name: text for path, text in docs.pages(project).items()}
    assert "| | 250 real training images | 0.125 |" in pages["README.md"]
    assert "label accuracy | worst class |" in pages["README.md"]
    assert "On faces (1x28x28):" in pages["README.md"]
    assert "| sliced Wasserstein | sharpness | nearest training image | copies | duplicates |" in pages["README.md"]
    assert "| label accuracy, % | all | food <1> | flags |" in pages["quality.md"]
    assert "| real | 100.0 | 100.0 |  |" in pages["quality.md"]
    assert "| a | 50.0 | 25.0 | 75.0 |" in pages["quality.md"]
    assert "images of emoji seen in training" in pages["models.md"]
    assert "Of 300 samples: emoji-CNN-FD 7.250, label accuracy 50.0%, worst class 25.0%" in pages["models.md"]
    assert "Of 100 samples: sliced Wasserstein 0.500, sharpness 0.75, copies 25.0%" in pages["models.md"]


def test_cards_show_the_figures_of_samples_without_a_label(project: Path) -> None:
    unlabelled = {"cnn_fd": 8.125, "precision": 0.25, "interval": {"cnn_fd": 0.5}, "samples": 300, "seeds": [0, 1]}
    metrics = store.read_manifest(project / "weights" / "a").metrics
    store.annotate(project / "weights" / "a", metrics={**metrics, "unlabelled": unlabelled})
    cards = docs.pages(project)[project / "docs" / "models.md"].split("![Samples of ")
    (card,) = (card for card in cards if card.startswith("a]"))
    assert "\nOf 300 samples: emoji-CNN-FD 7.250, label accuracy 50.0%" in card
    assert "\nWithout a label: emoji-CNN-FD 8.125, precision 0.25.\n" in card
    sections = report.page(project / "weights").split("<section ")
    assert "<li>without a label: emoji-CNN-FD 8.125, precision 0.25<" in sections[1]
    assert not any("without a label" in section for section in sections[2:5])


def test_many_classes_have_no_column_each() -> None:
    manifest = of_emoji(store.read_manifest(WEIGHTS / "flow"))
    assert docs.class_table(Group({"a": manifest}))
    assert not docs.class_table(Group({"a": dataclasses.replace(manifest, classes=tuple(map(str, range(21))))}))


def test_intervals_costs_and_curves_are_shown_if_the_manifest_has_them(tmp_path: Path) -> None:
    manifest = store.read_manifest(WEIGHTS / store.list_weights(WEIGHTS)[0])
    metrics = {
        **manifest.metrics,
        "mnist_cnn_fd": 0.5,
        "interval": {"mnist_cnn_fd": 0.02},
        "cost": {"macs": 7_300_000, "images_per_core_second": 1234.4, "cpu": "x"},
        "reconstruction_error": 0.0123,
    }
    training = {**manifest.training, "curves": {"loss": [[10, 3.0], [20, 1.0]], "short": [[20, 1.0]]}}
    full = dataclasses.replace(manifest, metrics=metrics, training=training, caveat="Grey <ghosts>.")
    store.save(tmp_path / "full", store.build(full).for_sampling(), full, b"picture")
    bare = dataclasses.replace(manifest, metrics={}, training={k: v for k, v in training.items() if k != "curves"})
    store.save(tmp_path / "bare", store.build(bare).for_sampling(), bare, b"picture")
    text = report.page(tmp_path)
    assert "0.500 ± 0.020" in text
    assert "7.3 M" in text
    assert "known defects: Grey &lt;ghosts&gt;." in text
    assert "1,234" in text
    assert "mean squared reconstruction error 0.0123" in text
    assert text.count("<figure>") == 1
    assert 'points="50.00,5.00 100.00,45.00"' in text
