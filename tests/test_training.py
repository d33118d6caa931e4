"""The loops recover known ratios, move a generator to the data, and keep replicates apart."""

import math

import pytest
import torch

from gan_ebm_utils import losses, metrics
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.datasets import gaussian
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.training import fit_discriminator, train_gan

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
    history = play(small_gan(replicates=3), n_steps=7, replicates=3, callback=steps.append)
    assert steps == list(range(7))
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

    def callback(step):
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
        latents.forward = lambda _, n=replicates, g=gan.generator: g(z[:n])
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
    with pytest.raises(ValueError, match="the real samples of step 3 hold values that are not"):
        fit_discriminator(logit, data, Q.sample, losses.gan_d_loss, 9, rng())


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


@pytest.mark.parametrize("name", ["n_steps", "replicates", "batch_size", "learning_rate"])
def test_counts_below_1_are_named(name):
    options = {"n_steps": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        fit_discriminator(
            mlp(2, (4,), generator=rng()), P.sample, Q.sample, losses.gan_d_loss,
            generator=rng(), **options,
        )  # fmt: skip
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        train_gan(
            small_gan(1), P.sample, losses.gan_d_loss, losses.non_saturating_g_loss,
            generator=rng(), **options,
        )  # fmt: skip
