"""Pages generated from families, manifests and sources.

They are docs/models.md, the tables in README.md and docs/quality.md, and the code in docs/lecture.md.
"""

import ast
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import families, film, store
from models.directories import FILM
from models.film import Film
from models.store import Manifest
from training.figures import PROPERTIES, UNLABELLED, Group, figure, groups
from training.privacy import results as privacy
from training.usefulness import results as usefulness

ROOT = Path(__file__).parent.parent
MARKS = MODELS, USEFULNESS, PRIVACY = "models", "usefulness", "privacy"
"""Names of the generated sections of pages. The last two are also the folders of docs/ that have their results."""
MOST_CLASSES = 20
"""Classes that have a column each; of more, the main figures name only the worst."""


def command() -> None:
    """Write all generated pages and print their paths."""
    for path, text in pages(ROOT).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


def pages(root: Path) -> dict[Path, str]:
    """The text of every generated file of the project at `root`."""
    manifests = {name: store.read_manifest(root / "weights" / name) for name in store.list_weights(root / "weights")}
    filmed = [name for name in manifests if (root / "weights" / name / FILM).exists()]
    films = {name: film.read(root / "weights" / name, manifests[name].digest) for name in filmed}
    with_picture = [name for name in manifests if (root / "docs" / "worst" / f"{name}.png").exists()]
    measured = groups(manifests)
    tables = [text for group in measured for text in (group.heading, figure_table(group), class_table(group)) if text]
    readme, quality, lecture = root / "README.md", root / "docs" / "quality.md", root / "docs" / "lecture.md"
    of_quality = filled(quality.read_text(), MODELS, _joined(*tables, worst_table(with_picture)))
    of_quality = filled(of_quality, USEFULNESS, usefulness_section(quality.parent / USEFULNESS))
    return {
        root / "docs" / "models.md": page(manifests, films),
        readme: filled(readme.read_text(), MODELS, _joined(*(_joined(g.heading, model_table(g)) for g in measured))),
        quality: filled(of_quality, PRIVACY, privacy_section(quality.parent / PRIVACY)),
        lecture: with_code(lecture.read_text(), root),
    }


def usefulness_section(folder: Path) -> str:
    """The results of `usefulness` in `folder`: a table, sentences and a picture for each model."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        found = usefulness.read(path)
        sentences = "\n".join(f"- {sentence}" for sentence in usefulness.sentences(found))
        picture = f"![Test accuracy by the number of real images, with and without draws of {found.model}]"
        parts += [
            f"{usefulness.heading(found)}:",
            usefulness.table(found),
            sentences,
            f"{picture}({folder.name}/{path.stem}.png)",
        ]
    return _joined(*parts)


def privacy_section(folder: Path) -> str:
    """The results of `privacy` in `folder`: a table for each data set, then a sentence and a picture for each model."""
    by_data: dict[tuple[str, int, int], list[privacy.Results]] = {}
    for path in sorted(folder.glob("*.json")):
        found = privacy.read(path)
        by_data.setdefault((found.data, found.draws, found.compared), []).append(found)
    parts = []
    for results in by_data.values():
        parts += [f"{privacy.heading(results[0])}:", privacy.table(results)]
        for found in results:
            picture = f"![Images nearest to draws of {found.model}]({folder.name}/{found.model}.png)"
            parts += [privacy.sentence(found), picture]
    return _joined(*parts)


def _joined(*parts: str) -> str:
    """The parts that are not empty, as paragraphs."""
    return "\n\n".join(part for part in parts if part)


def model_table(group: Group) -> str:
    """The main figures: one row for real images, then one per weights directory."""
    columns = group.main_columns
    lines = [
        "| model | kind | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---|---|" + "---|" * len(columns),
        f"| | {group.real_count:,} real training images | " + " | ".join(_figures(group, group.real)) + " |",
    ]
    for name, manifest in group.manifests.items():
        title = families.get(manifest.family).about.title
        cells = " | ".join(_figures(group, manifest.metrics))
        lines.append(f"| [`{name}`](docs/models.md#{name}) | {title} | {cells} |")
    return "\n".join(lines)


def figure_table(group: Group) -> str:
    """All figures of samples, ± half their 95 % intervals: one row for real images, then one per weights directory."""
    columns = group.all_columns
    lines = [
        "| | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, metrics in _rows(group):
        lines.append(
            f"| {name} | " + " | ".join(figure(metrics, key, form) for key, (_, form) in columns.items()) + " |"
        )
    return "\n".join(lines)


def class_table(group: Group) -> str:
    """The share of samples that show the requested class: one row for real images, then one per conditional model.

    Empty if the classifier does not know the classes, or if there are too many for a table.
    """
    rows = [(name, metrics) for name, metrics in _rows(group) if group.keys.by_class in metrics]
    if not rows or len(group.classes) > MOST_CLASSES:
        return ""
    title = next(title for title, _ in group.accuracies.values())
    lines = [f"| {title}, % | all | " + " | ".join(group.classes) + " |", "|---|---|" + "---|" * len(group.classes)]
    for name, metrics in rows:
        shares = [figure(metrics, "accuracy", "{:.1f}", 100)]
        shares += ["" if share is None else f"{100 * share:.1f}" for share in metrics[group.keys.by_class]]
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _rows(group: Group) -> list[tuple[str, dict[str, Any]]]:
    """Names and metrics: those of real images, then those of all weights."""
    return [("real", group.real), *((name, manifest.metrics) for name, manifest in group.manifests.items())]


def worst_table(names: Sequence[str]) -> str:
    """The pictures of the samples for which the classifier is least confident, of the models that have one."""
    cells = [f"{name} | ![Worst samples of {name}](worst/{name}.png)" for name in names]
    pairs = [" | ".join(cells[i : i + 2]) for i in range(0, len(cells), 2)]
    return "\n".join(["| worst samples of | | | |", "|---|---|---|---|", *(f"| {pair} |" for pair in pairs)])


def page(manifests: dict[str, Manifest], films: dict[str, Film]) -> str:
    """docs/models.md: all families, each with its objective, samples, figures and film."""
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
                group = Group({weights: manifest})
                parts += [f"![Samples of {weights}](../weights/{weights}/samples.png)", _card(weights, manifest, group)]
                parts += [film_line(weights, films[weights])] if weights in films else []
    return "\n\n".join(parts) + "\n"


def film_line(weights: str, film: Film) -> str:
    """What a film shows: a model's samples during training, at how many points and until when."""
    *frames, _ = film.frames
    whose = "its training" if film.same_run else "another run by the same recipe"
    return (
        f"How it learned: [film.webp](../weights/{weights}/film.webp) shows the same samples at {len(frames)} points "
        f"of {whose}, from 0 to {frames[-1]['updates']:,} updates, and those of these weights."
    )


