"""The loops recover known ratios, move a generator to the data, and keep replicates apart."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan_ebm_utils import losses, metrics
from gan_ebm_utils.base import Gan, Info, Kernel, State, randn, seeded
from gan_ebm_utils.datasets import exact_gan, gaussian
from gan_ebm_utils.energies import NegativeEnergy, ReconstructionError
from gan_ebm_utils.networks import Autoencoder, mlp
from gan_ebm_utils.samplers import ReplayBuffer, langevin, run_chain
from gan_ebm_utils.training import (
    contrastive,
    fit_discriminator,
    generated,
    persistent,
    refit_discriminator,
    short_run,
    train_ebm,
    train_gan,
)

P, Q = gaussian([0.0, 0.0]), gaussian([1.5, 0.0])


def rng(seed=0):
    return seeded(seed, "cpu")


def small_gan(replicates, seed=0):
    generator = rng(seed)
    return Gan(
        mlp(2, (16,), 2, replicates, generator=generator),
        mlp(2, (16,), replicates=replicates, generator=generator),
        latent_dim=2,
    )


def play(gan, n_steps=20, seed=1, g_loss=losses.non_saturating_g_loss, **options):
    return train_gan(
        gan, Q.sample, losses.gan_d_loss, g_loss, n_steps, rng(seed), batch_size=64, **options
    )


# --- the discriminator alone ---


def fitted(real, fake):
    generator = rng()
    logit = mlp(2, (32,), replicates=4, generator=generator)
    trace = fit_discriminator(
        logit, real.sample, fake.sample, losses.gan_d_loss, 500, generator,
        replicates=4, batch_size=300, learning_rate=1e-2,
    )  # fmt: skip
    return logit, trace


def logit_error(logit, sign):
    x = torch.cat([P.sample(500, rng(5)), Q.sample(500, rng(6))])
    x = x[(x - torch.tensor([0.75, 0.0])).norm(dim=1) < 2]
    exact = sign * (P.log_prob(x) - Q.log_prob(x))
    with torch.no_grad():
        return (logit(x.expand(4, -1, -1)) - exact).square().mean().sqrt()


def test_the_logit_becomes_the_log_ratio():
    logit, trace = fitted(P, Q)
    assert trace.shape == (500, 4) and not trace.requires_grad
    assert logit_error(logit, sign=1) < 0.05
    assert logit_error(logit, sign=-1) > 1
    # JSD of N(0, 1) and N(1.5, 1) by a sum over a fine grid.
    t = torch.linspace(-10, 12, 20_001, dtype=torch.float64)
    p, q = ((-((t - m) ** 2) / 2).exp() / math.sqrt(2 * math.pi) for m in (0, 1.5))
    jsd = ((p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()) / 2).sum() * (t[1] - t[0])
    last = trace[-100:]
    assert abs(last.mean() - (2 * math.log(2) - 2 * jsd)) < 5 * last.std() / 400**0.5 + 0.01


def test_real_and_fake_exchanged_give_the_negative():
    assert logit_error(fitted(Q, P)[0], sign=-1) < 0.05


def test_a_penalty_flattens_the_logit():
    steep = []
    for penalty in (None, lambda d, x, y, g: 10 * losses.r1_penalty(d, x)):
        logit = mlp(2, (16,), generator=rng())
        fit_discriminator(
            logit, P.sample, Q.sample, losses.gan_d_loss, 100, rng(1), penalty=penalty
        )
        steep.append(losses.r1_penalty(logit, P.sample((1, 500), rng(2))).item())
    assert steep[1] < steep[0] / 2


# --- the game ---


def test_the_generator_moves_to_the_data():
    def distance(gan):
        with torch.no_grad():
            x = gan.generator(randn(20, 300, 2, generator=rng(3)))
        return metrics.emd(x, Q.sample((20, 300), rng(4)))

    def fall(**options):
        """By how much the distance falls, in standard errors over replicates."""
        gan = small_gan(replicates=20)
        before = distance(gan)
        play(gan, n_steps=400, replicates=20, learning_rate=5e-3, **options)
        change = before - distance(gan)
        return change.mean() / (change.std() / 20**0.5)

    assert fall() > 5
    # The control, a sign that was lost in print: the generator flees.
    assert fall(g_loss=lambda real, fake: -losses.non_saturating_g_loss(real, fake)) < -5


def test_a_penalty_enters_the_game():
    plain, flat = small_gan(replicates=1), small_gan(replicates=1)
    play(plain, n_steps=100)
    play(flat, n_steps=100, penalty=lambda d, x, y, g: 10 * losses.r1_penalty(d, x))
    x = Q.sample((1, 500), rng(2))
    slopes = [losses.r1_penalty(gan.discriminator, x).item() for gan in (plain, flat)]
    assert slopes[1] < slopes[0] / 2


def test_a_callback_changes_the_weight_of_a_loss():
    """Integral control, as BEGAN's: the weight k follows the losses of the last step."""
    k, seen = torch.zeros(2), []

    def d_loss(real, fake):
        return real.square().mean(dim=1) - k * fake.square().mean(dim=1)

    def control(step, history):
        k.add_(0.1 * (history.g_loss[step] - 0.5))
        seen.append(k.clone())

    gan = small_gan(replicates=2)
    history = train_gan(
        gan, Q.sample, d_loss, lambda real, fake: fake.square().mean(dim=1), 20, rng(),
        replicates=2, batch_size=64, callback=control,
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(seen), (0.1 * (history.g_loss - 0.5)).cumsum(dim=0))
    # The control of the control: with the weight held at 0 the discriminator's losses are others.
    k.zero_()
    other = train_gan(
        small_gan(replicates=2), Q.sample, d_loss, lambda real, fake: fake.square().mean(dim=1),
        20, rng(), replicates=2, batch_size=64,
    )  # fmt: skip
    assert torch.equal(other.d_loss[0], history.d_loss[0])
    assert not torch.isclose(other.d_loss[1:], history.d_loss[1:]).any()


