"""The command `drawbridge`: finds the subcommand and runs it. Imports only what the subcommand needs."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from drawbridge import __version__
from drawbridge.commands.parsing import EXIT_INTERRUPTED, EXIT_USAGE, Parser, UsageError, requires_extra

SAMPLING = {
    "draw": "generate samples into a file or onto the terminal",
    "dataset": "generate a labelled data set; after an interruption, the same command continues",
}
SERVICE = {
    "serve": "serve the models over HTTP",
    "health": "check that the service is ready",
    "key": "make an API key",
}
TRAINING = {
    "fit": "train one or several models; after an interruption, the same command continues",
    "export": "write the weights of a run for the service",
    "nearest": "write the index by which a service shows the training images nearest to a draw",
    "evaluate": "measure the quality of weights or of a running service",
    "report": "write one page that compares all weights",
    "lab": "run the lecture's experiments and write a page about them",
    "docs": "write the pages that are generated from families and manifests",
    "strip": "make one image of how a run's samples changed during training",
    "film": "write the film of a run beside weights, or a film as an animation",
    "caveat": "note in the manifest what is wrong with a model's samples",
    "judge": "train a classifier that evaluation uses",
    "usefulness": "test whether a model's draws help to train a classifier",
    "privacy": "test whether a model's draws reveal its training images",
}
GROUPS = {
    "sampling (draw --url needs no extra, everything else the extra `serve`)": SAMPLING,
    "service (extra `serve`)": SERVICE,
    "training (extra `training`)": TRAINING,
}
COMMANDS = [name for commands in GROUPS.values() for name in commands]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 after an error, which is one line, and 130 after an interrupt."""
    return _exit_status(run, sys.argv[1:] if arguments is None else arguments)


def training_main() -> int:
    """Run one command of training: `python -m training`."""
    return _exit_status(run_training, sys.argv[1:])


def _exit_status(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


def run(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names with the others."""
    if not arguments:
        root_parser().print_help(sys.stderr)
        return EXIT_USAGE
    command, *rest = arguments
    if command in TRAINING:
        return run_training(arguments)
    if command not in COMMANDS:
        root_parser().parse_args([command])  # prints the help or the version and exits, or raises UsageError
    with _imports("serve", command):
        module = importlib.import_module(f"drawbridge.commands.{command}")
    try:
        return int(module.main(rest))
    except Exception as error:
        if isinstance(error, (*_client_errors(), ValueError, OSError)):
            raise UsageError(str(error)) from error
        raise


def _client_errors() -> tuple[type[Exception], ...]:
    """The client's errors, if the command uses the client: importing it takes as long as starting a supervisor."""
    client = sys.modules.get("drawbridge.client")
    return () if client is None else (client.ServiceError, client.Unreachable)


def run_training(arguments: Sequence[str]) -> int:
    """Run a command of training, which reports its errors itself."""
    with _imports("training", *arguments[:1]):
        from models import memory
        from training import cli
    memory.retain_freed_memory()
    return cli.main(arguments)


@contextmanager
def _imports(extra: str, *command: str) -> Iterator[None]:
    """In the block Ctrl-C ends the process with one line, and a missing extra raises UsageError."""
    from training.interrupts import interrupt_exits  # here, because importing this module imports no other package

    with requires_extra(extra, *command), interrupt_exits():
        yield


def root_parser() -> Parser:
    """The options of `drawbridge` itself, and the list of its commands."""
    lines = []
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:10} {summary}" for name, summary in commands.items())]
    parser = Parser(
        prog="drawbridge",
        usage="drawbridge [-h] [--version] COMMAND ...",
        description="Train small generative models, and serve samples from them.",
        epilog="\n".join(lines).lstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"drawbridge {__version__}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser
