"""Scores of samples and of learned ratios, one number per replicate.

Samples come as (R, n, d) and scores as (R,) tensors in float64, on the CPU. A score of a finite
sample has a floor, what a perfect model scores; `emd_floor` computes the one of `emd`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import ot
import torch
from scipy.linalg import sqrtm
from scipy.stats import t as student
from torch import Tensor

from gan_ebm_utils.base import Sample, check_positive, check_samples


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval; prints as "98.2 [97.8, 98.6]"."""

    mean: float
    low: float
    high: float
    digits: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.{self.digits}f} [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"
        )


def mean_interval(values: Tensor, digits: int = 3) -> Interval:
    """Mean over replicates and its 95 % t-interval, mean +- t_{R-1} s / sqrt(R).

    `values` is (R,) with R >= 2; `digits` is the number of decimals printed.

    Raises ValueError for fewer than two values or values that are not finite.

    >>> print(mean_interval(torch.tensor([1.0, 2.0, 3.0]), digits=2))
    2.00 [-0.48, 4.48]
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be (R,) with R at least 2, got {tuple(values.shape)}")
    check_samples(values=values)
    values = values.detach().double()
    mean, half = float(values.mean()), student.ppf(0.975, len(values) - 1)
    half = float(half * values.std() / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, digits)


def emd(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples (R, n, d) of equal n, Euclidean ground distance, exact.

    min over permutations s of (1/n) sum_i |x_i - y_s(i)|, in units of x, as (R,). Computed by POT;
    the time grows like n^2 to n^3, a third of a second per replicate at n = 2000. State n and the
    floor beside the number.

    Raises ValueError for other shapes, unequal n, empty samples, values that are not finite.

    >>> emd(torch.zeros(1, 3, 2), torch.ones(1, 3, 2))  # sqrt(2)
    tensor([1.4142], dtype=torch.float64)
    """
    _check_pair(x, y)
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    costs = []
    for a, b in zip(
        x.detach().double().cpu().numpy(), y.detach().double().cpu().numpy(), strict=True
    ):
        cost = ot.dist(a, b, metric="euclidean")
        costs.append(ot.emd2([], [], cost, numItermax=10_000_000))
    return torch.tensor(costs, dtype=torch.float64)


def emd_floor(sample: Sample, n: int, generator: torch.Generator, replicates: int = 10) -> Tensor:
    """`emd` between two independent samples of size n of one law, (replicates,).

    A model that equals the law scores this and not 0. `sample(size, generator)` draws the points,
    as `Distribution.sample` does.
    """
    check_positive(n=n, replicates=replicates)
    return emd(sample((replicates, n), generator), sample((replicates, n), generator))


class ModeReport(NamedTuple):
    """How samples cover the modes of a mixture, each field (R,).

    `recovered`: modes with at least one sample within n_std * std. `min_share`: the share of the
    rarest mode times the number of modes, 1 at best. `high_quality`: share of samples within
    n_std * std of their nearest mode. `inlier_std`: their standard deviation about it, per
    coordinate. `jsd` and `reverse_kl` (KL(shares || uniform)) compare the inliers' shares of the
    modes with equal shares, in nats.
    """

    recovered: Tensor
    min_share: Tensor
    high_quality: Tensor
    inlier_std: Tensor
    jsd: Tensor
    reverse_kl: Tensor


