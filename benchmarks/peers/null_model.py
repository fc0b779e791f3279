"""This service, its front and workers, with nets that cost the CPU nothing: what is left is its part of a request.

A step takes the milliseconds that DEVICE says (JSON: fixed and a row's, by model), asleep; turns are called from a
thread, as they are where the device is a GPU. Settings as for the service.
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
from service.server import supervisor, worker
from service.settings import Settings
from service.telemetry import log

FAMILIES = {"dcgan": DCGAN, "ddpm": DDPM}
ONE = torch.ones(1, dtype=torch.int64)
IMAGE = sample(workload.model("dcgan"), ONE, ONE, torch.zeros(1, 0), steps=1).detach()
"""A real one, [1, 1, 28, 28], so that its files are as long as such files are."""


class Asleep:
    """What a family does on the device."""

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
        raise SystemExit(supervisor.serve(Settings(), (sys.executable, "-m", "benchmarks.peers.null_model")))
    for model, costs in json.loads(os.environ["DEVICE"]).items():
        family: Any = FAMILIES[model]
        family.costs, family.initial_state, family.step, family.decode = costs, Asleep.initial_state, Asleep.step, Asleep.decode
    service.app.EventLoopEngine = ThreadEngine  # type: ignore[misc,assignment]
    worker.main(*sys.argv[1:])


if __name__ == "__main__":
    main()
