"""Scores of samples and of learned ratios, one number per replicate.

Samples come as (R, n, d) and scores as (R,) tensors in float64, on the CPU. A score of a finite
sample has a floor, what a perfect model scores; `emd_floor` computes the one of `emd`.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import ot
import torch
from scipy.stats import binom
from scipy.stats import t as student
from torch import Tensor

from gan_ebm_utils import base
from gan_ebm_utils.base import Box, Distribution, Energy, Interval, Sample


def mean_interval(values: Tensor, digits: int = 3) -> Interval:
    """Mean over replicates and its 95 % t-interval, mean +- t_{R-1} s / sqrt(R).

    `values` is (R,) with R >= 2; `digits` is the number of decimals printed.

    Raises ValueError for fewer than two values or values that are not finite.

    >>> print(mean_interval(torch.tensor([1.0, 2.0, 3.0]), digits=2))
    2.00 [-0.48, 4.48]
    """
    base.check_count(0, digits=digits)
    base.check_samples(values=values)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be (R,) with R at least 2, got {tuple(values.shape)}")
    values, n = _in_float64(values), len(values)
    half = float(student.ppf(0.975, n - 1)) * float(values.std()) / n**0.5
    return Interval(mean := float(values.mean()), mean - half, mean + half, digits)


def emd(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples (R, n, d) of equal n, Euclidean ground distance, exact.

    min over permutations s of (1/n) sum_i |x_i - y_s(i)|, in units of x, as (R,). Computed by POT;
    the time grows like n^2 to n^3, a third of a second per replicate at n = 2000. State n and the
    floor beside the number.

    Raises ValueError for other shapes, unequal n, empty samples, values that are not finite.

    >>> emd(torch.zeros(1, 3, 2), torch.ones(1, 3, 2))  # sqrt(2)
    tensor([1.4142], dtype=torch.float64)
    """
    costs = []
    for a, b in zip(*_checked(x=(x, "R n d"), y=(y, "R n d")), strict=True):
        cost = torch.cat(list(base.distances(a, b)))
        # In units of the largest: the solver takes costs below 1e-11 or so for 0.
        unit = float(cost.max()) or 1.0
        costs.append(unit * ot.emd2([], [], cost.div_(unit).numpy(), numItermax=10_000_000))
    return torch.tensor(costs, dtype=torch.float64, device="cpu")


def emd_floor(sample: Sample, n: int, generator: torch.Generator, replicates: int = 10) -> Tensor:
    """`emd` between two independent samples of size n of one law, (replicates,).

    A model that equals the law scores this and not 0. `sample(size, generator)` draws the points,
    as `Distribution.sample` does.

    >>> from gan_ebm_utils.base import randn, seeded
    >>> normal = lambda size, generator: randn(*size, 2, generator=generator)
    >>> few, many = (emd_floor(normal, n, seeded(0, "cpu")).mean() for n in (10, 100))
    >>> bool(0 < many < few)
    True
    """
    base.check_count(n=n, replicates=replicates)
    return emd(sample((replicates, n), generator), sample((replicates, n), generator))


