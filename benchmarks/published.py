"""Published implementations of models that this project has too, and our own, trained for the same time on one thread.

    python -m benchmarks.published NAME --minutes 5 --samples 1000 --output FILE

trains one of ROWS and writes `images` [N, 28, 28] uint8, and the requested `labels` [N] of a conditional model, to an
npz file. `python -m benchmarks same_minutes` runs and judges all of them.

The nets and losses are those of the libraries, with the settings of their own MNIST examples. The time is the
processor time of this process, so that other work on the machine takes little of it.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import families
from models.base import sample
from models.pixels import to_pixels, to_unit
from training import data
from training.config import RunConfig, describe
from training.loop import Hardware, Trainer

CHUNK = 100
"""Images that are sampled at once."""


@dataclass
class Training:
    """MNIST, and the processor time that is left."""

    data: data.Dataset
    ends_at: float
    """In seconds of `time.process_time`."""
    images: int = 0
    """Images that training has used."""

    @property
    def seconds_left(self) -> float:
        return self.ends_at - time.process_time()

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [size, 1, 28, 28] in [-1, 1] and labels [size], in random order, until the time is over."""
        sampler = data.InfiniteSampler(len(self.data.images), size, seed=0)
        while self.seconds_left > 0:
            index = next(sampler)
            self.images += size
            yield to_unit(self.data.images[index]), self.data.labels[index]


Sampler = Callable[[Tensor], Tensor]
"""Images [B, 1, 28, 28] in [-1, 1] for labels [B], which an unconditional model ignores."""


def pythae_vae(training: Training) -> Sampler:
    """pythae's VAE with its convolutional nets for MNIST, its latent size of 16 and its default learning rate."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=16)
    model = VAE(config, encoder=Encoder_Conv_VAE_MNIST(config), decoder=Decoder_Conv_AE_MNIST(config)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for x, _ in training.batches(100):
        _step(optimizer, model({"data": (x + 1) / 2}).loss)
    model.eval()
    return lambda label: 2 * model.decoder(torch.randn(len(label), 16)).reconstruction - 1


def torchcfm_flow(training: Training) -> Sampler:
    """torchcfm's conditional flow matching with the U-Net of its conditional MNIST example; 10 steps of Euler's."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet import UNetModel

    net = UNetModel(dim=(1, 28, 28), num_channels=32, num_res_blocks=1, num_classes=10, class_cond=True)
    optimizer = torch.optim.Adam(net.parameters())
    matcher = ConditionalFlowMatcher(sigma=0.0)
    for x, label in training.batches(128):
        time_, state, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        _step(optimizer, (net(time_, state, label) - velocity).square().mean())
    net.eval()

    def sampler(label: Tensor) -> Tensor:
        x = torch.randn(len(label), 1, 28, 28)
        for k in range(10):
            x = x + net(torch.full((len(label),), k / 10), x, label) / 10
        return x

    return sampler


def torchgan_dcgan(training: Training) -> Sampler:
    """torchgan's DCGAN on images of 32x32, with the losses and the optimizer of its introduction."""
    from torchgan.losses import MinimaxDiscriminatorLoss, MinimaxGeneratorLoss
    from torchgan.models import DCGANDiscriminator, DCGANGenerator

    generator = DCGANGenerator(encoding_dims=100, out_size=32, out_channels=1, step_channels=32)
    discriminator = DCGANDiscriminator(in_size=32, in_channels=1, step_channels=32, last_nonlinearity=nn.Identity())
    optimizers = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (discriminator, generator)]
    d_loss, g_loss = MinimaxDiscriminatorLoss(), MinimaxGeneratorLoss()
    for x, _ in training.batches(64):
        x = nn.functional.pad(x, (2, 2, 2, 2), value=-1.0)
        generated = generator(torch.randn(len(x), 100))
        _step(optimizers[0], d_loss(discriminator(x), discriminator(generated.detach())))
        _step(optimizers[1], g_loss(discriminator(generated)))
    generator.eval()
    return lambda label: generator(torch.randn(len(label), 100))[:, :, 2:-2, 2:-2]


def ours(name: str) -> Callable[[Training], Sampler]:
    """The family `name` of this project by its recipe, with as many epochs as the time allows."""

    def train(training: Training) -> Sampler:
        trainer = _trainer(name, training.data, families.get(name).recipe.epochs)
        images_per_second = _images_per_second(trainer)
        images = 0.95 * training.seconds_left * images_per_second  # the learning rate shall reach its end
        trainer = _trainer(name, training.data, images / len(training.data.images))
        while trainer.images < trainer.total_images and training.seconds_left > 0:
            trainer.train_step()
        training.images = trainer.images
        trainer.fit()
        family = trainer.average
        numbers = itertools.count()

        def sampler(label: Tensor) -> Tensor:
            index = torch.tensor(list(itertools.islice(numbers, len(label))))
            settings = {"steps": family.steps.default, **family.defaults()}
            return sample(family, torch.zeros_like(index), index, family.one_hot(label), **settings)

        return sampler

    return train


def _trainer(name: str, training_data: data.Dataset, epochs: float) -> Trainer:
    family = families.get(name)
    recipe = {**dataclasses.asdict(family.recipe), "epochs": epochs}
    config = RunConfig(name, {}, recipe, "mnist", seed=0, precision="f32", dataset=describe(training_data))
    return Trainer.from_config(config, training_data, Hardware(torch.device("cpu")))


def _images_per_second(trainer: Trainer) -> float:
    """The images of a second of processor time, by a few iterations after a first one."""
    trainer.train_step()
    started_at, before = time.process_time(), trainer.images
    for _ in range(10):
        trainer.train_step()
    return (trainer.images - before) / (time.process_time() - started_at)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


ROWS: dict[str, Callable[[Training], Sampler]] = {
    "pythae": pythae_vae,
    "vae": ours("vae"),
    "torchcfm": torchcfm_flow,
    "flow": ours("flow"),
    "torchgan": torchgan_dcgan,
    "dcgan": ours("dcgan"),
}
"""A library's model, and then ours."""
LIBRARIES = ("pythae", "torchcfm", "torchgan")
"""The rows that need the library of their name."""
CONDITIONAL = ("torchcfm", "flow")
"""The rows that get a digit."""


@torch.no_grad()
def sample_images(sampler: Sampler, labels: Tensor) -> Tensor:
    """Images [N, 28, 28] uint8."""
    return torch.cat([to_pixels(sampler(part).clamp(-1, 1)) for part in labels.split(CHUNK)])


def main() -> None:
    """Train one row and write its samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ROWS)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mnist = data.load("mnist")
    training = Training(mnist, ends_at=time.process_time() + 60 * args.minutes)
    sampler = ROWS[args.name](training)
    labels = torch.arange(args.samples) % 10
    given = {"labels": labels.numpy()} if args.name in CONDITIONAL else {}
    images = sample_images(sampler, labels).numpy()
    np.savez_compressed(args.output, images=images, images_seen=training.images, **given)


if __name__ == "__main__":
    main()
