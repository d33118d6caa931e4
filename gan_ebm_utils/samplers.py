"""Samplers of a law known up to its constant: Markov kernels, and exact rejection.

An energy maps points (*batch, *event) to energies (*batch) in nats; it may be a network or any
function that autograd can follow. Each point of the batch is a chain of its own. The Langevin step
is written one way everywhere: x <- x - (step_size / 2) grad E(x) + sqrt(step_size) noise.

A network that is the energy or the log ratio runs in evaluation mode while chains run. Energies are
kept in float32 or better, and uniform numbers drawn in their type, whatever the network returns.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gan_ebm_utils import base
from gan_ebm_utils.base import Chain, Distribution, Energy, Info, Kernel, Refined, Sample, State

# Points (*batch, *event) to log target - log proposal density (*batch), up to a constant.
LogRatio = Callable[[Tensor], Tensor]
# Proposals that `rejection_sample` draws at once.
_BATCH = 10_000


def langevin(energy: Energy, step_size: float, temperature: float = 1.0) -> Kernel:
    """Unadjusted Langevin: x <- x - (eps/2) grad E(x) + sqrt(eps T) noise, no rejection.

    As the step size eps goes to 0 its law tends to e^{-E/T}/Z; at a finite one it is biased: for
    E = x^2/2 and T = 1 the variance is 1/(1 - eps/4). At `temperature` T = 0 it is gradient descent
    (Welling and Teh 2011, with the full gradient).

    Raises ValueError for a step size that is not positive or a negative temperature.

    >>> energy = lambda x: x.square().sum(dim=-1) / 2
    >>> descent, g = langevin(energy, 1.0, temperature=0.0), torch.Generator().manual_seed(0)
    >>> run_chain(descent, torch.ones(1, 1), 3, g).positions.flatten()
    tensor([0.5000, 0.2500, 0.1250])
    """
    base.check_positive(step_size=step_size)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    scale = math.sqrt(step_size * temperature)

    def step(state: State, generator: torch.Generator) -> tuple[State, Info]:
        # One pass over memory each; the new tensor is the kernel's own.
        position = torch.add(state.position, state.grad, alpha=-step_size / 2)
        position.add_(_noise(position, generator), alpha=scale)
        always = torch.ones_like(state.energy)
        return _evaluate(energy, position), Info(always, always.bool())

    return Kernel(lambda position: _init(energy, position), step, (energy,))


def mala(energy: Energy, step_size: float) -> Kernel:
    """Langevin proposals, accepted with probability min(1, e^{E(x) - E(y)} g(x|y) / g(y|x)).

    g(y|x) is the normal density with mean x - (eps/2) grad E(x) and variance eps. The law
    e^{-E}/Z is exact at every step size; the chain is slow where few proposals are accepted. A
    rejected state stays, with its energy and gradient (Roberts and Tweedie 1996).

    An energy of +inf is a point outside the support, which is never entered.

    >>> energy, g = lambda x: x.square().sum(dim=-1) / 2, torch.Generator().manual_seed(0)
    >>> ends = run_chain(mala(energy, 1.0), torch.zeros(9000, 1), 20, g).positions[-1]
    >>> bool(abs(ends.var() - 1) < 0.06)  # N(0, 1), to four standard errors
    True
    """
    base.check_positive(step_size=step_size)

    def step(state: State, generator: torch.Generator) -> tuple[State, Info]:
        noise = _noise(state.position, generator)
        drifted = state.position - step_size / 2 * state.grad
        proposal = _evaluate(energy, drifted + math.sqrt(step_size) * noise, walls=True)
        back = state.position - (proposal.position - step_size / 2 * proposal.grad)
        batch = state.energy.ndim
        # log g(x|y) - log g(y|x); the forward distance is the noise itself.
        correction = (_squares(noise, batch) - _squares(back, batch) / step_size) / 2
        log_alpha = state.energy - proposal.energy + correction
        return _accept(state, proposal, log_alpha, generator)

    return Kernel(lambda position: _init(energy, position), step, (energy,))


def mixture(*kernels: Kernel) -> Kernel:
    """One of `kernels`, drawn anew for each step with equal chances.

    If every kernel leaves a law as it is, so does the mixture (Tierney 1994). With several step
    sizes of `mala` it walks where the landscape is wide and still moves where it is narrow. All
    kernels must take each other's states.

    Raises ValueError without a kernel.

    >>> energy, g = lambda x: x.square().sum(dim=-1) / 2, torch.Generator().manual_seed(0)
    >>> kernel = mixture(mala(energy, 0.1), mala(energy, 2.0))
    >>> ends = run_chain(kernel, torch.zeros(9000, 1), 60, g).positions[-1]
    >>> bool(abs(ends.var() - 1) < 0.06)  # N(0, 1), to four standard errors
    True
    """
    if not kernels:
        raise ValueError("give at least one kernel")
    if len(kernels) == 1:
        return kernels[0]  # which draws nothing to choose

    def step(state: State, generator: torch.Generator) -> tuple[State, Info]:
        which = torch.randint(len(kernels), (1,), generator=generator, device=generator.device)
        return kernels[int(which)].step(state, generator)

    return Kernel(kernels[0].init, step, sum((kernel.networks for kernel in kernels), ()))


def independence_mh(log_ratio: LogRatio, propose: Sample) -> Kernel:
    """Metropolis-Hastings with proposals that do not look at the state.

    With log_ratio r = log target - log proposal density, up to a constant, y is accepted with
    probability min(1, e^{r(y) - r(x)}) (Hastings 1970). The energy of a state is -r:
    its energy relative to the proposal. -inf stands for a point outside the target's support.

    >>> wide = lambda size, g: 2 * torch.randn(*size, 1, generator=g)  # N(0, 4)
    >>> log_ratio = lambda x: -3 / 8 * x.square().sum(dim=-1)  # of N(0, 1)
    >>> g, kernel = torch.Generator().manual_seed(0), independence_mh(log_ratio, wide)
    >>> ends = run_chain(kernel, torch.zeros(9000, 1), 20, g).positions[-1]
    >>> bool(abs(ends.var() - 1) < 0.06)  # to four standard errors
    True
    """

    def step(state: State, generator: torch.Generator) -> tuple[State, Info]:
        y = _propose(propose, tuple(state.energy.shape), state, generator)
        proposal = _relative(log_ratio, y)
        # A state outside the support is left at once.
        log_alpha = torch.where(state.energy.isinf(), 0.0, state.energy - proposal.energy)
        return _accept(state, proposal, log_alpha, generator)

    return Kernel(lambda position: _relative(log_ratio, _start(position)), step, (log_ratio,))


def isir(log_ratio: LogRatio, propose: Sample, n_candidates: int) -> Kernel:
    """Iterated sampling importance resampling: choose among the state and fresh proposals.

    The next state is one of `n_candidates` points, the state and n_candidates - 1 proposals, drawn
    with weights e^{r}. The target is invariant for every n_candidates >= 2 (Andrieu et al. 2018).

    >>> wide = lambda size, g: 2 * torch.randn(*size, 1, generator=g)  # N(0, 4)
    >>> log_ratio = lambda x: -3 / 8 * x.square().sum(dim=-1)  # of N(0, 1)
    >>> g, kernel = torch.Generator().manual_seed(0), isir(log_ratio, wide, 4)
    >>> ends = run_chain(kernel, torch.zeros(9000, 1), 10, g).positions[-1]
    >>> bool(abs(ends.var() - 1) < 0.06)  # to four standard errors
    True
    """
    base.check_count(2, n_candidates=n_candidates)  # the state and one proposal
    n_new = n_candidates - 1

    def step(state: State, generator: torch.Generator) -> tuple[State, Info]:
        axis = state.energy.ndim  # of the candidates
        *lead, n_chains = state.energy.shape
        # All proposals of a replicate stand on one axis, as a network of stacked replicates asks.
        fresh = _relative(log_ratio, _propose(propose, (*lead, n_chains * n_new), state, generator))

        def candidates(own: Tensor, new: Tensor) -> Tensor:
            return torch.cat([own.unsqueeze(axis), new.unflatten(axis - 1, (-1, n_new))], axis)

        positions = candidates(state.position, fresh.position)
        energies = candidates(state.energy, fresh.energy)
        # Where no candidate lies in the support all weights are nan; then each will do.
        weights = (-energies).softmax(dim=axis).nan_to_num(1.0)
        chosen = torch.multinomial(weights.flatten(0, -2), 1, generator=generator)
        chosen = chosen.view_as(weights[..., :1])
        index = _wide(chosen, positions).expand_as(state.position.unsqueeze(axis))
        position = positions.gather(axis, index).squeeze(axis)
        energy = energies.gather(axis, chosen).squeeze(axis)
        return State(position, energy, None), Info(1 - weights[..., 0], chosen.squeeze(axis) > 0)

    return Kernel(lambda position: _relative(log_ratio, _start(position)), step, (log_ratio,))


def rejection_sample(
    log_ratio: LogRatio, propose: Sample, n: int, log_bound: float, generator: torch.Generator
) -> Refined:
    """n exact samples of the target: keep a proposal x with probability e^{r(x) - log M}.

    `log_bound` = log M must be at least sup r for r = log target - log proposal, both up to
    constants. With normalised densities one proposal in M is kept (von Neumann 1951).

    Raises ValueError, with the count and the largest excess, if a log ratio exceeds the bound: what
    was kept until then has the wrong law. Raises RuntimeError if fewer than one proposal in a
    million is kept.

    >>> wide = lambda size, g: 2 * torch.randn(*size, 1, generator=g)  # N(0, 4)
    >>> log_ratio = lambda x: -3 / 8 * x.square().sum(dim=-1)  # of N(0, 1), at most 0
    >>> done = rejection_sample(log_ratio, wide, 9000, 0.0, torch.Generator().manual_seed(0))
    >>> abs(done.acceptance_rate - 1 / 2) < 0.02  # one proposal in M = 2
    True
    """
    base.check_count(n=n)
    if not math.isfinite(log_bound):
        raise ValueError(f"log_bound must be finite, got {log_bound}")
    kept, n_kept, n_tried = [], 0, 0
    while n_kept < n:
        with torch.no_grad(), base.evaluating(log_ratio):
            x = propose((_BATCH,), generator)
            r = -_relative(log_ratio, x).energy
        n_tried += _BATCH
        if exceeding := int((r > log_bound).sum()):
            found = f"{exceeding} of {_BATCH} log ratios exceed log_bound = {log_bound:g}"
            raise ValueError(f"{found}, the largest is {float(r.max()):g}; give a higher bound")
        kept.append(x[log_uniform(r, generator) < r - log_bound])
        n_kept += len(kept[-1])
        if n_kept < 1e-6 * n_tried - 10:
            raise RuntimeError(f"{n_kept} of {n_tried} kept: propose is too far from the target")
    return Refined(torch.cat(kept)[:n], None, n_kept / n_tried, base.Calls(n_tried, 0))


class LogPartition(NamedTuple):
    """An estimate of log Z in nats and its standard error, both (R,).

    >>> found = LogPartition(torch.tensor([1.5]), torch.tensor([0.25]))
    >>> found.value - 2 * found.standard_error  # the lower end of an interval of about 95 %
    tensor([1.])
    """

    value: Tensor
    standard_error: Tensor


def annealed_log_partition(
    energy: Energy,
    start: Distribution,
    n_levels: int,
    step_size: float,
    generator: torch.Generator,
    n_chains: int = 1000,
    replicates: int = 1,
) -> LogPartition:
    """log Z of an energy (R, n, d) -> (R, n) by annealed importance sampling from `start`.

    Chains start from the law p_0 of `start` and meet the bridges E_b = (1 - b) (-log p_0) + b E at
    b = 1/n_levels, ..., 1, with one MALA step in each. log w sums -(E + log p_0) / n_levels along
    the way, and Z = E w without bias; its logarithm is biased low by about half the squared error
    (Neal 2001, arXiv:physics/9803008). The standard error comes from the spread of the weights and
    is itself too low if no chain found a heavy region.

    Raises ValueError for counts below 1, fewer than 2 chains, or a start without a density.

    >>> from gan_ebm_utils.datasets import gaussian
    >>> energy, g = lambda x: x.square().sum(dim=-1) / 2, torch.Generator().manual_seed(0)
    >>> log_z = annealed_log_partition(energy, gaussian([0.0], std=2.0), 20, 0.5, g)
    >>> abs(float(log_z.value) - math.log(2 * math.pi) / 2) < 4 * float(log_z.standard_error)
    True
    """
    base.check_count(n_levels=n_levels, replicates=replicates)
    base.check_count(2, n_chains=n_chains)  # for a standard error
    if start.log_prob is None:
        raise ValueError("start has no log_prob; give a law with a density, such as gaussian(...)")

    def bridge(b: float) -> Energy:
        return lambda x: b * energy(x) - (1 - b) * start.log_prob(x)

    x = start.sample((replicates, n_chains), generator).to(base.dtype_of(energy) or torch.float32)
    # Summed on the CPU, since not every device has float64.
    log_weight = torch.zeros(replicates, n_chains, dtype=torch.float64, device="cpu")
    with base.evaluating(energy):
        for level in range(1, n_levels + 1):
            with torch.no_grad():
                log_weight -= (energy(x) + start.log_prob(x)).cpu().double() / n_levels
            if level < n_levels:
                kernel = mala(bridge(level / n_levels), step_size)
                x = run_chain(kernel, x, 1, generator).positions[0]
    value = log_weight.logsumexp(dim=1) - math.log(n_chains)
    weight = (log_weight - value[:, None]).exp()  # its mean is 1
    return LogPartition(value.to(x), (weight.std(dim=1) / math.sqrt(n_chains)).to(x))


def run_chain(
    kernel: Kernel, position: Tensor, n_steps: int, generator: torch.Generator, thin: int = 1
) -> Chain:
    """Run `n_steps` steps from `position` (*batch, *event) and keep every `thin`-th state.

    The start itself is not kept and not changed. Memory grows with n_steps / thin only.

    Raises ValueError for counts below 1, more `thin` than steps, or a position that requires a
    gradient; FloatingPointError, with the step and the number of chains, where an energy is nan;
    RuntimeError for a kernel with gradients within `torch.inference_mode`. Warns if all chains end
    where they began.

    >>> kernel = langevin(lambda x: x.square().sum(dim=-1) / 2, 0.1)
    >>> g = torch.Generator().manual_seed(0)
    >>> run_chain(kernel, torch.zeros(5, 2), n_steps=100, generator=g, thin=10).positions.shape
    torch.Size([10, 5, 2])
    """
    base.check_count(n_steps=n_steps, thin=thin)
    if thin > n_steps:
        raise ValueError(f"thin must be at most n_steps, got {thin} and {n_steps}: nothing is kept")
    step, n_kept = 0, n_steps // thin
    try:
        with base.evaluating(*kernel.networks):
            state = start = kernel.init(position)
            positions = state.position.new_empty(n_kept, *state.position.shape)
            energies = state.energy.new_empty(n_kept, *state.energy.shape)
            rate, moved = torch.zeros_like(state.energy), torch.zeros_like(state.energy)
            for step in range(1, n_steps + 1):
                state, info = kernel.step(state, generator)
                rate += info.acceptance_rate
                moved += info.is_accepted
                if step % thin == 0:
                    positions[step // thin - 1] = state.position
                    energies[step // thin - 1] = state.energy
    except FloatingPointError as error:
        raise FloatingPointError(f"step {step}: {error}") from error
    # A step or two may be refused by chance, and training makes many such short runs.
    if n_steps >= 10 and torch.equal(state.position, start.position):
        warnings.warn("all chains stand where they began: lower the step size", stacklevel=2)
    return Chain(positions, energies, rate / n_steps, moved / n_steps)


class ReplayBuffer:
    """Where persistent chains rest between updates of an energy.

    Holds `capacity` positions per replicate, (R, capacity, *event), at first from `fresh`. `draw`
    returns some of them, each replaced by a fresh one with probability `fresh_share`; `store` puts
    them back after the chain has moved them (Tieleman 2008; Du and Mordatch 2019,
    arXiv:1903.08689).

    >>> noise = lambda size, g: torch.randn(*size, 2, generator=g)
    >>> g = torch.Generator().manual_seed(0)
    >>> buffer = ReplayBuffer(noise, 100, g, fresh_share=0.0)
    >>> x = buffer.draw(20, g)
    >>> buffer.store(x + 50)
    >>> int((buffer.positions > 25).all(dim=2).sum())
    20
    """

    def __init__(
        self,
        fresh: Sample,
        capacity: int,
        generator: torch.Generator,
        replicates: int = 1,
        fresh_share: float = 0.05,
    ) -> None:
        base.check_count(capacity=capacity, replicates=replicates)
        if not 0 <= fresh_share <= 1:
            raise ValueError(f"fresh_share must lie in [0, 1], got {fresh_share}")
        self.fresh, self.fresh_share = fresh, fresh_share
        # A copy, since `store` writes into it.
        self.positions = fresh((replicates, capacity), generator).detach().clone()
        self._drawn: Tensor | None = None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n positions per replicate, (R, n, *event), each from another place of the buffer."""
        replicates, capacity = self.positions.shape[:2]
        base.check_count(n=n)
        if n > capacity:
            raise ValueError(f"n must be at most the capacity {capacity}, got {n}")
        self._drawn = torch.randperm(capacity, generator=generator, device=generator.device)[:n]
        positions = self.positions[:, self._drawn]  # indexing copies
        renewed = base.rand(replicates, n, generator=generator) < self.fresh_share
        if n_renewed := int(renewed.sum()):
            positions[renewed] = self.fresh((n_renewed,), generator)
        return positions

    def store(self, positions: Tensor) -> None:
        """Put back what was drawn last, (R, n, *event)."""
        if self._drawn is None:
            raise ValueError("nothing was drawn since the last store: call draw first")
        expected = (len(self.positions), len(self._drawn), *self.positions.shape[2:])
        base.check_shape(positions=(positions, " ".join(map(str, expected))))
        self.positions[:, self._drawn] = positions.detach()
        self._drawn = None


