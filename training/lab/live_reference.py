"""Curves of the Python families at settings of the browser's live lab, which its engine is tested against.

`python -m training.lab.live_reference > tests/service/live_reference.json` writes them. Each case has the engine's
settings, in units of the page's plane, and W_1 between samples and data for several seeds after some updates. The nets
have the hidden layers of the settings; losses, optimisers and schedules are those of the families and of the Trainer.
"""

import itertools
import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import parallel
from models.base import Family, Recipe, Rows, Terms
from models.families.ae import AE, AEConfig
from models.families.dcgan import DCGANConfig
from models.families.ddpm import DDPM, DDPMConfig
from models.families.flow import Flow, FlowConfig
from models.families.gan import GANConfig
from models.families.meanflow import SPAN_FEATURES, MeanFlow, MeanFlowConfig
from models.families.vae import VAE, VAEConfig, gaussian_kl
from models.families.wgan_gp import WGANGPConfig
from models.losses import squared_error
from models.nets import MLP
from training.lab.distances import wasserstein1
from training.lab.experiments.mode_collapse import PLAIN, PacGAN2, Pairs, PlaneDCGAN, PlaneWGANGP
from training.lab.fitting import Kind, iterations, make_trainer, points, samples
from training.lab.plane import Magnified, PlaneGAN
from training.lab.shapes import Gaussians, moons, ring

PLANE = 4.0
"""Units of the page's plane in one unit of the families."""
SEEDS = 9
MATCHED = 200
"""Samples and data points that W_1 is measured on."""
COMMAND = "python -m training.lab.live_reference > tests/service/live_reference.json"


class GaussianVAE(VAE):
    """A VAE whose p(x|z) is a Gaussian around the decoder's tanh, for points; samples are drawn from it."""

    sigma = 0.05

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        mu, log_var = self.posterior(x)
        z = mu + parallel.randn(*mu.shape, device=mu.device) * (log_var / 2).exp()
        error = squared_error(x, self.decoder(z).tanh()) / (2 * self.sigma**2)
        reconstruction = error + math.log(2 * math.pi * self.sigma**2)
        return {"loss": reconstruction + self.config.beta * gaussian_kl(mu, log_var).mean()}

    def step(self, rows: Rows) -> Tensor:
        mean = self.decoder(rows.state).tanh()
        return mean + self.sigma * torch.randn(mean.shape, generator=torch.Generator().manual_seed(len(mean)))


@dataclass(frozen=True)
class Case:
    """Settings of the engine, and the updates after which W_1 is measured."""

    settings: dict[str, Any]
    after: tuple[int, ...]


RING = {"data": "ring", "count": 2000, "modes": 8, "deviation": 0.2}
MOONS = {"data": "moons", "count": 2000, "noise": 0.12}
PAIR = {"data": "two_gaussians", "count": 2000, "distance": 2.4, "deviation": 0.6}
COMMON: dict[str, Any] = {"hidden": "32-32", "batch": 64, "decay": "cosine"}
GAME = {**COMMON, "lr": 1e-3, "momentum": 0.5, "latent": 2, "ema": 0}
CODES = {**COMMON, "lr": 1e-3, "ema": 50_000}
CASES = tuple(
    Case({**settings, "updates": after[-1]}, after)
    for after, settings in (
        ((200, 800), {**RING, **GAME, "model": "gan", "loss": "non_saturating", "discriminator_steps": 1}),
        ((200, 800), {**PAIR, **GAME, "model": "gan", "loss": "minimax", "discriminator_steps": 2}),
        ((200, 800), {**RING, **GAME, "model": "pacgan2", "loss": "non_saturating", "discriminator_steps": 1}),
        ((100, 400), {**RING, **GAME, "model": "wgan_gp", "groups": 0, "penalty": 0.1, "critic_steps": 3}),
        ((200, 800), {**RING, **GAME, "model": "r1_r2", "groups": 8, "gamma": 1e-3, "discriminator_pace": 1.0}),
        ((100, 400), {**MOONS, **CODES, "model": "ae", "latent": 1, "prior": "fitted"}),
        ((100, 400), {**MOONS, **CODES, "model": "vae", "latent": 2, "prior": "standard", "beta": 1.0,
                      "likelihood": "gaussian", "sigma": 0.2}),
        ((100, 400), {**PAIR, **CODES, "model": "vae", "latent": 2, "prior": "fitted", "beta": 0.2,
                      "likelihood": "bernoulli"}),
        ((100, 400), {**RING, **COMMON, "model": "ddpm", "lr": 3e-3, "ema": 5120, "sampler": "dpm++2m", "steps": 20}),
        ((100, 400), {**MOONS, **COMMON, "model": "flow", "lr": 3e-3, "ema": 5120, "sampler": "heun", "steps": 8}),
        ((200, 800), {**MOONS, **COMMON, "model": "meanflow", "lr": 3e-3, "ema": 5120, "steps": 1}),
    )
)  # fmt: skip


