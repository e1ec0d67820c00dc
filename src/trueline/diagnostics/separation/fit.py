"""What is fitted before separation is measured: the split, the plane and the probe;
and distances between two clouds of points: closed forms and ranks, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from trueline.errors import UserError

Preset: TypeAlias = Literal["paper"]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

SMALLEST_CLASS = 4
"""Prompts of each class that every split needs for a covariance in the plane."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How plane and probe are fitted and what is measured; see ``separation_of``."""

    preset: Preset | None = None
    fit_fraction: float | None = None
    shrinkage: float | None = None
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        if self.preset not in (None, "paper"):
            raise UserError(f"preset must be 'paper' or None, got {self.preset!r}")
        given = self.fit_fraction is not None or self.shrinkage is not None
        if self.preset is not None and given:
            raise UserError("preset='paper' sets fit_fraction and shrinkage; leave them out")

    @property
    def name(self) -> str:
        return self.preset or "held_out"

    @property
    def ridge(self) -> float:
        """The shrinkage of the covariances in the plane."""
        if self.shrinkage is None:
            return 1e-6 if self.preset else 0.01
        return self.shrinkage

    def split(self, labels: Flags) -> Flags:
        """True where a prompt is fitted on, drawn within each class; the same for every model."""
        return _split(labels, 0.5 if self.fit_fraction is None else self.fit_fraction, self.seed)


def check_preset(preset: Preset | None, layer: int, position: str) -> None:
    """Refuse a layer or position beside the preset, which sets both.

    Raises:
        UserError: they contradict it.
    """
    if preset is not None and (layer != -1 or position != "last_prompt_token"):
        raise UserError(
            f"preset='paper' means layer -1 and position 'last_prompt_token'; got {layer} and "
            f"{position!r}; leave the preset or the options out"
        )


def labels_of(harmful: Sequence[bool], count: int) -> Flags:
    """The labels as an array, one for each of ``count`` prompts.

    Raises:
        UserError: another number of them, or something other than true and false.
    """
    labels = np.asarray(harmful)
    if labels.shape != (count,) or labels.dtype != np.bool_:
        raise UserError(f"expected {count} true/false labels, got {labels.shape} of {labels.dtype}")
    return labels


def finite_vectors(states: Any, labels: Flags) -> Array:
    points = np.asarray(states, dtype=np.float64)
    if points.ndim != 2 or len(points) != len(labels):
        raise UserError(
            f"expected (N, d) vectors and N true/false labels, got {points.shape} and "
            f"{labels.shape}"
        )
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points).all(axis=1)).sum())
        raise UserError(f"the hidden vectors of {bad} prompts are not finite")
    return points


def _split(labels: Any, fraction: float, seed: int) -> Any:
    """True where a prompt belongs to the part that is fitted on, drawn within each class."""
    if not 0.0 < fraction < 1.0:
        raise UserError(f"fit_fraction must be between 0 and 1, got {fraction}")
    rng = np.random.default_rng(seed)
    fit = np.zeros(len(labels), dtype=bool)
    for harmful in (True, False):
        members = rng.permutation(np.flatnonzero(labels == harmful))
        count = round(fraction * len(members))
        if min(count, len(members) - count) < SMALLEST_CLASS:
            raise UserError(
                f"{len(members)} {'harmful' if harmful else 'safe'} prompts are too few: each "
                f"part of the split needs at least {SMALLEST_CLASS} of each class"
            )
        fit[members[:count]] = True
    return fit


def plane_of(points: Array, labels: Any, fit: Any) -> tuple[Array, list[float]]:
    """All points in the two principal components of some, and the components' variance shares.

    A component's sign means nothing; the harmful mean is put to the right and above, so that two
    models' scatters can be read side by side.
    """
    from sklearn.decomposition import PCA

    if points.shape[1] < 2:
        raise UserError(f"a plane needs at least two dimensions, got {points.shape[1]}")
    pca = PCA(n_components=2, svd_solver="full").fit(points[fit])
    plane: Array = pca.transform(points)
    gap = plane[fit & labels].mean(axis=0) - plane[fit & ~labels].mean(axis=0)
    plane = plane * np.where(gap < 0, -1.0, 1.0)
    return plane, [float(share) for share in pca.explained_variance_ratio_]


def probe_of(points: Array, labels: Any, fit: Any) -> Array:
    """Every prompt's log-odds of being harmful, from a logistic regression on the fitted part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    scores: Array = probe.fit(points[fit], labels[fit]).decision_function(points)
    return scores


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
