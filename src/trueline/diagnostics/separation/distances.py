"""How far apart two clouds of points are: closed forms and ranks, without a model."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from trueline.errors import UserError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def bhattacharyya_distance(a: Any, b: Any, *, shrinkage: float = 0.0) -> float:
    """The Bhattacharyya distance of two clouds of points, each taken as a Gaussian.

        D_B = 1/8 dm' S^-1 dm + 1/2 ln(det S / sqrt(det S_a det S_b)),  S = (S_a + S_b)/2

    dm is the difference of the means, S_a and S_b are the covariances (divided by n - 1). The
    coefficient exp(-D_B) is the overlap: 1 for equal clouds, and half of it bounds the error of
    the best classifier between them.

    Args:
        a: (n, k) points.
        b: (m, k) points.
        shrinkage: in [0, 1); each covariance becomes (1 - s) S + s (trace S / k) I, which keeps
            a nearly flat cloud from making the distance explode.

    Returns:
        The distance, at least 0, without a unit (nats of overlap).

    Raises:
        UserError: shapes that do not fit, or a covariance that is singular.

    Example:
        >>> a = [[0.0], [2.0]]                  # mean 1, variance 2
        >>> b = [[4.0], [6.0]]                  # mean 5, variance 2
        >>> round(bhattacharyya_distance(a, b), 12)        # 1/8 * 4^2 / 2
        1.0

    Source: Bhattacharyya (1943); Kailath (1967), IEEE Transactions on Communication Technology
    15, 52-60, equation 61.
    """
    gap, cov_a, cov_b = _moments(a, b, shrinkage)
    factor = _cholesky((cov_a + cov_b) / 2)
    distance = float(np.sum(np.linalg.solve(factor, gap) ** 2)) / 8
    spread = _half_log_det(factor)
    return (
        distance + spread - (_half_log_det(_cholesky(cov_a)) + _half_log_det(_cholesky(cov_b))) / 2
    )


def fisher_ratio(a: Any, b: Any, *, shrinkage: float = 0.0) -> float:
    """Fisher's criterion along its best direction: squared distance of means over the variances.

        max_w (w'dm)^2 / (w' (S_a + S_b) w) = dm' (S_a + S_b)^-1 dm

    Args and errors are those of :func:`bhattacharyya_distance`.

    Example:
        >>> fisher_ratio([[0.0], [2.0]], [[4.0], [6.0]])    # 4^2 / (2 + 2)
        4.0
    """
    gap, cov_a, cov_b = _moments(a, b, shrinkage)
    return float(np.sum(np.linalg.solve(_cholesky(cov_a + cov_b), gap) ** 2))


def _moments(a: Any, b: Any, shrinkage: float) -> tuple[Array, Array, Array]:
    if not 0.0 <= shrinkage < 1.0:
        raise UserError(f"shrinkage must be in [0, 1), got {shrinkage}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"expected two arrays of points (n, k) and (m, k), got {first.shape} and {second.shape}"
        )
    if min(len(first), len(second)) < 2:
        raise UserError("a covariance needs at least two points of each class")
    gap = first.mean(axis=0) - second.mean(axis=0)
    return gap, _covariance(first, shrinkage), _covariance(second, shrinkage)


def _covariance(points: Array, shrinkage: float) -> Array:
    size = points.shape[1]
    cov = np.atleast_2d(np.cov(points, rowvar=False)).astype(np.float64)
    return (1 - shrinkage) * cov + shrinkage * np.trace(cov) / size * np.eye(size)


def _cholesky(cov: Array) -> Array:
    try:
        return np.linalg.cholesky(cov).astype(np.float64)
    except np.linalg.LinAlgError:
        raise UserError(
            "a class's covariance is singular (its points lie on a line or coincide); give more "
            "different prompts, or a shrinkage above 0"
        ) from None


def _half_log_det(factor: Array) -> float:
    """1/2 ln det of the matrix whose Cholesky factor this is."""
    return float(np.log(np.diag(factor)).sum())


def auroc(harmful: Array, safe: Array) -> float:
    """How often a harmful prompt's score, (n, 1), exceeds a safe one's, (m, 1); ties count half.

    Example:
        >>> auroc(np.array([[2.0], [1.0]]), np.array([[0.0], [1.0]]))    # (1 + 1 + 1 + 1/2) / 4
        0.875
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([harmful[:, 0], safe[:, 0]]))
    wins = ranks[: len(harmful)].sum() - len(harmful) * (len(harmful) + 1) / 2
    return float(wins / (len(harmful) * len(safe)))
