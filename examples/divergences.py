"""What alignment objectives estimate, and how well: four figures, with the numbers on stdout.

    python examples/divergences.py [--output divergences.html] [--seeds 100]

D+ and D- are Gaussians of unit covariance, so every truth is known: a shift of m nats of KL puts
their means sqrt(2 m) apart. Takes well under a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import torch
from torch import Tensor

from trueline import divergences as dv
from trueline.divergences import Gaussian

CLIP = 3.0
ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Donsker-Varadhan": dv.donsker_varadhan,
    f"clipped at {CLIP:g}": lambda a, b: dv.donsker_varadhan_clipped(a, b, CLIP),
    "NWJ": lambda a, b: dv.nwj(a + 1, b + 1),
}


def gaussians(kl: float, d: int = 1) -> tuple[Gaussian, Gaussian]:
    """D+ and D- in d dimensions with KL(D+ || D-) = kl."""
    mean, identity = torch.zeros(d).double(), torch.eye(d).double()
    return Gaussian(mean + math.sqrt(2 * kl / d), identity), Gaussian(mean, identity)


def rewards(kl: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best critic ln D+/D- on n samples of each."""
    p, q = gaussians(kl)
    x, y = p.sample(n, generator), q.sample(n, generator)
    return p.log_prob(x) - q.log_prob(x), p.log_prob(y) - q.log_prob(y)


def fit(x: Tensor, y: Tensor, steps: int = 30) -> Tensor:
    """The linear critic (d,) with the largest Donsker-Varadhan value on these samples."""
    theta = x.new_zeros(x.shape[1])
    for _ in range(steps):
        weights = (y @ theta).softmax(0)
        center = weights @ y
        curvature = (y - center).T @ (weights[:, None] * (y - center))
        curvature += 1e-6 * torch.eye(len(theta)).to(theta)
        step = torch.linalg.solve(curvature, x.mean(0) - center)
        theta = theta + step / max(1.0, float(step.norm()))
    return theta


def bias_and_spread(seeds: int) -> go.Figure:
    """Estimators with the best critic against the number of samples, at KL = 1."""
    kl, sizes = 1.0, [10, 30, 100, 300, 1000, 3000]
    figure = go.Figure()
    print(f"\nEstimates of KL = {kl} with the best critic: bias (standard deviation)")
    print(f"{'n':>6}  " + "  ".join(f"{name:>20}" for name in ESTIMATORS))
    table: dict[str, list[Tensor]] = {name: [] for name in ESTIMATORS}
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        draws = [rewards(kl, n, generator) for _ in range(4 * seeds)]
        for name, estimate in ESTIMATORS.items():
            table[name].append(torch.stack([estimate(a, b) for a, b in draws]) - kl)
        cells = (f"{v[-1].mean():+.3f} ({v[-1].std():.3f})" for v in table.values())
        print(f"{n:>6}  " + "  ".join(f"{cell:>20}" for cell in cells))
    for name, errors in table.items():
        bars = {"type": "data", "array": [float(e.std()) for e in errors]}
        figure.add_scatter(x=sizes, y=[float(e.mean()) for e in errors], error_y=bars, name=name)
    figure.update_layout(title=f"Bias and spread at KL = {kl:g}, best critic")
    figure.update_xaxes(title="samples of each class", type="log")
    figure.update_yaxes(title="estimate less truth, nats")
    return figure


def dimension(seeds: int) -> go.Figure:
    """A fitted linear critic against the dimension: flattering in sample, modest out of it."""
    kl, n, sizes = 0.5, 200, [1, 2, 4, 8, 16, 32]
    inside, outside = [], []
    print(f"\nA linear critic fitted to n = {n} of each, KL = {kl}: mean (standard deviation)")
    print(f"{'d':>6}  {'same samples':>16}  {'new samples':>16}")
    for d in sizes:
        p, q = gaussians(kl, d)
        generator = torch.Generator().manual_seed(d)
        values = []
        for _ in range(seeds):
            x, y = p.sample(n, generator), q.sample(n, generator)
            theta = fit(x, y)
            new = p.sample(n, generator) @ theta, q.sample(n, generator) @ theta
            values.append([dv.donsker_varadhan(x @ theta, y @ theta), dv.donsker_varadhan(*new)])
        result = torch.tensor(values)
        inside.append(result[:, 0])
        outside.append(result[:, 1])
        cells = (f"{v[-1].mean():.3f} ({v[-1].std():.3f})" for v in (inside, outside))
        print(f"{d:>6}  " + "  ".join(f"{cell:>16}" for cell in cells))
    figure = go.Figure()
    for name, series in (("same samples", inside), ("new samples", outside)):
        bars = {"type": "data", "array": [float(v.std()) for v in series]}
        figure.add_scatter(x=sizes, y=[float(v.mean()) for v in series], error_y=bars, name=name)
    figure.add_hline(y=kl, line_dash="dot", annotation_text="truth")
    figure.update_layout(title=f"Donsker-Varadhan with a fitted critic, n = {n}")
    figure.update_xaxes(title="dimension", type="log")
    figure.update_yaxes(title="nats")
    return figure


