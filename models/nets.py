"""The neural networks of encoders, decoders and discriminators.

Images are [B, C, H, W], with one or three channels and sides that are multiples of 4 from 8 to 128. `halvings` says how
often a net halves them; channels double with each halving (`channels`). Points [B, D] pass through fully connected
layers. `encoder`, `decoder` and `discriminator` select a net by the data's shape.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import batch_invariant, kernels, parallel

MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 8, 128, 4
COARSE_SIDE = 7
"""The least side to which images are halved more than once."""
MAX_GROWTH = 8
"""The most channels of a net, as a multiple of its width."""


def check_shape(data_shape: tuple[int, ...]) -> None:
    """Raise ValueError if `data_shape` is neither [D], points, nor [C, H, W] that nets take."""
    if len(data_shape) == 1:
        return
    channels, *sides = data_shape
    if channels not in (1, 3) or len(sides) != 2 or any(not is_side(side) for side in sides):
        raise ValueError(
            f"images must have 1 or 3 channels and sides that are multiples of {SIDE_MULTIPLE} from {MIN_SIDE} to "
            f"{MAX_SIDE}; the shape is {list(data_shape)}"
        )


def is_side(side: int) -> bool:
    """Whether images may have this height or width, in pixels."""
    return MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE == 0


def is_image(data_shape: tuple[int, ...]) -> bool:
    """Whether data of this shape are images, not points."""
    return len(data_shape) == 3


def halvings(height: int, width: int, levels: int = 0) -> int:
    """How often nets halve images of this size: `levels`, or for 0 by the size.

    At least once, then as long as both sides are even and the halves are at least COARSE_SIDE:
    28 -> 14 -> 7, 32 -> 16 -> 8, 64 -> 32 -> 16 -> 8, 8 -> 4.

    Raises ValueError if `levels` is negative, or the sides cannot be halved so often.
    """
    if levels:
        if levels < 0 or height % (1 << levels) or width % (1 << levels):
            raise ValueError(f"{height}x{width} cannot be halved {levels} times")
        return levels
    count = 1
    while not (height >> count) % 2 and not (width >> count) % 2 and min(height, width) >> count + 1 >= COARSE_SIDE:
        count += 1
    return count


def channels(width: int, halved: int) -> int:
    """The channels of a net of base `width` after `halved` halvings: doubled each time, up to MAX_GROWTH times."""
    return width * min(1 << halved, MAX_GROWTH)


LEVELS_HELP = "how often the nets halve an image; 0: until a side would be less than 7"
"""Help of the field `levels` of a Config."""


def group_norm(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None, *, silu: bool = True) -> Tensor:
    """Normalize x [B, C, H, W], scale and shift it by modulation [B, 2 C] (1 + scale, then shift), and apply SiLU."""
    return kernels.choose(torch_group_norm, x)(x, norm, modulation, silu=silu)


def torch_group_norm(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None, *, silu: bool = True) -> Tensor:
    """`group_norm` by operations of torch."""
    h: Tensor = norm(x)
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
    return F.silu(h) if silu else h


class MLP(nn.Sequential):
    """Fully connected layers of the given widths with LeakyReLU(0.2) between: [B, widths[0]] -> [B, widths[-1]]."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [batch_invariant.Linear(fan_in, fan_out), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def encoder(data_shape: tuple[int, ...], outputs: int, width: int, levels: int = 0) -> nn.Module:
    """A net from data [B, *data_shape] to [B, outputs]."""
    if is_image(data_shape):
        return Encoder(data_shape, outputs, width, levels)
    return _point_net(data_shape[0], outputs, width)


def decoder(data_shape: tuple[int, ...], inputs: int, width: int, levels: int = 0) -> nn.Module:
    """A net from codes [B, inputs] to [B, *data_shape], unbounded."""
    if is_image(data_shape):
        return Decoder(data_shape, inputs, width, levels)
    return _point_net(inputs, data_shape[0], width)


def discriminator(data_shape: tuple[int, ...], outputs: int, width: int, levels: int = 0) -> nn.Module:
    """A net from data [B, *data_shape] to [B, outputs], unbounded."""
    if is_image(data_shape):
        return Discriminator(data_shape, outputs, width, levels)
    return _point_net(data_shape[0], outputs, width)


