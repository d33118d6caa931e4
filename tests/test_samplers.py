"""Samplers draw from their targets; each check of a law has a wrong target that must fail it."""

import math
import warnings

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from gan_ebm_utils.base import Calls, Distribution, Info, Kernel, count_calls, rand, randn
from gan_ebm_utils.datasets import gaussian, gaussian_ring, moons
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.samplers import (
    ReplayBuffer,
    annealed_log_partition,
    independence_mh,
    isir,
    langevin,
    log_uniform,
    mala,
    mixture,
    rejection_sample,
    run_chain,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_energy(x):
    return x.square().sum(dim=-1) / 2


def double_well(x):  # on the line: .6 N(-1, .5^2) + .4 N(1.2, .6^2), up to a constant
    x = x[..., 0]
    left = math.log(0.6 / 0.5) - (x + 1) ** 2 / (2 * 0.5**2)
    return -torch.logaddexp(left, math.log(0.4 / 0.6) - (x - 1.2) ** 2 / (2 * 0.6**2))


def moments(energy):
    """Mean, second and fourth moment, and their standard deviations, by quadrature on the line."""
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    weight = (-energy(x)).softmax(dim=0)
    values = torch.stack([x[:, 0], x[:, 0] ** 2, x[:, 0] ** 4])
    mean = (values * weight).sum(dim=1)
    return mean, ((values - mean[:, None]) ** 2 * weight).sum(dim=1).sqrt()


def z_scores(x, energy):
    """Of three moments of independent samples x (n, 1) against the law e^{-E}."""
    mean, std = moments(energy)
    x = x[:, 0].double()
    sample = torch.stack([x, x**2, x**4]).mean(dim=1)
    return (sample - mean) / (std / math.sqrt(len(x)))


def exact_samples(energy, n, generator):
    """Samples of e^{-E} on the line by inverting its distribution function on a fine grid."""
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)[:, None]
    cdf = (-energy(x)).softmax(dim=0).cumsum(dim=0)
    index = torch.searchsorted(cdf, rand(n, generator=generator).double())
    return x[index.clamp(max=len(x) - 1)]


def agrees(x, energy):
    """Moments within five standard errors and a two-sample test that does not reject."""
    other = exact_samples(energy, len(x), rng(99))
    p_value = ks_2samp(x[:, 0].numpy(), other[:, 0].numpy()).pvalue
    return bool(z_scores(x, energy).abs().max() <= 5) and p_value > 1e-6


# The control: its mean and its tails differ a little from the well's.
def wrong_well(x):
    return double_well(x) + 0.1 * x[..., 0]


def last(kernel, x, n_steps, seed=1):
    return run_chain(kernel, x, n_steps, rng(seed), thin=n_steps).positions[-1]


def wide(size, generator):  # the proposal N(0, 1.5^2) on the line
    size = size if isinstance(size, tuple) else (size,)
    return 1.5 * randn(*size, 1, generator=generator)


def well_ratio(x):
    return -double_well(x) + x[..., 0] ** 2 / (2 * 1.5**2)


N = 20_000


# --- Langevin ---


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.5])
def test_the_variance_of_langevin_is_the_biased_one(step_size):
    # x <- (1 - s/2) x + sqrt(s) noise has the fixed variance s / (1 - (1 - s/2)^2) = 1/(1 - s/4).
    n_steps = math.ceil(20 / step_size)
    x = last(langevin(normal_energy, step_size), randn(N, 1, generator=rng()), n_steps)
    predicted = 1 / (1 - step_size / 4)
    z = (x.square().mean() - predicted) / (predicted * math.sqrt(2 / N))
    assert abs(z) <= 5
    control = (x.square().mean() - 1) / math.sqrt(2 / N)  # the unbiased variance
    assert step_size < 0.3 or abs(control) > 5


def test_langevin_at_a_temperature():
    step_size, temperature = 0.5, 0.2
    kernel = langevin(normal_energy, step_size, temperature)
    x = last(kernel, randn(N, 1, generator=rng()), 60)
    predicted = temperature / (1 - step_size / 4)
    assert abs(x.square().mean() / predicted - 1) <= 5 * math.sqrt(2 / N)
    cold = last(langevin(normal_energy, step_size, 0.0), torch.ones(1, 2), 3)
    torch.testing.assert_close(cold, torch.full((1, 2), 0.75**3))


def test_langevin_is_the_loop_of_the_text():
    energy = mlp(2, (16,), replicates=3, generator=rng())
    x = randn(3, 5, 2, generator=rng(1))
    kept = run_chain(langevin(energy, 0.1), x, 4, rng(2)).positions
    generator = rng(2)
    for step in range(4):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        x = x - 0.1 / 2 * grad + math.sqrt(0.1) * randn(3, 5, 2, generator=generator)
        torch.testing.assert_close(kept[step], x.detach())


# --- exact kernels ---


def test_mala_is_exact_where_langevin_is_not():
    start = exact_samples(double_well, N, rng(3)).float()
    x = last(mala(double_well, 0.15), start, 40)
    assert agrees(x, double_well)
    assert not agrees(x, wrong_well)
    assert not agrees(last(langevin(double_well, 0.15), start, 40), double_well)


def test_mala_finds_its_law_from_elsewhere():
    # Starts at N(0, 1), whose two halves do not have the weights of the wells.
    start = randn(N, 1, generator=rng(4))
    assert not agrees(start, double_well)
    assert agrees(last(mala(double_well, 0.25), start, 400), double_well)


def test_a_mixture_of_step_sizes_is_exact_where_each_is():
    kernel = mixture(mala(double_well, 0.02), mala(double_well, 0.2), mala(double_well, 2.0))
    start = 1.5 * torch.randn(N, 1, generator=rng(1))
    assert agrees(last(kernel, start, 400), double_well)
    assert not agrees(last(mixture(langevin(double_well, 0.2)), start, 100), double_well)
    with pytest.raises(ValueError, match="at least one kernel"):
        mixture()


def test_a_mixture_uses_all_its_kernels():
    seen = []

    def counting(name):
        inner = mala(double_well, 0.1)
        return Kernel(inner.init, lambda s, g: (seen.append(name), inner.step(s, g))[1])

    run_chain(mixture(counting("a"), counting("b")), torch.zeros(5, 1), 200, rng())
    share = seen.count("a") / 200
    assert abs(share - 0.5) <= 5 * math.sqrt(0.25 / 200)


def test_mala_without_a_term_is_not_exact():
    def incomplete(energy, step_size):
        exact = mala(energy, step_size)

        def step(state, generator):
            moved = langevin(energy, step_size).step(state, generator)[0]
            accepted = rand(*state.energy.shape, generator=generator).log() < (
                state.energy - moved.energy
            )  # the proposal's densities are left out
            x = torch.where(accepted[:, None], moved.position, state.position)
            return exact.init(x), Info(accepted.float(), accepted)

        return exact._replace(step=step)

    start = exact_samples(double_well, N, rng(3)).float()
    assert not agrees(last(incomplete(double_well, 0.15), start, 40), double_well)


def test_independence_mh_and_isir_are_exact():
    start = wide((N,), rng(5))
    for kernel, n_steps in (
        (independence_mh(well_ratio, wide), 60),
        (isir(well_ratio, wide, 5), 30),
    ):
        x = last(kernel, start, n_steps)
        assert agrees(x, double_well)
        assert not agrees(x, wrong_well)
    assert not agrees(start, double_well)


