"""The lecture's GAN with a discriminator for narrow modes in the plane."""

from torch import Tensor, nn

from models.families.gan import GAN, GANConfig


class Magnified(nn.Module):
    """Scales points [B, 2] to about the unit of the published experiments, where the grid's centres are 2 apart.

    Fully connected networks are smooth; without the scaling they need long to resolve modes that are a hundredth of
    the plane wide.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 6 * x


class PlaneGAN(GAN):
    """The lecture's GAN; its D sees magnified points."""

    def __init__(self, config: GANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = nn.Sequential(Magnified(), self.discriminator)
