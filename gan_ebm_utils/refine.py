"""Samplers that improve a trained GAN's samples with its discriminator.

Each is called as sampler(gan, n, generator, replicates=R, ...) and returns `Refined`: n samples per
replicate, their latents, the acceptance rate and the rows that passed through both networks. The
logit of `gan.discriminator` stands for log(p_d / p_g): give a calibrated or refitted one by
`gan._replace(discriminator=...)`. Both networks run in evaluation mode and are given back as they
were; latents have the type of their weights, float32 or float64.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils import base, samplers
from gan_ebm_utils.base import Calls, Energy, Gan, Kernel, Refined, State
from gan_ebm_utils.energies import dot_energy, flow_energy, latent_energy


def drs(
    gan: Gan,
    n: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    log_bound: float | None = None,
    percentile: float | None = None,
    budget: float | None = None,
    n_pilot: int = 10_000,
    max_proposals: int | None = None,
    batch_size: int = 2_000,
) -> Refined:
    """Discriminator rejection sampling: keep x = G(z) with probability r / (r + e^gamma (M - r)).

    r = e^{d(x)}, and M = e^{log_bound}, by default the largest r of `n_pilot` draws. A proposal
    beyond M raises it, and what was kept before is thinned to what the new M would have kept.
    gamma = 0 is rejection sampling, r / M. `percentile` = c sets gamma to the c-th percentile of
    log r / (M - r) among the pilot's draws: more is kept, and the law is not exact (Azadi et al.
    2018, arXiv:1810.06758). `budget` = B is another rule, min(1, c r / M) with c >= 1
    such that one in B of the pilot's draws is kept; at that budget it is the best for every
    f-divergence (Verine et al. 2024, arXiv:2311.00460). Azadi et al. first train the discriminator
    further while the generator stays fixed, as `training.refit_discriminator` does.

    Samples are (R, n, *event); the calls include the pilot's. `max_proposals` of a replicate are by
    default 1,000 for each sample, or ten times the budget if that is more, and at least a million.

    Raises ValueError for both options at once, a percentile outside (0, 100), a budget below 1, or
    `max_proposals` below n; RuntimeError as soon as a replicate is too slow to keep n of them.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, _, _, log_bound = exact_gan()
    >>> refined = drs(gan, 5000, torch.Generator().manual_seed(0), log_bound=log_bound)
    >>> refined.samples.shape, round(float(refined.acceptance_rate) * math.exp(log_bound), 1)
    (torch.Size([1, 5000, 2]), 1.0)
    """
    base.check_count(n=n, n_pilot=n_pilot, batch_size=batch_size)
    if percentile is not None and budget is not None:
        raise ValueError("give percentile or budget, not both: each sets the rule of acceptance")
    if percentile is not None and not 0 < percentile < 100:
        raise ValueError(f"percentile must lie in (0, 100), as 80 for 80 %, got {percentile}")
    if budget is not None and not 1 <= budget < math.inf:
        raise ValueError(f"budget must be finite and at least 1 proposal a sample, got {budget}")
    if log_bound is not None and not math.isfinite(log_bound):
        raise ValueError(f"log_bound must be finite, got {log_bound}")
    if max_proposals is None:
        max_proposals = max(1_000_000, math.ceil(n * max(1000, 10 * (budget or 0))))
    base.check_count(n, max_proposals=max_proposals)  # each sample takes one
    with _counting(gan) as calls, torch.no_grad():
        z, d = base.check_gan(gan, replicates, generator, depth=3)
        if log_bound is None or percentile is not None or budget is not None:
            parts = [min(batch_size, n_pilot - i) for i in range(0, n_pilot, batch_size)]
            d = torch.cat([_propose(gan, (replicates, m), generator)[1] for m in parts], dim=1)
        rule = _rule(d, log_bound, percentile, budget)
        every = torch.arange(replicates, device=d.device)[:, None]
        kept, n_tried = _Kept(every[:0, 0], z.new_empty(0, gan.latent_dim), d.new_empty(0)), 0
        while (least := int((n_kept := kept.row.bincount(minlength=replicates)).min())) < n:
            m = min(batch_size, max_proposals - n_tried)
            # Five standard deviations behind the pace that would reach n, and ten for small counts.
            if not m or least + 5 * math.sqrt(least) + 10 < n * n_tried / max_proposals:
                found = f"a replicate kept {least} of {n_tried} proposals, too few to reach n = {n}"
                line = f"with {max_proposals}; raise max_proposals, or set percentile or budget"
                raise RuntimeError(f"{found} {line}")
            z, d = _propose(gan, (replicates, m), generator)
            n_tried += m
            rule, kept = _raised(rule, kept, d, generator)
            new = samplers.log_uniform(d, generator) < rule.log_accept(d, every)
            more = _Kept(every.expand_as(new)[new], z[new], d[new])
            kept = _Kept(*map(torch.cat, zip(kept, more, strict=True)))
        latents = torch.stack([kept.latents[kept.row == r][:n] for r in range(replicates)])
        parts = [gan.generator(part) for part in latents.split(batch_size, dim=1)]
        samples = torch.cat(parts, dim=1)
    return Refined(samples, latents, n_kept / n_tried, calls())


class _Rule(NamedTuple):
    """Keeps r = e^d with probability r / (r + e^gamma (M - r)), or min(1, r e^scale); all (R,)."""

    bound: Tensor  # log M
    gamma: Tensor
    scale: Tensor | None

    def log_accept(self, d: Tensor, row: Tensor) -> Tensor:
        """Of logits d in the replicates `row`, which broadcasts with them."""
        if self.scale is not None:
            return (d + self.scale[row]).clamp(max=0)
        return -F.softplus(self.gamma[row] + _log_gap(d, self.bound[row]))


class _Kept(NamedTuple):
    """What was kept, in the order of the proposals: its replicate, latent and logit."""

    row: Tensor
    latents: Tensor
    logits: Tensor


def _propose(gan: Gan, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents of the prior and their logits."""
    z = gan.prior(size, generator)
    d = base.at_least_float32(gan.logit(z))
    base.check_logits(d)
    return z, d