def data(settings: dict[str, Any], count: int, seed: int) -> Tensor:
    """Points [count, 2] of the data set in the families' units."""
    if settings["data"] == "moons":
        return moons(count, seed, settings["noise"] / PLANE)[0]
    deviation = settings["deviation"] / PLANE
    if settings["data"] == "ring":
        return ring(settings["modes"], deviation=deviation).sample(count, seed)
    x = settings["distance"] / 2 / PLANE
    return Gaussians(torch.tensor([[-x, 0.0], [x, 0.0]]), deviation).sample(count, seed)


def adversary(settings: dict[str, Any], pack: int = 1) -> nn.Module:
    """D or the critic with the generator's hidden layers in reverse; it sees magnified points."""
    hidden = _widths(settings)[::-1]
    return nn.Sequential(Magnified(), *[Pairs()] * (pack > 1), MLP(2 * pack, *hidden, 1))


def family(settings: dict[str, Any]) -> tuple[Kind, Any]:
    """The family of the settings with their hidden layers, and its config."""
    hidden, latent, groups = _widths(settings), settings.get("latent", 0), settings.get("groups", 0)
    plain = {**PLAIN, "latent": latent + groups, "groups": groups}
    grouped = {**plain, "sharpness": 300.0}
    model = settings["model"]
    nets: dict[str, Callable[[], nn.Module]] = {}
    kind: type[Family]
    config: Any
    if model in ("gan", "pacgan2"):
        kind = PlaneGAN if model == "gan" else PacGAN2
        config = GANConfig(latent, settings["loss"], settings["discriminator_steps"])
        nets = {"discriminator": lambda: adversary(settings, pack=1 if model == "gan" else 2)}
    elif model == "wgan_gp":
        kind, nets = PlaneWGANGP, {"critic": lambda: adversary(settings)}
        config = WGANGPConfig(**grouped, penalty=settings["penalty"], critic_steps=settings["critic_steps"])
    elif model == "r1_r2":
        kind, nets = PlaneDCGAN, {"discriminator": lambda: adversary(settings)}
        config = DCGANConfig(**grouped, gamma=settings["gamma"], discriminator_pace=settings["discriminator_pace"])
    elif model in ("ddpm", "flow"):
        kind, config = (DDPM, DDPMConfig()) if model == "ddpm" else (Flow, FlowConfig())
        nets = {"unet.net": lambda: MLP(14, *hidden, 2)}
    elif model == "meanflow":
        kind, config = MeanFlow, MeanFlowConfig(guidance=1.0)
        nets = {
            "velocity.net": lambda: MLP(14, *hidden, 2),
            "unet.net": lambda: MLP(14 + SPAN_FEATURES, *hidden, 2),
        }
    elif model == "ae":
        kind, config = AE, AEConfig(latent)
        nets = {"encoder": lambda: MLP(2, *hidden, latent), "decoder": lambda: MLP(latent, *hidden, 2)}
    else:
        kind = GaussianVAE if settings["likelihood"] == "gaussian" else VAE
        config = VAEConfig(latent, beta=settings["beta"])
        nets = {"encoder": lambda: MLP(2, *hidden, 2 * latent), "decoder": lambda: MLP(latent, *hidden, 2)}
    if issubclass(kind, PlaneGAN | PacGAN2 | PlaneWGANGP | PlaneDCGAN):
        nets["generator"] = lambda: MLP(latent + groups, *hidden, 2)

    def build(config: Any, data_shape: tuple[int, ...], classes: int) -> Family:
        built = kind(config, data_shape, classes)
        for name, make in nets.items():
            built.set_submodule(name, make())
        return built

    return build, config


def curve(case: Case, seed: int) -> list[float]:
    """W_1 in units of the plane after each of `case.after` updates."""
    settings = case.settings
    kind, config = family(settings)
    dataset = points(data(settings, settings["count"], seed))
    order = kind(config, (2,), 0).update_order()
    betas = (settings.get("momentum", 0.9), 0.999)
    recipe = Recipe(
        iterations(settings["updates"], settings["batch"], dataset, order.count(order[0])), settings["batch"],
        settings["lr"], betas, ema=settings["ema"], cosine=settings["decay"] == "cosine",
    )  # fmt: skip
    trainer = make_trainer(kind, config, dataset, recipe, seed)
    chain = {name: settings[name] for name in ("steps", "sampler") if name in settings}
    if "prior" in settings:
        chain["sampler"] = settings["prior"]
    fresh = data(settings, MATCHED, 1_000_000 + seed)
    values = []
    for update in range(1, max(case.after) + 1):
        trainer.train_step()
        if update in case.after:
            if chain.get("sampler") == "fitted":
                trainer.fit()
            values.append(PLANE * wasserstein1(samples(trainer.average, MATCHED, **chain), fresh))
    return values


def _widths(settings: dict[str, Any]) -> list[int]:
    return [int(width) for width in settings["hidden"].split("-")]


def main() -> None:
    """Write all cases with the curves of all seeds as JSON to standard output."""
    runs = list(itertools.product(CASES, range(SEEDS)))
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        curves = list(pool.map(curve, *zip(*runs, strict=True)))
    cases = [
        {
            **asdict(case),
            "w1": [[round(value, 4) for value in values] for values in curves[k * SEEDS : (k + 1) * SEEDS]],
        }
        for k, case in enumerate(CASES)
    ]
    json.dump({"command": COMMAND, "cases": cases}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
