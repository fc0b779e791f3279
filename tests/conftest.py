"""Fixtures that several parts of the tests share, and how tests run beside each other."""

import dataclasses
import fcntl
import logging
import math
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg  # noqa: F401  it brings a BLAS of its own
import torch
from threadpoolctl import threadpool_limits

from models import families, store
from models.base import Family
from models.cores import available_cores
from models.store import Manifest

# The tests run in one process per core, so more threads would only wait for each other.
torch.set_num_threads(1)
threadpool_limits(1)
# Selenium brings trio, whose hypothesis plugin warns; no test needs a plugin.
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"

FORBID_SKIPS = "PYTEST_FORBID_SKIPS"
"""CI sets this variable: a test that is skipped for any reason not in ALLOWED_SKIPS fails the run."""
ALLOWED_SKIPS = ("there is no GPU", "network namespaces with TUN devices are not allowed", "kubectl is not installed")

CLASSES = ("pizza", "ice cream", "çay", "Zebra", "zebra")
"""Names of classes that are no digits: with a space, with another letter, alike but for case."""
MANY_CLASSES = (*(f"kind {i}" for i in range(30)), "salt & pepper", "none")
"""More classes than an error lists, one of them with the name for no label."""

MAX_PROCESSES = 4
"""Of a test run."""

LOCKS = Path(__file__).parent / "conftest.py", Path(__file__).parent / "__init__.py"
"""Files to lock: the first for running a test, the second for starting one."""

WEIGHTS = Path(__file__).parent.parent / "weights"
"""The committed weights."""

DISTANCES = ("mnist_cnn_fd", "cnn_fd")
"""Figures that are better if they are smaller."""

SMALL: dict[str, dict[str, Any]] = {
    "pca": {"code": 8},
    "kde": {"code": 8, "points": 200},
    "gmm": {"code": 8, "most": 2},
    "acgan": {"generator_width": 8, "discriminator_width": 8},
    "cgan": {"generator_width": 8, "discriminator_width": 8},
    "dcgan": {"generator_width": 8, "discriminator_width": 8},
    "wgan_gp": {"generator_width": 8, "critic_width": 8},
    "flow": {"width": 16},
    "meanflow": {"width": 16},
    "ae": {"width": 8},
    "swae": {"width": 8},
    "supervised_ae": {"width": 8, "most": 2},
    "vae": {"width": 8},
    "ddpm": {"width": 16},
}
"""Configurations that make a family fast; a family that is not listed is tested with its defaults."""


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: tests often wait for a service or a browser to start."""
    return min(MAX_PROCESSES, available_cores() + 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that is marked `alone` while no other process of the run runs one."""
    mode = fcntl.LOCK_SH if item.get_closest_marker("alone") is None else fcntl.LOCK_EX
    running, starting = LOCKS
    with running.open() as test, starting.open() as start:
        fcntl.flock(start, fcntl.LOCK_EX)  # no other test starts while one waits to run alone
        fcntl.flock(test, mode)
        fcntl.flock(start, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(test, fcntl.LOCK_UN)  # a forked process may have inherited the descriptor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that are marked `gpu` on machines without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


def unexpected_skips(config: pytest.Config) -> list[str]:
    """The skipped tests that this environment should have run, each with the reason of its skip."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or FORBID_SKIPS not in os.environ:
        return []
    reports = reporter.stats.get("skipped", [])
    reasons = {report.nodeid: str(report.longrepr) for report in reports}
    return [f"{test}: {reason}" for test, reason in reasons.items() if not any(why in reason for why in ALLOWED_SKIPS)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped tests which it should have run."""
    if session.exitstatus == pytest.ExitCode.OK and unexpected_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests whose skip fails the run."""
    if skips := unexpected_skips(terminalreporter.config):
        terminalreporter.section(f"skipped, which {FORBID_SKIPS} forbids")
        for line in skips:
            terminalreporter.line(line)


def small(name: str, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> Family:
    """A small untrained instance of a family."""
    torch.manual_seed(0)
    kind = families.get(name)
    config = dict(SMALL.get(name, {}))
    if "code" in config:
        config["code"] = min(config["code"], math.prod(data_shape))
    family = kind(kind.Config(**config), data_shape, classes)
    # Layers that start at zero would hide half of what a family does.
    for parameter in family.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    family.fit(torch.rand(300, *data_shape) * 2 - 1, torch.arange(300) % classes)
    return family


def manifest_of(family: Family, classes: tuple[str, ...] = tuple("0123456789")) -> Manifest:
    """A manifest with the family's identity and little else."""
    return Manifest(
        family=family.name,
        revision=family.revision,
        config=dataclasses.asdict(family.config),
        data_shape=family.data_shape,
        classes=classes if family.classes else (),
        defaults={},
        dataset={"name": "none"},
        training={},
        versions={},
        commit="",
        created="2026-01-01T00:00:00+00:00",
    )


def assert_weights_reach(family: str, *, data: str = "mnist", **goals: float) -> None:
    """Assert that the committed weights of a family for `data` reach these figures, measured by its judge `report`.

    `mnist_cnn_fd` (real images have 0.01, the likeliest kernel density 3.1), or `cnn_fd` of other data, is the maximal
    distance; the other goals are minimal values.
    """
    manifests = [store.read_manifest(WEIGHTS / name) for name in store.list_weights(WEIGHTS)]
    metrics = [m.metrics for m in manifests if m.family == family and m.dataset["name"] == data]
    assert metrics, f"no weights of {family} for {data}"
    for figures in metrics:
        assert figures["judge"]["name"] == "report"
        for name, goal in goals.items():
            is_reached = figures[name] <= goal if name in DISTANCES else figures[name] >= goal
            assert is_reached, f"{name}: {figures[name]}, the goal is {goal}"


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Undo what `log.configure` changes: a stream or a hook of one test must not outlive it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small untrained weights of every family, under the family's name."""
    root = tmp_path_factory.mktemp("weights")
    for name in families.names():
        family = small(name).for_sampling()
        store.save(root / name, family, manifest_of(family), b"")
    return root


@pytest.fixture(scope="session")
def named_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small untrained weights for other labels than digits, beside cgan and gan of the digits.

    `pictures` (colour, 24x32) and `drawings` (grey, with an encoder) have CLASSES, `kinds` has MANY_CLASSES.
    """
    root = tmp_path_factory.mktemp("named")
    for name, family, shape, classes in (
        ("cgan", "cgan", (1, 28, 28), tuple("0123456789")),
        ("gan", "gan", (1, 28, 28), ()),
        ("pictures", "cgan", (3, 24, 32), CLASSES),
        ("drawings", "flow", (1, 28, 28), CLASSES),
        ("kinds", "flow", (1, 8, 8), MANY_CLASSES),
    ):
        made = small(family, shape, len(classes) or 10).for_sampling()
        store.save(root / name, made, manifest_of(made, classes), b"")
    return root


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The directory of MNIST; skips the test if there is none."""
    root = Path(os.environ.get("DRAWBRIDGE_DATA", "data"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no MNIST in {root}; set DRAWBRIDGE_DATA to a directory that holds it")
    return root