def test_rejection_sampling_is_exact():
    x = torch.linspace(-8, 8, 4001)[:, None]
    log_bound = float(well_ratio(x).max())
    refined = rejection_sample(well_ratio, wide, N, log_bound + 0.01, rng(6))
    assert refined.samples.shape == (N, 1) and refined.latents is None
    assert agrees(refined.samples, double_well)
    assert not agrees(refined.samples, wrong_well)
    # With normalised densities the acceptance rate is Z / (M Z_q).
    z = (-double_well(x.double())).exp().sum() * 16 / 4000
    expected = float(z) / (math.exp(log_bound + 0.01) * 1.5 * math.sqrt(2 * math.pi))
    n = refined.calls.forward
    error = math.sqrt(expected * (1 - expected) / n)
    assert abs(refined.acceptance_rate - expected) <= 5 * error


def test_a_constant_ratio_gives_back_the_proposal():
    def constant(x):
        return torch.zeros(x.shape[:-1])

    def proposal_energy(x):
        return x[..., 0] ** 2 / (2 * 1.5**2)

    start = torch.full((N, 1), 3.0)
    for kernel in (independence_mh(constant, wide), isir(constant, wide, 3)):
        assert agrees(last(kernel, start, 30), proposal_energy)
    refined = rejection_sample(constant, wide, N, 0.0, rng())
    assert refined.acceptance_rate == 1 and agrees(refined.samples, proposal_energy)


@pytest.mark.parametrize("event", [(3,), (1, 2, 2), (2, 1)])
def test_events_of_any_rank(event):
    def energy(x):
        return x.square().flatten(2).sum(dim=2) / 2

    x = randn(2, 500, *event, generator=rng())
    chain = run_chain(mala(energy, 0.3), x, 6, rng(1), thin=2)
    assert chain.positions.shape == (3, 2, 500, *event) and chain.energies.shape == (3, 2, 500)
    torch.testing.assert_close(chain.energies[-1], energy(chain.positions[-1]))

    def propose(size, generator):
        return randn(*size, *event, generator=generator)

    for kernel in (
        independence_mh(lambda y: -energy(y), propose),
        isir(lambda y: -energy(y), propose, 3),
    ):
        chain = run_chain(kernel, x, 4, rng(1))
        assert chain.positions.shape == (4, 2, 500, *event)
        torch.testing.assert_close(chain.energies[-1], energy(chain.positions[-1]))


# --- the book-keeping ---


def test_rejected_states_stay_with_energy_and_gradient():
    kernel = mala(double_well, 1.0)
    state = kernel.init(randn(1000, 1, generator=rng()))
    moved, info = kernel.step(state, rng(1))
    stayed = ~info.is_accepted
    assert 100 < stayed.sum() < 900
    assert torch.equal(moved.position[stayed], state.position[stayed])
    assert torch.equal(moved.grad[stayed], state.grad[stayed])
    fresh = kernel.init(moved.position)
    torch.testing.assert_close(moved.energy, fresh.energy)
    torch.testing.assert_close(moved.grad, fresh.grad)
    chain = run_chain(kernel, state.position, 20, rng(2))
    repeated = (chain.positions[1:] == chain.positions[:-1]).float().mean()
    torch.testing.assert_close(1 - repeated, chain.accepted_share.mean(), atol=0.03, rtol=0)


def test_the_start_is_not_changed():
    start = randn(50, 1, generator=rng())
    copy = start.clone()
    for kernel in (
        langevin(double_well, 0.1),
        mala(double_well, 0.1),
        independence_mh(well_ratio, wide),
        isir(well_ratio, wide, 3),
    ):
        chain = run_chain(kernel, start, 3, rng(1))
        state = kernel.init(start)
        before = state.position.clone()
        kernel.step(state, rng(1))
        assert torch.equal(start, copy) and torch.equal(state.position, before)
        assert chain.positions.untyped_storage().data_ptr() != start.untyped_storage().data_ptr()
        assert state.position.untyped_storage().data_ptr() != start.untyped_storage().data_ptr()


