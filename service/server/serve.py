"""Start the service: a supervisor with workers, or one process where the system does not support that."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from glob import glob
from pathlib import Path

from models.cores import available_cores
from models.directories import list_weights
from service.api.startup import StartupProbes
from service.server.listen import create_listeners
from service.server.messages import ADMIN_CONNECTION, CONNECTION
from service.server.weights_poll import WeightsPoll
from service.settings import Settings

log = logging.getLogger(__name__)

MAX_CPU_WORKERS = 8
"""Default limit of workers on a CPU, each of which holds all weights."""
MAX_HTTP_PROCESSES = 8
"""Default limit of HTTP processes of a GPU's engine. Unmeasured."""
TCP_INFO_BYTES = 136
"""Size of `struct tcp_info` up to tcpi_bytes_received."""


def ignore_listener(listener: socket.socket) -> None:
    """Do nothing with the main listening socket."""


def serve(
    settings: Settings,
    command: Sequence[str] | None = None,
    on_listen: Callable[[socket.socket], None] = ignore_listener,
    engine_command: Sequence[str] | None = None,
) -> int:
    """Serve until a signal and return the exit status.

    `command` starts a worker, and `engine_command` an engine process, in place of the defaults. `on_listen` gets the
    main listening socket before the first worker starts.

    Raises ValueError if the device, the weights or a default model do not exist.
    """
    check_weights(settings)
    missing = missing_support()
    if missing is not None and settings.http_processes:
        raise ValueError(f"DRAWBRIDGE_HTTP_PROCESSES is {settings.http_processes}, but {missing}; leave it unset")
    try:
        main, admin = create_listeners(settings)
    except OSError as error:
        log.error("%s", error)
        return 1
    on_listen(main)
    if missing is not None:
        from service.server import single_process

        log.warning("serving from one process: %s; if the process dies, its requests are lost", missing)
        return single_process.serve(settings, main, admin)
    return _supervise(settings, main, admin, command, engine_command)


def check_weights(settings: Settings) -> None:
    """Raises ValueError if there are no weights, or not those of a default model that the settings name."""
    names = list_weights(settings.weights)
    if not names:
        raise ValueError(f"no weights in {settings.weights}; export some there, or set DRAWBRIDGE_WEIGHTS")
    for field in ("unconditional_model", "conditional_model"):
        name = getattr(settings, field)
        if field in settings.model_fields_set and name not in names:
            available = ", ".join(names)
            missing = f"DRAWBRIDGE_{field.upper()}: no {name!r} in {settings.weights}"
            raise ValueError(f"{missing}; available models: {available}")


def missing_support() -> str | None:
    """What the system lacks for a supervisor, or None if it lacks nothing."""
    if sys.platform != "linux":
        return f"{sys.platform} has no connection hand-over between processes"
    try:
        os.close(os.memfd_create("journal"))
        for end in socket.socketpair(type=socket.SOCK_SEQPACKET):
            end.close()
        with socket.socket() as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except (AttributeError, OSError) as error:
        return f"this system does not allow connection hand-over between processes ({error})"
    return None if len(info) == TCP_INFO_BYTES else "this kernel does not count a connection's bytes"


def _supervise(
    settings: Settings,
    main: socket.socket,
    admin: socket.socket | None,
    command: Sequence[str] | None,
    engine_command: Sequence[str] | None,
) -> int:
    from service.server.supervisor import Supervisor, raise_descriptor_limit
    from service.server.worker_process import ENGINE_COMMAND, WORKER_COMMAND, WorkerMetrics

    raise_descriptor_limit()
    listeners = {CONNECTION: main} | ({} if admin is None else {ADMIN_CONNECTION: admin})
    count, engines = process_counts(settings)
    os.environ["DRAWBRIDGE_HTTP_PROCESSES"] = str(count if engines else 0)  # workers inherit it
    with tempfile.TemporaryDirectory(prefix="drawbridge-") as shared:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        metrics = WorkerMetrics()
        needs_key = settings.keys is not None and admin is None
        probes = StartupProbes(partial(list_weights, settings.weights), None if needs_key else metrics.render)
        supervisor = Supervisor(
            listeners,
            count,
            Path(shared),
            drain_timeout=settings.drain_timeout,
            weights=WeightsPoll(settings.weights, settings.weights_poll_interval),
            metrics=metrics,
            probes=(CONNECTION if admin is None else ADMIN_CONNECTION, probes.respond),
            command=command or WORKER_COMMAND,
            engines=engines,
            engine_command=engine_command or ENGINE_COMMAND,
        )
        try:
            return supervisor.run()
        finally:
            supervisor.stop()


def process_counts(settings: Settings) -> tuple[int, int]:
    """The number of workers, and of engine processes: one per GPU, or 0 if each worker has an engine.

    Raises ValueError if the GPU does not exist.
    """
    gpus = gpu_count(settings)
    http_processes = settings.http_processes
    if http_processes is None and settings.workers is None and gpus:
        http_processes = min(MAX_HTTP_PROCESSES, available_cores() // 2)
    if http_processes:
        return http_processes, gpus or 1
    return settings.workers or default_worker_count(settings, gpus), 0


def default_worker_count(settings: Settings, gpus: int) -> int:
    """One worker per GPU, or one per `threads` CPU cores."""
    return gpus or max(1, min(MAX_CPU_WORKERS, available_cores() // settings.threads))


def gpu_count(settings: Settings) -> int:
    """The GPUs that serve; 0 if the CPU does. Raises ValueError if the settings' device does not exist."""
    gpu_files = any(map(glob, ("/dev/nvidia[0-9]*", "/dev/dxg")))
    if settings.device == "cuda" or (settings.device == "auto" and gpu_files):
        import torch  # only if there may be a GPU: it takes seconds

        from models.devices import choose_device

        if choose_device(settings.device).type == "cuda":
            return torch.cuda.device_count()
    return 0
