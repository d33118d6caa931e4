"""Train GANs alone and GANs that learn from an energy's samples, on the plane and on digits.

    python -m gan_ebm_utils.recipes.gan_with_ebm

writes the checkpoints `moons_gan_ebm`, `swiss_roll_gan_ebm` and `digits_gan_ebm`. The data of the
plane are scaled into [-1, 1]^2; digits are vectors of 64 pixels with a little noise. There are
three kinds of training: `plain`, a GAN; `cold`, a GAN whose discriminator takes samples of an
energy for real, with chains whose noise is small for their step; `warm`, the same with MALA at
temperature 1. The networks `generator_KIND`, `energy_cold` and `energy_warm` (without its confining
term) are stored with replicates behind one leading axis, on the plane also `discriminator_plain`
and `discriminator_refitted`, which was fitted to the finished generators of `plain`. The tensors
KIND/d_loss and KIND/gap are the course of a training, means over each EVERY rounds, (records, R).
KIND/generator scores the draws, KIND/chains the chains that start there, as many steps as in
training, `cold/long` those of an evaluation, KIND/buffer the samples that the chains left in
training, and data/floor fresh data: by the EMD, (R,), or on digits by precision and coverage, (2,
R). KIND/kl is the KL divergence from the data of the plane to the energy at each of TEMPERATURES,
(T, R). longer/cold_KEY are the scores of fewer cold trainings with more rounds. It takes about
twenty minutes on one CPU core; a run that is cut off goes on after the last training that was
finished.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_ebm_utils import losses, metrics, runs
from gan_ebm_utils.base import (
    Distribution,
    Energy,
    Gan,
    Info,
    Kernel,
    Sample,
    State,
    rand,
    randn,
    seeded,
    switched_off,
)
from gan_ebm_utils.datasets import digits, minibatches, moons, swiss_roll
from gan_ebm_utils.networks import Confined, mlp
from gan_ebm_utils.samplers import ReplayBuffer, langevin, mala, mixture, run_chain
from gan_ebm_utils.training import EbmHistory, Penalty, refit_discriminator, train_ebm, train_gan

KINDS = ("plain", "cold", "warm")
GAMMA = 0.1  # of R1, in all games
N_STEPS = 60  # of a chain in training
SIGMA, BOUND = 0.005, 0.05  # of the cold chains
ALPHA = {"cold": 0.1, "warm": 0.01}
BUFFER, FRESH = 8192, 0.05  # samples that are kept, and the share of chains that begin at G(z)
EVERY = 20  # rounds of a record
LONGER = {"moons_gan_ebm": (4500, 3)}  # rounds and replicates of a second cold training
TEMPERATURES = (1.0, 1e-2, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
# The refitted discriminator sees narrow modes.
REFITTED = {"in_features": 2, "hidden": [64, 64, 64], "fourier": [32, 4.0]}
REFIT = {"batch_size": 512, "learning_rate": 3e-3}
BOX, N_CELLS = (-1.0, 1.0, -1.0, 1.0), 200  # where cold chains live
K = 5  # of precision and coverage


class Game(NamedTuple):
    """Data, networks and training of one checkpoint."""

    centre: tuple[float, ...]  # of the plane's data, which are (x - centre) / half
    half: float
    noise: float  # of the data, before they are scaled
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    energy: dict[str, dict[str, Any]]  # of each kind
    scale: float  # of the confining term of a warm energy
    gan: dict[str, Any]  # batch size, learning rate and betas of both players
    ebm: dict[str, dict[str, Any]]  # learning rate and betas of the energy of each kind
    eta: tuple[float, float]  # steps of the cold chains in training and in the evaluation
    n_long: int  # steps of the evaluation
    step_sizes: tuple[float, ...]  # of the warm chains
    replicates: int
    n_scored: int  # samples, and data, of each score


LEAKY = {"activation": "LeakyReLU"}
TRAINING = {
    "gan": {"batch_size": 128, "learning_rate": 2e-3, "betas": [0.5, 0.999]},
    "ebm": {
        "cold": {"learning_rate": 1e-4, "betas": [0.0, 0.999]},
        "warm": {"learning_rate": 3e-3, "betas": [0.5, 0.99]},
    },
    "n_long": 1500,
}
PLANE = {
    **TRAINING,
    "generator": {"in_features": 20, "hidden": [64, 64], "out_features": 2, **LEAKY},
    "discriminator": {"in_features": 2, "hidden": [64, 64, 64], **LEAKY},
    "energy": {
        "cold": {"in_features": 2, "hidden": [16, 32, 64, 64, 64]},
        # As in chapter 02: the data are narrow.
        "warm": {"in_features": 2, "hidden": [64, 64], "fourier": [8, 2.0]},
    },
    "scale": 1.0,
    "step_sizes": (0.01, 0.003, 0.001),
    "replicates": 10,
    "n_scored": 2000,
}
GAMES = {
    "moons_gan_ebm": Game(centre=(0.5, 0.25), half=2.0, noise=0.1, eta=(3.0, 2.0), **PLANE),
    "swiss_roll_gan_ebm": Game(centre=(0.0, 0.0), half=2.4, noise=1.0, eta=(3.0, 3.0), **PLANE),
    "digits_gan_ebm": Game(
        **TRAINING,
        centre=(),
        half=1.0,
        noise=0.1,
        generator={"in_features": 20, "hidden": [128, 128], "out_features": 64, **LEAKY},
        discriminator={"in_features": 64, "hidden": [128, 128], **LEAKY},
        energy={kind: {"in_features": 64, "hidden": [128, 128]} for kind in KINDS[1:]},
        scale=1.0,
        eta=(3.0, 2.0),
        step_sizes=(0.05, 0.01),
        replicates=5,
        n_scored=800,
    ),
}

# Rounds of the trainings, and steps of the refit, of which there is none on digits.
STEPS = {
    "moons_gan_ebm": (1500, 2000),
    "swiss_roll_gan_ebm": (1500, 2000),
    "digits_gan_ebm": (600, 0),
}


def law_of(name: str) -> Distribution:
    """The data of the plane, scaled into the square of the cold chains."""
    game = GAMES[name]
    law = (moons if name == "moons_gan_ebm" else swiss_roll)(game.noise)

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        x = law.sample(size, generator)
        return (x - x.new_tensor(game.centre)) / game.half

    def log_prob(x: Tensor) -> Tensor:
        stretch = 2 * torch.log(x.new_tensor(game.half))
        return law.log_prob(game.half * x + x.new_tensor(game.centre)) + stretch

    return Distribution(sample, log_prob, None)


def data_of(name: str) -> Sample:
    """The sampler of a game's data."""
    if name != "digits_gan_ebm":
        return law_of(name).sample
    images, noise = minibatches(digits().images.flatten(1)), GAMES[name].noise

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        x = images(size, generator)
        return x + noise * randn(*x.shape, generator=generator)

    return sample