def _point_net(inputs: int, outputs: int, width: int) -> MLP:
    """[B, inputs] -> [B, outputs], with three hidden layers as wide as the channels of an image net at its smallest."""
    return MLP(inputs, 4 * width, 4 * width, 4 * width, outputs)


class Encoder(nn.Module):
    """An image [B, *data_shape] -> [B, outputs]. No batch norm: a critic's gradient penalty is defined per image."""

    def __init__(self, data_shape: tuple[int, ...], outputs: int, width: int, levels: int = 0) -> None:
        super().__init__()
        fan_in, height, width_pixels = data_shape
        count = halvings(height, width_pixels, levels)
        layers: list[nn.Module] = []
        for k in range(count):
            layers += [batch_invariant.Conv2d(fan_in, channels(width, k), 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            fan_in = channels(width, k)
        last = channels(width, count)
        self.body = nn.Sequential(
            *layers,  # [B, *, height / 2**count, width / 2**count]
            batch_invariant.Conv2d(fan_in, last, 3, stride=2, padding=1),  # half of that, rounded up
            nn.LeakyReLU(0.2),
        )
        positions = math.prod(-(-side // (2 << count)) for side in (height, width_pixels))
        self.head = batch_invariant.Linear(last * positions, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Discriminator(nn.Sequential):
    """An image [B, *data_shape] -> [B, outputs], through `features` hidden units that each see the whole image.

    Without them the last layer would sum scores of patches 18 pixels wide and could not judge a digit as a whole.
    """

    def __init__(
        self, data_shape: tuple[int, ...], outputs: int, width: int, levels: int = 0, features: int = 128
    ) -> None:
        head = batch_invariant.Linear(features, outputs)
        # Four times the default scale for 128 features. Adam's steps have a fixed size, so this scale sets how far one
        # step changes D.
        nn.init.normal_(head.weight, std=0.2)
        super().__init__(Encoder(data_shape, features, width, levels), nn.LeakyReLU(0.2), head)


class Foldable(nn.Module):
    """A net of which some layers can be merged for faster inference."""

    def fold(self) -> None:
        """Merge the layers; the net cannot be saved afterwards."""
        raise NotImplementedError


def fold_norms(family: nn.Module) -> None:
    """Merge layers of `family` for faster inference if one layer can replace several; the result cannot be saved."""
    for module in list(family.modules()):
        if isinstance(module, Foldable):
            module.fold()


class Decoder(Foldable):
    """Codes [B, inputs] -> one number per value of an image [B, *data_shape], unbounded.

    Batch norm makes a generator learn several times faster. Sampling uses running averages, so rows are independent.
    """

    def __init__(self, data_shape: tuple[int, ...], inputs: int, width: int, levels: int = 0) -> None:
        super().__init__()
        outputs, height, width_pixels = data_shape
        count = halvings(height, width_pixels, levels)
        self.coarse_size = height >> count, width_pixels >> count
        self.stem = batch_invariant.Linear(inputs, channels(width, count) * math.prod(self.coarse_size))
        layers = _activation(channels(width, count))
        for k in reversed(range(count)):
            fan_in, fan_out = channels(width, k + 1), channels(width, k)
            layers += [nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1, bias=False), *_activation(fan_out)]
        to_values = (
            batch_invariant.SingleChannelConv(width)
            if outputs == 1
            else batch_invariant.Conv2d(width, outputs, 3, padding=1)
        )
        self.body = nn.Sequential(*layers, to_values)

    def forward(self, code: Tensor) -> Tensor:
        return self.body(self.stem(code).unflatten(1, (-1, *self.coarse_size)))

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
        positions = layer.out_features // len(scale)
        scale, shift = scale.repeat_interleave(positions), shift.repeat_interleave(positions)
        layer.weight.mul_(scale[:, None])
        layer.bias.mul_(scale).add_(shift)


def _activation(width: int) -> list[nn.Module]:
    return [parallel.BatchNorm2d(width), nn.LeakyReLU(0.2)]
