"""Train GANs of the plane, ten of each kind, and refit their discriminators when they are finished.

    python -m gan_ebm_utils.recipes.plane_gans

writes three checkpoints: `gaussians25_gan` and `swiss_roll_gan` (non-saturating loss, R1), and
`gaussians25_wgan` (Wasserstein loss, gradient penalty, five steps of the critic to one of the
generator). Each holds `generator`, `discriminator` and `discriminator_refitted`, ten replicates
behind one leading axis, and a card with scores of the generator's samples and of refined ones. It
takes about an hour on two CPU cores; a checkpoint that is there with the same settings is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import Distribution, Gan, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid, minibatches, swiss_roll
from gan_ebm_utils.losses import gradient_penalty, r1_penalty
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.refine import mh_gan
from gan_ebm_utils.training import Loss, Penalty, refit_discriminator, train_gan

STD, GAMMA, WEIGHT = 0.05, 0.1, 0.1  # of the modes, of R1, of the critic's gradient penalty
# Four latents for a plane: with two, the draws of a mode lie on folds and leave gaps.
GENERATOR = {"in_features": 4, "hidden": [128, 128, 128], "activation": "ReLU", "out_features": 2}
DISCRIMINATOR = {"in_features": 2, "hidden": [128, 128, 128], "activation": "ReLU"}
TRAINING = {"batch_size": 256, "learning_rate": 1e-3, "betas": [0.5, 0.99]}
# The modes are narrow, so the refitted discriminator sees Fourier features.
REFITTED = {"in_features": 2, "hidden": [128, 128, 128], "fourier": [64, 8.0]}
REFIT = {"batch_size": 512, "learning_rate": 3e-3}
N_REFIT = 100_000  # data points that the refit sees, the same for all replicates
N_SAMPLES, N_EMD = 10_000, 1000  # per replicate, for the scores on the card
N_STD = 4  # a sample within so many standard deviations of a mode is one of its
N_PROPOSALS = 100  # of the chains whose samples are scored


class Game(NamedTuple):
    """What a GAN of the plane is trained on and how."""

    law: Distribution
    d_loss: Loss
    g_loss: Loss
    penalty: Penalty
    settings: dict[str, Any]  # of `train_gan`


def r1(discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """The penalty of the GANs."""
    return GAMMA / 2 * r1_penalty(discriminator, real)


RULES = (losses.gan_d_loss, losses.non_saturating_g_loss, r1)
GAMES = {
    "gaussians25_gan": Game(gaussian_grid(std=STD), *RULES, {**TRAINING, "n_steps": 3500}),
    "swiss_roll_gan": Game(swiss_roll(), *RULES, {**TRAINING, "n_steps": 1000}),
    "gaussians25_wgan": Game(
        gaussian_grid(std=STD),
        losses.wasserstein_d_loss,
        losses.wasserstein_g_loss,
        lambda d, real, fake, generator: WEIGHT * gradient_penalty(d, real, fake, generator),
        {**TRAINING, "learning_rate": 5e-4, "betas": [0.5, 0.9], "d_steps": 5, "n_steps": 3000},
    ),
}
PENALTIES = {
    "gaussians25_gan": f"R1, gamma {GAMMA}",
    "swiss_roll_gan": f"R1, gamma {GAMMA}",
    "gaussians25_wgan": f"gradient, weight {WEIGHT}",
}


def train(game: Game, replicates: int, seed: int) -> Gan:
    """`replicates` GANs after all steps of their game."""
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
        generator=generator,
        replicates=replicates,
        penalty=game.penalty,
        **game.settings,
    )
    return gan


def refit(gan: Gan, law: Distribution, steps: int, replicates: int, seed: int) -> Gan:
    """`gan` with a discriminator fitted to its generators on N_REFIT points of `law`."""
    generator = seeded(seed)
    discriminator = mlp(**REFITTED, replicates=replicates, generator=generator)
    data = minibatches(law.sample((N_REFIT,), generator))
    gan.generator.requires_grad_(False)
    return refit_discriminator(
        gan, discriminator, data, steps, generator, replicates=replicates, **REFIT
    )


def score(x: Tensor, law: Distribution, generator: torch.Generator) -> dict[str, list[float]]:
    """Mean and 95 % interval over replicates of the scores of samples x (R, n, 2)."""
    replicates = len(x)
    found = {
        "emd": metrics.emd(x[:, :N_EMD], law.sample((replicates, N_EMD), generator)),
        "emd_floor": metrics.emd_floor(law.sample, N_EMD, generator, replicates),
    }
    if law.means is not None:
        found |= metrics.mode_report(x, law.means, STD, n_std=N_STD)._asdict()
    return {
        name: list(metrics.mean_interval(values)[:3]) if values.isfinite().all() else None
        for name, values in found.items()
    }


def make(
    name: str, refit_steps: int, replicates: int, seed: int
) -> tuple[dict[str, tuple[nn.Module, str, dict[str, Any]]], dict[str, Any]]:
    """Networks of the checkpoint `name`, made anew, and their scores."""
    game, start = GAMES[name], time.perf_counter()
    gan = train(game, replicates, seed)
    # Half the digits are enough; the refit and the scores see what is stored.
    gan = Gan(gan.generator.half().float(), gan.discriminator.half().float(), gan.latent_dim)
    rng = seeded(seed + 1)
    with torch.no_grad():
        x = gan.generator(randn(replicates, N_SAMPLES, gan.latent_dim, generator=rng))
    scores: dict[str, Any] = {"generator": score(x, game.law, rng)}
    print(name, json.dumps(scores["generator"]), flush=True)
    refitted = refit(gan, game.law, refit_steps, replicates, seed + 2)
    refitted = refitted._replace(discriminator=refitted.discriminator.half().float())
    rng = seeded(seed + 3)
    chains = mh_gan(refitted, N_SAMPLES, rng, replicates=replicates, n_steps=N_PROPOSALS)
    scores["mh_gan, refitted"] = score(chains.samples, game.law, rng)
    print(name, json.dumps(scores["mh_gan, refitted"]), flush=True)
    networks = {
        part: (network.half(), "mlp", {**settings, "replicates": replicates})
        for part, network, settings in (
            ("generator", gan.generator, GENERATOR),
            ("discriminator", gan.discriminator, DISCRIMINATOR),
            ("discriminator_refitted", refitted.discriminator, REFITTED),
        )
    }
    return networks, {**scores, "seconds": round(time.perf_counter() - start, 1)}


def settings_of(name: str, refit_steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the checkpoint `name` depends on, but for the seed."""
    game = GAMES[name]
    modes = {} if game.law.means is None else {"std": STD, "n_std": N_STD}
    return {
        **game.settings,
        **modes,
        "losses": [game.d_loss.__name__, game.g_loss.__name__],
        "penalty": PENALTIES[name],
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "refitted": REFITTED,
        "refit": {**REFIT, "steps": refit_steps, "n_data": N_REFIT},
        "replicates": replicates,
        "n_samples": N_SAMPLES,
        "n_emd": N_EMD,
        "n_proposals": N_PROPOSALS,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=GAMES, help="one checkpoint (default: all)")
    parser.add_argument("--refit-steps", type=int, default=6000)
    parser.add_argument("--replicates", type=int, default=10)
    args = runs.parse(parser, argv)
    if args.refit_steps < 1 or args.replicates < 2:
        parser.error("--refit-steps must be at least 1 and --replicates at least 2")
    for name in [args.only] if args.only else GAMES:
        run = runs.begin("plane_gans", settings_of(name, args.refit_steps, args.replicates), args)
        if run.is_stored(name, args.out):
            print(f"{name}: kept")
            continue
        networks, scores = make(name, args.refit_steps, args.replicates, args.seed)
        checkpoints.save(name, networks, {}, run.card(scores), args.out)


if __name__ == "__main__":
    main()
