"""Train GANs of the plane, ten of each kind, and refit their discriminators when they are finished.

    python -m gan_ebm_utils.recipes.plane_gans

writes four checkpoints: `gaussians25_gan` and `swiss_roll_gan` (non-saturating loss, R1),
`gaussians25_wgan` (Wasserstein loss, gradient penalty, five steps of the critic to one of the
generator), and `gaussians25_r1` (two latents, for chapter 01). Each holds `generator` and
`discriminator`, ten replicates behind one leading axis, and a card with scores of the generator's
samples. The first three hold `discriminator_refitted` and scores of samples refined with it, the
last `generator_without_r1` and `discriminator_without_r1`. It takes about an hour on two CPU cores;
a checkpoint that is there with the same settings is kept, and a run that is cut off goes on after
the last network that was finished.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_ebm_utils import losses, metrics, runs
from gan_ebm_utils.base import Distribution, Gan, seeded
from gan_ebm_utils.datasets import gaussian_grid, minibatches, swiss_roll
from gan_ebm_utils.losses import gradient_penalty, r1_penalty
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.refine import mh_gan
from gan_ebm_utils.training import Loss, Penalty, refit_discriminator, train_gan

STD, GAMMA, WEIGHT = 0.05, 0.1, 0.1  # of the modes, of R1, of the critic's gradient penalty
DISCRIMINATOR = {"in_features": 2, "hidden": [128, 128, 128], "activation": "ReLU"}
# Four latents for a plane: with two, the draws of a mode lie on folds and leave gaps.
GENERATOR = {**DISCRIMINATOR, "in_features": 4, "out_features": 2}
TRAINING = {"batch_size": 256, "learning_rate": 1e-3, "betas": [0.5, 0.99]}
# The modes are narrow, so the refitted discriminator sees Fourier features.
REFITTED = {"in_features": 2, "hidden": [128, 128, 128], "fourier": [64, 8.0]}
REFIT = {"batch_size": 512, "learning_rate": 3e-3}
N_REFIT = 100_000  # data points that the refit sees, the same for all replicates
N_SAMPLES, N_EMD = 10_000, 1000  # per replicate, for the scores on the card
N_STD = 4  # a sample within so many standard deviations of a mode is one of its
N_PROPOSALS = 100  # of the chains whose samples are scored


class Game(NamedTuple):
    """What a GAN of the plane is trained on and how, and whether it is refitted.

    One that is not is trained a second time, without the penalty.
    """

    law: Distribution
    d_loss: Loss
    g_loss: Loss
    penalty: Penalty
    settings: dict[str, Any]  # of `train_gan`
    generator: dict[str, Any] = GENERATOR
    is_refitted: bool = True


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
    "gaussians25_r1": Game(
        gaussian_grid(std=STD),
        *RULES,
        {**TRAINING, "n_steps": 3000},
        generator={**GENERATOR, "in_features": 2},
        is_refitted=False,
    ),
}
PENALTIES = {
    "gaussians25_gan": f"R1, gamma {GAMMA}",
    "swiss_roll_gan": f"R1, gamma {GAMMA}",
    "gaussians25_wgan": f"gradient, weight {WEIGHT}",
    "gaussians25_r1": f"R1, gamma {GAMMA}",
}


def rounded(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """`network` with these weights in half precision, in which they are stored, and frozen.

    Half the digits are enough; the refit and the scores see what is stored.
    """
    network.load_state_dict(weights)
    return network.half().float().eval().requires_grad_(False)


def new_gan(game: Game, replicates: int, generator: torch.Generator) -> Gan:
    """Networks before the first step of their game."""
    return Gan(
        mlp(**game.generator, replicates=replicates, generator=generator),
        mlp(**DISCRIMINATOR, replicates=replicates, generator=generator),
        game.generator["in_features"],
    )


def train(game: Game, penalty: Penalty | None, replicates: int, seed: int) -> list[dict]:
    """The weights of `replicates` generators and discriminators after all steps of their game."""
    generator = seeded(seed)
    gan = new_gan(game, replicates, generator)
    train_gan(
        gan,
        game.law.sample,
        game.d_loss,
        game.g_loss,
        generator=generator,
        replicates=replicates,
        penalty=penalty,
        **game.settings,
    )
    return [network.state_dict() for network in (gan.generator, gan.discriminator)]


def refit(
    gan: Gan,
    law: Distribution,
    steps: int,
    replicates: int,
    seed: int,
    layers: dict[str, Any],
    begin: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The weights of a discriminator fitted to the generators on N_REFIT points of `law`.

    It has the given layers and begins at random weights, or at those given.
    """
    generator = seeded(seed)
    discriminator = mlp(**layers, replicates=replicates, generator=generator)
    if begin is not None:
        discriminator.load_state_dict(begin)
    data = minibatches(law.sample((N_REFIT,), generator))
    refitted = refit_discriminator(
        gan, discriminator, data, steps, generator, replicates=replicates, **REFIT
    )
    return refitted.discriminator.state_dict()


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


