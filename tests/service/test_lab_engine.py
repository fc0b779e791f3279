"""The engine of the live lab in a real browser; needs Debian's packages chromium and chromium-driver."""

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from harness.browser import INSTALLED, chromium
from models import mixture, noise
from models.base import Family, sample
from models.families.ddpm import DDPM, DDPMConfig
from models.families.flow import Flow, FlowConfig
from models.families.kde import KDE, KDEConfig
from models.families.meanflow import MeanFlow, MeanFlowConfig
from models.linear import PrincipalComponents
from service.api.pages import PLAYGROUND, Pages
from training.lab import distances
from training.lab.experiments import xy_game
from training.lab.live_reference import PLANE
from training.lab.shapes import grid, moons, ring

REFERENCE = json.loads((Path(__file__).parent / "live_reference.json").read_text())
SEEDS = 3
"""Seeds of the engine whose median is compared with that of the recorded seeds."""

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs chromium and chromium-driver")

Engine = Callable[..., Any]
"""Runs the body of an async function in the browser and returns its JSON value.

The body sees the engine's modules as `m.catalog`, `m.measures` etc., its arguments as `args`, and `train(settings,
updates)`, which returns an Experiment.
"""

SCRIPT = """
const done = arguments[arguments.length - 1], args = arguments;
const plain = (key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
const base = "/playground/lab/engine/";
const run = async () => {
  const m = {};
  for (const name of ["catalog", "experiment", "measures", "nets", "philox", "shapes", "tensor", "models/denoisers"]) {
    m[name.split("/").at(-1)] = await import(`${base}${name}.js`);
  }
  const train = (settings, updates) => {
    const made = new m.experiment.Experiment(settings);
    while (made.update < updates && !made.finished) made.step();
    return made;
  };
  BODY
};
run().then((value) => done(JSON.stringify({ value }, plain)), (error) => done(JSON.stringify({ error: error.stack })));
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The playground's files with the headers of the service, but no models."""
    app = Starlette(routes=[Mount("/playground", Pages(directory=PLAYGROUND))])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(script_timeout=120) as driver:
        yield driver


@pytest.fixture
def engine(browser: Any, url: str) -> Iterator[Engine]:
    """Runs code on a page of the service's origin, under its Content-Security-Policy."""
    browser.get(f"{url}/playground/lab/engine/catalog.js")

    def run(body: str, *arguments: Any) -> Any:
        answer = json.loads(browser.execute_async_script(SCRIPT.replace("BODY", body), *arguments))
        assert "error" not in answer, answer
        return answer.get("value")

    yield run
    errors = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in str(entry)
    ]
    assert not errors


def points(values: list[float]) -> torch.Tensor:
    """Points [n, 2] from numbers in a row."""
    return torch.tensor(values).reshape(-1, 2)


def test_random_numbers_are_those_of_the_service(engine: Engine) -> None:
    seeds, indices, steps = [0, 1, 2**32 - 1, 77], [0, 5, 2**31, 2**32 - 1], [0, 1, 999, 2**32 - 2]
    words, normals, uniforms = engine(
        """
        const noises = args[0].map((seed) => new m.philox.Noise(seed, m.philox.SAMPLES));
        return [
          noises.map((noise, k) => noise.bits(args[1][k], args[2][k], 10)),
          noises.map((noise, k) => noise.normals(args[1][k], args[2][k], 1001)),
          noises.map((noise, k) => noise.uniform(args[1][k], m.philox.CHOICE_STEP)),
        ];
        """,
        seeds, indices, steps,
    )  # fmt: skip
    seed, index, step = (torch.tensor(values) for values in (seeds, indices, steps))
    assert words == noise.bits(seed, index, step, 10)[:, :10].tolist()
    expected = noise.normal(seed, index, step, (1001,))
    same = torch.tensor(normals) == expected
    assert same.float().mean() > 0.999  # a library's cosine may differ in the last bit
    assert torch.allclose(torch.tensor(normals), expected, rtol=1e-6, atol=1e-7)
    assert uniforms == noise.uniform(seed, index).tolist()