def _rule(
    pilot: Tensor, log_bound: float | None, percentile: float | None, budget: float | None
) -> _Rule:
    """The rule that the logits (R, n) of a pilot set, of which a given bound alone needs none."""
    bound = pilot.amax(dim=1) if log_bound is None else pilot.new_full(pilot.shape[:1], log_bound)
    gamma = torch.zeros_like(bound)
    if percentile is not None:
        gap, level = _log_gap(pilot, bound[:, None]), 1 - percentile / 100
        gamma = -gap.quantile(level, dim=1, interpolation="nearest")
    return _Rule(bound, gamma, None if budget is None else _log_scale(pilot, bound, budget))


def _raised(rule: _Rule, kept: _Kept, d: Tensor, generator: torch.Generator) -> tuple[_Rule, _Kept]:
    """The rule with a bound that no logit of d (R, n) exceeds, and what it would have kept."""
    bound = torch.maximum(rule.bound, d.amax(dim=1))
    if rule.scale is not None or not (bound > rule.bound).any():
        return rule, kept
    higher = rule._replace(bound=bound)
    thinner = higher.log_accept(kept.logits, kept.row) - rule.log_accept(kept.logits, kept.row)
    stay = samplers.log_uniform(thinner, generator) < thinner
    return higher, _Kept(*(part[stay] for part in kept))


