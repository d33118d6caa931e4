"""Train energies on four data sets of the plane, with negatives from four kinds of chains.

    python -m gan_ebm_utils.recipes.plane_ebms

writes the checkpoint `plane_ebms`: networks LAW_RULE for the laws ring, moons, swiss_roll and
checkerboard and the rules cd1, cdk, pcd and short, each ten replicates behind one leading axis, and
a card with the KL divergence of each. The stored weights are a running average. It takes about half
an hour on two CPU cores. A run that is cut off goes on after the last network that was finished.
"""

from __future__ import annotations

import argparse
import json
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
        callback=lambda step: average.update_parameters(energy),
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


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--state", **runs.STATE)
    args = runs.parse(parser, argv)
    if args.steps < 1 or args.replicates < 2:
        parser.error("--steps must be at least 1 and --replicates at least 2")

    run = runs.begin("plane_ebms", settings_of(args.steps, args.replicates), args)
    networks, scores = {}, {}
    kwargs = {**ENERGY, "replicates": args.replicates}

    def make(name: str, rule: str) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        last, energy = train(name, rule, args.steps, args.replicates, args.seed)
        found = {}
        for which, model in (("kl", energy), ("kl_of_last_weights", last)):
            values = metrics.kl_to_truth(model, law_of(name), BOX, args.replicates, N_CELLS)
            found[which] = [round(float(value), 4) for value in values]
        return energy.state_dict(), found

    for name in LAWS:
        for rule in RULES:
            key = f"{name}_{rule}"
            (state, found), seconds = run.once(key, lambda name=name, rule=rule: make(name, rule))
            energy = energy_mlp(**kwargs, generator=seeded(args.seed))
            energy.load_state_dict(state)
            networks[key] = (energy, "energy_mlp", kwargs)
            scores[key] = {**found, "seconds": round(seconds, 1)}
            print(key, json.dumps(scores[key]), flush=True)
    checkpoints.save("plane_ebms", networks, {}, run.card(scores), args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
