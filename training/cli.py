"""The command line `python -m training`.

Families are found by their files; each field of a family's Config and recipe becomes a flag of `fit`.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import signal
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from models import devices, families, memory, parallel, store
from models.base import Family
from models.cores import available_cores
from models.families import UnknownFamily
from models.store import WeightsError
from training import classifier, cost, data, docs, files, flags, jobs, report
from training.augmentation import Augmentation
from training.checkpoint import NotFinite
from training.config import ConfigError, RunConfig, describe
from training.data import DataError
from training.evaluation import evaluate
from training.export import CONFIG, UPLOADS, export
from training.interrupts import EXIT_INTERRUPTED, interrupt_exits
from training.lab import experiments
from training.lab import run as lab
from training.lab.experiment import Setting
from training.log import LINES, Log
from training.loop import DTYPES, Hardware, Trainer, has_closed_form, train
from training.pool import ProcessKilled
from training.privacy import command as privacy
from training.progress import Progress
from training.samples import strip_png
from training.usefulness import command as usefulness
from training.usefulness.experiment import UPDATES

ALL = "all"
"""In place of families, all of them."""
TIME_LIMIT = "time limit"
"""The reason to stop of a run that used up `--max-minutes`."""
MODEL_PREFIX = "model_"
"""Begins the flag of a family's field whose own name is another flag's: `--model-held-out` of kernels."""
MIN_ESTIMATED = 2
"""Least number of images whose variance a closed-form family can estimate."""
MIN_BATCHES = 10
"""Least number of batches between validations, unless `--every` says it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    An invalid flag or configuration, or a file that cannot be read or written, prints one line and returns 2. A full
    disk, a loss that is not finite, or a process that was killed, prints one line and returns 1.
    """
    return report_errors(lambda: run_command(parse(sys.argv[1:] if arguments is None else arguments)))


def run_command(args: argparse.Namespace) -> int:
    """Run the command that `parse` found, and return its exit status."""
    return int(args.command(args) or 0)


def report_errors(run: Callable[[], int]) -> int:
    """The exit status of `run`; an error that `main` lists is printed in one line."""
    try:
        return run()
    except (ConfigError, DataError, UnknownFamily, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotFinite as error:
        print(
            f"error: {error}; checkpoints saved before are intact; start another run, with a lower --lr",
            file=sys.stderr,
        )
        return 1
    except ProcessKilled as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {files.explain(error)}", file=sys.stderr)
        return 1 if error.errno in files.DISK_FULL_ERRNOS else 2


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
    add_evaluate(commands.add_parser("evaluate", help="measure the quality of exported weights"))
    strip = commands.add_parser("strip", help="write a picture of a run's progress: the first row of every sample grid")
    strip.add_argument("run", type=Path, help="directory of the run")
    strip.add_argument("output", type=Path, help="PNG file to write")
    strip.add_argument("--every", type=int, default=1, help="use every N-th grid (default: 1)")
    strip.set_defaults(command=run_strip)
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


def add_fit_flags(command: argparse.ArgumentParser, family: type[Family]) -> None:
    """Add the flags of every run, then the fields of the family's Config and of its recipe.

    A family without gradient training uses none of its recipe, so that it has no flags for it.
    """
    command.add_argument("--run", type=Path, help="directory of the run (default: runs/FAMILY)")
    command.add_argument("--data", default="mnist", help=f"{flags.HELP} (default: mnist)")
    command.add_argument(
        "--data-root", type=Path, help="directory of the data sets (default: $DRAWBRIDGE_DATA, else data)"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--device", choices=devices.NAMES, default="auto", help="auto: a CUDA GPU, else the CPU; mps is unmeasured"
    )
    command.add_argument(
        "--precision", choices=tuple(DTYPES), default="f32", help="number format of the networks, by autocast"
    )
    command.add_argument("--compile", action="store_true", help="torch.compile the networks")
    command.add_argument(
        "--threads", type=int, help="CPU threads (default: one per core; with --jobs, each run's share of the cores)"
    )
    command.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="train N families at a time, each in a process of its own (default: one per core; on GPUs, all)",
    )
    command.add_argument("--max-minutes", type=float, help="save and stop after this time; run again to resume")
    command.add_argument(
        "--every", type=int, help="images between validations (default: one epoch, or ten batches if that is more)"
    )
    flags.add_data_flags(command)
    model = command.add_argument_group("model")
    for field in dataclasses.fields(family.Config):
        taken = f"--{_dashed(field.name)}" in command._option_string_actions
        _add_field(model, field, field.default, MODEL_PREFIX if taken else "", MODEL_PREFIX)
    if not family.recipe.epochs:
        return
    augmenting = command.add_argument_group("augmentation of the training images")
    augmenting.add_argument("--flip", action="store_true", help="mirror half of the images, left to right")
    augmenting.add_argument("--shift", type=int, default=0, help="move images by up to so many pixels (default: 0)")
    recipe = command.add_argument_group("recipe")
    for field in dataclasses.fields(family.recipe):
        _add_field(recipe, field, getattr(family.recipe, field.name))


def run_fit(args: argparse.Namespace) -> int:
    """Start or resume a run, as one of several processes if `torchrun` started this one."""
    if args.jobs is not None:
        return run_several(argparse.Namespace(runs=[args]))
    with parallel.process_group() as number:
        return fit(args, number)


def fit(args: argparse.Namespace, number: int) -> int:
    """Start or resume a run as process `number` of this machine, and return the exit status."""
    family = families.get(args.family)
    if args.compile and not family.compiles:
        raise ConfigError(f"{args.family} differentiates a gradient, which torch.compile cannot; omit --compile")
    if args.threads:
        torch.set_num_threads(args.threads)
    dataset = _training_images(args)
    config = _run_config(args, dataset)
    run = _run_directory(args)
    trainer = build_trainer(config, dataset, Hardware(_device(args.device, number), args.compile))
    every = args.every or max(len(dataset.images), MIN_BATCHES * trainer.recipe.batch)
    if parallel.rank():  # only the first process has a time limit, prints and writes
        train(trainer, run, None, every, stop_reason(trainer, None))
        return 0
    config.save_or_verify(run / CONFIG)
    print((run / CONFIG).read_text(), end="")
    lines = [
        *data.summary(dataset),
        cost.describe(trainer.family, dataset),
        f"device: {trainer.hardware.device}; run: {run}",
    ]
    print("\n".join(lines), flush=True)
    with Log(run, trainer.total_images, interval=max(2048, trainer.recipe.batch)) as log:
        reason = train(trainer, run, log, every, stop_reason(trainer, args.max_minutes))
    if reason is None:
        minutes = trainer.seconds / 60
        print(f"done: {trainer.images_seen} images in {minutes:.1f} min; next: python -m training export {run}")
        return 0
    progress = f"{trainer.images} of {trainer.total_images} images"
    print(f"stopped ({reason}) at {progress}; everything is saved; run the same command to resume")
    return 0 if reason == TIME_LIMIT else EXIT_INTERRUPTED


def run_several(args: argparse.Namespace) -> int:
    """Start or resume the runs `args.runs`, each in a process of its own, and return the exit status.

    They share all flags but those of their families. Where they cannot run all at once, the longest one starts first.
    """
    runs: list[argparse.Namespace] = args.runs
    first = runs[0]
    if torch.distributed.is_torchelastic_launched():
        raise ConfigError("torchrun trains one family; omit --jobs and all families but one, or torchrun")
    if first.run and len(runs) > 1:
        raise ConfigError("--run: each family has a run directory of its own, runs/FAMILY; omit the flag")
    if first.jobs is not None and first.jobs < 1:
        raise ConfigError("--jobs: use at least 1")
    device = _device(first.device, 0)
    dataset = _training_images(first)  # before the processes, so that only one of them downloads or decodes it
    at_once, threads = jobs.shares(len(runs), available_cores(), first.jobs, first.threads, on_cpu=device.type == "cpu")
    if at_once < len(runs):
        runs = sorted(runs, key=lambda run: _training_cost(run, dataset), reverse=True)
    gpus = devices.visible_gpus() if device.type == "cuda" else []
    print("\n".join(data.summary(dataset)))
    print(f"{len(runs)} runs on {device.type}, {at_once} at a time; CPU threads of each: {threads}", flush=True)
    queue = []
    for number, run in enumerate(runs):
        directory, images = _run_directory(run), math.ceil(getattr(run, "epochs", 0) * len(dataset.images))
        main = functools.partial(run_one, argparse.Namespace(**{**vars(run), "jobs": None, "threads": threads}))
        environment = {devices.VISIBLE_GPUS: gpus[number % len(gpus)]} if gpus else {}
        queue.append(jobs.Job(Progress(run.family, directory, directory / LINES, images), main, environment))
    return jobs.run_all(queue, at_once)


def run_one(args: argparse.Namespace) -> int:
    """Start or resume one of several runs, in its process."""
    memory.retain_freed_memory()
    return report_errors(lambda: run_fit(args))


def _training_cost(args: argparse.Namespace, dataset: data.Dataset) -> float:
    """Multiplications of the whole run; 0 for settings that are impossible, which the run reports by itself."""
    try:
        config = _run_config(args, dataset)
        trainer = build_trainer(config, dataset, Hardware(torch.device("cpu")))
    except ConfigError:
        return 0.0
    return cost.training_macs(trainer.family, dataset) * trainer.total_images


def _training_images(args: argparse.Namespace) -> data.Dataset:
    with interrupt_exits():  # imports scikit-learn for `digits`
        return data.load(args.data, args.data_root, "train", flags.data_options(args))


def _run_directory(args: argparse.Namespace) -> Path:
    return args.run or Path("runs") / args.family


def _run_config(args: argparse.Namespace, dataset: data.Dataset) -> RunConfig:
    """The configuration of a run with these flags and images. Raises ConfigError for values that are not allowed."""
    family = families.get(args.family)
    return RunConfig(
        family=args.family,
        model={field.name: getattr(args, MODEL_PREFIX + field.name) for field in dataclasses.fields(family.Config)},
        recipe={name: getattr(args, name, default) for name, default in dataclasses.asdict(family.recipe).items()},
        data=args.data,
        seed=args.seed,
        precision=args.precision,
        revision=family.revision,
        dataset=describe(dataset),
        reading=flags.data_options(args).to_json(),
        augmentation=_augmentation(args, dataset).to_json(),
    )


def build_trainer(config: RunConfig, dataset: data.Dataset, hardware: Hardware) -> Trainer:
    """The trainer of a run. Raises ConfigError if its settings, or so few images, are impossible."""
    family = families.get(config.family)
    if has_closed_form(family) and len(dataset.images) < MIN_ESTIMATED:
        raise ConfigError(f"{config.family} needs at least {MIN_ESTIMATED} training images; {dataset.name} has fewer")
    if not family.unconditional and not dataset.classes:
        raise ConfigError(
            f"{config.family} needs labels: put the pictures into one folder per class, or train another family, such "
            "as dcgan"
        )
    if family.recipe.epochs:
        batch = config.recipe["batch"]
        if batch < 1:
            raise ConfigError("--batch: use at least 1")
        if batch % parallel.size():
            raise ConfigError(f"--batch: {parallel.size()} processes share each batch; use a multiple of that")
    try:
        return Trainer.from_config(config, dataset, hardware)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot build {config.family} with these settings: {' '.join(str(error).split())}") from None


def _augmentation(args: argparse.Namespace, dataset: data.Dataset) -> Augmentation:
    """What `--flip` and `--shift` say; families without gradient training have no such flags."""
    augmentation = Augmentation(getattr(args, "flip", False), getattr(args, "shift", 0))
    largest = min(dataset.images.shape[2:]) // 2
    if not 0 <= augmentation.shift <= largest:
        raise ConfigError(f"--shift: use 0 to {largest}, half of the images' shorter side")
    return augmentation


def stop_reason(trainer: Trainer, max_minutes: float | None) -> Callable[[], str | None]:
    """A function that returns the reason to stop: the name of a signal or TIME_LIMIT; None before that.

    Installs handlers for SIGINT and SIGTERM. The first signal lets the loop save and stop; the second one, which may
    come during a long validation, raises KeyboardInterrupt. Training in closed form has nothing to save: it keeps
    Python's handlers, with which the first signal ends it.
    """
    reasons: list[str] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        if reasons:
            raise KeyboardInterrupt
        reasons.append(signal.Signals(number).name)

    if trainer.total_images:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
    end = time.monotonic() + max_minutes * 60 if max_minutes is not None else float("inf")
    return lambda: reasons[0] if reasons else TIME_LIMIT if time.monotonic() >= end else None


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


def run_strip(args: argparse.Namespace) -> None:
    """Write the picture of a run's progress."""
    if args.every < 1:
        raise ConfigError("--every: use at least 1")
    grids = sorted((args.run / "grids").glob("*.png"))[args.every - 1 :: args.every]
    if not grids:
        raise ConfigError(f"{args.run} has fewer than {args.every} grids; train longer")
    store.write_atomic(args.output, strip_png(grids))
    print(f"{args.output}: {len(grids)} rows")


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


