"""Independent tasks, one process per core and one thread each, so that results do not depend on the number of cores."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from models.cores import available_cores
from training.interrupts import sigint_blocked

Key = TypeVar("Key")
Result = TypeVar("Result")


class ProcessKilled(Exception):
    """A process ended in the middle of a task; the message says what to do."""


def completed(
    function: Callable[..., Result],
    tasks: Mapping[Key, tuple[Any, ...]],
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[tuple[Key, Result]]:
    """Call `function` with the arguments of every task, and yield each key with its result as soon as there is one.

    Tasks start in their order. `initializer(*initargs)` runs once in each process. Arguments and results are pickled;
    tensors would go through shared memory, which containers limit, and which ends with its process, so pass arrays. An
    exception, also KeyboardInterrupt, ends all processes and is raised here. Raises ProcessKilled if a process ends
    otherwise.
    """
    context = multiprocessing.get_context("spawn")
    processes = max(1, min(available_cores(), len(tasks)))
    with ProcessPoolExecutor(processes, context, _initialize, (initializer, initargs)) as pool:
        try:
            with sigint_blocked():
                pending: dict[Future[Result], Key] = {
                    pool.submit(function, *arguments): key for key, arguments in tasks.items()
                }
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ProcessKilled(
                    "a process was killed, most often for lack of memory; run the command again"
                ) from None
            raise


def _initialize(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if initializer is not None:
        initializer(*initargs)
