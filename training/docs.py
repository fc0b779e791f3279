"""Pages generated from families and manifests: docs/models.md, and the tables in README.md and docs/quality.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import families, store
from models.store import Manifest
from training.evaluate import PROPERTIES

ROOT = Path(__file__).parent.parent
MARK = "models"
"""Name of the generated section of a page."""
FIGURES = {
    "mnist_cnn_fd": ("MNIST-CNN-FD", "{:.3f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "accuracy": ("digit accuracy", "{:.1%}"),
    "worst_digit": ("worst digit", "{:.1%}"),
}
"""Title and format of the main figures, by their key in a manifest's metrics."""
ALL_FIGURES = {
    "mnist_cnn_fd": ("MNIST-CNN-FD", "{:.3f}"),
    "kid": ("KID", "{:.5f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "label_entropy": ("label entropy, nats", "{:.3f}"),
    "nearest_training_ratio": ("nearest training image", "{:.2f}"),
    "duplicates": ("duplicates", "{:.4f}"),
    "classification_accuracy_score": ("CAS", "{:.4f}"),
}
"""Title and format of all figures of samples."""


def command() -> None:
    """Write all generated pages and print their paths."""
    for path, text in pages(ROOT).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


def pages(root: Path) -> dict[Path, str]:
    """The text of every generated file of the project at `root`."""
    manifests = {name: store.read_manifest(root / "weights" / name) for name in store.list_weights(root / "weights")}
    with_picture = [name for name in manifests if (root / "docs" / "worst" / f"{name}.png").exists()]
    readme, quality = root / "README.md", root / "docs" / "quality.md"
    return {
        root / "docs" / "models.md": page(manifests),
        readme: filled(readme.read_text(), MARK, model_table(manifests)),
        quality: filled(
            quality.read_text(),
            MARK,
            "\n\n".join((figure_table(manifests), digit_table(manifests), worst_table(with_picture))),
        ),
    }


def real(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Figures of real images, from the first manifest that has them."""
    return next((manifest.metrics["real"] for manifest in manifests.values() if "real" in manifest.metrics), {})


def model_table(manifests: dict[str, Manifest]) -> str:
    """The main figures: one row for real images, then one per weights directory."""
    titles = [title for title, _ in FIGURES.values()]
    lines = ["| model | kind | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(titles)]
    lines.append("| | 10,000 real training images | " + " | ".join(_figures(real(manifests))) + " |")
    for name, manifest in manifests.items():
        title = families.get(manifest.family).about.title
        lines.append(
            f"| [`{name}`](docs/models.md#{name}) | {title} | " + " | ".join(_figures(manifest.metrics)) + " |"
        )
    return "\n".join(lines)


def figure_table(manifests: dict[str, Manifest]) -> str:
    """All figures of samples, ± half their 95 % intervals: one row for real images, then one per weights directory."""
    lines = [
        "| | " + " | ".join(title for title, _ in ALL_FIGURES.values()) + " |",
        "|---|" + "---|" * len(ALL_FIGURES),
    ]
    for name, metrics in _rows(manifests):
        lines.append(
            f"| {name} | " + " | ".join(figure(metrics, key, form) for key, (_, form) in ALL_FIGURES.items()) + " |"
        )
    return "\n".join(lines)


def digit_table(manifests: dict[str, Manifest]) -> str:
    """The share of samples that show the requested digit: one row for real images, then one per conditional model."""
    lines = ["| digit accuracy, % | all | " + " | ".join(map(str, range(10))) + " |", "|---|---|" + "---|" * 10]
    for name, metrics in _rows(manifests):
        if "accuracy" in metrics:
            shares = [figure(metrics, "accuracy", "{:.1f}", 100)]
            shares += [f"{100 * share:.1f}" for share in metrics["accuracy_by_digit"]]
            lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _rows(manifests: dict[str, Manifest]) -> list[tuple[str, dict[str, Any]]]:
    """Names and metrics: those of real images, then those of all weights."""
    return [("real", real(manifests)), *((name, manifest.metrics) for name, manifest in manifests.items())]


def worst_table(names: Sequence[str]) -> str:
    """The pictures of the samples for which the classifier is least confident, of the models that have one."""
    cells = [f"{name} | ![Worst samples of {name}](worst/{name}.png)" for name in names]
    pairs = [" | ".join(cells[i : i + 2]) for i in range(0, len(cells), 2)]
    return "\n".join(["| worst samples of | | | |", "|---|---|---|---|", *(f"| {pair} |" for pair in pairs)])


def figure(metrics: dict[str, Any], key: str, form: str, factor: float = 1) -> str:
    """One figure as text, with half its interval if the metrics have one; empty if they lack the figure."""
    if key not in metrics:
        return ""
    half = metrics.get("interval", {}).get(key)
    return form.format(factor * metrics[key]) + ("" if half is None else f" ± {form.format(factor * half)}")


def page(manifests: dict[str, Manifest]) -> str:
    """docs/models.md: all families, each with its objective, samples and figures."""
    parts = [
        "# Models",
        "Generated from the families and the manifests by `python -m training docs`. MNIST-CNN-FD is the Frechet "
        "distance in the features of this project's classifier, and comparable only with itself. "
        "[quality.md](quality.md) explains all figures.",
    ]
    for name in families.names():
        about = families.get(name).about
        parts += [f"## {name}", f"{about.title}. {about.paper}.", f"    {about.formula}"]
        for weights, manifest in manifests.items():
            if manifest.family == name:
                parts += [f"![Samples of {weights}](../weights/{weights}/samples.png)", _card(weights, manifest)]
    return "\n\n".join(parts) + "\n"


def default_options(manifest: Manifest) -> list[str]:
    """The sampling options of a request that names none, as "name value"."""
    sampler_parameter = families.get(manifest.family).sampler_parameter
    return [f"{sampler_parameter if key == 'sampler' else key} {value}" for key, value in manifest.defaults.items()]


def _card(name: str, manifest: Manifest) -> str:
    training, metrics = manifest.training, manifest.metrics
    lines = [
        f"Weights `{name}`: {manifest.parameters:,} parameters; {training['images_seen']:,} images of "
        f"{manifest.dataset['name']} seen in training, {training['seconds'] / 60:.0f} minutes on {training['device']}."
    ]
    if manifest.defaults:
        lines.append("Defaults: " + ", ".join(default_options(manifest)) + ".")
    figures = [
        f"{title} {value}" for (title, _), value in zip(FIGURES.values(), _figures(metrics), strict=True) if value
    ]
    figures += [f"{title} {metrics[key]:.4g}" for key, title in PROPERTIES.items() if key in metrics]
    if figures:
        lines.append(f"Of {metrics['samples']:,} samples: " + ", ".join(figures) + ".")
    if manifest.caveat:
        lines.append(f"Known defects: {manifest.caveat}")
    return "\n".join(lines)


def filled(text: str, mark: str, content: str) -> str:
    """`text` with the section between the comments `mark` and `/mark` replaced. Raises ValueError without them."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def _figures(metrics: dict[str, Any]) -> list[str]:
    """The main figures as text, empty if the metrics lack one."""
    return [form.format(metrics[name]) if name in metrics else "" for name, (_, form) in FIGURES.items()]
