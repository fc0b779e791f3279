"""Serves where the calls of Linux are missing: `python tests/service/server/single_process.py`.

It takes away what macOS or Windows lack, before the service is imported.
"""

import os
import socket
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
for module in ("fcntl", "resource", "termios"):
    sys.modules[module] = None  # importing it raises ImportError
del os.memfd_create, os.sched_getaffinity, os.sched_setaffinity, socket.send_fds, socket.recv_fds, socket.SOCK_SEQPACKET

from service.server import serve  # noqa: E402
from service.settings import read_settings  # noqa: E402
from service.telemetry import log  # noqa: E402

serve.sys = types.SimpleNamespace(platform="darwin")  # only this module may believe that, not the libraries
settings = read_settings()
log.configure(settings)
sys.exit(serve.serve(settings))
