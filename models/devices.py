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


CUDA_ARITHMETIC = "deterministic cuDNN, TF32 in convolutions alone"
"""What `use_reproducible_kernels` sets, in words."""


def use_reproducible_kernels() -> None:
    """Let the operations of this process on CUDA GPUs give the same bits at each call, and after a restart.

    cuDNN chooses algorithms for convolutions, among them some whose sums have no fixed order: on an H100 a net gave
    other bits from call to call, or when it was recorded again. So it may only choose deterministic ones, and not by
    timing them. TF32 rounds the factors of a product to 10 bits of mantissa. Convolutions use it, which took a third of
    the time off a step of diffusion there; matrix products do not, because they take little time in these nets.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # fixed workspaces, as cuBLAS asks for


def arithmetic(device: torch.device, threads: int) -> str:
    """What the bits of results on `device` depend on, beside weights and versions, in words.

    `threads` is the number of CPU threads per operation.
    """
    if device.type == "cuda":
        return f"{device_name(device)} cuDNN {torch.backends.cudnn.version()}, {CUDA_ARITHMETIC}"
    return f"{torch.backends.cpu.get_cpu_capability()} threads {threads}"


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