def test_began_is_played_with_its_own_control():
    rule, seen = losses.Began(0.5, rate=0.3), []

    def control(step, history):
        rule.callback(step, history)
        seen.append((rule.k, rule.m_global))

    def play(replicates):
        autoencoder = Autoencoder((2,), (8,), 1, replicates, generator=rng())
        judge = NegativeEnergy(ReconstructionError(autoencoder, 1))
        gan = small_gan(replicates=replicates)._replace(discriminator=judge)
        return train_gan(
            gan, Q.sample, rule.d_loss, rule.g_loss, 30, rng(),
            replicates=replicates, batch_size=64, callback=control,
        )  # fmt: skip

    history = play(2)
    k = torch.stack([k for k, _ in seen])
    assert (k[-1] > 0).all() and (k <= 1).all()
    # L(x) follows from the loss and k of the step before; so do k and M.
    before = torch.cat([torch.zeros(1, 2), k[:-1]])
    surplus = (k - before) / 0.3  # gamma L(x) - L(G(z)), while k is off its ends
    inside = (k > 0) & (k < 1) & (before > 0)
    real = (surplus + history.g_loss) / 0.5
    measured = torch.stack([m for _, m in seen])
    expected = (real + surplus.abs())[inside]
    torch.testing.assert_close(measured[inside], expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="k is that of 2 replicates, got 3"):
        play(3)


def test_a_penalty_of_the_generator_sees_a_batch_and_moves_the_generator_alone():
    seen = []

    def spread(gan, z, y, generator):
        """As the pulling-away term, a number of the whole batch, here of the samples themselves."""
        torch.testing.assert_close(y, gan.generator(z))
        seen.append(y.detach())
        return -y.var(dim=1).sum(dim=1)

    plain, wide = small_gan(replicates=2), small_gan(replicates=2)
    play(plain, n_steps=100, replicates=2)
    history = play(wide, n_steps=100, replicates=2, g_penalty=spread)
    z = randn(2, 500, 2, generator=rng(5))
    with torch.no_grad():
        widths = [gan.generator(z).var(dim=1).sum(dim=1) for gan in (plain, wide)]
    assert (widths[1] > 2 * widths[0]).all()
    assert len(seen) == 100 and seen[0].shape == (2, 64, 2)
    assert (history.g_loss >= 0).all()  # without the penalty, which is below 0
    first = [small_gan(replicates=2) for _ in range(2)]
    play(first[0], n_steps=1, replicates=2)
    play(first[1], n_steps=1, replicates=2, g_penalty=spread)
    for a, b in zip(*(gan.discriminator.parameters() for gan in first), strict=True):
        assert torch.equal(a, b)


def test_a_penalty_of_the_generator_that_diverges_is_named():
    with pytest.raises(RuntimeError, match=r"generator's loss is not finite at step 0: \[inf\]"):
        play(
            small_gan(1),
            g_penalty=lambda gan, z, y, generator: 0 * y.sum((1, 2)) + torch.inf,
        )


def test_the_generators_loss_sees_the_logits_of_the_real_batch():
    gan, x, seen = small_gan(replicates=1), Q.sample((1, 64), rng(7)), []

    def g_loss(real, fake):
        seen.append(real.detach())
        return losses.non_saturating_g_loss(real, fake)

    train_gan(gan, lambda size, generator: x, losses.gan_d_loss, g_loss, 3, rng(), batch_size=64)
    with torch.no_grad():
        torch.testing.assert_close(seen[-1], gan.discriminator(x))
        assert not torch.allclose(seen[0], seen[-1])


