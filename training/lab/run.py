"""Does experiments, one process a core, and writes what they found: a JSON file and pictures each, and the page."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from models import store
from training import data
from training.config import ConfigError
from training.lab import experiments, page
from training.lab.experiment import Findings, Number, Setting

LONGEST = ("mode_collapse", "latent", "js_vs_w", "pca_to_ae", "diffusion_2d")
"""Begun first, so that no core is left with one of them at the end."""
Outcome = tuple[bytes, float]
"""Findings of a seed, pickled, and the seconds that they took."""


def command(names: Sequence[str], setting: Setting, seeds: int | None, output: Path) -> int:
    """Do the experiments called `names`, or all, and write `output`; 1 where a number does not come out.

    Raises ConfigError where there is no such experiment, and DataError where there are no digits.
    """
    for name in names:
        if name not in experiments.NAMES:
            raise ConfigError(f"no experiment is called {name}; there are {', '.join(experiments.NAMES)}")
    if seeds is not None and seeds < 1:
        raise ConfigError("--seeds: 1 at least")
    asked = tuple(dict.fromkeys(names)) or experiments.NAMES
    if any(experiments.get(name).digits for name in asked):
        data.load(setting.data, setting.data_root, "train")  # once, where it has to be fetched
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be made: {error.strerror}") from None
    print(f"experiments: {len(asked)}, on {os.cpu_count()} cores; written to {output} one by one", flush=True)
    begun, held = time.monotonic(), True
    for name, outcomes in finished(asked, setting, seeds):
        held &= write(name, outcomes, setting, output)
    store.write_atomic(output / page.INDEX, page.page(output).encode())
    store.write_atomic(output / page.SHEET, page.STYLE.encode())
    print(f"{output / page.INDEX}; {(time.monotonic() - begun) / 60:.1f} min")
    return 0 if held else 1


def finished(names: Sequence[str], setting: Setting, seeds: int | None) -> Iterator[tuple[str, list[Outcome]]]:
    """Each experiment with the outcomes of its seeds, as soon as there are all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: dict[Future[Outcome], tuple[str, int]] = {}
        left: dict[str, dict[int, Outcome]] = {name: {} for name in names}
        counts = {name: seeds or (1 if setting.quick else experiments.get(name).seeds) for name in names}
        order = (*(name for name in LONGEST if name in names), *(name for name in names if name not in LONGEST))
        for name in order:
            for seed in range(counts[name]):
                waiting[pool.submit(outcome, name, dataclasses.replace(setting, seed=seed))] = name, seed
        try:
            for future in as_completed(waiting):
                name, seed = waiting[future]
                left[name][seed] = future.result()
                if len(left[name]) == counts[name]:
                    yield name, [left[name][seed] for seed in range(counts[name])]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def outcome(name: str, setting: Setting) -> Outcome:
    """What one seed finds; done in a process of its own."""
    begun = time.monotonic()
    findings = experiments.get(name).measure(setting)
    # By value: tensors that are handed over by shared memory are lost with the process that made them.
    return pickle.dumps(findings), time.monotonic() - begun


def write(name: str, outcomes: Sequence[Outcome], setting: Setting, output: Path) -> bool:
    """Write the experiment's pictures and its JSON file, say what came out, and whether every number did."""
    experiment = experiments.get(name)
    found: list[Findings] = [pickle.loads(pickled) for pickled, _ in outcomes]
    numbers = merge(found)
    pictures = experiment.draw(found)
    for picture in pictures:
        store.write_atomic(output / picture.file, picture.data)
    told: dict[str, Any] = {
        "title": experiment.title,
        "says": experiment.claim,
        "shows": experiment.method,
        "quick": setting.quick,
        "data": setting.data if experiment.digits else None,
        "seeds": len(found),
        "seconds": round(sum(seconds for _, seconds in outcomes), 1),
        "numbers": numbers,
        "pictures": [{"file": picture.file, "caption": picture.caption} for picture in pictures],
    }
    store.write_atomic(output / f"{name}.json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    wrong = [number for number in numbers if not number["holds"]]
    for number in wrong:
        print(f"{name}: {number['what']}: {number['measured']:.5g}, and not {page.expected(number)}", flush=True)
    print(f"{name}: {len(numbers) - len(wrong)} of {len(numbers)} numbers as expected, {told['seconds']} s", flush=True)
    return not wrong


def merge(found: Sequence[Findings]) -> list[dict[str, Any]]:
    """The numbers' means over seeds, with deviations where there are several. One holds if it does with every seed."""
    return [_merged(numbers) for numbers in zip(*(one.numbers for one in found), strict=True)]


def _merged(numbers: Sequence[Number]) -> dict[str, Any]:
    measured = [number.measured for number in numbers]
    return {
        **dataclasses.asdict(numbers[0]),
        "measured": statistics.fmean(measured),
        "expected": statistics.fmean(number.expected for number in numbers),
        "deviation": statistics.stdev(measured) if len(measured) > 1 else None,
        "holds": all(number.holds for number in numbers),
    }
