"""Samplers that refine a GAN, in law on a GAN of which everything is known, and controls."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gan_ebm_utils.base import Calls, Gan, count_calls, randn, seeded
from gan_ebm_utils.datasets import exact_gan
from gan_ebm_utils.energies import latent_energy
from gan_ebm_utils.metrics import chi_square
from gan_ebm_utils.networks import NoisyGenerator, mlp
from gan_ebm_utils.refine import (
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
        return latent_energy(gan, temperature=7)

    refined = ddls(critic, N, rng(), step_size=0.1, n_steps=300, energy=energy)
    assert (score(refined.samples) <= 5).all()
    raw = ddls(critic, N, rng(), step_size=0.1, n_steps=300, energy=latent_energy)
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


def test_rejection_draws_no_more_at_once_than_a_batch():
    rows = []

    class Watched(nn.Module):
        def forward(self, z):
            rows.append(z.shape[1])
            return EXACT.gan.generator(z)

    gan = EXACT.gan._replace(generator=Watched())
    found = drs(gan, 300, rng(), batch_size=70)
    assert max(rows[1:]) == 70 and rows[-5:] == [70, 70, 70, 70, 20], "the last are the samples"
    with torch.no_grad():
        torch.testing.assert_close(found.samples, EXACT.gan.generator(found.latents))


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
    with pytest.warns(UserWarning, match="all chains stand where they began"):
        refined = mh_gan(gan, 500, rng(), replicates=2, n_steps=40, data=far)
    assert (refined.acceptance_rate < 1e-6).all()
    fresh = EXACT.data.log_prob(refined.samples).mean()
    assert abs(fresh - EXACT.data.log_prob(EXACT.data.sample((2, 500), rng(1))).mean()) < 0.2
    assert EXACT.data.log_prob(EXACT.generated.sample((2, 500), rng(2))).mean() < fresh - 1


def test_data_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"data must be \(2, 5, \.\.\.\); got"):
        mh_gan(EXACT.gan, 5, rng(), replicates=2, data=torch.zeros(2, 4, 2))


def test_data_whose_logit_is_no_number():
    gan = with_logit(lambda d, x: torch.where(x[..., 0] == 9, math.nan, d))
    data = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]])
    with pytest.raises(FloatingPointError, match="1 of 2 logits are nan or infinite"):
        mh_gan(gan, 2, rng(), data=data)


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


def test_images_move_as_vectors_do():
    class Sum(nn.Module):  # a logit of images and of vectors alike
        def forward(self, x):
            return x.flatten(2).square().sum(dim=2).sqrt() - 4

    class Reshaped(nn.Module):
        def __init__(self, *event):
            super().__init__()
            self.event = event

        def forward(self, z):
            return z.unflatten(2, self.event)

    for n in (1, 4, 7):  # one, as many as rows, others
        kwargs = {"replicates": 2, "space": "data", "n_steps": 20}
        flat = dot(Gan(nn.Identity(), Sum(), 16), n, rng(), **kwargs).samples
        images = dot(Gan(Reshaped(1, 4, 4), Sum(), 16), n, rng(), **kwargs).samples
        assert images.shape == (2, n, 1, 4, 4)
        torch.testing.assert_close(images.flatten(2), flat)
        start = randn(2, n, 16, generator=rng())
        assert (flat - start).norm(dim=2).min() > 0.01


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
    with pytest.raises(ValueError, match='"latent" or "data", got \'latents\''):
        lipschitz_estimate(gan, rng(), space="latents")
    with pytest.raises(ValueError, match="replicates must be a whole number of at least 1, got 0"):
        lipschitz_estimate(gan, rng(), replicates=0)


def test_equal_points_have_no_slope():
    class Corners(nn.Module):  # four points only
        def forward(self, z):
            return z.sign()

    gan = Gan(Corners(), EXACT.gan.discriminator, 2)
    d = EXACT.gan.discriminator(torch.tensor([[[1.0, 1], [1, -1], [-1, 1], [-1, -1]]]))[0]
    rises = (d[:, None] - d).abs()
    runs = torch.tensor(
        [[0.0, 2, 2, 8**0.5], [2, 0, 8**0.5, 2], [2, 8**0.5, 0, 2], [8**0.5, 2, 2, 0]]
    )
    slopes = (rises / runs).nan_to_num(0)
    k = lipschitz_estimate(gan, rng(), space="data")
    torch.testing.assert_close(k, slopes.max()[None])


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


# --- modes and types ---

ALL = [drs, mh_gan, isir_gan, ddls, dgflow, dot]


class Normed(nn.Module):
    """Batch normalisation of latents (R, n, 1): at its start the identity in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, z):
        return self.norm(z.flatten(0, 1)).unflatten(0, z.shape[:2])


