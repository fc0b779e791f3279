"""The neural networks that families use.

Images are [B, 1, 28, 28]; the nets downsample them to 14x14 and 7x7. Points [B, D] pass through fully connected layers.
`encoder`, `decoder`, `discriminator` and `denoiser` select a net by the data's shape.
"""

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import batch_invariant, parallel


class MLP(nn.Sequential):
    """Fully connected layers of the given widths with LeakyReLU(0.2) between: [B, widths[0]] -> [B, widths[-1]]."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [batch_invariant.Linear(fan_in, fan_out), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def encoder(data_shape: tuple[int, ...], outputs: int, width: int) -> nn.Module:
    """A net from data [B, *data_shape] to [B, outputs]."""
    return Encoder(outputs, width) if _is_image(data_shape) else _point_net(data_shape[0], outputs, width)


def decoder(data_shape: tuple[int, ...], inputs: int, width: int) -> nn.Module:
    """A net from codes [B, inputs] to [B, *data_shape], unbounded."""
    return Decoder(inputs, width) if _is_image(data_shape) else _point_net(inputs, data_shape[0], width)


def discriminator(data_shape: tuple[int, ...], outputs: int, width: int) -> nn.Module:
    """A net from data [B, *data_shape] to [B, outputs], unbounded."""
    return Discriminator(outputs, width) if _is_image(data_shape) else _point_net(data_shape[0], outputs, width)


def denoiser(data_shape: tuple[int, ...], width: int, classes: int) -> "UNet | PointDenoiser":
    """A net from noisy data [B, *data_shape], time [B] in [0, 1] and label [B, classes] to data of the same shape."""
    return UNet(width, classes) if _is_image(data_shape) else PointDenoiser(data_shape[0], width, classes)


def _is_image(data_shape: tuple[int, ...]) -> bool:
    return len(data_shape) == 3


def _point_net(inputs: int, outputs: int, width: int) -> MLP:
    """[B, inputs] -> [B, outputs], with three hidden layers as wide as the channels of an image net at its smallest."""
    return MLP(inputs, 4 * width, 4 * width, 4 * width, outputs)


class Encoder(nn.Module):
    """An image [B, 1, 28, 28] -> [B, outputs]. No batch norm: a critic's gradient penalty is defined per image."""

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
    """An image [B, 1, 28, 28] -> [B, outputs], through `features` hidden units that each see the whole image.

    Without them the last layer would sum scores of patches 18 pixels wide and could not judge a digit as a whole.
    """

    def __init__(self, outputs: int, width: int, features: int = 128) -> None:
        head = batch_invariant.Linear(features, outputs)
        # Four times the default scale for 128 features. Adam's steps have a fixed size, so this scale sets how far one
        # step changes D.
        nn.init.normal_(head.weight, std=0.2)
        super().__init__(Encoder(features, width), nn.LeakyReLU(0.2), head)


class Decoder(nn.Module):
    """Codes [B, inputs] -> one number per pixel [B, 1, 28, 28], unbounded.

    Batch norm makes a generator learn several times faster. Sampling uses running averages, so rows are independent.
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
        """Fold the batch norms into the layers before them."""
        layers: list[nn.Module] = [self.stem]
        for layer in self.body:
            if isinstance(layer, nn.BatchNorm2d):
                _fold_into(layers[-1], layer)
            else:
                layers.append(layer)
            if isinstance(layer, nn.LeakyReLU):
                layer.inplace = True  # nothing else reads the input
        self.body = nn.Sequential(*layers[1:])


def fold_norms(family: nn.Module) -> None:
    """Merge layers of `family` for faster inference if one layer can replace several; the result cannot be saved."""
    for module in list(family.modules()):
        if isinstance(module, Decoder | UNet):
            module.fold()


def _fold_into(layer: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Apply the running averages of `norm` to the weights of `layer`, the layer of a Decoder before it."""
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
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.skip(x) + self.conv_out(F.silu(h))


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
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=3)  # [B, 1, HW, width]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Noisy images [B, 1, 28, 28], time [B] in [0, 1] and label [B, classes] -> images of the same shape.

    The input is cut into 2x2 patches, so no layer runs at 28x28: a quarter of the cost without a loss on MNIST
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
            # Without classes this layer has no weights and adds nothing.
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
        """The `affine` layers of all blocks as one layer, after `fold`."""

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        down_14, down_7, middle, up_7, up_14 = self._modulate(time, label)
        fine = self.down_14(self.stem(F.pixel_unshuffle(x, 2)), down_14)  # [B, width, 14, 14]
        coarse = self.down_7(self.shrink(fine), down_7)  # [B, 2 width, 7, 7]
        h = self.middle(self.attention(coarse), middle)
        h = self.up_7(torch.cat((h, coarse), dim=1), up_7)
        h = self.up_14(torch.cat((self.grow(h), fine), dim=1), up_14)
        return F.pixel_shuffle(self.head(h), 2)

    def _modulate(self, time: Tensor, label: Tensor) -> list[Tensor]:
        """The modulation of each block by time and label."""
        angle = time[:, None] * self.frequencies  # [B, width]
        embedding = F.silu(self.time(torch.cat((angle.cos(), angle.sin()), dim=1)) + self.label(label))
        if self.modulations is None:
            return [block.affine(embedding) for block in self._blocks()]
        return list(self.modulations(embedding).split([block.affine.out_features for block in self._blocks()], dim=1))

    def _blocks(self) -> tuple[AdaGNResBlock, ...]:
        return self.down_14, self.down_7, self.middle, self.up_7, self.up_14

    def fold(self) -> None:
        """Merge the `affine` layers of all blocks."""
        affines = [block.affine for block in self._blocks()]
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


def guided(net: UNet | PointDenoiser, x: Tensor, time: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
    """Classifier-free guidance: net(no label) + guidance (net(label) - net(no label)), for guidance [B].

    Equation 6 of Ho & Salimans 2022 with guidance = 1 + w. On a CPU the second pass runs only if the guidance of a row
    is not 1, on a GPU always. A single pass over twice the rows would round differently, so the guidance of one row
    would change another row's bits.
    """
    labelled = net(x, time, label)
    if not any_set(guidance != 1):
        return labelled
    unlabelled = net(x, time, torch.zeros_like(label))
    scale = guidance.view(-1, *[1] * (x.dim() - 1))
    return torch.where(scale == 1, labelled, unlabelled + scale * (labelled - unlabelled))


def any_set(conditions: Tensor) -> bool:
    """Whether any condition holds; always True on a GPU.

    Waiting for the GPU's answer takes longer than a False would save, and CUDA graphs have no branches.
    """
    return not conditions.is_cpu or bool(conditions.any())
