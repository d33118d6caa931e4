"""Scores against closed forms, and against theory's standard errors where they are random."""

import math
import warnings
from itertools import permutations

import pytest
import torch
from scipy import stats
from torch import nn

from gan_ebm_utils import base, metrics
from gan_ebm_utils.base import Distribution, rand, randn, seeded
from gan_ebm_utils.datasets import digits, gaussian, gaussian_grid
from gan_ebm_utils.networks import energy_mlp
from gan_ebm_utils.samplers import mala, run_chain


def rng(seed=0):
    return seeded(seed, "cpu")


# --- earth mover's distance ---


def test_an_interval_is_of_plain_numbers():
    """Others, as numpy's, could be stored as part of a recipe and not be read again."""
    found = metrics.mean_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert [type(number) for number in found] == [float, float, float, int]


def test_emd_of_a_translation_is_its_length():
    x = randn(3, 50, 2, generator=rng())
    moved = x[:, torch.randperm(50, generator=rng(1))] + torch.tensor([3.0, 4.0])
    torch.testing.assert_close(metrics.emd(x, moved), torch.full((3,), 5.0, dtype=torch.float64))


def test_emd_in_one_dimension_matches_sorted_points():
    x, y = randn(2, 40, 1, generator=rng()), 2 * randn(2, 40, 1, generator=rng(1)) + 1
    expected = (x.sort(dim=1).values - y.sort(dim=1).values).abs().mean(dim=(1, 2)).double()
    torch.testing.assert_close(metrics.emd(x, y), expected, rtol=1e-6, atol=1e-6)


def test_emd_is_the_best_of_all_matchings():
    x, y = randn(1, 5, 2, generator=rng()), randn(1, 5, 2, generator=rng(1))
    costs = [float((x[0] - y[0, list(s)]).norm(dim=1).mean()) for s in permutations(range(5))]
    assert math.isclose(metrics.emd(x, y), min(costs), rel_tol=1e-6)
    assert math.isclose(metrics.emd(y, x), min(costs), rel_tol=1e-6)


def test_the_floor_is_what_two_samples_of_one_law_score():
    law = gaussian([0.0, 0.0])
    floor = metrics.emd_floor(law.sample, 100, rng(), replicates=20)
    pairs = metrics.emd(law.sample((20, 100), rng(1)), law.sample((20, 100), rng(2)))
    assert floor.shape == (20,) and floor.min() > 0
    assert stats.ttest_ind(floor, pairs).pvalue > 1e-5
    far = metrics.emd(law.sample((20, 100), rng(1)), 1 + law.sample((20, 100), rng(2)))
    assert stats.ttest_ind(floor, far).pvalue < 1e-5  # the control


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (torch.zeros(1, 3, 2), torch.zeros(1, 4, 2), r"got \(1, 3, 2\), \(1, 4, 2\)"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            r"x must be \(R, n, d\), .*; got \(3, 2\)",
        ),
        (torch.zeros(1, 0, 2), torch.zeros(1, 0, 2), "x is empty"),
        (
            torch.zeros(1, 1, 2),
            torch.full((1, 1, 2), math.nan),
            "2 of 2 values of y are not finite",
        ),
    ],
)
def test_emd_names_bad_samples(x, y, says):
    with pytest.raises(ValueError, match=says):
        metrics.emd(x, y)


# --- precision and coverage ---


def test_precision_and_coverage_by_hand():
    x = randn(2, 30, 3, generator=rng())
    data = randn(2, 40, 3, generator=rng(1))
    found = metrics.precision_coverage(x, data, k=3)
    for one, points, precision, coverage in zip(x, data, *found, strict=True):
        radii = [sorted(float((a - b).norm()) for b in points)[3] for a in points]
        inside = [
            [float((a - b).norm()) <= r for b, r in zip(points, radii, strict=True)] for a in one
        ]
        assert math.isclose(precision, sum(map(any, inside)) / 30)
        assert math.isclose(coverage, sum(map(any, zip(*inside, strict=True))) / 40)
    images = metrics.precision_coverage(x.reshape(2, 30, 1, 1, 3), data.reshape(2, 40, 1, 1, 3), 3)
    assert all(torch.equal(a, b) for a, b in zip(images, found, strict=True))


def test_quality_and_diversity_are_told_apart():
    data, fresh = (gaussian([0.0, 0.0]).sample((10, 500), rng(seed)) for seed in (0, 1))
    precision, coverage = metrics.precision_coverage(fresh, data)
    # A fresh point misses the ball of each of its data with 1 in 2^5, if these are as many.
    assert precision.min() > 0.9 and abs(coverage.mean() - (1 - 2**-5)) < 0.02
    one_point = metrics.precision_coverage(0.01 * fresh, data)
    assert one_point.precision.min() == 1 and one_point.coverage.max() < 0.05
    elsewhere = metrics.precision_coverage(fresh + 20, data)
    assert elsewhere.precision.max() == 0 and elsewhere.coverage.max() == 0
    wide = metrics.precision_coverage(3 * fresh, data)
    assert wide.precision.max() < 0.7
    assert torch.equal(metrics.precision_coverage(data, data).coverage, torch.ones(10).double())


def test_precision_and_coverage_name_bad_samples():
    with pytest.raises(ValueError, match=r"more than k = 5 points, got \(1, 5, 2\)"):
        metrics.precision_coverage(torch.zeros(1, 9, 2), torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match=r"data \(R, m, ...\); got"):
        metrics.precision_coverage(torch.zeros(1, 9, 2), torch.zeros(2, 9, 2))
    with pytest.raises(ValueError, match="1 of 18 values of x are not finite"):
        bad = torch.zeros(1, 9, 2).index_fill(1, torch.tensor([0]), 0.0)
        bad[0, 0, 0] = math.nan
        metrics.precision_coverage(bad, torch.zeros(1, 9, 2))


# --- exactness ---


def fine(*shape, seed=0):
    """Points of spread .01 on a grid of step 2^-30: moved by 2^17 they lose no digit in float64."""
    return (randn(*shape, generator=rng(seed)).double() * 0.01 * 2**30).round() / 2**30


FAR = 2.0**17


