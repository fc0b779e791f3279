"""One static HTML page that compares all weights, generated from their manifests and sample grids."""

import base64
import html
from pathlib import Path
from typing import Any

from models import families, store
from models.store import Manifest
from training.docs import default_options, titled_figures
from training.figures import PROPERTIES, UNLABELLED, Columns, Group, figure, groups, short_name

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --ink: #2a6f97; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--soft); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid var(--line); }
tr.real { font-style: italic; }
section { display: grid; grid-template-columns: 280px 1fr; gap: 0 1.5rem; border-top: 1px solid var(--line); }
section h2, section .about { grid-column: 1 / -1; }
section img { width: 280px; image-rendering: pixelated; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .8rem; opacity: .8; }
svg { width: 190px; height: 90px; }
polyline { fill: none; stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg rect { fill: var(--soft); }
@media (max-width: 45rem) { section { grid-template-columns: 1fr; } }
"""
EXTRA = {
    "kid": "kernel distance",
    "density": "density",
    "label_entropy": "label entropy, nats",
    "duplicates": "exact duplicates, share",
    "nearest_training_ratio": "distance to the nearest training image, relative to test images",
    "copies": "as near to a training image as the nearest 1 % of the test images, share",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "sharpness": "sharpness, relative to test images",
    **PROPERTIES,
}
COSTS = ("parameters", "MACs per image", "images/s per core", "training, min")


def page(root: Path) -> str:
    """The page about the weights under `root`, with styles and pictures inline."""
    manifests = {name: store.read_manifest(root / name) for name in store.list_weights(root)}
    measured = groups(manifests)
    tables = "".join(f'{_heading(group)}<div class="wide">{_table(group)}</div>\n' for group in measured)
    cards = [_card(name, manifest, (root / name / store.SAMPLES).read_bytes()) for name, manifest in manifests.items()]
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drawbridge: model comparison</title>
<style>{STYLE}</style>
<h1>Model comparison</h1>
<p>All figures are from the weights' manifests. MNIST-CNN-FD is the Frechet distance to the test split in the features
of this project's classifier, and comparable only with itself, as are those of other data. Costs are those of sampling
with the default options on one CPU core.</p>
{tables}{"".join(cards)}
</html>
"""


def _heading(group: Group) -> str:
    """The data and the judge of a table; nothing for MNIST's."""
    return f"<p>{html.escape(group.heading.replace('`', ''))}</p>" if group.heading else ""


def _table(group: Group) -> str:
    columns = group.main_columns
    titles = ["", *(html.escape(title) for title, _ in columns.values()), *COSTS]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = [_row("real images", group.real, columns, ["", "", "", ""], "real")]
    rows += [
        _row(f'<a href="#{name}">{name}</a>', manifest.metrics, columns, _costs(manifest))
        for name, manifest in group.manifests.items()
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, metrics: dict[str, Any], columns: Columns, costs: list[str], kind: str = "") -> str:
    cells = [name, *(figure(metrics, key, form) for key, (_, form) in columns.items()), *costs]
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _costs(manifest: Manifest) -> list[str]:
    cost = manifest.metrics.get("cost", {})
    macs = f"{cost['macs'] / 1e6:,.1f} M" if cost else ""
    speed = f"{cost['images_per_core_second']:,.0f}" if cost else ""
    return [f"{manifest.parameters:,}", macs, speed, f"{manifest.training['seconds'] / 60:.0f}"]


def _card(name: str, manifest: Manifest, samples: bytes) -> str:
    about = families.get(manifest.family).about
    picture = base64.b64encode(samples).decode()
    training, name_of_data = manifest.training, short_name(manifest.dataset["name"])
    lines = [
        f"{training['images_seen']:,} images of {name_of_data} seen in training on "
        f"{training.get('device_name', training['device'])}",
        ", ".join(default_options(manifest)),
        *(f"{title} {manifest.metrics[key]:.4g}" for key, title in EXTRA.items() if key in manifest.metrics),
    ]
    if unlabelled := manifest.metrics.get(UNLABELLED):
        lines.append("without a label: " + ", ".join(titled_figures(Group({name: manifest}), unlabelled)))
    if manifest.attribution:
        lines.append(f"training images: {manifest.attribution}")
    if manifest.caveat:
        lines.append(f"known defects: {manifest.caveat}")
    facts = "".join(f"<li>{html.escape(line)}" for line in lines if line)
    curves = "".join(_curve(title, pairs) for title, pairs in training.get("curves", {}).items())
    return f"""<section id="{name}"><h2>{name}</h2>
<div class="about"><p>{html.escape(about.title)}. {html.escape(about.paper)}.</p>
<p><code>{html.escape(about.formula)}</code></p></div>
<img src="data:image/png;base64,{picture}" alt="A hundred samples of {name}">
<div><ul>{facts}</ul><div class="curves">{curves}</div></div></section>
"""


def _curve(title: str, pairs: list[list[float]]) -> str:
    """One scalar over the images seen, as a line chart scaled to its own range."""
    if len(pairs) < 2:
        return ""
    images, values = zip(*pairs, strict=True)
    low, high = min(values), max(values)
    points = " ".join(
        f"{100 * seen / images[-1]:.2f},{45 - 40 * (value - low) / ((high - low) or 1):.2f}" for seen, value in pairs
    )
    return (
        f'<figure><svg viewBox="0 0 100 50" preserveAspectRatio="none" role="img" aria-label="{html.escape(title)}">'
        f'<rect width="100" height="50"/><polyline points="{points}"/></svg>'
        f"<figcaption>{html.escape(title)}: {values[0]:.3g} to {values[-1]:.3g}</figcaption></figure>"
    )
