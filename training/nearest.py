"""The command `nearest`: writes the index of training images by which a service finds those nearest to an image."""

import argparse
import time

from torch import Tensor

from models import nearest, store
from models.nearest import points
from training import files, metrics
from training.evaluation.inputs import comparable, load_splits
from training.evaluation.nearest import COMPARED
from training.figures import short_name


def command(args: argparse.Namespace) -> None:
    """Write the index of the data of a model next to the weights. All models of this data share it."""
    manifest = store.read_manifest(args.weights / args.model)
    files.require_writable(args.weights)
    train, test = load_splits(args.model, manifest, args.data, args.data_root)
    started_at = time.monotonic()
    held_out = distances(train.images, comparable(train, test)[1].images[:COMPARED])
    content = nearest.build(
        train.images,
        train.labels,
        held_out,
        float(held_out.kthvalue(metrics.nearest_percent(len(held_out))).values),
        name=short_name(train.name),
        digest=train.digest,
        classes=train.classes,
        attribution=manifest.attribution if args.attribution is None else args.attribution,
    )
    path = nearest.path(args.weights, short_name(train.name), train.digest)
    store.write_atomic(path, content)
    print(
        f"{path}: {len(train.images):,} training images of {short_name(train.name)}, {len(content) / 1e6:.1f} MB, "
        f"{time.monotonic() - started_at:.0f} s"
    )


def distances(train: Tensor, test: Tensor) -> Tensor:
    """The distance [M] float64 from each of test images [M, C, H, W] uint8 to the nearest training image."""
    number = metrics.nearest(points(train), points(test))[1]  # its distances are rounded
    return (points(train[number]).double() - points(test).double()).norm(dim=1)