def score_draws(gan: Gan, law: Distribution, replicates: int, seed: int) -> dict[str, list[float]]:
    """Scores of what the generator draws."""
    rng = seeded(seed)
    with torch.no_grad():
        x = gan.generator(gan.prior((replicates, N_SAMPLES), rng))
    return score(x, law, rng)


def score_chains(gan: Gan, law: Distribution, replicates: int, seed: int) -> dict[str, list[float]]:
    """Scores of the last states of chains on the refitted logit."""
    rng = seeded(seed)
    chains = mh_gan(gan, N_SAMPLES, rng, replicates=replicates, n_steps=N_PROPOSALS)
    return score(chains.samples, law, rng)


def parts_of(name: str, refit_steps: int) -> dict[str, float]:
    """The parts of a checkpoint, with how long each takes: about as a step of a discriminator."""
    game = GAMES[name]
    steps = game.settings["n_steps"] * (1 + game.settings.get("d_steps", 1))
    sizes = {"trained": steps, "scores": steps / 10}
    if game.is_refitted:
        sizes |= {"refitted": 2 * refit_steps, "scores of chains": steps / 10}
    else:
        sizes |= {"trained without R1": steps / 2, "scores without R1": steps / 10}
    return {f"{name}, {part}": size for part, size in sizes.items()}


def make(name: str, refit_steps: int, replicates: int, seed: int, run: runs.Run) -> runs.Made:
    """Networks of the checkpoint `name`, no tensors, and scores, from the parts of `run`."""
    game, seconds = GAMES[name], []

    def once(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        made, took = run.once(f"{name}, {part}", lambda: function(*arguments))
        seconds.append(took)
        return made

    def trained(part: str, penalty: Penalty | None) -> Gan:
        weights = once(part, train, game, penalty, replicates, seed)
        gan = new_gan(game, replicates, seeded(seed))
        return Gan(*map(rounded, gan[:2], weights), gan.latent_dim)

    gan = trained("trained", game.penalty)
    networks = {
        "generator": (gan.generator, game.generator),
        "discriminator": (gan.discriminator, DISCRIMINATOR),
    }
    scores = {"generator": once("scores", score_draws, gan, game.law, replicates, seed + 1)}
    if game.is_refitted:
        given = game.law, refit_steps, replicates, seed + 2, REFITTED
        weights = once("refitted", refit, gan, *given)
        network = mlp(**REFITTED, replicates=replicates, generator=seeded(seed))
        gan = gan._replace(discriminator=rounded(network, weights))
        networks["discriminator_refitted"] = (gan.discriminator, REFITTED)
        chains = once("scores of chains", score_chains, gan, game.law, replicates, seed + 3)
        scores["mh_gan, refitted"] = chains
    else:
        gan = trained("trained without R1", None)
        networks["generator_without_r1"] = (gan.generator, game.generator)
        networks["discriminator_without_r1"] = (gan.discriminator, DISCRIMINATOR)
        draws = once("scores without R1", score_draws, gan, game.law, replicates, seed + 1)
        scores["generator_without_r1"] = draws
    built = {
        key: (network.half(), mlp, {**settings, "replicates": replicates})
        for key, (network, settings) in networks.items()
    }
    return built, {}, {**scores, "seconds": round(sum(seconds), 1)}


def settings_of(name: str, refit_steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the checkpoint `name` depends on, but for the seed."""
    game = GAMES[name]
    modes = {} if game.law.means is None else {"std": STD, "n_std": N_STD}
    refitted = {
        "refitted": REFITTED,
        "refit": {**REFIT, "steps": refit_steps, "n_data": N_REFIT},
        "n_proposals": N_PROPOSALS,
    }
    return {
        **game.settings,
        **modes,
        "losses": [game.d_loss.__name__, game.g_loss.__name__],
        "penalty": PENALTIES[name],
        "generator": game.generator,
        "discriminator": DISCRIMINATOR,
        **(refitted if game.is_refitted else {}),
        "replicates": replicates,
        "n_samples": N_SAMPLES,
        "n_emd": N_EMD,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=GAMES, help="one checkpoint (default: all)")
    parser.add_argument("--refit-steps", type=runs.at_least(1), default=6000)
    parser.add_argument("--replicates", type=runs.at_least(2), default=10)
    args = runs.parse(parser, argv)
    wanted = {
        name: (
            settings_of(name, args.refit_steps, args.replicates),
            parts_of(name, args.refit_steps),
        )
        for name in ([args.only] if args.only else GAMES)
    }
    how = args.refit_steps, args.replicates, args.seed
    runs.make_checkpoints("plane_gans", wanted, lambda name, run: make(name, *how, run), args)


if __name__ == "__main__":
    main()
