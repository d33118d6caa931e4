"""MEG in the plane: what its energy, its entropy term and its latent chains are held against."""

import json
import math

import pytest
import torch
from torch import nn

from gan_ebm_utils import checkpoints, losses, metrics
from gan_ebm_utils.base import Gan, Kernel, randn, seeded
from gan_ebm_utils.datasets import exact_gan, gaussian, gaussian_grid
from gan_ebm_utils.energies import pullback
from gan_ebm_utils.entropy import nearest_neighbour_entropy
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.recipes import plane_meg
from gan_ebm_utils.samplers import langevin, mala, run_chain
from gan_ebm_utils.training import fit_discriminator, train_ebm

R = 3


def rng(seed=0):
    return seeded(seed, "cpu")


# --- the checkpoints ---


@pytest.mark.parametrize("name", plane_meg.NAMES)
def test_the_stored_checkpoints_are_those_of_the_recipe(name, monkeypatch):
    found = checkpoints.load(name).card["settings"]

    def settings():
        return json.loads(json.dumps(plane_meg.settings_of(name, 600, 10)))

    assert found == settings()
    monkeypatch.setattr(plane_meg, "PENALTY", 0.2)
    assert found != settings()


@pytest.fixture(scope="module", params=plane_meg.LAWS)
def stored(request):
    return request.param, checkpoints.load(request.param)


def test_the_energy_becomes_a_density_after_the_game_and_not_in_it(stored):
    _, found = stored
    assert found.tensors["kl"].mean() <= 0.1
    course = found.tensors["course"].mean(dim=1)
    assert course[0] > 1 > 0.1 >= course[-1]


def test_the_stored_energy_has_the_divergence_of_its_card(stored):
    name, found = stored
    truth = plane_meg.LAWS[name].truth
    again = metrics.kl_to_truth(found.networks["energy"], truth, (-4, 4, -4, 4), 10, 300)
    assert torch.allclose(again.float(), found.tensors["kl"], atol=2e-3)
    # A control: replicates in another order, or the energy of the game.
    assert not torch.allclose(again.float().roll(1), found.tensors["kl"], atol=2e-3)


@pytest.fixture(scope="module")
def grid():
    return checkpoints.load("gaussians25_meg")


def test_generators_score_as_stored(grid):
    x = grid.networks["generator"](randn(10, 10_000, 2, generator=rng(1)))
    report = metrics.mode_report(x, gaussian_grid().means, 0.05, n_std=4)
    assert (report.recovered - grid.tensors["recovered"]).abs().max() <= 1
    high_quality = grid.tensors["high_quality"]
    assert torch.allclose(report.high_quality.float(), high_quality, atol=0.02)
    assert not torch.allclose(report.high_quality.float().roll(1), high_quality, atol=0.02)


def test_the_entropy_term_keeps_modes_where_the_energy_takes_few_steps(grid):
    sweep = checkpoints.load("meg_sweep").tensors
    assert (sweep["1 with/recovered"] > sweep["1 without/recovered"]).sum() >= 8
    whole = [int((sweep[f"2 {key}/recovered"] == 25).sum()) for key in ("with", "without")]
    assert whole[0] >= 8 > whole[1]
    # With five steps of the energy there is nothing to see: both kinds have all modes.
    assert (grid.tensors["recovered"] == 25).sum() >= 8
    assert (grid.tensors["without/recovered"] == 25).sum() >= 8


def test_chains_from_the_generators_draws_leave_no_density(grid):
    course = grid.tensors["course/chains"]
    assert course[-1].median() > course[0].median() > 10 * grid.tensors["kl"].median()


def test_the_stored_ratio_makes_good_draws_of_the_generators(grid):
    gan = grid.gan()
    with torch.no_grad():
        x = gan.generator(gan.prior((10, 20_000), rng(1)))
        ratio, energy = gan.discriminator(x).exp(), grid.networks["energy"]
        mean = {
            "drawn": energy(x).mean(dim=1),
            "weighted": (ratio * energy(x)).mean(dim=1) / ratio.mean(dim=1),
            "data": energy(gaussian_grid().sample((10, 20_000), rng(2))).mean(dim=1),
        }
    assert (ratio.mean(dim=1) - 1).abs().median() < 0.1  # E_q p/q = 1
    assert (mean["weighted"] - mean["data"]).abs().mean() < 0.3
    assert (mean["drawn"] - mean["data"]).mean() > 1


