"""`drawbridge draw`: samples in a file or on the terminal. With --url it needs nothing but httpx."""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drawbridge import ServiceError, terminal
from drawbridge.commands import sampling
from drawbridge.commands.parsing import Parser, UsageError
from drawbridge.recipe import read_recipe

FORMATS = ("png", "webp", "npz")
NOT_FOUND = 404


def main(arguments: Sequence[str]) -> int:
    """Generate samples, and write or show them."""
    parser = Parser(prog="drawbridge draw", description="Generate samples into a file or onto the terminal.")
    sampling.add_arguments(parser, model_required=False)
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="draw the image in a PNG of this service again; other options change what they name, and a MODEL is drawn "
        "with the weights that are there",
    )
    parser.add_argument(
        "--label", action="append", help="name or number of a class; may repeat: image i gets the i-th, cyclically"
    )
    parser.add_argument("--digit", type=int, action="append", help="--label of models whose classes are the digits")
    parser.add_argument("-n", type=int, help="images (default: 1)")
    parser.add_argument("--seed", type=int, help="(default: a random one)")
    parser.add_argument(
        "-o", "--output", type=Path, help="file; its suffix is .png, .webp or .npz (default: the terminal)"
    )
    asyncio.run(draw(parser.parse_args(arguments)))
    return 0


async def draw(args: argparse.Namespace) -> None:
    """Generate the samples in the output's format."""
    output: Path | None = args.output
    if output is None and not sys.stdout.isatty():
        raise UsageError("standard output is not a terminal; name a file with -o")
    format = "npz" if output is None else output.suffix[1:].lower()
    if format not in FORMATS:
        raise UsageError(f"{output}: the name must end in .png, .webp or .npz")
    recipe = _recipe(args)
    model = args.model or recipe.pop("model")
    args.model = model.partition("@")[0]
    async with sampling.connect(args.url, args.model, "draw") as client:
        try:
            samples = await client.generate(model, format=format, **recipe)
        except ServiceError as error:
            if args.like is None or error.status != NOT_FOUND:
                raise
            remedy = f"`drawbridge draw {args.model} --like {args.like}` draws it with the weights that are there"
            raise UsageError(f"{args.like} was drawn with other weights: {error}; {remedy}") from None
    if output is None:
        print(terminal.render(terminal.read_images(samples.content), shutil.get_terminal_size().columns))
    else:
        output.write_bytes(samples.content)
    label = "sampled" if output is None else str(output)
    print(f"{label}: {recipe['n']} of {args.model}, seed {samples.seed}", file=sys.stderr)


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the request: those of the file of --like, changed by the options that were given."""
    if args.like is None and args.model is None:
        raise UsageError("name a model, such as cgan, or a PNG with --like; see `drawbridge draw --help`")
    recipe: dict[str, Any] = {"n": 1} if args.like is None else read_recipe(args.like)
    recipe.pop("digest", None)
    if args.like is not None and args.model is not None:
        del recipe["model"]
    options = {"n": args.n, "seed": args.seed, "label": args.label, "digit": args.digit, **sampling.parameters(args)}
    given = {name: value for name, value in options.items() if value is not None}
    if "digit" in given:
        recipe.pop("label", None)
    return recipe | given
