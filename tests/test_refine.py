"""Samplers that refine a GAN, in law on a GAN of which everything is known, and controls."""

import math

import pytest
import torch
from torch import nn

from gan_ebm_utils.base import Calls, Gan, randn, seeded
from gan_ebm_utils.datasets import exact_gan
from gan_ebm_utils.energies import wgan_latent_energy
from gan_ebm_utils.metrics import chi_square
from gan_ebm_utils.networks import NoisyGenerator, mlp
from gan_ebm_utils.refine import (
    calibrate,
    ddls,
    dgflow,
    dot,
    drs,
    isir_gan,
    lipschitz_estimate,
    mh_gan,
)
from gan_ebm_utils.samplers import langevin

EXACT = exact_gan()
BOX = (-2.4, 2.9, -2.5, 2.7)
N = 10_000
# Every exact sampler, with settings at which its chains have forgotten their start.
SAMPLERS = {
    "drs": (drs, {"log_bound": EXACT.log_bound}),
    "drs, bound from a pilot": (drs, {}),
    "drs, a budget it does not need": (drs, {"budget": 50.0}),
    "mh_gan": (mh_gan, {"n_steps": 100}),
    "isir_gan": (isir_gan, {"n_candidates": 8, "n_steps": 25}),
    "ddls": (ddls, {"step_size": 0.1, "n_steps": 300}),
    "ddls, two step sizes": (ddls, {"step_size": (0.02, 0.2), "n_steps": 400}),
}


def rng(seed=0):
    return seeded(seed, "cpu")


def with_logit(function):
    """The exact GAN whose logit d is replaced by function(d, x)."""

    class Changed(nn.Module):
        def forward(self, x):
            return function(EXACT.gan.discriminator(x), x)

    return EXACT.gan._replace(discriminator=Changed())


def draw(name, gan=EXACT.gan, seed=0, n=N, replicates=1):
    sampler, settings = SAMPLERS[name]
    return sampler(gan, n, rng(seed), replicates=replicates, **settings)


def score(samples, law=EXACT.data):
    return chi_square(samples, law, BOX)


# --- laws ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_law_is_that_of_the_data(name):
    refined = draw(name, replicates=2)
    assert refined.samples.shape == (2, N, 2)
    assert torch.equal(EXACT.gan.generator(refined.latents), refined.samples)
    assert (score(refined.samples) <= 5).all()
    assert (score(EXACT.gan.generator(randn(2, N, 2, generator=rng(1)))) > 50).all()


# Rejection with a given bound is the one sampler for which more than ratios matter.
RELATIVE = [name for name in SAMPLERS if name != "drs"]


@pytest.mark.parametrize("name", RELATIVE)
def test_a_constant_logit_gives_back_the_generator(name):
    samples = draw(name, with_logit(lambda d, x: torch.zeros_like(d))).samples
    assert (score(samples, EXACT.generated) <= 5).all()
    assert (score(samples) > 50).all()


@pytest.mark.parametrize("name", RELATIVE)
def test_a_shift_of_the_logit_changes_nothing(name):
    samples = draw(name, with_logit(lambda d, x: d + 3)).samples
    # But for a chain in a thousand, whose rounding errors have grown.
    moved = (samples - draw(name).samples).abs().amax(dim=2)
    assert (moved > 2e-3).double().mean() <= 1e-3


def test_a_shift_is_refused_more_often_where_the_bound_is_given():
    gan = with_logit(lambda d, x: d - math.log(4))
    refined = drs(gan, N, rng(), log_bound=EXACT.log_bound)
    rate = math.exp(-EXACT.log_bound)
    assert abs(refined.acceptance_rate / (rate / 4) - 1) <= 0.05
    assert abs(draw("drs").acceptance_rate / rate - 1) <= 0.05
    assert (score(refined.samples) <= 5).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_wrong_logit_is_found(name):
    wrong = with_logit(lambda d, x: 0.8 * d if name != "drs" else d - 0.3 * x[..., 0] ** 2)
    assert (score(draw(name, wrong).samples) > 10).all()


def test_langevin_without_its_acceptance_step_is_biased():
    samples = ddls(EXACT.gan, N, rng(), step_size=0.1, n_steps=300, kernel=langevin).samples
    assert (score(samples) > 10).all()