def test_the_history_and_the_callback_count_the_steps():
    steps = []

    def callback(step, history):
        done = (
            history.d_loss.isfinite().all(dim=1).sum(),
            history.g_loss.isfinite().all(dim=1).sum(),
        )
        steps.append((step, *map(int, done)))

    history = play(small_gan(replicates=3), n_steps=7, replicates=3, callback=callback)
    assert steps == [(step, step + 1, step + 1) for step in range(7)]
    assert history.d_loss.shape == history.g_loss.shape == (7, 3)
    assert not history.g_loss.requires_grad


def test_the_first_losses_are_those_of_the_untrained_networks():
    gan, generator = small_gan(replicates=1), rng(1)
    x = Q.sample((1, 64), generator)
    with torch.no_grad():
        y = gan.generator(randn(1, 64, 2, generator=generator))
        expected = losses.gan_d_loss(gan.discriminator(x), gan.discriminator(y))
    torch.testing.assert_close(play(gan, n_steps=1).d_loss[0], expected)


def test_the_last_steps_are_small():
    gan = small_gan(replicates=1)
    weights = [parameter.detach().clone() for parameter in gan.generator.parameters()]
    moves = []

    def callback(step, history):
        now = [parameter.detach().clone() for parameter in gan.generator.parameters()]
        moves.append(max((a - b).abs().max().item() for a, b in zip(now, weights, strict=True)))
        weights[:] = now

    play(gan, n_steps=40, callback=callback)
    assert moves[-1] < moves[10] / 4  # the rate of the last step is 1/20 of the first ones


