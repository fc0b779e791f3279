"""Uploaded files, decoded within limits on pixels, memory and time, and brought to the images that a model takes."""

import asyncio
import io
import math
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from models.pixels import channels_first, to_unit
from pictures.decoding import (
    CONTRAST,
    FORMATS,
    Background,
    Pixels,
    UnknownFormat,
    UnreadablePicture,
    count_pixels,
    decode,
    to_channels,
)
from pictures.fitting import Resize, fit
from service.codecs.normalization import Polarity, normalize
from service.errors import InvalidParameter

NPZ = b"PK"
"""How an npz, a zip archive, begins."""
NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compressions that NumPy writes. `zipfile` decompresses others in pieces of unbounded size."""

DECODER = ThreadPoolExecutor(1, "uploads")
"""Decodes one picture at a time, which bounds the memory."""


class Preparation(Protocol):
    """How pictures become images for a model."""

    @property
    def channels(self) -> int:
        """Of the images: 1 for grey values, 3 for colours."""

    @property
    def background(self) -> Background:
        """What is behind transparent pixels."""

    def prepare(self, pixels: Pixels) -> Pixels:
        """The image uint8 [H, W] or [H, W, 3] for a picture. Raises InvalidParameter."""


@dataclass(frozen=True)
class DigitPreparation:
    """Pictures of a digit are normalized to the grey 28x28 images of MNIST."""

    channels: ClassVar[int] = 1
    polarity: Polarity = "auto"

    @property
    def background(self) -> Background:
        return {"auto": CONTRAST, "dark-on-light": "white", "light-on-dark": "black"}[self.polarity]

    def prepare(self, pixels: Pixels) -> Pixels:
        return normalize(to_channels(pixels, self.channels), self.polarity)


@dataclass(frozen=True)
class PicturePreparation:
    """Pictures of anything are scaled to the shape of the model's images."""

    height: int
    width: int
    channels: int
    background: Background = "white"
    resize: Resize = "crop"

    def prepare(self, pixels: Pixels) -> Pixels:
        return fit(pixels, self.height, self.width, self.channels, resize=self.resize, background=self.background)


async def read(files: Sequence[bytes], preparation: Preparation, *, max_images: int, max_pixels: int) -> list[Tensor]:
    """Decode and prepare uploaded files on a thread, into images [C, H, W] float32 in [-1, 1].

    A file is a picture in one of FORMATS, of which the first frame counts, or an npz with `images` uint8 [n, H, W] or
    [n, H, W, 3]. Requests take turns after each picture. Raises InvalidParameter for files that do not decode, for
    pictures that cannot be prepared, and for more than `max_images` images or `max_pixels` pixels in total.
    """
    loop, budget = asyncio.get_running_loop(), UploadBudget(max_images, max_pixels)
    images: list[Tensor] = []
    for data in files:
        for pixels in await loop.run_in_executor(DECODER, decode_file, data, preparation, budget):
            prepared = await loop.run_in_executor(DECODER, preparation.prepare, pixels)
            images.append(to_tensor(prepared))
    return images


def to_tensor(pixels: Pixels) -> Tensor:
    """Pixels [H, W] or [H, W, 3] as an image [C, H, W] float32 in [-1, 1]."""
    return channels_first(to_unit(torch.from_numpy(pixels.copy()))[None])[0]


@dataclass
class UploadBudget:
    """The images and pixels that the remaining files of a request may hold."""

    images: int
    pixels: int

    def spend(self, shape: tuple[int, ...]) -> None:
        """Subtract pictures of `shape` [n, H, W]. Raises InvalidParameter if they exceed the budget."""
        count, pixels = shape[0], math.prod(shape)
        if count > self.images:
            raise InvalidParameter(f"image: {count} pictures, but at most {self.images} more are allowed; send fewer")
        if pixels > self.pixels:
            raise InvalidParameter(
                f"image: {pixels} pixels, but at most {self.pixels} more are allowed; send smaller pictures"
            )
        self.images, self.pixels = self.images - count, self.pixels - pixels


def decode_file(data: bytes, preparation: Preparation, budget: UploadBudget) -> list[Pixels]:
    """The pictures in a file."""
    try:
        if data.startswith(NPZ):
            return _from_npz(data, budget)
        budget.spend((1, 1, count_pixels(data)))
        return [decode(data, channels=preparation.channels, background=preparation.background)]
    except UnknownFormat:
        raise InvalidParameter(f"image: the file is not a readable {', '.join(FORMATS)} or npz with `images`") from None
    except UnreadablePicture as error:
        raise InvalidParameter(f"image: {error}") from None


def _from_npz(data: bytes, budget: UploadBudget) -> list[Pixels]:
    """The pictures [H, W] or [H, W, 3] of an npz. Its header is checked before its pixels are decompressed."""
    try:
        return _read_npz(data, budget)
    except InvalidParameter:
        raise
    except Exception:  # zipfile and NumPy raise anything on hostile files
        raise InvalidParameter("image: the file is not a readable npz with `images`") from None


def _read_npz(data: bytes, budget: UploadBudget) -> list[Pixels]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("images.npy") as member:
        if archive.getinfo("images.npy").compress_type not in NPZ_COMPRESSIONS:
            raise InvalidParameter("image: write the npz with numpy.savez or numpy.savez_compressed")
        if np.lib.format.read_magic(member) != (1, 0):  # a later version's header may be as long as memory
            raise InvalidParameter("image: `images` must have npy version 1.0, which numpy.savez writes")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or min(shape) < 1:
            raise InvalidParameter(
                f"image: `images` must be uint8 [n, H, W] or [n, H, W, 3]; it is {dtype} {list(shape)}"
            )
        budget.spend(shape[:3])
        flat = np.frombuffer(member.read(math.prod(shape)), np.uint8)
    return list(flat.reshape(shape, order="F" if fortran else "C"))