def test_the_law_with_noise_is_that_of_the_joint_latent():
    """G(z) + .3 z' with the exact logit of the blurred laws: the chains run in four dimensions."""

    class Blurred(nn.Module):  # G = identity, p_g = N(0, 1 + .3^2), p_d = N(0, .5)
        def forward(self, x):
            return -x.square().sum(dim=-1) * (1 / (2 * 0.5) - 1 / (2 * 1.09))

    gan = Gan(NoisyGenerator(nn.Identity(), 2, 0.3), Blurred(), 4)
    for sampler, settings in ((drs, {}), (ddls, {"step_size": 0.1, "n_steps": 300})):
        refined = sampler(gan, N, rng(), **settings)
        assert refined.latents.shape == (1, N, 4)
        variance = refined.samples.var(dim=1)
        assert (abs(variance / 0.5 - 1) <= 5 * math.sqrt(2 / N)).all()


def test_a_critic_at_its_temperature_is_a_logit():
    critic = with_logit(lambda d, x: 7 * d)

    def energy(gan):
        return wgan_latent_energy(gan, temperature=7)

    refined = ddls(critic, N, rng(), step_size=0.1, n_steps=300, energy=energy)
    assert (score(refined.samples) <= 5).all()
    raw = ddls(critic, N, rng(), step_size=0.1, n_steps=300, energy=wgan_latent_energy)
    assert (score(raw.samples) > 10).all()


# --- rejection sampling ---


def test_a_raised_bound_thins_what_was_kept_before():
    # Many short runs that begin with a bound far too low and look at one proposal at a time.
    # Without the thinning the twentieth where the ratio is largest would get three hundredths.
    ratio = EXACT.gan.discriminator
    top = ratio(EXACT.data.sample((500_000,), rng(9))).quantile(0.95)
    refined = drs(EXACT.gan, 10, rng(), replicates=3000, log_bound=-6.0, batch_size=1)
    share = (ratio(refined.samples) > top).double().mean()
    assert abs(share - 0.05) <= 5 * math.sqrt(0.05 * 0.95 / 30_000)


def test_gamma_is_the_acceptance_of_the_formula():
    """Accepted with probability r / (r + e^gamma (M - r)), gamma from the pilot's percentile."""
    refined = drs(EXACT.gan, 200_000, rng(), percentile=80, log_bound=EXACT.log_bound)
    x = EXACT.generated.sample((1, 400_000), rng(5))
    r, m = EXACT.gan.discriminator(x).double().exp(), math.exp(EXACT.log_bound)
    gamma = (r / (m - r)).log().quantile(0.8)
    probability = r / (r + gamma.exp() * (m - r))
    assert abs(refined.acceptance_rate - probability.mean()) <= 0.005
    # The law is p_g times that probability: compare a moment by importance weights.
    expected = (x[..., 0] ** 2 * probability).sum() / probability.sum()
    assert abs((refined.samples[..., 0] ** 2).mean() - expected) <= 0.02
    # The percentile is of F, not a share of one: .8 would accept nearly everything.
    mistaken = drs(EXACT.gan, 1000, rng(), percentile=0.8, log_bound=EXACT.log_bound)
    assert mistaken.acceptance_rate > 0.9 > refined.acceptance_rate


@pytest.mark.parametrize("budget", [1.0, 2.0, 3.0])
def test_a_budget_is_kept(budget):
    refined = drs(EXACT.gan, 20_000, rng(), budget=budget, n_pilot=50_000)
    assert abs(refined.acceptance_rate * budget - 1) <= 0.03
    assert (score(refined.samples) > 5).all()  # below M = 6.5 a budget has its price


def test_more_budget_brings_the_law_nearer():
    scores = [float(score(drs(EXACT.gan, N, rng(), budget=b).samples)) for b in (1, 2, 4)]
    assert scores[0] > scores[1] > scores[2]


# --- Metropolis-Hastings ---


def test_chains_that_start_at_data_give_the_same_law():
    data = EXACT.data.sample((2, N), rng(3))
    refined = mh_gan(EXACT.gan, N, rng(), replicates=2, n_steps=30, data=data)
    assert (score(refined.samples) <= 5).all()


def test_a_chain_stuck_at_its_real_sample_is_run_anew():
    # Real samples with a logit so high that no proposal replaces them: nothing may be left at
    # the placeholder latents with which those chains were begun.
    far = torch.full((2, 500, 2), 9.0)
    gan = with_logit(lambda d, x: torch.where(x[..., 0] == 9, 100.0, d))
    refined = mh_gan(gan, 500, rng(), replicates=2, n_steps=40, data=far)
    assert (refined.acceptance_rate < 1e-6).all()
    fresh = EXACT.data.log_prob(refined.samples).mean()
    assert abs(fresh - EXACT.data.log_prob(EXACT.data.sample((2, 500), rng(1))).mean()) < 0.2
    assert EXACT.data.log_prob(EXACT.generated.sample((2, 500), rng(2))).mean() < fresh - 1