def test_no_gradient_leaks():
    network = mlp(1, (8,), generator=rng())
    start = randn(1, 20, 1, generator=rng(1))
    with torch.no_grad():  # a chain works inside, too
        chain = run_chain(mala(network, 0.1), start, 5, rng(2))
    assert not chain.positions.requires_grad and not chain.energies.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    state = langevin(network, 0.1).init(start)
    assert not state.position.requires_grad and state.grad.grad_fn is None
    one = langevin(network, 0.1).step(state, rng(3))[0]
    again = langevin(network, 0.1).step(state, rng(3))[0]
    assert torch.equal(one.grad, again.grad)  # nothing accumulates


def test_thinning_keeps_every_second_state():
    start = torch.zeros(3, 2)
    every = run_chain(langevin(normal_energy, 0.1), start, 7, rng())
    some = run_chain(langevin(normal_energy, 0.1), start, 7, rng(), thin=2)
    assert torch.equal(some.positions, every.positions[1::2])
    assert torch.equal(some.energies, every.energies[1::2])


def test_calls_are_counted():
    network = mlp(2, (4,), replicates=2, generator=rng())
    with count_calls(network) as calls:
        run_chain(langevin(network, 0.1), torch.zeros(2, 10, 2), 5, rng())
    assert calls() == Calls(120, 120)  # the start and five steps, two replicates of ten chains
    network(torch.zeros(2, 10, 2))
    assert calls() == Calls(120, 120)


# --- bad input ---


@pytest.mark.parametrize("make", [langevin, mala])
@pytest.mark.parametrize("step_size", [0, -0.1, math.nan, math.inf])
def test_a_step_size_must_be_positive(make, step_size):
    with pytest.raises(ValueError, match="step_size must be positive"):
        make(normal_energy, step_size)


def test_a_temperature_must_not_be_negative():
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        langevin(normal_energy, 0.1, -1.0)


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: x.square(), r"returned \(10, 2\)"),
        (lambda x: x.square().sum(), r"returned \(\)"),
        (lambda x: x.square().sum(dim=-1, keepdim=True), r"returned \(10, 1\)"),
        (lambda x: torch.zeros(10), "autograd can follow"),
        (lambda x: normal_energy(x.detach()), "autograd can follow"),
    ],
)
@pytest.mark.parametrize("make", [langevin, mala])
def test_an_energy_returns_one_number_per_chain(make, energy, message):
    with pytest.raises(ValueError, match=message):
        run_chain(make(energy, 0.1), torch.zeros(10, 2), 3, rng())


@pytest.mark.parametrize("make", [langevin, mala])
def test_nan_says_where(make):
    calls = [0]

    def energy(x):
        calls[0] += 1
        value = normal_energy(x)
        if calls[0] == 4:  # the start is the first call
            value = value + torch.tensor([math.nan, math.nan] + [0.0] * 8)
        return value

    with pytest.raises(FloatingPointError, match="step 3: .* in 2 of 10 chains"):
        run_chain(make(energy, 0.1), torch.zeros(10, 2), 5, rng())


def half_line(x):  # a wall at 0
    return torch.where(x[..., 0] > 0, x[..., 0], torch.inf)


def test_a_wall_is_never_entered_by_mala_and_stops_langevin():
    start = 0.5 + rand(1000, 1, generator=rng())
    chain = run_chain(mala(half_line, 0.5), start, 50, rng(1))
    assert (chain.positions > 0).all()
    with pytest.raises(FloatingPointError, match="confine"):
        run_chain(langevin(half_line, 0.5), start, 50, rng(1))
    with pytest.raises(FloatingPointError, match="step 0: .* start inside"):
        run_chain(mala(half_line, 0.5), -start, 50, rng(1))


