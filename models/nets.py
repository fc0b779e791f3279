"""The networks that families are built from.

Images are [B, 1, 28, 28] and pass through 14x14 to 7x7 and back. Data of one axis, points [B, D], goes through fully
connected layers; `encoder`, `decoder`, `discriminator` and `denoiser` choose by the data's shape.
"""

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import batch_invariant, parallel


class MLP(nn.Sequential):
    """Fully connected layers of the given widths, LeakyReLU(0.2) between them: [B, widths[0]] -> [B, widths[-1]]."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [batch_invariant.Linear(fan_in, fan_out), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def encoder(data_shape: tuple[int, ...], outputs: int, width: int) -> nn.Module:
    """Data [B, *data_shape] -> [B, outputs]."""
    return Encoder(outputs, width) if _image(data_shape) else _points(data_shape[0], outputs, width)


def decoder(data_shape: tuple[int, ...], inputs: int, width: int) -> nn.Module:
    """Codes [B, inputs] -> [B, *data_shape], unbounded."""
    return Decoder(inputs, width) if _image(data_shape) else _points(inputs, data_shape[0], width)


def discriminator(data_shape: tuple[int, ...], outputs: int, width: int) -> nn.Module:
    """Data [B, *data_shape] -> [B, outputs], any numbers."""
    return Discriminator(outputs, width) if _image(data_shape) else _points(data_shape[0], outputs, width)


def denoiser(data_shape: tuple[int, ...], width: int, classes: int) -> "UNet | PointDenoiser":
    """Noisy data [B, *data_shape], time [B] in [0, 1] and label [B, classes] -> data of the same shape."""
    return UNet(width, classes) if _image(data_shape) else PointDenoiser(data_shape[0], width, classes)


def _image(data_shape: tuple[int, ...]) -> bool:
    return len(data_shape) == 3


def _points(inputs: int, outputs: int, width: int) -> MLP:
    """[B, inputs] -> [B, outputs] by way of three layers, as wide as an image has channels at its smallest."""
    return MLP(inputs, 4 * width, 4 * width, 4 * width, outputs)


class Encoder(nn.Module):
    """An image [B, 1, 28, 28] -> [B, outputs]. No normalisation: a critic's gradient penalty is per image."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            batch_invariant.Conv2d(1, width, 4, stride=2, padding=1),  # [B, width, 14, 14]
            nn.LeakyReLU(0.2),
            batch_invariant.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # [B, 2 width, 7, 7]
            nn.LeakyReLU(0.2),
            batch_invariant.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),  # [B, 4 width, 4, 4]
            nn.LeakyReLU(0.2),
        )
        self.head = batch_invariant.Linear(4 * width * 4 * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Discriminator(nn.Sequential):
    """An image [B, 1, 28, 28] -> [B, outputs], by way of `features` numbers that each see all of it.

    Without them the last layer would add up opinions of patches 18 pixels wide, and never see a digit whole.
    """

    def __init__(self, outputs: int, width: int, features: int = 128) -> None:
        head = batch_invariant.Linear(features, outputs)
        # With 128 features four times as steep as by default: Adam's steps are of one size, and this decides how far D
        # moves by one.
        nn.init.normal_(head.weight, std=0.2)
        super().__init__(Encoder(features, width), nn.LeakyReLU(0.2), head)


class Decoder(nn.Module):
    """Codes [B, inputs] -> one number a pixel [B, 1, 28, 28], unbounded.

    Batch norm lets a generator learn several times faster; drawing uses its running averages, and a row stays alone.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stem = batch_invariant.Linear(inputs, 4 * width * 7 * 7)
        self.body = nn.Sequential(
            *_activation(4 * width),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),  # [B, 2 width, 14, 14]
            *_activation(2 * width),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # [B, width, 28, 28]
            *_activation(width),
            batch_invariant.SingleChannelConv(width),
        )

    def forward(self, code: Tensor) -> Tensor:
        return self.body(self.stem(code).unflatten(1, (-1, 7, 7)))

    def fold(self) -> None:
        """Take the batch norms into the layers before them."""
        layers: list[nn.Module] = [self.stem]
        for layer in self.body:
            if isinstance(layer, nn.BatchNorm2d):
                _fold_into(layers[-1], layer)
            else:
                layers.append(layer)
            if isinstance(layer, nn.LeakyReLU):
                layer.inplace = True  # of what came from the layer before, nobody needs the rest
        self.body = nn.Sequential(*layers[1:])


def fold_norms(family: nn.Module) -> None:
    """Take layers of `family` together where one can do the work of several: quicker, and not to be saved."""
    for module in list(family.modules()):
        if isinstance(module, Decoder | UNet):
            module.fold()


def _fold_into(layer: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Let `layer`, a Decoder's, do what `norm` does to what comes out of it, by its running averages."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if isinstance(layer, nn.ConvTranspose2d):
        layer.weight.mul_(scale[:, None, None])  # [fan_in, fan_out, 4, 4]
        layer.bias = nn.Parameter(shift, requires_grad=False)
    elif isinstance(layer, nn.Linear):
        scale, shift = scale.repeat_interleave(7 * 7), shift.repeat_interleave(7 * 7)
        layer.weight.mul_(scale[:, None])
        layer.bias.mul_(scale).add_(shift)


def _activation(width: int) -> list[nn.Module]:
    return [parallel.BatchNorm2d(width), nn.LeakyReLU(0.2)]


class AdaGNResBlock(nn.Module):
    """A residual block whose second half is scaled and shifted by an embedding (adaptive group norm, arXiv 2105.05233).

    [B, fan_in, H, W] and what `affine` makes of the embedding, [B, 2 width], -> [B, width, H, W].
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
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.skip(x) + self.conv_out(F.silu(h))


class Attention(nn.Module):
    """Self-attention over the places of an image, one head: [B, width, H, W] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.qkv = batch_invariant.Conv2d(width, 3 * width, 1)
        self.out = batch_invariant.Conv2d(width, width, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=3)  # [B, 1, HW, width]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Noisy images [B, 1, 28, 28], time [B] in [0, 1] and label [B, classes] -> images of the same shape.

    The image enters as 2x2 patches, so that nothing runs at 28x28: a quarter of the cost, and MNIST does not miss it
    (measured for larger images by Hoogeboom et al., "simple diffusion", arXiv 2301.11093).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        wide, embedding = 2 * width, 4 * width
        self.frequencies: Tensor
        self.register_buffer("frequencies", 1000.0 * torch.exp(torch.linspace(0, -math.log(1e4), width)))
        self.time = nn.Sequential(
            batch_invariant.Linear(2 * width, embedding), nn.SiLU(), batch_invariant.Linear(embedding, embedding)
        )
        with warnings.catch_warnings():
            # Without classes it has no numbers, and adds nothing.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
            self.label = batch_invariant.Linear(classes, embedding, bias=False)
        self.stem = batch_invariant.Conv2d(4, width, 3, padding=1)
        self.down_14 = AdaGNResBlock(width, width, embedding)
        self.shrink = batch_invariant.Conv2d(width, wide, 4, stride=2, padding=1)
        self.down_7 = AdaGNResBlock(wide, wide, embedding)
        self.attention = Attention(wide)
        self.middle = AdaGNResBlock(wide, wide, embedding)
        self.up_7 = AdaGNResBlock(2 * wide, wide, embedding)
        self.grow = nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1)
        self.up_14 = AdaGNResBlock(2 * width, width, embedding)
        self.head = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), batch_invariant.Conv2d(width, 4, 3, padding=1))

        self.modulations: nn.Module | None = None
        """All blocks' `affine` as one, once they are folded."""

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        down_14, down_7, middle, up_7, up_14 = self._modulate(time, label)
        fine = self.down_14(self.stem(F.pixel_unshuffle(x, 2)), down_14)  # [B, width, 14, 14]
        coarse = self.down_7(self.shrink(fine), down_7)  # [B, 2 width, 7, 7]
        h = self.middle(self.attention(coarse), middle)
        h = self.up_7(torch.cat((h, coarse), dim=1), up_7)
        h = self.up_14(torch.cat((self.grow(h), fine), dim=1), up_14)
        return F.pixel_shuffle(self.head(h), 2)

    def _modulate(self, time: Tensor, label: Tensor) -> list[Tensor]:
        """What time and label tell each of the blocks."""
        angle = time[:, None] * self.frequencies  # [B, width]
        embedding = F.silu(self.time(torch.cat((angle.cos(), angle.sin()), dim=1)) + self.label(label))
        if self.modulations is None:
            return [block.affine(embedding) for block in self._blocks()]
        return list(self.modulations(embedding).split([block.affine.out_features for block in self._blocks()], dim=1))

    def _blocks(self) -> tuple[AdaGNResBlock, ...]:
        return self.down_14, self.down_7, self.middle, self.up_7, self.up_14

    def fold(self) -> None:
        """Take the blocks' layers for the embedding together."""
        affines = [block.affine for block in self._blocks()]
        self.modulations = batch_invariant.Linear(
            affines[0].in_features, sum(affine.out_features for affine in affines)
        )
        self.modulations.weight.data = torch.cat([affine.weight for affine in affines])
        self.modulations.bias.data = torch.cat([affine.bias for affine in affines])


class PointDenoiser(nn.Module):
    """The same for points: [B, D], time [B] in [0, 1] and label [B, classes] -> [B, D]."""

    def __init__(self, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(6))
        wide = 4 * width
        self.net = MLP(size + 2 * len(self.frequencies) + classes, wide, wide, wide, wide, size)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        angle = time[:, None] * self.frequencies
        return self.net(torch.cat((x, angle.cos(), angle.sin(), label), dim=1))


def guided(net: UNet | PointDenoiser, x: Tensor, time: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
    """Classifier-free guidance: net(no label) + guidance (net(label) - net(no label)), for guidance [B].

    A second pass where any row asks for it, on a GPU always (Ho & Salimans 2022, equation 6, with guidance = 1 + w).
    One pass of twice the rows would round otherwise, and tell a row that asks for none that a neighbour did.
    """
    labelled = net(x, time, label)
    if not any_set(guidance != 1):
        return labelled
    unlabelled = net(x, time, torch.zeros_like(label))
    strength = guidance.view(-1, *[1] * (x.dim() - 1))
    return torch.where(strength == 1, labelled, unlabelled + strength * (labelled - unlabelled))


def any_set(conditions: Tensor) -> bool:
    """Whether any of them holds. A GPU is not asked: to wait for it takes longer than what a no would spare, and the
    graphs in which its kernels are replayed have no branches.
    """
    return not conditions.is_cpu or bool(conditions.any())
