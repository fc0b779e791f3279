"""The command line of `drawbridge dataset`."""

import argparse
import shlex
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from drawbridge.commands import sampling
from drawbridge.commands.parsing import Parser, UsageError, requires_extra
from drawbridge.dataset import conditions
from drawbridge.dataset.formats import FORMATS

IMAGES_PER_LABEL = 6000
MNIST_TEST_SHARE = Fraction(1, 6)
"""Images of MNIST's test split per training image."""
SHARD_SIZE = 10_000
MAX_TRIES = 100
REPRODUCING = (
    "steps", "sampler", "prior", "guidance", "per_label", "count", "like", "total", "test_share", "keep", "no_copies",
    "max_tries", "data", "shard_size",
)  # fmt: skip
"""The flags that decide what a data set holds, besides --seed and --format."""


class Flags:
    """The flags, checked, with the defaults that depend on other flags. Raises UsageError or DatasetError."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.given = args = _parser().parse_args(arguments)
        self.model: str = args.model
        self.seed: int = args.seed
        self.output: Path = args.output
        self.format_name: str = args.format or _default_format(args.output)
        self.format = FORMATS[self.format_name]
        self.test_share: Fraction = args.test_share
        if self.test_share is None:
            self.test_share = MNIST_TEST_SHARE if self.format_name == "idx" else Fraction(0)
        self.max_tries: int = args.max_tries or MAX_TRIES
        self._check()
        self.conditions = conditions.parse(args.keep) if args.keep is not None else []

    @property
    def is_file(self) -> bool:
        """Whether the output is a single file."""
        suffix = self.format.suffix
        return bool(suffix) and (not self.format.sharded or self.output.suffix.lower() == suffix)

    @property
    def shard_size(self) -> int | None:
        """Images per file; None if the output is a single file, or the format has no shards."""
        return None if self.is_file or not self.format.sharded else self.given.shard_size or SHARD_SIZE

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters."""
        return sampling.parameters(self.given)

    def command(self) -> str:
        """The command for the same data set, without the addresses of services and the place of the output."""
        words = ["drawbridge", "dataset", self.model]
        for name in REPRODUCING:
            value = getattr(self.given, name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None and one is not False:
                    words += [f"--{name.replace('_', '-')}", *([] if one is True else [str(one)])]
        return shlex.join([*words, "--seed", str(self.seed), "--format", self.format_name, "-o", "PATH"])

    def _check(self) -> None:
        """Raise UsageError for what is wrong whatever the model is, before any model is asked."""
        args = self.given
        for name in ("per_label", "total", "shard_size", "max_tries"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: must be at least 1")
        if args.per_label is not None and (args.like or args.total is not None):
            raise UsageError(
                "--per-label: cannot be combined with --like or --total; --total is the sum of all classes"
            )
        if self.format_name == "idx" and not self.test_share:
            raise UsageError("--test-share 0: idx needs a test split; torchvision reads no MNIST without one")
        if self.format.sharded and self.is_file and self.test_share:
            raise UsageError(
                f"{self.output}: one file holds one split; name a directory with --format {self.format_name}"
            )
        if args.shard_size is not None and self.shard_size is None:
            raise UsageError("--shard-size: is for directories, with --format parquet or webdataset")
        if args.max_tries is not None and not (args.keep or args.no_copies):
            raise UsageError("--max-tries: is for --keep and --no-copies")
        if args.data is not None and not args.no_copies:
            raise UsageError("--data: is for --no-copies")
        if args.data_root is not None and not (args.no_copies or args.like):
            raise UsageError("--data-root: is for --no-copies and --like")
        if self.output.exists():
            raise UsageError(f"{self.output} exists already; remove it, or name another output")
        if self.format_name == "parquet":
            with requires_extra("parquet", "dataset --format parquet"):
                import pyarrow.parquet  # noqa: F401


def _parser() -> Parser:
    parser = Parser(
        prog="drawbridge dataset",
        description="Draw a labelled data set. After an interruption, the same command continues.",
    )
    sampling.add_arguments(parser, several=True)
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    images = parser.add_argument_group("images", "Numbers are of the training split.")
    images.add_argument(
        "--per-label", "--per-digit", type=int, metavar="N", help=f"images of each class (default: {IMAGES_PER_LABEL})"
    )
    images.add_argument(
        "--count",
        action="append",
        default=[],
        metavar="LABEL=N",
        help="images of one class, by its name or number; may repeat. Other classes get none, unless --per-label, "
        "--total or --like is given",
    )
    images.add_argument(
        "--like",
        metavar="DATA",
        help="as many images of each class as the training split of DATA has, what `drawbridge fit --data` takes: an "
        "npz or parquet file, a folder of pictures or with idx files, or a name such as mnist",
    )
    images.add_argument(
        "--total", type=int, metavar="N", help="images of all classes together: in the proportions of --like, or equal"
    )
    images.add_argument(
        "--test-share",
        type=_share,
        metavar="S",
        help="add a test split with S times as many images of each class, as 0.2 or 1/6 (default: none; 1/6 for idx)",
    )
    filters = parser.add_argument_group("filters", "They need the extra `training`.")
    filters.add_argument(
        "--keep",
        metavar="CONDITIONS",
        help='keep only images that meet them, as "confidence>=0.9" or "confidence>=0.5 and margin>0.2", and draw '
        "others instead. The classifier `select` of the model's training data gives the confidence in an image's "
        "label, 0 to 1, and its margin over the next label",
    )
    filters.add_argument(
        "--no-copies",
        action="store_true",
        help="leave out images that are as near to a training image as the nearest 1 %% of the test images are",
    )
    filters.add_argument(
        "--max-tries",
        type=int,
        metavar="N",
        help=f"draws per kept image of a class above which the command gives up (default: {MAX_TRIES})",
    )
    filters.add_argument("--data", metavar="PATH", help="the training data, for --no-copies (default: the manifest's)")
    filters.add_argument("--data-root", type=Path, metavar="DIR", help="directory of data sets with names, as mnist")
    output = parser.add_argument_group(
        "output", "A data card, JSON and Markdown, is in the directory or beside the file."
    )
    output.add_argument("-o", "--output", type=Path, required=True, help="file or directory")
    output.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="(default: npz, parquet or webdataset if the output's name ends in .npz, .parquet or .tar; png if it has "
        "no suffix). npz is a file, the others are directories; parquet and webdataset are files with these suffixes",
    )
    output.add_argument(
        "--shard-size",
        type=int,
        metavar="N",
        help=f"images per file in a directory of parquet or webdataset (default: {SHARD_SIZE})",
    )
    return parser


def _share(text: str) -> Fraction:
    """A number from 0 to 1, as 0.2 or 1/6."""
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("use a number from 0 to 1, as 0.2 or 1/6")
    return share


def _default_format(output: Path) -> str:
    """The format that the output's name means. Raises UsageError for a suffix that means none."""
    by_suffix = {format.suffix: name for name, format in FORMATS.items() if format.suffix} | {"": "png"}
    suffix = output.suffix.lower()
    if suffix not in by_suffix:
        raise UsageError(
            f"{output}: name a file that ends in .npz, .parquet or .tar, or a directory with --format png, idx, "
            "parquet or webdataset"
        )
    return by_suffix[suffix]
