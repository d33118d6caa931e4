"""Train BEGANs on a wide Swiss roll, ten of each kind, and on digits of 8 x 8, five of each.

    python -m gan_ebm_utils.recipes.plane_begans

writes the checkpoints `swiss_roll_began` and `digits_began`. A kind of game, KIND, is the gamma
that the controller holds, "off" for a weight k that stays 0, or, on the Swiss roll, "slow" and
"fast" for other rates of the controller. Of the kinds that chapter 05 draws from, the networks
`generator_KIND` and `autoencoder_KIND` are stored, replicates behind one leading axis. The tensors
KIND/real, fake, k and m_global are the course of a game, means over each EVERY steps, (records, R);
on the Swiss roll KIND/emd is that of the draws after each SNAPSHOT steps, (snapshots, R).
KIND/precision and KIND/coverage score the last draws, (R,), and data/emd, data/precision and
data/coverage are what fresh data score. It takes about 20 minutes on one CPU core; a run that is
cut off goes on after the last game that was finished.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_ebm_utils import losses, metrics, runs
from gan_ebm_utils.base import Gan, Sample, seeded
from gan_ebm_utils.datasets import digits, minibatches, swiss_roll
from gan_ebm_utils.energies import NegativeEnergy, ReconstructionError
from gan_ebm_utils.networks import Autoencoder, ConvGenerator, mlp
from gan_ebm_utils.recipes.plane_gans import rounded
from gan_ebm_utils.training import History, train_gan

GAMMAS = (0.3, 0.5, 0.7, 0.9)
EVERY, SNAPSHOT = 10, 100  # steps of a record, and from one EMD to the next
N_EMD = 500  # draws, and data, of each EMD
K = 5  # of precision and coverage: the ball of a data point reaches to this neighbour
COURSE = ("real", "fake", "k", "m_global")


class Game(NamedTuple):
    """Networks and training of the games on one data set, (gamma, rate) of each kind."""

    noise: float | None  # of the Swiss roll; None for digits
    generator: dict[str, Any]
    autoencoder: dict[str, Any]
    power: int
    kinds: dict[str, tuple[float, float]]
    settings: dict[str, Any]  # of `train_gan`
    replicates: int
    n_scored: int  # draws, and data, for precision and coverage
    stored: tuple[str, ...]  # the kinds whose networks the checkpoint holds


# At rate 0 the weight k keeps its first value, which is 0, whatever gamma is.
GAMES = {
    "swiss_roll_began": Game(
        1.0,
        # Four latents for a plane, as in `plane_gans`.
        {"in_features": 4, "hidden": [128, 128, 128], "out_features": 2, "activation": "ReLU"},
        {"event": [2], "hidden": [64, 64], "code_dim": 2},
        1,
        # The losses fall to 0.001 and the games are short, so the rates are large.
        {str(gamma): (gamma, 1.0) for gamma in (*GAMMAS, 1.0)}
        | {"off": (0.7, 0.0), "slow": (0.9, 0.03), "fast": (0.9, 30.0)},
        {"batch_size": 128, "learning_rate": 1e-3, "betas": [0.5, 0.99], "n_steps": 2500},
        10,
        1000,
        ("0.5", "0.7", "0.9", "1.0"),
    ),
    "digits_began": Game(
        None,
        {"image_size": 8, "latent_dim": 16, "width": 16},
        {"event": [1, 8, 8], "hidden": [128], "code_dim": 16},
        1,
        # At rate 0.1 and gamma 0.8 all generators of two trials ended in one pattern of noise.
        {str(gamma): (gamma, 0.005) for gamma in GAMMAS} | {"off": (0.7, 0.0)},
        {"batch_size": 64, "learning_rate": 1e-3, "betas": [0.5, 0.99], "n_steps": 2000},
        5,
        800,
        ("0.3", "0.5", "0.9"),
    ),
}


def data_of(game: Game) -> Sample:
    """The sampler of a game's data."""
    if game.noise is None:
        return minibatches(digits().images)
    return swiss_roll(game.noise).sample


def new_gan(game: Game, replicates: int, generator: torch.Generator) -> Gan:
    """Networks before the first step; the discriminator is the negative energy."""
    how = {"replicates": replicates, "generator": generator}
    build = ConvGenerator if game.noise is None else mlp
    networks = build(**game.generator, **how), Autoencoder(**game.autoencoder, **how)
    latent_dim = game.generator.get("latent_dim", game.generator.get("in_features"))
    energy = ReconstructionError(networks[1], game.power)
    return Gan(networks[0], NegativeEnergy(energy), latent_dim)


def parts_of(gan: Gan) -> dict[str, nn.Module]:
    """The two networks that have weights."""
    return {"generator": gan.generator, "autoencoder": gan.discriminator.energy.autoencoder}


