"""The nets that predict data from noisy data, for diffusion and flow matching.

`denoiser` selects a net by the data's shape.
"""

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import batch_invariant, updates
from models.base import Rows
from models.nets import MLP, Foldable, group_norm, halvings, is_image

MAX_GROWTH = 4
"""The most channels of a U-Net, as a multiple of its width."""
PATCH_HELP = "side of the patches that the U-Net cuts images into; 0: 2, less below 16 pixels, more from 96"
"""Help of the field `patch` of a Config."""


def denoiser(
    data_shape: tuple[int, ...], width: int, classes: int, levels: int = 0, patch: int = 0
) -> "UNet | PointDenoiser":
    """A net from noisy data [B, *data_shape], time [B] in [0, 1] and label [B, classes] to data of the same shape."""
    if is_image(data_shape):
        return UNet(data_shape, width, classes, levels, patch)
    return PointDenoiser(data_shape[0], width, classes)


def patch_side(height: int, width: int, patch: int = 0) -> int:
    """The side of the patches that a U-Net cuts images of this size into: `patch`, or for 0 by the size.

    1 below 16 pixels, 4 from 96 pixels if both sides are multiples of 8, otherwise 2. Raises ValueError if `patch` does
    not leave an even number of patches along each side.
    """
    if patch:
        if patch < 0 or height % (2 * patch) or width % (2 * patch):
            raise ValueError(f"patch is {patch}; {height}x{width} needs an even number of patches along each side")
        return patch
    if min(height, width) < 16:
        return 1
    return 4 if min(height, width) >= 96 and height % 8 == width % 8 == 0 else 2


