"""The flags that say how the images of a data set are read, which several commands share."""

import argparse

from pictures.fitting import RESIZES
from training.data import NAMES, Options, parse_size

HELP = f"{', '.join(NAMES)}; or a folder of pictures, an npz or a parquet file"


def add_data_flags(command: argparse.ArgumentParser) -> None:
    """Add `--size`, `--channels`, `--resize`, `--background`, `--held-out` and `--skip-unreadable`."""
    reading = command.add_argument_group("images")
    reading.add_argument(
        "--size", type=parse_size, metavar="N", help="height and width, or HEIGHTxWIDTH (default: the images' own)"
    )
    reading.add_argument(
        "--channels", type=int, help="1 (grey) or 3 (colour) (default: 1 if all pictures are grey, else 3)"
    )
    reading.add_argument(
        "--resize",
        choices=RESIZES,
        default="crop",
        help="how images of other proportions come to the size: cut off the borders, add background, or distort "
        "(default: crop)",
    )
    reading.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="a name or #rrggbb, behind transparent pixels and around padded images (default: white)",
    )
    reading.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="share of the images for testing, where the data has no test split (default: 0.1 of a folder)",
    )
    reading.add_argument("--skip-unreadable", action="store_true", help="leave out pictures that cannot be read")


def data_options(args: argparse.Namespace) -> Options:
    """The options that the flags of `add_data_flags` gave. Raises DataError for values that are not allowed."""
    return Options(args.size, args.channels, args.resize, args.background, args.held_out, args.skip_unreadable)