OPERATIONS = {
    "matmul": "t.sum(t.square(t.matmul(x, y)))",
    "matmul of the first transposed": 't.sum(t.square(t.matmul(x, x, "a")))',
    "matmul of the second transposed": 't.sum(t.square(t.matmul(x, x, "b")))',
    "add a row": "t.sum(t.square(t.add(x, t.reduce(y2, 1, 3))))",
    "subtract a column": "t.sum(t.square(t.subtract(x, t.reduce(y2, 4, 1))))",
    "times": "t.sum(t.square(t.times(x, t.times(x, y2))))",
    "leakyRelu": "t.sum(t.square(t.leakyRelu(x)))",
    "tanh": "t.sum(t.square(t.tanh(x)))",
    "sigmoid": "t.sum(t.square(t.sigmoid(x)))",
    "softplus": "t.sum(t.square(t.softplus(x)))",
    "exp": "t.sum(t.exp(x))",
    "sqrt and reciprocal": "t.sum(t.sqrt(t.reciprocal(t.shift(t.square(x), 1))))",
    "columns and reshape": "t.sum(t.tanh(t.reshape(t.times(t.columns(x, 1, 3), t.columns(x, 0, 2)), 2, 4)))",
    "mean and scale": "t.square(t.mean(t.scale(t.square(x), 3)))",
}


def test_gradients_of_first_and_second_order_match_finite_differences(engine: Engine) -> None:
    report = engine(
        """
        const t = m.tensor, noise = new m.philox.Noise(5, 0);
        const x = t.constant(4, 3, noise.normals(0, 0, 12)), y = t.constant(3, 5, noise.normals(1, 0, 15));
        const y2 = t.constant(4, 3, noise.normals(2, 0, 12));
        const slopes = (f) => {
          const found = t.gradients(f(), [x])[0].data.slice(), h = 4e-3;
          const expected = Array.from(x.data, (value, k) => {
            x.data[k] = value + h;
            const up = f().value, width = x.data[k];
            x.data[k] = value - h;
            const slope = (up - f().value) / (width - x.data[k]);
            x.data[k] = value;
            return slope;
          });
          return { found, expected };
        };
        return Object.fromEntries(Object.entries(args[0]).map(([name, code]) => {
          const f = { CASES }[name];
          const squaredSlope = () => t.mean(t.square(t.gradients(f(), [x], true)[0]));
          return [name, { first: slopes(f), second: slopes(squaredSlope) }];
        }));
        """.replace("CASES", ", ".join(f"{json.dumps(name)}: () => {code}" for name, code in OPERATIONS.items())),
        OPERATIONS,
    )  # fmt: skip
    for name, orders in report.items():
        for order, pair in orders.items():
            found, expected = np.array(pair["found"]), np.array(pair["expected"])
            error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3)
            assert error < 5e-3, (name, order, found, expected)
            assert np.abs(expected).max() > 1e-3, (name, order)


