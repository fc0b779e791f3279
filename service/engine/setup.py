"""An engine on a device, and the loader of its models, from the settings."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from models.base import Family
from models.devices import arithmetic
from service import VERSION
from service.engine import catalog
from service.engine.catalog import Catalog, Model
from service.engine.engine import Engine, EngineObserver
from service.engine.loader import ModelLoader
from service.engine.loops import EngineLoop, EventLoopEngine, ThreadEngine
from service.engine.runner import Runner
from service.settings import Settings

MAX_BATCH_SIZE = {"cpu": 16, "cuda": 512, "mps": 128}
"""Default rows per device step. On a CPU a row costs less the more there are (`python -m benchmarks engine`), but a new
request waits for the running step. On a GPU they run in tiles (`slot_runner.TILE_ROWS`): more rows per step save work
of the host. The numbers of GPUs are unmeasured."""
MAX_BATCH_SIZE_SINGLE_STEP = {"cpu": 32, "cuda": 512, "mps": 128}
"""The same for models that sample in one step, whose steps are short."""


def create_engine(
    settings: Settings,
    device: torch.device,
    observer: EngineObserver,
    serve: Callable[[Catalog], None],
    only: str | None = None,
    runner: type[Runner] = Runner,
) -> tuple[Engine, ModelLoader, str]:
    """An engine without models, what loads them, and the scope of a seed's bytes.

    `serve` receives each new catalog. `only` names one model to load instead of all; `runner` runs batches.
    """
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    engine = Engine({}, queue_images=settings.queue_images, clock=time.perf_counter, observer=observer)

    def load(name: str) -> Model:
        return catalog.load(settings.weights / name, device, partial(batch_size, settings, device), runner)

    loader = ModelLoader(
        engine,
        partial(catalog.scan, root=settings.weights, only=only),
        load,
        serve,
        threads=settings.threads,
        max_loaded=settings.max_loaded_models,
    )
    kernels = arithmetic(device, settings.threads)
    scope = f"{VERSION} {device.type} torch {torch.__version__} numpy {np.__version__} {kernels}"
    return engine, loader, scope


def create_loop(engine: Engine, device: torch.device) -> EngineLoop:
    """The loop of an engine: the event loop on a CPU, a thread on another device."""
    return EventLoopEngine(engine) if device.type == "cpu" else ThreadEngine(engine)


def batch_size(settings: Settings, device: torch.device, family: Family) -> int:
    """Rows per device step of `family`."""
    defaults = MAX_BATCH_SIZE_SINGLE_STEP if family.steps.maximum == 1 else MAX_BATCH_SIZE
    return settings.max_batch_size or defaults[device.type]