class Parabola(nn.Module):
    def forward(self, x):
        return -x.square().sum(dim=2) / 2


@pytest.mark.parametrize("name", RELATIVE)
def test_chains_are_not_coupled_through_their_batch(name):
    # N(0, 1) e^{-x^2/2} has the variance 1/2; normalised by the batch it would be 1.
    gan = Gan(Normed(), Parabola(), 1)
    before = copy.deepcopy(gan.generator.state_dict())
    samples = draw(name, gan, replicates=2).samples
    assert (abs(samples.var(dim=1) / 0.5 - 1) <= 5 * math.sqrt(2 / N)).all()
    assert all(torch.equal(before[key], value) for key, value in gan.generator.state_dict().items())
    assert gan.generator.norm.training


def spectral_gan():
    g = rng()
    discriminator = nn.Sequential(
        mlp(2, (16,), 2, generator=g, spectral=True), mlp(2, (8,), generator=g)
    )
    discriminator[1][2].bias.data -= 2  # or all its logits lie in [0, 1]
    with torch.no_grad():  # the singular vectors of other weights: a power step moves them
        discriminator[0][0].parametrizations.weight.original.add_(1.0)
    return Gan(nn.Sequential(mlp(2, (8,), 2, generator=g), nn.Dropout()), discriminator, 2)


@pytest.mark.parametrize("sampler", [*ALL, lambda gan, n, g: lipschitz_estimate(gan, g)])
def test_networks_are_the_same_before_during_and_after(sampler):
    gan = spectral_gan()
    gan.discriminator[1].eval()  # on purpose
    modes = [m.training for network in gan[:2] for m in network.modules()]
    state = copy.deepcopy([network.state_dict() for network in gan[:2]])

    def result(gan):
        found = sampler(gan, 50, rng(3))
        return found if isinstance(found, torch.Tensor) else found.samples

    first, second = result(gan), result(gan)
    assert torch.equal(first, second)
    assert modes == [m.training for network in gan[:2] for m in network.modules()]
    for before, network in zip(state, gan[:2], strict=True):
        after = network.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
    still = gan._replace(generator=gan.generator.eval(), discriminator=gan.discriminator.eval())
    assert torch.equal(result(still), first)


@pytest.mark.parametrize("sampler", ALL)
def test_networks_are_given_back_after_an_error(sampler):
    gan = spectral_gan()
    with torch.no_grad():
        gan.discriminator[1][2].bias.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        sampler(gan, 50, rng())
    assert all(m.training for network in gan[:2] for m in network.modules())


def plain_gan(seed=0):
    g = rng(seed)
    gan = Gan(mlp(2, (8,), 2, generator=g), mlp(2, (8,), generator=g), 2)
    gan.discriminator[2].bias.data -= 2  # or all its logits lie in [0, 1]
    return gan


@pytest.mark.parametrize("sampler", ALL)
def test_a_gan_of_doubles_is_sampled_in_doubles(sampler):
    gan = Gan(*(network.double() for network in plain_gan()[:2]), 2)
    refined = sampler(gan, 20, rng())
    assert refined.samples.dtype == refined.latents.dtype == torch.float64
    mixed = gan._replace(generator=gan.generator.float())
    said = r"of torch.float32 the discriminator raised.*are torch.float64.*\.float\(\) or \.double"
    with pytest.raises(ValueError, match=said):
        sampler(mixed, 20, rng())
    half = Gan(*(network.bfloat16() for network in plain_gan()[:2]), 2)
    with pytest.raises(ValueError, match="of torch.float32 the generator raised.*must be float32"):
        sampler(half, 20, rng())


def test_more_in_doubles():
    gan = Gan(*(network.double() for network in plain_gan()[:2]), 2)
    for space in ("latent", "data"):
        assert lipschitz_estimate(gan, rng(), space=space).dtype == torch.float64
        assert dot(gan, 20, rng(), space=space).samples.dtype == torch.float64
    data = randn(1, 20, 2, generator=rng())  # in float32
    assert mh_gan(gan, 20, rng(), data=data).samples.dtype == torch.float64