def test_distances_do_not_change_far_from_the_origin():
    x, y = fine(2, 60, 2), fine(2, 60, 2, seed=1)
    assert torch.equal(metrics.emd(x + FAR, y + FAR), metrics.emd(x, y))
    assert torch.equal(metrics.energy_distance(x + FAR, y + FAR), metrics.energy_distance(x, y))
    near, far = (metrics.mode_report(x + a, y[0, :30] + a, 0.002) for a in (0.0, FAR))
    for a, b in zip(near, far, strict=True):
        assert torch.equal(a, b)
    # The control: a matrix product does not see .01 beside 2^17.
    product = torch.cdist(x + FAR, y + FAR, compute_mode="use_mm_for_euclid_dist")
    assert not torch.allclose(product, torch.cdist(x, y), rtol=0.01)


def test_a_sample_is_at_no_distance_from_itself():
    x = 1e5 + 0.01 * randn(1, 100, 2, generator=rng()).double()
    assert metrics.emd(x, x) == 0
    assert metrics.emd(x, x[:, torch.randperm(100, generator=rng(1))]) == 0
    assert metrics.emd(x[:, :1].expand(1, 5, 2), x[:, :1].expand(1, 5, 2)) == 0


@pytest.mark.parametrize("unit", [1e-300, 1e-100, 1e-20, 1e-12, 1.0, 1e12, 1e100, 1e300])
def test_distances_are_in_units_of_x(unit):
    x, y = (randn(1, 100, 2, generator=rng(seed)).double() for seed in (0, 1))
    assert math.isclose(metrics.emd(unit * x, unit * y) / unit, metrics.emd(x, y), rel_tol=1e-9)
    scaled = metrics.energy_distance(unit * x, unit * y) / unit
    assert math.isclose(scaled, metrics.energy_distance(x, y), rel_tol=1e-9)


def test_distances_are_taken_in_chunks(monkeypatch):
    x, y, means = randn(2, 50, 3, generator=rng()), randn(2, 50, 3, generator=rng(1)), fine(40, 3)
    scores = [
        lambda: metrics.emd(x, y),
        lambda: metrics.energy_distance(x, y[:, :30]),
        lambda: torch.stack(metrics.mode_report(x, means, 0.3)),
    ]
    assert 8 * base._CHUNK < 1e8  # bytes
    whole, sizes, cdist = [score() for score in scores], [], torch.cdist

    def spy(a, b, **how):
        sizes.append(len(a) * len(b))
        return cdist(a, b, **how)

    monkeypatch.setattr(torch, "cdist", spy)
    for chunk in (1, 100, 130):
        monkeypatch.setattr(base, "_CHUNK", chunk)
        sizes.clear()
        for score, expected in zip(scores, whole, strict=True):
            torch.testing.assert_close(score(), expected, rtol=1e-12, atol=0)
        assert max(sizes) <= max(chunk, 50)  # a row at least


# --- odd input ---


