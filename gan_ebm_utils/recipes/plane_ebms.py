"""Train energies on four data sets of the plane, with negatives from four kinds of chains.

    python -m gan_ebm_utils.recipes.plane_ebms

writes the checkpoint `plane_ebms`: networks LAW_RULE for the laws ring, moons, swiss_roll and
checkerboard and the rules cd1, cdk, pcd and short, each ten replicates behind one leading axis, and
a card with the KL divergence of each. The stored weights are a running average, in half precision;
the KL is that of what is stored. It takes about half an hour on two CPU cores. A run that is cut
off goes on after the last network that was finished.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gan_ebm_utils import checkpoints, datasets, metrics, runs
from gan_ebm_utils.base import Distribution, randn, seeded
from gan_ebm_utils.networks import energy_mlp
from gan_ebm_utils.samplers import ReplayBuffer, mala
from gan_ebm_utils.training import Negatives, contrastive, persistent, short_run, train_ebm

LAWS = ("ring", "moons", "swiss_roll", "checkerboard")
RULES = ("cd1", "cdk", "pcd", "short")
ENERGY = {"in_features": 2, "hidden": [64, 64], "fourier": [8, 1.0], "scale": 1.0}
TRAINING = {"batch_size": 200, "learning_rate": 5e-3, "betas": [0.5, 0.99], "alpha": 0.01}
K = 10  # steps of a chain for each update; CD-1 takes one
# MALA accepts about half of its proposals where the step is near the square of the narrowest width.
STEP_SIZES = {"ring": 0.02, "moons": 0.009, "swiss_roll": 0.001, "checkerboard": 0.02}
NOISE = 2.0  # standard deviation of the points from which short runs start
BUFFER = {"capacity": 2000, "fresh_share": 0.05}
AVERAGE = 0.99  # the decay of the running average of the weights
# Of the quadrature: a box of +-4 hid modes of the model at |x| = 5 (with a scale of
# 2), and the cells are narrower than the Swiss roll.
BOX, N_CELLS = (-8.0, 8.0, -8.0, 8.0), 600


def law_of(name: str) -> Distribution:
    return datasets.gaussian_ring() if name == "ring" else getattr(datasets, name)()


def noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return NOISE * randn(*size, 2, generator=generator)


def negatives_of(
    name: str, rule: str, energy: nn.Module, generator: torch.Generator, replicates: int
) -> Negatives:
    """Chains of `rule`. Persistent ones begin, and are renewed, at the data."""
    kernel = mala(energy, STEP_SIZES[name])
    if rule == "pcd":
        fresh = law_of(name).sample
        buffer = ReplayBuffer(fresh, generator=generator, replicates=replicates, **BUFFER)
        return persistent(kernel, K, buffer)
    if rule == "short":
        return short_run(kernel, K, noise)
    return contrastive(kernel, 1 if rule == "cd1" else K)


def train(
    name: str, rule: str, steps: int, replicates: int, seed: int
) -> tuple[nn.Module, nn.Module]:
    """Energies after `steps` updates: the last weights, and their running average."""
    generator = seeded(seed)
    energy = energy_mlp(**ENERGY, replicates=replicates, generator=generator)
    average = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    train_ebm(
        energy,
        law_of(name).sample,
        negatives_of(name, rule, energy, generator, replicates),
        steps,
        generator,
        replicates=replicates,
        callback=lambda step, history: average.update_parameters(energy),
        **TRAINING,
    )
    return energy, average.module


def settings_of(steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the networks and their scores depend on, but for the seed."""
    return {
        "laws": LAWS,
        "rules": RULES,
        "energy": ENERGY,
        **TRAINING,
        "k": K,
        "step_sizes": STEP_SIZES,
        "noise": NOISE,
        **BUFFER,
        "average": AVERAGE,
        "box": BOX,
        "n_cells": N_CELLS,
        "steps": steps,
        "replicates": replicates,
    }


def kl(name: str, energy: nn.Module, replicates: int) -> list[float]:
    """KL(p || p_E) of each replicate, in nats."""
    values = metrics.kl_to_truth(energy, law_of(name), BOX, replicates, N_CELLS)
    return [round(float(value), 4) for value in values]


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=runs.at_least(1), default=4000)
    parser.add_argument("--replicates", type=runs.at_least(2), default=10)
    args = runs.parse(parser, argv)
    kwargs = {**ENERGY, "replicates": args.replicates}
    keys = {f"{name}_{rule}": (name, rule) for name in LAWS for rule in RULES}
    # The time of a network is that of its chains; a KL takes as long as 500 updates.
    sizes = {key: args.steps * (1 if rule == "cd1" else 2) for key, (_, rule) in keys.items()}
    settings = settings_of(args.steps, args.replicates)
    run = runs.Run("plane_ebms", settings, args, runs.Progress())
    run.expect({**sizes, **{f"{key}, KL": 500 for key in keys}})

    def make(name: str, rule: str) -> tuple[dict[str, Tensor], list[float]]:
        last, energy = train(name, rule, args.steps, args.replicates, args.seed)
        return energy.state_dict(), kl(name, last, args.replicates)

    networks, scores = {}, {}
    for key, (name, rule) in keys.items():
        (state, of_last), seconds = run.once(key, lambda how=(name, rule): make(*how))
        energy = energy_mlp(**kwargs, generator=seeded(args.seed))
        energy.load_state_dict(state)
        energy.half().float()  # half the digits are enough; the KL is that of what is stored
        of_stored = run.once(f"{key}, KL", lambda how=(name, energy): kl(*how, args.replicates))[0]
        networks[key] = (energy.half(), energy_mlp, kwargs)
        scores[key] = {
            "kl": of_stored,
            "kl_of_last_weights": of_last,
            "seconds": round(seconds, 1),
        }
    checkpoints.save("plane_ebms", networks, {}, run.card(scores), args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
