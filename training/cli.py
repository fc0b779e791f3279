"""`python -m training`: from `fit` to `report`. Families are found; fields of their configs are flags."""

import argparse
import dataclasses
import errno
import signal
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from models import families, parallel, store
from models.base import Family
from models.families import UnknownFamily
from models.store import WeightsError
from training import classifier, data, docs, evaluate, report
from training.config import ConfigError, RunConfig
from training.data import DataError
from training.export import CONFIG, export
from training.lab import experiments
from training.lab import run as lab
from training.lab.experiment import Setting
from training.log import Log
from training.loop import DTYPES, Hardware, Trainer, train
from training.samples import strip_png

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written."""
EXIT_INTERRUPTED = 130
"""Exit status of a run that a signal ended, with its state saved."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a mistake of the caller's is one line and 2, the disk's one and 1."""
    try:
        args = parser().parse_args(arguments)
        return int(args.command(args) or 0)
    except (ConfigError, DataError, UnknownFamily, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        print(f"error: {error.strerror}: what was saved before is whole; make room, then run it again", file=sys.stderr)
        return 1


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other mistake is said."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def parser() -> Parser:
    """The whole command line; `fit` has one sub-command a family."""
    root = Parser(prog="python -m training", description="Fit generative models and export them.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="train a family; the same command again goes on where it stopped")
    fitting = fit.add_subparsers(required=True, metavar="FAMILY")
    for name in families.names():
        family = families.get(name)
        command = fitting.add_parser(name, help=family.about.title, description=family.about.formula)
        add_fit_flags(command, family)
        command.set_defaults(command=run_fit, family=name)
    add_export(commands.add_parser("export", help="write a run's weights for the service"))
    add_evaluate(commands.add_parser("evaluate", help="measure the quality of exported weights"))
    strip = commands.add_parser("strip", help="one picture of how a run's samples came about, a row a grid")
    strip.add_argument("run", type=Path, help="directory of the run")
    strip.add_argument("output", type=Path, help="PNG to write")
    strip.add_argument("--every", type=int, default=1, help="take every so many grids (default: 1)")
    strip.set_defaults(command=run_strip)
    caveat = commands.add_parser("caveat", help="say in the manifest what goes wrong in the draws")
    caveat.add_argument("name", help="name of the weights")
    caveat.add_argument("text", help="what someone saw who looked")
    caveat.add_argument("--weights", type=Path, default=Path("weights"))
    caveat.set_defaults(command=lambda args: run_caveat(args.weights / args.name, args.text))
    pages = commands.add_parser("docs", help="write the pages that are made from families and manifests")
    pages.set_defaults(command=lambda _: docs.command())
    reporting = commands.add_parser("report", help="write one page on all weights, side by side")
    reporting.add_argument("output", type=Path, nargs="?", default=Path("report.html"), help="HTML to write")
    reporting.add_argument("--weights", type=Path, default=Path("weights"))
    reporting.set_defaults(command=run_report)
    add_lab(commands.add_parser("lab", help="do the lecture's experiments, and write a page on them"))
    judging = commands.add_parser("judge", help="train the classifier that evaluation measures by")
    judging.add_argument("which", choices=classifier.NAMES)
    judging.add_argument("--data-root", type=Path)
    judging.set_defaults(command=lambda args: classifier.command(args.which, args.data_root))
    return root


def add_fit_flags(command: argparse.ArgumentParser, family: type[Family]) -> None:
    """What every run takes, then the fields of the family's Config and of its recipe."""
    command.add_argument("--run", type=Path, help="directory of the run (default: runs/FAMILY)")
    command.add_argument("--data", default="mnist", help=f"{', '.join(data.NAMES)}, or a folder of images")
    command.add_argument("--data-root", type=Path, help="where data sets lie (default: $DRAWBRIDGE_DATA, else data)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument(
        "--precision", choices=tuple(DTYPES), default="f32", help="of the nets' arithmetic, by autocast"
    )
    command.add_argument("--compile", action="store_true", help="torch.compile the nets")
    command.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    command.add_argument("--max-minutes", type=float, help="save and stop after so long; run again to go on")
    command.add_argument("--every", type=int, help="images between grids and measurements (default: one epoch)")
    model, recipe = command.add_argument_group("model"), command.add_argument_group("recipe")
    for field in dataclasses.fields(family.Config):
        _add_field(model, field, field.default)
    for field in dataclasses.fields(family.recipe):
        _add_field(recipe, field, getattr(family.recipe, field.name))


def run_fit(args: argparse.Namespace) -> int:
    """Train, or go on training; with the processes beside this one, if `torchrun` started several."""
    with parallel.process_group() as number:
        return fit(args, number)


def fit(args: argparse.Namespace, number: int) -> int:
    """Train as process `number` of this machine."""
    family = families.get(args.family)
    if args.compile and not family.compiles:
        raise ConfigError(f"{args.family} differentiates a gradient, which torch.compile cannot; leave out --compile")
    if args.threads:
        torch.set_num_threads(args.threads)
    dataset = data.load(args.data, args.data_root, "train")
    config = RunConfig(
        family=args.family,
        model={field.name: getattr(args, field.name) for field in dataclasses.fields(family.Config)},
        recipe={field.name: getattr(args, field.name) for field in dataclasses.fields(family.recipe)},
        data=args.data,
        seed=args.seed,
        precision=args.precision,
        revision=family.revision,
    )
    run = args.run or Path("runs") / args.family
    trainer = build_trainer(config, dataset, Hardware(_device(args.device, number), args.compile))
    every = args.every or len(dataset.images)
    if parallel.rank():  # the first keeps the time, and has the last word
        train(trainer, run, None, every, stop_reason(None))
        return 0
    config.save_or_verify(run / CONFIG)
    print((run / CONFIG).read_text(), end="")
    print(
        f"data: {dataset.name}, {len(dataset.images)} images; device: {trainer.hardware.device}; run: {run}", flush=True
    )
    with Log(run, trainer.total_images, interval=max(2048, trainer.recipe.batch)) as log:
        reason = train(trainer, run, log, every, stop_reason(args.max_minutes))
    if reason is None:
        print(
            f"done: {trainer.images_seen} images in {trainer.seconds / 60:.1f} min; next: python -m training export {run}"
        )
        return 0
    print(
        f"stopped ({reason}) at {trainer.images} of {trainer.total_images} images, all saved; run the same command to go on"
    )
    return 0 if reason == "time is up" else EXIT_INTERRUPTED


def build_trainer(config: RunConfig, dataset: data.Dataset, hardware: Hardware) -> Trainer:
    """The trainer. Raises ConfigError where the flags ask for nets or batches that cannot be."""
    if not 0 < config.recipe["batch"] <= len(dataset.images):
        raise ConfigError(f"--batch: {len(dataset.images)} images are there to take at least 1 and at most all from")
    if config.recipe["batch"] % parallel.size():
        raise ConfigError(f"--batch: {parallel.size()} processes share each batch; give a multiple of that")
    try:
        return Trainer.from_config(config, dataset, hardware)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"these settings make no {config.family}: {' '.join(str(error).split())}") from None


def stop_reason(max_minutes: float | None) -> Callable[[], str | None]:
    """A function that gives the reason to stop once a SIGINT or SIGTERM came or the time is up, until then None."""
    reasons: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: reasons.append(signal.Signals(received).name))
    end = time.monotonic() + max_minutes * 60 if max_minutes is not None else float("inf")
    return lambda: reasons[0] if reasons else "time is up" if time.monotonic() >= end else None