def test_the_same_seed_gives_the_same_training():
    first, second, other = (play(small_gan(1), seed=seed).d_loss for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_replicates_train_apart():
    pair, alone = small_gan(replicates=2), small_gan(replicates=1)
    for name in ("generator", "discriminator"):
        state = getattr(pair, name).state_dict()
        getattr(alone, name).load_state_dict({key: value[:1] for key, value in state.items()})
    both = Q.sample((2, 64), rng(7))
    z = randn(2, 64, 2, generator=rng(8))

    def fixed(replicates):
        return lambda size, generator: both[:replicates]

    # Fixed data and latents, so that both runs see the same numbers.
    for gan, replicates in ((pair, 2), (alone, 1)):
        latents = torch.nn.Module()
        latents.forward = lambda x, n=replicates, g=gan.generator: (
            g(z[:n]) if x.shape[1] == 64 else g(x)  # which is looked at with other latents first
        )
        latents.parameters = gan.generator.parameters
        train_gan(
            gan._replace(generator=latents), fixed(replicates), losses.gan_d_loss,
            losses.non_saturating_g_loss, 10, rng(), replicates=replicates, batch_size=64,
        )  # fmt: skip
    x = both[:1]
    torch.testing.assert_close(pair.discriminator(both)[:1], alone.discriminator(x))
    assert not torch.allclose(pair.discriminator(both)[1:], alone.discriminator(x))


def test_more_discriminator_steps_change_the_game_and_weights_stay_trainable():
    one, five = small_gan(replicates=1), small_gan(replicates=1)
    play(one, n_steps=3)
    play(five, n_steps=3, d_steps=5)
    x = Q.sample((1, 9), rng())
    assert not torch.allclose(one.discriminator(x), five.discriminator(x))
    assert all(parameter.requires_grad for parameter in one.discriminator.parameters())


# --- bad input ---


def test_data_that_are_not_finite_are_named_with_their_step():
    calls = []

    def data(size, generator):
        calls.append(size)
        x = Q.sample(size, generator)
        return torch.full_like(x, math.nan) if len(calls) == 4 else x

    logit = mlp(2, (4,), generator=rng())
    with pytest.raises(ValueError, match="values of the real batch of step 3 are not finite"):
        fit_discriminator(logit, data, Q.sample, losses.gan_d_loss, 9, rng())
    calls.clear()
    with pytest.raises(ValueError, match="values of the real batch of step 3 are not finite"):
        train_ebm(Quadratic(1), data, lambda x, generator: x, 9, rng())
    bad = lambda x, generator: x / 0  # noqa: E731
    with pytest.raises(ValueError, match="values of the generated batch of step 0 are not finite"):
        train_ebm(Quadratic(1), Q.sample, bad, 9, rng())


def test_a_loss_that_diverges_is_named_with_its_step():
    def loss(real, fake):
        return torch.full((1,), math.inf) * real.mean()

    with pytest.raises(RuntimeError, match="not finite at step 0.*lower the learning rate"):
        fit_discriminator(mlp(2, (4,), generator=rng()), P.sample, Q.sample, loss, 9, rng())


def test_a_generators_loss_that_diverges_is_named_and_leaves_the_networks_trainable():
    gan = small_gan(replicates=1)
    with pytest.raises(RuntimeError, match="generator's loss is not finite at step 0"):
        play(gan, n_steps=3, g_loss=lambda real, fake: math.nan * fake.mean(dim=1))
    assert all(parameter.requires_grad for parameter in gan.discriminator.parameters())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n_steps", "a whole number of at least 1"),
        ("replicates", "a whole number of at least 1"),
        ("batch_size", "a whole number of at least 1"),
        ("learning_rate", "positive"),
    ],
)
def test_counts_below_1_are_named(name, says):
    options = {"n_steps": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be {says}, got 0"):
        fit_discriminator(
            mlp(2, (4,), generator=rng()), P.sample, Q.sample, losses.gan_d_loss,
            generator=rng(), **options,
        )  # fmt: skip
    with pytest.raises(ValueError, match=f"{name} must be {says}, got 0"):
        train_gan(
            small_gan(1), P.sample, losses.gan_d_loss, losses.non_saturating_g_loss,
            generator=rng(), **options,
        )  # fmt: skip


def linear_networks(replicates=1):
    generator = rng()
    return Gan(
        mlp(2, (), 2, replicates, generator=generator),
        mlp(2, (), replicates=replicates, generator=generator),
        latent_dim=2,
    )


def constant(value):
    return lambda size, generator: torch.full((*size, 2), float(value))


@pytest.mark.parametrize("n_steps", [1, 2, 10])
def test_the_rate_falls_along_a_cosine(n_steps):
    # The gradient of a linear critic between two fixed points is constant, so each step of Adam
    # moves a weight by the learning rate. Sum of (1 + cos(pi t / n)) / 2 over t < n: (n + 1) / 2.
    critic = linear_networks().discriminator
    before = critic[0].weight.detach().clone()
    fit_discriminator(
        critic, constant(1), constant(0), losses.wasserstein_d_loss, n_steps, rng(),
        batch_size=4, learning_rate=1e-2,
    )  # fmt: skip
    moved = critic[0].weight.detach() - before
    torch.testing.assert_close(moved, torch.full((1, 2, 1), 1e-2 * (n_steps + 1) / 2))
    assert not torch.allclose(moved, torch.full((1, 2, 1), 1e-2 * n_steps)) or n_steps == 1


@pytest.mark.parametrize("d_steps", [1, 3])
def test_the_rate_of_a_game_falls_over_the_second_half(d_steps):
    gan, n_steps = linear_networks(), 10
    with torch.no_grad():  # the generator draws 0 and stays there: its loss is 0 below
        for parameter in gan.generator.parameters():
            parameter.zero_()
    before = gan.discriminator[0].weight.detach().clone()
    train_gan(
        gan, constant(1), losses.wasserstein_d_loss, lambda real, fake: 0 * fake.mean(dim=1),
        n_steps, rng(), batch_size=4, learning_rate=1e-2, d_steps=d_steps,
    )  # fmt: skip
    # Rates 1 for t = 0 to 5, then .8, .6, .4, .2.
    moved = gan.discriminator[0].weight.detach() - before
    torch.testing.assert_close(moved, torch.full((1, 2, 1), 1e-2 * 8 * d_steps))


def test_each_player_moves_its_own_weights_only():
    for still, d_loss, g_loss in (
        ("discriminator", lambda r, f: 0 * f.mean(dim=1), losses.wasserstein_g_loss),
        ("generator", losses.wasserstein_d_loss, lambda r, f: 0 * f.mean(dim=1)),
    ):
        gan = linear_networks()
        before = {k: v.clone() for k, v in getattr(gan, still).state_dict().items()}
        train_gan(gan, constant(1), d_loss, g_loss, 3, rng(), batch_size=4)
        after = getattr(gan, still).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_losses_get_real_data_first_and_the_history_no_penalty():
    gan, seen = linear_networks(), []
    with torch.no_grad():
        gan.discriminator[0].weight.fill_(1.0)
        gan.discriminator[0].bias.zero_()

    def penalty(network, x, y, generator):
        seen.append(("penalty", (x == 1).all().item(), (y == 1).any().item()))
        return torch.full((1,), 1000.0)

    def g_loss(real, fake):
        seen.append(("g_loss", bool(torch.allclose(real, real[0, 0])), fake.requires_grad))
        return losses.wasserstein_g_loss(real, fake)

    history = train_gan(
        gan, constant(1), losses.wasserstein_d_loss, g_loss, 1, rng(), batch_size=4, penalty=penalty
    )
    assert seen == [("penalty", True, False), ("g_loss", True, True)]
    assert history.d_loss.abs().max() < 500


def test_generated_samples_that_are_not_finite_are_named():
    gan = linear_networks()
    with torch.no_grad():
        gan.generator[0].bias.fill_(math.nan)
    with pytest.raises(ValueError, match="values of the generated batch of step 0 are not finite"):
        train_gan(
            gan, constant(1), losses.gan_d_loss, losses.non_saturating_g_loss, 2, rng(),
            batch_size=4,
        )  # fmt: skip


def test_a_linear_logit_lands_within_its_standard_error():
    # N(0, I) against N((1.5, 0), I): the log ratio 1.125 - 1.5 x_1 is linear, so on a fixed sample
    # the fit is logistic regression, whose error has the sandwich covariance H^-1 G H^-1 / n.
    n, r = 2000, 5
    x = randn(r, n, 2, generator=rng(1))
    y = randn(r, n, 2, generator=rng(2)) + torch.tensor([1.5, 0.0])
    exact = torch.tensor([-1.5, 0.0, 1.125], dtype=torch.float64)

    def z(real, fake):
        logit = mlp(2, (), replicates=r, generator=rng())
        fit_discriminator(
            logit, lambda size, g: real, lambda size, g: fake, losses.gan_d_loss, 400, rng(),
            replicates=r, batch_size=n, learning_rate=5e-2,
        )  # fmt: skip
        found = torch.cat([logit[0].weight[:, :, 0], logit[0].bias[:, :, 0]], dim=1).double()
        scores = []
        for k in range(r):
            parts = [F.pad(points[k].double(), (0, 1), value=1.0) for points in (x, y)]
            slopes = [torch.sigmoid(part @ exact) for part in parts]
            hessian = sum((p.T * (s * (1 - s))) @ p / n for p, s in zip(parts, slopes, strict=True))
            gradients = (parts[0] * (slopes[0] - 1)[:, None], parts[1] * slopes[1][:, None])
            inner = sum(torch.cov(g.T) for g in gradients)
            covariance = hessian.inverse() @ inner @ hessian.inverse() / n
            scores.append((found[k].detach() - exact) / covariance.diag().sqrt())
        return torch.stack(scores), found.detach()

    scores, found = z(x, y)
    assert scores.abs().max() < 5
    exchanged, negative = z(y, x)
    assert exchanged.abs().max() > 5  # the control
    torch.testing.assert_close(negative, -found, rtol=0, atol=1e-2)


def test_an_interrupted_game_can_be_resumed():
    def interrupt(real, fake):
        raise KeyboardInterrupt

    gan = linear_networks()
    with pytest.raises(KeyboardInterrupt):
        train_gan(gan, constant(1), losses.gan_d_loss, interrupt, 2, rng(), batch_size=4)
    assert all(parameter.requires_grad for parameter in gan.discriminator.parameters())


# --- energies ---


class Quadratic(torch.nn.Module):
    """(R, n, 2) to w_r |x|^2 / 2: the law N(0, I / w_r), whose likelihood gradient is known."""

    def __init__(self, replicates):
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((replicates, 1), 2.0))

    def forward(self, x):
        return self.w * x.square().sum(dim=2) / 2