def default_options(manifest: Manifest) -> list[str]:
    """The sampling options of a request that names none, as "name value"."""
    sampler_parameter = families.get(manifest.family).sampler_parameter
    return [f"{sampler_parameter if key == 'sampler' else key} {value}" for key, value in manifest.defaults.items()]


def titled_figures(group: Group, metrics: dict[str, Any]) -> list[str]:
    """The main figures that the metrics have, as "title value"."""
    titles = [title for title, _ in group.main_columns.values()]
    return [f"{title} {value}" for title, value in zip(titles, _figures(group, metrics), strict=True) if value]


def _card(name: str, manifest: Manifest, group: Group) -> str:
    training, metrics = manifest.training, manifest.metrics
    device = training.get("device_name", training["device"])
    lines = [
        f"Weights `{name}`: {manifest.parameters:,} parameters; {training['images_seen']:,} images of "
        f"{group.data} seen in training, {training['seconds'] / 60:.0f} minutes on {device}."
    ]
    if start := training.get("start"):
        weights = [f"{one['family']}, SHA-256 {one['digest'][:12]}" for one in (*start.get("after", ()), start)]
        lines.append(f"The training started from weights of {', and of '.join(weights)}.")
    if manifest.defaults:
        lines.append("Defaults: " + ", ".join(default_options(manifest)) + ".")
    columns = group.main_columns
    figures = titled_figures(group, metrics)
    figures += [f"{title} {metrics[key]:.4g}" for key, title in PROPERTIES.items() if key in metrics.keys() - columns]
    if figures:
        lines.append(f"Of {metrics['samples']:,} samples: " + ", ".join(figures) + ".")
    if unlabelled := metrics.get(UNLABELLED):
        lines.append("Without a label: " + ", ".join(titled_figures(group, unlabelled)) + ".")
    if manifest.attribution:
        lines.append(f"Training images: {manifest.attribution}")
    if manifest.caveat:
        lines.append(f"Known defects: {manifest.caveat}")
    return "\n".join(lines)


def with_code(text: str, root: Path) -> str:
    """`text` with the code of a function or method after each comment `<!-- FILE NAME -->`."""
    for file, name in re.findall(r"^<!-- (\w\S*\.py) (\S+) -->$", text, re.MULTILINE):
        source = (root / file).read_text()
        tree: ast.AST = ast.parse(source)
        for part in name.split("."):
            tree = next(node for node in ast.iter_child_nodes(tree) if getattr(node, "name", None) == part)
        code = ast.get_source_segment(source, tree, padded=True) or ""
        link = f"[{file}](../{file})"
        text = filled(text, f"{file} {name}", f"\n```python\n{textwrap.dedent(code)}\n```\n\n{link}\n")
    return text


def filled(text: str, mark: str, content: str) -> str:
    """`text` with the section between the comments `mark` and `/mark` replaced. Raises ValueError without them."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def _figures(group: Group, metrics: dict[str, Any]) -> list[str]:
    """The main figures as text, empty if the metrics lack one."""
    return [form.format(metrics[key]) if key in metrics else "" for key, (_, form) in group.main_columns.items()]