def _add_field(
    group: argparse._ArgumentGroup,
    field: dataclasses.Field[Any],
    default: Any,
    flag_prefix: str = "",
    dest_prefix: str = "",
) -> None:
    """Add one flag for one field of a dataclass, from its type, default and help."""
    flag, dest = f"--{_dashed(flag_prefix + field.name)}", dest_prefix + field.name
    help_ = f"{field.metadata['help']} (default: {default})"
    if isinstance(default, bool):
        group.add_argument(flag, dest=dest, action=argparse.BooleanOptionalAction, default=default, help=help_)
    elif isinstance(default, tuple):
        types = typing.get_args(field.type)
        group.add_argument(flag, dest=dest, type=types[0], nargs=len(types), default=list(default), help=help_)
    elif typing.get_origin(field.type) is typing.Literal:
        group.add_argument(flag, dest=dest, choices=typing.get_args(field.type), default=default, help=help_)
    else:
        parse = typing.cast(Callable[[str], Any], field.type)
        group.add_argument(flag, dest=dest, type=parse, default=default, help=help_)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _device(name: str, number: int) -> torch.device:
    """The device of process `number` of this machine; each process has a GPU of its own."""
    try:
        device = devices.choose_device(name, number)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from None
    if device.type == "cuda":
        if number >= torch.cuda.device_count():
            raise ConfigError(f"--nproc-per-node: torch sees {torch.cuda.device_count()} GPUs; each process needs one")
        torch.cuda.set_device(device)
    return device
