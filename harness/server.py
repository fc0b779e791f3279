"""A service as a process of its own, and a cache before it, on free ports of the loopback."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVICE = (sys.executable, "-m", "service")
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
"""Where Debian puts it is not on everybody's path."""


class Server:
    """A running service: where it is, its process, and what it has logged."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", "".join(self.lines))):
            if process.poll() is not None:
                raise ServiceDown("".join(self.lines))
            time.sleep(0.02)
        self.url = found[1]

    @property
    def lines(self) -> list[str]:
        """What it has logged."""
        return self.log.read_text().splitlines(keepends=True)

    @property
    def workers(self) -> list[int]:
        """Its worker processes."""
        return children(self.process.pid)


class ServiceDown(Exception):
    """It did not start; its log says why."""


def environment(**settings: object) -> dict[str, str]:
    """This process's environment, with these DRAWBRIDGE_* settings and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DRAWBRIDGE_")}
    return clean | {f"DRAWBRIDGE_{name.upper()}": str(value) for name, value in settings.items()}


@contextmanager
def run_server(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[Server]:
    """The service that `command` starts, which ends with the block.

    Its log goes into a file: a pipe would have to be read by the process that measures.
    """
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen([*command], cwd=ROOT, env=environment, stderr=log.fileno())
        try:
            yield Server(process, Path(log.name))
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=60)


@contextmanager
def run_service(command: Sequence[str] = SERVICE, **settings: object) -> Iterator[tuple[str, int]]:
    """The URL and process of `python -m service`, or another `command`, with `settings` of it, on a free port."""
    with run_server(command, environment(**{"port": 0} | settings)) as server:
        yield server.url, server.process.pid


def children(pid: int) -> list[int]:
    """The processes that a process of one thread has started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def memory_mb(front: int) -> float:
    """Megabytes of a process and its children, shared pages once."""
    found = 0
    for pid in (front, *children(front)):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                found += int(line.split()[1])
    return found / 1024


@contextmanager
def nginx_cache(*urls: str) -> Iterator[tuple[str, Path]]:
    """The URL of an nginx before the services at `urls`, with an empty cache, and the file of its log.

    Of deploy/nginx.conf it has its own port, replicas and directory for what is written; `user` is for root, whose
    workers would else be nobody, to whom that directory is closed.
    """
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = f"127.0.0.1:{listener.getsockname()[1]}"
    servers = "\n".join(f"server {url.removeprefix('http://')} fail_timeout=2s;" for url in urls)
    with tempfile.TemporaryDirectory() as folder:
        config, log, errors = (Path(folder) / name for name in ("nginx.conf", "log", "errors"))
        text = (ROOT / "deploy" / "nginx.conf").read_text().replace("/tmp/", f"{folder}/")
        text = text.replace("/dev/stdout", str(log)).replace("listen 8080;", f"listen {at};")
        config.write_text(text.replace("server replica:8000 fail_timeout=2s;", servers))
        command: list[str | Path] = [NGINX, "-e", errors, "-c", config, "-g", "daemon off; user root;"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not _listens(at):
                if process.poll() is not None:
                    raise SystemExit(f"nginx did not start:\n{errors.read_text()}")
                time.sleep(0.02)
            yield f"http://{at}", log
        finally:
            process.terminate()
            process.wait(timeout=30)


def _listens(at: str) -> bool:
    host, port = at.split(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0
