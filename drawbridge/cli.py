"""`python -m service`: serve, draw, or draw a data set."""

import argparse
import asyncio
import os
import shutil
import sys
import typing
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from drawbridge.client import AsyncClient, Samples, ServiceError, Unreachable
from drawbridge.dataset import FORMATS, Dataset, DatasetError
from service.auth import keys
from service.settings import KEY_VARIABLE, Settings, read_settings

INTERRUPTED = 130
PER_DIGIT = 6000


class UsageError(Exception):
    """What was asked for cannot be; the message says what to do."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a mistake of the caller's is one line and 2."""
    try:
        args = parser().parse_args(arguments)
        return int(args.command(args) or 0)
    except ValidationError as error:
        wrong = []
        for item in error.errors():
            name = "".join(f"DRAWBRIDGE_{str(part).upper()}: " for part in item["loc"][:1])
            wrong.append(name + item["msg"].removeprefix("Value error, "))
        print(f"error: {'; '.join(wrong)}", file=sys.stderr)
    except (UsageError, DatasetError, ServiceError, Unreachable, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = Parser(
        prog="python -m service", description="Serve the models, or draw from them. Without a command: serve."
    )
    root.set_defaults(command=lambda _: serve())
    commands = root.add_subparsers(metavar="COMMAND")
    drawing = commands.add_parser("draw", help="draw images into a file, or onto the terminal")
    add_model(drawing)
    drawing.add_argument("--digit", type=int, action="append", help="may repeat: image i takes the i-th, cycling")
    drawing.add_argument("-n", type=int, default=1, help="images (default: 1)")
    drawing.add_argument("--seed", type=int, help="(default: a new one)")
    drawing.add_argument("-o", "--output", type=Path, help="PNG, WebP or npz, by its name; left out: the terminal")
    drawing.set_defaults(command=lambda args: asyncio.run(draw(args)))
    several = commands.add_parser("dataset", help="draw a labelled data set; again to go on after an interruption")
    add_model(several)
    several.add_argument(
        "--per-digit", type=int, default=PER_DIGIT, help=f"images of each digit (default: {PER_DIGIT})"
    )
    several.add_argument("--seed", type=int, default=0, help="(default: 0)")
    several.add_argument("-o", "--output", type=Path, required=True, help="file, or directory for idx and png")
    several.add_argument(
        "--format", choices=tuple(FORMATS), help="(default: npz where the output is called so, else png)"
    )
    several.set_defaults(command=lambda args: asyncio.run(dataset(args)))
    checking = commands.add_parser("health", help="exit status 0 where the service of these settings is ready")
    checking.set_defaults(command=lambda _: health())
    keeping = commands.add_parser("key", help="make a key for a caller, for DRAWBRIDGE_KEYS")
    keeping.add_argument("name")
    keeping.add_argument("--file", type=Path, default=Path("keys.toml"), help="(default: keys.toml)")
    keeping.add_argument("--requests", help="at most, as 50/second")
    keeping.add_argument("--images", help="at most, as 100000/day")
    keeping.add_argument("--concurrent", type=int, help="requests at once")
    keeping.set_defaults(command=key)
    return root


def add_model(command: argparse.ArgumentParser) -> None:
    """Which model, where it is, and how it draws."""
    command.add_argument("model")
    command.add_argument(
        "--url",
        help=f"a running service, with the key in {KEY_VARIABLE} if it wants one; left out: the weights are loaded here",
    )
    command.add_argument("--steps", type=int)
    command.add_argument("--sampler")
    command.add_argument("--prior")
    command.add_argument("--guidance", type=float)


def how(args: argparse.Namespace) -> dict[str, Any]:
    """What was said of how to draw."""
    names = ("steps", "sampler", "prior", "guidance")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def serve() -> int:
    """The service, until a signal."""
    from service.server import serve
    from service.telemetry import log

    settings = read_settings()
    if settings.keys is not None:
        keys.read(settings.keys)
    log.configure(settings)
    return serve.serve(settings)


def health() -> int:
    """0 where the service of these settings is ready, else 1."""
    settings = read_settings()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    port = settings.admin_port or settings.port
    try:
        answer = httpx.get(f"http://{f'[{host}]' if ':' in host else host}:{port}/readyz", timeout=10)
    except httpx.TransportError as error:
        print(f"error: nothing answers at port {port}: {error}", file=sys.stderr)
        return 1
    print(answer.text)
    return 0 if answer.is_success else 1


def key(args: argparse.Namespace) -> None:
    """Make a key, which is shown this once."""
    names = ("requests", "images", "concurrent")
    limits = {name: value for name in names if (value := getattr(args, name)) is not None}
    secret = keys.add(args.file, args.name, limits)
    print(secret)
    print(f"{args.name} is in {args.file}, by the hash of this key; the key itself is kept nowhere", file=sys.stderr)


@asynccontextmanager
async def connected(args: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client of the service at --url, or of one in this process that has the one model."""
    if args.url:
        async with AsyncClient(args.url, key=os.environ.get(KEY_VARIABLE)) as client:
            yield client
        return
    from models import store
    from service.app import create_app

    settings = Settings(log_level="warning")
    if args.model not in (names := store.list_weights(settings.weights)):
        raise UsageError(f"no model {args.model!r}; there are: {', '.join(names) or 'none'}")
    app = create_app(settings, only=args.model)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient("http://here", transport=transport) as client:
            yield client


async def draw(args: argparse.Namespace) -> None:
    """Draw, and write or show it."""
    if args.output is None and not sys.stdout.isatty():
        raise UsageError("no terminal to show it on; name a file with -o")
    if args.output is not None and args.output.suffix not in (".png", ".webp", ".npz"):
        raise UsageError(f"{args.output}: call it .png, .webp or .npz")
    async with connected(args) as client:
        drawn = await client.generate(args.model, digit=args.digit, n=args.n, seed=args.seed, **how(args))
    if args.output is None:
        print(shown(drawn, shutil.get_terminal_size().columns))
    else:
        save(drawn, args.output)
    print(f"{args.output or 'drawn'}: {len(drawn.arrays)} of {args.model}, seed {drawn.seed}", file=sys.stderr)


def save(drawn: Samples, path: Path) -> None:
    """Write it as `path` is called."""
    import numpy as np
    from PIL import Image

    from models.pixels import image_grid as grid

    if path.suffix == ".npz":
        np.savez(path, images=drawn.arrays, labels=drawn.labels)
    else:
        Image.fromarray(grid(drawn.arrays)).save(path, lossless=True)  # which only WebP has to be told


def shown(drawn: Samples, columns: int) -> str:
    """The images as lines of half blocks in shades of grey, as many beside one another as fit."""
    from models.pixels import image_grid as grid

    sheet = grid(drawn.arrays, max(1, min(len(drawn.arrays), columns // 28)))
    lines = []
    for upper, lower in zip(sheet[::2].tolist(), sheet[1::2].tolist(), strict=True):
        cells = (f"\x1b[38;5;{_grey(a)}m\x1b[48;5;{_grey(b)}m▀" for a, b in zip(upper, lower, strict=True))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _grey(value: int) -> int:
    """The colour of a terminal's 24 greys that is nearest to a byte."""
    return 232 + round(value / 255 * 23)


async def dataset(args: argparse.Namespace) -> int:
    """Draw what is still missing of the data set, and put it together."""
    if args.per_digit < 1:
        raise UsageError("--per-digit: 1 at least")
    made = Dataset(args.output, args.format or ("npz" if args.output.suffix == ".npz" else "png"))
    async with connected(args) as client:
        found = {model["name"]: model for model in await client.models()}
        if args.model not in found:
            raise UsageError(f"no model {args.model!r}; there are: {', '.join(found) or 'none'}")
        digits = found[args.model]["takes"].get("digit", {}).get("one_of")
        if digits is None:
            raise UsageError(f"{args.model} cannot be told which digit to draw; a data set needs a model that can")
        about = {"model": args.model, "digest": found[args.model]["digest"], "seed": args.seed, **how(args)}
        made.begin(about, len(digits) * args.per_digit)
        try:
            await made.draw(lambda **which: client.generate(args.model, seed=args.seed, digit=digits,
                                                            priority="bulk", **which, **how(args)))  # fmt: skip
        except (KeyboardInterrupt, asyncio.CancelledError):
            print(f"interrupted: {made.kept()} images are kept in {made.parts}; the same command goes on",
                  file=sys.stderr)  # fmt: skip
            return INTERRUPTED
    made.finish()
    print(f"{args.output}: {made.count} images of {args.model}, seed {args.seed}", file=sys.stderr)
    return 0