def mh_gan(
    gan: Gan,
    n: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    n_steps: int = 640,
    data: Tensor | None = None,
) -> Refined:
    """The last states of n independence Metropolis-Hastings chains with proposals G(z).

    A proposal y replaces x with probability min(1, e^{d(y) - d(x)}), which is
    min(1, (1/D(x) - 1) / (1/D(y) - 1)); each chain makes `n_steps` proposals and gives one sample.
    Chains start at a draw of the generator, or at `data` (R, n, *event), held-out real samples; a
    chain that never left its real sample is run anew from a draw of the generator (Turner et al.
    2018, arXiv:1811.11357).

    Raises ValueError for `data` that are not one start for each chain.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, g = exact_gan().gan, torch.Generator().manual_seed(0)
    >>> refined = mh_gan(gan, 1000, g, n_steps=30)
    >>> bool(gan.discriminator(refined.samples).mean() > gan.logit(gan.prior((1, 1000), g)).mean())
    True
    """
    base.check_count(n=n, n_steps=n_steps)
    kernel = first = samplers.independence_mh(gan.logit, gan.prior)
    with _counting(gan) as calls, torch.no_grad():
        base.check_gan(gan, replicates, generator, depth=3)
        z = gan.prior((replicates, n), generator)
        if data is not None:
            first = kernel._replace(init=_start_at(gan, data, (replicates, n)))
        chain = samplers.run_chain(first, z, n_steps, generator, thin=n_steps)
        z, moved = chain.positions[-1], chain.accepted_share > 0
        if data is not None and not moved.all():
            # As many chains in each replicate as the one with the most stuck chains needs.
            n_stuck = (~moved).sum(dim=1, keepdim=True)
            start = gan.prior((replicates, int(n_stuck.max())), generator)
            fresh = samplers.run_chain(kernel, start, n_steps, generator, thin=n_steps).positions
            z[~moved] = fresh[-1, torch.arange(start.shape[1], device=z.device) < n_stuck]
        samples = gan.generator(z)
    return Refined(samples, z, chain.acceptance_rate.mean(dim=1), calls())


def isir_gan(
    gan: Gan,
    n: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    n_candidates: int = 10,
    n_steps: int = 64,
) -> Refined:
    """The last states of n chains that choose among their state and fresh draws of the generator.

    Each of `n_steps` steps draws n_candidates - 1 new latents and takes one of all candidates with
    weights e^d (Andrieu et al. 2018; on GANs Samsonov et al. 2022, arXiv:2111.02702). The
    acceptance rate is the share of steps that leave the state.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, g = exact_gan().gan, torch.Generator().manual_seed(0)
    >>> refined = isir_gan(gan, 1000, g, n_steps=10)
    >>> bool(gan.discriminator(refined.samples).mean() > gan.logit(gan.prior((1, 1000), g)).mean())
    True
    """
    kernel = samplers.isir(gan.logit, gan.prior, n_candidates)
    return _run(gan, kernel, n, generator, replicates, n_steps)


def ddls(
    gan: Gan,
    n: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    step_size: float | Sequence[float] = 0.01,
    n_steps: int = 1000,
    kernel: Callable[[Energy, float], Kernel] = samplers.mala,
    energy: Callable[[Gan], Energy] = latent_energy,
) -> Refined:
    """Discriminator-driven latent sampling: G of the last states of n Langevin chains on E(z).

    E(z) = |z|^2/2 - d(G(z)), whose pushforward is p_g e^d / Z (Che et al. 2020,
    arXiv:2003.06060); chains start at the prior. With several step sizes
    each step takes one of them at random. `kernel` = `langevin` leaves out the acceptance step, as
    the paper does; `energy` = `partial(latent_energy, temperature=T)` is for a critic.

    Raises FloatingPointError, with the step, where an energy or its gradient is not finite.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, g = exact_gan().gan, torch.Generator().manual_seed(0)
    >>> refined = ddls(gan, 100, g, replicates=2, step_size=0.1, n_steps=9)
    >>> refined.samples.shape, refined.calls.backward  # 200 chains, 2 networks, start and steps
    (torch.Size([2, 100, 2]), 4000)
    """
    kernels = (kernel(energy(gan), size) for size in np.atleast_1d(step_size).tolist())
    mixed = samplers.mixture(*kernels)
    return _run(gan, mixed, n, generator, replicates, n_steps)