# --- draws of the generator that are weighted ---


def test_the_density_of_the_pool_is_the_one_it_was_drawn_by():
    pool = plane_meg.pool_of(mlp(2, (8,), 2, R, generator=rng()), 0.3, 0.2, R, rng(1))
    # E_q p/q = 1, and E_q x p/q is the mean of p, whatever p is within the reach of q.
    for mean in ([0.0, 0.0], [0.5, -1.0]):
        ratio = (gaussian(mean).log_prob(pool.points) - pool.log_q).exp()
        error = ratio.std(dim=1) / math.sqrt(ratio.shape[1])
        assert ((ratio.mean(dim=1) - 1).abs() <= 5 * error).all()
    # A control: the density without its wide part.
    alone = plane_meg.pool_of(mlp(2, (8,), 2, R, generator=rng()), 0.3, 0.0, R, rng(1))
    ratio = (gaussian([0.0, 0.0]).log_prob(alone.points) - pool.log_q).exp()
    assert ((ratio.mean(dim=1) - 1).abs() > 0.1).all()


def test_weighted_draws_are_those_of_the_energy(monkeypatch):
    pool = plane_meg.pool_of(mlp(2, (8,), 2, R, generator=rng()), 0.3, 0.2, R, rng(1))
    truth = gaussian([0.5, -1.0])
    monkeypatch.setattr(plane_meg, "N_CANDIDATES", 50_000)

    def mean(log_q):
        x = plane_meg.weighted(
            lambda x: -truth.log_prob(x), pool._replace(log_q=log_q), 20_000, rng(2)
        )
        return (x - torch.tensor([0.5, -1.0])).mean(dim=1).abs().max()

    assert mean(pool.log_q) < 0.1
    assert mean(torch.zeros_like(pool.log_q)) > 0.2  # without the weights' denominator


def test_the_entropy_term_tells_a_generator_from_a_constant():
    g = rng()
    information = mlp(4, (32,), None, R, generator=g)

    def term(generator):
        gan = Gan(plane_meg.Player(generator, information), None, 2)
        z = randn(R, 500, 2, generator=g)
        return plane_meg.minus_information(gan, z, generator(z), g)

    optimizer = torch.optim.Adam(information.parameters(), 1e-2)
    identity = nn.Identity()
    for _ in range(200):
        optimizer.zero_grad()
        term(identity).sum().backward()
        optimizer.step()
    assert (term(identity) < 0.7).all()  # 2 log 2 = 1.386 if x says nothing about z
    assert (term(lambda z: 0 * z) > 1.3).all()


# --- information and entropy ---


def exact_information(a, std):
    """I(x; z) = 1/2 log det(I + A A^T / s^2) of x = A z + s e."""
    return torch.logdet(torch.eye(len(a)) + a @ a.T / std**2) / 2


def test_information_is_estimated_up_to_three_nats_and_saturates_beyond():
    a = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    stds = torch.tensor([1.2, 0.7, 0.45, 0.32, 0.24, 0.03])
    exact = torch.stack([exact_information(a, s) for s in stds])
    assert exact[:-1].max() <= 3.2 and exact[-1] > 6

    def joint(size, g):
        z = randn(*size, 2, generator=g)
        x = z @ a.T + stds[:, None, None] * randn(*size, 2, generator=g)
        return torch.cat([x, z], dim=2)

    def product(size, g):
        pairs = joint(size, g)
        return torch.cat([pairs[..., :2], randn(*size, 2, generator=g)], dim=2)

    g, n = rng(), len(stds)
    t = mlp(4, (128, 128), None, n, generator=g)
    settings = {"replicates": n, "batch_size": 512, "learning_rate": 1e-2}
    fit_discriminator(t, joint, product, losses.gan_d_loss, 600, g, **settings)
    with torch.no_grad():
        on_joint, on_product = t(joint((n, 20_000), g)), t(product((n, 20_000), g))
    bound = losses.jsd_information(on_joint, on_product)
    error = on_joint.mean(dim=1) - exact
    assert (error[exact <= 3].abs() <= 0.2).all()
    assert error[-1] < -0.5  # beyond
    # The bound itself hardly tells 3 nats from 7.
    assert bound[-1] - bound[-2] < 0.3 and (bound < 0).all()