def cold_langevin(energy: Energy, eta: float, sigma: float, bound: float) -> Kernel:
    """x <- x - eta clip(grad E(x)) + sigma noise, then clipped to [-1, 1] in each coordinate.

    The gradient's coordinates are clipped to +-bound. Without the clipping it is `langevin` of step
    size 2 eta at the temperature sigma^2 / (2 eta) (Viskov et al., algorithm 1 and released code).
    """
    start = langevin(energy, 2 * eta, sigma**2 / (2 * eta)).init

    def step(state: State, generator: torch.Generator) -> tuple[State, Info]:
        noise = randn(*state.position.shape, generator=generator)
        x = state.position - eta * state.grad.clamp(-bound, bound) + sigma * noise
        always = torch.ones_like(state.energy)
        return start(x.clamp(-1, 1)), Info(always, always.bool())

    return Kernel(start, step, (energy,))


def kernel_of(game: Game, kind: str, energy: Energy, eta: float | None = None) -> Kernel:
    """A step of the chains of a kind, cold ones of the size `eta` or the one of training."""
    if kind == "cold":
        return cold_langevin(energy, eta or game.eta[0], SIGMA, BOUND)
    return mixture(*(mala(energy, size) for size in game.step_sizes))


def layers_of(game: Game, key: str) -> dict[str, Any]:
    """The arguments of `mlp` for the network that is stored as `key`."""
    part, _, kind = key.partition("_")
    if kind == "refitted":
        return REFITTED
    return game.energy[kind] if part == "energy" else getattr(game, part)


def new_networks(
    game: Game, kind: str, replicates: int, generator: torch.Generator
) -> dict[str, nn.Module]:
    """Networks before the first round, by the names under which they are stored."""
    parts = ("generator", "discriminator") + ("energy",) * (kind != "plain")
    return {
        f"{part}_{kind}": mlp(
            **layers_of(game, f"{part}_{kind}"), replicates=replicates, generator=generator
        )
        for part in parts
    }