def test_training_with_a_gradient_penalty_matches_torch(engine: Engine) -> None:
    found = engine(
        """
        const t = m.tensor, net = new m.nets.Mlp([2, 16, 16, 1], 3, 0), adam = new m.nets.Adam(net, 0.5, 0.9);
        const noise = new m.philox.Noise(9, 0), before = net.parameters.map(({ data }) => data.slice());
        const batches = [];
        for (let k = 0; k < 20; k++) {
          batches.push(noise.rows(64 * k, 64, 2));
          t.scope(() => {
            const x = t.constant(64, 2, batches[k]);
            const [slope] = t.gradients(t.sum(net.forward(x)), [x], true);
            const norm = t.sqrt(t.shift(t.reduce(t.square(slope), 64, 1), 1e-12));
            adam.minimise(t.add(t.mean(net.forward(x)), t.mean(t.square(t.shift(norm, -1)))), 1e-2);
          });
        }
        return { before, batches, after: net.parameters.map(({ data }) => data) };
        """
    )
    weights = [torch.tensor(values, dtype=torch.float64) for values in found["before"]]
    shapes = [(2, 16), (1, 16), (16, 16), (1, 16), (16, 1), (1, 1)]
    parameters = [
        value.clone().reshape(shape).requires_grad_(True) for value, shape in zip(weights, shapes, strict=True)
    ]
    assert all(
        value.abs().max() <= 1 / math.sqrt(fan_in)
        for value, fan_in in zip(weights, (2, 2, 16, 16, 16, 16), strict=True)
    )
    optimizer = torch.optim.Adam(parameters, 1e-2, (0.5, 0.9))

    def net(x: torch.Tensor) -> torch.Tensor:
        for k in (0, 2, 4):
            x = x @ parameters[k] + parameters[k + 1]
            x = torch.nn.functional.leaky_relu(x, 0.2) if k < 4 else x
        return x

    for batch in found["batches"]:
        x = points(batch).double().requires_grad_(True)
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        loss = net(x).mean() + ((slope.square().sum(1) + 1e-12).sqrt() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for after, expected, start in zip(found["after"], parameters, weights, strict=True):
        assert torch.allclose(torch.tensor(after).double(), expected.detach().flatten(), atol=2e-4)
        assert (expected.detach().flatten() - start).abs().max() > 1e-2 or len(start) == 1


@pytest.mark.parametrize("play", ["simultaneous", "alternating", "extragradient", "optimistic"])
def test_the_xy_game_follows_its_closed_form(engine: Engine, play: str) -> None:
    path = engine(
        """
        const game = train({ model: "xy_game", play: args[0], eta: 0.1, updates: 300 }, 0), path = [];
        while (!game.finished) {
          game.step();
          const { x, y } = game.frame().curves;
          path.push([x, y]);
        }
        return path;
        """,
        play,
    )
    assert len(path) == 300
    assert np.abs(np.array(path) - xy_game.walk(xy_game.PLAYS[play], 300)[1:]).max() < 1e-6
    if play == "simultaneous":
        z = (1 + 0.1j) ** 300
        assert path[-1] == pytest.approx([z.real, z.imag], abs=1e-6)


def test_em_never_lowers_its_objective_and_equals_the_family_s(engine: Engine) -> None:
    runs = engine(
        """
        return args[0].map((prior) => [0, 1, 2].map((seed) => {
          const data = { data: "moons", noise: 0.3, seed };
          const made = train({ ...data, model: "gmm", components: 6, prior_strength: prior }, 0);
          const objectives = [], states = [];
          while (!made.finished && made.update < 60) {
            const curves = made.model.curves(made.reference);
            objectives.push(prior ? curves.objective : curves["log-likelihood of the training points"]);
            if (made.update < 2) states.push(made.frame().components);
            made.step();
          }
          return { objectives, states, points: made.points };
        }));
        """,
        [0.05, 0],
    )
    for run in (run for seeds in runs for run in seeds):
        gains = np.diff(run["objectives"])
        assert len(gains) > 5
        assert gains.min() > -1e-9
    for run in runs[0]:
        x = points(run["points"]).double()
        scatter = 0.05 * float(x.var(0).mean())
        before, after = (as_fit(run["states"][k]) for k in (0, 1))
        joint = before.log_joint(x)
        expected = mixture._maximise(x, (joint - joint.logsumexp(1, keepdim=True)).exp(), scatter, pooled=0)
        assert torch.allclose(after.weights, expected.weights, atol=1e-6)
        assert torch.allclose(after.means, expected.means, atol=1e-6)
        assert torch.allclose(after.cholesky, expected.cholesky, atol=1e-5)
        precision = sum(float(torch.cholesky_inverse(L).trace()) for L in before.cholesky)
        objective = float(before.log_density(x).mean()) - scatter / 2 * precision / len(x)
        assert run["objectives"][0] == pytest.approx(objective, abs=1e-6)


def as_fit(components: list[dict[str, Any]]) -> mixture.MixtureFit:
    """The mixture of a frame's components."""
    xx, xy, yy = torch.tensor([each["covariance"] for each in components], dtype=torch.float64).T
    covariance = torch.stack((xx, xy, xy, yy), dim=1).reshape(-1, 2, 2)
    weights, means = (
        torch.tensor([each[key] for each in components], dtype=torch.float64) for key in ("weight", "mean")
    )
    return mixture.MixtureFit(weights, means, torch.linalg.cholesky(covariance))


def test_closed_form_estimates_equal_those_of_the_families(engine: Engine) -> None:
    drawn = (
        torch.randn(200, 2, generator=torch.Generator().manual_seed(3)) @ torch.tensor([[1.0, 0.4], [0.0, 0.5]])
    ).clamp(-4, 4)
    frames = engine(
        """
        return Object.fromEntries(["gaussian", "pca", "kde"].map((model) => {
          const made = train({ model, data: "drawn", points: args[0], seed: 7 }, 100);
          const { update, samples, curves, components, kernels, segments } = made.frame();
          return [model, { update, samples, curves, components, kernels, segments, heldOut: made.model.heldOut ?? [] }];
        }));
        """,
        drawn.tolist(),
    )
    gaussian, expected = as_fit(frames["gaussian"]["components"]), mixture.fit(drawn, 1)
    assert torch.allclose(gaussian.means, expected.means, atol=1e-6)
    assert torch.allclose(gaussian.cholesky, expected.cholesky, atol=1e-6)
    likelihood = frames["gaussian"]["curves"]["log-likelihood of the training points"]
    assert likelihood == pytest.approx(float(expected.log_density(drawn.double()).mean()), abs=1e-6)

    components = PrincipalComponents(2, 1)
    components.fit(drawn)
    segments = torch.tensor(frames["pca"]["segments"]).reshape(-1, 4)
    axis, lines = segments[0], segments[1:]
    assert torch.allclose((axis[2:] - axis[:2]) / 4, components.W[:, 0] * components.variance.sqrt(), atol=1e-5)
    assert torch.allclose(lines[:, :2], drawn)
    assert torch.allclose(lines[:, 2:], components.decode(components.encode(drawn)), atol=1e-5)

    kernels, held_out = frames["kde"]["kernels"], points(frames["kde"]["heldOut"])
    centres = points(kernels["centres"])
    assert sorted((*held_out.tolist(), *centres.tolist())) == sorted(drawn.tolist())
    assert len(held_out) == 40
    family = KDE(KDEConfig(points=len(centres), code=0), (2,))
    assert kernels["bandwidth"] == pytest.approx(family.best_bandwidth(held_out.double(), centres.double()), rel=1e-6)
    family.points.copy_(centres)
    family.count.fill_(len(centres))
    family.bandwidth.fill_(kernels["bandwidth"])
    likelihood = frames["kde"]["curves"]["log-likelihood of held-out points"]
    assert likelihood == pytest.approx(float(family.log_density(held_out).mean()), abs=1e-5)
    seed, index = torch.full((1000,), 7), torch.arange(1000)
    state = family.initial_state(seed, index, torch.zeros(1000, 0), torch.zeros(1000, 0))
    assert torch.allclose(points(frames["kde"]["samples"]), state, atol=1e-5)


def test_samplers_take_the_families_steps(engine: Engine) -> None:
    lines = engine(
        """
        const counts = [1, 2, 3, 20, 200];
        return [
          ["dpm++2m", "ddim", "ddpm"].map((name) => counts.map((steps) => m.denoisers.diffusionSchedule(steps, name))),
          ["heun", "euler"].map((name) => counts.map((steps) => m.denoisers.flowSchedule(steps, name))),
        ];
        """
    )
    ddpm, flow = DDPM(DDPMConfig(), (2,), 0), Flow(FlowConfig(), (2,), 0)
    for names, family, found in ((("dpm++2m", "ddim", "ddpm"), ddpm, lines[0]), (("heun", "euler"), flow, lines[1])):
        for name, schedules in zip(names, found, strict=True):
            for steps, table in zip((1, 2, 3, 20, 200), schedules, strict=True):
                expected = family.schedule(steps, name)
                expected = expected[:, [0, 3, 4, 5, 6]] if family is ddpm else expected
                assert torch.allclose(torch.tensor(table, dtype=torch.float32), expected, atol=1e-5), (name, steps)


@pytest.mark.parametrize(("model", "sampler"), [("ddpm", "ddpm"), ("ddpm", "dpm++2m"), ("flow", "heun")])
def test_a_trained_denoiser_samples_what_the_family_samples_with_its_weights(
    engine: Engine, model: str, sampler: str
) -> None:
    found = engine(
        """
        const made = train({ model: args[0], sampler: args[1], hidden: "32-32", updates: 100, seed: 5, steps: 9 }, 60);
        const weights = made.model.sampler.parameters.map(({ rows, columns, data }) => ({ rows, columns, data }));
        return { samples: made.frame().samples, weights };
        """,
        model, sampler,
    )  # fmt: skip
    family = DDPM(DDPMConfig(), (2,), 0) if model == "ddpm" else Flow(FlowConfig(), (2,), 0)
    family.unet.net = mlp(found["weights"])  # type: ignore[assignment]
    assert_samples(found["samples"], family, steps=9, sampler=sampler)


def test_a_trained_mean_flow_learns_from_the_paths_of_the_family_and_samples_what_it_samples(engine: Engine) -> None:
    states = torch.tensor([[0.5, -1.0], [0.1, 0.3], [-0.6, 0.2]])
    starts, spans = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([1.0, 0.0625, 0.5])
    found = engine(
        """
        const { model } = train({ model: "meanflow", hidden: "32-32", updates: 100, seed: 5, steps: 1 }, 60);
        const weights = (net) => net.parameters.map(({ rows, columns, data }) => ({ rows, columns, data }));
        const samples = args[1].map((steps) => {
          model.view({ steps });
          return model.sample(400);
        });
        const [states, starts, spans] = args[0].map((values) => Float32Array.from(values));
        return {
          samples, ends: m.tensor.scope(() => model.pathTarget(states, starts, spans)),
          velocity: weights(model.net), average: weights(model.sampler),
        };
        """,
        [states.flatten().tolist(), starts.tolist(), spans.tolist()], [1, 2, 5],
    )  # fmt: skip
    family = MeanFlow(MeanFlowConfig(guidance=1.0), (2,), 0)
    family.velocity.net = mlp(found["velocity"])  # type: ignore[assignment]
    family.unet.net = mlp(found["average"])  # type: ignore[assignment]
    expected = family.path_target(states, starts, spans, torch.zeros(3, 0))
    assert torch.allclose(points(found["ends"]), expected, atol=1e-5)
    for steps, samples in zip((1, 2, 5), found["samples"], strict=True):
        assert_samples(samples, family, steps=steps)


def mlp(weights: list[dict[str, Any]]) -> torch.nn.Sequential:
    """The net of the engine's weights and biases, [{rows, columns, data}]."""
    layers: list[torch.nn.Module] = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = torch.nn.Linear(weight["rows"], weight["columns"])
        layer.weight.data = torch.tensor(weight["data"]).reshape(weight["rows"], weight["columns"]).T
        layer.bias.data = torch.tensor(bias["data"])
        layers += [layer, torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*layers[:-1])


def assert_samples(found: list[float], family: Family, **options: Any) -> None:
    """Assert that the engine's samples `found` are those of `family` for seed 5."""
    count = len(found) // 2
    seed, index = torch.full((count,), 5), torch.arange(count)
    with torch.inference_mode():
        expected = PLANE * sample(family, seed, index, torch.zeros(count, 0), **options)
    assert torch.allclose(points(found), expected, atol=2e-4)


def test_distances_equal_those_of_the_lab(engine: Engine) -> None:
    x = torch.randn(150, 2, generator=torch.Generator().manual_seed(0))
    y = 0.5 * torch.randn(150, 2, generator=torch.Generator().manual_seed(1)) + 0.7
    w1, js, bins, modes = engine(
        """
        const [x, y] = args[0].map((points) => Float32Array.from(points.flat()));
        return [
          m.measures.wasserstein1(x, y), m.measures.jensenShannon(x, y), m.measures.histogram(x, 20),
          m.measures.modesFound(x, [[0, 0], [3, 3]], 0.2),
        ];
        """,
        [x.tolist(), y.tolist()],
    )
    assert w1 == pytest.approx(distances.wasserstein1(x, y), abs=1e-6)
    tables = [distances.histogram(side, 20, PLANE) for side in (x, y)]
    assert js == pytest.approx(distances.jensen_shannon(*tables), abs=1e-6)
    # Row 0 at the top: the largest y first.
    assert np.array_equal(np.array(bins).reshape(20, 20), tables[0].T.flip(0).numpy())
    close = float((x.norm(dim=1) <= 0.6).float().mean())
    assert modes == {"modes": 1, "good": pytest.approx(close)}


def test_data_sets_are_those_of_the_lab(engine: Engine) -> None:
    found = engine(
        """
        const made = (settings, first, count) => m.shapes.points(m.catalog.checkSettings(settings), first, count);
        return {
          centres: ["ring", "grid"].map((data) => m.shapes.centres(m.catalog.checkSettings({ data }))),
          ring: made({ data: "ring", deviation: 0.4, seed: 3 }, 0, 4000),
          moons: made({ data: "moons", noise: 0.2, seed: 3 }, 0, 400),
          part: made({ data: "moons", noise: 0.2, seed: 3 }, 100, 50),
          other: made({ data: "moons", noise: 0.2, seed: 4 }, 100, 50),
        };
        """
    )
    for centres, shape in zip(found["centres"], (ring(), grid()), strict=True):
        assert torch.allclose(torch.tensor(centres), PLANE * shape.centres, atol=1e-5)
    x, target = points(found["ring"]) / PLANE, ring(deviation=0.1)
    nearest, deviations = target.nearest(x)
    assert torch.bincount(nearest).min() > 400
    assert float(target.log_density(x).mean()) == pytest.approx(
        float(target.log_density(target.sample(20_000, 0)).mean()), abs=0.05
    )
    assert deviations.max() < 6
    expected = [PLANE * moons(400, seed, 0.2 / PLANE)[0] for seed in (0, 1)]
    baseline = distances.wasserstein1(*expected)
    assert distances.wasserstein1(points(found["moons"]), expected[0]) < 2 * baseline
    assert found["part"] == found["moons"][200:300]
    assert found["part"] != found["other"]


def reference_cases() -> list[Any]:
    """The recorded cases; the default suite takes one of each kind of training."""
    quick = {("gan", "two_gaussians"), ("vae", "moons"), ("ddpm", "ring"), ("flow", "moons")}
    names = [(case["settings"]["model"], case["settings"]["data"]) for case in REFERENCE["cases"]]
    return [
        pytest.param(case, id="-".join(name), marks=() if name in quick else (pytest.mark.slow,))
        for name, case in zip(names, REFERENCE["cases"], strict=True)
    ]


@pytest.mark.parametrize("case", reference_cases())
def test_curves_are_those_of_the_families_within_noise(engine: Engine, case: dict[str, Any]) -> None:
    found = np.array(engine(
        """
        return Array.from({ length: args[1] }, (_, seed) => {
          const made = train({ ...args[0].settings, seed }, 0);
          return args[0].after.map((update) => {
            while (made.update < update) made.step();
            return made.frame().curves.W1;
          });
        });
        """,
        case, SEEDS,
    ))  # fmt: skip
    recorded = np.array(case["w1"])
    standard_error = 1.25 * recorded.std(0, ddof=1) * math.sqrt(1 / len(recorded) + 1 / SEEDS)
    difference = np.median(found, axis=0) - np.median(recorded, axis=0)
    assert (np.abs(difference) < 3 * standard_error).all(), (found, np.median(recorded, axis=0))


MODELS = (
    "gaussian", "kde", "gmm", "pca", "ae", "vae", "gan", "pacgan2", "wgan_gp", "r1_r2", "ddpm", "flow", "meanflow",
    "xy_game",
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_a_seek_gives_what_a_straight_run_gives_and_frames_show_what_the_catalog_says(
    engine: Engine, model: str
) -> None:
    straight, again, sought, shows = engine(
        """
        const entry = m.catalog.find(m.catalog.MODELS, "model", args[0]);
        const given = { model: args[0], data: "moons", count: 300, seed: 2 };
        const trained = entry.parameters.some(({ name }) => name === "hidden");
        if (trained) Object.assign(given, { hidden: "32-32", batch: 32 });
        if (args[0] === "gmm") given.components = 5;
        const made = train(given, 7), frame = made.frame();
        const seek = (made, update) => {
          made.rewind(update);
          while (made.update < update && !made.finished) made.step();
          return made.frame();
        };
        seek(made, 12);
        seek(made, 3);
        const sought = seek(made, 7);
        return [frame, train(given, 7).frame(), sought, entry.shows];
        """,
        model,
    )
    assert straight == again == sought
    assert set(shows) <= {*straight, "optimal"}
    assert ("optimal" in straight) == ("optimal" in shows)
    assert all(np.isfinite(value) for value in straight["curves"].values())
    assert all(np.isfinite(straight["samples"]))
    field = straight.get("field")
    if field:
        assert len(field["values"]) == field["size"] ** 2
        assert field["low"] <= min(field["values"]) <= max(field["values"]) <= field["high"]


def test_few_or_equal_drawn_points_train_every_model(engine: Engine) -> None:
    frames = engine(
        """
        return args[0].flatMap((model) => [[[1, 1], [2, 0], [-1, 3]], [[1, 1], [1, 1], [1, 1]]].map((points) => {
          const given = { model, data: "drawn", points };
          const { parameters } = m.catalog.find(m.catalog.MODELS, "model", model);
          const trained = parameters.some(({ name }) => name === "hidden");
          if (trained) Object.assign(given, { hidden: "32-32", batch: 16 });
          const { samples, curves } = train(given, 3).frame();
          return { model, numbers: [...samples, ...Object.values(curves)] };
        }));
        """,
        MODELS,
    )
    assert len(frames) == 2 * len(MODELS)
    for frame in frames:
        assert all(value is not None and math.isfinite(value) for value in frame["numbers"]), frame["model"]


def test_many_updates_keep_few_states_and_every_update_can_be_sought(engine: Engine) -> None:
    states, found, expected = engine(
        """
        const given = { model: "gan", data: "ring", hidden: "32-32", batch: 16, updates: 500, seed: 1 };
        const made = train(given, 500), states = made.states.size;
        made.rewind(333);
        while (made.update < 333) made.step();
        return [states, made.frame().samples, train(given, 333).frame().samples];
        """
    )
    assert 30 <= states <= 64
    assert found == expected


def test_d_star_is_the_share_of_data_in_each_square(engine: Engine) -> None:
    optimal, p, q = engine(
        """
        const frame = train({ model: "gan", data: "two_gaussians" }, 1).frame();
        const made = new m.experiment.Experiment({ model: "gan", data: "two_gaussians" });
        return [frame.optimal, m.measures.smoothed(made.answer), m.measures.smoothed(frame.samples)];
        """
    )
    p, q = np.array(p), np.array(q)
    assert p.sum() == pytest.approx(1, abs=0.02)
    values = np.array(optimal["values"], float)
    known = p + q > 1e-5
    assert np.allclose(values[known], (p / np.maximum(p + q, 1e-12))[known], atol=1e-6)
    assert np.isnan(values[~known]).all()
    assert 0 < known.mean() < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gant"}, 'unknown model "gant"; known are gaussian, kde'),
        ({"data": "cube"}, 'unknown data "cube"; known are ring'),
        ({"lr": 5}, "lr must be a number from 0.00001 to 0.1; it is 5"),
        ({"updates": 100.5}, "updates must be a whole number from 100 to 50000; it is 100.5"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295; it is -1"),
        ({"loss": "mse"}, 'loss must be one of non_saturating, minimax; it is "mse"'),
        ({"beta": 2}, 'unknown parameter "beta" of gan on ring; known are'),
        ({"data": "drawn"}, 'data "drawn" needs points'),
        (
            {"data": "drawn", "points": [[0, 0], [1, 1], [5, 0]]},
            "a point must be [x, y] with numbers from -4 to 4; one is [5,0]",
        ),
        ({"points": [[0, 0]]}, 'points belong to data "drawn"; the data is "ring"'),
    ],
)
def test_wrong_settings_are_one_clear_line(engine: Engine, settings: dict[str, Any], message: str) -> None:
    said = engine("try { m.catalog.checkSettings(args[0]); } catch (error) { return error.message; }", settings)
    assert said.startswith(message)
    assert "\n" not in said


def test_defaults_of_the_catalog_are_valid_and_no_name_is_used_twice(engine: Engine) -> None:
    settings, names = engine(
        """
        const checked = m.catalog.MODELS.flatMap((model) =>
          m.catalog.DATA.map((data) => m.catalog.checkSettings({
            model: model.name, data: data.name, ...(data.name === "drawn" ? { points: [[0, 0], [1, 1], [2, 0]] } : {}),
          })));
        return [checked, m.catalog.MODELS.map((model) => m.catalog.DATA.map((data) => [
          "data", "model", "seed", "points", ...[...data.parameters, ...model.parameters].map(({ name }) => name)]))];
        """
    )
    assert {each["model"] for each in settings} == set(MODELS)
    assert all(len(each) == len(set(each)) for model in names for each in model)


def test_the_worker_answers_each_message(engine: Engine) -> None:
    found = engine(
        """
        const worker = new Worker(`${base}worker.js`, { type: "module" });
        const send = (message) => new Promise((resolve) => {
          worker.onmessage = ({ data }) => resolve(data);
          worker.onerror = (event) => resolve({ type: "error", message: `worker: ${event.message}` });
          worker.postMessage(message);
        });
        const settings = { model: "gan", data: "ring", count: 500, hidden: "32-32", batch: 16, updates: 200, seed: 4 };
        const early = await send({ type: "step", updates: 1 });
        const first = await send({ type: "start", settings });
        const third = await send({ type: "step", updates: 3 });
        const last = await send({ type: "step", updates: 500 });
        const back = await send({ type: "seek", update: 3 });
        const wrong = await send({ type: "start", settings: { ...settings, lr: 7 } });
        await send({ type: "start", settings: { model: "kde", count: 100, bandwidth: 0.3 } });
        const kernel = await send({ type: "view", settings: { spread: 0 } });
        const fixed = await send({ type: "view", settings: { bandwidth: 1 } });
        const unknown = await send({ type: "dance" });
        worker.terminate();
        return { early, first, third, last, back, wrong, kernel, fixed, unknown };
        """
    )
    first, third, last, back = found["first"], found["third"], found["last"], found["back"]
    assert found["early"] == {"type": "error", "message": "no experiment has started"}
    assert {"type", "update", "finished", "samples", "data", "curves", "field", "optimal", "arrows"} == set(first)
    assert (first["type"], first["update"], first["finished"], len(first["data"])) == ("frame", 0, False, 1000)
    assert (third["update"], third["finished"]) == (3, False)
    assert (last["update"], last["finished"]) == (200, True)
    assert back == third
    assert found["wrong"] == {"type": "error", "message": "lr must be a number from 0.00001 to 0.1; it is 7"}
    centres = {tuple(point) for point in points(found["kernel"]["kernels"]["centres"]).tolist()}
    assert {tuple(point) for point in points(found["kernel"]["samples"]).tolist()} <= centres
    assert found["fixed"]["message"] == "bandwidth cannot change during an experiment; start a new one"
    assert found["unknown"]["message"] == 'unknown message "dance"; known are start, step, seek, view'


def test_training_that_diverges_ends_with_one_clear_line(engine: Engine) -> None:
    said = engine(
        """
        const made = new m.experiment.Experiment({ model: "ae", data: "ring", hidden: "32-32", batch: 16 });
        made.model.nets[0].parameters[0].data.fill(Infinity);
        try { made.step(); } catch (error) { return error.message; }
        """
    )
    assert said == "loss is not finite after update 1; a lower learning rate may help"
