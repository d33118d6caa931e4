"""Calibrations of logits, where the right map is known, and controls."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gan_ebm_utils import checkpoints
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.calibration import calibrate, calibrate_discriminator, diagnose
from gan_ebm_utils.datasets import exact_gan, gaussian_grid
from gan_ebm_utils.metrics import chi_square
from gan_ebm_utils.refine import mh_gan

EXACT = exact_gan()


def rng(seed=0):
    return seeded(seed, "cpu")


def skewed(n=20_000, replicates=2, seed=0):
    """Held-out logits of a discriminator whose d is the right log ratio bent and shifted."""
    exact = EXACT.gan.discriminator
    real = exact(EXACT.data.sample((replicates, n), rng(seed)))
    return real, exact(EXACT.generated.sample((replicates, n), rng(seed + 1)))


def test_platt_finds_slope_and_offset():
    real, fake = skewed()
    calibrated = calibrate(3 * real - 2, 3 * fake - 2)
    torch.testing.assert_close(calibrated.slope, torch.full((2, 1), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(calibrated.offset, torch.full((2, 1), 2 / 3), atol=0.05, rtol=0)
    temperature = calibrate(3 * real - 2, 3 * fake - 2, "temperature")
    torch.testing.assert_close(temperature.slope, calibrated.slope)
    assert (temperature.offset == 0).all()


def test_isotonic_undoes_any_rising_function():
    real, fake = skewed()

    def bend(d):
        return d.clamp(min=-6) ** 3 / 20

    calibrated = calibrate(bend(real), bend(fake), "isotonic")
    x = EXACT.data.sample((2, 5000), rng(7))
    d = EXACT.gan.discriminator(x)
    inside = (d > -2) & (d < 1.5)
    error = calibrated(bend(d)) - d
    assert error[inside].square().mean().sqrt() < 0.2
    assert (bend(d) - d)[inside].square().mean().sqrt() > 0.5
    # A step that held one class only would have an infinite logit.
    for end in (-1e9, 1e9):
        assert (calibrated(torch.full((2, 3), end)).abs() <= math.log(20_000)).all()


class Bend(nn.Module):
    def forward(self, d):
        return 2.5 * d + 1


def test_a_calibrated_gan_samples_the_data():
    real, fake = skewed(100_000, replicates=1)
    bent = EXACT.gan._replace(discriminator=nn.Sequential(EXACT.gan.discriminator, Bend()))
    calibrated = calibrate(2.5 * real + 1, 2.5 * fake + 1)
    mended = bent._replace(discriminator=nn.Sequential(bent.discriminator, calibrated))
    for gan, right in ((bent, False), (mended, True)):
        samples = mh_gan(gan, 10_000, rng(), n_steps=100).samples
        misfit = chi_square(samples, EXACT.data, (-2.4, 2.9, -2.5, 2.7))
        assert misfit <= 5 if right else misfit > 10


@pytest.mark.parametrize(
    ("real", "fake", "method", "message"),
    [
        (
            torch.zeros(1, 99),
            torch.zeros(1, 99),
            "platt",
            "held-out logits must be a .* at least 100, got 99",
        ),
        (
            torch.zeros(1, 200),
            torch.zeros(1, 100),
            "platt",
            r"real must be .R, n., fake .R, n.; got .1, 200., .1, 100.",
        ),
        (torch.zeros(200), torch.zeros(200), "platt", r"real must be .R, n.,.* got .200,., .200,."),
        (torch.zeros(1, 200), torch.zeros(1, 200), "beta", 'method must be "platt"'),
        (torch.full((1, 200), math.nan), torch.zeros(1, 200), "platt", "200 values .* not finite"),
        (torch.ones(1, 200), torch.zeros(1, 200), "platt", "threshold separates"),
        (torch.zeros(1, 200), torch.ones(1, 200), "platt", "threshold separates"),
        (torch.ones(1, 200), torch.ones(1, 200), "isotonic", "all held-out logits are equal"),
    ],
)
def test_bad_held_out_logits(real, fake, method, message):
    with pytest.raises(ValueError, match=message):
        calibrate(real, fake, method)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
@pytest.mark.parametrize(
    ("c", "b", "dtype"),
    [(c, 0.0, torch.float32) for c in (1e-6, 1e-3, 1e3, 1e6)]
    + [(1.0, 1e4, torch.float32), (1e-3, -10.0, torch.float32), (1e-6, 1e4, torch.float64)],
)
def test_a_calibration_knows_neither_scale_nor_origin(method, c, b, dtype):
    real = (randn(1, 2000, generator=rng()) + 0.5).to(dtype)
    fake = (randn(1, 2000, generator=rng(1)) - 0.5).to(dtype)
    plain, moved = calibrate(real, fake, method), calibrate(c * real + b, c * fake + b, method)
    d = torch.linspace(-3, 3, 50, dtype=dtype)[None]
    expected = plain(d)
    assert expected.max() - expected.min() > 2 and expected.dtype == dtype
    if method == "temperature":  # whose zero is that of the logit
        torch.testing.assert_close(moved.slope * c, plain.slope, rtol=1e-4, atol=0)
        assert abs(plain.slope - 0.968) < 0.01 and (moved.offset == 0).all()
    else:
        # In float32 a spread of 1 at 10,000 is known to 1/1000; an isotonic map has steep parts.
        error = (moved(c * d + b) - expected).abs()
        assert error.mean() < (0.01 if b else 1e-4) and error.max() < (0.2 if b else 1e-3)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_a_discriminator_the_wrong_way_round_is_noticed(method):
    real, fake = skewed(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(real, fake, method)
    with pytest.warns(UserWarning, match="in 2 of 2 replicates .* wrong way round"):
        calibrate(-real, -fake, method)
    one = torch.tensor([[1.0], [-1.0]])
    with pytest.warns(UserWarning, match="in 1 of 2 replicates") as caught:
        curve = calibrate(one * real, one * fake, method)
    assert caught[0].filename == __file__
    if method != "isotonic":
        assert (curve.slope.sign() == one).all()  # the sign that the warning speaks of


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_calibration_is_saved_with_the_networks_state(method, tmp_path):
    class Cubic(nn.Module):
        def forward(self, d):
            return d**3

    first = nn.Sequential(Cubic(), calibrate(*skewed(3000), method))
    second = nn.Sequential(Cubic(), calibrate(*skewed(500, seed=5), method))
    d = torch.linspace(-2, 2, 100).expand(2, -1)
    expected = first(d)
    assert not torch.allclose(second(d), expected)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(second(d), expected)
    # Each replicate has its own number of knots.
    if method == "isotonic":
        assert (first[1].knots[:, 1:] == first[1].knots[:, :-1]).any()
    assert first.double()(d).dtype == torch.float64
    assert {tensor.device.type for tensor in first.to("meta").state_dict().values()} == {"meta"}


def test_an_isotonic_map_is_that_of_scikit_learn():
    real, fake = skewed(500)
    curve = calibrate(real, fake, "isotonic")
    d = torch.cat([torch.linspace(-40, 3, 2000).expand(2, -1), curve.knots, real], dim=1)
    for row, knots, values, found in zip(d, curve.knots, curve.values, curve(d), strict=True):
        expected = np.interp(row.double(), knots.double(), values.double())
        np.testing.assert_allclose(found, expected, atol=2e-5)
    # Coarse logits, as an autocast network gives, are not rounded further.
    half = d.bfloat16()
    torch.testing.assert_close(curve(half), curve(half.float()))
    assert calibrate(real.bfloat16(), fake.bfloat16()).slope.dtype == torch.float32
    with pytest.raises(ValueError, match=r"fitted to 2 replicates, got logits \(3, 5\)"):
        curve(torch.zeros(3, 5))
    d = d[:, :2000].requires_grad_()
    (slope,) = torch.autograd.grad(curve(d).sum(), d)
    assert (slope >= 0).all() and (slope > 0).any()


def test_logits_far_from_zero_that_are_all_equal():
    with pytest.raises(ValueError, match="all held-out logits are equal"):
        calibrate(torch.full((1, 200), 10_000.1), torch.full((1, 200), 10_000.1))


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_under_the_users_defaults(method):
    real, fake = skewed(500)
    d = torch.linspace(-2, 2, 9).expand(2, -1)
    plain = calibrate(real, fake, method)(d)
    with torch.device("meta"):
        assert torch.equal(calibrate(real, fake, method)(d), plain)


def test_an_isotonic_map_is_for_as_many_replicates_as_it_was_fitted_to():
    logits = [torch.randn(2, 200, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    two = calibrate(logits[0] + 0.5, logits[1], "isotonic")
    one = calibrate(logits[0][:1] + 0.5, logits[1][:1], "isotonic")
    with pytest.raises(RuntimeError, match="size mismatch"):
        one.load_state_dict(two.state_dict())


def test_logits_too_close_for_their_type_are_refused():
    real, fake = (torch.randn(1, 500, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    with pytest.raises(ValueError, match="too little for torch.float32; multiply"):
        calibrate(1e-39 * (real + 1), 1e-39 * fake)


# --- a GAN's discriminator ---


def test_a_discriminator_is_calibrated_on_held_out_data():
    bent = EXACT.gan._replace(discriminator=nn.Sequential(EXACT.gan.discriminator, Bend()))
    data = EXACT.data.sample((2, 5000), rng())
    for held_out in (data, data[0]):  # for each replicate, or for all
        mended = calibrate_discriminator(bent, held_out, rng(), replicates=2)
        x = EXACT.data.sample((2, 1000), rng(1))
        error = mended.discriminator(x) - EXACT.gan.discriminator(x)
        assert error.square().mean().sqrt() < 0.1
        assert (bent.discriminator(x) - EXACT.gan.discriminator(x)).square().mean().sqrt() > 1
    isotonic = calibrate_discriminator(bent, data[0], rng(), "isotonic")
    assert isotonic.discriminator[1].knots.shape[0] == 1


@pytest.mark.parametrize("function", [calibrate_discriminator, diagnose])
def test_data_of_another_shape(function):
    for shape in ((200, 3), (2, 200, 2), (200,), (1, 1, 200, 2)):
        with pytest.raises(ValueError, match=r"data must be samples \(1, n, 2\), or \(n, 2\)"):
            function(EXACT.gan, torch.zeros(shape), rng())
    with pytest.raises(ValueError, match="at least 100|too few"):
        function(EXACT.gan, EXACT.data.sample((99,), rng()), rng())
    with pytest.raises(ValueError, match="2 of 2 values of data are not finite"):
        function(EXACT.gan, torch.full((1, 2), math.nan), rng())


# --- a diagnosis ---

GRID = gaussian_grid()


class Without(nn.Module):
    """A generator without draws within a radius of some points: latents turn until it has none."""

    def __init__(self, generator, points, radius):
        super().__init__()
        self.generator, self.points, self.radius = generator, points, radius

    def forward(self, z):
        x, turn = self.generator(z), torch.linalg.qr(torch.arange(16.0).sin().reshape(4, 4))[0]
        for _ in range(30):
            z = z @ turn.T
            near = torch.cdist(x, self.points.expand(len(x), -1, -1)).amin(dim=2) < self.radius
            x = torch.where(near[..., None], self.generator(z), x)
        return x


def grid_gan(lost=(), n_std=2.5):
    gan = checkpoints.load("gaussians25_gan").gan("refitted")
    if not len(lost):
        return gan
    return gan._replace(generator=Without(gan.generator, GRID.means[lost], n_std * 0.05))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_gan_is_told_so(seed):
    data = GRID.sample((10, 1000), rng(seed))
    found = diagnose(grid_gan(), data, rng(seed), replicates=10)
    assert found.is_enough.all() and found.is_missed.shape == (10, 1000)
    assert found.missed.max() <= 0.02 and found.effective.min() > 20
    assert str(found).startswith("refinement has what it needs")
    line = str(diagnose(EXACT.gan, EXACT.data.sample((1000,), rng(seed)), rng(seed)))
    assert line.startswith("refinement has what it needs: 0.0% of the data") and "\n" not in line
    assert "replicates" not in line


@pytest.mark.parametrize("n_std", [2.5, 6.0])
def test_modes_without_draws_are_found(n_std):
    """Five of 25, of which draws come no nearer than to the rim: the control of the last test."""
    data = GRID.sample((10, 1000), rng())
    gan = grid_gan([0, 6, 12, 17, 23], n_std)
    found = diagnose(gan, data, rng(), replicates=10)
    assert not found.is_enough.any() and ((0.065 < found.missed) & (found.missed < 0.25)).all()
    assert str(found).startswith("refinement can raise a quality score and still move away from")
    assert "(in 10 of 10 replicates)" in str(found)
    # What is missed lies in these modes, which it says sample by sample.
    mode = (data[:, :, None] - GRID.means).norm(dim=3).argmin(dim=2)
    lost = torch.isin(mode, torch.tensor([0, 6, 12, 17, 23]))
    assert (found.is_missed & ~lost).double().mean() < 0.01


def test_a_single_mode_less_is_mentioned():
    data = GRID.sample((10, 2000), rng())
    gan, lost = grid_gan(), grid_gan([12], 6.0)
    share, known = (diagnose(g, data, rng(), replicates=10).missed.mean() for g in (lost, gan))
    assert share > 0.01 > 4 * known
    assert "but for the data that the generator misses" in str(
        diagnose(lost, data, rng(), replicates=10)
    )


def test_weights_and_logits_in_numbers():
    """A generator of one point of the plane and few others: known by counting."""

    class Two(nn.Module):
        def forward(self, x):
            return torch.where(x[..., 0] > 1.0, 9.0, 0.0)

    data = randn(400, 2, generator=rng())
    found = diagnose(Gan(nn.Identity(), Two(), 2), data, rng(), n_draws=2000)
    z = Gan(nn.Identity(), Two(), 2).prior((1, 2000), rng())
    weight = Two()(z).double().exp()
    torch.testing.assert_close(found.effective, weight.sum(1) ** 2 / weight.square().sum(1))
    torch.testing.assert_close(found.largest, weight.amax(1) / weight.sum(1))
    assert found.beyond == 0 and found.missed == 0 and found.n_draws == 2000
    shifted = diagnose(Gan(nn.Identity(), Two(), 2), data + torch.tensor([9.0, 0]), rng())
    assert shifted.missed == 1 and not shifted.is_enough


def test_weights_that_take_the_draws_away_are_told():
    """Of two clusters in the right shares a coarse discriminator favours one."""

    class Clusters(nn.Module):
        def forward(self, z):
            return 0.3 * z + 4 * (z[..., :1] > 0)

    class Favours(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return self.by * (x[..., 0] > 2)

    def trial(by, seed=0):
        gan = Gan(Clusters(), Favours(by), 2)
        return diagnose(gan, gan.generator(gan.prior((2000,), rng(seed + 9))), rng(seed))

    worse = trial(2.0)
    assert worse.is_worse and not worse.is_enough and worse.missed == 0
    # The share of the second cluster rises from 1/2 to s, and the distance by 2 (s - 1/2)^2 c, with
    # c = 6.01 - .44, the mean distance of the clusters less that within each.
    share = math.exp(2) / (1 + math.exp(2))
    assert worse.after - worse.before == pytest.approx(2 * (share - 0.5) ** 2 * 5.57, rel=0.25)
    assert "move away from the data, as it does here: 0.0% of" in str(worse)
    assert str(trial(0.0)).startswith("refinement has what it needs")
    assert sum(bool(trial(0.0, seed).is_worse) for seed in range(10)) == 0  # the control


def test_one_draw_with_all_the_weight_and_few_draws():
    class First(nn.Module):
        def forward(self, x):
            return torch.where(x[..., 0] == x[..., 0].max(), 200.0, 0.0)

    data = randn(400, 2, generator=rng())
    gan = Gan(nn.Identity(), First(), 2)
    found = diagnose(gan, data, rng(), n_draws=1000)  # which are judged all at once
    assert found.effective == 1 and found.largest == 1 and not found.is_enough
    assert found.after.isfinite() and not found.is_worse  # a law of one draw tells nothing

    # A weight is cut at 1/sqrt(n) of the sum: with a tenth at one far point the law would move.
    class Tenth(First):
        def forward(self, x):
            return super().forward(x).clamp(max=math.log(1000 / 9))

    gan, many = Gan(nn.Identity(), Tenth(), 2), randn(2000, 2, generator=rng())
    found = diagnose(gan, many, rng(), n_draws=1000)
    assert found.largest == pytest.approx(0.1, abs=0.01) and found.after < found.before + 0.02
    few = diagnose(EXACT.gan, EXACT.data.sample((200,), rng()), rng(), n_draws=100)
    assert few.missed == 0 and few.n_draws == 100  # as many neighbours as there are data


def test_features_stand_for_samples():
    """Data that differ in what is no feature are not missed."""
    far = EXACT.data.sample((500,), rng()) * torch.tensor([1.0, 1.0])
    far[:, 1] += 50
    plain = diagnose(EXACT.gan, far, rng())
    seen = diagnose(EXACT.gan, far, rng(), features=lambda x: x[:, :1])
    assert plain.missed == 1 and seen.missed < 0.01