def test_infinite_log_ratios():
    def outside(x):  # the target lives on x > 0
        return torch.where(x[..., 0] > 0, 0.0, -torch.inf)

    start = torch.full((1000, 1), -1.0)
    for kernel in (independence_mh(outside, wide), isir(outside, wide, 3)):
        assert (last(kernel, start, 30) > 0).all()
        assert run_chain(kernel, start, 3, rng()).positions.isfinite().all()
    for bad in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match="nan or .inf in 10 of 10 points"):
            kernel = independence_mh(lambda x, bad=bad: torch.full(x.shape[:1], bad), wide)
            run_chain(kernel, start[:10], 3, rng())


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (torch.zeros(10, 2, requires_grad=True), "give position.detach"),
        (torch.zeros(2), r"position must be \(chains, \.\.\.\); got \(2,\)"),
        (torch.zeros(0, 2), r"position is empty: shape \(0, 2\); give at least one"),
        (torch.full((10, 2), math.nan), "20 of 20 values of position are not finite"),
    ],
)
def test_a_bad_start(position, message):
    for kernel in (langevin(normal_energy, 0.1), mala(normal_energy, 0.1)):
        with pytest.raises(ValueError, match=message):
            run_chain(kernel, position, 3, rng())


def test_a_start_is_a_tensor():
    for kernel in (mala(normal_energy, 0.1), isir(well_ratio, wide, 3)):
        with pytest.raises(TypeError, match="position must be a tensor of real numbers"):
            run_chain(kernel, torch.zeros(10, 1).numpy(), 3, rng())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1"),
        ({"n_steps": 5, "thin": 0}, "thin must be a whole number of at least 1"),
        ({"n_steps": 5, "thin": 6}, "nothing is kept"),
    ],
)
def test_bad_counts(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_chain(langevin(normal_energy, 0.1), torch.zeros(3, 2), generator=rng(), **arguments)


def test_isir_needs_a_candidate():
    with pytest.raises(ValueError, match="n_candidates must be a whole number of at least 2"):
        isir(well_ratio, wide, 1)


def test_a_bound_that_is_exceeded_is_an_error():
    x = torch.linspace(-8, 8, 4001)[:, None]
    with pytest.raises(
        ValueError, match=r"of 10000 log ratios exceed log_bound = .*the largest is"
    ):
        rejection_sample(well_ratio, wide, 10, float(well_ratio(x).max()) - 0.5, rng())
    with pytest.raises(ValueError, match="log_bound must be finite, got nan"):
        rejection_sample(well_ratio, wide, 10, math.nan, rng())
    with pytest.raises(RuntimeError, match="too far from the target"):
        rejection_sample(well_ratio, wide, 10, 100.0, rng())


# --- replay buffer ---


def test_a_buffer_returns_what_was_stored():
    buffer = ReplayBuffer(wide, 50, rng(), replicates=2, fresh_share=0.0)
    before = buffer.positions.clone()
    x = buffer.draw(20, rng(1))
    assert x.shape == (2, 20, 1) and len(x[0].unique()) == 20
    x += 100  # what was drawn is a copy
    assert torch.equal(buffer.positions, before)
    buffer.store(x)
    assert int((buffer.positions > 50).sum()) == 40


def test_a_buffer_leaves_what_it_was_filled_with():
    data = randn(1, 50, 1, generator=rng()).requires_grad_()
    before = data.detach().clone()
    buffer = ReplayBuffer(lambda size, g: data, 50, rng(), fresh_share=0.0)
    buffer.store(buffer.draw(20, rng()) + 100)
    assert torch.equal(data, before) and not buffer.positions.requires_grad


def test_a_share_of_the_buffer_is_fresh():
    buffer = ReplayBuffer(wide, 10_000, rng(), fresh_share=0.05)
    buffer.positions.fill_(100)
    renewed = (buffer.draw(10_000, rng(1)) < 50).double().mean()
    assert abs(renewed - 0.05) <= 5 * math.sqrt(0.05 * 0.95 / 10_000)
    assert (ReplayBuffer(wide, 10, rng(), fresh_share=0.0).draw(10, rng()) < 50).all()


def test_a_buffer_says_what_is_wrong():
    buffer = ReplayBuffer(wide, 50, rng())
    with pytest.raises(ValueError, match="call draw first"):
        buffer.store(torch.zeros(1, 20, 1))
    with pytest.raises(ValueError, match="at most the capacity 50, got 51"):
        buffer.draw(51, rng())
    buffer.draw(20, rng())
    with pytest.raises(ValueError, match=r"positions must be \(1, 20, 1\); got \(1, 19, 1\)"):
        buffer.store(torch.zeros(1, 19, 1))
    with pytest.raises(ValueError, match="fresh_share"):
        ReplayBuffer(wide, 50, rng(), fresh_share=1.5)
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(wide, 0, rng())


# --- annealed importance sampling ---


def offset(law, constant):
    """The energy of a law whose log Z is `constant`."""
    return lambda x: -law.log_prob(x) - constant


@pytest.mark.parametrize(
    ("law", "constant"),
    [(gaussian([1.0, -1.0], 0.5), 3.0), (gaussian_ring(), -2.0), (moons(), 0.5)],
)
def test_annealing_finds_a_known_constant(law, constant):
    start = gaussian([0.0, 0.0], 1.5)
    estimate = annealed_log_partition(offset(law, constant), start, 60, 0.02, rng(), 500, 2)
    assert estimate.value.shape == (2,) and (estimate.standard_error < 0.2).all()
    z = (estimate.value - constant) / estimate.standard_error
    assert z.abs().max() <= 5
    control = (estimate.value - constant - 1) / estimate.standard_error
    assert control.abs().min() > 5


def test_annealing_is_exact_where_every_chain_has_the_same_weight():
    # E = -log p_0 - c: each of the levels adds c / n_levels, and leaving one out would show.
    start = gaussian([0.0, 0.0], 1.5)
    for n_levels in (1, 7):
        estimate = annealed_log_partition(offset(start, 3.0), start, n_levels, 0.1, rng(), 50)
        assert abs(estimate.value - 3) < 1e-5 and estimate.standard_error < 1e-5


def test_annealing_needs_a_density():
    start = Distribution(wide, None, None)
    with pytest.raises(ValueError, match="no log_prob"):
        annealed_log_partition(normal_energy, start, 10, 0.1, rng())
    with pytest.raises(ValueError, match="n_chains must be a whole number of at least 2"):
        annealed_log_partition(normal_energy, gaussian([0.0]), 5, 0.1, rng(), n_chains=1)
    with pytest.raises(ValueError, match="n_levels"):
        annealed_log_partition(normal_energy, gaussian([0.0]), 0, 0.1, rng())


def test_a_module_is_an_energy():
    energy = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    assert run_chain(langevin(energy, 0.1), torch.zeros(4, 2), 2, rng()).energies.shape == (2, 4)


# --- networks as energies ---


class Watched(nn.Module):
    """sign |x|^2 / 2, which notes its mode in every call."""

    def __init__(self, sign):
        super().__init__()
        self.weight, self.modes = nn.Parameter(torch.full((), sign / 2)), []

    def forward(self, x):
        self.modes.append(self.training)
        return self.weight * x.square().sum(dim=-1)


def standard(size, generator):
    return randn(*size, 1, generator=generator)


START = torch.ones(1, 50, 1)
ON_A_NETWORK = {
    "langevin": (1, lambda energy: last(langevin(energy, 0.1), START, 3)),
    "mala": (1, lambda energy: last(mala(energy, 0.1), START, 3)),
    "mixture": (1, lambda e: last(mixture(mala(normal_energy, 0.1), mala(e, 0.1)), START, 9)),
    "independence_mh": (-1, lambda ratio: last(independence_mh(ratio, standard), START, 3)),
    "isir": (-1, lambda ratio: last(isir(ratio, standard, 3), START, 3)),
    "rejection": (-1, lambda ratio: rejection_sample(ratio, standard, 9, 0.0, rng())),
    "annealing": (1, lambda e: annealed_log_partition(e, gaussian([0.0]), 3, 0.1, rng(), 50)),
}


@pytest.mark.parametrize("name", ON_A_NETWORK)
def test_a_network_runs_in_evaluation_mode_and_is_given_back(name):
    sign, run = ON_A_NETWORK[name]
    network = Watched(sign)
    run(network)
    assert network.modes and not any(network.modes) and network.training


def test_annealing_takes_an_energy_of_doubles():
    energy = Watched(1).double()
    estimate = annealed_log_partition(energy, gaussian([0.0], 1.5), 30, 0.1, rng(), 2000)
    z = (estimate.value - math.log(2 * math.pi) / 2) / estimate.standard_error
    assert abs(z) <= 5 and estimate.value.dtype == torch.float64


def test_proposals_of_a_network_leave_no_gradient():
    network = mlp(1, (4,), 1, generator=rng())

    def propose(size, generator):
        return network(randn(1, *size, 1, generator=generator)).reshape(*size, 1)

    for kernel in (independence_mh(well_ratio, propose), isir(well_ratio, propose, 3)):
        assert not run_chain(kernel, torch.zeros(20, 1), 3, rng()).positions.requires_grad
    refined = rejection_sample(lambda x: 0 * x[..., 0], propose, 5, 0.0, rng())
    assert not refined.samples.requires_grad


def test_each_chain_has_its_own_proposal():
    start = torch.zeros(3, 20, 1)  # of three replicates

    def one_replicate(size, generator):
        return wide(size[1:], generator)

    def one_point(size, generator):
        return wide((1,), generator)

    for propose in (one_replicate, one_point):
        with pytest.raises(ValueError, match=r"must return \(3, 20, 1\) for the size \(3, 20\)"):
            run_chain(independence_mh(well_ratio, propose), start, 3, rng())
        with pytest.raises(ValueError, match=r"must return \(3, 40, 1\) for the size \(3, 40\)"):
            run_chain(isir(well_ratio, propose, 3), start, 3, rng())


# --- uniform numbers ---


def cliff(x):  # e^50 times less likely beyond 1/2, in half precision as an autocast network
    return torch.where(x[..., 0] > 0.5, -50.0, 0.0).bfloat16()


def ones(size, generator):
    return torch.ones(*size, 1)


def test_half_precision_decides_nothing():
    start = torch.zeros(1, 1000, 1)
    for kernel in (independence_mh(cliff, ones), isir(cliff, ones, 3)):
        with pytest.warns(UserWarning, match="all chains stand where they began"):
            chain = run_chain(kernel, start, 640, rng(), thin=640)
        assert (chain.positions == 0).all() and (chain.accepted_share == 0).all()
        assert chain.energies.dtype == torch.float32
    jump = mala(lambda x: -cliff(x) + 0 * x[..., 0].bfloat16(), 1.0)
    assert (last(jump, start, 640) <= 0.5).all()

    def either(size, generator):
        return rand(*size, 1, generator=generator)

    refined = rejection_sample(cliff, either, 100_000, 0.0, rng())
    assert (refined.samples <= 0.5).all()


def test_acceptance_rates_are_summed_in_single_precision():
    def always(x):
        return torch.zeros(x.shape[:-1]).bfloat16()

    chain = run_chain(independence_mh(always, wide), torch.zeros(3, 1), 1000, rng(), thin=1000)
    assert (chain.accepted_share == 1).all()  # in bfloat16 a sum of ones ends at 256
    for make in (langevin, mala):
        kernel = make(lambda x: normal_energy(x).bfloat16(), 1e-4)
        chain = run_chain(kernel, torch.zeros(3, 1), 400, rng(), thin=400)
        assert chain.energies.dtype == torch.float32 and (chain.accepted_share > 0.99).all()


def test_the_logarithm_of_a_uniform_number(monkeypatch):
    for given, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        draws = log_uniform(torch.zeros(100_000, dtype=given), rng())
        assert draws.dtype == kept and draws.max() < 0
        assert (
            ks_2samp((-draws).numpy(), torch.rand(100_000, generator=rng(1)).log().neg()).pvalue
            > 1e-6
        )
    plain = torch.rand(50, generator=rng()).log()
    assert torch.equal(log_uniform(torch.zeros(50), rng()), plain)
    # An exact 0, which comes once in 17 million draws, must not let everything in.
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, **_: torch.zeros(*size, dtype=dtype))
    assert log_uniform(torch.zeros(5), rng()).isfinite().all()
    with pytest.warns(UserWarning, match="all chains stand where they began"):
        chain = run_chain(independence_mh(lambda x: -50 * x[..., 0], ones), START * 0, 10, rng())
    assert (chain.positions == 0).all()


