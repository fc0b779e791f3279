"""This service, with supervisor and workers, on nets that cost the CPU nothing. What remains is the service's own part.

A step sleeps for the milliseconds in STEP_COSTS (JSON: a fixed part and a part for each row, by model). The engine runs
in a thread, as it does where the device is a GPU. Settings are those of the service.
"""

import json
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor

import service.app
from harness import workload
from models.base import Rows, sample
from models.families.dcgan import DCGAN
from models.families.ddpm import DDPM
from service.engine.loops import ThreadEngine
from service.server import serve, worker
from service.settings import Settings
from service.telemetry import log

FAMILIES = {"dcgan": DCGAN, "ddpm": DDPM}
ONE = torch.ones(1, dtype=torch.int64)
IMAGE = sample(workload.model("dcgan"), ONE, ONE, torch.zeros(1, 0), steps=1).detach()
"""A generated image [1, 1, 28, 28], so that its PNG has a realistic size."""


class NullModel:
    """The methods of a family that run on the device."""

    costs: tuple[float, float]

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return torch.zeros(len(seed), 1)

    def step(self, rows: Rows) -> Tensor:
        fixed, row = self.costs
        time.sleep((fixed + row * len(rows.state)) / 1000)
        return rows.state

    def decode(self, state: Tensor) -> Tensor:
        return IMAGE.expand(len(state), -1, -1, -1)


def main() -> None:
    if len(sys.argv) == 1:
        log.configure(Settings())
        raise SystemExit(serve.serve(Settings(), (sys.executable, "-m", "benchmarks.peers.null_model")))
    for model, costs in json.loads(os.environ["STEP_COSTS"]).items():
        family: Any = FAMILIES[model]
        family.costs = costs
        for method in ("initial_state", "step", "decode"):
            setattr(family, method, getattr(NullModel, method))
    service.app.EventLoopEngine = ThreadEngine  # type: ignore[attr-defined]
    worker.main(*sys.argv[1:])


if __name__ == "__main__":
    main()
