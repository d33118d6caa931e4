"""Train ten GANs on the 25 Gaussians with R1, and ten without it.

    python -m gan_ebm_utils.recipes.gaussians25_r1

writes the checkpoint `gaussians25_r1`: `generator` and `discriminator` trained with R1,
`generator_without_r1` and `discriminator_without_r1` trained without, each ten replicates behind
one leading axis, and a card. It takes some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.training import train_gan

STD = 0.05
DISCRIMINATOR = {"in_features": 2, "hidden": [128, 128, 128], "activation": "ReLU"}
GENERATOR = {**DISCRIMINATOR, "out_features": 2}
TRAINING = {"batch_size": 256, "learning_rate": 1e-3, "betas": [0.5, 0.99]}
GAMMA = 0.1
N_SAMPLES = 10_000  # per replicate, for the scores on the card
N_EMD = 1000
N_STD = 4  # a sample within so many standard deviations of a mode is one of its


def train(gamma: float, steps: int, replicates: int, seed: int) -> Gan:
    """`replicates` GANs with the non-saturating loss and the penalty gamma/2 E |grad d|^2."""
    generator = seeded(seed)
    gan = Gan(
        mlp(**GENERATOR, replicates=replicates, generator=generator),
        mlp(**DISCRIMINATOR, replicates=replicates, generator=generator),
        GENERATOR["in_features"],
    )

    def penalty(
        discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
    ) -> Tensor:
        return gamma / 2 * losses.r1_penalty(discriminator, real)

    train_gan(
        gan,
        gaussian_grid(std=STD).sample,
        losses.gan_d_loss,
        losses.non_saturating_g_loss,
        steps,
        generator,
        replicates=replicates,
        penalty=penalty if gamma else None,
        **TRAINING,
    )
    return gan


def score(gan: Gan, replicates: int, seed: int) -> dict[str, Any]:
    """Mean and 95 % interval over replicates of each score, and of the floor of the EMD."""
    generator, law = seeded(seed), gaussian_grid(std=STD)
    with torch.no_grad():
        x = gan.generator(randn(replicates, N_SAMPLES, gan.latent_dim, generator=generator))
    scores = metrics.mode_report(x, law.means, STD, n_std=N_STD)._asdict()
    scores["emd"] = metrics.emd(x[:, :N_EMD], law.sample((replicates, N_EMD), generator))
    scores["emd_floor"] = metrics.emd_floor(law.sample, N_EMD, generator, replicates)
    return {
        name: list(metrics.mean_interval(values)[:3]) if values.isfinite().all() else None
        for name, values in scores.items()
    }


def settings_of(steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the networks and their scores depend on, but for the seed."""
    return {
        **TRAINING,
        "gamma": GAMMA,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "std": STD,
        "steps": steps,
        "replicates": replicates,
        "n_samples": N_SAMPLES,
        "n_emd": N_EMD,
        "n_std": N_STD,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--replicates", type=int, default=10)
    args = runs.parse(parser, argv)
    if args.steps < 1 or args.replicates < 2:
        parser.error("--steps must be at least 1 and --replicates at least 2")

    networks, scores, start = {}, {}, time.perf_counter()
    for suffix, gamma in (("", GAMMA), ("_without_r1", 0.0)):
        gan = train(gamma, args.steps, args.replicates, args.seed)
        # Half the digits are enough; the scores are those of what is stored.
        for network in gan[:2]:
            network.half().float()
        scores[f"gamma {gamma}"] = score(gan, args.replicates, args.seed + 1)
        for part, network, kwargs in (
            ("generator", gan.generator, GENERATOR),
            ("discriminator", gan.discriminator, DISCRIMINATOR),
        ):
            kwargs = {**kwargs, "replicates": args.replicates}
            networks[part + suffix] = (network.half(), "mlp", kwargs)
    metrics = {**scores, "seconds": round(time.perf_counter() - start, 1)}
    run = runs.begin("gaussians25_r1", settings_of(args.steps, args.replicates), args)
    checkpoints.save("gaussians25_r1", networks, {}, run.card(metrics), args.out)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
