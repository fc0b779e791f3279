"""Gaussian mixtures, fitted by expectation maximisation (Dempster, Laird & Rubin 1977)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

PRIOR = 0.05
"""Strength of the prior that keeps a component from collapsing onto a point. It adds to each component's scatter this
multiple of the data's mean variance in every direction."""

POINTS_PER_DIRECTION = 2
"""Points per component and direction that `fit_pooled` needs."""
TINY = 1e-12


@dataclass(frozen=True)
class MixtureFit:
    """A mixture of K Gaussians in D dimensions, in float64."""

    weights: Tensor
    """[K], with sum 1."""
    means: Tensor
    """[K, D]."""
    cholesky: Tensor
    """[K, D, D], the lower triangles L of the covariances L L'."""
    objectives: tuple[float, ...] = ()
    """The objective in nats after each M-step: the data's mean log-likelihood plus the prior's term.

    Non-decreasing, unless covariances are pooled.
    """

    def log_joint(self, x: Tensor) -> Tensor:
        """log (weight_k N(x; mean_k, L_k L_k')) for x [N, D]: [N, K]."""
        return torch.stack(
            [
                w.log() + _log_normal(x, mean, L)
                for w, mean, L in zip(self.weights, self.means, self.cholesky, strict=True)
            ],
            dim=1,
        )

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats for x [N, D]: [N]."""
        return self.log_joint(x).logsumexp(1)

    def bic(self, x: Tensor) -> float:
        """-2 log L + (free parameters) log N: lower is better (Schwarz 1978)."""
        count, size = self.means.shape
        free = count - 1 + count * size + count * size * (size + 1) // 2
        return float(-2 * self.log_density(x).sum()) + free * math.log(len(x))


def fit(
    x: Tensor,
    components: int,
    *,
    prior: float = PRIOR,
    pooled: float = 0.0,
    lloyd: int = 0,
    iterations: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> MixtureFit:
    """Fit `components` Gaussians to x [N, D] by EM, from the initial centres of k-means++ and `lloyd` steps of k-means.

    Maximises log p(x) - scatter / 2 sum_k tr(Sigma_k^-1), where scatter is `prior` times the data's mean variance (a
    flat inverse-Wishart prior; 0 is plain maximum likelihood). Each covariance is averaged with the one within all
    components together, as if that had been estimated from `pooled` more points of the component (an inverse-Wishart
    prior around it). Stops if an iteration gains less than `tolerance` nats.
    """
    x = x.double()
    # Never 0: constant data would have a covariance without a Cholesky factor.
    scatter = max(prior * float(x.var(0).mean()), TINY)
    responsibility = _nearest(x, _kmeans_plus_plus(x, components, seed))
    for _ in range(lloyd):
        centres = responsibility.T @ x / responsibility.sum(0).clamp(min=1)[:, None]
        responsibility = _nearest(x, centres)
    objectives: list[float] = []
    for _ in range(iterations):
        mixture = _maximise(x, responsibility, scatter, pooled)
        joint = mixture.log_joint(x)
        density = joint.logsumexp(1)
        precision = sum(float(torch.cholesky_inverse(L).trace()) for L in mixture.cholesky)
        objectives.append(float(density.mean()) - scatter / 2 * precision / len(x))
        if len(objectives) > 1 and objectives[-1] - objectives[-2] < tolerance:
            break
        responsibility = (joint - density[:, None]).exp()
    return replace(mixture, objectives=tuple(objectives))


def fit_best(x: Tensor, candidates: tuple[int, ...]) -> MixtureFit:
    """The mixture of x [N, D] whose number of components, one of `candidates`, has the lowest BIC."""
    return min((fit(x, count) for count in candidates), key=lambda mixture: mixture.bic(x.double()))


def fit_pooled(x: Tensor, candidates: tuple[int, ...], pooled: float) -> MixtureFit:
    """The mixture of x [N, D] with as many components, of `candidates`, as leave POINTS_PER_DIRECTION * D points each.

    Many Gaussians follow the data more closely than BIC allows, with covariances that share `pooled` points: see `fit`.
    """
    fitting = [count for count in candidates if len(x) >= count * POINTS_PER_DIRECTION * x.shape[1]]
    return fit(x, max(fitting, default=1), pooled=pooled, lloyd=20, iterations=30, tolerance=0.01)


class Mixture(nn.Module):
    """A mixture of at most `components` Gaussians in `size` dimensions, in buffers, and samples from it."""

    def __init__(self, components: int, size: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.means: Tensor
        self.cholesky: Tensor
        self.register_buffer("weights", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("cholesky", torch.zeros(components, size, size))

    def load_fit(self, fit: MixtureFit) -> None:
        """Copy `fit` into the buffers; unused components get weight 0."""
        count = len(fit.weights)
        for buffer, value in ((self.weights, fit.weights), (self.means, fit.means), (self.cholesky, fit.cholesky)):
            buffer.zero_()
            buffer[:count].copy_(value)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats of the whole mixture for x [N, size]: [N] float64."""
        used = self.weights > 0
        weights = self.weights[used].double()
        fit = MixtureFit(weights / weights.sum(), self.means[used].double(), self.cholesky[used].double())
        return fit.log_density(x.double())

    def sample(self, choice: Tensor, eps: Tensor, weights: Tensor | None = None) -> Tensor:
        """Points [B, size] from choice [B] float64 in (0, 1) and eps [B, size] standard normals.

        `weights` [B, components] or [components] replaces the mixture's own; its sum need not be 1.
        """
        # On the CPU if `noise.uniform` put its float64 there.
        weights = (self.weights if weights is None else weights).to(choice.device).double().expand(len(choice), -1)
        edges = weights.cumsum(1)
        component = (choice[:, None] * edges[:, -1:] >= edges).sum(1).clamp(max=weights.shape[1] - 1).to(eps.device)
        return self.means[component] + (self.cholesky[component] * eps[:, None, :]).sum(2)


