"""The data card: where a data set comes from, what is in it, and how to load it, as JSON and as Markdown.

It has no date and not the path of the output, so that the same data set has the same card.
"""

import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drawbridge import __version__

DATA_FILES = {"png": "{split}/**", "parquet": "data/{split}-*.parquet", "webdataset": "{split}-*.tar"}
"""The files of a split in the directories that Hugging Face's datasets read, for the head of README.md."""
PACKAGES = {"parquet": ("pyarrow",)}
"""Packages that write a format, besides NumPy."""


def make(
    *,
    model: Mapping[str, Any],
    manifest: Mapping[str, Any],
    seed: int,
    options: Mapping[str, Any],
    command: str,
    format: str,
    shards: int | None,
    counts: Mapping[str, Sequence[int]],
    filters: Sequence[Mapping[str, Any]],
    drawn: Sequence[int],
) -> dict[str, Any]:
    """The card of a data set of `model`, as the service describes it.

    `shards` is the number of files of the training split; None for formats without shards, and for a single file.
    `counts` are the images of each class by split. `filters` are the descriptions of the filters, each with the list
    `dropped` of a number per class, and `drawn` the images of each class that were drawn.
    """
    classes: list[str] = model["classes"]
    dataset = manifest["dataset"]
    by_name = {split: dict(zip(classes, of_split, strict=True)) for split, of_split in counts.items()}
    filtered = {"drawn": dict(zip(classes, drawn, strict=True))} if filters else {}
    return {
        "model": model["name"],
        "family": model["family"],
        "digest": model["digest"],
        "seed": seed,
        "sampling": {**model["defaults"], **options},
        "command": command,
        "format": format,
        "loading": _loading(format, shards, model["channels"], has_test="test" in counts),
        "shape": [model["height"], model["width"], model["channels"]],
        "classes": classes,
        "images": by_name,
        **filtered,
        "filters": [{**one, "dropped": dict(zip(classes, one["dropped"], strict=True))} for one in filters],
        "training_data": {"name": Path(dataset["name"]).name, "digest": dataset.get("digest", "")},
        "attribution": manifest.get("attribution", ""),
        "caveat": manifest.get("caveat", ""),
        "versions": {
            "drawbridge": __version__,
            "python": platform.python_version(),
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            **{package: version(package) for package in ("numpy", "torch", *PACKAGES.get(format, ()))},
        },
    }


def to_json(card: Mapping[str, Any]) -> str:
    """The card as JSON."""
    return json.dumps(card, indent=1, ensure_ascii=False) + "\n"


def to_markdown(card: Mapping[str, Any], *, head: bool) -> str:
    """The card as Markdown; with `head` it begins with the metadata of a README.md that Hugging Face's hub reads."""
    images, filters = card["images"], card["filters"]
    height, width, channels = card["shape"]
    total = sum(sum(of_split.values()) for of_split in images.values())
    lines = _head(card) if head else []
    lines += [
        f"# {total:,} labelled images of {card['model']}",
        "",
        f"{width}x{height} pixels, {'grey' if channels == 1 else 'colour'}, {len(card['classes'])} classes. They are "
        f"samples of a model that was trained on {card['training_data']['name']}, and not images of that data.",
        "",
        *_table(card),
        "",
        "## Loading",
        "",
        f"```python\n{card['loading']}\n```",
        "",
        "## Origin",
        "",
        f"- Model: `{card['model']}`, family {card['family']}, SHA-256 of the weights `{card['digest']}`",
        f"- Seed: {card['seed']}",
        *(f"- {name.capitalize()}: {value}" for name, value in card["sampling"].items()),
        f"- Command: `{card['command']}`",
        *(f"- SHA-256 of the images and labels of {split}: `{digest}`" for split, digest in card["sha256"].items()),
        f"- Versions: {', '.join(f'{name} {number}' for name, number in card['versions'].items())}",
        *(f"- Filter: {_describe(one)}" for one in filters),
        "",
        "## Licence",
        "",
        f"Source and licence of the model's training data: {card['attribution']}."
        if card["attribution"]
        else f"The model's manifest names no source or licence of its training data, {card['training_data']['name']}.",
    ]
    if card["caveat"]:
        lines += ["", "## Known defects of the model's samples", "", card["caveat"]]
    return "\n".join(lines) + "\n"


def _loading(format: str, shards: int | None, channels: int, has_test: bool) -> str:
    """Python that loads the training split; PATH stands for the file or directory."""
    if format == "npz":
        return 'arrays = numpy.load("PATH")'
    if format == "idx":
        return 'train = torchvision.datasets.MNIST("PATH", train=True)'
    if format == "png":
        return f'train = torchvision.datasets.ImageFolder("PATH{"/train" if has_test else ""}")'
    if format == "parquet":
        source = '"parquet", data_files="PATH"' if shards is None else '"PATH"'
        return f'train = datasets.load_dataset({source}, split="train")'
    files = "PATH" if shards is None else f"PATH/train-{{000000..{shards - 1:06d}}}.tar"
    mode = '"pill"' if channels == 1 else '"pil"'
    return f'train = webdataset.WebDataset("{files}", shardshuffle=False).decode({mode}).to_tuple("png", "cls")'


def _head(card: Mapping[str, Any]) -> list[str]:
    """YAML between two lines of dashes. JSON's strings are also YAML's."""
    lines = ["---", "task_categories:", "- image-classification", "tags:", "- synthetic"]
    if card["format"] in DATA_FILES:
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in card["images"]:
            single = card["format"] == "png" and len(card["images"]) == 1
            path = "*/*.png" if single else DATA_FILES[card["format"]].format(split=split)
            lines += [f"  - split: {split}", f"    path: {json.dumps(path)}"]
    return [*lines, "---", ""]


def _table(card: Mapping[str, Any]) -> list[str]:
    """A row for each class: its images by split, and with filters how many were drawn, and dropped by each."""
    columns = [*card["images"].items()]
    if card["filters"]:
        columns += [
            ("drawn", card["drawn"]),
            *((f"dropped: {one['filter']}", one["dropped"]) for one in card["filters"]),
        ]
    rows = ["| class | " + " | ".join(title for title, _ in columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in card["classes"]:
        label = name.replace("|", "\\|").replace("\n", " ")
        rows.append(f"| {label} | " + " | ".join(f"{counts[name]:,}" for _, counts in columns) + " |")
    totals = " | ".join(f"{sum(counts.values()):,}" for _, counts in columns)
    return [*rows, f"| all | {totals} |"]


def _describe(one: Mapping[str, Any]) -> str:
    """A filter with what determines what it keeps."""
    facts = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in one.items() if name not in ("filter", "dropped")
    )
    return f"{one['filter']} ({facts})"