def collapse(seeds: int) -> list[go.Figure]:
    """Estimate, coverage and effective sample size as KL passes ln n."""
    levels = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 10, 12]
    value, shares, covered = go.Figure(), go.Figure(), go.Figure()
    print("\nWhere KL passes ln n: mean estimate / coverage of 95% intervals / effective share")
    print(f"{'KL':>6}  " + "  ".join(f"{f'n = {n}':>22}" for n in (30, 300, 3000)))
    lines: dict[float, list[str]] = {kl: [] for kl in levels}
    for n in (30, 300, 3000):
        means, hits, effective = [], [], []
        generator = torch.Generator().manual_seed(n)
        for kl in levels:
            draws = [rewards(kl, n, generator) for _ in range(2 * seeds)]
            estimates = torch.stack([dv.donsker_varadhan(a, b) for a, b in draws])
            errors = torch.stack([dv.donsker_varadhan_error(a, b) for a, b in draws])
            weights = torch.stack([b.softmax(0) for _, b in draws])
            means.append(float(estimates.mean()))
            hits.append(float(((estimates - kl).abs() < 1.96 * errors).double().mean()))
            effective.append(float((1 / (weights**2).sum(1) / n).mean()))
            lines[kl].append(f"{means[-1]:.2f} / {hits[-1]:.2f} / {effective[-1]:.3f}")
        name = f"n = {n}, ln n = {math.log(n):.1f}"
        for figure, series in ((value, means), (covered, hits), (shares, effective)):
            figure.add_scatter(x=levels, y=series, name=name)
    for kl, cells in lines.items():
        print(f"{kl:>6}  " + "  ".join(f"{cell:>22}" for cell in cells))
    value.add_scatter(x=levels, y=levels, name="truth", line_dash="dot")
    titles = {
        "Donsker-Varadhan's value with the best critic": (value, "nats"),
        "Coverage of its 95% intervals": (covered, "share of intervals that hold the truth"),
        "Effective share of undesirable samples": (shares, "1 / (n sum of squared weights)"),
    }
    for title, (figure, label) in titles.items():
        figure.update_layout(title=title)
        figure.update_xaxes(title="KL(D+ || D-), nats")
        figure.update_yaxes(title=label)
    return [value, covered, shares]


def sensitivity() -> go.Figure:
    """What each objective's minimum says of a shift between D+ and D-, as a share of its most."""
    grid = torch.linspace(-12, 24, 3601, dtype=torch.float64)

    def density(mean: float) -> Tensor:
        return (-((grid - mean) ** 2) / 2).softmax(0)

    def share(divergence: Callable[[Tensor, Tensor], Tensor], most: float, scale: float = 1.0):
        return lambda s: float(divergence(density(scale * s), density(0.0))) / most

    curves = {
        "DPO: JS of the pairs": share(dv.js, math.log(2), math.sqrt(2)),
        "HDO: squared Hellinger": share(dv.hellinger2, 2.0),
        "KTO: total variation": share(dv.tv, 1.0),
        "BCO: Jensen-Shannon": share(dv.js, math.log(2)),
        "KLDO: KL (of 32 nats)": share(dv.kl, 32.0),
    }
    shifts = [s / 10 for s in range(81)]
    figure = go.Figure()
    print("\nShift at which an objective has shown 50%, 90% and 99% of the most it can show")
    for name, curve in curves.items():
        values = [curve(s) for s in shifts]
        figure.add_scatter(x=shifts, y=values, name=name)
        at = [next((s for s, v in zip(shifts, values, strict=True) if v >= level), math.inf)
              for level in (0.5, 0.9, 0.99)]  # fmt: skip
        note = "  (of 32 nats; it has no most)" if name.startswith("KLDO") else ""
        print(f"  {name:<24} {at[0]:>5} {at[1]:>5} {at[2]:>5}{note}")
    figure.update_layout(title="Sensitivity to a shift between desirable and undesirable")
    figure.update_xaxes(title="distance of the means, standard deviations")
    figure.update_yaxes(title="share of the largest value")
    return figure


def main() -> None:
    """Draw everything into one HTML file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("divergences.html"))
    parser.add_argument("--seeds", type=int, default=100, help="repetitions of each experiment")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = [
        bias_and_spread(arguments.seeds),
        dimension(arguments.seeds),
        *collapse(arguments.seeds),
        sensitivity(),
    ]
    parts = [figure.to_html(full_html=False, include_plotlyjs=i == 0)
             for i, figure in enumerate(figures)]  # fmt: skip
    head = "<!doctype html><meta charset='utf-8'><title>Divergences, estimated</title>"
    arguments.output.write_text(head + "\n".join(parts), encoding="utf-8")
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
