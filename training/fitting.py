"""The command `fit`: starts or resumes one run, or several at once.

Each field of a family's Config and recipe is a flag.
"""

import argparse
import dataclasses
import functools
import math
import signal
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from models import devices, families, locks, memory, parallel, store
from models.base import Family
from models.cores import available_cores
from training import cost, data, flags, jobs
from training.augmentation import Augmentation
from training.config import CONFIG, ConfigError, RunConfig, describe
from training.errors import report_errors
from training.interrupts import EXIT_INTERRUPTED, interrupt_exits, restored_handlers
from training.log import LINES, Log
from training.loop import DTYPES, Hardware, Trainer, has_closed_form, train
from training.progress import Progress
from training.recording import recorder
from training.start import Start
from training.start import describe as describe_start

TIME_LIMIT = "time limit"
"""The reason to stop of a run that used up `--max-minutes`."""
MODEL_PREFIX = "model_"
"""Begins the flag of a family's field whose own name is another flag's: `--model-held-out` of kernels."""
MIN_ESTIMATED = 2
"""Least number of images whose variance a closed-form family can estimate."""
MIN_BATCHES = 10
"""Least number of batches between validations, unless `--every` says it."""


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
    recipe.add_argument(
        "--start",
        type=Path,
        nargs="+",
        metavar="DIRECTORY",
        help="weights whose tensors of the same names are the initial ones; later ones replace those of earlier ones",
    )
    for field in dataclasses.fields(family.recipe):
        _add_field(recipe, field, getattr(family.recipe, field.name))


def run_fit(args: argparse.Namespace) -> int:
    """Start or resume a run, as one of several processes if `torchrun` started this one."""
    if args.jobs is not None:
        return run_several(argparse.Namespace(runs=[args]))
    with parallel.process_group() as number, restored_handlers(signal.SIGINT, signal.SIGTERM):
        return fit(args, number)


def fit(args: argparse.Namespace, number: int) -> int:
    """Start or resume a run as process `number` of this machine, and return the exit status."""
    if args.threads:
        torch.set_num_threads(args.threads)
    dataset = _training_images(args)
    starts = _starts(args)
    config = _run_config(args, dataset, starts)
    run = _run_directory(args)
    device = _device(args.device, number)
    trainer = build_trainer(config, dataset, Hardware(device, recorder(device)), starts)
    every = args.every or max(len(dataset.images), MIN_BATCHES * trainer.recipe.batch)
    if parallel.rank():  # only the first process has a time limit, prints and writes
        train(trainer, run, None, every, stop_reason(trainer, None))
        return 0
    with locks.locked(run):
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
        config = _run_config(args, dataset, ())
        trainer = build_trainer(config, dataset, Hardware(torch.device("cpu")))
    except ConfigError:
        return 0.0
    return cost.training_macs(trainer.family, dataset) * trainer.total_images


def _training_images(args: argparse.Namespace) -> data.Dataset:
    with interrupt_exits():  # imports scikit-learn for `digits`
        return data.load(args.data, args.data_root, "train", flags.data_options(args))


def _run_directory(args: argparse.Namespace) -> Path:
    return args.run or Path("runs") / args.family


def _starts(args: argparse.Namespace) -> list[Start]:
    """The weights that `--start` names. Raises WeightsError if they cannot be used."""
    return [store.load(path) for path in getattr(args, "start", None) or ()]


def _run_config(args: argparse.Namespace, dataset: data.Dataset, starts: Sequence[Start]) -> RunConfig:
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
        start=describe_start(starts) if starts else {},
    )


def build_trainer(
    config: RunConfig, dataset: data.Dataset, hardware: Hardware, starts: Sequence[Start] = ()
) -> Trainer:
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
        return Trainer.from_config(config, dataset, hardware, starts)
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
