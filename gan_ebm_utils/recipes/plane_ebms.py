"""Train energies on four data sets of the plane, with negatives from four kinds of chains.

    python -m gan_ebm_utils.recipes.plane_ebms

writes the checkpoint `plane_ebms`: networks LAW_RULE for the laws ring, moons, swiss_roll and
checkerboard and the rules cd1, cdk, pcd and short, each ten replicates behind one leading axis, and
a card with the KL divergence of each. The stored weights are a running average. Finished networks
rest in a folder of the system's temporary files, so a run that is cut off starts where it ended. It
takes about half an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gan_ebm_utils import checkpoints, datasets, metrics
from gan_ebm_utils.base import Distribution, default_device, randn, seeded
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
BUFFER = {"capacity": 2000, "fresh_share": 0.05}
AVERAGE = 0.99  # the decay of the running average of the weights
# Of the quadrature: a box of +-4 hid modes of the model at |x| = 5 (with a scale of
# 2), and the cells are narrower than the Swiss roll.
BOX, N_CELLS = (-8.0, 8.0, -8.0, 8.0), 600


def law_of(name: str) -> Distribution:
    return datasets.gaussian_ring() if name == "ring" else getattr(datasets, name)()


def noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * randn(*size, 2, generator=generator)


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


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: the package's checkpoints)")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.replicates < 2:
        parser.error("--steps must be at least 1 and --replicates at least 2")

    settings = {
        "energy": ENERGY,
        **TRAINING,
        "k": K,
        "step_sizes": STEP_SIZES,
        **BUFFER,
        "average": AVERAGE,
        "steps": args.steps,
        "replicates": args.replicates,
    }
    networks, scores = {}, {}
    kwargs = {**ENERGY, "replicates": args.replicates}
    for name in LAWS:
        law = law_of(name)
        for rule in RULES:
            key = f"{name}_{rule}"
            finished = _resting_place(key, settings | {"seed": args.seed})
            if finished.exists():
                state, scores[key] = torch.load(finished, weights_only=True)
                energy = energy_mlp(**kwargs, generator=seeded(args.seed))
                energy.load_state_dict(state)
            else:
                start = time.perf_counter()
                last, energy = train(name, rule, args.steps, args.replicates, args.seed)
                scores[key] = {
                    which: [
                        round(float(value), 4)
                        for value in metrics.kl_to_truth(model, law, BOX, args.replicates, N_CELLS)
                    ]
                    for which, model in (("kl", energy), ("kl_of_last_weights", last))
                } | {"seconds": round(time.perf_counter() - start, 1)}
                part = finished.with_suffix(f".partial-{os.getpid()}")
                torch.save((energy.state_dict(), scores[key]), part)
                os.replace(part, finished)
            networks[key] = (energy, "energy_mlp", kwargs)
            print(key, json.dumps(scores[key]), flush=True)
    card = {
        "recipe": "plane_ebms",
        "settings": settings,
        "seed": args.seed,
        "metrics": scores,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": default_device().type,
        "threads": torch.get_num_threads(),
    }
    checkpoints.save("plane_ebms", networks, {}, card, args.out)


def _resting_place(key: str, settings: dict[str, Any]) -> Path:
    """The file of a finished network; another setting has another folder."""
    text = json.dumps(settings, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"plane_ebms-{digest}"
    folder.mkdir(exist_ok=True)
    return folder / f"{key}.pt"


if __name__ == "__main__":
    main()
