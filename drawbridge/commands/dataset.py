"""`drawbridge dataset`: a labelled data set."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from drawbridge.commands import sampling
from drawbridge.commands.parsing import EXIT_INTERRUPTED, Parser, UsageError
from drawbridge.dataset import FORMATS, Dataset, DatasetError

IMAGES_PER_DIGIT = 6000


def main(arguments: Sequence[str]) -> int:
    """Generate the part of a data set that is missing, and write all of it."""
    parser = Parser(
        prog="drawbridge dataset",
        description="Generate a labelled data set. After an interruption, the same command continues.",
    )
    sampling.add_arguments(parser)
    parser.add_argument(
        "--per-digit", type=int, default=IMAGES_PER_DIGIT, help=f"images of each digit (default: {IMAGES_PER_DIGIT})"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file; for idx and png a directory")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="(default: npz if the output's name ends in .npz, else png)"
    )
    try:
        return asyncio.run(generate(parser.parse_args(arguments)))
    except DatasetError as error:
        raise UsageError(str(error)) from None


async def generate(args: argparse.Namespace) -> int:
    """Generate and write the data set. Returns the exit status."""
    if args.per_digit < 1:
        raise UsageError("--per-digit: must be at least 1")
    dataset = Dataset(args.output, args.format or ("npz" if args.output.suffix == ".npz" else "png"))
    options = sampling.parameters(args)
    async with sampling.connect(args, "dataset") as client:
        models = {model["name"]: model for model in await client.models()}
        if args.model not in models:
            raise UsageError(f"no model {args.model!r}; there are: {', '.join(models) or 'none'}")
        digits = models[args.model]["takes"].get("digit", {}).get("one_of")
        if digits is None:
            raise UsageError(f"{args.model} takes no digit; a data set needs a conditional model")
        description = {"model": args.model, "digest": models[args.model]["digest"], "seed": args.seed, **options}
        dataset.begin(description, len(digits) * args.per_digit)
        request = {"seed": args.seed, "digit": digits, "priority": "bulk", **options}
        try:
            await dataset.generate(lambda **part: client.generate(args.model, **request, **part))
        except (KeyboardInterrupt, asyncio.CancelledError):
            print(
                f"interrupted: {dataset.generated()} images are saved in {dataset.parts}; "
                "the same command continues from there",
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
    dataset.finish()
    print(f"{args.output}: {dataset.count} images of {args.model}, seed {args.seed}", file=sys.stderr)
    return 0