Select = Callable[[Tensor, tuple[int, ...]], MixtureFit]
"""Fits mixtures of several numbers of components to points [N, D], and returns one: `fit_best` or `fit_pooled`."""


class LabelledMixture(Mixture):
    """One mixture of at most `max_components` Gaussians per class; a single one if `classes` is 0."""

    def __init__(self, max_components: int, size: int, classes: int) -> None:
        super().__init__(max(classes, 1) * max_components, size)
        self.classes = classes
        self.candidates = tuple(1 << k for k in range(max_components.bit_length()) if 1 << k <= max_components)
        self.owner: Tensor
        self.register_buffer("owner", torch.zeros(max(classes, 1) * max_components, dtype=torch.int64))

    def fit(self, x: Tensor, label: Tensor, select: Select = fit_best) -> None:
        """Fit each class's mixture to its points of x [N, size].

        `select` chooses the number of Gaussians: 1, 2, 4, ..., max_components.
        """
        parts: list[tuple[MixtureFit, float]] = []
        owners: list[int] = []
        for owner in range(max(self.classes, 1)):
            points = x[label == owner] if self.classes else x
            if len(points) > 1:
                mixture = select(points, self.candidates)
                parts.append((mixture, len(points) / len(x)))
                owners += [owner] * len(mixture.weights)
        self.load_fit(_concatenate(parts))
        self.owner.fill_(-1)
        self.owner[: len(owners)].copy_(torch.tensor(owners))

    def component_weights(self, label: Tensor) -> Tensor:
        """Component weights for label [B, classes]: [B, components]; all components for a label of zeros."""
        if not self.classes:
            return self.weights.expand(len(label), -1)
        owned = (self.owner[:, None] == torch.arange(self.classes, device=label.device)).to(label)
        weights = self.weights * (label @ owned.T)
        # All weights are 0 without a label, or for a class without training data.
        return torch.where(weights.sum(1, keepdim=True) > 0, weights, self.weights)


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The nearest of centres [K, D] to each row of x [N, D], one-hot: [N, K]."""
    return torch.eye(len(centres), dtype=torch.float64)[torch.cdist(x, centres).argmin(1)]


def _log_normal(x: Tensor, mean: Tensor, cholesky: Tensor) -> Tensor:
    """log N(x; mean, L L') for x [N, D]: [N]."""
    white = torch.linalg.solve_triangular(cholesky, (x - mean).T, upper=False)
    log_det = cholesky.diagonal().log().sum()
    return -0.5 * (white.square().sum(0) + len(mean) * math.log(2 * math.pi)) - log_det


def _maximise(x: Tensor, responsibility: Tensor, scatter: float, pooled: float) -> MixtureFit:
    """The M-step: weights, means and covariances of x [N, D] from responsibility [N, K]."""
    mass = responsibility.sum(0).clamp(min=1e-8)
    means = responsibility.T @ x / mass[:, None]
    prior = scatter * torch.eye(x.shape[1], dtype=torch.float64)
    scatters = []
    for k in range(len(mass)):
        centred = x - means[k]
        scatters.append((responsibility[:, k, None] * centred).T @ centred + prior)
    if pooled:
        within = torch.stack(scatters).sum(0) / len(x)
        scatters = [own + pooled * within for own in scatters]
    triangles = [torch.linalg.cholesky(own / (m + pooled)) for own, m in zip(scatters, mass, strict=True)]
    return MixtureFit(mass / mass.sum(), means, torch.stack(triangles))


def _concatenate(parts: list[tuple[MixtureFit, float]]) -> MixtureFit:
    """One mixture of several, each weighted by its share."""
    return MixtureFit(
        torch.cat([share * mixture.weights for mixture, share in parts]),
        torch.cat([mixture.means for mixture, _ in parts]),
        torch.cat([mixture.cholesky for mixture, _ in parts]),
    )


def _kmeans_plus_plus(x: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows of x, each sampled by its squared distance to the earlier ones (Arthur & Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(seed)
    centres = [x[int(torch.randint(len(x), (1,), generator=generator))]]
    for _ in range(count - 1):
        distance = torch.cdist(x, torch.stack(centres)).amin(1).square()
        if not distance.any():  # fewer distinct rows than centres
            distance = torch.ones_like(distance)
        centres.append(x[int(torch.multinomial(distance, 1, generator=generator))])
    return torch.stack(centres)