def exact_negatives(energy):
    def negatives(x, generator):
        return randn(*x.shape, generator=generator) / energy.w.detach().sqrt()[..., None]

    return negatives


def test_exact_negatives_find_the_maximum_of_the_likelihood():
    energy = Quadratic(3)
    data = gaussian([0.0, 0.0], 0.5).sample  # so w = 4
    history = train_ebm(
        energy, data, exact_negatives(energy), 400, rng(), replicates=3, learning_rate=5e-2
    )
    torch.testing.assert_close(energy.w.detach(), torch.full((3, 1), 4.0), rtol=0.05, atol=0)
    assert history.real.shape == history.fake.shape == (400, 3)
    # At the maximum the two phases cancel: each mean energy is d/2.
    torch.testing.assert_close(history.real[-50:].mean(), torch.tensor(1.0), rtol=0.05, atol=0)


def test_negatives_of_the_data_teach_nothing():
    energy = Quadratic(2)
    data = gaussian([0.0, 0.0], 0.5).sample
    train_ebm(energy, data, lambda x, generator: x, 20, rng(), replicates=2)
    assert torch.equal(energy.w.detach(), torch.full((2, 1), 2.0))


def test_the_regulariser_is_added():
    energy = Quadratic(2)
    data = gaussian([0.0, 0.0], 0.5).sample
    train_ebm(energy, data, lambda x, generator: x, 20, rng(), replicates=2, alpha=0.1)
    assert (energy.w < 2).all()  # it pulls energies towards 0