def test_entropy_of_an_invertible_generator_from_its_draws():
    exact, g = exact_gan(), rng()
    x = exact.gan.generator(randn(3, 10_000, 2, generator=g))
    # h(G(z)) = -E log p_g(G(z)), here from other draws.
    known = -float(exact.generated.log_prob(exact.generated.sample((400_000,), g)).mean())
    assert (nearest_neighbour_entropy(x) - known).abs().max() <= 0.05
    # A control: draws that are wider by 10 % have 0.19 nat more.
    assert (nearest_neighbour_entropy(1.1 * x[:1]) - known).abs().min() > 0.1


# --- the penalty on the gradient at data ---


class Quadratic(nn.Module):
    """E(x) = e^u |x|^2 / 2, with one u for each replicate."""

    def __init__(self, replicates):
        super().__init__()
        self.log_precision = nn.Parameter(torch.full((replicates, 1), 3.0))

    def forward(self, x):
        return self.log_precision.exp() * x.square().sum(dim=2) / 2


def best_precision(variance, weight):
    """The minimum over u of u s^2 / 2 - log(u) / 2 + w s^2 u^2: 4 w s^2 u^2 + s^2 u = 1."""
    if not weight:
        return 1 / variance
    return (math.sqrt(variance**2 + 16 * weight * variance) - variance) / (8 * weight * variance)


@pytest.mark.parametrize("weight", [0.0, 2.5e-5, 0.1])
def test_the_penalty_widens_narrow_wells(weight):
    std, energy = 0.05, Quadratic(R)

    def negatives(x, g):
        return randn(*x.shape, generator=g) / energy.log_precision.detach().exp().sqrt()[..., None]

    train_ebm(
        energy,
        gaussian([0.0, 0.0], std=std).sample,
        negatives,
        600,
        rng(),
        replicates=R,
        batch_size=500,
        learning_rate=0.05,
        penalty=lambda e, x, y, g: weight * losses.r1_penalty(e, x),
    )
    found = energy.log_precision.detach().exp()
    assert torch.allclose(found, torch.tensor(best_precision(std**2, weight)), rtol=0.08)
    ratio = 1 / math.sqrt(best_precision(std**2, weight)) / std
    assert (ratio > 3) == (weight == 0.1), "only at MEG's weight are the wells three times too wide"


# --- chains in latent space ---


def half_square(x):
    return x.square().sum(dim=-1) / 2


def printed(energy, step_size):
    """Langevin proposals with the acceptance e^{E(z) - E(z')}, without the proposal's terms."""
    free = langevin(energy, step_size)

    def step(state, g):
        proposal, info = free.step(state, g)
        accepted = torch.rand(state.energy.shape, generator=g).log() < (
            state.energy - proposal.energy
        )
        wide = accepted[..., None]
        kept = [
            torch.where(mask, new, old)
            for mask, new, old in zip((wide, accepted, wide), proposal, state, strict=True)
        ]
        return type(state)(*kept), info._replace(is_accepted=accepted)

    return Kernel(free.init, step)


def test_the_printed_ratio_samples_the_energy_at_half_its_temperature():
    start, n = randn(1, 20_000, 1, generator=rng()), 600

    def variance(kernel):
        return float(run_chain(kernel, start, n, rng(1)).positions[-1].var())

    error = 5 * math.sqrt(2 / start.numel())  # of the variance of so many normal numbers
    assert variance(mala(half_square, 0.02)) == pytest.approx(1, abs=error)
    assert variance(printed(half_square, 0.02)) == pytest.approx(1 / 2, abs=0.05)


def test_the_pullback_of_an_absolute_energy_is_the_square_of_the_density():
    gan = Gan(nn.Identity(), None, 1)  # perfect for N(0, 1)
    start, g = randn(1, 20_000, 1, generator=rng()), rng(1)
    error = 5 * math.sqrt(2 / start.numel())
    target = pullback(half_square, gan)
    ends = run_chain(mala(target, 0.5), start, 60, g).positions[-1]
    assert float(ends.var()) == pytest.approx(1 / 2, abs=error)
    # With log(p_theta / p_G) = 0 in the place of -E the generator's law is left as it is.
    corrected = pullback(lambda x: 0 * half_square(x), gan)
    ends = run_chain(mala(corrected, 0.5), start, 60, g).positions[-1]
    assert float(ends.var()) == pytest.approx(1, abs=error)