# --- modes of autograd, defaults, chains that stand still ---


@pytest.mark.parametrize("make", [langevin, mala])
def test_inference_mode_is_named(make):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode\(\)"):
        run_chain(make(normal_energy, 0.1), torch.zeros(5, 2), 3, rng())
    with torch.inference_mode():
        start = torch.zeros(5, 2)
        assert run_chain(isir(well_ratio, wide, 3), torch.zeros(5, 1), 3, rng()).positions.any()
    run_chain(make(normal_energy, 0.1), start, 3, rng())  # what was made inside serves outside


@pytest.mark.parametrize("make", [langevin, mala])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_positions_too_coarse_for_a_step(make, dtype):
    with pytest.raises(ValueError, match=f"position is {dtype}; give it in float32 or float64"):
        run_chain(make(normal_energy, 0.1), torch.zeros(5, 2, dtype=dtype), 3, rng())


def test_chains_that_stand_still_are_noticed():
    start = randn(100, 2, generator=rng())
    with pytest.warns(UserWarning, match="all chains stand where they began: lower the step size"):
        run_chain(mala(normal_energy, 1e6), start, 20, rng())
    with pytest.warns(UserWarning, match="all chains stand"):  # steps lost to rounding
        run_chain(langevin(normal_energy, 1e-12), 1e6 + start, 20, rng())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_chain(mala(normal_energy, 3.0), start, 20, rng())


