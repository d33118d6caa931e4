"""Train ten GANs on the Swiss roll and ten WGANs on the 25 Gaussians, and refit discriminators.

    python -m gan_ebm_utils.recipes.plane_gans

writes the checkpoints `swiss_roll_gan` (non-saturating loss, R1) and `gaussians25_wgan`
(Wasserstein loss, gradient penalty, five steps of the critic to one of the generator). Each holds
`generator`, `discriminator` and `discriminator_refitted`, ten replicates behind one leading axis,
and a card. It takes about an hour on two CPU cores; a checkpoint that is there with the same
settings is kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from gan_ebm_utils import checkpoints, losses, metrics
from gan_ebm_utils.base import Distribution, Gan, default_device, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid, swiss_roll
from gan_ebm_utils.losses import gradient_penalty, r1_penalty
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.recipes.gaussians25_gan import (
    DISCRIMINATOR,
    GAMMA,
    GENERATOR,
    N_EMD,
    N_REFIT,
    N_SAMPLES,
    REFIT,
    REFITTED,
    STD,
    TRAINING,
    refit,
)
from gan_ebm_utils.training import Loss, Penalty, train_gan


class Game(NamedTuple):
    """What a GAN of the plane is trained on and how."""

    law: Distribution
    d_loss: Loss
    g_loss: Loss
    penalty: Penalty
    settings: dict[str, Any]  # of `train_gan`


GAMES = {
    "swiss_roll_gan": Game(
        swiss_roll(),
        losses.gan_d_loss,
        losses.non_saturating_g_loss,
        lambda d, real, fake, generator: GAMMA / 2 * r1_penalty(d, real),
        TRAINING,
    ),
    "gaussians25_wgan": Game(
        gaussian_grid(std=STD),
        losses.wasserstein_d_loss,
        losses.wasserstein_g_loss,
        lambda d, real, fake, generator: 0.1 * gradient_penalty(d, real, fake, generator),
        {**TRAINING, "learning_rate": 5e-4, "betas": [0.5, 0.9], "d_steps": 5},
    ),
}
PENALTIES = {"swiss_roll_gan": f"R1, gamma {GAMMA}", "gaussians25_wgan": "gradient, weight 0.1"}


def train(game: Game, steps: int, replicates: int, seed: int) -> Gan:
    """`replicates` GANs after `steps` steps of their game."""
    generator = seeded(seed)
    gan = Gan(
        mlp(**GENERATOR, replicates=replicates, generator=generator),
        mlp(**DISCRIMINATOR, replicates=replicates, generator=generator),
        GENERATOR["in_features"],
    )
    train_gan(
        gan,
        game.law.sample,
        game.d_loss,
        game.g_loss,
        steps,
        generator,
        replicates=replicates,
        penalty=game.penalty,
        **game.settings,
    )
    return gan


def score(gan: Gan, law: Distribution, replicates: int, seed: int) -> dict[str, list[float]]:
    """Mean and 95 % interval over replicates of the scores of the generator's samples."""
    generator = seeded(seed)
    with torch.no_grad():
        x = gan.generator(randn(replicates, N_SAMPLES, gan.latent_dim, generator=generator))
    found = {
        "emd": metrics.emd(x[:, :N_EMD], law.sample((replicates, N_EMD), generator)),
        "emd_floor": metrics.emd_floor(law.sample, N_EMD, generator, replicates),
    }
    if law.means is not None:
        found |= metrics.mode_report(x, law.means, STD, n_std=4)._asdict()
    return {name: list(metrics.mean_interval(values)[:3]) for name, values in found.items()}


def make(name: str, steps: int, refit_steps: int, replicates: int, seed: int) -> tuple[dict, dict]:
    """Networks of the checkpoint `name` and its card, made anew."""
    game, start = GAMES[name], time.perf_counter()
    gan = train(game, steps, replicates, seed)
    # Half the digits are enough; the refit and the scores see what is stored.
    networks: dict[str, nn.Module] = {
        "generator": gan.generator.half().float(),
        "discriminator": gan.discriminator.half().float(),
    }
    networks["discriminator_refitted"] = refit(gan, game.law, refit_steps, replicates, seed + 2)
    scores = score(gan, game.law, replicates, seed + 1)
    builders = dict(zip(networks, (GENERATOR, DISCRIMINATOR, REFITTED), strict=True))
    card = {
        **key(name, steps, refit_steps, replicates, seed),
        "metrics": {**scores, "seconds": round(time.perf_counter() - start, 1)},
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": default_device().type,
        "threads": torch.get_num_threads(),
    }
    return {
        part: (network.half(), "mlp", {**builders[part], "replicates": replicates})
        for part, network in networks.items()
    }, card


def key(name: str, steps: int, refit_steps: int, replicates: int, seed: int) -> dict[str, Any]:
    """What tells one run of the recipe from another."""
    return {
        "recipe": "plane_gans",
        "settings": {
            **GAMES[name].settings,
            "penalty": PENALTIES[name],
            "generator": GENERATOR,
            "discriminator": DISCRIMINATOR,
            "refitted": REFITTED,
            "steps": steps,
            "refit": {**REFIT, "steps": refit_steps, "n_data": N_REFIT},
            "replicates": replicates,
            "n_samples": N_SAMPLES,
            "n_emd": N_EMD,
        },
        "seed": seed,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--refit-steps", type=int, default=20_000)
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: the package's checkpoints)")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.refit_steps < 1 or args.replicates < 2:
        parser.error("--steps and --refit-steps must be at least 1, --replicates at least 2")
    run = (args.steps, args.refit_steps, args.replicates, args.seed)
    for name in GAMES:
        if name in checkpoints.available(args.out):
            card = checkpoints.load(name, folder=args.out).card
            if all(card[k] == v for k, v in key(name, *run).items()):
                print(f"{name}: kept")
                continue
        networks, card = make(name, *run)
        checkpoints.save(name, networks, {}, card, args.out)
        print(name, json.dumps(card["metrics"], indent=2), flush=True)


if __name__ == "__main__":
    main()