def add_export(command: argparse.ArgumentParser) -> None:
    """Flags of `export`."""
    command.add_argument("run", type=Path, help="directory of the run, or its name under runs/")
    command.add_argument("--name", help="name of the weights (default: the run's)")
    command.add_argument("--weights", type=Path, default=Path("weights"), help="directory that all weights lie in")
    command.add_argument("--checkpoint", choices=("best", "latest"), default="latest")
    command.add_argument("--data-root", type=Path)
    add_sampling_flags(command, "what a request gets that names none; likewise below")
    command.set_defaults(command=run_export)


def run_strip(args: argparse.Namespace) -> None:
    """Write the picture."""
    if args.every < 1:
        raise ConfigError("--every: 1 at least")
    grids = sorted((args.run / "grids").glob("*.png"))[args.every - 1 :: args.every]
    if not grids:
        raise ConfigError(f"{args.run} has no {args.every} grids yet; let it train")
    store.write_atomic(args.output, strip_png(grids))
    print(f"{args.output}: {len(grids)} rows")


def run_caveat(directory: Path, text: str) -> None:
    """Write it down."""
    store.annotate(directory, caveat=text)
    print(f"{directory}: {text}")


def run_report(args: argparse.Namespace) -> None:
    """Write the page."""
    store.write_atomic(args.output, report.page(args.weights).encode())
    print(args.output)


