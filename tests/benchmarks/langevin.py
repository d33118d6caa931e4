"""Langevin chains: speed against a bare loop and a public library, and what cost grows with.

`make bench` runs this on a 2-128-128-1 SiLU energy. It fails if `langevin` is slower than .95 of a
bare loop over `autograd.grad`, or slower than torchebm's LangevinDynamics where that is installed
(`pip install torchebm`, which nothing else here needs).
"""

import math
import resource
import sys
import time

import torch

from gan_ebm_utils.base import randn, seeded
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.samplers import langevin, run_chain

try:
    import torchebm.core
    import torchebm.samplers
except ImportError:
    torchebm = None

N_CHAINS, N_STEPS, ROUNDS, STEP_SIZE = 1000, 200, 15, 0.01


def new_energy():
    return mlp(2, (128, 128), generator=seeded(0))


def ours(energy, x, n_steps):
    run_chain(langevin(energy, STEP_SIZE), x, n_steps, seeded(1), thin=n_steps)


def bare(energy, x, n_steps):
    generator = seeded(1)
    for _ in range(n_steps):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        x = x - STEP_SIZE / 2 * grad + math.sqrt(STEP_SIZE) * noise


def theirs(energy, x, n_steps):
    class Model(torchebm.core.BaseModel):
        def forward(self, points):
            return energy(points[None])[0]

    sampler = torchebm.samplers.LangevinDynamics(
        model=Model(), step_size=STEP_SIZE / 2, noise_scale=1.0
    )
    sampler.sample(x=x[0], n_steps=n_steps)


def seconds(function, energy, n_chains=N_CHAINS, n_steps=N_STEPS):
    x = randn(1, n_chains, 2, generator=seeded(2))
    start = time.perf_counter()
    function(energy, x, n_steps)
    return time.perf_counter() - start


def speed():
    """Steps per second of each, the best of interleaved rounds."""
    methods = {"bare loop": bare, "langevin": ours} | ({"torchebm": theirs} if torchebm else {})
    energy = new_energy()
    best = dict.fromkeys(methods, math.inf)
    for _ in range(ROUNDS):
        for name, function in methods.items():
            best[name] = min(best[name], seconds(function, energy))
    return {name: N_STEPS / value for name, value in best.items()}


def growth():
    """Print the cost per step and chain over three decades, and the memory of long chains."""
    energy = new_energy()
    for n_chains in (100, 1_000, 10_000, 100_000):
        value = min(seconds(ours, energy, n_chains, 20) for _ in range(3)) / (20 * n_chains)
        print(f"{n_chains:7} chains, 20 steps: {1e6 * value:6.2f} us per step and chain")
    for n_steps in (10, 100, 1_000, 10_000):
        value = seconds(ours, energy, 100, n_steps) / n_steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{n_steps:7} steps, 100 chains: {1e6 * value:6.0f} us per step, peak {peak:.0f} MiB")


def main():
    rates = speed()
    for name, rate in rates.items():
        print(f"{name:10} {rate:6.0f} steps/s, {rate / rates['bare loop']:4.2f} of the bare loop")
    missed = rates["langevin"] < 0.95 * rates["bare loop"]
    if "torchebm" in rates:
        missed |= rates["langevin"] < rates["torchebm"]
    else:
        print("torchebm is not installed: no comparison with it")
    growth()
    sys.exit(missed)


if __name__ == "__main__":
    main()
