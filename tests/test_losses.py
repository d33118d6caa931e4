"""The losses against closed forms on a law with four points, where every optimum is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from gan_ebm_utils import losses
from gan_ebm_utils.base import randn, seeded

# Two laws on four points, as counts out of 20: a batch that holds each point so often has exactly
# these frequencies, so that means over it are expectations.
P_COUNTS, Q_COUNTS = torch.tensor([8, 6, 4, 2]), torch.tensor([2, 3, 5, 10])
P, Q = P_COUNTS.double() / 20, Q_COUNTS.double() / 20
RATIO = (P / Q).log()
DIVERGENCES = [losses.kl, losses.reverse_kl, losses.js, losses.pearson]


def batches(values):
    """Network values of the four points as a real and a fake batch, (1, 20) each."""
    return values.repeat_interleave(P_COUNTS)[None], values.repeat_interleave(Q_COUNTS)[None]


def kl(p, q):
    return (p * (p / q).log()).sum()


def rng(seed=0):
    return seeded(seed, "cpu")


# --- the game ---


def test_the_optimal_logit_is_the_log_ratio():
    best = losses.gan_d_loss(*batches(RATIO))[0]
    m = (P + Q) / 2
    jsd = (kl(P, m) + kl(Q, m)) / 2
    torch.testing.assert_close(best, 2 * math.log(2) - 2 * jsd)
    assert abs(best - (2 * math.log(2) - jsd)) > 0.05  # the control: the misprint's value
    for seed in range(20):
        other = RATIO + 0.1 * torch.randn(4, generator=rng(seed), dtype=torch.float64)
        assert losses.gan_d_loss(*batches(other))[0] > best


def test_an_error_of_the_logit_costs_its_square_weighted_with_pq_over_p_plus_q():
    delta = 1e-3 * torch.tensor([1.0, -2.0, 3.0, 1.5], dtype=torch.float64)
    cost = losses.gan_d_loss(*batches(RATIO + delta)) - losses.gan_d_loss(*batches(RATIO))
    expected = (P * Q / (P + Q) * delta**2).sum() / 2
    assert abs(cost / expected - 1) < 0.01


def test_values_by_hand():
    real, fake = torch.tensor([[0.0, 4.0]]), torch.tensor([[-1.0, 3.0]])
    sp = lambda t: math.log1p(math.exp(t))  # noqa: E731
    values = {
        losses.gan_d_loss: (sp(0) + sp(-4)) / 2 + (sp(-1) + sp(3)) / 2,
        losses.saturating_g_loss: -(sp(-1) + sp(3)) / 2,
        losses.non_saturating_g_loss: (sp(1) + sp(-3)) / 2,
        losses.wasserstein_d_loss: 1.0 - 2.0,
        losses.wasserstein_g_loss: -1.0,
        losses.hinge_d_loss: 1 / 2 + 4 / 2,
    }
    for loss, expected in values.items():
        assert loss(real, fake).shape == (1,)
        assert math.isclose(loss(real, fake), expected, abs_tol=1e-6)


def test_the_best_logit_of_the_hinge_is_a_sign_and_no_ratio():
    levels = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for p, q in ((0.7, 0.3), (0.5, 0.4), (0.1, 0.6)):
        real, fake = levels[:, None], torch.full((601, 1), -1.0, dtype=torch.float64)
        cost = p * losses.hinge_d_loss(real, fake) + q * losses.hinge_d_loss(
            fake + 2, levels[:, None]
        )
        best = levels[cost.argmin()]
        assert abs(best - math.copysign(1, p - q)) < 0.02
        assert abs(best - math.log(p / q)) > 0.1


def test_large_logits_stay_finite():
    real, fake = torch.tensor([[-1e4]]), torch.tensor([[1e4]])
    assert losses.gan_d_loss(real, fake) == 2e4
    assert losses.js.bound(real, fake).isfinite().all()
    naive = -(torch.sigmoid(real).log() + (1 - torch.sigmoid(fake)).log())
    assert not naive.isfinite().all()  # the control


def test_the_generators_gradients_differ_by_the_factor_e_to_the_d():
    d = torch.linspace(-6, 6, 25)[None].requires_grad_()
    (saturating,) = torch.autograd.grad(losses.saturating_g_loss(d, d).sum(), d)
    (other,) = torch.autograd.grad(losses.non_saturating_g_loss(d, d).sum(), d)
    torch.testing.assert_close(saturating, d.detach().exp() * other)


def test_replicates_are_averaged_apart():
    real, fake = randn(3, 5, generator=rng()), randn(3, 7, generator=rng(1))
    plain = losses.gan_d_loss, losses.wasserstein_d_loss, losses.hinge_d_loss
    for loss in (*plain, *(d.d_loss for d in DIVERGENCES)):
        alone = [loss(real[r : r + 1], fake[r : r + 1])[0] for r in range(3)]
        torch.testing.assert_close(loss(real, fake), torch.stack(alone))


# --- f-divergences ---

OPTIMA = {"KL": RATIO + 1, "reverse KL": RATIO, "2 JSD": RATIO, "Pearson": 2 * (RATIO.exp() - 1)}
CONJUGATES = {
    "KL": lambda t: (t - 1).exp(),
    "reverse KL": lambda t: -1 - (-t).log(),
    "2 JSD": lambda t: -(2 - t.exp()).log(),
    "Pearson": lambda t: t + t**2 / 4,
}


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
def test_the_bound_is_attained_at_the_optimum_only(divergence):
    exact = (Q * divergence.f(P / Q)).sum()
    best = OPTIMA[divergence.name]
    torch.testing.assert_close(divergence.bound(*batches(best))[0], exact)
    torch.testing.assert_close(divergence.log_ratio(best), RATIO)
    for seed in range(20):
        other = best + 0.1 * torch.randn(4, generator=rng(seed), dtype=torch.float64)
        assert divergence.bound(*batches(other))[0] < exact


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
def test_the_conjugate_is_the_textbooks(divergence):
    v = torch.linspace(-5, 5, 101, dtype=torch.float64)
    textbook = CONJUGATES[divergence.name](divergence.output(v))
    torch.testing.assert_close(divergence.conjugate(v), textbook)
    # And it is the largest u t - f(u), by brute force.
    u = torch.logspace(-4, 4, 20_001, dtype=torch.float64)
    t = divergence.output(torch.tensor([-0.7, 0.4], dtype=torch.float64))
    brute = (u[:, None] * t - divergence.f(u)[:, None]).max(dim=0).values
    torch.testing.assert_close(CONJUGATES[divergence.name](t), brute, rtol=1e-5, atol=1e-6)


def test_the_divergences_are_what_their_names_say():
    m = (P + Q) / 2
    exact = {
        "KL": kl(P, Q),
        "reverse KL": kl(Q, P),
        "2 JSD": kl(P, m) + kl(Q, m),
        "Pearson": ((P - Q) ** 2 / Q).sum(),
    }
    for divergence in DIVERGENCES:
        torch.testing.assert_close((Q * divergence.f(P / Q)).sum(), exact[divergence.name])
        assert divergence.f(torch.tensor(1.0)) == 0


def test_pearson_has_no_log_ratio_at_minus_2_and_below():
    v = torch.tensor([-3.0, -2.0, -1.999, 0.0])
    assert losses.pearson.log_ratio(v).isnan().tolist() == [True, True, False, False]


def test_the_jensen_shannon_loss_is_that_of_the_gan():
    real, fake = randn(2, 9, generator=rng()), randn(2, 9, generator=rng(1))
    shifted = losses.js.d_loss(real, fake) + 2 * math.log(2)
    torch.testing.assert_close(shifted, losses.gan_d_loss(real, fake))
    assert not torch.allclose(losses.kl.d_loss(real, fake), losses.gan_d_loss(real, fake))


# --- penalties ---


def test_penalties_of_a_linear_function():
    weight = randn(3, 4, 4, generator=rng())
    linear = lambda x: (weight * x).sum(dim=(-3, -2, -1))  # noqa: E731
    x, y = randn(2, 5, 3, 4, 4, generator=rng(1)), randn(2, 5, 3, 4, 4, generator=rng(2))
    norm = weight.norm()
    torch.testing.assert_close(losses.r1_penalty(linear, x), norm.square().expand(2))
    penalty = losses.gradient_penalty(linear, x, y, rng())
    torch.testing.assert_close(penalty, ((norm - 1) ** 2).expand(2))
    # The control, a mistake in circulation: one norm per pixel, over the channels only.
    per_pixel = ((weight.norm(dim=0) - 1) ** 2).mean()
    assert abs(per_pixel / penalty[0] - 1) > 0.5


def test_r1_of_a_quadratic_function_is_taken_at_the_real_points():
    quadratic = lambda x: x.square().sum(dim=-1) / 2  # noqa: E731, its gradient is x
    x = randn(2, 5, 3, generator=rng())
    expected = x.square().sum(dim=2).mean(dim=1)
    torch.testing.assert_close(losses.r1_penalty(quadratic, x), expected)
    elsewhere = losses.r1_penalty(quadratic, randn(2, 5, 3, generator=rng(1)))
    assert not torch.allclose(elsewhere, expected)  # the control


def test_the_gradient_penalty_of_a_quadratic_function():
    # |grad f| = |x|, so on the segment from 0 to 2 e_1 the penalty is E (2u - 1)^2 = 1/3, and the
    # variance of one term is 1/5 - 1/9.
    n, end = 20_000, torch.tensor([2.0, 0.0])
    quadratic = lambda x: x.square().sum(dim=-1) / 2  # noqa: E731
    x, y = torch.zeros(1, n, 2), end.expand(1, n, 2)
    penalty = losses.gradient_penalty(quadratic, x, y, rng())
    error = 5 * ((1 / 5 - 1 / 9) / n) ** 0.5
    assert abs(penalty[0] - 1 / 3) < error
    assert abs(losses.gradient_penalty(quadratic, y, y, rng())[0] - 1 / 3) > error  # the control


def test_the_gradient_penalty_is_taken_between_the_points():
    seen = []

    def spy(x):
        seen.append(x.detach())
        return x.sum(dim=-1)

    x, y = torch.ones(1, 2000, 2), torch.full((1, 2000, 2), 2.0)
    losses.gradient_penalty(spy, x, y, rng())
    share = seen[0][..., 0] - 1
    assert torch.equal(seen[0][..., 0], seen[0][..., 1])  # on the segment
    assert share.min() > 0 and share.max() < 1
    assert abs(share.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
    assert share.var() > 0.05  # each pair has a point of its own


def test_a_penalty_can_be_trained():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    losses.r1_penalty(lambda x: (weight * x).sum(dim=-1), torch.zeros(1, 1, 2)).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_the_gradient_penalty_can_be_trained():
    # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|.
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    x, critic = torch.zeros(1, 1, 2), lambda x: (weight * x).sum(dim=-1)
    losses.gradient_penalty(critic, x, x, rng()).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * (5 - 1) * weight.detach() / 5)


def test_a_flat_critic_can_be_trained():
    # A ReLU critic is constant where its units are off; there the penalty is 1 and has no slope.
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    x = -torch.ones(1, 3, 2)
    critic = lambda x: torch.relu((weight * x).sum(dim=-1))  # noqa: E731
    penalty = losses.gradient_penalty(critic, x, x, rng())
    penalty.sum().backward()
    assert penalty == 1
    assert torch.equal(weight.grad, torch.zeros(2))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_penalty_has_a_value_without_gradients_too(mode):
    x, y = randn(2, 5, 3, generator=rng()), randn(2, 5, 3, generator=rng(1))
    square = lambda x: x.square().sum(dim=-1)  # noqa: E731
    expected = losses.r1_penalty(square, x), losses.gradient_penalty(square, x, y, rng())
    with mode():
        found = losses.r1_penalty(square, x), losses.gradient_penalty(square, x, y, rng())
    torch.testing.assert_close(found, expected)


def test_a_penalty_names_inference_mode():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        losses.r1_penalty(lambda x: x.square().sum(dim=-1), torch.zeros(1, 2, 3))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_critic_of_another_type_gets_points_of_its_type(kind):
    seen = []

    def critic(x):
        seen.append(x.dtype)
        return x.square().sum(dim=-1)

    x, y = (randn(2, 500, 3, generator=rng(seed)).to(kind) for seed in (0, 1))
    penalty = losses.gradient_penalty(critic, x, y, rng())
    losses.r1_penalty(critic, x)
    assert seen == [kind, kind]
    single = losses.gradient_penalty(critic, x.float(), y.float(), rng())
    torch.testing.assert_close(penalty.float(), single, rtol=0.05, atol=0)


# --- bad input ---


@pytest.mark.parametrize(
    ("real", "fake", "says"),
    [
        ((1, 0), (1, 3), r"real must hold some floats, got torch.float32 \(1, 0\)"),
        ((1, 3), (3,), r"fake \(R, n_fake\); got \(1, 3\), \(3,\)"),
        ((1, 3), (2, 3), r"fake \(R, n_fake\); got \(1, 3\), \(2, 3\)"),
        ((1, 3, 2), (1, 3, 2), r"real must be \(R, n_real\), .*; got \(1, 3, 2\)"),
    ],
)
def test_what_is_no_logit_is_named(real, fake, says):
    every = (losses.gan_d_loss, losses.non_saturating_g_loss, losses.wasserstein_d_loss)
    for loss in (*every, losses.kl.bound):
        with pytest.raises(ValueError, match=says):
            loss(torch.zeros(real), torch.zeros(fake))


def test_whole_numbers_are_no_logits():
    whole, logit = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3)
    for name, pair in (("real", (whole, logit)), ("fake", (logit, whole))):
        with pytest.raises(ValueError, match=f"{name} must hold some floats.* torch.int64"):
            losses.gan_d_loss(*pair)
    with pytest.raises(ValueError, match="real must hold some floats"):
        losses.r1_penalty(F.relu, torch.zeros(1, 3, 2).long())


def test_what_is_no_sample_is_named():
    with pytest.raises(ValueError, match=r"real must be \(R, n_real, ...\); got \(1, 3\)"):
        losses.r1_penalty(F.relu, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"fake must be \(1, 3, 2\); got \(1, 4, 2\)"):
        losses.gradient_penalty(F.relu, torch.zeros(1, 3, 2), torch.zeros(1, 4, 2), rng())


def test_a_slope_below_1_is_penalised_too():
    x = torch.zeros(1, 3, 2)
    flat = lambda x: x.sum(dim=-1) * 0.5 / 2**0.5  # noqa: E731, |grad| = 1/2
    torch.testing.assert_close(losses.gradient_penalty(flat, x, x, rng()), torch.tensor([0.25]))


# --- energies: EBGAN and BEGAN ---


def minus(energies):
    """d = -E of the four points as a real and a fake batch."""
    return batches(-torch.as_tensor(energies, dtype=torch.float64))


def test_the_best_energy_is_worth_the_margin_times_the_overlap():
    margin, overlap = 3.0, torch.minimum(P, Q).sum()  # 1 - TV
    best = torch.where(P < Q, margin, 0.0)
    value = losses.ebgan_d_loss(*minus(best), margin)[0]
    torch.testing.assert_close(value, margin * overlap)
    for seed in range(20):
        other = torch.rand(4, generator=rng(seed), dtype=torch.float64) * 2 * margin
        assert losses.ebgan_d_loss(*minus(other), margin)[0] > value
    # At the equilibrium every constant energy up to the margin is as good: V = m.
    for constant in (0.0, 1.0, 3.0):
        d = minus(torch.full((4,), constant))[0]
        torch.testing.assert_close(
            losses.ebgan_d_loss(d, d, margin)[0], torch.tensor(margin).double()
        )


def test_the_hinge_is_that_of_each_sample():
    real, fake = torch.zeros(2, 2), torch.tensor([[-1.0, -5.0], [0.0, -3.0]])
    torch.testing.assert_close(losses.ebgan_d_loss(real, fake, 3.0), torch.tensor([1.0, 1.5]))
    of_the_mean = F.relu(3.0 + fake.mean(dim=1))  # the control: an error in circulation
    assert not torch.allclose(of_the_mean, torch.tensor([1.0, 1.5]))
    torch.testing.assert_close(losses.ebgan_g_loss(real, fake), torch.tensor([3.0, 1.5]))


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_is_positive(margin):
    with pytest.raises(ValueError, match=f"margin must be positive, got {margin}"):
        losses.ebgan_d_loss(torch.zeros(1, 2), torch.zeros(1, 2), margin)


def test_an_energy_in_the_place_of_its_negative_is_named():
    energy, rule = torch.tensor([[0.5, 2.0]]), losses.Began(0.5)
    for loss in (
        lambda real, fake: losses.ebgan_d_loss(real, fake, 1.0),
        losses.ebgan_g_loss,
        rule.d_loss,
        rule.g_loss,
    ):
        for pair in ((energy, -energy), (-energy, energy)):
            with pytest.raises(
                ValueError, match=r"must be -E with E >= 0, got up to 2; .*Negative"
            ):
                loss(*pair)


@pytest.mark.parametrize(("n", "s"), [(64, 32), (10, 3), (7, 2)])
def test_the_floor_of_the_pulling_away_term_is_reached_by_tight_frames(n, s):
    codes = torch.randn(1, n, s, generator=rng(), dtype=torch.float64)
    for _ in range(5000):  # alternate between tight frames and equal norms
        u, _, v = torch.linalg.svd(codes, full_matrices=False)
        codes = F.normalize(u @ v, dim=2)
    floor = torch.tensor([(n - s) / (s * (n - 1))], dtype=torch.float64)
    torch.testing.assert_close(losses.pulling_away(codes), floor, rtol=1e-3, atol=0)
    for seed in range(10):
        other = torch.randn(1, n, s, generator=rng(seed), dtype=torch.float64)
        assert losses.pulling_away(other) > floor


def test_the_pulling_away_term_is_squared_and_without_the_diagonal():
    opposite = torch.tensor([[[1.0, 0.0], [-2.0, 0.0], [3.0, 0.0], [-1.0, 0.0]]])
    torch.testing.assert_close(losses.pulling_away(opposite), torch.ones(1))
    unit = F.normalize(opposite[0], dim=1)
    cosines = unit @ unit.T
    unsquared = (cosines.sum() - 4) / 12  # the controls: errors in circulation
    assert unsquared < 0
    with_diagonal = cosines.square().sum() / 12
    assert with_diagonal > 1.3
    # A random batch: about 1/s whatever the lengths.
    codes = torch.randn(2, 500, 16, generator=rng()) * torch.rand(2, 500, 1, generator=rng(1))
    torch.testing.assert_close(
        losses.pulling_away(codes), torch.full((2,), 1 / 16), rtol=0.05, atol=0
    )
    # By hand, with a code of length 0, whose cosines are 0.
    codes = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(losses.pulling_away(codes), torch.tensor([2 * 0.5 / 6]))
    with pytest.raises(ValueError, match="at least 2 codes"):
        losses.pulling_away(torch.ones(1, 1, 3))


def test_the_balance_of_began_is_at_rest_at_gamma():
    """A plant whose ratio falls with k: k settles where E_q L / E_p L = gamma."""
    rule, gamma = losses.Began(0.5, rate=0.2), 0.5
    for _ in range(300):
        k = torch.zeros(2) if rule.k is None else rule.k
        real = -torch.tensor([[1.0], [2.0]]).expand(2, 4)
        fake = real * (0.1 + k[:, None])  # ratio 0.1 + k
        rule.d_loss(real, fake), rule.g_loss(real, fake)
        rule.callback(0, None)
    torch.testing.assert_close(rule.k, torch.full((2,), 0.4), atol=1e-3, rtol=0)
    torch.testing.assert_close(rule.m_global, torch.tensor([1.0, 2.0]), atol=1e-3, rtol=0)
    assert abs(1 / gamma - 0.5) > 1  # the inverted ratio, a misprint, would be 2


def test_the_losses_of_began_by_hand():
    rule = losses.Began(0.5, rate=1.0)
    real, fake = -torch.tensor([[1.0, 3.0]]), -torch.tensor([[0.0, 1.0]])
    assert rule.d_loss(real, fake) == 2.0  # k = 0
    assert rule.g_loss(real, fake) == 0.5
    rule.callback(0, None)
    assert rule.k == 0.5 and rule.m_global == 2.0 + 0.5  # 0.5 * 2 - 0.5
    assert rule.d_loss(real, fake) == 2.0 - 0.5 * 0.5
    far = -torch.full((1, 2), 9.0)
    rule.g_loss(real, far)
    rule.callback(1, None)
    assert rule.k == 0.0, "k is kept in [0, 1]"
    assert rule.m_global == 2.0 + 8.0, "the surplus is negative: without its absolute value M < L"
    # One backward pass of the sum of both losses would have the discriminator lower this, too:
    d = fake.clone().requires_grad_()
    (right,) = torch.autograd.grad(rule.d_loss(real, d).sum(), d)
    (summed,) = torch.autograd.grad((rule.d_loss(real, d) + rule.g_loss(real, d)).sum(), d)
    assert (right >= 0).all() and (summed < 0).all()


def test_bad_settings_of_began_are_named():
    for gamma, says in ((0.0, "gamma must be positive, got 0"), (2.0, "in (0, 1], got 2")):
        with pytest.raises(ValueError) as error:
            losses.Began(gamma)
        assert says in str(error.value)
    with pytest.raises(ValueError, match="rate must be at least 0 and finite, got -1"):
        losses.Began(0.5, rate=-1)
    rule = losses.Began(0.5)
    with pytest.raises(RuntimeError, match="call d_loss and g_loss first"):
        rule.callback(0, None)
    rule.d_loss(-torch.ones(2, 3), -torch.ones(2, 3))
    with pytest.raises(ValueError, match="k is that of 2 replicates, got 3; make a Began for each"):
        rule.d_loss(-torch.ones(3, 3), -torch.ones(3, 3))


def test_the_weight_of_began_moves_by_less_than_the_digits_of_half_precision():
    rule, energy = losses.Began(0.5, rate=1e-3), torch.ones(1, 4, dtype=torch.bfloat16)
    for _ in range(1000):
        rule.d_loss(-energy, -energy / 4), rule.g_loss(-energy, -energy / 4)
        rule.callback(0, None)
    torch.testing.assert_close(rule.k, torch.tensor([0.25]), atol=1e-3, rtol=0)
    stuck = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(1000):
        stuck += 0.25e-3
    assert stuck < 0.2  # the control


def test_the_bound_on_information_is_reached_by_the_log_ratio_and_by_nothing_else():
    # Joint law P and product of marginals Q on four points: T = log P/Q gives 2 JSD - 2 log 2.
    half = (P + Q) / 2
    best = kl(P, half) + kl(Q, half) - 2 * math.log(2)
    joint, product = batches(RATIO)
    torch.testing.assert_close(losses.jsd_information(joint, product), best[None])
    torch.testing.assert_close(joint.mean(dim=1), kl(P, Q)[None])  # the information itself
    for other in (RATIO + 0.1, 1.1 * RATIO, -RATIO):
        assert losses.jsd_information(*batches(other)) < best - 1e-4
    far = torch.full((1, 5), 80.0)
    assert -1e-6 < losses.jsd_information(far, -far[:, :3]).item() <= 0  # it saturates at 0
    with pytest.raises(ValueError, match="joint must"):
        losses.jsd_information(torch.zeros(1, 0), product)
