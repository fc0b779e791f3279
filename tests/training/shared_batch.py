"""A few training iterations of families in double precision: python -m ... OUT ITERATIONS NAMES.

In double precision rounding errors are so small that two runs either agree to many digits or differ clearly. Started by
`torchrun`, several processes share each batch; the first writes the results of the families NAMES (separated by commas)
to OUT.
"""

import copy
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from models import families, parallel
from models.base import Family
from models.pixels import to_unit
from training import data
from training.loop import Hardware, Trainer


@contextmanager
def double_precision() -> Iterator[None]:
    """Within the block new parameters and one-hot labels are float64."""
    dtype, one_hot = torch.get_default_dtype(), Family.one_hot
    torch.set_default_dtype(torch.float64)
    Family.one_hot = lambda self, label: one_hot(self, label).double()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        Family.one_hot = one_hot


def digits():
    """The digits; every seventh has no label."""
    dataset = data.load("digits", options=data.Options(size=(28, 28)))
    labels = dataset.labels.clone()
    labels[::7] = -1
    return dataclasses.replace(dataset, images=to_unit(dataset.images).double(), labels=labels)


def trainers(names):
    """A small trainer of each of the families `names`."""
    from tests.conftest import SMALL

    dataset = digits()
    for name in names:
        kind = families.get(name)
        torch.manual_seed(0)
        family = kind(kind.Config(**SMALL.get(name, {})), (1, 28, 28), 10)
        recipe = dataclasses.replace(kind.recipe, batch=16)
        yield name, Trainer(family, recipe, dataset, Hardware(torch.device("cpu")), seed=0)


@double_precision()
def train(names, iterations, before=None):
    """The loss terms of each iteration, and the states at half of the iterations and at the end, by family.

    `before` has a state to resume from for each family.
    """
    results = {"terms": {}, "half": {}, "states": {}}
    for name, trainer in trainers(names):
        if before:
            trainer.load_state_dict(before[name])
        terms = results["terms"][name] = []
        while len(terms) < iterations:
            if 2 * len(terms) == iterations:
                results["half"][name] = copy.deepcopy(trainer.state_dict())
            terms.append(trainer.train_step())
        results["states"][name] = trainer.state_dict()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    with parallel.process_group():
        results = train(sys.argv[3].split(","), int(sys.argv[2]))
        if parallel.rank() == 0:
            torch.save(results, Path(sys.argv[1]))