@pytest.mark.parametrize("sampler", ALL)
def test_logits_in_half_precision(sampler):
    """As of an autocast network: -50 beyond 1/2 must keep all chains and proposals out."""

    def cliff(d, x):
        return (torch.where(x[..., 0] > 0.5, -50.0, 0.0) + 0 * d).bfloat16()

    settings = {"k": 1.0} if sampler is dot else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transport has no slope to follow
        # Rejection looks at each proposal once, so it takes many to meet a uniform number of 0.
        n = 30_000 if sampler is drs else 500
        refined = sampler(with_logit(cliff), n, rng(), **settings)
    if sampler in (drs, mh_gan, isir_gan):
        assert (refined.samples[..., 0] <= 0.5).all()
    assert refined.samples.dtype == torch.float32


def test_samples_in_half_precision_are_moved_in_single():
    class Coarse(nn.Module):  # as an autocast generator
        def forward(self, z):
            return (2 + z.tanh()).bfloat16()

    gan = Gan(Coarse(), EXACT.gan.discriminator, 2)
    still, moved = (
        dot(gan, 50, rng(), space="data", k=1.0, learning_rate=1e-4, n_steps=n_steps).samples
        for n_steps in (1, 50)
    )
    assert moved.dtype == torch.float32
    assert (moved - still).norm(dim=2).median() > 1e-3  # 1/100 is the distance of two bfloat16


@pytest.mark.parametrize("rule", [{"percentile": 80}, {"budget": 3.0}])
def test_rules_of_rejection_in_half_precision(rule):
    coarse = with_logit(lambda d, x: d.bfloat16())
    rates = [drs(gan, 5000, rng(), **rule).acceptance_rate for gan in (EXACT.gan, coarse)]
    assert abs(rates[1] / rates[0] - 1) < 0.1


@pytest.mark.parametrize("sampler", ALL)
def test_samplers_within_modes_of_autograd(sampler):
    gan = plain_gan()
    plain = sampler(gan, 20, rng()).samples
    with torch.no_grad():
        assert torch.equal(sampler(gan, 20, rng()).samples, plain)
    with torch.inference_mode():
        if sampler in (drs, mh_gan, isir_gan):
            assert torch.equal(sampler(gan, 20, rng()).samples, plain)
        else:
            with pytest.raises(RuntimeError, match=r"torch.inference_mode\(\).*torch.no_grad\(\)"):
                sampler(gan, 20, rng())


@pytest.mark.parametrize("sampler", [*ALL, lambda gan, n, g: lipschitz_estimate(gan, g)])
def test_the_users_defaults_change_nothing(sampler):
    gan = plain_gan()
    plain = sampler(gan, 20, rng())
    try:
        torch.set_default_dtype(torch.float64)
        # What is made without a device would be without content.
        with torch.device("meta"):
            other = sampler(gan, 20, rng())
    finally:
        torch.set_default_dtype(torch.float32)
    if isinstance(plain, torch.Tensor):
        assert torch.equal(plain, other)
    else:
        assert torch.equal(plain.samples, other.samples)
        if plain.acceptance_rate is not None:
            assert abs(plain.acceptance_rate - other.acceptance_rate) < 1e-6


# --- bad input ---