def log_uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """log u for uniform u, of the shape and type of `like`, but in float32 or better.

    In half precision u is 0 once in some hundred draws, in float32 once in 17 million, and its
    logarithm lies below every other number; so u is at least half the smallest step between draws.

    >>> draws = log_uniform(torch.zeros(9000).bfloat16(), torch.Generator().manual_seed(0))
    >>> draws.dtype, bool(abs(draws.mean() + 1) < 0.05)  # the mean of log u is -1
    (torch.float32, True)
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=dtype)
    return uniform.clamp_(min=torch.finfo(dtype).eps / 4).log_()


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _squares(x: Tensor, batch: int) -> Tensor:
    """The squared norm over the event's axes, those after the first `batch`."""
    return x.square().flatten(batch).sum(dim=batch)


def _start(position: Tensor) -> Tensor:
    """A copy, so that no chain shares memory with what the caller holds."""
    base.check_shape(position=(position, "chains ..."))
    base.check_samples(position=position)
    if position.requires_grad:
        raise ValueError("position requires a gradient; give position.detach()")
    return position.clone()


def _init(energy: Energy, position: Tensor) -> State:
    position = _start(position)
    if position.dtype not in (torch.float32, torch.float64):  # small steps would be lost
        raise ValueError(f"position is {position.dtype}; give it in float32 or float64")
    with base.gradients():  # once for a chain, whose steps only switch them on
        return _evaluate(energy, position)


