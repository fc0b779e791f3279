"""Runs experiments, one process per core, and writes their results: a JSON file and pictures each, and the page."""

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
from training import data, files
from training.config import ConfigError
from training.interrupts import sigint_ignored
from training.lab import experiments, page
from training.lab.experiment import Findings, Number, Setting

LONGEST = ("mode_collapse", "latent", "js_vs_w", "pca_to_ae", "diffusion_2d")
"""Started first, so that no long one runs alone at the end."""
Outcome = tuple[bytes, float]
"""The pickled Findings of one seed, and the seconds of its run."""


def command(names: Sequence[str], setting: Setting, seeds: int | None, output: Path) -> int:
    """Run the experiments called `names`, or all, and write their results to `output`.

    Returns 1 if a number differs from its expectation. Raises ConfigError for an unknown experiment, DataError if the
    digits cannot be loaded, and OSError if `output` is not writable.
    """
    for name in names:
        if name not in experiments.NAMES:
            raise ConfigError(f"unknown experiment {name!r}; the experiments are {', '.join(experiments.NAMES)}")
    if seeds is not None and seeds < 1:
        raise ConfigError("--seeds: use at least 1")
    selected = tuple(dict.fromkeys(names)) or experiments.NAMES
    if any(experiments.get(name).digits for name in selected):
        data.load(setting.data, setting.data_root, "train")  # so that one process downloads it, not several at once
    files.require_writable(output)
    print(
        f"{len(selected)} experiments on {os.cpu_count()} cores; each is written to {output} when it ends", flush=True
    )
    started_at, passed = time.monotonic(), True
    for name, outcomes in completed(selected, setting, seeds):
        passed &= write(name, outcomes, setting, output)
    store.write_atomic(output / page.INDEX, page.page(output).encode())
    store.write_atomic(output / page.SHEET, page.STYLE.encode())
    print(f"{output / page.INDEX}; {(time.monotonic() - started_at) / 60:.1f} min")
    return 0 if passed else 1


def completed(names: Sequence[str], setting: Setting, seeds: int | None) -> Iterator[tuple[str, list[Outcome]]]:
    """Yield each experiment with the outcomes of all its seeds, as soon as it is complete."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: dict[Future[Outcome], tuple[str, int]] = {}
        outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in names}
        counts = {name: seeds or (1 if setting.quick else experiments.get(name).seeds) for name in names}
        order = (*(name for name in LONGEST if name in names), *(name for name in names if name not in LONGEST))
        try:
            with sigint_ignored():
                for name in order:
                    for seed in range(counts[name]):
                        pending[pool.submit(outcome, name, dataclasses.replace(setting, seed=seed))] = name, seed
            for future in as_completed(pending):
                name, seed = pending[future]
                outcomes[name][seed] = future.result()
                if len(outcomes[name]) == counts[name]:
                    yield name, [outcomes[name][seed] for seed in range(counts[name])]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def outcome(name: str, setting: Setting) -> Outcome:
    """Run one seed of an experiment, in a worker process."""
    started_at = time.monotonic()
    findings = experiments.get(name).measure(setting)
    # Pickled here, by value: tensors in shared memory would be lost when this process ends.
    return pickle.dumps(findings), time.monotonic() - started_at


def write(name: str, outcomes: Sequence[Outcome], setting: Setting, output: Path) -> bool:
    """Write an experiment's pictures and JSON file, print a summary, and return whether every number holds."""
    experiment = experiments.get(name)
    findings: list[Findings] = [pickle.loads(pickled) for pickled, _ in outcomes]
    numbers = merge(findings)
    pictures = experiment.draw(findings)
    for picture in pictures:
        store.write_atomic(output / picture.file, picture.data)
    results: dict[str, Any] = {
        "title": experiment.title,
        "claim": experiment.claim,
        "method": experiment.method,
        "quick": setting.quick,
        "data": setting.data if experiment.digits else None,
        "seeds": len(findings),
        "seconds": round(sum(seconds for _, seconds in outcomes), 1),
        "numbers": numbers,
        "pictures": [{"file": picture.file, "caption": picture.caption} for picture in pictures],
    }
    store.write_atomic(output / f"{name}.json", (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    wrong = [number for number in numbers if not number["holds"]]
    for number in wrong:
        print(f"{name}: {number['what']}: {number['measured']:.5g}, expected {page.expected(number)}", flush=True)
    print(
        f"{name}: {len(numbers) - len(wrong)} of {len(numbers)} numbers as expected, {results['seconds']} s", flush=True
    )
    return not wrong


def merge(findings: Sequence[Findings]) -> list[dict[str, Any]]:
    """Means of the numbers over seeds, with standard deviations. A mean holds if its number holds for every seed."""
    return [_merged(numbers) for numbers in zip(*(seed.numbers for seed in findings), strict=True)]


def _merged(numbers: Sequence[Number]) -> dict[str, Any]:
    measured = [number.measured for number in numbers]
    return {
        **dataclasses.asdict(numbers[0]),
        "measured": statistics.fmean(measured),
        "expected": statistics.fmean(number.expected for number in numbers),
        "deviation": statistics.stdev(measured) if len(measured) > 1 else None,
        "holds": all(number.holds for number in numbers),
    }
