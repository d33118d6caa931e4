"""Samplers that refine a GAN: chains from precomputed logits, and a step of DDLS.

`make bench` runs this. It fails below 50,000 chains of 640 proposals per second, or if a step of
DDLS without its acceptance step takes more than 1/.9 of a bare loop over the same networks.
"""

import math
import sys
import time

import torch

from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.energies import latent_energy
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.samplers import independence_mh, langevin, run_chain

N_CHAINS, N_PROPOSALS, CHAIN_BAR = 50_000, 640, 50_000
N_POINTS, N_STEPS, ROUNDS, STEP_SIZE, STEP_BAR = 1000, 100, 15, 0.01, 0.9


def chains_per_second():
    """Chains whose states are rows of a table of logits, a column for each chain."""
    logits = randn(N_PROPOSALS + 1, N_CHAINS, generator=seeded(0))
    rows = iter(range(1, N_PROPOSALS + 1))
    kernel = independence_mh(
        # Proposals of one step, and the starts, stand in one row.
        log_ratio=lambda position: logits[int(position[0, 0])],
        propose=lambda size, generator: torch.full((*size, 1), float(next(rows))),
    )
    start = time.perf_counter()
    first = torch.zeros(N_CHAINS, 1)
    run_chain(kernel, first, N_PROPOSALS, seeded(2), thin=N_PROPOSALS)
    return N_CHAINS / (time.perf_counter() - start)


def new_gan():
    rng = seeded(0)
    return Gan(mlp(2, (128, 128), 2, generator=rng), mlp(2, (128, 128), generator=rng), 2)


def ours(gan, z):
    run_chain(langevin(latent_energy(gan), STEP_SIZE), z, N_STEPS, seeded(1), thin=N_STEPS)


def bare(gan, z):
    generator = seeded(1)
    for _ in range(N_STEPS):
        z = z.detach().requires_grad_()
        energy = z.square().sum(dim=-1) / 2 - gan.discriminator(gan.generator(z))
        (grad,) = torch.autograd.grad(energy.sum(), z)
        noise = torch.randn(z.shape, generator=generator)
        z = z - STEP_SIZE / 2 * grad + math.sqrt(STEP_SIZE) * noise


def ddls_speed():
    """Steps per second of both, the best of interleaved rounds."""
    gan, best = new_gan(), {ours: math.inf, bare: math.inf}
    for _ in range(ROUNDS):
        for function in best:
            z = randn(1, N_POINTS, 2, generator=seeded(2))
            start = time.perf_counter()
            function(gan, z)
            best[function] = min(best[function], time.perf_counter() - start)
    return [N_STEPS / best[function] for function in (ours, bare)]


def main():
    chains = max(chains_per_second() for _ in range(3))
    print(f"{chains:,.0f} chains of {N_PROPOSALS} proposals per second from precomputed logits")
    mine, loop = ddls_speed()
    print(f"DDLS: {mine:.0f} steps/s, a bare loop {loop:.0f}: {mine / loop:.2f}")
    sys.exit(chains < CHAIN_BAR or mine < STEP_BAR * loop)


if __name__ == "__main__":
    main()
