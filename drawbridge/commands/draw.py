"""`drawbridge draw`: samples in a file or on the terminal. With --url it needs nothing but httpx."""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from drawbridge import terminal
from drawbridge.commands import sampling
from drawbridge.commands.parsing import Parser, UsageError

FORMATS = ("png", "webp", "npz")


def main(arguments: Sequence[str]) -> int:
    """Generate samples, and write or show them."""
    parser = Parser(prog="drawbridge draw", description="Generate samples into a file or onto the terminal.")
    sampling.add_arguments(parser)
    parser.add_argument(
        "--label", action="append", help="name or number of a class; may repeat: image i gets the i-th, cyclically"
    )
    parser.add_argument("--digit", type=int, action="append", help="--label of models whose classes are the digits")
    parser.add_argument("-n", type=int, default=1, help="images (default: 1)")
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
    async with sampling.connect(args.url, args.model, "draw") as client:
        labels = {"label": args.label, "digit": args.digit}
        samples = await client.generate(
            args.model, format=format, n=args.n, seed=args.seed, **labels, **sampling.parameters(args)
        )
    if output is None:
        print(terminal.render(terminal.read_images(samples.content), shutil.get_terminal_size().columns))
    else:
        output.write_bytes(samples.content)
    label = "sampled" if output is None else str(output)
    print(f"{label}: {args.n} of {args.model}, seed {samples.seed}", file=sys.stderr)
