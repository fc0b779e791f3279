"""The experiments in the order of the lecture: one file each, which defines `EXPERIMENT`."""

from importlib import import_module

from training.lab.experiment import Experiment

NAMES = (
    "density",
    "pca_to_ae",
    "latent",
    "diffusion_2d",
    "one_step",
    "xy_game",
    "gan_field",
    "optimal_d",
    "js_vs_w",
    "mode_collapse",
)


def get(name: str) -> Experiment:
    """The experiment called `name`, one of NAMES."""
    experiment: Experiment = import_module(f"{__name__}.{name}").EXPERIMENT
    return experiment
