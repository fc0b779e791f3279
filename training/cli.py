"""The command line `python -m training`: the parser of all commands, and those that are a few lines."""

import argparse
import itertools
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import families, store
from models.directories import SPRITE
from training import classifier, data, docs, film, flags, nearest, report
from training.config import ConfigError
from training.errors import report_errors
from training.evaluation import evaluate
from training.export import UPLOADS, export
from training.fitting import add_fit_flags, run_fit, run_several
from training.interrupts import interrupt_exits
from training.lab import experiments
from training.lab import run as lab
from training.lab.experiment import Setting
from training.privacy import command as privacy
from training.samples import strip_png
from training.usefulness import command as usefulness
from training.usefulness.experiment import UPDATES

ALL = "all"
"""In place of families, all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    return report_errors(lambda: run_command(parse(sys.argv[1:] if arguments is None else arguments)))


def run_command(args: argparse.Namespace) -> int:
    """Run the command that `parse` found, and return its exit status."""
    return int(args.command(args) or 0)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all other errors of the command."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


class FormerFlag(argparse.Action):
    """The former name of a switch: prints one warning line to stderr, and turns on `replacement`."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, replacement: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.replacement = replacement

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        print(f"warning: {option} is deprecated; use {self.replacement}", file=sys.stderr)
        setattr(namespace, self.dest, True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command. Those of `fit` with several families are parsed for each, into `runs`.

    Raises ConfigError for a flag that one of the families does not have.
    """
    command, *rest = arguments or [""]
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    if command != "fit" or not (len(names) > 1 or names == [ALL]):
        return parser().parse_args(arguments)
    runs, lacking = [], dict[str, list[str]]()
    for name in families.names() if ALL in names else dict.fromkeys(names):
        families.get(name)  # raises UnknownFamily
        args, unknown = parser().parse_known_args([command, name, *rest[len(names) :]])
        runs.append(args)
        for word in unknown:
            lacking.setdefault(word, []).append(name)
    if lacking:
        word, without = next(iter(lacking.items()))
        having = [run.family for run in runs if run.family not in without]
        if having and word.startswith("-"):
            raise ConfigError(
                f"{word}: {', '.join(without)} cannot use it; name only families that can: {' '.join(having)}"
            )
        raise ConfigError(f"unrecognized arguments: {word}; see `drawbridge fit {names[0]} --help`")
    return argparse.Namespace(command=run_several, runs=runs)


def parser() -> Parser:
    """The parser of the whole command line; `fit` has one sub-command per family."""
    root = Parser(prog="python -m training", description="Train generative models, evaluate them and export them.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser(
        "fit",
        help="train families; run the same command again to resume",
        description=f"Train a family, or several at once (`fit FAMILY FAMILY --jobs 2`); `{ALL}` stands for all.",
    )
    fitting = fit.add_subparsers(required=True, metavar="FAMILY")
    for name in families.names():
        family = families.get(name)
        command = fitting.add_parser(name, help=family.about.title, description=family.about.formula)
        add_fit_flags(command, family)
        command.set_defaults(command=run_fit, family=name)
    add_export(commands.add_parser("export", help="write a run's weights for the service"))
    add_nearest(commands.add_parser("nearest", help="write the index by which a service shows nearest training images"))
    add_evaluate(commands.add_parser("evaluate", help="measure the quality of exported weights"))
    strip = commands.add_parser("strip", help="write a picture of a run's progress: the first row of every sample grid")
    strip.add_argument("run", type=Path, help="directory of the run")
    strip.add_argument("output", type=Path, help="PNG file to write")
    strip.add_argument("--every", type=int, default=1, help="use every N-th grid (default: 1)")
    strip.set_defaults(command=run_strip)
    add_film(commands.add_parser("film", help="write the film of a run beside weights, or a film as an animation"))
    caveat = commands.add_parser("caveat", help="write known defects of the samples into the manifest")
    caveat.add_argument("name", help="name of the weights")
    caveat.add_argument("text", help="the defects, as a person saw them in the samples")
    caveat.add_argument("--weights", type=Path, default=Path("weights"))
    caveat.set_defaults(command=lambda args: run_caveat(args.weights / args.name, args.text))
    pages = commands.add_parser("docs", help="write the pages that are generated from families and manifests")
    pages.set_defaults(command=lambda _: docs.command())
    reporting = commands.add_parser("report", help="write one HTML page that compares all weights")
    reporting.add_argument("output", type=Path, nargs="?", default=Path("report.html"), help="HTML file to write")
    reporting.add_argument("--weights", type=Path, default=Path("weights"))
    reporting.set_defaults(command=run_report)
    add_lab(commands.add_parser("lab", help="run the lecture's experiments, and write a page about them"))
    add_judge(commands.add_parser("judge", help="train the classifiers that measure samples of a data set"))
    add_usefulness(commands.add_parser("usefulness", help="test whether a model's draws help to train a classifier"))
    add_privacy(commands.add_parser("privacy", help="test whether a model's draws reveal its training images"))
    return root


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    command.add_argument("run", type=Path, help="directory of the run, or its name under runs/")
    command.add_argument("--name", help="name of the weights (default: the run's)")
    command.add_argument("--weights", type=Path, default=Path("weights"), help="directory of all weights")
    command.add_argument("--checkpoint", choices=("best", "latest"), default="latest")
    command.add_argument("--data-root", type=Path)
    command.add_argument(
        "--uploads",
        choices=UPLOADS,
        help="how uploads become images: normalized as MNIST was made, or cropped and scaled (default: digit for mnist "
        "and kmnist)",
    )
    command.add_argument("--attribution", default="", help="source and licence of the training images")
    add_sampling_flags(command, "for requests that name none")
    command.set_defaults(command=run_export)


def add_nearest(command: argparse.ArgumentParser) -> None:
    """Add the flags of `nearest`."""
    command.add_argument("model", metavar="MODEL", help="name of weights; all models of their data share the index")
    command.add_argument("--weights", type=Path, default=Path("weights"), help="directory of all weights")
    command.add_argument("--data", help="the data of the weights, where it is not at the path of their training")
    command.add_argument("--data-root", type=Path)
    command.add_argument(
        "--attribution", help="source and licence of the training images (default: what the manifest says)"
    )
    command.set_defaults(command=nearest.command)


def run_strip(args: argparse.Namespace) -> None:
    """Write the picture of a run's progress."""
    if args.every < 1:
        raise ConfigError("--every: use at least 1")
    grids = sorted((args.run / "grids").glob("*.png"))[args.every - 1 :: args.every]
    if not grids:
        raise ConfigError(f"{args.run} has fewer than {args.every} grids; train longer")
    store.write_atomic(args.output, strip_png(grids))
    print(f"{args.output}: {len(grids)} rows")


def add_film(command: argparse.ArgumentParser) -> None:
    """Add the flags of `film`."""
    command.add_argument("name", help="name of the weights")
    command.add_argument("--weights", type=Path, default=Path("weights"), help="directory of all weights")
    command.add_argument("--run", type=Path, help="write the film of this run, of the same recipe, beside the weights")
    command.add_argument("--animation", type=Path, metavar="FILE", help="write the film as an animated WebP")
    command.set_defaults(command=run_film)


def run_film(args: argparse.Namespace) -> None:
    """Write the film of a run beside weights, and a film as an animation."""
    directory = args.weights / args.name
    if args.run is None and args.animation is None:
        raise ConfigError("name a --run to film the weights, or an --animation to write")
    if args.run is not None:
        filmed = film.add(args.run, directory)
        print(f"{directory / SPRITE}: {len(filmed.frames)} frames, {len(filmed.image):,} bytes")
    if args.animation is not None:
        store.write_atomic(args.animation, film.animation(directory))
        print(args.animation)


def run_caveat(directory: Path, text: str) -> None:
    """Write `text` into the manifest of `directory`."""
    store.annotate(directory, caveat=text)
    print(f"{directory}: {text}")


def run_report(args: argparse.Namespace) -> None:
    """Write the page that compares all weights."""
    store.write_atomic(args.output, report.page(args.weights).encode())
    print(args.output)


def add_lab(command: argparse.ArgumentParser) -> None:
    """Add the flags of `lab`."""
    command.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(experiments.NAMES)} (default: all)")
    command.add_argument("--seeds", type=int, help="runs of each experiment (default: 10 of mode_collapse, else 1)")
    command.add_argument("--quick", action="store_true", help="small forms, under 20 seconds each, as in the tests")
    command.add_argument(
        "--data",
        type=lambda name: data.known_name(name) or name,
        choices=data.NAMES,
        default="mnist",
        help="the digits (default: mnist)",
    )
    command.add_argument("--data-root", type=Path)
    command.add_argument("--output", type=Path, help="directory of the page (default: docs/lab, with --quick runs/lab)")
    command.set_defaults(command=run_lab)


