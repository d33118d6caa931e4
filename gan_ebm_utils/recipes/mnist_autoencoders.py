"""Train EBGAN and BEGAN on MNIST, five of each.

    python -m gan_ebm_utils.recipes.mnist_autoencoders

writes the checkpoints `mnist_ebgan` and `mnist_began`: `generator`, the one of five with the median
FID; the others and the autoencoders are as large and no page shows them. The generators of EBGAN
are those of `mnist_gan`, BEGAN's a quarter as wide. The cards give the FID of each generator in the
features of `mnist_features`, and the mean energies of real and generated images in the first game.
On one CPU core EBGAN takes about two hours and BEGAN half an hour; the two can run side by side,
each with `--only`. A run that is cut off goes on after the last network that was finished.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import Gan, default_device, seeded
from gan_ebm_utils.datasets import minibatches, mnist
from gan_ebm_utils.energies import NegativeEnergy, ReconstructionError
from gan_ebm_utils.networks import Autoencoder, ConvGenerator
from gan_ebm_utils.recipes import mnist_gan
from gan_ebm_utils.recipes.mnist_gan import GENERATOR, TRAINING, fid, stacked
from gan_ebm_utils.training import GeneratorPenalty, Loss, train_gan

N_ENERGIES = 2000  # images of each kind whose energies are averaged


class Game(NamedTuple):
    """The networks of a game, the power of the error, and the rule by which it is played."""

    generator: dict[str, Any]
    autoencoder: dict[str, Any]
    power: int
    rule: Callable[[], tuple[Loss, Loss, GeneratorPenalty | None, Callable | None]]
    settings: dict[str, Any]


def pulled_away(gan: Gan, z: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """The pulling-away term of a batch of generated images, with the paper's weight."""
    return EBGAN["pulling_away"] * losses.pulling_away(
        gan.discriminator.energy.autoencoder.encode(x)
    )


def ebgan() -> tuple[Loss, Loss, GeneratorPenalty, None]:
    """The losses of EBGAN-PT."""
    d_loss = partial(losses.ebgan_d_loss, margin=EBGAN["margin"])
    return d_loss, losses.ebgan_g_loss, pulled_away, None


def began() -> tuple[Loss, Loss, None, Callable]:
    """The losses of BEGAN and the control of their balance, which begins anew."""
    rule = losses.Began(**BEGAN)
    return rule.d_loss, rule.g_loss, None, rule.callback


# The margin and the widths are those of short trials, FID after 1,500 steps.
EBGAN = {"margin": 0.13, "pulling_away": 0.1}
# In trials of 700 to 1,500 steps with the absolute error, a generator of width 64 or an
# autoencoder of 256 hidden units and more, the draws were noise and k fell to 0.
BEGAN = {"gamma": 0.7, "rate": 0.1}
GAMES = {
    "mnist_ebgan": Game(
        GENERATOR, {"event": [1, 28, 28], "hidden": [512], "code_dim": 64}, 2, ebgan, EBGAN
    ),
    "mnist_began": Game(
        {**GENERATOR, "width": 16},
        {"event": [1, 28, 28], "hidden": [64], "code_dim": 64},
        2,
        began,
        BEGAN,
    ),
}


def train(name: str, seed: int, steps: int) -> dict[str, Tensor]:
    """The weights of one generator and its autoencoder after `steps` steps."""
    device, rng, game = default_device(), seeded(seed), GAMES[name]
    generator = ConvGenerator(**game.generator, generator=rng)
    autoencoder = Autoencoder(**game.autoencoder, generator=rng)
    generator.to(device, memory_format=torch.channels_last)
    energy = ReconstructionError(autoencoder.to(device), game.power)
    gan = Gan(generator, NegativeEnergy(energy), game.generator["latent_dim"])
    d_loss, g_loss, g_penalty, callback = game.rule()
    train_gan(
        gan,
        minibatches(mnist("train").images.to(device)),
        d_loss,
        g_loss,
        steps,
        rng,
        g_penalty=g_penalty,
        callback=callback,
        **TRAINING,
    )
    return {
        f"{part}.{key}": value.cpu()
        for part, network in (("generator", generator), ("autoencoder", autoencoder))
        for key, value in network.state_dict().items()
    }