def test_a_penalty_of_an_energy_is_added():
    energies_ = [Quadratic(2), Quadratic(2)]
    data = gaussian([0.0, 0.0], 0.5).sample
    options = {"n_steps": 50, "generator": rng(), "replicates": 2, "learning_rate": 1e-2}
    train_ebm(
        energies_[0], data, lambda x, generator: x,
        penalty=lambda e, x, y, generator: losses.r1_penalty(e, x), **options,
    )  # fmt: skip
    # The weights of a second pass see only the replicates that the penalty names.
    train_ebm(
        energies_[1], data, lambda x, generator: x,
        penalty=lambda e, x, y, generator: losses.r1_penalty(e, y) * torch.tensor([1.0, 0.0]),
        **options,
    )  # fmt: skip
    assert (energies_[0].w < 1.9).all()
    assert energies_[1].w[0] < 1.9 and energies_[1].w[1] == 2


def test_negatives_from_a_generator_are_its_samples_and_teach_the_difference():
    gan, x = small_gan(replicates=2), torch.zeros(2, 5, 2)
    y = generated(gan)(x, rng(3))
    assert y.shape == x.shape and not y.requires_grad
    assert torch.equal(y, gan.generator(gan.prior((2, 5), rng(3))))
    # A generator of N(0, I): an energy of data that are narrower grows there.
    energy = Quadratic(2)
    standard = Gan(torch.nn.Identity(), torch.nn.Identity(), 2)
    train_ebm(
        energy, gaussian([0.0, 0.0], 0.5).sample, generated(standard), 50, rng(), replicates=2
    )
    assert (energy.w > 2.02).all()


def test_an_ebm_learns_with_langevin_chains():
    generator = rng()
    energy = Quadratic(2)
    kernel = langevin(energy, 0.05)

    def short_run(x, g):
        return run_chain(kernel, randn(*x.shape, generator=g), 20, g, thin=20).positions[-1]

    train_ebm(
        energy, gaussian([0.0, 0.0], 0.5).sample, short_run, 200, generator,
        replicates=2, learning_rate=5e-2,
    )  # fmt: skip
    assert (energy.w > 3).all()
    assert all(p.grad is not None for p in energy.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1"),
        ({"alpha": -1.0}, "alpha must be at least 0"),
        ({"negatives": lambda x, g: x[:, :1]}, r"negatives must be \(1, 256, 2\)"),
    ],
)
def test_bad_input_of_train_ebm(options, message):
    arguments = {"negatives": lambda x, g: x, "n_steps": 3} | options
    with pytest.raises(ValueError, match=message):
        train_ebm(Quadratic(1), P.sample, generator=rng(), **arguments)


def test_an_energy_that_overflows_says_at_which_step():
    energy = Quadratic(1)

    def exploding(x, generator):
        return x * 1e30

    with pytest.raises(RuntimeError, match="not finite at step 0"):  # the square alone overflows
        train_ebm(energy, P.sample, lambda x, g: x * 1e12, 3, rng(), alpha=0.1)
    train_ebm(Quadratic(1), P.sample, lambda x, g: x * 1e12, 3, rng())  # the control
    with pytest.raises(
        RuntimeError, match=r"energy's loss is not finite at step 0: \[-inf\]; .* confine the"
    ):
        train_ebm(energy, P.sample, exploding, 3, rng())


# --- where negatives start ---


def jump(shift):
    """A kernel that moves every chain by `shift` in each step."""

    def step(state, generator):
        always = torch.ones_like(state.energy)
        return State(state.position + shift, state.energy, None), Info(always, always.bool())

    return Kernel(lambda x: State(x.clone(), x.sum(dim=2), None), step)


def origin(size, generator):
    return torch.zeros(*size, 2)


def test_each_rule_starts_where_it_says():
    x = torch.full((2, 5, 2), 100.0)
    assert torch.equal(contrastive(jump(1.0), 3)(x, rng()), x + 3)
    noise = short_run(jump(1.0), 3, origin)
    assert torch.equal(noise(x, rng()), torch.full((2, 5, 2), 3.0))
    assert torch.equal(noise(x, rng()), torch.full((2, 5, 2), 3.0))  # from fresh noise again
    buffer = ReplayBuffer(origin, 5, rng(), replicates=2, fresh_share=0.0)
    chains = persistent(jump(1.0), 3, buffer)
    assert torch.equal(chains(x, rng()), torch.full((2, 5, 2), 3.0))
    assert torch.equal(chains(x, rng()), torch.full((2, 5, 2), 6.0))  # where they ended
    assert (x == 100).all()


