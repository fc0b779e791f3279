"""A service process of a benchmark's own, and a cache before it, on free ports of the loopback."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
"""Where Debian puts it is not on everybody's path."""


@contextmanager
def serving(module: str = "service", **settings: object) -> Iterator[tuple[str, int]]:
    """The URL and process of `python -m service` with DRAWBRIDGE_* `settings`, which ends with the block.

    `module` is run in its place.

    Its log goes into a file: a pipe would have to be read by the process that measures.
    """
    environment = os.environ | {f"DRAWBRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=environment | {"DRAWBRIDGE_PORT": "0"},
            stderr=log.fileno(),
        )
        try:
            while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", Path(log.name).read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"the service did not start:\n{Path(log.name).read_text()}")
                time.sleep(0.1)
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def cached(*urls: str) -> Iterator[tuple[str, Path]]:
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
        command = [NGINX, "-e", errors, "-c", config, "-g", "daemon off; user root;"]
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