def _evaluate(energy: Energy, position: Tensor, walls: bool = False) -> State:
    """The state at `position`; with `walls` an energy of +inf is allowed, and its gradient is 0."""
    with torch.enable_grad():
        x = position.detach().requires_grad_()
        value = energy(x)
        _check_energy(value, position, "energy")
        if not value.requires_grad:
            raise ValueError("give an energy that autograd can follow, without detach or no_grad")
        total = value.sum()
        (grad,) = torch.autograd.grad(total, x)
    value = base.at_least_float32(value.detach())
    # A sum is finite only if every term is; looking at each costs more and is rarely needed.
    if not math.isfinite(float(total.detach() + grad.sum())):
        wall = (value == math.inf) & walls
        grad = torch.where(_wide(wall, grad), 0.0, grad)
        finite = (value.isfinite() | wall) & grad.flatten(wall.ndim).isfinite().all(dim=wall.ndim)
        if bad := int((~finite).sum()):
            found = f"the energy or its gradient is not finite in {bad} of {finite.numel()} chains"
            raise FloatingPointError(f"{found}; lower the step size, confine it, or start inside")
    return State(position, value, grad)


def _propose(propose: Sample, size: tuple, state: State, generator: torch.Generator) -> Tensor:
    """Proposals (*size, *event) of the event of `state`."""
    with torch.no_grad():
        x = propose(size, generator)
    if x.shape != (shape := (*size, *state.position.shape[state.energy.ndim :])):
        raise ValueError(f"propose must return {shape} for the size {size}, got {tuple(x.shape)}")
    return x