def dgflow(
    gan: Gan,
    n: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    divergence: str = "KL",
    step_size: float = 0.2,
    temperature: float = 0.01,
    n_steps: int = 25,
) -> Refined:
    """Discriminator gradient flow: n latents move along -grad of `flow_energy`, with noise.

    z <- z - (eps/2) grad E(z) + sqrt(eps T) noise, from the prior; in the paper's letters
    eps = 2 eta and T = gamma, and eta = .1, gamma = .01 (Ansari et al. 2021, arXiv:2012.00780,
    algorithm 1). The ratio in E is that of the unmoved generator. Nothing is ever refused.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, g = exact_gan().gan, torch.Generator().manual_seed(0)
    >>> refined = dgflow(gan, 1000, g)
    >>> bool(gan.discriminator(refined.samples).mean() > gan.logit(gan.prior((1, 1000), g)).mean())
    True
    """
    kernel = samplers.langevin(flow_energy(gan, divergence), step_size, temperature)
    return _run(gan, kernel, n, generator, replicates, n_steps)


def dot(
    gan: Gan,
    n: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    k: float | Tensor | None = None,
    space: str = "latent",
    tangent: bool = False,
    learning_rate: float = 0.01,
    n_steps: int = 100,
) -> Refined:
    """Discriminator optimal transport: descend |z - z_0| - d(G(z))/k from draws z_0 of the prior.

    With `space` = "data" the points x themselves descend |x - x_0| - d(x)/k and have no latents. k
    defaults to `lipschitz_estimate` in that space, one for each replicate. `n_steps` of Adam with
    betas (0, .9) move each point on its own (Tanaka 2019, arXiv:1910.06832, algorithms 1 and 2).
    `tangent` takes the part s - (s . z) z / |z|^2 of each latent's step s, which neither leaves nor
    nears the origin; it is taken of the step, since Adam turns a gradient. Nothing is ever refused.

    Raises ValueError for another space, or `tangent` in the data space.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, g = exact_gan().gan, torch.Generator().manual_seed(0)
    >>> refined = dot(gan, 1000, g, space="data", n_steps=20)
    >>> bool(gan.discriminator(refined.samples).mean() > gan.logit(gan.prior((1, 1000), g)).mean())
    True
    """
    base.check_count(n=n, n_steps=n_steps)
    base.check_positive(learning_rate=learning_rate)
    _check_space(space)
    if tangent and space == "data":
        raise ValueError('tangent is for latents, whose prior lives near a sphere; use "latent"')
    with _counting(gan) as calls, base.gradients():
        base.check_gan(gan, replicates, generator, depth=3)
        start, mover = gan.prior((replicates, n), generator), gan
        if space == "data":
            with torch.no_grad():
                start = base.at_least_float32(gan.generator(start))
            mover = Gan(nn.Identity(), gan.discriminator, math.prod(start.shape[2:]))
        if k is None:
            k = lipschitz_estimate(gan, generator, replicates=replicates, space=space)[:, None]
        energy, point = dot_energy(mover, start, k), start.clone().requires_grad_()
        optimizer = torch.optim.Adam([point], lr=learning_rate, betas=(0.0, 0.9))
        for step in range(n_steps):
            (point.grad,) = torch.autograd.grad(energy(point).sum(), point)
            if not point.grad.isfinite().all():
                raise FloatingPointError(f"step {step}: the gradient is not finite; check d and k")
            before = point.detach().clone()
            optimizer.step()
            if tangent:
                radius = F.normalize(before, dim=2)
                point.data -= ((point.data - before) * radius).sum(dim=2, keepdim=True) * radius
        point = point.detach()
        with torch.no_grad():
            samples = mover.generator(point)
    return Refined(samples, point if space == "latent" else None, None, calls())