def train(game: Game, kind: str, replicates: int, seed: int) -> dict[str, dict]:
    """The weights after all steps of a game, and its course."""
    rng, judge = seeded(seed), seeded(seed + 1)
    gan, data = new_gan(game, replicates, rng), data_of(game)
    rule = losses.Began(*game.kinds[kind])
    course: dict[str, list[Tensor]] = {key: [] for key in COURSE}
    emd: list[Tensor] = []

    def watch(step: int, history: History) -> None:
        rule.callback(step, history)
        for key, values in course.items():
            values.append(getattr(rule, key).cpu())
        if game.noise is not None and (step + 1) % SNAPSHOT == 0:
            with torch.no_grad():
                x = gan.generator(gan.prior((replicates, N_EMD), judge))
            emd.append(metrics.emd(x, data((replicates, N_EMD), judge)))

    train_gan(
        gan,
        data,
        rule.d_loss,
        rule.g_loss,
        generator=rng,
        replicates=replicates,
        callback=watch,
        **game.settings,
    )
    found = {
        key: torch.stack(values).unflatten(0, (-1, EVERY)).mean(dim=1)
        for key, values in course.items()
    }
    if emd:
        found["emd"] = torch.stack(emd).float()
    return {
        "course": found,
        **{part: network.state_dict() for part, network in parts_of(gan).items()},
    }


def fresh(game: Game, replicates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two sets of data, (R, n_scored, *event); of the digits, none is in both."""
    n = game.n_scored
    if game.noise is not None:
        data = data_of(game)
        return data((replicates, n), generator), data((replicates, n), generator)
    images, where = digits().images, generator.device
    rows = torch.stack(
        [
            torch.randperm(len(images), generator=generator, device=where)[: 2 * n]
            for _ in range(replicates)
        ]
    )
    return images[rows.to(images.device)].to(where).split(n, dim=1)


def score(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Precision and coverage of samples x among the data y."""
    found = metrics.precision_coverage(x, y, K)._asdict()
    return {key: values.float() for key, values in found.items()}


@torch.no_grad()
def score_all(
    game: Game, gans: dict[str, Gan], replicates: int, seed: int
) -> dict[str, dict[str, Tensor]]:
    """The scores of each kind's draws, and of data."""
    rng = seeded(seed)
    x, y = fresh(game, replicates, rng)
    found = {"data": score(x, y)}
    if game.noise is not None:
        found["data"]["emd"] = metrics.emd_floor(data_of(game), N_EMD, rng, replicates).float()
    size = replicates, game.n_scored
    for kind, gan in gans.items():
        found[kind] = score(gan.generator(gan.prior(size, rng)), y)
    return found


def settings_of(game: Game, replicates: int) -> dict[str, Any]:
    """Everything that the games and their scores depend on, but for the seed."""
    settings = game._asdict()
    del settings["stored"]
    return {
        **settings,
        "replicates": replicates,
        "every": EVERY,
        "snapshot": SNAPSHOT,
        "n_emd": N_EMD,
        "k": K,
    }


def make(name: str, seed: int, run: runs.Run) -> runs.Made:
    """Networks, tensors and scores of the checkpoint `name`, from the finished parts of `run`."""
    replicates = run.given["settings"]["replicates"]
    game, gans, tensors, seconds = GAMES[name], {}, {}, 0.0
    for kind in game.kinds:
        # A game does not depend on which others there are.
        alone = settings_of(game._replace(kinds={kind: game.kinds[kind]}), replicates)
        made, took = run.once(
            f"{name}, {kind}",
            lambda kind=kind: train(game, kind, replicates, seed),
            {**run.given, "settings": alone},
        )
        gans[kind] = new_gan(game, replicates, seeded(seed))
        for part, network in parts_of(gans[kind]).items():
            rounded(network, made[part])
        tensors |= {f"{kind}/{key}": values for key, values in made["course"].items()}
        seconds += took
    scores, took = run.once(f"{name}, scores", lambda: score_all(game, gans, replicates, seed + 2))
    for kind, found in scores.items():
        tensors |= {f"{kind}/{key}": values for key, values in found.items()}
    builders = {
        "generator": (ConvGenerator if game.noise is None else mlp, game.generator),
        "autoencoder": (Autoencoder, game.autoencoder),
    }
    networks = {}
    for kind in game.stored:
        for part, network in parts_of(gans[kind]).items():
            builder, settings = builders[part]
            given = {**settings, "replicates": replicates}
            networks[f"{part}_{kind}"] = (network.half(), builder, given)
    means = {
        kind: {key: list(metrics.mean_interval(values)[:3]) for key, values in found.items()}
        for kind, found in scores.items()
    }
    return networks, tensors, {**means, "seconds": round(seconds + took, 1)}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=GAMES, help="one checkpoint (default: both)")
    what = "of each kind (default: 10 on the Swiss roll, 5 on digits)"
    parser.add_argument("--replicates", type=runs.at_least(2), help=what)
    args = runs.parse(parser, argv)
    wanted = {}
    for name in [args.only] if args.only else GAMES:
        game = GAMES[name]
        replicates = args.replicates or game.replicates
        steps = game.settings["n_steps"] * replicates
        parts = {f"{name}, {kind}": steps for kind in game.kinds} | {f"{name}, scores": 100}
        wanted[name] = settings_of(game, replicates), parts
    runs.make_checkpoints(
        "plane_begans", wanted, lambda name, run: make(name, args.seed, run), args
    )


if __name__ == "__main__":
    main()
