"""Divergences in closed form, of discrete distributions and Gaussians: the truth to test with.

Conventions: nats; kl(p, q) is KL(p || q); js is the mean of both KL to the midpoint, at most ln 2;
tv is half the L1 distance, at most 1; hellinger2 is sum (sqrt p - sqrt q)^2 = 2 - 2 BC, at most 2;
chi2(p, q) is sum (p - q)^2 / q. Discrete ones take probabilities (..., K) and return (...).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution in d dimensions.

    Args:
        mean: (d,).
        covariance: (d, d), positive definite.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> standard = Gaussian(torch.zeros(2), torch.eye(2))
        >>> kl(Gaussian(torch.tensor([2.0, 0.0]), torch.eye(2)), standard).item()
        2.0
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.dim() != 1 or self.covariance.shape != (d, d):
            raise ValueError(
                f"expected mean (d,) and covariance (d, d), got {tuple(self.mean.shape)} and "
                f"{tuple(self.covariance.shape)}"
            )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d) independent draws."""
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).T

    def log_prob(self, points: Tensor) -> Tensor:
        """(n,) log-densities of (n, d) points, nats."""
        centered = points - self.mean
        squared = (centered * torch.linalg.solve(self.covariance, centered.T).T).sum(-1)
        return -0.5 * (squared + _log_det(self.covariance) + len(self.mean) * math.log(2 * math.pi))


Distribution: TypeAlias = Tensor | Gaussian


def kl(p: Distribution, q: Distribution) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) = E_p ln(p/q); infinite where q lacks p's support.

    Gaussians: (tr(Q^-1 P) + dm' Q^-1 dm - d + ln det Q - ln det P) / 2, covariances P, Q.

    Example:
        >>> round(kl(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])).item(), 6)
        0.143841
    """
    return _dispatch(p, q, _kl_discrete, _kl_gaussian)


def reverse_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(q || p), nats."""
    return kl(q, p)


def js(p: Distribution, q: Distribution) -> Tensor:
    """Jensen-Shannon divergence (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2; at most ln 2.

    Raises:
        UserError: Gaussians have no closed form.
    """
    return _dispatch(p, q, _js_discrete, _js_gaussian)


def tv(p: Distribution, q: Distribution) -> Tensor:
    """Total variation, sum |p - q| / 2, at most 1.

    Gaussians of one covariance: 2 Phi(delta / 2) - 1, delta their Mahalanobis distance.

    Raises:
        UserError: Gaussians of different covariances have no closed form.
    """
    return _dispatch(p, q, lambda p, q: (p - q).abs().sum(-1) / 2, _tv_gaussian)


def hellinger2(p: Distribution, q: Distribution) -> Tensor:
    """Squared Hellinger distance sum (sqrt p - sqrt q)^2 = 2 - 2 BC, at most 2.

    BC = E_q sqrt(p/q) is the Bhattacharyya coefficient; for Gaussians -ln BC = dm' S^-1 dm / 8 +
    ln(det S / sqrt(det P det Q)) / 2, S = (P + Q) / 2.
    """
    return _dispatch(p, q, lambda p, q: ((p.sqrt() - q.sqrt()) ** 2).sum(-1), _hellinger_gaussian)


def chi2(p: Distribution, q: Distribution) -> Tensor:
    """Pearson's chi-squared E_q (p/q - 1)^2; infinite where q lacks p's support.

    Gaussians: finite only where 2 P^-1 - Q^-1 is positive definite, that is where q's tails reach.
    """
    return _dispatch(p, q, _chi2_discrete, _chi2_gaussian)


def _dispatch(
    p: Distribution,
    q: Distribution,
    discrete: Callable[[Tensor, Tensor], Tensor],
    gaussian: Callable[[Gaussian, Gaussian], Tensor],
) -> Tensor:
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        if p.mean.shape != q.mean.shape:
            raise ValueError(f"dimensions differ: {len(p.mean)} and {len(q.mean)}")
        return gaussian(p, q)
    if isinstance(p, Gaussian) or isinstance(q, Gaussian):
        raise ValueError("both must be Gaussians or both probabilities; sample one to compare them")
    return discrete(probabilities(p), probabilities(q))


def probabilities(p: Tensor) -> Tensor:
    """``p`` itself, checked: (..., K), not negative, each row adding up to 1.

    Raises:
        ValueError: it is no distribution.
    """
    if bool((p < 0).any()) or not torch.allclose(p.sum(-1), p.new_ones(()), atol=1e-5):
        raise ValueError(
            "probabilities must not be negative and must add up to 1 in the last dimension, got "
            f"minimum {p.min().item():.3g} and sums {p.sum(-1).flatten()[:3].tolist()}; divide by "
            "the sum first"
        )
    return p


def _kl_discrete(p: Tensor, q: Tensor) -> Tensor:
    terms = p * (p.log() - q.log())
    return torch.where(p > 0, terms, 0.0).sum(-1)


def _js_discrete(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return (_kl_discrete(p, middle) + _kl_discrete(q, middle)) / 2


def _chi2_discrete(p: Tensor, q: Tensor) -> Tensor:
    terms = (p - q) ** 2 / q
    return torch.where((p == 0) & (q == 0), 0.0, terms).sum(-1)


def _log_det(covariance: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(covariance).diagonal().log().sum()


def _squared_distance(p: Gaussian, q: Gaussian, covariance: Tensor) -> Tensor:
    difference = p.mean - q.mean
    return difference @ torch.linalg.solve(covariance, difference)


def _kl_gaussian(p: Gaussian, q: Gaussian) -> Tensor:
    trace = torch.linalg.solve(q.covariance, p.covariance).trace()
    volume = _log_det(q.covariance) - _log_det(p.covariance)
    return (trace + _squared_distance(p, q, q.covariance) - len(p.mean) + volume) / 2


def _js_gaussian(p: Gaussian, q: Gaussian) -> Tensor:
    raise UserError(
        "the Jensen-Shannon divergence of Gaussians has no closed form; estimate it from samples "
        "with dual(DIVERGENCES['js'], ...) at the critic ln p/q, and halve it"
    )


def _tv_gaussian(p: Gaussian, q: Gaussian) -> Tensor:
    if not torch.allclose(p.covariance, q.covariance):
        raise UserError(
            "the total variation of Gaussians has a closed form only where their covariances "
            "agree; estimate it from samples with dual(DIVERGENCES['tv'], ...)"
        )
    distance = _squared_distance(p, q, p.covariance).sqrt()
    return torch.special.erf(distance / math.sqrt(8))


def _hellinger_gaussian(p: Gaussian, q: Gaussian) -> Tensor:
    middle = (p.covariance + q.covariance) / 2
    volume = _log_det(middle) - (_log_det(p.covariance) + _log_det(q.covariance)) / 2
    return -2 * torch.expm1(-_squared_distance(p, q, middle) / 8 - volume / 2)


def _chi2_gaussian(p: Gaussian, q: Gaussian) -> Tensor:
    precision_p, precision_q = p.covariance.inverse(), q.covariance.inverse()
    precision = 2 * precision_p - precision_q
    if bool((torch.linalg.eigvalsh(precision) <= 0).any()):
        return p.mean.new_tensor(math.inf)
    natural = 2 * precision_p @ p.mean - precision_q @ q.mean
    exponent = (
        natural @ torch.linalg.solve(precision, natural)
        - 2 * p.mean @ precision_p @ p.mean
        + q.mean @ precision_q @ q.mean
    )
    volume = _log_det(q.covariance) - 2 * _log_det(p.covariance) - _log_det(precision)
    return torch.expm1((exponent + volume) / 2)
