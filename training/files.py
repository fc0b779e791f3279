"""Checks and messages for the files and directories that commands write."""

import errno
import os
import re
import sys
from pathlib import Path

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write that found no space."""


def require_writable(directory: Path) -> None:
    """Make `directory` if it does not exist. Raises OSError if this process may not create files in it.

    Commands call it before they compute for long.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def explain(error: OSError) -> str:
    """One line that says which file or directory `error` is about, what is wrong, and what to do."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if error.errno in DISK_FULL_ERRNOS:
        return f"{reason}: free some space and run the command again; files saved before are intact"
    if error.filename is not None:
        # `store.write_atomic` writes a hidden file first.
        path = re.sub(r"\.([^/\\]+)\.new$", r"\1", os.fsdecode(error.filename))
        reason = f"{path}: {reason}"
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return reason
    user = "" if sys.platform == "win32" else f" for user id {os.geteuid()}"
    return f"{reason}{user}; change its owner or permissions, or name another directory"