def _relative(log_ratio: LogRatio, position: Tensor) -> State:
    """The state at `position`, whose energy is -r."""
    with torch.no_grad():
        energy = -base.at_least_float32(log_ratio(position))
    _check_energy(energy, position, "log ratio")
    if bad := int((energy.isnan() | (energy == -math.inf)).sum()):
        raise FloatingPointError(
            f"the log ratio is nan or +inf in {bad} of {energy.numel()} points; calibrate it"
        )
    return State(position, energy, None)


def _check_energy(value: Tensor, position: Tensor, name: str) -> None:
    if not 0 < value.ndim < position.ndim or value.shape != position.shape[: value.ndim]:
        found = f"for points {tuple(position.shape)} it returned {tuple(value.shape)}"
        raise ValueError(f"the {name} must be one number for each point; {found}")


def _accept(
    state: State, proposal: State, log_alpha: Tensor, generator: torch.Generator
) -> tuple[State, Info]:
    accepted = log_uniform(log_alpha, generator) < log_alpha
    # `where` takes twice as long to broadcast.
    wide = _wide(accepted, state.position).expand_as(state.position).contiguous()
    position = torch.where(wide, proposal.position, state.position)
    energy = torch.where(accepted, proposal.energy, state.energy)
    grad = None if state.grad is None else torch.where(wide, proposal.grad, state.grad)
    return State(position, energy, grad), Info(log_alpha.clamp(max=0).exp(), accepted)


def _wide(x: Tensor, like: Tensor) -> Tensor:
    """`x` (*batch) with as many axes as `like` (*batch, *event)."""
    return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))
