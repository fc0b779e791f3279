"""Every family that gradients train, for a few iterations, in double precision: python -m ... OUT ITERATIONS [BEFORE].

In double precision rounding is so small that two runs agree to many digits or not at all. Writes what the terms of each
iteration were, and the states, at half and in the end; goes on from where BEFORE, such a file, was at half. Run by
`torchrun`, processes share each batch.
"""

import copy
import dataclasses
import sys
from pathlib import Path

import torch

from models import families, parallel
from models.base import Family
from models.pixels import to_unit
from training import data
from training.loop import Hardware, Trainer


def digits():
    """Digits, every seventh of which is of unknown class."""
    found = data.load("digits")
    labels = found.labels.clone()
    labels[::7] = -1
    return dataclasses.replace(found, images=to_unit(found.images).double(), labels=labels)


def trainers():
    """A small trainer of each family."""
    from tests.conftest import SMALL

    known = digits()
    for name in families.names():
        kind = families.get(name)
        torch.manual_seed(0)
        family = kind(kind.Config(**SMALL.get(name, {})), (1, 28, 28), 10)
        if family.update_order():
            recipe = dataclasses.replace(kind.recipe, batch=16)
            yield name, Trainer(family, recipe, known, Hardware(torch.device("cpu")), seed=0)


def main(output: Path, iterations: int, other: Path | None = None) -> None:
    torch.set_default_dtype(torch.float64)
    one_hot = Family.one_hot
    Family.one_hot = lambda self, label: one_hot(self, label).double()
    before = torch.load(other)["half"] if other else {}
    found = {"terms": {}, "half": {}, "states": {}}
    for name, trainer in trainers():
        if name in before:
            trainer.load_state_dict(before[name])
        terms = found["terms"][name] = []
        while len(terms) < iterations:
            if 2 * len(terms) == iterations:
                found["half"][name] = copy.deepcopy(trainer.state_dict())
            terms.append(trainer.train_step())
        found["states"][name] = trainer.state_dict()
    if parallel.rank() == 0:
        torch.save(found, output)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with parallel.process_group():
        main(Path(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
