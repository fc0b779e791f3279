"""Messages between an HTTP process and an engine process, over a Unix stream socket.

A frame is two lengths (of what follows, and of its head), the head, and the bytes of images behind each other. The head
is in the format of `marshal`: plain tuples of numbers, strings and bytes, without
code. Both ends come from the same files, which the first frame in each direction proves; it is not for other programs.

A socket takes as long as shared memory for images of 784 bytes. For 16 of 49 KB it takes 0.16 ms, and shared memory
0.08 ms (two cores of an AMD EPYC); their PNGs take 11 ms.
"""

import asyncio
import hashlib
import marshal
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service import VERSION
from service.engine import request as requests
from service.engine.request import (
    DeadlineUnattainable,
    Edit,
    EngineError,
    ModelUnloaded,
    QueueFull,
    Request,
    Sample,
    StartState,
)

LENGTHS = struct.Struct("<II")

Message = tuple[Any, ...]
Plain = Any
"""A value that `marshal` takes."""


def _build() -> str:
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return f"drawbridge {VERSION} {hashlib.sha256(sources).hexdigest()} python {sys.version}"


BUILD = _build()
"""What both ends must have in common, as this process started: version, files of the engine, and Python."""


def pack_frame(head: Plain, arrays: Sequence[NDArray[Any]] = ()) -> bytes:
    """A frame of a head and the bytes of C-contiguous arrays."""
    packed = marshal.dumps(head)
    size = len(packed) + sum(values.nbytes for values in arrays)
    return b"".join((LENGTHS.pack(size, len(packed)), packed, *cast(Iterable[bytes], arrays)))


class FrameReader(asyncio.BufferedProtocol):
    """One end of the socket. The kernel writes each frame into memory of its own, where the images stay."""

    def __init__(self) -> None:
        self.memory, self.filled, self.head_size = bytearray(LENGTHS.size), 0, 0
        self.transport: asyncio.Transport | None = None
        """None before the connection is made and after it is lost."""

    def on_frame(self, head: Plain, body: memoryview) -> None:
        """Act on a frame."""
        raise NotImplementedError

    def on_lost(self) -> None:
        """The other end is gone."""
        raise NotImplementedError

    def send(self, head: Plain, arrays: Sequence[NDArray[Any]] = ()) -> None:
        """Send a frame."""
        if self.transport is not None:
            self.transport.write(pack_frame(head, arrays))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.on_lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.memory)[self.filled :]

    def buffer_updated(self, count: int) -> None:
        self.filled += count
        if self.filled < len(self.memory):
            return
        memory, self.filled = self.memory, 0
        if not self.head_size:
            size, self.head_size = LENGTHS.unpack(memory)
            self.memory = bytearray(size)
            return
        frame, head_size = memoryview(memory), self.head_size
        self.memory, self.head_size = bytearray(LENGTHS.size), 0
        self.on_frame(marshal.loads(frame[:head_size]), frame[head_size:])


# -- requests and errors -----------------------------------------------------------------------------------------------


def pack_request(request: Request) -> Plain:
    """A request as plain values. A tensor that several samples share is one object, which `marshal` writes once."""
    packed: dict[int, Plain] = {}

    def tensor(value: Tensor | None) -> Plain:
        if value is None:
            return None
        if id(value) not in packed:
            numbers = value.numpy()
            packed[id(value)] = (numbers.dtype.str, numbers.shape, numbers.tobytes())
        return packed[id(value)]

    def state(value: StartState | None) -> Plain:
        return None if value is None else (*value[:3], tensor(value.image), tensor(value.code))

    samples = [(state(sample.start), state(sample.end), *sample[2:]) for sample in request.samples]
    edit = request.edit
    packed_edit = None if edit is None else (tensor(edit.image), edit.strength, tensor(edit.mask))
    return tuple(request._replace(samples=cast(Any, samples), edit=cast(Any, packed_edit)))


def unpack_request(plain: Plain) -> Request:
    """The request of `pack_request`."""
    unpacked: dict[int, Tensor] = {}

    def tensor(value: Plain) -> Tensor | None:
        if value is None:
            return None
        if id(value) not in unpacked:
            kind, shape, data = value
            unpacked[id(value)] = torch.from_numpy(np.frombuffer(bytearray(data), kind).reshape(shape))
        return unpacked[id(value)]

    def state(value: Plain) -> StartState:
        seed, index, label, image, code = value
        return StartState(seed, index, label, tensor(image), tensor(code))

    request = Request(*plain)
    samples = tuple(
        Sample(state(start), None if end is None else state(end), *rest)
        for start, end, *rest in cast(Any, request.samples)
    )
    if request.edit is None:
        return request._replace(samples=samples)
    image, strength, mask = cast(Any, request.edit)
    return request._replace(samples=samples, edit=Edit(cast(Tensor, tensor(image)), strength, tensor(mask)))


def pack_error(error: EngineError) -> Plain:
    """An error as plain values."""
    if isinstance(error, QueueFull):
        return "QueueFull", error.retry_after
    if isinstance(error, DeadlineUnattainable):
        return "DeadlineUnattainable", error.seconds, error.timeout
    return (type(error).__name__,) if isinstance(error, ModelUnloaded) else (type(error).__name__, str(error))


def unpack_error(plain: Plain) -> EngineError:
    """The error of `pack_error`."""
    error: EngineError = getattr(requests, plain[0])(*plain[1:])
    return error
