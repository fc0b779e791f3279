"""The lecture's GAN with eyes for a plane."""

from torch import Tensor, nn

from models.families.gan import GAN, GANConfig


class Magnified(nn.Module):
    """Points [B, 2] in about the unit of the published experiments, in which the grid's centres are 2 apart.

    Fully connected nets are smooth; at the plain scale they take long to see modes a hundredth of the plane wide.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 6 * x


class PlaneGAN(GAN):
    """The lecture's, with a D that sees it magnified."""

    def __init__(self, config: GANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = nn.Sequential(Magnified(), self.discriminator)