def test_data_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"data must hold one start for each chain, \(2, 5\)"):
        mh_gan(EXACT.gan, 5, rng(), replicates=2, data=torch.zeros(2, 4, 2))


# --- transport ---


def test_transport_moves_uphill_and_stays_near():
    start = dot(EXACT.gan, 2000, rng(), n_steps=1, learning_rate=1e-9).samples
    for space in ("latent", "data"):
        moved = dot(EXACT.gan, 2000, rng(), space=space, k=3.0)
        d = EXACT.gan.discriminator
        assert d(moved.samples).mean() > d(start).mean() + 0.5
        assert (moved.latents is None) == (space == "data")
        assert moved.acceptance_rate is None
    # With a steep k nothing is worth a move.
    still = dot(EXACT.gan, 2000, rng(), space="data", k=1e6)
    assert (still.samples - start).norm(dim=2).mean() < 0.05


def test_the_tangent_projection_keeps_the_radius():
    plain, tangent = (
        dot(EXACT.gan, 500, rng(), k=1.0, tangent=tangent, n_steps=20) for tangent in (False, True)
    )
    start = dot(EXACT.gan, 500, rng(), k=1.0, n_steps=1, learning_rate=1e-9)
    change = [
        (moved.latents.norm(dim=2) - start.latents.norm(dim=2)).abs().mean()
        for moved in (plain, tangent)
    ]
    assert change[1] < 0.1 * change[0]


def test_the_lipschitz_estimate_of_a_plane():
    class Slope(nn.Module):
        def forward(self, x):
            return 3 * x[..., 0] + 4 * x[..., 1]

    gan = Gan(nn.Identity(), Slope(), 2)
    for space in ("latent", "data"):
        k = lipschitz_estimate(gan, rng(), replicates=3, space=space)
        assert k.shape == (3,)
        assert (k <= 5 + 1e-4).all() and (k > 4.99).all()


def test_the_flow_of_kl_at_temperature_one_over_hundred_sharpens():
    """The stationary law of the flow at temperature T is e^{d/T}, here with a quadratic d."""

    class Bowl(nn.Module):
        def forward(self, x):
            return -x.square().sum(dim=-1) / 2

    gan = Gan(nn.Identity(), Bowl(), 2)
    for temperature in (0.01, 1.0):
        step_size = 0.2
        x = dgflow(gan, 20_000, rng(), temperature=temperature, step_size=step_size, n_steps=100)
        expected = temperature / (1 - step_size / 4)
        assert abs(x.samples.var() / expected - 1) < 0.05


# --- calls ---


def test_calls_are_counted():
    n, replicates, look = 50, 2, 100
    one = Calls(2 * replicates * n, 0)

    def expected(forward, backward):
        extra = 2 * replicates * look + replicates * n  # the first look, and G of the last states
        return Calls(forward * one.forward + extra, backward * one.forward)

    steps = 7
    chains = mh_gan(EXACT.gan, n, rng(), replicates=replicates, n_steps=steps)
    assert chains.calls == expected(steps + 1, 0)
    chains = isir_gan(EXACT.gan, n, rng(), replicates=replicates, n_steps=steps, n_candidates=4)
    assert chains.calls == expected(1 + 3 * steps, 0)
    chains = ddls(EXACT.gan, n, rng(), replicates=replicates, n_steps=steps)
    assert chains.calls == expected(steps + 1, steps + 1)
    chains = dgflow(EXACT.gan, n, rng(), replicates=replicates, n_steps=steps)
    assert chains.calls == expected(steps + 1, steps + 1)
    refined = drs(EXACT.gan, n, rng(), replicates=replicates, n_pilot=300, batch_size=200)
    tried = (
        (refined.calls.forward - 2 * replicates * (look + 300) - replicates * n) / 2 / replicates
    )
    assert tried % 200 == 0 and (refined.acceptance_rate * tried).round().min() >= n


def test_replicates_are_independent_networks():
    """Each replicate follows its own logit: here with opposite signs."""

    class Two(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0], [-1.0]]) * 2 * x[..., 0].tanh()

    gan = Gan(nn.Identity(), Two(), 2)
    for sampler in (drs, mh_gan, isir_gan, ddls, dgflow, dot):
        settings = {"k": 0.5} if sampler is dot else {}
        mean = sampler(gan, 200, rng(), replicates=2, **settings).samples[..., 0].mean(dim=1)
        assert mean[0] > 0.3 and mean[1] < -0.3, sampler.__name__


