"""Starts services, and an nginx cache in front of them, as processes on free loopback ports."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVICE = (sys.executable, "-m", "service")
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
"""The nginx binary, or None. Debian installs it into /usr/sbin, which is not on every PATH."""


class Server:
    """A running service process: its URL, its log and its workers."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log
        running = self._wait_for(r"running on (?P<url>http://[\d.]+:\d+) \((?P<count>\d+) ")
        self.url, self.count = running["url"], int(running["count"])

    def wait_until_loaded(self) -> None:
        """Wait until the models of every worker are in memory."""
        self._wait_for(rf"(?s)(models in memory: .*){{{self.count}}}")

    def _wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the log matches a pattern. Raises ServiceDown if the service ends before."""
        while not (match := re.search(pattern, "".join(self.lines))):
            if self.process.poll() is not None:
                raise ServiceDown("".join(self.lines))
            time.sleep(0.02)
        return match

    @property
    def lines(self) -> list[str]:
        """The log lines so far."""
        return self.log.read_text().splitlines(keepends=True)

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return children(self.process.pid)


class ServiceDown(Exception):
    """The service ended before it listened. The message is its log."""


def environment(**settings: object) -> dict[str, str]:
    """Return this process's environment with `settings` as its only DRAWBRIDGE_* variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRAWBRIDGE_")}
    return inherited | {f"DRAWBRIDGE_{name.upper()}": str(value) for name, value in settings.items()}


@contextmanager
def run_server(
    command: Sequence[str], environment: dict[str, str] | None = None, cwd: Path = ROOT, *, loaded: bool = True
) -> Iterator[Server]:
    """Run the service that `command` starts until the block ends. The block begins once all models are loaded.

    Without `loaded` the block begins as soon as the service takes connections. The log goes into a file: a pipe would
    cost the measuring process time to read. The service has a session of its own, so that Ctrl-C reaches this process
    alone, which then ends the service.
    """
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen([*command], cwd=cwd, env=environment, stderr=log.fileno(), start_new_session=True)
        try:
            server = Server(process, Path(log.name))
            if loaded:
                server.wait_until_loaded()
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=60)


@contextmanager
def run_service(command: Sequence[str] = SERVICE, **settings: object) -> Iterator[tuple[str, int]]:
    """Run the service on a free port with `settings` until the block ends. Yields its URL and process id."""
    with run_server(command, environment(**{"port": 0} | settings)) as server:
        yield server.url, server.process.pid


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a single-threaded process has started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def descriptors(pid: int) -> int:
    """Return the number of open file descriptors of a process."""
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def memory_mb(pid: int) -> float:
    """Return the megabytes that a process and its children use. Shared pages count once."""
    kilobytes = 0
    for process in (pid, *children(pid)):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that processes, and children that they have waited for, have used."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):  # it has ended, and counts with its parent
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def nginx_cache(*urls: str) -> Iterator[tuple[str, Path]]:
    """Run nginx with an empty cache in front of the services at `urls`. Yields its URL and its log file.

    The configuration is deploy/nginx.conf with another port, other replicas and another directory for its files. If
    root starts nginx, `user root` lets its workers enter that directory; their default account could not.
    """
    assert NGINX is not None
    address = f"127.0.0.1:{free_port()}"
    servers = "\n".join(f"server {url.removeprefix('http://')} fail_timeout=2s;" for url in urls)
    with tempfile.TemporaryDirectory() as folder:
        config, log, errors = (Path(folder) / name for name in ("nginx.conf", "log", "errors"))
        text = (ROOT / "deploy" / "nginx.conf").read_text().replace("/tmp/", f"{folder}/")
        text = text.replace("/dev/stdout", str(log)).replace("listen 8080;", f"listen {address};")
        config.write_text(text.replace("server replica:8000 fail_timeout=2s;", servers))
        command: list[str | Path] = [NGINX, "-e", errors, "-c", config, "-g", "daemon off; user root;"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not _accepts_connections(address):
                if process.poll() is not None:
                    raise SystemExit(f"nginx did not start:\n{errors.read_text()}")
                time.sleep(0.02)
            yield f"http://{address}", log
        finally:
            process.terminate()
            process.wait(timeout=30)


def _accepts_connections(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0