class ModeReport(NamedTuple):
    """How samples cover the modes of a mixture, each field (R,).

    `recovered`: modes with at least one sample within n_std * std. One is enough: chains that copy
    a few draws recover a mode, whatever share of the samples it should have. `min_share`: the share
    of the rarest mode times the number of modes, 1 at best. `high_quality`: share of samples within
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
    base.check_positive(std=std, n_std=n_std)
    x, means = _checked(x=(x, "R n d"), means=(means, "modes d"))
    rows = zip(*(part.min(dim=1) for part in base.distances(x.flatten(0, 1), means)), strict=True)
    distance, nearest = (torch.cat(parts).reshape(x.shape[:2]) for parts in rows)
    inlier = distance < n_std * std
    counts = distance.new_zeros(len(x), len(means)).scatter_add_(1, nearest, inlier.double())
    n_inliers = counts.sum(dim=1)
    shares = counts / n_inliers.clamp(min=1)[:, None]
    uniform = torch.full_like(shares, 1 / len(means))
    found = n_inliers > 0
    jsd = (_kl(shares, (shares + uniform) / 2) + _kl(uniform, (shares + uniform) / 2)) / 2
    squares = torch.where(inlier, distance**2, 0).sum(dim=1)
    return ModeReport(
        recovered=(counts > 0).sum(dim=1).double(),
        min_share=shares.min(dim=1).values * len(means),
        high_quality=n_inliers / x.shape[1],
        inlier_std=(squares / (n_inliers * x.shape[2])).sqrt(),
        jsd=torch.where(found, jsd, math.log(2)),
        reverse_kl=torch.where(found, _kl(shares, uniform), math.inf),
    )


class PrecisionCoverage(NamedTuple):
    """How samples lie among data, each field (R,): `precision` and `coverage`, shares."""

    precision: Tensor
    coverage: Tensor


def precision_coverage(x: Tensor, data: Tensor, k: int = 5) -> PrecisionCoverage:
    """Quality and diversity of samples x (R, n, *event) by balls about data (R, m, *event).

    The ball of a data point reaches to its k-th nearest neighbour among the data. `precision` is
    the share of samples that lie in some ball (Kynkaanniemi et al. 2019, arXiv:1904.06991),
    `coverage` the share of balls in which some sample lies (Naeem et al. 2020, arXiv:2002.09797,
    equation 4). Both depend on n and m, and fresh data score a little less than 1: state the
    numbers, and what data score.

    Raises ValueError for other shapes, no more than k data, and values that are not finite.

    >>> data = torch.arange(5.0)[None, :, None]
    >>> precision, coverage = precision_coverage(torch.tensor([[[0.2], [0.3], [9.0]]]), data, k=1)
    >>> round(float(precision), 2), round(float(coverage), 2)
    (0.67, 0.4)
    """
    base.check_count(k=k)
    base.check_shape(x=(x, "R n ..."), data=(data, "R m ..."))
    if data.shape[1] <= k:
        raise ValueError(f"data must be more than k = {k} points, got {tuple(data.shape)}")
    precision, coverage = [], []
    for a, b in zip(
        *_checked(x=(x.flatten(2), "R n d"), data=(data.flatten(2), "R m d")), strict=True
    ):
        # The point itself is the nearest.
        radii = torch.cat([d.kthvalue(k + 1, dim=1).values for d in base.distances(b, b)])
        inside = torch.cat([d <= radii for d in base.distances(a, b)])  # (n, m)
        precision.append(inside.any(dim=1).double().mean())
        coverage.append(inside.any(dim=0).double().mean())
    return PrecisionCoverage(torch.stack(precision), torch.stack(coverage))


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
    base.check_count(n_bins=n_bins)
    d = torch.cat(_checked(real=(real, "R n"), fake=(fake, "R n")), dim=1).sigmoid()
    is_real = (torch.arange(d.shape[1], device="cpu") < real.shape[1]).to(d).expand_as(d)
    which = (d * n_bins).long().clamp(max=n_bins - 1)

    def total(values: Tensor) -> Tensor:
        return d.new_zeros(len(d), n_bins).scatter_add_(1, which, values)

    count = total(torch.ones_like(d))
    return Calibration(total(d) / count, total(is_real) / count, count)


def energy_distance(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias, from samples (R, n, d), as (R,).

    0 if and only if the laws agree; in units of x. The estimate may be negative: over pairs of
    different points it has the distance as its mean (Szekely and Rizzo 2013). With `weight` (R, m),
    in any unit, y (R, m, d) stands for the law of weighted draws, as of a generator with e^d.

    Raises ValueError for other shapes, fewer than 2 points, values that are not finite, weights
    below 0 or all 0.

    >>> energy_distance(torch.zeros(1, 3, 1), torch.ones(1, 2, 1))  # two points
    tensor([2.], dtype=torch.float64)
    """
    weight = torch.ones_like(y[..., 0]) if weight is None else weight
    x, y, weight = _checked(x=(x, "R n d"), y=(y, "R m d"), weight=(weight, "R m"))
    if min(x.shape[1], y.shape[1]) < 2 or weight.min() < 0 or not weight.sum(dim=1).all():
        raise ValueError("give at least 2 points each, and weights of which none is below 0")

    def mean(a: Tensor, v: Tensor, b: Tensor, w: Tensor) -> Tensor:
        v, w = v / v.sum(), w / w.sum()
        rows = torch.cat([part @ w for part in base.distances(a, b)])
        return v @ rows / (1 - v @ v if a is b else 1)

    four = zip(x, torch.ones_like(x[..., 0]), y, weight, strict=True)
    return torch.stack([2 * mean(*s) - mean(*s[:2] * 2) - mean(*s[2:] * 2) for s in four])


