"""Gaussian mixtures, fitted by expectation and maximisation (Dempster, Laird & Rubin 1977)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

PRIOR = 0.05
"""Strength of the prior that keeps a component from shrinking onto a point: as if each had besides its points a scatter
of so many times the data's mean variance in every direction."""

TINY = 1e-12


@dataclass(frozen=True)
class MixtureFit:
    """A mixture of K components over D numbers, in float64."""

    weights: Tensor
    """[K], which sum to 1."""
    means: Tensor
    """[K, D]."""
    cholesky: Tensor
    """[K, D, D], the lower triangles L of the covariances L L'."""
    objectives: tuple[float, ...] = ()
    """Mean log-likelihood of the data, with the prior's share, in nats after each maximisation; it never falls."""

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
        """-2 log L + (free numbers) log N: the lower the better (Schwarz 1978)."""
        count, size = self.means.shape
        free = count - 1 + count * size + count * size * (size + 1) // 2
        return float(-2 * self.log_density(x).sum()) + free * math.log(len(x))


def fit(
    x: Tensor,
    components: int,
    *,
    prior: float = PRIOR,
    iterations: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> MixtureFit:
    """The mixture of `components` that EM finds for x [N, D], from centres spread as k-means++ spreads them.

    Maximises log p(x) - scatter / 2 sum_k tr(Sigma_k^-1), where scatter is `prior` times the data's mean variance (a
    flat inverse-Wishart prior; 0 is plain maximum likelihood). Ends where that rises by less than `tolerance` nats.
    """
    x = x.double()
    # Never quite 0, or data that does not vary would have a covariance without a root.
    scatter = max(prior * float(x.var(0).mean()), TINY)
    nearest = torch.cdist(x, _kmeans_plus_plus(x, components, seed)).argmin(1)
    responsibility = torch.eye(components, dtype=torch.float64)[nearest]
    objectives: list[float] = []
    for _ in range(iterations):
        found = _maximise(x, responsibility, scatter)
        joint = found.log_joint(x)
        density = joint.logsumexp(1)
        precision = sum(float(torch.cholesky_inverse(L).trace()) for L in found.cholesky)
        objectives.append(float(density.mean()) - scatter / 2 * precision / len(x))
        if len(objectives) > 1 and objectives[-1] - objectives[-2] < tolerance:
            break
        responsibility = (joint - density[:, None]).exp()
    return replace(found, objectives=tuple(objectives))


def fit_best(x: Tensor, candidates: tuple[int, ...]) -> MixtureFit:
    """The mixture of x [N, D] whose number of components, one of `candidates`, has the lowest BIC."""
    return min((fit(x, count) for count in candidates), key=lambda found: found.bic(x.double()))


class Mixture(nn.Module):
    """Room for the mixtures of at most `components` over `size` numbers, and draws from them."""

    def __init__(self, components: int, size: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.means: Tensor
        self.cholesky: Tensor
        self.register_buffer("weights", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("cholesky", torch.zeros(components, size, size))

    def load_fit(self, found: MixtureFit) -> None:
        """Take over `found`; components that it does not have get the weight 0."""
        count = len(found.weights)
        for buffer, value in (
            (self.weights, found.weights),
            (self.means, found.means),
            (self.cholesky, found.cholesky),
        ):
            buffer.zero_()
            buffer[:count].copy_(value)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats of the whole mixture for x [N, size]: [N] float64."""
        held = self.weights > 0
        weights = self.weights[held].double()
        found = MixtureFit(weights / weights.sum(), self.means[held].double(), self.cholesky[held].double())
        return found.log_density(x.double())

    def draw(self, choice: Tensor, eps: Tensor, share: Tensor | None = None) -> Tensor:
        """Points [B, size] from choice [B] float64 in (0, 1) and eps [B, size] standard normals.

        `share` [B, components] or [components] takes the weights' place; it need not sum to 1.
        """
        share = (self.weights if share is None else share).double().expand(len(choice), -1)
        edges = share.cumsum(1)
        component = (choice[:, None] * edges[:, -1:] >= edges).sum(1).clamp(max=share.shape[1] - 1)
        return self.means[component] + (self.cholesky[component] * eps[:, None, :]).sum(2)


class LabelledMixture(Mixture):
    """A mixture of its own, of at most `most` components, for each of `classes`; one for all where that is 0."""

    def __init__(self, max_components: int, size: int, classes: int) -> None:
        super().__init__(max(classes, 1) * max_components, size)
        self.classes = classes
        self.candidates = tuple(1 << k for k in range(max_components.bit_length()) if 1 << k <= max_components)
        self.owner: Tensor
        self.register_buffer("owner", torch.zeros(max(classes, 1) * max_components, dtype=torch.int64))

    def fit(self, x: Tensor, label: Tensor) -> None:
        """Fit each class's mixture to its own of x [N, size], its number of components by BIC: 1, 2, 4, ..., most."""
        parts: list[tuple[MixtureFit, float]] = []
        owners: list[int] = []
        for owner in range(max(self.classes, 1)):
            mine = x[label == owner] if self.classes else x
            if len(mine) > 1:
                found = fit_best(mine, self.candidates)
                parts.append((found, len(mine) / len(x)))
                owners += [owner] * len(found.weights)
        self.load_fit(_concatenate(parts))
        self.owner.fill_(-1)
        self.owner[: len(owners)].copy_(torch.tensor(owners))

    def component_weights(self, label: Tensor) -> Tensor:
        """The components' weights for label [B, classes]: [B, components], all of them where it is zeros."""
        if not self.classes:
            return self.weights.expand(len(label), -1)
        owned = (self.owner[:, None] == torch.arange(self.classes, device=label.device)).to(label)
        share = self.weights * (label @ owned.T)
        # None asked for, or one that was never seen.
        return torch.where(share.sum(1, keepdim=True) > 0, share, self.weights)


def _log_normal(x: Tensor, mean: Tensor, cholesky: Tensor) -> Tensor:
    """log N(x; mean, L L') for x [N, D]: [N]."""
    white = torch.linalg.solve_triangular(cholesky, (x - mean).T, upper=False)
    log_det = cholesky.diagonal().log().sum()
    return -0.5 * (white.square().sum(0) + len(mean) * math.log(2 * math.pi)) - log_det


def _maximise(x: Tensor, responsibility: Tensor, scatter: float) -> MixtureFit:
    """The weights, means and covariances that x [N, D] has by responsibility [N, K]."""
    mass = responsibility.sum(0).clamp(min=1e-8)
    means = responsibility.T @ x / mass[:, None]
    prior = scatter * torch.eye(x.shape[1], dtype=torch.float64)
    triangles = []
    for k in range(len(mass)):
        centred = x - means[k]
        covariance = ((responsibility[:, k, None] * centred).T @ centred + prior) / mass[k]
        triangles.append(torch.linalg.cholesky(covariance))
    return MixtureFit(mass / mass.sum(), means, torch.stack(triangles))


def _concatenate(parts: list[tuple[MixtureFit, float]]) -> MixtureFit:
    """One mixture of several, each with its share."""
    return MixtureFit(
        torch.cat([share * found.weights for found, share in parts]),
        torch.cat([found.means for found, _ in parts]),
        torch.cat([found.cholesky for found, _ in parts]),
    )


def _kmeans_plus_plus(x: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the rows of x, each chosen by its squared distance to those before (Arthur & Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(seed)
    centres = [x[int(torch.randint(len(x), (1,), generator=generator))]]
    for _ in range(count - 1):
        distance = torch.cdist(x, torch.stack(centres)).amin(1).square()
        if not distance.any():  # fewer different rows than centres
            distance = torch.ones_like(distance)
        centres.append(x[int(torch.multinomial(distance, 1, generator=generator))])
    return torch.stack(centres)