def test_a_refit_finds_the_ratio_and_leaves_the_generator():
    exact = exact_gan()
    old = mlp(2, (8,), generator=rng())
    before = exact.gan._replace(discriminator=old)
    new = mlp(2, (64, 64), generator=rng())
    gan = refit_discriminator(before, new, exact.data.sample, 600, rng(), batch_size=512)
    assert gan.generator is exact.gan.generator
    assert not any(p.requires_grad for p in gan.discriminator.parameters())
    assert all(p.requires_grad for p in old.parameters())
    x = exact.data.sample((1, 5000), rng(1))
    error = (gan.discriminator(x) - exact.gan.discriminator(x)).square().mean().sqrt()
    assert error < 0.25 < (old(x) - exact.gan.discriminator(x)).square().mean().sqrt()


# --- what is frozen stays frozen, and nothing else ---


def weights_of(network):
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def flags_of(network):
    return {name: weight.requires_grad for name, weight in network.named_parameters()}


def half_frozen(seed=0):
    """A game in which the first layer of each network is frozen."""
    gan = small_gan(1, seed)
    for network in gan[:2]:
        network[0].requires_grad_(False)
    return gan


def normal(shift):
    """A law that makes no tensor but its draws."""
    return lambda size, g: randn(*size, 2, generator=g, dtype=torch.float32) + shift


def refit(gan, n_steps=3, seed=2):
    return refit_discriminator(gan, gan.discriminator, normal(1), n_steps, rng(seed), batch_size=16)


RULES = (losses.gan_d_loss, losses.non_saturating_g_loss)
TRAININGS = {
    "discriminator": lambda gan: fit_discriminator(
        gan.discriminator, normal(0), normal(1), losses.gan_d_loss, 3, rng(), batch_size=16
    ),
    "game": lambda gan: train_gan(gan, normal(1), *RULES, 3, rng(), batch_size=16),
    "energy": lambda gan: train_ebm(
        gan.discriminator, normal(0), lambda x, g: x + 1, 3, rng(), batch_size=16, alpha=0.1
    ),
    "refit": refit,
}


@pytest.mark.parametrize("name", TRAININGS)
def test_frozen_weights_stay_frozen_and_as_they_were(name):
    gan = half_frozen()
    before = [weights_of(network) for network in gan[:2]]
    flags = [flags_of(network) for network in gan[:2]]
    TRAININGS[name](gan)
    assert flags == [flags_of(network) for network in gan[:2]]
    after = [weights_of(network) for network in gan[:2]]
    moved = [
        {key for key in old if not torch.equal(old[key], new[key])}
        for old, new in zip(before, after, strict=True)
    ]
    trained = {"2.weight", "2.bias"}
    assert moved == [
        trained if name == "game" else set(),
        set() if name == "refit" else trained,
    ]


def test_flags_are_restored_after_an_error():
    gan = half_frozen()
    flags = flags_of(gan.discriminator)
    with pytest.raises(RuntimeError, match="generator's loss is not finite"):
        play(gan, n_steps=3, g_loss=lambda real, fake: math.nan * fake.mean(dim=1))
    assert flags_of(gan.discriminator) == flags


def test_the_generators_step_takes_no_gradient_of_the_discriminator():
    gan = small_gan(replicates=1)

    def g_loss(real, fake):
        assert not real.requires_grad and fake.requires_grad
        return losses.non_saturating_g_loss(real, fake)

    play(gan, n_steps=2, g_loss=g_loss)


def test_a_refit_leaves_its_argument_and_can_be_repeated():
    gan = half_frozen()
    before, flags = weights_of(gan.discriminator), flags_of(gan.discriminator)
    first, second, other = refit(gan), refit(gan), refit(gan, seed=3)
    assert flags_of(gan.discriminator) == flags and gan.discriminator.training
    x = Q.sample((1, 9), rng())
    assert torch.equal(first.discriminator(x), second.discriminator(x))
    assert not torch.equal(first.discriminator(x), other.discriminator(x))
    for result in (first, second):
        assert result.discriminator is not gan.discriminator
        assert not result.discriminator.training
        assert not any(flags_of(result.discriminator).values())
        fitted = weights_of(result.discriminator)
        assert torch.equal(fitted["0.weight"], before["0.weight"])
        assert not torch.equal(fitted["2.weight"], before["2.weight"])