def mode_report(x: Tensor, means: Tensor, std: float, n_std: float = 4.0) -> ModeReport:
    """Coverage and quality of samples x (R, n, d) of equal Gaussians N(means_k, std^2 I).

    `means` is (modes, d). A replicate without inliers has share 0 for every mode, inlier_std nan
    and the divergences at their values for a law that is elsewhere: jsd log 2 and reverse_kl inf.
    The thresholds in use are 3 and 4 standard deviations; state which.

    Raises ValueError for other shapes, empty samples, values that are not finite, std <= 0.

    >>> means = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> report = mode_report(torch.tensor([[[0.0, 0.0], [0.0, 0.1], [5.0, 5.0]]]), means, std=0.05)
    >>> float(report.recovered), round(float(report.high_quality), 3)
    (1.0, 0.667)
    """
    check_positive(std=std, n_std=n_std)
    if x.ndim != 3 or means.ndim != 2 or x.shape[2] != means.shape[1]:
        raise ValueError(
            f"x must be (R, n, d) and means (modes, d), got {tuple(x.shape)} and "
            f"{tuple(means.shape)}"
        )
    check_samples(x=x, means=means)
    x, means = x.detach().double().cpu(), means.double().cpu()
    n_modes = len(means)
    distance, nearest = torch.cdist(x, means.expand(len(x), -1, -1)).min(dim=2)  # (R, n)
    inlier = distance < n_std * std
    counts = torch.zeros(len(x), n_modes, dtype=torch.float64)
    counts.scatter_add_(1, nearest, inlier.double())
    n_inliers = counts.sum(dim=1)
    shares = counts / n_inliers.clamp(min=1)[:, None]
    uniform = torch.full_like(shares, 1 / n_modes)
    found = n_inliers > 0
    jsd = (_kl(shares, (shares + uniform) / 2) + _kl(uniform, (shares + uniform) / 2)) / 2
    squares = torch.where(inlier, distance**2, 0).sum(dim=1)
    return ModeReport(
        recovered=(counts > 0).sum(dim=1).double(),
        min_share=shares.min(dim=1).values * n_modes,
        high_quality=n_inliers / x.shape[1],
        inlier_std=(squares / (n_inliers * x.shape[2])).sqrt(),
        jsd=torch.where(found, jsd, math.log(2)),
        reverse_kl=torch.where(found, _kl(shares, uniform), math.inf),
    )


class Calibration(NamedTuple):
    """A calibration curve, each field (R, n_bins): nan where a bin is empty."""

    predicted: Tensor
    observed: Tensor
    count: Tensor


def calibration(real: Tensor, fake: Tensor, n_bins: int = 15) -> Calibration:
    """Share of real samples among those with D = sigmoid(logit) in each of equal bins of [0, 1].

    `real` and `fake` are logits (R, n) of equally many samples. A discriminator with D = p/(p + q)
    is calibrated: the observed share equals the mean of D in each bin. The converse fails.

    >>> curve = calibration(torch.full((1, 8), 2.0), torch.full((1, 8), -2.0), n_bins=2)
    >>> curve.observed
    tensor([[0., 1.]], dtype=torch.float64)
    """
    if real.ndim != 2 or real.shape != fake.shape:
        raise ValueError(
            f"real and fake must be logits (R, n) of one shape, got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}"
        )
    check_positive(n_bins=n_bins)
    check_samples(real=real, fake=fake)
    d = torch.cat([real, fake], dim=1).detach().double().cpu().sigmoid()
    is_real = torch.zeros_like(d)
    is_real[:, : real.shape[1]] = 1
    which = (d * n_bins).long().clamp(max=n_bins - 1)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(len(d), n_bins, dtype=torch.float64).scatter_add_(1, which, values)

    count = total(torch.ones_like(d))
    return Calibration(total(d) / count, total(is_real) / count, count)


def frechet_distance(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2}), the squared W_2 of two Gaussians.

    Means (d,), covariances (d, d). Over the features of a classifier this is the FID (Heusel et al.
    2017, arXiv:1706.08500, equation 6).

    >>> eye = torch.eye(2)
    >>> round(frechet_distance(torch.zeros(2), eye, torch.ones(2), 4 * eye), 6)  # 2 + 2 (2 - 1)^2
    4.0
    """
    arrays = [a.detach().double().cpu() for a in (mean_x, cov_x, mean_y, cov_y)]
    mean_x, cov_x, mean_y, cov_y = arrays
    d = len(mean_x)
    if [tuple(a.shape) for a in arrays] != [(d,), (d, d), (d,), (d, d)]:
        raise ValueError(
            "give means (d,) and covariances (d, d) of one d, got "
            + ", ".join(str(tuple(a.shape)) for a in arrays)
        )
    check_samples(mean_x=mean_x, cov_x=cov_x, mean_y=mean_y, cov_y=cov_y)
    # The product of two covariances has a real root; the imaginary part is rounding.
    cross = np.trace(sqrtm((cov_x @ cov_y).numpy()).real)
    return float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=1)


def _check_pair(x: Tensor, y: Tensor) -> None:
    for name, sample in (("x", x), ("y", y)):
        if sample.ndim != 3:
            raise ValueError(f"{name} must be (R, n, d), got {tuple(sample.shape)}")
    check_samples(x=x, y=y)
