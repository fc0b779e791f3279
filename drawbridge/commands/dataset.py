"""`drawbridge dataset`: a labelled data set."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from drawbridge.commands import sampling
from drawbridge.commands.parsing import EXIT_INTERRUPTED, Parser, UsageError
from drawbridge.dataset import FORMATS, MAX_IDX_CLASSES, Dataset, DatasetError

IMAGES_PER_LABEL = 6000
TRAINING_IMAGES_PER_TEST_IMAGE = 6
"""As in MNIST."""


def main(arguments: Sequence[str]) -> int:
    """Generate the part of a data set that is missing, and write all of it."""
    parser = Parser(
        prog="drawbridge dataset",
        description="Generate a labelled data set. After an interruption, the same command continues.",
    )
    sampling.add_arguments(parser)
    parser.add_argument(
        "--per-label",
        "--per-digit",
        type=int,
        default=IMAGES_PER_LABEL,
        help=f"images of each class (default: {IMAGES_PER_LABEL}); idx adds a sixth of that as the test split",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file; for idx and png a directory")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="(default: npz if the output's name ends in .npz, png if it has no suffix)",
    )
    try:
        return asyncio.run(generate(parser.parse_args(arguments)))
    except DatasetError as error:
        raise UsageError(str(error)) from None


async def generate(args: argparse.Namespace) -> int:
    """Generate and write the data set. Returns the exit status."""
    if args.per_label < 1:
        raise UsageError("--per-label: must be at least 1")
    dataset = Dataset(args.output, args.format or default_format(args.output))
    options = sampling.parameters(args)
    async with sampling.connect(args, "dataset") as client:
        models = {model["name"]: model for model in await client.models()}
        if args.model not in models:
            raise UsageError(f"no model {args.model!r}; available models: {', '.join(models) or 'none'}")
        model = models[args.model]
        classes: list[str] = model["classes"]
        if not classes:
            raise UsageError(f"{args.model} takes no label; a data set needs a conditional model")
        if dataset.format == "idx" and (model["channels"] != 1 or len(classes) > MAX_IDX_CLASSES):
            raise UsageError(
                f"--format idx: holds grey images of at most {MAX_IDX_CLASSES} classes; {args.model} has "
                f"{'grey' if model['channels'] == 1 else 'colour'} images of {len(classes)}; use npz or png"
            )
        description = {"model": args.model, "digest": model["digest"], "seed": args.seed, **options}
        tests_per_label = max(1, args.per_label // TRAINING_IMAGES_PER_TEST_IMAGE) if dataset.format == "idx" else 0
        dataset.begin(description, len(classes) * args.per_label, len(classes) * tests_per_label)
        request = {"seed": args.seed, "label": classes, "priority": "bulk", **options}
        try:
            await dataset.generate(lambda **part: client.generate(args.model, **request, **part))
        except (KeyboardInterrupt, asyncio.CancelledError):
            print(
                f"interrupted: {dataset.generated()} images are saved in {dataset.parts}; "
                "the same command continues from there",
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
    dataset.finish(classes)
    print(f"{args.output}: {dataset.count} images of {args.model}, seed {args.seed}", file=sys.stderr)
    return 0


def default_format(output: Path) -> str:
    """The format that the output's name means. Raises UsageError if its suffix is another than .npz."""
    suffix = output.suffix.lower()
    if suffix not in ("", ".npz"):
        raise UsageError(f"{output}: name a file that ends in .npz, or a directory with --format png or idx")
    return suffix[1:] or "png"