def lipschitz_estimate(
    gan: Gan,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    space: str = "latent",
    n_pairs: int = 100,
    n_draws: int = 10,
) -> Tensor:
    """Mean over `n_draws` of the largest of `n_pairs` slopes |d(x) - d(y)| / |x - y|, (R,).

    x and y are draws of the generator; in the "latent" space the distance is that of their latents.
    An estimate of the Lipschitz constant from below (Tanaka 2019, arXiv:1910.06832). Two draws that
    are one point have no slope and are left out.

    Raises ValueError for another space.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, g = exact_gan().gan, torch.Generator().manual_seed(0)
    >>> lipschitz_estimate(gan, g, replicates=2).shape
    torch.Size([2])
    """
    base.check_count(replicates=replicates, n_pairs=n_pairs, n_draws=n_draws)
    _check_space(space)
    with torch.no_grad(), base.evaluating(gan.generator, gan.discriminator):
        z = gan.prior((replicates, 2 * n_draws * n_pairs), generator)
        x = gan.generator(z)
        d = base.at_least_float32(gan.discriminator(x))
        points = base.at_least_float32(z if space == "latent" else x.flatten(2))
        rise = (d[:, ::2] - d[:, 1::2]).abs()
        run = (points[:, ::2] - points[:, 1::2]).norm(dim=2)
        slope = torch.where(run > 0, rise / run, 0.0)
    return slope.reshape(replicates, n_draws, n_pairs).amax(dim=2).mean(dim=1)


def _check_space(space: str) -> None:
    if space not in ("latent", "data"):
        raise ValueError(f'space must be "latent" or "data", got {space!r}')


@contextlib.contextmanager
def _counting(gan: Gan) -> Iterator[Callable[[], Calls]]:
    """Both networks in evaluation mode, and their calls."""
    base.check_modules(generator=gan.generator, discriminator=gan.discriminator)
    with base.evaluating(*gan[:2]), base.count_calls(*gan[:2]) as calls:
        yield calls


def _run(
    gan: Gan, kernel: Kernel, n: int, generator: torch.Generator, replicates: int, n_steps: int
) -> Refined:
    """The generator's samples at the last states of n chains from the prior."""
    base.check_count(n=n, n_steps=n_steps)
    with _counting(gan) as calls:
        base.check_gan(gan, replicates, generator, depth=4)
        start = gan.prior((replicates, n), generator)
        chain = samplers.run_chain(kernel, start, n_steps, generator, thin=n_steps)
        latents = chain.positions[-1]
        with torch.no_grad():
            samples = gan.generator(latents)
    return Refined(samples, latents, chain.acceptance_rate.mean(dim=1), calls())


def _start_at(gan: Gan, data: Tensor, size: tuple[int, int]) -> Callable[[Tensor], State]:
    """A chain's first state whose energy is that of a real sample, which has no latent."""
    base.check_shape(data=(data, f"{size[0]} {size[1]} ..."))
    base.check_samples(data=data)
    data = data.to(base.dtype_of(gan.discriminator) or data.dtype)
    d = base.at_least_float32(gan.discriminator(data))
    base.check_logits(d)
    return lambda z: State(z.clone(), -d, None)


def _log_gap(d: Tensor, bound: Tensor) -> Tensor:
    """log(M/r - 1) for log r = d <= log M = bound, -inf at the bound."""
    excess = (bound - d).clamp(min=0)
    return excess + torch.log1p(-torch.exp(-excess))


def _log_scale(pilot: Tensor, bound: Tensor, budget: float) -> Tensor:
    """log(c/M) per replicate, (R,), such that min(1, c r/M) has the mean 1/budget, and c >= 1."""
    low, high = -bound, -pilot.amin(dim=1)
    for _ in range(60):
        middle = (low + high) / 2
        rate = (pilot + middle[:, None]).clamp(max=0).exp().mean(dim=1)
        low = torch.where(rate < 1 / budget, middle, low)
        high = torch.where(rate < 1 / budget, high, middle)
    return low
