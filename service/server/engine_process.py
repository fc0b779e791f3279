"""An engine process: one device, whose batches are shared by HTTP processes that the supervisor connects to it.

python -m service.server.engine_process CONTROL INDEX COUNT RUNNING
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from functools import partial

import torch
import uvicorn

from models import memory
from models.devices import choose_device
from service.engine.catalog import Catalog
from service.engine.host import Client, EngineHost
from service.engine.loader import ModelLoader
from service.engine.runner import Runner
from service.engine.running import RunningRequests
from service.engine.setup import create_engine, create_loop
from service.engine.watchdog import watch
from service.server.messages import MESSAGE, READY, pack
from service.settings import Settings
from service.telemetry import log as logs
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


async def run(
    settings: Settings, device: torch.device, control: socket.socket, running: RunningRequests, runner: type[Runner]
) -> None:
    """Run requests until the supervisor is gone."""
    host: EngineHost

    def serve(catalog: Catalog) -> None:
        host.serve(catalog)

    metrics, loop = Metrics(), asyncio.get_running_loop()
    engine, loader, scope = create_engine(settings, device, metrics, serve, runner=runner)
    host = EngineHost(engine, loader, scope, running)
    await create_loop(engine, device).start()
    gc.freeze()  # everything that exists now stays; the garbage collector need not visit it again
    await loader.start((settings.unconditional_model, settings.conditional_model))
    tasks = [
        loop.create_task(watch(engine, settings.watchdog_timeout, partial(metrics.sample_memory, device))),
        loop.create_task(host.send_statuses()),
        loop.create_task(_report_loaded(loader)),
    ]
    connections = set[asyncio.Task[object]]()
    ended = asyncio.Event()

    def on_message() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(control, MESSAGE.size, 1)
                if not message:
                    loop.remove_reader(control)
                    ended.set()
                    return
                for descriptor in descriptors:
                    connection = socket.socket(fileno=descriptor)
                    task = loop.create_task(loop.create_unix_connection(partial(Client, host), sock=connection))
                    connections.add(task)
                    task.add_done_callback(connections.discard)

    control.setblocking(False)
    loop.add_reader(control, on_message)
    control.send(pack(READY))
    await ended.wait()
    for task in tasks:
        task.cancel()


async def _report_loaded(loader: ModelLoader) -> None:
    """Log when the models of the start are loaded."""
    started_at = time.perf_counter()
    await loader.started.wait()
    loaded, seconds = len(loader.catalog.loaded), time.perf_counter() - started_at
    log.info("the engine has %d of %d models in memory, after %.2f s", loaded, len(loader.catalog.models), seconds)
    gc.collect()
    gc.freeze()  # likewise


def main(control: str, index: str, count: str, running: str, *, runner: type[Runner] = Runner) -> None:
    """Serve HTTP processes until the supervisor closes the descriptor `control`, as engine `index` of `count`.

    `running` is the descriptor of the memory for the running requests; `runner` runs batches on the device.
    """
    memory.retain_freed_memory()
    settings = Settings()
    queue_share = -(-settings.queue_images // int(count))
    settings = settings.model_copy(update={"queue_images": max(settings.max_images, queue_share)})
    logs.configure(settings, process=f"engine {index}")
    device = choose_device(settings.device, int(index))
    job = run(settings, device, socket.socket(fileno=int(control)), RunningRequests(int(running)), runner)
    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as event_loop:
        event_loop.run(job)
    os._exit(0)  # a model that is being loaded would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
