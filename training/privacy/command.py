"""The command `privacy`: tests whether a model's draws tell its training images from held-out ones."""

import argparse

from models import store
from training import classifier, draws, files
from training.config import ConfigError
from training.evaluation.inputs import load_data
from training.figures import short_name
from training.privacy import membership, results
from training.privacy.membership import Space
from training.privacy.results import Results
from training.sources import Service, Source, Weights

DRAWS = 10_000
MIN_DRAWS = 100


def command(args: argparse.Namespace) -> int:
    """Test a model, write NAME.json and NAME.png, and print what follows from them.

    Distances are those of pixels, and those of the features of the data's judge `report`, if it has one.
    """
    if args.draws < MIN_DRAWS:
        raise ConfigError(f"--draws {args.draws}: use at least {MIN_DRAWS}; fewer have no image nearby")
    source: Source = Service(args.against) if args.against else Weights(args.weights)
    manifest = source.manifest(args.model)
    train, test = load_data(args.model, manifest, args.data, args.data_root)
    found = classifier.find("report", train.digest, args.judges)
    judge = classifier.read(found) if found else None
    files.require_writable(args.output)
    drawn = draws.draw(source, args.model, args.draws).images
    spaces: dict[str, Space] = {"pixels": membership.pixels}
    if judge is not None:
        spaces["features"] = lambda images: judge.features_and_logits(images)[0]
    else:
        print(f"no judge 'report' for {short_name(train.name)}: distances of pixels alone", flush=True)
    print(
        f"{args.model}: distances between {args.draws:,} draws and the images of {short_name(train.name)}", flush=True
    )
    result = Results(
        model=args.model,
        digest=manifest.digest,
        data=short_name(train.name),
        train_images=len(train.images),
        compared=membership.compared(train.images, test.images),
        draws=args.draws,
        judge={"name": judge.name, "digest": judge.digest} if judge else {},
        tests=membership.tests(train.images, test.images, drawn, spaces),
    )
    # Imported here because it imports matplotlib, which takes time that other commands need not spend.
    from training.privacy import picture

    path = args.output / f"{args.model}.json"
    store.write_atomic(path, result.to_json())
    store.write_atomic(path.with_suffix(".png"), picture.draw(result, train, test, drawn))
    lines = ("", results.heading(result), "", results.table([result]), "", results.sentence(result), "")
    print("\n".join(lines))
    print(f"{path}, {path.with_suffix('.png')}", flush=True)
    return 0