def stored_as(key: str, network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """`network` as it is stored: in half precision, which is too coarse for a cold energy only."""
    network.load_state_dict(weights)
    network = network if key == "energy_cold" else network.half().float()
    return network.eval().requires_grad_(False)


def energy_of(game: Game, kind: str, function: nn.Module) -> nn.Module:
    """The energy whose stored part is `function`."""
    return Confined(function, game.scale) if kind == "warm" else function


def r1(discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """The penalty of all games."""
    return GAMMA / 2 * losses.r1_penalty(discriminator, real)


class Pipeline:
    """One round of the training pipeline at each call: the energy's negatives, for `train_ebm`.

    A round draws x_g = G(z), starts chains at samples of a buffer or, with probability FRESH, at
    x_g, and moves them by N_STEPS of `kernel`. The discriminator takes their ends for real and x_g
    for fake, the generator lowers -log D (Viskov et al., algorithms 2 and 3; its minus is missing
    there). `d_losses` are those of each round, (R,).
    """

    def __init__(
        self,
        gan: Gan,
        kernel: Kernel,
        size: tuple[int, int],
        rounds: int,
        generator: torch.Generator,
        penalty: Penalty | None = None,
        **adam: Any,
    ) -> None:
        self.gan, self.kernel, self.size, self.penalty = gan, kernel, size, penalty
        with torch.no_grad():
            first = gan.generator(gan.prior((size[0], BUFFER), generator))
        self.buffer = ReplayBuffer(lambda *_: first, BUFFER, generator, size[0], 0.0)
        adam = {"lr": adam["learning_rate"], "betas": adam["betas"]}
        self.adams = [torch.optim.Adam(net.parameters(), **adam, fused=True) for net in gan[1::-1]]
        self.decays = [
            torch.optim.lr_scheduler.LambdaLR(it, lambda step: min(1.0, 2 * (1 - step / rounds)))
            for it in self.adams  # as in `train_gan`
        ]
        self.d_losses: list[Tensor] = []

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        fake = self.draw(generator)
        is_fresh = rand(*self.size, generator=generator) < FRESH
        start = self.buffer.draw(self.size[1], generator)
        start[is_fresh] = fake[is_fresh]
        real = run_chain(self.kernel, start, N_STEPS, generator, N_STEPS).positions[-1]
        self.buffer.store(real)
        self.play(real, fake, generator)
        return real

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> Tensor:
        """G(z), (R, n, *event)."""
        return self.gan.generator(self.gan.prior(self.size, generator))

    def play(self, real: Tensor, fake: Tensor, generator: torch.Generator) -> None:
        """A step of each player of the GAN."""
        with torch.enable_grad():
            d_loss = losses.gan_d_loss(self.gan.discriminator(real), self.gan.discriminator(fake))
            loss = d_loss
            if self.penalty is not None:
                loss = loss + self.penalty(self.gan.discriminator, real, fake, generator)
            self.descend(0, loss)
            with switched_off("requires_grad", self.gan.discriminator.parameters()):
                d = self.gan.logit(self.gan.prior(self.size, generator))
                self.descend(1, losses.non_saturating_g_loss(d, d))
        self.d_losses.append(d_loss.detach())

    def descend(self, player: int, loss: Tensor) -> None:
        """A step of Adam for the discriminator, 0, or the generator, 1."""
        self.adams[player].zero_grad()
        loss.sum().backward()
        self.adams[player].step()
        self.decays[player].step()


def train(name: str, kind: str, rounds: int, replicates: int, seed: int) -> dict[str, Any]:
    """The weights of a kind after all rounds, and the course of the training."""
    game, rng, data = GAMES[name], seeded(seed), data_of(name)
    networks = new_networks(game, kind, replicates, rng)
    pair = (networks[f"{part}_{kind}"] for part in ("generator", "discriminator"))
    gan = Gan(*pair, game.generator["in_features"])
    if kind == "plain":
        rule = losses.gan_d_loss, losses.non_saturating_g_loss
        how = {"replicates": replicates, "penalty": r1, **game.gan}
        course = {"d_loss": train_gan(gan, data, *rule, rounds, rng, **how).d_loss}
    else:
        energy, settings = energy_of(game, kind, networks[f"energy_{kind}"]), dict(game.gan)
        size = replicates, settings.pop("batch_size")
        pipeline = Pipeline(gan, kernel_of(game, kind, energy), size, rounds, rng, r1, **settings)
        history: EbmHistory = train_ebm(
            energy,
            data,
            pipeline,
            rounds,
            rng,
            replicates=replicates,
            batch_size=size[1],
            alpha=ALPHA[kind],
            **game.ebm[kind],
        )
        course = {"d_loss": torch.stack(pipeline.d_losses), "gap": history.fake - history.real}
    ends = None if kind == "plain" else pipeline.buffer.positions[:, : game.n_scored].clone()
    return {
        "weights": {key: network.state_dict() for key, network in networks.items()},
        "buffer": ends,
        "course": {
            key: values.cpu().unflatten(0, (-1, EVERY)).mean(dim=1)
            for key, values in course.items()
        },
    }


def refit(name: str, gan: Gan, steps: int, replicates: int, seed: int) -> dict[str, Tensor]:
    """The weights of a discriminator fitted to the finished generators."""
    rng, how = seeded(seed), {"replicates": replicates}
    fresh = mlp(**layers_of(GAMES[name], "discriminator_refitted"), **how, generator=rng)
    refitted = refit_discriminator(gan, fresh, data_of(name), steps, rng, **how, **REFIT)
    return refitted.discriminator.state_dict()


@torch.no_grad()
def score(
    name: str,
    networks: dict[str, nn.Module],
    buffers: dict[str, Tensor],
    replicates: int,
    seed: int,
    kinds: tuple[str, ...] = KINDS,
) -> dict[str, Tensor]:
    """The scores of each kind's draws, of its chains, and of fresh data."""
    game, rng, data = GAMES[name], seeded(seed), data_of(name)
    size = replicates, game.n_scored
    y = data(size, rng)
    samples, found = {"data/floor": data(size, rng)}, {}
    for kind in kinds:
        z = randn(*size, game.generator["in_features"], generator=rng)
        x = samples[f"{kind}/generator"] = networks[f"generator_{kind}"](z)
        if kind == "plain":
            continue
        samples[f"{kind}/buffer"] = buffers[kind]
        energy = energy_of(game, kind, networks[f"energy_{kind}"])
        chains = {"chains": (kernel_of(game, kind, energy), N_STEPS)}
        if kind == "cold":
            chains["long"] = kernel_of(game, kind, energy, game.eta[1]), game.n_long
        for key, (kernel, n) in chains.items():
            samples[f"{kind}/{key}"] = run_chain(kernel, x, n, rng, n).positions[-1]
        if name != "digits_gan_ebm":
            found[f"{kind}/kl"] = divergences(name, energy, replicates)
    for key, x in samples.items():
        if name == "digits_gan_ebm":
            found[key] = torch.stack(list(metrics.precision_coverage(x, y, K))).float()
        else:
            found[key] = metrics.emd(x, y).float()
    return found


def longer(name: str, seed: int) -> dict[str, Tensor]:
    """The scores of a cold training of more rounds."""
    rounds, replicates = LONGER[name]
    made = train(name, "cold", rounds, replicates, seed)
    networks = new_networks(GAMES[name], "cold", replicates, seeded(seed))
    for key, network in networks.items():
        network.load_state_dict(made["weights"][key])
        network.eval().requires_grad_(False)
    return score(name, networks, {"cold": made["buffer"]}, replicates, seed + 1, ("cold",))


def divergences(name: str, energy: Energy, replicates: int) -> Tensor:
    """KL(p || e^{-E/T} / Z) within the box, at each of the temperatures, (T, R)."""
    cells = law_of(name), BOX, replicates, N_CELLS
    found = [
        metrics.kl_to_truth(lambda x, t=t: energy(x).double() / t, *cells) for t in TEMPERATURES
    ]
    return torch.stack(found).float()


def settings_of(name: str, rounds: int, refit_steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the checkpoint `name` depends on, but for the seed."""
    return {
        **GAMES[name]._asdict(),
        "gamma": GAMMA,
        "n_steps": N_STEPS,
        "cold": [SIGMA, BOUND],
        "alpha": ALPHA,
        "buffer": [BUFFER, FRESH],
        "every": EVERY,
        "temperatures": TEMPERATURES,
        "refit": [REFITTED, REFIT, refit_steps],
        "cells": [BOX, N_CELLS],
        "k": K,
        "rounds": rounds,
        "replicates": replicates,
        "longer": LONGER.get(name),
    }


def parts_of(name: str, rounds: int, refit_steps: int) -> dict[str, float]:
    """The parts of a checkpoint, with how long each takes beside others."""
    sizes = {"plain": rounds / 15, "cold": rounds, "warm": rounds, "scores": rounds / 2}
    if refit_steps:
        sizes["refitted"] = refit_steps / 5
    if name in LONGER:
        sizes["longer"] = 1.5 * rounds
    return {f"{name}, {part}": size for part, size in sizes.items()}


def make(name: str, rounds: int, refit_steps: int, seed: int, run: runs.Run) -> runs.Made:
    """Networks, tensors and scores of the checkpoint `name`, from the finished parts of `run`."""
    game, replicates = GAMES[name], run.given["settings"]["replicates"]
    networks, tensors, buffers, seconds = {}, {}, {}, 0.0
    # The refit comes last: all else is what it is without it.
    alone = {key: value for key, value in run.given["settings"].items() if key != "refit"}
    alone = {**run.given, "settings": alone}
    for kind in KINDS:
        made, took = run.once(
            f"{name}, {kind}", lambda kind=kind: train(name, kind, rounds, replicates, seed), alone
        )
        seconds += took
        for key, network in new_networks(game, kind, replicates, seeded(seed)).items():
            networks[key] = stored_as(key, network, made["weights"][key])
        tensors |= {f"{kind}/{key}": values for key, values in made["course"].items()}
        buffers[kind] = made["buffer"]
    scores, took = run.once(
        f"{name}, scores", lambda: score(name, networks, buffers, replicates, seed + 2), alone
    )
    if name in LONGER:
        more, took = run.once(f"{name}, longer", lambda: longer(name, seed + 3), alone)
        scores |= {f"longer/{key.replace('/', '_')}": values for key, values in more.items()}
        seconds += took
    if refit_steps:
        key = "discriminator_refitted"
        gan = Gan(networks["generator_plain"], nn.Identity(), game.generator["in_features"])
        weights, took = run.once(
            f"{name}, refitted", lambda: refit(name, gan, refit_steps, replicates, seed + 1)
        )
        how = {"replicates": replicates, "generator": seeded(seed)}
        networks[key] = stored_as(key, mlp(**layers_of(game, key), **how), weights)
        seconds += took
    # No page shows the discriminators of the pipelines, nor any of digits.
    shown = ("discriminator_plain", "discriminator_refitted") if refit_steps else ()
    networks = {k: net for k, net in networks.items() if k in shown or "discriminator" not in k}
    built = {
        key: (
            network if key == "energy_cold" else network.half(),
            mlp,
            {**layers_of(game, key), "replicates": replicates},
        )
        for key, network in networks.items()
    }
    means = {
        key: list(metrics.mean_interval(values)[:3])
        for key, values in scores.items()
        if values.ndim == 1
    }
    return built, tensors | scores, {**means, "seconds": round(seconds + took, 1)}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=GAMES, help="one checkpoint (default: all)")
    what = f"of each training, a multiple of {EVERY} (default: 1500, 600 on digits)"
    parser.add_argument("--rounds", type=runs.at_least(EVERY), help=what)
    what = "of the refitted discriminator on the plane (default: 2000)"
    parser.add_argument("--refit-steps", type=runs.at_least(1), help=what)
    parser.add_argument("--replicates", type=runs.at_least(2), help="(default: 10, 5 on digits)")
    args = runs.parse(parser, argv)
    if (args.rounds or 0) % EVERY:
        parser.error(f"--rounds must be a multiple of {EVERY}, got {args.rounds}")
    wanted, steps = {}, {}
    for name in [args.only] if args.only else GAMES:
        replicates, usual = args.replicates or GAMES[name].replicates, STEPS[name]
        refit_steps = usual[1] and (args.refit_steps or usual[1])
        steps[name] = args.rounds or usual[0], refit_steps
        wanted[name] = settings_of(name, *steps[name], replicates), parts_of(name, *steps[name])
    runs.make_checkpoints(
        "gan_with_ebm", wanted, lambda name, run: make(name, *steps[name], args.seed, run), args
    )


if __name__ == "__main__":
    main()
