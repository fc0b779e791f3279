"""The page that compares all weights."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

from models import store
from training import report
from training.cli import main

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
    assert [target for target in reader.targets if target.startswith("#")] == [f"#{name}" for name in names]
    assert sum(target.startswith("data:image/png") for target in reader.targets) == len(names)
    assert len(reader.targets) == 2 * len(names), "the page refers to other files"
    for name in names:
        assert f"{store.read_manifest(WEIGHTS / name).metrics['mnist_cnn_fd']:.3f}" in text


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
