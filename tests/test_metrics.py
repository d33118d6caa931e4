"""Scores against closed forms, and against theory's standard errors where they are random."""

import math
import warnings
from itertools import permutations

import pytest
import torch
from scipy import stats

from gan_ebm_utils import metrics
from gan_ebm_utils.base import Distribution, randn, seeded
from gan_ebm_utils.datasets import gaussian, gaussian_grid
from gan_ebm_utils.samplers import mala, run_chain


def rng(seed=0):
    return seeded(seed, "cpu")


# --- earth mover's distance ---


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
        (torch.zeros(1, 3, 2), torch.zeros(1, 4, 2), "must have one shape"),
        (torch.zeros(3, 2), torch.zeros(3, 2), r"x must be \(R, n, d\), got \(3, 2\)"),
        (torch.zeros(1, 0, 2), torch.zeros(1, 0, 2), "x is empty"),
        (torch.zeros(1, 1, 2), torch.full((1, 1, 2), math.nan), "y holds 2 values.*not finite"),
    ],
)
def test_emd_names_bad_samples(x, y, says):
    with pytest.raises(ValueError, match=says):
        metrics.emd(x, y)


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


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(2, 2), torch.tensor([1, math.nan])])
def test_the_interval_needs_two_finite_values(values):
    with pytest.raises(ValueError, match=r"values (must be \(R,\)|holds 1 value)"):
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
    with pytest.raises(ValueError, match="logits .R, n. of one shape"):
        metrics.calibration(torch.zeros(1, 3), torch.zeros(1, 4))


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
        ValueError, match=r"means \(d,\) and covariances.*got \(2,\), \(2, 2\), \(3,\)"
    ):
        metrics.frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="mean_y holds 2 values.*not finite"):
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


# --- energy distance ---


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
    with pytest.raises(ValueError, match=r"mass 0\..* give a larger box or more cells"):
        metrics.kl_to_truth(quadratic, gaussian([4.0, 0.0]), BOX)
    with pytest.raises(ValueError, match="width must be positive"):
        metrics.log_partition(quadratic, (1.0, -1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"must map \(1, m, 2\) to \(1, m\)"):
        metrics.log_partition(lambda x: x, BOX)
    with pytest.raises(FloatingPointError, match="nan in 160000 cells"):
        metrics.log_partition(lambda x: x[..., 0] * math.nan, BOX)


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
    stuck = torch.stack([autoregressive(1000, 4, 0.3), torch.ones(1000, 4)], dim=2)
    with pytest.raises(ValueError, match="no chain has moved in some coordinate"):
        metrics.rhat(stuck)
    with pytest.raises(ValueError, match="no chain has moved"):
        metrics.ess(torch.zeros(10, 4))


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