def add_lab(command: argparse.ArgumentParser) -> None:
    """Flags of `lab`."""
    command.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(experiments.NAMES)} (default: all)")
    command.add_argument("--seeds", type=int, help="how often each is done (default: mode_collapse ten times, or once)")
    command.add_argument("--quick", action="store_true", help="small forms, under 20 seconds each, as the tests run")
    command.add_argument("--data", choices=data.NAMES, default="mnist", help="the digits (default: mnist)")
    command.add_argument("--data-root", type=Path)
    command.add_argument("--output", type=Path, help="directory of the page (default: docs/lab, with --quick runs/lab)")
    command.set_defaults(command=run_lab)


def run_lab(args: argparse.Namespace) -> int:
    """Do them."""
    setting = Setting(quick=args.quick, data=args.data, data_root=args.data_root)
    output = args.output or Path("runs/lab" if args.quick else "docs/lab")
    return lab.command(args.names, setting, args.seeds, output)


def add_sampling_flags(command: argparse.ArgumentParser, help_: str) -> None:
    """How to draw, as far as the family leaves a choice."""
    command.add_argument("--steps", type=int, help=help_)
    command.add_argument(
        "--sampler", "--prior", dest="sampler", help="how the chain is walked; what codes are drawn from"
    )
    command.add_argument("--guidance", type=float)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was said of how to draw."""
    return {key: value for key in ("steps", "sampler", "guidance") if (value := getattr(args, key)) is not None}


def run_export(args: argparse.Namespace) -> None:
    """Write weights/NAME."""
    run = args.run if args.run.exists() or args.run.is_absolute() else Path("runs") / args.run
    directory = args.weights / (args.name or run.name)
    manifest = export(run, directory, args.checkpoint, sampling_options(args), args.data_root)
    print(f"{directory}: {manifest.family}, {manifest.parameters} parameters, SHA-256 {manifest.digest[:12]}")


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Flags of `evaluate`."""
    command.add_argument("names", nargs="*", metavar="NAME", help="weights to measure")
    command.add_argument("--all", action="store_true", help="measure all there are")
    command.add_argument("--weights", type=Path, default=Path("weights"))
    command.add_argument("--data-root", type=Path)
    command.add_argument("-n", type=int, default=10_000, help="draws a seed")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    command.add_argument(
        "--judge", choices=classifier.NAMES, help="(default: report; select where --steps or the like choose something)"
    )
    command.add_argument("--against", metavar="URL", help="judge a running service, not the weights that lie here")
    command.add_argument(
        "--taught", action="store_true", help="also train a classifier on 60,000 draws and test it on real images"
    )
    command.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="torch-fidelity's Inception weights, for the usual FID too",
    )
    command.add_argument(
        "--worst", type=Path, metavar="DIR", help="write a picture of the 30 draws the judge is least sure of"
    )
    command.add_argument("--write", action="store_true", help="put the figures into the manifests")
    add_sampling_flags(command, "in place of what the manifest gives a request that names none; likewise below")
    command.set_defaults(command=lambda args: evaluate.command(args, sampling_options(args)))


def _add_field(group: argparse._ArgumentGroup, field: dataclasses.Field[Any], default: Any) -> None:
    """One flag for one field of a dataclass, from its type, default and help."""
    flag = "--" + field.name.replace("_", "-")
    help_ = f"{field.metadata['help']} (default: {default})"
    if isinstance(default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help_)
    elif isinstance(default, tuple):
        kinds = typing.get_args(field.type)
        group.add_argument(flag, type=kinds[0], nargs=len(kinds), default=list(default), help=help_)
    elif typing.get_origin(field.type) is typing.Literal:
        group.add_argument(flag, choices=typing.get_args(field.type), default=default, help=help_)
    else:
        group.add_argument(flag, type=typing.cast(Callable[[str], Any], field.type), default=default, help=help_)


def _device(name: str, number: int) -> torch.device:
    """The device of process `number` of this machine; `auto` is a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if number >= torch.cuda.device_count():
        raise ConfigError(f"--nproc-per-node: torch sees {torch.cuda.device_count()} GPUs, and each process takes one")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