@torch.no_grad()
def energies(gan: Gan, autoencoder: Autoencoder, power: int, seed: int) -> dict[str, float]:
    """Mean energies of test images and of images of the first generator."""
    rng, energy = seeded(seed), ReconstructionError(autoencoder, power)
    real = mnist("test").images[None, :N_ENERGIES]
    fake = gan.generator(gan.prior((gan.generator.replicates, N_ENERGIES), rng))[:1].cpu()
    return {"real": float(energy(real).mean()), "generated": float(energy(fake).mean())}


def seeds(first: int, replicates: int) -> list[int]:
    """The seeds of the replicates."""
    return [first + 100 * r for r in range(replicates)]


def settings_of(name: str, steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the networks depend on, but for the seed, the data and the judge."""
    game = GAMES[name]
    return {
        **TRAINING,
        **game.settings,
        "generator": game.generator,
        "autoencoder": game.autoencoder,
        "power": game.power,
        "steps": steps,
        "replicates": replicates,
        "n_energies": N_ENERGIES,
        "n_fid": mnist_gan.N_FID,
    }


def make(name: str, seed: int, run: runs.Run) -> runs.Made:
    """Networks, no tensors, and scores of the checkpoint `name`, from the parts of `run`."""
    game, given, parts = GAMES[name], run.given["settings"], []
    steps, replicates = given["steps"], given["replicates"]
    for own_seed in seeds(seed, replicates):
        # A network depends neither on how many others there are, nor on who judges them.
        own = {**run.given, "seed": own_seed, "settings": settings_of(name, steps, 1)}
        own.pop("features_sha256")
        part = run.once(f"{name}-{own_seed}", lambda s=own_seed: train(name, s, steps), own)
        parts.append(part)
    start = "generator."
    of_each = [
        {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        for weights, _ in parts
    ]
    settings = {**game.generator, "replicates": replicates}
    generator = ConvGenerator(**settings, generator=seeded(0, "cpu"))
    generator.load_state_dict(stacked(of_each))
    autoencoder = Autoencoder(**game.autoencoder, generator=seeded(0, "cpu"))
    first = parts[0][0].items()
    own = {k.removeprefix("autoencoder."): v for k, v in first if k.startswith("auto")}
    autoencoder.load_state_dict(own)
    for network in (generator, autoencoder):  # in the precision in which one is stored
        network.half().float().eval().requires_grad_(False)
    gan = Gan(generator.to(default_device()), None, game.generator["latent_dim"])
    scores, _ = run.once(
        f"{name}-fid",
        lambda: fid(lambda n, rng: gan.generator(gan.prior((replicates, n), rng)), seed + 3),
    )
    middle = int(torch.tensor(scores).median(dim=0).indices)
    kept = ConvGenerator(**game.generator, generator=seeded(0, "cpu")).half().eval()
    kept.load_state_dict(of_each[middle])
    judge = checkpoints.load("mnist_features").card["metrics"]
    found = {
        "fid": list(metrics.mean_interval(torch.tensor(scores))[:3]),
        "fid_of_each": scores,
        "kept": middle,
        "fid_train_against_test": judge["frechet_train_test"]["value"],
        "energies_of_the_first": energies(gan, autoencoder, game.power, seed + 4),
        "seconds": round(sum(seconds for _, seconds in parts), 1),
    }
    print(json.dumps(found, indent=2))
    return {"generator": (kept, ConvGenerator, game.generator)}, {}, found


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=GAMES, help="one checkpoint (default: both)")
    parser.add_argument("--steps", type=runs.at_least(1), default=10_000)
    parser.add_argument("--replicates", type=runs.at_least(2), default=5)
    args = runs.parse(parser, argv)
    wanted = {
        name: (
            settings_of(name, args.steps, args.replicates),
            {f"{name}-{seed}": args.steps for seed in seeds(args.seed, args.replicates)}
            | {f"{name}-fid": 100 * args.replicates},
        )
        for name in ([args.only] if args.only else GAMES)
    }
    judge = checkpoints.load("mnist_features").card["sha256"]
    read_from = {**runs.mnist_source(), "features_sha256": judge}
    runs.make_checkpoints(
        "mnist_autoencoders",
        wanted,
        lambda name, run: make(name, args.seed, run),
        args,
        **read_from,
    )


if __name__ == "__main__":
    main()
