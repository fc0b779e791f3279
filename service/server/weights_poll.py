"""Polling the weights directory for changes."""

import time
from pathlib import Path

from models.directories import MANIFEST, list_indexes, list_weights


class WeightsPoll:
    """Notices changed weights under `root`, at most every `interval` seconds; never with an interval of 0."""

    def __init__(self, root: Path, interval: float) -> None:
        self.root, self.interval = root, interval
        self.loaded = self.last_seen = self._fingerprint()
        self.due = time.monotonic() + interval

    def mark_loaded(self) -> None:
        """The weights in their current state are loaded, or about to be."""
        self.loaded = self.last_seen = self._fingerprint()

    def changed(self) -> bool:
        """Whether a poll is due and the weights have changed. A change counts once two polls in a row see it."""
        if not self.interval or time.monotonic() < self.due:
            return False
        self.due = time.monotonic() + self.interval
        before, self.last_seen = self.last_seen, self._fingerprint()
        return self.last_seen == before and self.last_seen != self.loaded

    def _fingerprint(self) -> list[tuple[str, int, int]]:
        """Identifies a state of the weights by the files that are renamed into place last: manifests and indexes."""
        fingerprint = []
        for path in self._files() if self.interval else ():
            try:
                stat = path.stat()
            except OSError:  # it was removed just now
                continue
            fingerprint.append((str(path), stat.st_ino, stat.st_mtime_ns))
        return fingerprint

    def _files(self) -> list[Path]:
        return [*(self.root / name / MANIFEST for name in list_weights(self.root)), *list_indexes(self.root)]