def run_lab(args: argparse.Namespace) -> int:
    """Run the named experiments, or all, and return the exit status."""
    setting = Setting(quick=args.quick, data=args.data, data_root=args.data_root)
    output = args.output or Path("runs/lab" if args.quick else "docs/lab")
    return lab.command(args.names, setting, args.seeds, output)


def add_sampling_flags(command: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--steps`, `--sampler` and `--guidance`; a family may accept only some of them."""
    command.add_argument("--steps", type=int, help=f"steps of the chain, {purpose}")
    command.add_argument(
        "--sampler", "--prior", dest="sampler", help=f"sampler of the chain, or prior of the codes, {purpose}"
    )
    command.add_argument("--guidance", type=float, help=f"guidance scale, {purpose}")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `steps`, `sampler` and `guidance` that were given."""
    return {key: value for key in ("steps", "sampler", "guidance") if (value := getattr(args, key)) is not None}


def run_export(args: argparse.Namespace) -> None:
    """Export a run to weights/NAME."""
    run = args.run if args.run.exists() or args.run.is_absolute() else Path("runs") / args.run
    directory = args.weights / (args.name or run.name)
    manifest = export(
        run, directory, args.checkpoint, sampling_options(args), args.data_root, args.uploads, args.attribution
    )
    print(f"{directory}: {manifest.family}, {manifest.parameters} parameters, SHA-256 {manifest.digest[:12]}")


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the flags of `evaluate`."""
    command.add_argument("names", nargs="*", metavar="NAME", help="weights to measure")
    command.add_argument("--all", action="store_true", help="measure all weights")
    command.add_argument("--weights", type=Path, default=Path("weights"))
    command.add_argument("--data", help="the data of the weights, where it is not at the path of their training")
    command.add_argument("--data-root", type=Path)
    command.add_argument(
        "-n", type=int, help="samples per seed (default: 10000, or as many as there are training images)"
    )
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    command.add_argument(
        "--judge",
        metavar="NAME",
        help="the judge to measure with: report, select, the directory of another data set's, or none (default: "
        "report; select with --steps, --sampler or --guidance; none if the data has no labels)",
    )
    add_judges_flag(command)
    command.add_argument("--against", metavar="URL", help="measure a running service instead of local weights")
    command.add_argument(
        "--cas",
        action="store_true",
        help="also measure the classification accuracy score: train a classifier on 60,000 samples, test it on real "
        "images",
    )
    command.add_argument("--taught", dest="cas", action=FormerFlag, replacement="--cas")
    command.add_argument(
        "--inception", type=Path, metavar="FILE", help="torch-fidelity's Inception weights, to measure FID, too"
    )
    command.add_argument(
        "--worst",
        type=Path,
        metavar="DIR",
        help="write a picture of the 30 samples for which the classifier is least confident",
    )
    command.add_argument(
        "--nearest", type=Path, metavar="DIR", help="write a picture of samples above their nearest training images"
    )
    command.add_argument(
        "--unlabelled", action="store_true", help="only samples without a label, of models that also take labels"
    )
    command.add_argument("--write", action="store_true", help="write the figures into the manifests")
    add_sampling_flags(command, "instead of the manifest's default")
    command.set_defaults(command=lambda args: evaluate.command(args, sampling_options(args)))


def add_judge(command: argparse.ArgumentParser) -> None:
    """Add the flags of `judge`."""
    command.add_argument("which", nargs="?", choices=classifier.NAMES, help="only this one (default: both)")
    command.add_argument("--data", default="mnist", help=f"{flags.HELP} (default: mnist)")
    command.add_argument("--data-root", type=Path)
    flags.add_data_flags(command)
    command.add_argument("--epochs", type=float, help="passes over the images (default: 12, more for small sets)")
    add_judges_flag(command)
    command.set_defaults(command=run_judge)


def run_judge(args: argparse.Namespace) -> None:
    """Train and write the classifiers of a data set."""
    if args.epochs is not None and not args.epochs > 0:
        raise ConfigError("--epochs: use more than 0")
    options = flags.data_options(args)
    with interrupt_exits():  # imports scikit-learn for `digits`
        train_data, test = (data.load(args.data, args.data_root, split, options) for split in ("train", "test"))
    names = (args.which,) if args.which else classifier.NAMES
    classifier.command(names, train_data, test, args.judges, args.epochs)


def add_usefulness(command: argparse.ArgumentParser) -> None:
    """Add the flags of `usefulness`."""
    add_draws_flags(command, usefulness.DRAWS)
    command.add_argument(
        "--per-label",
        type=int,
        nargs="+",
        default=usefulness.PER_LABEL,
        metavar="N",
        help="real images of each label, besides all (default: 10 100 1000)",
    )
    command.add_argument(
        "--updates", type=int, default=UPDATES, help=f"optimizer steps of every classifier (default: {UPDATES})"
    )
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add_output_flag(command, "usefulness")
    command.set_defaults(command=usefulness.command)


def add_privacy(command: argparse.ArgumentParser) -> None:
    """Add the flags of `privacy`."""
    add_draws_flags(command, privacy.DRAWS)
    add_judges_flag(command)
    add_output_flag(command, "privacy")
    command.set_defaults(command=privacy.command)


def add_draws_flags(command: argparse.ArgumentParser, count: int) -> None:
    """Add the flags that say which model's draws to use, and which data they are compared with."""
    command.add_argument("model", metavar="MODEL", help="name of the weights")
    command.add_argument("--weights", type=Path, default=Path("weights"))
    command.add_argument("--against", metavar="URL", help="draw from a running service instead of local weights")
    command.add_argument("--data", help="the data of the weights, where it is not at the path of their training")
    command.add_argument("--data-root", type=Path)
    command.add_argument("--draws", type=int, default=count, metavar="N", help=f"samples to use (default: {count})")


def add_output_flag(command: argparse.ArgumentParser, name: str) -> None:
    """Add `--output`, the directory of a model's JSON file and picture."""
    command.add_argument(
        "--output",
        type=Path,
        default=Path("runs") / name,
        metavar="DIR",
        help=f"directory for MODEL.json and MODEL.png (default: runs/{name})",
    )


def add_judges_flag(command: argparse.ArgumentParser) -> None:
    """Add `--judges`, which `judge` writes to and `evaluate` reads from."""
    command.add_argument(
        "--judges", type=Path, default=classifier.DIRECTORY, metavar="DIR", help="directory of judges (default: judges)"
    )
