"""What is made from families and manifests: docs/models.md, and the tables in README.md and docs/quality.md."""

from pathlib import Path
from typing import Any

from models import families, store
from models.store import Manifest
from training.evaluate import PROPERTIES

ROOT = Path(__file__).parent.parent
MARK = "models"
FIGURES = {
    "mnist_cnn_fd": ("MNIST-CNN-FD", "{:.3f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "accuracy": ("digit right", "{:.1%}"),
    "worst_digit": ("worst digit", "{:.1%}"),
}


FULL = {
    "mnist_cnn_fd": ("MNIST-CNN-FD", "{:.3f}"),
    "kid": ("KID", "{:.5f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "label_entropy": ("label entropy, nats", "{:.3f}"),
    "nearest_training_ratio": ("nearest training image", "{:.2f}"),
    "duplicates": ("duplicates", "{:.4f}"),
    "classification_accuracy_score": ("taught classifier", "{:.4f}"),
}


def command() -> None:
    """Write them."""
    for path, text in pages(ROOT).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


def pages(root: Path) -> dict[Path, str]:
    """The text of every generated file of the project at `root`."""
    manifests = {name: store.read_manifest(root / "weights" / name) for name in store.list_weights(root / "weights")}
    readme, quality = root / "README.md", root / "docs" / "quality.md"
    return {
        root / "docs" / "models.md": page(manifests),
        readme: filled(readme.read_text(), MARK, table(manifests)),
        quality: filled(
            quality.read_text(), MARK, "\n\n".join((figures(manifests), digits(manifests), worst(manifests)))
        ),
    }


def real(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """What real images score, as far as any manifest says."""
    return next((found.metrics["real"] for found in manifests.values() if "real" in found.metrics), {})


def table(manifests: dict[str, Manifest]) -> str:
    """A line for each of the weights, and one for real images."""
    titles = [title for title, _ in FIGURES.values()]
    lines = ["| model | what it is | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(titles)]
    lines.append("| | 10,000 real training images | " + " | ".join(_figures(real(manifests))) + " |")
    for name, manifest in manifests.items():
        title = families.get(manifest.family).about.title
        lines.append(
            f"| [`{name}`](docs/models.md#{name}) | {title} | " + " | ".join(_figures(manifest.metrics)) + " |"
        )
    return "\n".join(lines)


def figures(manifests: dict[str, Manifest]) -> str:
    """Every figure of the draws with half its 95 % interval: a line for each of the weights, one for real images."""
    lines = ["| | " + " | ".join(title for title, _ in FULL.values()) + " |", "|---|" + "---|" * len(FULL)]
    for name, metrics in _rows(manifests):
        lines.append(f"| {name} | " + " | ".join(figure(metrics, key, form) for key, (_, form) in FULL.items()) + " |")
    return "\n".join(lines)


def digits(manifests: dict[str, Manifest]) -> str:
    """The share of draws that show the digit asked for, a line for each of the weights that can be asked."""
    lines = ["| digit right, % | all | " + " | ".join(map(str, range(10))) + " |", "|---|---|" + "---|" * 10]
    for name, metrics in _rows(manifests):
        if "accuracy" in metrics:
            shares = [figure(metrics, "accuracy", "{:.1f}", 100)]
            shares += [f"{100 * share:.1f}" for share in metrics["accuracy_by_digit"]]
            lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _rows(manifests: dict[str, Manifest]) -> list[tuple[str, dict[str, Any]]]:
    """Names and figures: those of real images, then those of the weights."""
    return [("real", real(manifests)), *((name, manifest.metrics) for name, manifest in manifests.items())]


def worst(manifests: dict[str, Manifest]) -> str:
    """The pictures of the draws that the judge is least sure of."""
    cells = [f"{name} | ![The worst of {name}](worst/{name}.png)" for name in manifests]
    pairs = [" | ".join(cells[i : i + 2]) for i in range(0, len(cells), 2)]
    return "\n".join(["| the worst of | | | |", "|---|---|---|---|", *(f"| {pair} |" for pair in pairs)])


def figure(metrics: dict[str, Any], key: str, form: str, times: float = 1) -> str:
    """One figure as text, with half its interval where there is one; empty without the figure."""
    if key not in metrics:
        return ""
    half = metrics.get("interval", {}).get(key)
    return form.format(times * metrics[key]) + ("" if half is None else f" ± {form.format(times * half)}")


def page(manifests: dict[str, Manifest]) -> str:
    """All families, each with its objective and what its weights draw."""
    parts = [
        "# Models",
        "Made from the families and the manifests by `python -m training docs`. MNIST-CNN-FD is the Frechet distance "
        "in the features of our own classifier, and comparable to nothing but itself.",
    ]
    for name in families.names():
        about = families.get(name).about
        parts += [f"## {name}", f"{about.title}. {about.paper}.", f"    {about.formula}"]
        for weights, manifest in manifests.items():
            if manifest.family == name:
                parts += [f"![What {weights} draws](../weights/{weights}/samples.png)", _card(weights, manifest)]
    return "\n\n".join(parts) + "\n"


def words(manifest: Manifest) -> list[str]:
    """What a request gets that does not say, as it would say it."""
    sampler_parameter = families.get(manifest.family).sampler_parameter
    return [f"{sampler_parameter if key == 'sampler' else key} {value}" for key, value in manifest.defaults.items()]


def _card(name: str, manifest: Manifest) -> str:
    training, metrics = manifest.training, manifest.metrics
    lines = [
        f"Weights `{name}`: {manifest.parameters:,} numbers; {training['images_seen']:,} images of "
        f"{manifest.dataset['name']} seen in {training['seconds'] / 60:.0f} minutes on {training['device']}."
    ]
    if manifest.defaults:
        lines.append("Unless asked otherwise: " + ", ".join(words(manifest)) + ".")
    figures = [
        f"{title} {value}" for (title, _), value in zip(FIGURES.values(), _figures(metrics), strict=True) if value
    ]
    figures += [f"{title} {metrics[key]:.4g}" for key, title in PROPERTIES.items() if key in metrics]
    if figures:
        lines.append("Of " + f"{metrics['samples']:,} draws: " + ", ".join(figures) + ".")
    if manifest.caveat:
        lines.append(f"What goes wrong: {manifest.caveat}")
    return "\n".join(lines)


def filled(text: str, mark: str, content: str) -> str:
    """`text` with what stands between the marks replaced by `content`. Raises ValueError where there are none."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def _figures(metrics: dict[str, Any]) -> list[str]:
    """The figures as text, empty where there is none."""
    return [form.format(metrics[name]) if name in metrics else "" for name, (_, form) in FIGURES.items()]
