"""The choice of a torch device by name, and the name of its hardware."""

import os

import torch

NAMES = ("auto", "cpu", "cuda", "mps")
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""The environment variable with the GPUs that a process may use."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use; another process with one of them as VISIBLE_GPUS uses that one."""
    listed = os.environ.get(VISIBLE_GPUS)
    return listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]


def device_name(device: torch.device) -> str:
    """The name of a CUDA GPU, as its driver gives it; empty for other devices."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def choose_device(name: str, index: int = 0) -> torch.device:
    """The torch device called `name`, one of NAMES.

    `auto` is a CUDA GPU if torch sees one, else the CPU. `mps`, Apple's GPU, is used only when named: it is
    accepted, but neither its speed nor its reproducibility has been measured. `index` numbers processes that share a
    machine; process `index` gets CUDA GPU `index` modulo their count.

    Raises ValueError for another name, and if the device is not available.
    """
    if name not in NAMES:
        raise ValueError(f"unknown device {name!r}; set it to one of {', '.join(NAMES)}")
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("device cuda is not available: torch sees no GPU; set it to cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps is not available: torch sees no Apple GPU; set it to cpu or auto")
    if name == "mps":
        return torch.device("mps")
    if name == "cpu" or not cuda:
        return torch.device("cpu")
    return torch.device("cuda", index % torch.cuda.device_count())
