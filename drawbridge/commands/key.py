"""`drawbridge key`: API keys."""

import sys
from collections.abc import Sequence
from pathlib import Path

from drawbridge.commands.parsing import Parser
from service.auth import keys


def main(arguments: Sequence[str]) -> int:
    """Make a key, add its hash to the file, and print it."""
    parser = Parser(
        prog="drawbridge key",
        description="Make an API key, print it once, and add its hash to the file that DRAWBRIDGE_KEYS names.",
    )
    parser.add_argument("name", help="name of the key's owner")
    parser.add_argument("--file", type=Path, default=Path("keys.toml"), help="(default: keys.toml)")
    parser.add_argument("--requests", help="limit of requests, such as 50/second (default: none, likewise below)")
    parser.add_argument("--images", help="limit of images, such as 100000/day")
    parser.add_argument("--concurrent", type=int, help="limit of requests at the same time")
    args = parser.parse_args(arguments)
    names = ("requests", "images", "concurrent")
    limits = {name: value for name in names if (value := getattr(args, name)) is not None}
    secret = keys.add(args.file, args.name, limits)
    print(secret)
    print(f"{args.file} has the hash of this key for {args.name}; the key itself is stored nowhere", file=sys.stderr)
    return 0