def test_a_normalised_discriminator_is_refitted():
    gan = small_gan(1)._replace(discriminator=mlp(2, (16,), spectral=True, generator=rng()))
    before = copy.deepcopy(gan.discriminator.state_dict())
    result = refit(gan, n_steps=20)
    assert all(torch.equal(before[k], v) for k, v in gan.discriminator.state_dict().items())
    x = Q.sample((1, 9), rng())
    assert not torch.allclose(result.discriminator(x), gan.discriminator.eval()(x))


def test_a_frozen_network_is_named():
    frozen = refit(small_gan(1))
    for name, train in (
        ("discriminator", TRAININGS["discriminator"]),
        ("discriminator", TRAININGS["game"]),
        ("energy", TRAININGS["energy"]),
    ):
        with pytest.raises(ValueError, match=f"the {name} has no weight to train"):
            train(frozen)
    gan = small_gan(1)
    gan.generator.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the generator has no .*call its requires_grad_\(True\)"):
        play(gan)
    frozen.discriminator.requires_grad_(True)
    play(frozen, n_steps=2)  # as the message says
    refit(refit(gan))  # which fits a copy


def test_shared_weights_are_refused_unless_frozen():
    gan = small_gan(1)
    shared = torch.nn.Linear(2, 2)
    networks = [torch.nn.Sequential(shared, network) for network in gan[:2]]
    with pytest.raises(ValueError, match="share 2 weights"):
        play(Gan(*networks, 2), n_steps=2)
    shared.requires_grad_(False)
    before = weights_of(shared)
    play(Gan(*networks, 2), n_steps=2)
    assert all(torch.equal(before[key], value) for key, value in weights_of(shared).items())


# --- modes, types and defaults ---


@pytest.mark.parametrize("name", TRAININGS)
def test_training_within_modes_of_autograd(name):
    with torch.no_grad():
        gan = half_frozen()
        before = weights_of(gan.discriminator)
        result = TRAININGS[name](gan)
        assert not torch.is_grad_enabled()
    trained = result.discriminator if name == "refit" else gan.discriminator
    assert not torch.equal(weights_of(trained)["2.weight"], before["2.weight"])
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode\(\)"):
        TRAININGS[name](gan)


def test_the_generator_of_a_refit_runs_in_evaluation_mode():
    gan = small_gan(1)
    modes = []
    gan.generator.register_forward_hook(lambda module, *_: modes.append(module.training))
    refit(gan)
    # One look before the three steps.
    assert modes == [False] * 4 and gan.generator.training
    modes.clear()
    play(gan, n_steps=1)
    assert modes == [False] + [True] * 2


def test_chains_run_on_the_energy_in_evaluation_mode():
    energy, seen = Quadratic(1), []

    def negatives(x, generator):
        seen.append(energy.training)
        return x + 1

    energy.register_forward_hook(lambda module, *_: seen.append(module.training))
    train_ebm(energy, P.sample, negatives, 2, rng())
    assert seen == [False, True, True] * 2


def test_a_gan_of_doubles_is_trained_in_doubles():
    gan = Gan(*(network.double() for network in small_gan(1)[:2]), 2)

    def data(size, generator):
        return Q.sample(size, generator).double()

    history = train_gan(gan, data, *RULES, 3, rng(), batch_size=16)
    assert history.d_loss.isfinite().all()
    result = refit_discriminator(gan, gan.discriminator, data, 3, rng(), batch_size=16)
    assert (
        result.discriminator(result.generator(result.prior((1, 5), rng()))).dtype == torch.float64
    )


@pytest.mark.parametrize("name", TRAININGS)
def test_the_users_defaults_change_nothing(name):
    results = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float64)):
        gan = half_frozen()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                result = TRAININGS[name](gan)
        finally:
            torch.set_default_dtype(torch.float32)
        trained = result.discriminator if name == "refit" else gan.discriminator
        results.append(weights_of(trained)["2.weight"])
    assert torch.equal(*results)


def test_a_discriminator_that_has_run_can_be_refitted(capfd):
    old_style = nn.utils.spectral_norm(nn.Linear(2, 1))
    discriminator = nn.Sequential(old_style, nn.Flatten())
    generator = nn.Linear(2, 2)
    _ = discriminator(torch.zeros(1, 3, 2))  # leaves a weight that hangs on a graph
    gan = Gan(generator, discriminator, 2)
    normal = lambda size, g: randn(*size, 2, generator=g)  # noqa: E731
    refitted = refit_discriminator(gan, discriminator, normal, 3, seeded(0, "cpu"))
    assert not refitted.discriminator.training
    again = refit_discriminator(refitted, refitted.discriminator, normal, 3, seeded(1, "cpu"))
    x = torch.ones(1, 1, 2)
    assert again.discriminator(x) != refitted.discriminator(x)
    assert not any(p.requires_grad for p in refitted.discriminator.parameters())