@pytest.mark.parametrize("sampler", ALL)
def test_a_probability_for_a_logit_is_noticed(sampler):
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\].*log D - log\(1 - D\)"):
        sampler(with_logit(lambda d, x: d.sigmoid()), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_a_wrong_latent_size(sampler):
    g = mlp(3, (4,), 2, generator=rng())
    with pytest.raises(
        ValueError,
        match=r"given \(1, 100, 2\) .* generator raised: .* must map latents .*latent_dim in",
    ):
        sampler(Gan(g, EXACT.gan.discriminator, 2), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_wrong_replicates(sampler):
    gan = Gan(mlp(2, (4,), 2, replicates=3, generator=rng()), EXACT.gan.discriminator, 2)
    with pytest.raises(
        ValueError,
        match=r"given \(1, 100, 2\) .* generator raised: .* must map latents .*replicates",
    ):
        sampler(gan, 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_logits_that_are_not_numbers(sampler):
    with pytest.raises(FloatingPointError, match="100 of 100 logits are nan or infinite"):
        sampler(with_logit(lambda d, x: d / 0 * 0), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_a_discriminator_with_an_axis_too_many(sampler):
    with pytest.raises(
        ValueError, match=r"given \(1, 100, .* returned \(1, 100, 1\); it must .* logits \(R, n\)"
    ):
        sampler(with_logit(lambda d, x: d[..., None]), 10, rng())


@pytest.mark.parametrize("sampler", ALL)
def test_counts_must_be_positive(sampler):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got 0"):
        sampler(EXACT.gan, 0, rng())
    with pytest.raises(ValueError, match="replicates must be a whole number of at least 1, got 0"):
        sampler(EXACT.gan, 5, rng(), replicates=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.5}, "finite and at least 1 proposal a sample, got 0.5"),
        ({"budget": math.nan}, "finite and at least 1 proposal a sample, got nan"),
        ({"budget": math.inf}, "finite and at least 1 proposal a sample, got inf"),
        ({"log_bound": math.nan}, "log_bound must be finite, got nan"),
        ({"max_proposals": 9}, "max_proposals must be a whole number of at least 10, got 9"),
        ({"percentile": 0}, r"percentile must lie in \(0, 100\).*got 0"),
        ({"percentile": 95, "budget": 2}, "not both"),
        ({"n_pilot": 0}, "n_pilot must be a whole number of at least 1"),
    ],
)
def test_bad_rules_of_rejection(settings, message):
    with pytest.raises(ValueError, match=message):
        drs(EXACT.gan, 10, rng(), **settings)


def test_a_budget_too_small_for_one_sample():
    with pytest.raises(RuntimeError, match=r"kept 0 of 3 proposals.*raise max_proposals"):
        drs(EXACT.gan, 1, rng(), log_bound=20.0, max_proposals=3)


class Steep(nn.Module):
    """A logit of samples on the line that costs nothing: few proposals count."""

    def forward(self, x):
        return 30 * x[..., 0]


STEEP = Gan(nn.Identity(), Steep(), 1)


def test_proposals_follow_the_samples_and_the_budget():
    # A hundred proposals for each of 10,000 samples are a million on average, so often more.
    settings = {"n_pilot": 100_000, "batch_size": 200_000, "replicates": 2}
    refined = drs(STEEP, 10_000, rng(), budget=100, **settings)
    assert refined.samples.shape == (2, 10_000, 1)
    assert (abs(refined.acceptance_rate * 100 - 1) < 0.2).all()
    # And more than a thousand each, where the budget says so.
    refined = drs(STEEP, 500, rng(), budget=3000, **settings)
    assert (abs(refined.acceptance_rate * 3000 - 1) < 0.8).all()


@pytest.mark.parametrize(
    ("n", "settings"),
    [
        (10_000, {"log_bound": 300.0}),  # not one proposal would be kept
        (10_000, {"log_bound": 300.0, "max_proposals": 1_000_000}),
        (1000, {"budget": 100, "max_proposals": 50_000}),  # half of what is needed
    ],
)
def test_what_cannot_succeed_ends_soon(n, settings):
    with count_calls(STEEP.discriminator) as calls:
        with pytest.raises(RuntimeError, match=f"too few to reach n = {n} with .*raise max_prop"):
            drs(STEEP, n, rng(), n_pilot=10_000, batch_size=1000, **settings)
    assert calls().forward <= 35_000


def test_what_can_succeed_is_not_stopped():
    # At the limit twice the proposals needed; a rule without slack would stop some of these runs.
    settings = {"budget": 20, "max_proposals": 2 * 20 * 50, "n_pilot": 10_000, "batch_size": 20}
    for seed in range(20):
        assert drs(STEEP, 50, rng(seed), **settings).samples.shape == (1, 50, 1)


def test_step_sizes_may_come_as_a_list():
    """As the cards of the checkpoints hold them, and as numbers of other libraries."""
    gan = plain_gan()
    expected = ddls(gan, 20, rng(), step_size=(0.02, 0.2), n_steps=30).samples
    for sizes in (
        [0.02, 0.2],
        np.array([0.02, 0.2]),
        torch.tensor([0.02, 0.2], dtype=torch.float64),
    ):
        assert torch.equal(ddls(gan, 20, rng(), step_size=sizes, n_steps=30).samples, expected)
    one = ddls(gan, 20, rng(), step_size=0.2, n_steps=30).samples
    for size in ([0.2], np.float64(0.2), torch.tensor(0.2, dtype=torch.float64)):
        assert torch.equal(ddls(gan, 20, rng(), step_size=size, n_steps=30).samples, one)
    with pytest.raises(ValueError, match="at least one kernel"):
        ddls(gan, 20, rng(), step_size=[])


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


def test_a_latent_dimension_that_is_no_count_is_named():
    gan = Gan(nn.Linear(2, 2), nn.Linear(2, 1), 2.0)
    with pytest.raises(ValueError, match="latent_dim must be a whole number"):
        drs(gan, 5, torch.Generator().manual_seed(0))