class OnApple(torch.Tensor):
    """A tensor of a device without float64; `cpu` takes it away from there."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return found.as_subclass(torch.Tensor)
        if function is torch.Tensor.numpy:
            raise TypeError("can't convert a tensor of this device to numpy; use cpu() first")
        if isinstance(found, torch.Tensor) and found.dtype is torch.float64:
            raise TypeError("cannot convert a MPS Tensor to float64")
        return found


def chains(n_draws=1000, n_chains=4):
    return randn(n_draws, n_chains, 2, generator=rng())


def pictures(seed=0):
    return (1.5 * randn(2, 5, 3, 4, 4, generator=rng(seed))).tanh()


LAW = gaussian([0.0, 0.0])
SCORES = {
    "mean_interval": lambda to: metrics.mean_interval(to(randn(5, generator=rng()))),
    "emd": lambda to: metrics.emd(to(LAW.sample((2, 9), rng())), to(LAW.sample((2, 9), rng(1)))),
    "energy_distance": lambda to: metrics.energy_distance(
        to(LAW.sample((2, 9), rng())), to(LAW.sample((2, 8), rng(1)))
    ),
    "mode_report": lambda to: metrics.mode_report(
        to(LAW.sample((2, 9), rng())), to(gaussian_grid().means), 0.3
    ),
    "calibration": lambda to: metrics.calibration(
        to(randn(2, 9, generator=rng())), to(randn(2, 9, generator=rng(1))), n_bins=3
    ),
    "chi_square": lambda to: metrics.chi_square(
        to(LAW.sample((2, 500), rng())), LAW, (-3.0, 3.0, -3.0, 3.0), n_cells=4
    ),
    "log_partition": lambda to: metrics.log_partition(
        lambda x: to(x.square().sum(dim=2) / 2), (-3.0, 3.0, -3.0, 3.0), n=50
    ),
    "kl_to_truth": lambda to: metrics.kl_to_truth(
        lambda x: to(x.square().sum(dim=2)), LAW, (-6.0, 6.0, -6.0, 6.0), n=50
    ),
    "rhat": lambda to: metrics.rhat(to(chains())),
    "ess": lambda to: metrics.ess(to(chains())),
    "moments": lambda to: metrics.moments(to(LAW.sample(50, rng()))),
    "saturation": lambda to: metrics.saturation(to(pictures())),
    "colour_distance": lambda to: metrics.colour_distance(to(pictures()), to(pictures(1)[0])),
    "frechet_distance": lambda to: metrics.frechet_distance(
        *(to(part.float()) for law in (LAW, LAW) for part in metrics.moments(law.sample(9, rng())))
    ),
}


def numbers(found):
    found = torch.stack(found) if isinstance(found, metrics.ModeReport) else found
    parts = found if isinstance(found, tuple) else (found,)
    return [torch.as_tensor(part) for part in parts]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "to",
    [
        lambda x: x.as_subclass(OnApple),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],  # every other place in memory
    ],
    ids=["no float64 there", "requires a gradient", "strides"],
)
def test_where_and_how_a_tensor_lies_changes_nothing(name, to, monkeypatch):
    monkeypatch.setenv("GAN_EBM_DEVICE", "cpu")  # a device of its own cannot be another's, too
    plain, other = numbers(SCORES[name](lambda x: x)), numbers(SCORES[name](to))
    for a, b in zip(plain, other, strict=True):
        assert type(b) is torch.Tensor and not b.requires_grad and b.device.type == "cpu"
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_the_stand_in_has_no_float64():
    x = torch.ones(3).as_subclass(OnApple)
    for away in (
        x.double,
        lambda: x.to(torch.float64),
        x.numpy,
        lambda: x.sum(dtype=torch.float64),
    ):
        with pytest.raises(TypeError):
            away()
    assert x.cpu().double().dtype is torch.float64


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_samples_of_every_type_are_scored_in_float64(kind):
    x, y = ((4 * randn(2, 9, 2, generator=rng(seed))).round().to(kind) for seed in (0, 1))
    for score in (metrics.emd, metrics.energy_distance):
        torch.testing.assert_close(score(x, y), score(x.float(), y.float()))
        assert score(x, y).dtype == torch.float64


@pytest.mark.parametrize("count", [0, 2.5, True])
@pytest.mark.parametrize(
    "score",
    [
        lambda n: metrics.emd_floor(LAW.sample, n, rng()),
        lambda n: metrics.emd_floor(LAW.sample, 10, rng(), replicates=n),
        lambda n: metrics.calibration(torch.zeros(1, 3), torch.zeros(1, 3), n_bins=n),
        lambda n: metrics.chi_square(torch.zeros(1, 500, 2), LAW, BOX, n_cells=n),
        lambda n: metrics.log_partition(quadratic, BOX, n=n),
        lambda n: metrics.log_partition(quadratic, BOX, replicates=n),
        lambda n: metrics.kl_to_truth(quadratic, LAW, BOX, n=n),
    ],
)
def test_a_count_is_a_whole_number(score, count):
    with pytest.raises(ValueError, match=f"must be a whole number of at least 1, got {count}"):
        score(count)


# --- modes ---


def test_exact_samples_of_the_grid_score_as_theory_says():
    law, std, n, r = gaussian_grid(), 0.05, 10_000, 10
    report = metrics.mode_report(law.sample((r, n), rng()), law.means, std)
    inside = 1 - math.exp(-8)  # two dimensions, 4 standard deviations
    assert abs(report.high_quality.mean() - inside) < 5 * (inside * (1 - inside) / n / r) ** 0.5
    # E[|x|^2; |x| < 4] / 2 of a standard normal law in the plane, given |x| < 4.
    variance = 1 - 8 * math.exp(-8) / inside
    standard_error = std / (4 * n * r) ** 0.5
    assert abs(report.inlier_std.mean() - std * variance**0.5) < 5 * standard_error
    assert (report.recovered == 25).all()
    # A multinomial's KL to its law is about chi^2_{24} / (2n), and the JSD a quarter of that.
    assert abs(report.reverse_kl.mean() - 24 / (2 * n)) < 5 * (2 * 24) ** 0.5 / (2 * n) / r**0.5
    assert abs(report.jsd.mean() - 24 / (8 * n)) < 5 * (2 * 24) ** 0.5 / (8 * n) / r**0.5
    # The control: samples that are 20 % too wide for the stated std are seen.
    wide = metrics.mode_report(law.sample((r, n), rng()), law.means, std / 1.2)
    assert abs(wide.high_quality.mean() - inside) > 5 * (inside * (1 - inside) / n / r) ** 0.5


def test_lost_and_bridged_modes_are_counted():
    law = gaussian_grid()
    x = law.means.repeat(10, 1)[None]
    whole = metrics.mode_report(x, law.means, 0.05)
    assert (whole.recovered, whole.min_share, whole.high_quality) == (25, 1, 1)
    assert whole.jsd == whole.inlier_std == 0
    lost = metrics.mode_report(x[:, x[0, :, 0] > -2], law.means, 0.05)
    assert (lost.recovered, lost.min_share, lost.high_quality) == (20, 0, 1)
    assert math.isclose(lost.reverse_kl, math.log(25 / 20), rel_tol=1e-9)
    bridged = torch.cat([x, x + x.new_tensor([0.5, 0.0])], dim=1)
    assert metrics.mode_report(bridged, law.means, 0.05).high_quality == 0.5


def test_one_mode_alone():
    law = gaussian_grid()
    report = metrics.mode_report(law.means[:1].expand(1, 50, 2), law.means, 0.05)
    assert report.recovered == 1
    assert math.isclose(report.reverse_kl, math.log(25), rel_tol=1e-9)


def test_samples_that_are_elsewhere():
    law = gaussian_grid()
    report = metrics.mode_report(torch.full((1, 10, 2), 0.5), law.means, 0.05)
    assert (report.recovered, report.min_share, report.high_quality) == (0, 0, 0)
    assert math.isclose(report.jsd, math.log(2)) and math.isinf(report.reverse_kl)
    assert report.inlier_std.isnan()


def test_mode_report_names_bad_input():
    means = gaussian_grid().means
    with pytest.raises(ValueError, match=r"x must be \(R, n, d\).*got \(10, 2\)"):
        metrics.mode_report(torch.zeros(10, 2), means, 0.05)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        metrics.mode_report(torch.zeros(1, 10, 2), means, 0)
    with pytest.raises(ValueError, match="not finite"):
        metrics.mode_report(torch.full((1, 10, 2), math.nan), means, 0.05)


# --- intervals, calibration, Frechet distance ---


def test_the_interval_is_students():
    values = randn(7, generator=rng()).double()
    low, high = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    interval = metrics.mean_interval(values)
    assert math.isclose(interval.low, low) and math.isclose(interval.high, high)
    assert str(metrics.mean_interval(torch.tensor([98.0, 98.4]), digits=1)) == "98.2 [95.7, 100.7]"


def test_the_interval_covers_as_often_as_it_says():
    intervals = [metrics.mean_interval(randn(5, generator=rng(seed))) for seed in range(1000)]
    covered = sum(interval.low < 0 < interval.high for interval in intervals) / 1000
    assert abs(covered - 0.95) < 5 * (0.95 * 0.05 / 1000) ** 0.5


@pytest.mark.parametrize("digits", [-1, 2.5, True, "2"])
def test_the_decimals_are_counted(digits):
    with pytest.raises(ValueError, match="digits must be a whole number of at least 0"):
        metrics.mean_interval(torch.ones(3), digits=digits)
    assert str(metrics.mean_interval(torch.ones(3), digits=0)) == "1 [1, 1]"


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(2, 2), torch.tensor([1, math.nan])])
def test_the_interval_needs_two_finite_values(values):
    with pytest.raises(ValueError, match=r"(values must be \(R,\)|1 of . values of values)"):
        metrics.mean_interval(values)


def calibration_z(scale):
    """Largest |observed - predicted| in binomial standard errors, with `scale` times the logit."""
    p, q = gaussian([0.0]), gaussian([1.5])
    x, y = p.sample((2, 20_000), rng()), q.sample((2, 20_000), rng(1))
    logit = lambda x: scale * (p.log_prob(x) - q.log_prob(x))  # noqa: E731
    curve = metrics.calibration(logit(x), logit(y))
    assert (curve.count.sum(dim=1) == 40_000).all()
    spread = (curve.predicted * (1 - curve.predicted) / curve.count).sqrt()
    return ((curve.observed - curve.predicted).abs() / spread).nan_to_num().max()


def test_the_log_ratio_is_calibrated_and_its_double_is_not():
    assert calibration_z(1.0) < 5
    assert calibration_z(2.0) > 10


def test_empty_bins_are_nan():
    curve = metrics.calibration(torch.full((1, 3), 5.0), torch.full((1, 3), 5.0), n_bins=4)
    assert curve.observed.isnan().tolist() == [[True, True, True, False]]
    assert curve.observed[0, 3] == 0.5
    with pytest.raises(ValueError, match=r"real must be \(R, n\), .*; got \(1, 3\), \(1, 4\)"):
        metrics.calibration(torch.zeros(1, 3), torch.zeros(1, 4))


def test_what_is_black_or_white_is_saturated():
    steps = torch.linspace(-1, 1, 256)  # each byte once
    images = torch.stack([steps, torch.ones(256), steps / 2]).view(3, 1, 1, 16, 16)
    assert metrics.saturation(images).tolist() == [2 / 256, 1, 0]


def test_the_distance_of_colours_is_that_of_scipy():
    shift = torch.tensor([-0.5, 0.5, 0.5])[:, None, None]
    x, y = ((each + shift).clamp(-1, 1) for each in (pictures(), pictures(1)[0]))
    values = (((part + 1) * 127.5).round() / 127.5 - 1 for part in (x, y))
    a, b = (part.transpose(-3, -4).flatten(-3).double() for part in values)
    expected = [[stats.wasserstein_distance(*pair) for pair in zip(r, b, strict=True)] for r in a]
    found = metrics.colour_distance(x, y)
    torch.testing.assert_close(found, torch.tensor(expected).double().mean(dim=1))
    # It sees the channels one by one: a control.
    assert float((metrics.colour_distance(x.flip(2), y) - found).abs().max()) > 1e-3


@pytest.mark.parametrize("beyond", [-1.5, 1.01])
def test_an_image_beyond_its_range_is_refused(beyond):
    images = pictures()
    images[0, 0, 0, 0, 0] = beyond
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got values from .*scale"):
        metrics.saturation(images)
    with pytest.raises(ValueError, match=r"reference must lie in \[-1, 1\]"):
        metrics.colour_distance(pictures(), images[0])
    with pytest.raises(ValueError, match="reference"):
        metrics.colour_distance(pictures(), pictures())


def test_the_frechet_distance_of_two_normal_laws():
    zero, one = torch.zeros(3), torch.ones(3)
    a, b = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.diag(torch.tensor([4.0, 4.0, 1.0]))
    expected = 3 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2  # commuting covariances
    assert math.isclose(metrics.frechet_distance(zero, a, one, b), expected, rel_tol=1e-6)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng(), dtype=torch.float64))
    turned = metrics.frechet_distance(
        q @ zero.double(), q @ a.double() @ q.T, q @ one.double(), q @ b.double() @ q.T
    )
    assert math.isclose(turned, expected, rel_tol=1e-6)
    assert abs(metrics.frechet_distance(one, a, one, a)) < 1e-9


def test_the_frechet_distance_of_covariances_that_do_not_commute():
    zero = torch.zeros(2)
    a, b = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    # tr M^{1/2} = (tr M + 2 (det M)^{1/2})^{1/2} for a 2 x 2 matrix M with positive eigenvalues.
    root = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    expected = float(a.trace() + b.trace() - 2 * root)
    assert math.isclose(metrics.frechet_distance(zero, a, zero, b), expected, rel_tol=1e-5)


def test_the_frechet_distance_names_bad_input():
    with pytest.raises(
        ValueError, match=r"mean_x must be \(d\), cov_x \(d, d\).*got \(2,\), \(2, 2\), \(3,\)"
    ):
        metrics.frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="2 of . values of mean_y are not finite"):
        bad = torch.full((2,), math.nan)
        metrics.frechet_distance(torch.zeros(2), torch.eye(2), bad, torch.eye(2))


def test_the_threshold_is_the_callers_and_the_std_is_per_coordinate():
    means = torch.zeros(1, 3)
    x = torch.tensor([[[0.0, 0.0, 0.2], [0.0, 0.35, 0.0], [0.45, 0.0, 0.0]]])
    three, four = (metrics.mode_report(x, means, 0.1, n_std) for n_std in (3, 4))
    assert math.isclose(three.high_quality, 1 / 3) and math.isclose(four.high_quality, 2 / 3)
    assert math.isclose(three.inlier_std, (0.2**2 / 3) ** 0.5, rel_tol=1e-6)
    assert math.isclose(four.inlier_std, ((0.2**2 + 0.35**2) / 6) ** 0.5, rel_tol=1e-6)


def test_the_jsd_of_one_mode_among_k():
    k = 4
    means = torch.arange(float(k))[:, None]
    report = metrics.mode_report(torch.zeros(1, 9, 1), means, 0.1)
    # sum p log 2p/(p + u) + sum u log 2u/(p + u), p = (1, 0, ...), u = 1/K.
    kl_p = math.log(2 / (1 + 1 / k))
    kl_u = math.log(2 / (k + 1)) / k + (k - 1) / k * math.log(2)
    assert math.isclose(report.jsd, (kl_p + kl_u) / 2, rel_tol=1e-9)


def test_bins_are_equal_and_predict_their_mean():
    d = torch.tensor([[0.1, 0.2, 0.4, 0.7]], dtype=torch.float64)
    curve = metrics.calibration(d.logit()[:, 1:3], d.logit()[:, [0, 3]], n_bins=2)
    torch.testing.assert_close(curve.predicted, torch.tensor([[0.7 / 3, 0.7]]).double())
    torch.testing.assert_close(curve.observed, torch.tensor([[2 / 3, 0.0]]).double())
    assert curve.count.tolist() == [[3, 1]]


def test_the_frechet_distance_of_flat_laws():
    # Covariances A A^T and B B^T of rank 2 in 6 dimensions: tr (C_x C_y)^{1/2} = |A^T B|_*.
    a, b = (torch.randn(6, 2, generator=rng(k), dtype=torch.float64) for k in (0, 1))
    zero, cross = torch.zeros(6), torch.linalg.svdvals(a.T @ b).sum()
    expected = float(a.square().sum() + b.square().sum() - 2 * cross)
    # The root of an eigenvalue that is 0 up to rounding, 1e-16, is 1e-8.
    assert math.isclose(
        metrics.frechet_distance(zero, a @ a.T, zero, b @ b.T), expected, rel_tol=1e-6
    )


@pytest.fixture(scope="module")
def moments_of_digits():
    images, labels = digits()
    return [metrics.moments(images.flatten(1)[labels == k]) for k in range(10)]


def test_the_frechet_distance_of_two_digits(moments_of_digits):
    # Border pixels never change: the covariances and their product are singular.
    value = metrics.frechet_distance(*moments_of_digits[8], *moments_of_digits[9])
    assert abs(value - 14.4668) < 5e-5


def test_the_frechet_distance_is_one_of_laws(moments_of_digits):
    pairs = [(a, b) for i, a in enumerate(moments_of_digits) for b in moments_of_digits[:i]]
    assert len(pairs) == 45
    for a, b in pairs:
        value = metrics.frechet_distance(*a, *b)
        assert 5 < value < 50
        assert math.isclose(metrics.frechet_distance(*b, *a), value, rel_tol=1e-9)
        scaled = [part for mean, cov in (a, b) for part in (1e-6 * mean, 1e-12 * cov)]
        assert math.isclose(metrics.frechet_distance(*scaled), 1e-12 * value, rel_tol=1e-6)
    for a in moments_of_digits:
        assert 0 <= metrics.frechet_distance(*a, *a) < 1e-9


def test_a_stored_covariance_need_not_be_exact(moments_of_digits):
    half = [[part.half() for part in law] for law in moments_of_digits]
    value = metrics.frechet_distance(*half[8], *half[9])
    assert abs(value / 14.4668 - 1) < 0.01
    # Rounding gives a flat law negative eigenvalues.
    flat = randn(30, 2, generator=rng()).double()
    flat = (flat @ flat.T).half()
    assert torch.linalg.eigvalsh(flat.double()).min() < -1e-5 * flat.max()
    zero = torch.zeros(30)
    assert metrics.frechet_distance(zero, flat, zero, flat) < 0.01 * flat.double().trace()


@pytest.mark.parametrize("bad", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]])
def test_what_is_no_covariance_is_named(bad):
    zero, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="cov_y is no covariance"):
        metrics.frechet_distance(zero, eye, zero, torch.tensor(bad))
    with pytest.raises(ValueError, match="cov_x is no covariance"):
        metrics.frechet_distance(zero, torch.tensor(bad), zero, eye)


def test_a_point_is_a_law_too():
    zero, one = torch.zeros(2), torch.ones(2)
    assert metrics.frechet_distance(zero, torch.zeros(2, 2), one, torch.zeros(2, 2)) == 2
    assert metrics.frechet_distance(zero, torch.zeros(2, 2), zero, torch.eye(2)) == 2


def test_moments():
    features = randn(50, 3, generator=rng()) + 100
    mean, cov = metrics.moments(features)
    torch.testing.assert_close(mean, features.double().mean(dim=0))
    centred = features.double() - mean
    torch.testing.assert_close(cov, centred.T @ centred / 49)
    mean, cov = metrics.moments(features[:, :1])
    assert (mean.shape, cov.shape) == ((1,), (1, 1))
    for bad in (features[:1], features[0], features[None]):
        with pytest.raises(ValueError, match=r"\(n, d\) with n at least 2"):
            metrics.moments(bad)
    with pytest.raises(ValueError, match="not finite"):
        metrics.moments(features * math.nan)


# --- energy distance ---


def test_weighted_draws_stand_for_another_law():
    """N(0, 1) with the weights e^x is N(1, 1); equal weights in any unit are none."""
    x, y = randn(20, 500, 1, generator=rng(1)) + 1, randn(20, 2000, 1, generator=rng(2))
    weighted = metrics.energy_distance(x, y, y[..., 0].exp())
    plain = metrics.energy_distance(x, y)
    assert abs(weighted.mean()) <= 5 * weighted.std() / 20**0.5 and plain.min() > 0.3
    same = metrics.energy_distance(x, y, torch.full((20, 2000), 7.0))
    torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-12)
    one_is_0 = torch.ones(20, 2000).index_fill(0, torch.tensor(3), 0)
    for bad in (torch.zeros(20, 2000), -torch.ones(20, 2000), one_is_0):
        with pytest.raises(ValueError, match="weights of which none is below 0"):
            metrics.energy_distance(x, y, bad)
    # A draw that is there twice is one of twice the weight.
    twice = torch.cat([y[:, :1], y], dim=1)[:, :50]
    double = torch.ones(20, 49)
    double[:, 0] = 2
    by_weight = metrics.energy_distance(x, y[:, :49], double)
    gap = metrics.energy_distance(x, twice) - by_weight
    assert (gap.abs() < 0.05).all() and (gap > 0).all()  # which has no distance to itself


def test_energy_distance_of_two_normals():
    # In one dimension E|N(m, s^2)| is known: for a shift m, s^2 = 2 the distance follows from it.
    def folded(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(
            m / (s * math.sqrt(2))
        )

    expected = 2 * folded(1.0, math.sqrt(2)) - 2 * folded(0.0, math.sqrt(2))
    x, y = randn(20, 500, 1, generator=rng()), randn(20, 500, 1, generator=rng(1)) + 1
    values = metrics.energy_distance(x, y)
    assert abs(values.mean() - expected) <= 5 * values.std() / math.sqrt(20)
    same = metrics.energy_distance(x, y - 1)
    assert abs(same.mean()) <= 5 * same.std() / math.sqrt(20)  # no bias: it is negative at times
    assert (same < 0).any() and values.min() > 0.1
    with pytest.raises(ValueError, match="at least 2 points"):
        metrics.energy_distance(x[:, :1], y)
    for other in (y[:1], y.expand(-1, -1, 2)):  # which would broadcast
        with pytest.raises(
            ValueError, match=r"x must be .*, y \(R, m, d\), .*; got \(20, 500, 1\)"
        ):
            metrics.energy_distance(x, other)


def test_energy_distance_of_unequal_samples():
    x, y = randn(2, 7, 2, generator=rng()).double(), randn(2, 4, 2, generator=rng(1)).double()

    def mean(a, b):  # over pairs of different points
        pairs = [(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]
        return sum((p - q).norm() for p, q in pairs) / len(pairs)

    expected = [2 * mean(a, b) - mean(a, a) - mean(b, b) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(metrics.energy_distance(x, y), torch.stack(expected))


# --- energies on a grid ---

BOX = (-5.0, 5.0, -5.0, 5.0)


def quadratic(x):
    return x.square().sum(dim=-1) / 2


def test_log_partition_of_a_quadratic():
    stds = torch.tensor([0.2, 1.0])[:, None]

    def energies(x):  # two replicates of different width
        return x.square().sum(dim=2) / (2 * stds**2)

    values = metrics.log_partition(energies, (-6.0, 6.0, -6.0, 6.0), replicates=2)
    expected = (2 * math.pi * stds[:, 0].double() ** 2).log()
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    # A box that cuts the law off sees less of it.
    assert metrics.log_partition(quadratic, (0.0, 6.0, -6.0, 6.0)) < math.log(2 * math.pi) - 0.6


def test_kl_to_truth_is_the_closed_form():
    box = (-9.0, 9.0, -9.0, 9.0)  # six standard deviations of the model
    wide = metrics.kl_to_truth(lambda x: quadratic(x) / 1.5**2, gaussian([0.0, 0.0]), box)
    exact = 2 * (math.log(1.5) + 1 / (2 * 1.5**2) - 0.5)
    assert abs(float(wide) - exact) < 1e-5
    truth = gaussian([0.3, -0.2], 0.7)
    same = metrics.kl_to_truth(lambda x: 7 - truth.log_prob(x), truth, BOX, replicates=2)
    assert same.shape == (2,) and same.abs().max() < 1e-6


def test_a_wall_where_there_are_no_data_costs_nothing():
    truth = gaussian([0.0, 0.0], 0.05)

    def walled(x):
        return torch.where(x[..., 0].abs() < 2, -truth.log_prob(x), torch.inf)

    assert metrics.kl_to_truth(walled, truth, (-3.0, 3.0, -3.0, 3.0)).abs() < 1e-5


def test_bad_grids():
    with pytest.raises(ValueError, match="no log_prob"):
        metrics.kl_to_truth(quadratic, Distribution(lambda *_: None, None, None), BOX)
    with pytest.raises(ValueError, match=r"mass 0\..* give more cells, or a box that holds"):
        metrics.kl_to_truth(quadratic, gaussian([4.0, 0.0]), BOX)
    with pytest.raises(ValueError, match="width must be positive"):
        metrics.log_partition(quadratic, (1.0, -1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"energy\(x\) \(R, m\); got .*, \(1, 20000, 2\)"):
        metrics.log_partition(lambda x: x, BOX)
    with pytest.raises(ValueError, match=r"x must be \(R, m, 2\), energy\(x\) .*, \(\)"):
        metrics.log_partition(lambda x: x.sum(), BOX)
    with pytest.raises(ValueError, match="does not take points .* as it was built") as caught:
        metrics.log_partition(energy_mlp(2, (8,), replicates=3, generator=rng()), BOX)
    assert "x must be (3, n, 2), got (1, 20000, 2)" in str(caught.value)
    for bad in (math.nan, -math.inf):
        with pytest.raises(FloatingPointError, match="nan or -inf in 160000 cells"):
            metrics.log_partition(lambda x, bad=bad: torch.full_like(x[..., 0], bad), BOX)
    one_wall = lambda x: quadratic(x) / x.new_tensor([[1.0], [0.0]])  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"\+inf in every cell"):
        metrics.log_partition(one_wall, BOX, replicates=2)
    nowhere = gaussian([0.0, 0.0])._replace(log_prob=lambda x: x[:, 0] * math.nan)
    with pytest.raises(ValueError, match="the truth has mass nan"):
        metrics.kl_to_truth(quadratic, nowhere, BOX)


def test_an_energy_is_integrated_in_its_own_type():
    energy = energy_mlp(2, (8,), generator=rng())
    single = metrics.log_partition(energy, BOX)
    double = metrics.log_partition(energy.double(), BOX)
    assert 0 < abs(float(single - double)) < 1e-5
    assert metrics.kl_to_truth(energy, gaussian([0.0, 0.0]), BOX).isfinite()
    assert metrics.log_partition(lambda x: energy(x), BOX) == double
    with pytest.raises(ValueError, match=r"does not take points.*torch.float32.*\.float\(\)"):
        metrics.log_partition(energy.bfloat16(), BOX)


def test_an_energy_is_integrated_in_evaluation_mode():
    energy = energy_mlp(2, (8,), generator=rng())
    energy.function.append(nn.Dropout())
    energy.function[0].eval()
    before = [module.training for module in energy.modules()]
    values = [metrics.log_partition(energy, BOX) for _ in range(2)]
    assert torch.equal(*values)
    assert [module.training for module in energy.modules()] == before
    assert torch.equal(values[0], metrics.log_partition(energy.eval(), BOX))
    noisy = energy.train()(torch.ones(1, 99, 2))
    assert not torch.equal(noisy, energy(torch.ones(1, 99, 2)))  # the control


# --- chains ---


def autoregressive(n_draws, n_chains, rho, offsets=0.0, seed=0):
    """Stationary AR(1) chains of variance 1, (n_draws, n_chains)."""
    noise = randn(n_draws, n_chains, generator=rng(seed))
    x = [noise[0]]
    for step in noise[1:]:
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * step)
    return torch.stack(x) + offsets


def test_ess_of_an_autoregression():
    draws = autoregressive(4000, 4, 0.8)
    expected = 16_000 * (1 - 0.8) / (1 + 0.8)
    assert 0.8 < float(metrics.ess(draws)) / expected < 1.25
    assert 0.8 < float(metrics.ess(autoregressive(4000, 4, 0.0))) / 16_000 < 1.25


@pytest.mark.filterwarnings("ignore:the effective sample size")
def test_rhat_sees_chains_that_stay_apart_and_halves_that_drift():
    together = autoregressive(1000, 4, 0.3)
    assert metrics.rhat(together) < 1.01
    assert metrics.rhat(together + torch.tensor([0.0, 0.0, 0.0, 2.0])) > 1.3
    drift = torch.linspace(-2, 2, 1000)[:, None]
    assert metrics.rhat(together + drift) > 1.3
    both = torch.stack([together, together + drift], dim=2)
    assert metrics.rhat(both).shape == (2,)


def test_rhat_is_blind_to_what_no_chain_has_seen():
    def two_modes(x):  # N(-10, 1) and N(10, 1), half each: the mean is 0
        return -torch.logaddexp(-((x[..., 0] + 10) ** 2) / 2, -((x[..., 0] - 10) ** 2) / 2)

    start = 10 + randn(4, 1, generator=rng())
    draws = run_chain(mala(two_modes, 1.0), start, 4000, rng(1)).positions[..., 0]
    assert metrics.rhat(draws) < 1.01 and draws.mean() > 9


def test_short_chains_are_reported():
    with pytest.warns(UserWarning, match="too short to tell"):
        metrics.rhat(autoregressive(100, 4, 0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.ess(autoregressive(1000, 4, 0.3))
    with pytest.raises(ValueError, match=r"at least 4 draws, got \(3, 4\)"):
        metrics.rhat(torch.zeros(3, 4))


@pytest.mark.parametrize("diagnose", [metrics.rhat, metrics.ess])
def test_a_coordinate_that_never_moves_is_not_judged(diagnose):
    stuck = torch.stack([autoregressive(1000, 4, 0.3), torch.ones(1000, 4)], dim=2)
    for draws in (stuck, torch.zeros(10, 4), torch.arange(4.0).expand(10, 4)):
        with pytest.raises(ValueError, match="no chain has moved in some coordinate"):
            diagnose(draws)


@pytest.mark.filterwarnings("ignore:the effective sample size")
def test_halves_without_a_spread_are_not_judged():
    # The draw in the middle belongs to no half: nothing is left to compare.
    draws = torch.stack(
        [torch.zeros(9, 3), 10 * torch.arange(3) + rand(9, 3, generator=rng())], dim=2
    )
    draws[4, :, 0] = 1.0
    with pytest.raises(ValueError, match="3 of 3 chains stand still"):
        metrics.rhat(draws)


def low(quantile):
    return stats.norm.ppf(quantile)


# Each chain's draws are independent, but for those at `where`.
@pytest.mark.parametrize("where", [slice(None), slice(None, 500), slice(-500, None)])
@pytest.mark.parametrize("value", [0.0, low(0.25), low(0.4), 3.0])
@pytest.mark.parametrize("n_chains", [4, 20])
def test_chains_that_stand_still_never_seem_fine(where, value, n_chains):
    draws = randn(1001, n_chains, 2, generator=rng())
    moving = draws.clone()
    draws[where, 2, 1] = value
    for diagnose, fine in (
        (metrics.rhat, lambda found: found.max() < 1.1),
        (metrics.ess, lambda found: found.min() >= 100 * n_chains),
    ):
        assert fine(diagnose(moving))  # the control
        for part in (draws, draws[..., 1]):
            refused = False
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    found = diagnose(part)
                except ValueError as error:
                    refused = f"1 of {n_chains} chains stand still" in str(error)
            assert refused or not fine(found)
            assert refused or diagnose is metrics.rhat or "or stuck" in str(warned[0].message)


def test_what_would_seem_fine():
    # The controls: at the median a frozen chain does not lower the effective sample size, and at
    # a quarter it does not raise R-hat.
    from arviz_stats.base import array_stats

    draws = randn(1000, 20, generator=rng()).numpy()
    draws[:, 3] = 0
    assert array_stats.ess(draws, chain_axis=1, draw_axis=0) > 15_000
    draws[:, 3] = low(0.25)
    assert array_stats.rhat(draws, chain_axis=1, draw_axis=0) < 1.05


def test_a_large_rhat_of_chains_that_stand_still_is_an_answer():
    draws = randn(1000, 4, 2, generator=rng())
    draws[:, 0, 0] = 3.0
    for part in (draws[..., 0], draws):  # the other coordinate is fine
        with pytest.warns(UserWarning, match="or stuck"):
            assert metrics.rhat(part)[0] > 1.4
        with pytest.warns(UserWarning, match="or stuck"):
            assert metrics.ess(part)[0] < 10


def test_which_chains_stand_still():
    draws = randn(1001, 6, 2, generator=rng())
    draws[:, 0, 0] = 1.0
    draws[:500, 1, 1] = 1.0
    draws[-500:, 2] = 1.0
    draws[:499, 3] = 1.0  # one short of a half
    draws[:, 4] = 1.0
    draws[250, 4] = draws[750, 4] = 2.0
    assert metrics.stands_still(draws).tolist() == [True, True, True, False, False, False]
    assert metrics.stands_still(draws[..., 0]).tolist() == [True, False, True, False, False, False]


def test_one_chain_is_not_compared():
    draws = autoregressive(4000, 1, 0.8)
    for one in (draws, draws[..., None]):
        with pytest.raises(ValueError, match="one chain cannot be compared.*give at least 2"):
            metrics.rhat(one)
    assert 0.8 < float(metrics.ess(draws)) / (4000 * (1 - 0.8) / (1 + 0.8)) < 1.25


@pytest.mark.parametrize("diagnose", [metrics.rhat, metrics.ess])
def test_infinite_draws_are_not_judged(diagnose):
    draws = autoregressive(1000, 4, 0.3)
    draws[7, 2] = math.inf
    with pytest.raises(ValueError, match="not finite"):
        diagnose(draws)


@pytest.mark.filterwarnings("error", "ignore:the effective sample size")
@pytest.mark.parametrize("n_values", [2, 3, 5])
def test_draws_of_few_values_are_judged_or_refused(n_values):
    n_judged = 0
    for seed in range(100):
        draws = torch.randint(n_values, (8, 3), generator=rng(seed)).double()
        try:
            values = torch.cat([metrics.rhat(draws), metrics.ess(draws)])
        except ValueError:
            continue
        n_judged += 1
        assert not values.isnan().any() and (values > 0).all()
    assert 20 < n_judged


# --- chi-square ---

SQUARE = (-3.0, 3.0, -3.0, 3.0)


def test_the_score_of_the_right_law_is_standard_normal():
    law = gaussian([0.0, 0.0])
    scores = metrics.chi_square(law.sample((1000, 5000), rng()), law, SQUARE)
    assert scores.shape == (1000,)
    assert abs(scores.mean()) <= 5 / math.sqrt(1000)
    assert abs(scores.std() - 1) <= 0.1 and scores.max() < 5


@pytest.mark.parametrize("mean, std", [([0.1, 0.0], 1.0), ([0.0, 0.0], 1.05)])
def test_the_score_of_a_wrong_law_is_large(mean, std):
    wrong = gaussian(mean, std).sample((5, 20_000), rng())
    assert (metrics.chi_square(wrong, gaussian([0.0, 0.0]), SQUARE) > 5).all()


def test_what_lies_outside_the_box_is_counted_too():
    law = gaussian([0.0, 0.0])
    x = law.sample((1, 5000), rng())
    x[:, :200] = 50.0
    assert (metrics.chi_square(x, law, SQUARE) > 5).all()


def test_a_chi_square_needs_cells():
    law = gaussian([0.0, 0.0])
    with pytest.raises(ValueError, match="only 0 cells expect 10 of the 50 samples"):
        metrics.chi_square(law.sample((1, 50), rng()), law, SQUARE)
    with pytest.raises(ValueError, match=r"x must be \(R, n, 2\)"):
        metrics.chi_square(torch.zeros(1, 50, 3), law, SQUARE)
    with pytest.raises(ValueError, match="no log_prob"):
        metrics.chi_square(torch.zeros(1, 50, 2), law._replace(log_prob=None), SQUARE)
    narrow = gaussian([0.015, 0.015], 1e-3)  # on a point of the rule
    with pytest.raises(ValueError, match="the truth has mass .* give more cells"):
        metrics.chi_square(narrow.sample((1, 5000), rng()), narrow, SQUARE)


def test_a_chain_that_stands_still_in_its_middle_is_seen():
    g = torch.Generator().manual_seed(0)
    moving = torch.randn(1000, 4, generator=g)
    middle = moving.clone()
    middle[250:750, 1] = 0.0
    assert metrics.stands_still(moving).tolist() == [False] * 4
    assert metrics.stands_still(middle).tolist() == [False, True, False, False]
    assert metrics.stands_still(middle[:, :, None]).tolist() == [False, True, False, False]
    middle[500] = moving[500]  # no stay is that long any more
    assert not metrics.stands_still(middle).any()


def test_a_covariance_is_judged_by_the_digits_of_its_type():
    mean = torch.zeros(2)
    good = torch.eye(2)
    bad = torch.tensor([[1.0, 0.0], [0.0, -0.009]])
    with pytest.raises(ValueError, match="cov_x is no covariance"):
        metrics.frechet_distance(mean, bad, mean, good)
    rounded = torch.tensor([[1.0, 1.0], [1.0, 0.9995]]).half()  # singular, up to rounding
    assert metrics.frechet_distance(mean, rounded, mean, good) > 0


# --- class scores ---


def logits_of(p):
    return torch.tensor(p, dtype=torch.float64).log()


def test_class_scores_of_known_laws():
    n = 10
    sure = 1000 * torch.eye(n).double()
    cases = {
        "all classes, each sure": (sure[None], n, math.log(n)),
        "one class": (sure[:1].expand(1, 7, n), 1, 0.0),
        "no idea": (torch.zeros(1, 7, n), 1, 0.0),
        "two of ten classes": (sure[None, [0, 1, 1, 0]], 2, math.log(2)),
    }
    for name, (logits, inception, kl) in cases.items():
        found = metrics.class_scores(logits)
        assert float(found.inception) == pytest.approx(inception), name
        assert float(found.mean_kl) == pytest.approx(kl, abs=1e-12), name
    # Two samples with p(y|x) = (3/4, 1/4) and (1/4, 3/4), so that p(y) is (1/2, 1/2).
    found = metrics.class_scores(logits_of([[[0.75, 0.25], [0.25, 0.75]]]))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    swapped = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(found.mean_kl) == pytest.approx(kl)
    assert float(found.inception) == pytest.approx(math.exp(kl))
    assert float(found.swapped_squared) == pytest.approx(swapped**2)
    assert kl**2 != pytest.approx(swapped**2)  # the control: the order of the arguments matters


def test_class_scores_are_those_of_each_replicate_and_of_logits_up_to_a_constant():
    logits = randn(3, 50, 10, generator=rng())
    found = metrics.class_scores(logits)
    for r in range(3):
        for one, whole in zip(metrics.class_scores(logits[r : r + 1]), found, strict=True):
            assert float(one) == pytest.approx(float(whole[r]))
    moved = metrics.class_scores(logits.double() + randn(3, 50, 1, generator=rng(1)).double())
    for a, b in zip(moved, found, strict=True):
        assert a.shape == (3,) and a.dtype == torch.float64
        assert torch.allclose(a, b)
    with pytest.raises(ValueError, match=r"logits must be \(R, n, classes\)"):
        metrics.class_scores(logits[0])
    with pytest.raises(ValueError, match="not finite"):
        metrics.class_scores(torch.full((1, 2, 3), math.inf))


def test_one_sample_of_which_a_classifier_is_too_sure_dominates_the_swapped_score():
    """One of a thousand samples changes the usual scores by a thousandth, this one at will."""
    n, classes = 1000, 10
    labels = torch.arange(n) % classes
    logits = 5 * torch.nn.functional.one_hot(labels, classes).double()[None]
    usual = metrics.class_scores(logits)
    for scale in (1e3, 1e4):
        spoiled = logits.clone()
        spoiled[0, 0] *= scale
        found = metrics.class_scores(spoiled)
        assert float(found.inception / usual.inception) == pytest.approx(1, abs=2e-3)
        assert float(found.mean_kl / usual.mean_kl) == pytest.approx(1, abs=2e-3)
        # KL(p(y) || p(y|x)) of that sample is its logit times the share of the other classes.
        alone = (0.9 * 5 * scale) ** 2 / n
        assert float(found.swapped_squared) == pytest.approx(alone, rel=0.02)
        assert found.swapped_squared > 100 * usual.swapped_squared