class AdaGNResBlock(nn.Module):
    """A residual block with adaptive group norm: an embedding scales and shifts its second half (arXiv 2105.05233).

    [B, fan_in, H, W] and modulation [B, 2 width], which `affine` computes from the embedding, -> [B, width, H, W].
    """

    def __init__(self, fan_in: int, width: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, fan_in)
        self.conv_in = batch_invariant.Conv2d(fan_in, width, 3, padding=1)
        self.affine = batch_invariant.Linear(embedding, 2 * width)
        self.norm_out = nn.GroupNorm(8, width, affine=False)
        self.conv_out = batch_invariant.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if fan_in == width else batch_invariant.Conv2d(fan_in, width, 1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h = self.conv_in(group_norm(x, self.norm_in))
        return self.skip(x) + self.conv_out(group_norm(h, self.norm_out, modulation))


class Attention(nn.Module):
    """Single-head self-attention over the positions of an image: [B, width, H, W] -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.qkv = batch_invariant.Conv2d(width, 3 * width, 1)
        self.out = batch_invariant.Conv2d(width, width, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(group_norm(x, self.norm, silu=False))
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=3)  # [B, 1, HW, width]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class UNet(Foldable):
    """Noisy images [B, C, H, W], time [B] in [0, 1] and label [B, classes] -> images of the same shape.

    The input is cut into patches, so no layer runs at full size: with 2x2 patches a quarter of the cost without a loss
    on MNIST (measured for larger images by Hoogeboom et al., "simple diffusion", arXiv 2301.11093). Then the net halves
    the image once or more (`halvings`). Blocks are named by the height at which they work, 14 and 7 for 28x28.
    """

    def __init__(self, data_shape: tuple[int, ...], width: int, classes: int, levels: int = 0, patch: int = 0) -> None:
        super().__init__()
        values, height, width_pixels = data_shape
        self.patch = patch_side(height, width_pixels, patch)
        height, width_pixels = height // self.patch, width_pixels // self.patch
        count = halvings(height, width_pixels, levels)
        self.heights = [height >> k for k in range(count + 1)]
        widths = [width * min(1 << k, MAX_GROWTH) for k in range(count + 1)]
        embedding = 4 * width
        self.frequencies: Tensor
        self.register_buffer("frequencies", 1000.0 * torch.exp(torch.linspace(0, -math.log(1e4), width)))
        self.time = nn.Sequential(
            batch_invariant.Linear(2 * width, embedding), nn.SiLU(), batch_invariant.Linear(embedding, embedding)
        )
        with warnings.catch_warnings():
            # Without classes this layer has no weights and adds nothing.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
            self.label = batch_invariant.Linear(classes, embedding, bias=False)
        self.stem = batch_invariant.Conv2d(values * self.patch**2, width, 3, padding=1)
        for k, size in enumerate(self.heights):
            if k:
                shrink = batch_invariant.Conv2d(widths[k - 1], widths[k], 4, stride=2, padding=1)
                self.add_module(self.between("shrink", k), shrink)
            self.add_module(f"down_{size}", AdaGNResBlock(widths[k], widths[k], embedding))
        self.attention = Attention(widths[-1])
        self.middle = AdaGNResBlock(widths[-1], widths[-1], embedding)
        for k, size in reversed(list(enumerate(self.heights))):
            self.add_module(f"up_{size}", AdaGNResBlock(2 * widths[k], widths[k], embedding))
            if k:
                grow = nn.ConvTranspose2d(widths[k], widths[k - 1], 4, stride=2, padding=1)
                self.add_module(self.between("grow", k), grow)
        self.head = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), batch_invariant.Conv2d(width, values * self.patch**2, 3, padding=1)
        )

        self.modulations: nn.Module | None = None
        """The `affine` layers of all blocks as one layer, after `fold`."""

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        modulations = iter(self._modulate(time, label))
        h = self.stem(F.pixel_unshuffle(x, self.patch))  # [B, width, H / patch, W / patch]
        skips = []
        for k, size in enumerate(self.heights):
            if k:
                h = getattr(self, self.between("shrink", k))(h)
            h = getattr(self, f"down_{size}")(h, next(modulations))
            skips.append(h)
        h = self.middle(self.attention(h), next(modulations))
        for k, size in reversed(list(enumerate(self.heights))):
            h = getattr(self, f"up_{size}")(torch.cat((h, skips[k]), dim=1), next(modulations))
            if k:
                h = getattr(self, self.between("grow", k))(h)
        norm, _, conv = self.head
        assert isinstance(norm, nn.GroupNorm)
        return F.pixel_shuffle(conv(group_norm(h, norm)), self.patch)

    def between(self, kind: str, halved: int) -> str:
        """The name of the layer, `shrink` or `grow`, to or from the size after `halved` halvings."""
        return kind if halved == len(self.heights) - 1 else f"{kind}_{self.heights[halved]}"

    def _modulate(self, time: Tensor, label: Tensor) -> list[Tensor]:
        """The modulation of each block by time and label."""
        angle = time[:, None] * self.frequencies  # [B, width]
        embedding = F.silu(self.time(torch.cat((angle.cos(), angle.sin()), dim=1)) + self.label(label))
        if self.modulations is None:
            return [block.affine(embedding) for block in self.blocks()]
        return list(self.modulations(embedding).split([block.affine.out_features for block in self.blocks()], dim=1))

    def blocks(self) -> list[AdaGNResBlock]:
        """All blocks in the order of `forward`."""
        return [module for module in self.children() if isinstance(module, AdaGNResBlock)]

    def fold(self) -> None:
        """Merge the `affine` layers of all blocks."""
        affines = [block.affine for block in self.blocks()]
        self.modulations = batch_invariant.Linear(
            affines[0].in_features, sum(affine.out_features for affine in affines)
        )
        self.modulations.weight.data = torch.cat([affine.weight for affine in affines])
        self.modulations.bias.data = torch.cat([affine.bias for affine in affines])


class PointDenoiser(nn.Module):
    """Noisy points [B, D], time [B] in [0, 1] and label [B, classes] -> points [B, D]."""

    def __init__(self, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(6))
        wide = 4 * width
        self.net = MLP(size + 2 * len(self.frequencies) + classes, wide, wide, wide, wide, size)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        angle = time[:, None] * self.frequencies
        return self.net(torch.cat((x, angle.cos(), angle.sin(), label), dim=1))


def guided_rows(net: UNet | PointDenoiser, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
    """`guided` with the labels and guidance scales of `rows`, for noisy data x [B, ...] at time [B]."""
    if not rows.guided:
        return net(x, time, rows.label)
    return guided(net, x, time, rows.label, rows.guidance, rows.joint_guidance)


def guided(
    net: UNet | PointDenoiser, x: Tensor, time: Tensor, label: Tensor, guidance: Tensor, joint_rows: int = 0
) -> Tensor:
    """Classifier-free guidance of the net: net(no label) + guidance (net(label) - net(no label)), for guidance [B].

    On a CPU the second pass runs only if the guidance of a row is not 1, on a GPU always. Up to `joint_rows` rows, both
    passes are one over twice the rows: small batches cost more per row. Where the net is not batch-invariant, a joint
    pass rounds differently, and the guidance of one row would change another row's bits.
    """
    if not any_set(guidance != 1):
        return net(x, time, label)
    no_label = torch.zeros_like(label)
    if len(x) <= joint_rows:
        both = net(torch.cat((x, x)), torch.cat((time, time)), torch.cat((label, no_label)))
        labelled, unlabelled = both.chunk(2)
    else:
        labelled, unlabelled = net(x, time, label), net(x, time, no_label)
    return updates.guide(labelled, unlabelled, guidance)


def any_set(conditions: Tensor) -> bool:
    """Whether any condition holds; always True on a GPU.

    Waiting for the GPU's answer takes longer than a False would save, and CUDA graphs have no branches.
    """
    return not conditions.is_cpu or bool(conditions.any())
