"""Published implementations and ours, trained for the same minutes of one core, judged by the same classifier.

    DRAWBRIDGE_DATA=/path/to/mnist python -m benchmarks same_minutes

`pip install .[published]` brings the libraries; one that is not installed is left out. Each row is a process of its
own (`benchmarks/published.py`).
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from benchmarks.published import LIBRARIES, ROWS
from training import classifier, data, metrics

TITLES = {
    "pythae": "VAE of pythae",
    "vae": "`vae`",
    "torchcfm": "flow matching of torchcfm",
    "flow": "`flow`",
    "torchgan": "DCGAN of torchgan",
    "dcgan": "`dcgan`",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="processor minutes of each training")
    parser.add_argument("--samples", type=int, default=1000, help="samples of each that are judged")
    parser.add_argument("--only", nargs="*", choices=ROWS, help="measure only these rows")
    parser.add_argument("--keep", type=Path, help="keep the samples in this directory, and read those that are there")
    args = parser.parse_args()
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}; pip install .[published]", file=sys.stderr)
    judge = classifier.load("report")
    test = data.load("mnist", split="test")
    real = judge.features_and_logits(test.images)[0]
    print(f"{args.minutes:g} minutes of one core, {args.samples:,} samples\n")
    print("| | images | MNIST-CNN-FD | precision | recall | coverage | digit accuracy |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.only or ROWS:
            file = (args.keep or Path(temporary)) / f"{name}.npz"
            if not file.exists():
                if name in LIBRARIES and importlib.util.find_spec(name) is None:
                    continue
                train(name, args.minutes, args.samples, file)
            print(row(name, np.load(file), judge, real), flush=True)


def train(name: str, minutes: float, samples: int, file: Path) -> None:
    """Train the row `name` in a process of its own and write its samples to `file`."""
    command = [sys.executable, "-m", "benchmarks.published", name, "--output", str(file)]
    subprocess.run([*command, "--minutes", str(minutes), "--samples", str(samples)], check=True)


def row(name: str, samples: NpzFile, judge: classifier.Classifier, real: Tensor) -> str:
    """The line of the table for `samples`; accuracy only where a digit was requested."""
    features, probabilities = judge.features_and_logits(torch.from_numpy(samples["images"])[:, None])
    overlap = metrics.coverage(real, features)
    accuracy = ""
    if "labels" in samples:
        right = probabilities.argmax(1) == torch.from_numpy(samples["labels"])
        accuracy = f"{100 * right.float().mean():.1f} %"
    shares = (overlap.precision, overlap.recall, overlap.coverage)
    cells = [f"{samples['images_seen']:,}", f"{metrics.frechet_distance(real, features):.2f}"]
    return f"| {TITLES[name]} | {' | '.join([*cells, *(f'{share:.2f}' for share in shares), accuracy])} |"


if __name__ == "__main__":
    main()