# --- calibration ---


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


def test_a_calibrated_gan_samples_the_data():
    real, fake = skewed(100_000, replicates=1)
    bent = with_logit(lambda d, x: 2.5 * d + 1)
    calibrated = calibrate(2.5 * real + 1, 2.5 * fake + 1)
    mended = bent._replace(discriminator=nn.Sequential(bent.discriminator, calibrated))
    assert (score(draw("mh_gan", bent).samples) > 10).all()
    assert (score(draw("mh_gan", mended).samples) <= 5).all()


@pytest.mark.parametrize(
    ("real", "fake", "method", "message"),
    [
        (torch.zeros(1, 99), torch.zeros(1, 99), "platt", "99 held-out logits .* too few"),
        (torch.zeros(1, 200), torch.zeros(1, 100), "platt", "of one shape"),
        (torch.zeros(200), torch.zeros(200), "platt", "must be logits"),
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


# --- bad input ---

ALL = [drs, mh_gan, isir_gan, ddls, dgflow, dot]


@pytest.mark.parametrize("sampler", ALL)
def test_a_probability_for_a_logit_is_noticed(sampler):
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\].*log D - log\(1 - D\)"):
        sampler(with_logit(lambda d, x: d.sigmoid()), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_a_wrong_latent_size(sampler):
    g = mlp(3, (4,), 2, generator=rng())
    with pytest.raises(ValueError, match=r"does not take latents \(1, 100, 2\).*latent_dim"):
        sampler(Gan(g, EXACT.gan.discriminator, 2), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_wrong_replicates(sampler):
    gan = Gan(mlp(2, (4,), 2, replicates=3, generator=rng()), EXACT.gan.discriminator, 2)
    with pytest.raises(ValueError, match=r"does not take latents \(1, 100, 2\).*replicates"):
        sampler(gan, 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_logits_that_are_not_numbers(sampler):
    with pytest.raises(FloatingPointError, match="100 of 100 logits are nan or infinite"):
        sampler(with_logit(lambda d, x: d / 0 * 0), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_a_discriminator_with_an_axis_too_many(sampler):
    with pytest.raises(ValueError, match=r"logits \(R, n\), here \(1, 100\).*\(1, 100, 1\)"):
        sampler(with_logit(lambda d, x: d[..., None]), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_counts_must_be_positive(sampler):
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        sampler(EXACT.gan, 0, rng())
    with pytest.raises(ValueError, match="replicates must be positive, got 0"):
        sampler(EXACT.gan, 5, rng(), replicates=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.5}, "at least 1 proposal for each sample, got 0.5"),
        ({"budget": math.nan}, "at least 1 proposal for each sample, got nan"),
        ({"percentile": 0}, r"percentile must lie in \(0, 100\).*got 0"),
        ({"percentile": 95, "budget": 2}, "not both"),
        ({"n_pilot": 0}, "n_pilot must be positive"),
    ],
)
def test_bad_rules_of_rejection(settings, message):
    with pytest.raises(ValueError, match=message):
        drs(EXACT.gan, 10, rng(), **settings)


def test_a_budget_too_small_for_one_sample():
    with pytest.raises(RuntimeError, match=r"kept 0 of 3 proposals.*raise max_proposals"):
        drs(EXACT.gan, 1, rng(), log_bound=20.0, max_proposals=3)


def test_bad_spaces_of_transport():
    with pytest.raises(
        ValueError,
        match="got 'pixel'",
    ):
        dot(EXACT.gan, 10, rng(), space="pixel")
    with pytest.raises(ValueError, match="tangent is for latents"):
        dot(EXACT.gan, 10, rng(), space="data", tangent=True)
    with pytest.raises(ValueError, match="k must be positive, got 0"):
        dot(EXACT.gan, 10, rng(), k=0.0)


def test_no_gradient_is_left_behind():
    gan = Gan(mlp(2, (4,), 2, generator=rng()), mlp(2, (4,), generator=rng()), 2)
    gan.discriminator[2].bias.data -= 2  # or all its logits lie in [0, 1]
    for sampler in ALL:
        refined = sampler(gan, 10, rng())
        assert not refined.samples.requires_grad
        assert all(p.grad is None for m in gan[:2] for p in m.parameters())
