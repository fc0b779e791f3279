"""Zip and npz archives, written one image at a time."""

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codecs.folders import folder_names
from service.codecs.png import Images
from service.codecs.streams import Contents


class ZipEncoder:
    """A zip of PNGs, each named by its index, in a folder for each label; those without a label are in no folder."""

    def __init__(self, contents: Contents) -> None:
        self.buffer, self.contents, self.index = _SeekableBuffer(), contents, 0
        self.folders = folder_names(contents.classes)
        self.archive = zipfile.ZipFile(self.buffer, "w")  # type: ignore[call-overload]  # it only writes

    def begin(self) -> bytes:
        return b""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        folder = f"{self.folders[label]}/" if label >= 0 else ""
        self.archive.writestr(_entry(f"{folder}{self.index:05d}.png"), self.contents.png(self.index, image, label))
        self.index += 1
        return self.buffer.take()

    def end(self) -> bytes:
        self.archive.close()
        return self.buffer.take()


class NpzEncoder:
    """`images` uint8 [n, H, W] or [n, H, W, 3], `labels` int64 [n], and what there is of these two:

    `classes`, the names of the labels by number, and `errors` float64 [n].
    """

    def __init__(self, contents: Contents) -> None:
        self.buffer, self.contents = _Buffer(), contents
        self.labels: list[int] = []
        self.errors: list[float] = []
        self.archive = zipfile.ZipFile(self.buffer, "w")  # type: ignore[call-overload]

    def begin(self) -> bytes:
        self.member = self.archive.open(_entry("images.npy"), "w")
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.contents.count, *self.contents.shape)}
        np.lib.format.write_array_header_1_0(self.member, header)
        return self.buffer.take()

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        self.member.write(image.tobytes())
        self.labels.append(label)
        self.errors += () if error is None else (error,)
        return self.buffer.take()

    def end(self) -> bytes:
        self.member.close()
        arrays: dict[str, NDArray[Any]] = {
            "labels": np.array(self.labels, np.int64),
            "classes": np.array(self.contents.classes),
            "errors": np.array(self.errors),
        }
        for name, array in arrays.items():
            if len(array):
                with self.archive.open(_entry(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, array)
        self.archive.close()
        return self.buffer.take()


class _Buffer:
    """A write-only file that hands out what was written since the last `take`."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def write(self, data: Any) -> int:
        return self.buffer.write(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data = self.buffer.getvalue()
        self.buffer.seek(0)
        self.buffer.truncate()
        return data


class _SeekableBuffer(_Buffer):
    """A buffer that can seek back as far as the last `take`.

    `zipfile` then writes a member's size and checksum before its data. Otherwise it writes them behind the data, where
    readers that stream an archive cannot use them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def tell(self) -> int:
        return self.taken + self.buffer.tell()

    def seek(self, position: int) -> int:
        return self.taken + self.buffer.seek(position - self.taken)

    def take(self) -> bytes:
        data = super().take()
        self.taken += len(data)
        return data


def _entry(name: str) -> zipfile.ZipInfo:
    """An uncompressed member with a fixed date, so that the same images give the same bytes."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