@pytest.mark.parametrize("name", [name for name in ON_A_NETWORK if name != "annealing"])
def test_the_users_defaults_change_nothing(name):
    sign, run = ON_A_NETWORK[name]
    network = Watched(sign)
    plain = run(network)
    try:
        torch.set_default_dtype(torch.float64)
        # What is made without a device would be without content.
        with torch.device("meta"):
            other = run(network)
    finally:
        torch.set_default_dtype(torch.float32)
    plain, other = (x.samples if name == "rejection" else x for x in (plain, other))
    assert plain.shape == other.shape and other.device.type == "cpu" and other.isfinite().all()


def test_a_function_that_calls_a_network_runs_it_in_evaluation_mode():
    norm = nn.BatchNorm1d(1, affine=False)
    before = norm.state_dict()["num_batches_tracked"].clone()

    def energy(z):  # N(0, 1/2): the prior, and the logit -x^2/2 at x = norm(z) = z
        return z.square().sum(dim=-1) / 2 + norm(z[0]).square().sum(dim=-1)[None] / 2

    start = torch.zeros(1, 4000, 1)
    ends = run_chain(mala(energy, 0.3), start, 100, rng(), thin=100).positions[-1]
    # The variance of 4,000 independent draws of N(0, 1/2), to five standard errors.
    assert abs(float(ends.var()) - 0.5) < 5 * 0.5 * math.sqrt(2 / 4000)
    assert norm.training and norm.num_batches_tracked == before


def test_a_short_run_that_is_refused_is_not_told_stuck(recwarn):
    def wall(x):  # every proposal is refused
        return torch.where(x[..., 0] == 0, 0.0, torch.inf) + 0 * x.sum(dim=-1)

    _ = run_chain(mala(wall, 1.0), torch.zeros(1, 2, 1), 9, rng())
    assert not recwarn.list
    with pytest.warns(UserWarning, match="stand where they began: lower the step size"):
        run_chain(mala(wall, 1.0), torch.zeros(1, 2, 1), 10, rng())
