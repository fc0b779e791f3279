"""Nets for inference on a CPU: the same operations and the same bits, with less around them.

A step of a U-Net with few rows is a hundred operations of a few microseconds each. To look up and call their modules,
and to compute again what an earlier step has computed, takes a third of its time.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.batch_invariant import LARGE_BATCH, prepack_weights
from models.denoisers import AdaGNResBlock, UNet

MAX_MODULATIONS = 2048
"""The pairs of time and label whose modulations a U-Net keeps, in 2 to 5 KB each: 100 steps of 20 labels."""


def prepare_for_cpu(family: nn.Module) -> None:
    """Prepare `family`, after `fold_norms`, for inference on a CPU; the result cannot be saved, trained or moved."""
    prepack_weights(family)
    for module in family.modules():
        if isinstance(module, UNet):
            vars(module)["forward"] = FlatUNet(module)  # an attribute of the object precedes the method of its class


class FlatUNet:
    """`UNet.forward` without modules: it calls plain functions, and works in place where nothing else reads a tensor.

    It keeps the modulations of each time and label, which determine them: most steps are of times and labels that were
    there before. It refers to the layers of the net and not to the net, so that both are freed at once.
    """

    def __init__(self, net: UNet) -> None:
        assert net.modulations is not None
        blocks = {name: _block(child) for name, child in net.named_children() if isinstance(child, AdaGNResBlock)}
        halvings = range(1, len(net.heights))
        self.patch, self.stem = net.patch, net.stem.forward
        self.down = [blocks[f"down_{height}"] for height in net.heights]
        self.up = [blocks[f"up_{height}"] for height in net.heights]
        self.shrink, self.grow = (
            [net.get_submodule(net.between(kind, k)).forward for k in halvings] for kind in ("shrink", "grow")
        )
        self.attention, self.middle = net.attention.forward, blocks["middle"]
        norm, _, conv = net.head
        assert isinstance(norm, nn.GroupNorm)
        self.head_norm, self.head_conv = _group_norm(norm), conv.forward
        self.frequencies, self.time, self.label = net.frequencies, net.time, net.label
        self.modulations = net.modulations
        self.widths = [width for block in net.blocks() for width in [block.affine.out_features // 2] * 2]
        """The number of scales and of shifts of each block, in the order of their calls."""
        self.kept: dict[bytes, Tensor] = {}
        """Modulations [sum(widths)] by the bytes of time and label."""

    def __call__(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        parts = iter(self.modulate(time, label)[:, :, None, None].split(self.widths, dim=1))
        modulations = zip(parts, parts, strict=True)  # scale and shift of each block
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = []
        for k, block in enumerate(self.down):
            if k:
                h = self.shrink[k - 1](h)
            h = block(h, *next(modulations))
            skips.append(h)
        h = self.middle(self.attention(h), *next(modulations))
        for k in reversed(range(len(self.up))):
            h = self.up[k](torch.cat((h, skips[k]), dim=1), *next(modulations))
            if k:
                h = self.grow[k - 1](h)
        return F.pixel_shuffle(self.head_conv(F.silu(self.head_norm(h), inplace=True)), self.patch)

    def modulate(self, time: Tensor, label: Tensor) -> Tensor:
        """The modulations [B, sum(widths)], in which 1 is added to each scale."""
        keys = [row.tobytes() for row in torch.cat((time[:, None], label), dim=1).numpy()]
        if len(self.kept) > MAX_MODULATIONS:
            self.kept.clear()
        missing = {key: i for i, key in enumerate(keys) if key not in self.kept}
        if missing:
            # Always among LARGE_BATCH rows or more: the bits of what is kept must not depend on the other rows.
            rows = list(missing.values())
            rows += rows[-1:] * (LARGE_BATCH - len(rows))
            new = self._new_modulations(time[rows], label[rows])[: len(missing)].clone()  # without the rest in memory
            self.kept |= zip(missing, new, strict=True)
        return torch.stack([self.kept[key] for key in keys])

    def _new_modulations(self, time: Tensor, label: Tensor) -> Tensor:
        """`modulate`, computed anew."""
        angle = time[:, None] * self.frequencies
        embedding = F.silu(self.time(torch.cat((angle.cos(), angle.sin()), dim=1)) + self.label(label))
        modulations: Tensor = self.modulations(embedding)
        for scale in modulations.split(self.widths, dim=1)[::2]:
            scale += 1
        return modulations


def _block(block: AdaGNResBlock) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`block` as a function of x, scale and shift, where 1 is added to the scale."""
    norm_in, norm_out = _group_norm(block.norm_in), _group_norm(block.norm_out)
    conv_in, conv_out, skip = block.conv_in.forward, block.conv_out.forward, block.skip.forward

    def call(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = norm_out(conv_in(F.silu(norm_in(x), inplace=True)))
        h = torch.addcmul(shift, h, scale, out=h)
        return conv_out(F.silu(h, inplace=True)).add_(skip(x))

    return call


def _group_norm(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    groups, weight, bias, eps = norm.num_groups, norm.weight, norm.bias, norm.eps
    return lambda x: torch.group_norm(x, groups, weight, bias, eps)