def chi_square(x: Tensor, truth: Distribution, box: Box, n_cells: int = 10) -> Tensor:
    """Pearson's test of independent samples x (R, n, 2) against a density, as z-scores (R,).

    The box is cut into n_cells x n_cells cells; those where the truth expects fewer than 10 of the
    n samples, and all outside, count as one. sum (count - n p)^2 / (n p) has a chi-square law if
    the samples have that density; its cube root is close to normal (Wilson and Hilferty 1931), and
    the score is that root's distance from its mean in standard deviations. Large is bad.

    Raises ValueError if fewer than 2 cells are left: give more samples, or a box around the data.
    So it does if the cells are too wide for the density's details.

    >>> from gan_ebm_utils.base import rand, seeded
    >>> square = Distribution(None, lambda x: torch.zeros_like(x[:, 0]), None)  # uniform
    >>> x, box = rand(1, 5000, 2, generator=seeded(0, "cpu")), (0.0, 1.0, 0.0, 1.0)
    >>> bool(chi_square(x, square, box) < 5), bool(chi_square(x**1.5, square, box) > 5)
    (True, True)
    """
    base.check_count(n_cells=n_cells)
    (x,) = _checked(x=(x, "R n 2"))
    fine, n = 20, x.shape[1]  # points of the midpoint rule along each side of a cell
    points, area = _grid(box, n_cells * fine)
    log_p = _log_p(truth, points, area)
    p = (log_p.exp() * area).reshape(n_cells, fine, n_cells, fine).sum(dim=(1, 3)).flatten()
    own = n * p >= 10
    if (k := int(own.sum())) < 2:
        raise ValueError(f"only {k} cells expect 10 of the {n} samples; give more, or fewer cells")
    expected = torch.cat([n * p[own], (n * (1 - p[own].sum())).clamp(min=1e-3)[None]])
    hists = [torch.histogramdd(each, [n_cells] * 2, range=tuple(box)).hist for each in x]
    seen = torch.stack([hist.flatten()[own] for hist in hists])
    seen = torch.cat([seen, n - seen.sum(dim=1, keepdim=True)], dim=1)
    statistic = ((seen - expected) ** 2 / expected).sum(dim=1)
    spread = 2 / (9 * k)
    return ((statistic / k) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def log_partition(energy: Energy, box: Box, replicates: int = 1, n: int = 400) -> Tensor:
    """log of the integral of e^{-E} over `box`, by the midpoint rule on n x n cells, as (R,).

    `energy` maps (R, m, 2) to (R, m); `box` = (left, right, bottom, top). What lies outside is not
    counted: for an energy whose Z is infinite the result is that of the box alone. A network runs
    in evaluation mode, on points in the type of its weights; a function gets them in float32.

    Raises ValueError for an energy that does not take them, or returns another shape;
    FloatingPointError where it is nan or -inf, or +inf everywhere.

    >>> normal = lambda x: x.square().sum(dim=-1) / 2
    >>> print(f"{float(log_partition(normal, (-6.0, 6.0, -6.0, 6.0)).exp()):.4f}")  # 2 pi
    6.2832
    """
    points, cell = _grid(box, n)
    return torch.logsumexp(-_on_grid(energy, points, replicates), dim=1) + math.log(cell)


def kl_to_truth(
    energy: Energy, truth: Distribution, box: Box, replicates: int = 1, n: int = 400
) -> Tensor:
    """KL(p || e^{-E}/Z) = E_p [log p + E] + log Z in nats, by quadrature over `box`, as (R,).

    Arguments as for `log_partition`; `truth` has a log_prob.

    Raises ValueError if the truth has no density, or if the grid does not see it: less than .999
    of it in the box, or cells too wide.

    >>> normal = lambda x: x.square().sum(dim=-1) / 2
    >>> truth = Distribution(None, lambda x: -normal(x) - math.log(2 * math.pi), None)
    >>> kl = kl_to_truth(lambda x: normal(x / 2), truth, (-9.0, 9.0, -9.0, 9.0))
    >>> print(f"{float(kl):.4f}")  # log 4 - 3/4
    0.6363
    """
    points, cell = _grid(box, n)
    log_p = _log_p(truth, points, cell, least=0.999)
    values, p = _on_grid(energy, points, replicates), log_p.softmax(dim=0)
    log_z = torch.logsumexp(-values, dim=1) + math.log(cell)
    # Where p is 0 nothing is added, even if an energy is infinite there.
    return torch.where(p > 0, p * (log_p + values), 0.0).sum(dim=1) + log_z


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat of draws (n_draws, n_chains) or (n_draws, n_chains, d), as (d,).

    Near 1 if the two halves of each chain, and the chains among each other, look alike. It is blind
    to what no chain has visited (Vehtari et al. 2021, arXiv:1903.08008).

    Raises ValueError for fewer than 4 draws or 2 chains, a coordinate that moves in no chain, and
    if all values are below 1.1 although a chain `stands_still`; warns if the effective sample size
    is too small for the values to mean much.

    >>> draws = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    >>> bool(rhat(draws) < 1.01)
    True
    """
    return _diagnose("rhat", draws)


def ess(draws: Tensor) -> Tensor:
    """Effective sample size, rank-normalised (bulk), all chains together; arguments as for `rhat`.

    The number of independent draws that would know the mean as well (Vehtari et al. 2021,
    arXiv:1903.08008). One chain will do.

    Raises and warns as `rhat` does; values that need no warning are refused if a chain
    `stands_still`.

    >>> draws = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    >>> bool(3000 < ess(draws) < 5000), bool(3000 < ess(draws.repeat_interleave(2, dim=0)) < 5000)
    (True, True)
    """
    return _diagnose("ess", draws)


def stands_still(draws: Tensor) -> Tensor:
    """Which chains keep one value for half of their draws or longer, (n_chains,).

    `draws` are those of `rhat`; a chain is counted if one coordinate stands still. At the median of
    the others it would pass for independent draws.

    >>> stands_still(torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    tensor([False,  True])
    """
    draws = draws.flatten(2) if draws.ndim > 2 else draws[..., None]
    step = torch.arange(1, len(draws), device=draws.device)[:, None, None]
    last = torch.where(draws[1:] != draws[:-1], step, 0).cummax(dim=0).values  # the last move
    longest = (step - last + 1).amax(dim=0)  # of the stays
    return (longest >= len(draws) // 2).any(dim=1)


def _diagnose(name: str, draws: Tensor) -> Tensor:
    base.check_samples(draws=draws)
    shape = tuple(draws.shape)
    if len(shape) not in (2, 3) or shape[0] < 4:
        raise ValueError(f"draws must be (n_draws, n_chains[, d]), at least 4 draws, got {shape}")
    if name == "rhat" and shape[1] < 2:
        raise ValueError(f"one chain cannot be compared with others, got {shape}; give at least 2")
    draws = _in_float64(draws).reshape(*shape[:2], -1)
    if (draws == draws[0]).flatten(end_dim=1).all(dim=0).any():
        raise ValueError("no chain has moved in some coordinate: its draws are all the same")
    # Imported here: only chains need it.
    from arviz_stats.base import array_stats

    def of_draws(diagnose: Callable[..., np.ndarray]) -> Tensor:
        # Halves that each stand at a value of their own have an R-hat of infinity. Draws of two
        # values may lie equally far from the median: that part of R-hat is left out.
        with np.errstate(divide="ignore", invalid="ignore"):
            return torch.from_numpy(diagnose(draws.numpy(), chain_axis=1, draw_axis=0))

    values, n_halves = of_draws(array_stats.ess), 2 * shape[1]
    seems_fine = values >= 50 * n_halves
    if not seems_fine.all():
        low = f"the effective sample size {float(values.min()):.0f} is below 50 for each"
        fault = f"{low} of the {n_halves} half chains: they are too short to tell, or stuck"
        warnings.warn(fault, stacklevel=3)
    if name == "rhat":
        values = of_draws(array_stats.rhat)
        seems_fine = values < 1.1
    hidden = seems_fine.all() or values.isnan().any()
    if hidden and (n_still := int(stands_still(draws).sum())):
        raise ValueError(
            f"{n_still} of {shape[1]} chains stand still for half of their {shape[0]} draws, which "
            f"{name} = {values.tolist()} would hide; run longer, or leave them out and say so"
        )
    return values


def _grid(box: Box, n: int) -> tuple[Tensor, float]:
    """The midpoints of n x n cells, (n^2, 2) in float64, and the area of a cell."""
    left, right, bottom, top = box
    base.check_count(n=n)
    base.check_positive(width=right - left, height=top - bottom)
    dx, dy = (right - left) / n, (top - bottom) / n
    centres = torch.arange(n, dtype=torch.float64, device="cpu") + 0.5
    return torch.cartesian_prod(left + dx * centres, bottom + dy * centres), dx * dy


def _log_p(truth: Distribution, points: Tensor, cell: float, least: float = 0.0) -> Tensor:
    """log p at the points of a `_grid`, on which the truth has a mass from `least` to 1."""
    if truth.log_prob is None:
        raise ValueError("truth has no log_prob: give a law whose density is known")
    log_p = truth.log_prob(points).double()
    mass = float(log_p.exp().sum() * cell)
    if not least <= mass <= 1.001:
        raise ValueError(f"the truth has mass {mass:.4f}; give more cells, or a box that holds it")
    return log_p


@torch.no_grad()
def _on_grid(energy: Energy, points: Tensor, replicates: int) -> Tensor:
    """Energies (R, m) of all replicates at points (m, 2), in float64."""
    base.check_count(replicates=replicates)
    dtype = base.dtype_of(energy) or torch.float32
    parts = []
    with base.evaluating(energy):
        for part in points.split(20_000):
            x = part.to(dtype).to(base.device_of(energy)).expand(replicates, -1, -1)
            try:
                value = energy(x)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"the energy does not take points {tuple(x.shape)} in {dtype}; give replicates "
                    f"as it was built, or the network as .float(): {error}"
                ) from error
            base.check_shape(**{"x": (x, "R m 2"), "energy(x)": (value, "R m")})
            parts.append(_in_float64(value))
    values = torch.cat(parts, dim=1)
    if bad := int((values.isnan() | values.isneginf()).sum()):
        raise FloatingPointError(f"the energy is nan or -inf in {bad} cells")
    if values.isinf().all(dim=1).any():
        raise FloatingPointError("the energy is +inf in every cell; give another box")
    return values


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), n >= 2, float64 on the CPU.

    >>> moments(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))[1].tolist()
    [[2.0, 4.0], [4.0, 8.0]]
    """
    base.check_samples(features=features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (n, d) with n at least 2, got {tuple(features.shape)}")
    features = _in_float64(features)
    return features.mean(dim=0), features.T.cov().reshape(features.shape[1], -1)


def frechet_distance(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2}), the squared W_2 of two Gaussians.

    Means (d,), covariances (d, d), which may be singular: tr (C_x C_y)^{1/2} is the sum of the
    singular values of C_x^{1/2} C_y^{1/2}. Over the features of a classifier this is the FID
    (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    Raises ValueError for other shapes, values that are not finite, or a matrix that is no
    covariance: not symmetric, or with a negative eigenvalue beyond rounding.

    >>> eye = torch.eye(2)
    >>> round(frechet_distance(torch.zeros(2), eye, torch.ones(2), 4 * eye), 6)  # 2 + 2 (2 - 1)^2
    4.0
    """
    m_x, c_x, m_y, c_y = _checked(
        mean_x=(mean_x, "d"), cov_x=(cov_x, "d d"), mean_y=(mean_y, "d"), cov_y=(cov_y, "d d")
    )
    cross = torch.linalg.svdvals(_root("cov_x", cov_x) @ _root("cov_y", cov_y)).sum()
    spread = c_x.trace() + c_y.trace() - 2 * cross  # >= 0 up to rounding
    return float((m_x - m_y).square().sum() + spread.clamp(min=0))


def _root(name: str, covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance, whose eigenvalues are 0 where they are so by rounding."""
    digits = torch.finfo(covariance.dtype).eps if covariance.is_floating_point() else 0.0
    covariance = _in_float64(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    # What a type of few digits has rounded is no fault.
    tolerance = max(8 * digits, 1e-12) * len(covariance) * covariance.abs().max()
    if (covariance - covariance.T).abs().max() > tolerance or values.min() < -tolerance:
        least = f"its smallest eigenvalue is {float(values.min()):.3g}"
        raise ValueError(f"{name} is no covariance: it is not symmetric, or {least}")
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def saturation(images: Tensor) -> Tensor:
    """Share of the values of images (R, n, c, h, w) in [-1, 1] that are 0 or 255 as bytes, (R,).

    What lies beyond black and white is cut off, so a picture of too much contrast has many.

    Raises ValueError for values that lie beyond [-1, 1].

    >>> saturation(torch.tensor([-1.0, -0.9, 0.0, 1.0]).view(1, 1, 1, 2, 2))
    tensor([0.5000], dtype=torch.float64)
    """
    values = _bytes("images", images)
    return ((values == 0) | (values == 255)).double().mean(dim=(1, 2))


def colour_distance(images: Tensor, reference: Tensor) -> Tensor:
    """W_1 of the values of images (R, n, c, h, w) and of a reference (m, c, h, w), both in [-1, 1].

    It is the integral of |F - F_ref| from -1 to 1, with the distribution functions of one channel's
    values as bytes, averaged over the channels, (R,): how far a value has to move on average.

    Raises ValueError for values that lie beyond [-1, 1].

    >>> white = torch.ones(1, 4, 3, 2, 2)
    >>> colour_distance(white, -white[0])
    tensor([2.], dtype=torch.float64)
    """
    base.check_shape(images=(images, "R n c h w"), reference=(reference, "m c h w"))

    def below(values: Tensor) -> Tensor:  # share of the values up to each byte, (R, c, 256)
        rows = [row.bincount(minlength=256) for row in values.flatten(0, 1)]
        counts = torch.stack(rows).unflatten(0, values.shape[:2]).double()
        return counts.cumsum(dim=2) / values.shape[2]

    apart = below(_bytes("images", images)) - below(_bytes("reference", reference[None]))
    return apart.abs().sum(dim=2).mean(dim=1) * 2 / 255


def _bytes(name: str, images: Tensor) -> Tensor:
    """The values of each channel, (R, c, n h w), as bytes 0 to 255, on the CPU."""
    base.check_samples(**{name: images})
    base.check_shape(**{name: (images, "R n c h w")})
    low, high = float(images.min()), float(images.max())
    if low < -1 or high > 1:
        found = f"got values from {low:.3g} to {high:.3g}"
        raise ValueError(f"{name} must lie in [-1, 1], {found}; scale them as `datasets` does")
    return base.to_bytes(images).cpu().transpose(1, 2).flatten(2)


class ClassScores(NamedTuple):
    """Scores of samples by the classes that a classifier sees in them, each field (R,).

    With p(y|x) of sample x and p(y) their mean over all n samples: `inception` is
    exp E_x KL(p(y|x) || p(y)), from 1 to the number of classes; `mean_kl` is its logarithm, in
    nats; `swapped_squared` is E_x KL(p(y) || p(y|x))^2, in squared nats, without an upper bound.
    """

    inception: Tensor
    mean_kl: Tensor
    swapped_squared: Tensor


def class_scores(logits: Tensor) -> ClassScores:
    """Scores of the inception kind, high for samples of one class each and of all classes together.

    `logits` (R, n, classes) are a classifier's. They see classes only: one good image of each class
    scores best. `inception` is the usual form (Salimans et al. 2016, arXiv:1606.03498, section 4),
    `swapped_squared` that of EBGAN (Zhao et al. 2016, arXiv:1609.03126, appendix A), which one
    sample of which the classifier is very sure can dominate: KL(p(y) || p(y|x)) grows with its
    logits as they are scaled, while KL(p(y|x) || p(y)) is at most -log of the rarest class.

    Raises ValueError for another shape or logits that are not finite.

    >>> sure = 99 * torch.eye(10)[None]  # one sample of each class
    >>> class_scores(sure).inception, class_scores(torch.zeros(1, 5, 10)).inception
    (tensor([10.0000], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    (logits,) = _checked(logits=(logits, "R n classes"))
    each = logits.log_softmax(dim=2)
    whole = each.logsumexp(dim=1, keepdim=True) - math.log(logits.shape[1])
    kl = (each.exp() * (each - whole)).sum(dim=2)
    swapped = (whole.exp() * (whole - each)).sum(dim=2)
    mean = kl.mean(dim=1)
    return ClassScores(mean.exp(), mean, swapped.square().mean(dim=1))


class StackedModes(NamedTuple):
    """How stacks of classified digits cover their modes, each field (R,).

    `modes`: combinations of classes with at least one sample. `kl`: KL(shares || uniform) in nats,
    which at n samples is `kl_floor` for a perfect model, and never above the log of the number of
    combinations.
    """

    modes: Tensor
    kl: Tensor


def stacked_modes(classes: Tensor, n_classes: int = 10) -> StackedModes:
    """Modes of samples whose channels were classified, `classes` (R, n, channels), whole numbers.

    Three channels of ten digits have 1000 modes. What is counted are a classifier's decisions, in
    evaluation mode: its mistakes on samples between digits fill modes, too. State n, the floor and
    the classifier (Metz et al. 2016, arXiv:1611.02163; Lin et al. 2018, arXiv:1712.04086).

    Raises ValueError for another shape, or classes that are not whole numbers from 0 to
    n_classes - 1, as logits are not.

    >>> stacked_modes(torch.tensor([[[0, 0], [0, 1], [0, 1], [1, 0]]]), n_classes=2)
    StackedModes(modes=tensor([3.], dtype=torch.float64), kl=tensor([0.3466], dtype=torch.float64))
    """
    base.check_shape(classes=(classes, "R n channels"))
    if classes.is_floating_point() or not classes.numel():
        raise ValueError(f"classes must be whole numbers, got {classes.dtype}; give the argmax")
    if not 0 <= int(classes.min()) <= int(classes.max()) < n_classes:
        found = f"{int(classes.min())} to {int(classes.max())}"
        raise ValueError(f"classes must lie in 0..{n_classes - 1}, got {found}")
    n_modes, places = n_classes ** classes.shape[2], range(classes.shape[2])
    mode = sum(classes[:, :, i].long().cpu() * n_classes**i for i in places)  # (R, n)
    shares = torch.stack([row.bincount(minlength=n_modes) for row in mode]).double() / mode.shape[1]
    return StackedModes(
        modes=(shares > 0).sum(dim=1).double(),
        kl=_kl(shares, torch.full_like(shares, 1 / n_modes)),
    )


def kl_floor(n: int, probabilities: Tensor) -> float:
    """The mean KL(shares || uniform) of n independent samples with these `probabilities` (modes,).

    sum_k E[(N_k / n) log(N_k / n)] + log modes with binomial N_k, in nats, exact. For equal
    probabilities it is about (modes - 1) / (2 n), which no model beats but by luck; for those of a
    data set, as MNIST's digits, it is what the data score.

    Raises ValueError for probabilities below 0 or of another sum than 1.

    >>> print(f"{kl_floor(26_000, torch.full((1000,), 0.001)):.4f}")
    0.0193
    """
    base.check_count(n=n)
    (p,) = _checked(probabilities=(probabilities, "modes"))
    if p.min() < 0 or abs(float(p.sum()) - 1) > 1e-5:
        line = f"from {float(p.min())}, of sum {float(p.sum())}"
        raise ValueError(f"probabilities must be at least 0 and sum to 1, got some {line}")
    distinct, times = p.unique(return_counts=True)
    most = binom.isf(1e-12, n, float(p.max()))  # what lies above adds nothing
    count = np.arange(1, min(n, most) + 1)
    means = [binom.pmf(count, n, q) @ (count / n * np.log(count / n)) for q in distinct.tolist()]
    return float(times.numpy() @ np.array(means)) + math.log(len(p))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=1)


def _checked(**given: tuple[Tensor, str]) -> list[Tensor]:
    """The named tensors, finite and with the axes that stand beside them, in float64 on the CPU."""
    base.check_samples(**{name: x for name, (x, _) in given.items()})
    base.check_shape(**given)
    return [_in_float64(x) for x, _ in given.values()]


def _in_float64(x: Tensor) -> Tensor:
    """x on the CPU in float64: moved first, since not every device has that type."""
    return x.detach().cpu().double()
