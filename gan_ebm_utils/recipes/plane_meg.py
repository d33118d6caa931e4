"""Play MEG's game in the plane, ten replicates of each kind, and make its energy a density.

    python -m gan_ebm_utils.recipes.plane_meg

writes three checkpoints. `gaussians25_meg` and `swiss_roll_meg` hold `energy`, that of the game
after further steps of maximum likelihood. The first also holds `generator` and `energy_played` as
the game has left them; `discriminator`, the log ratio of the density of `energy` to the
generator's; and scores of games without the entropy term. `meg_sweep` holds scores of generators
from games with fewer steps of the energy to one of the generator, with the term and without it.

The energy of the game is no density of the data, since the generator's draws, its negatives, are
not draws of the energy. In the further steps they are weighted until they are; `course` holds the
KL divergence (in nats) along the way, and along the way of two controls: with persistent chains
that begin at the generator's draws, and without the generator. All takes about half an hour on one
CPU core; a run that is cut off goes on after the last part that was finished.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gan_ebm_utils import losses, metrics, runs
from gan_ebm_utils.base import Distribution, Energy, Gan, Sample, rand, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid, swiss_roll
from gan_ebm_utils.energies import NegativeEnergy
from gan_ebm_utils.networks import energy_mlp, mlp
from gan_ebm_utils.recipes.plane_gans import REFIT, REFITTED, rounded
from gan_ebm_utils.samplers import ReplayBuffer, mala
from gan_ebm_utils.training import persistent, refit_discriminator, train_ebm, train_gan

GENERATOR = {"in_features": 2, "hidden": [128] * 3, "out_features": 2, "activation": "ReLU"}
# Frequencies of a larger scale, or more of them, made the game run away in trials: KL of hundreds.
ENERGY = {"in_features": 2, "hidden": [128, 128], "fourier": [16, 1.0], "scale": 2.0}
INFORMATION = {"in_features": 4, "hidden": [128, 128]}
TRAINING = {"batch_size": 256, "learning_rate": 5e-4, "betas": [0.5, 0.9], "d_steps": 5}
PENALTY = 0.1  # on the squared norm of the energy's gradient at data, as in the paper
FINISH = {"batch_size": 256, "learning_rate": 1e-2, "betas": [0.5, 0.99]}
AVERAGE = 0.99  # the decay of the running average of the weights
# The draws that are weighted come from Gaussians about N_CENTRES draws of the generator, with a
# share of WIDE_SHARE from N(0, WIDE^2 I), for what no centre is near. Their density is known.
# With fewer points, or fewer wide ones, energies learned single points: KL of 0.25 in a trial.
N_CENTRES, N_POOL, N_CANDIDATES = 1000, 100_000, 4000
WIDE_SHARE, WIDE = 0.2, 2.0
# Of the control of persistent chains, which runs for fewer steps: what it shows is there at once.
CHAINS = {"step_size": 0.0025, "k": 5, "capacity": 2000, "fresh_share": 0.05, "n_steps": 400}
N_RECORDS = 4  # values of the KL along the way, after equal numbers of steps
BOX, N_CELLS = (-6.0, 6.0, -6.0, 6.0), 400  # of the quadrature
N_SAMPLES, N_DISTANCE = 10_000, 1000  # per replicate, for the scores of the generator
STD = 0.05  # of the 25 Gaussians
N_STD = 4  # a sample within so many standard deviations of a mode is one of its


class Law(NamedTuple):
    """What is learned, in how many steps, and the width of Gaussians about draws of the generator.

    Steps are those of the generator in the game, and those of the energy after it.
    """

    truth: Distribution
    steps: tuple[int, int]
    blur: float


LAWS = {
    "gaussians25_meg": Law(gaussian_grid(std=STD), (1500, 1500), 0.1),
    "swiss_roll_meg": Law(swiss_roll(), (1000, 1000), 0.05),
}
CONTROLS = ("chains", "wide")  # of the steps after the game
D_STEPS = (1, 2)  # of the energy to one of the generator, in `meg_sweep`
NAMES = (*LAWS, "meg_sweep")


class Player(nn.Module):
    """A generator, and the function T of its entropy term, which learns with it."""

    def __init__(self, generator: nn.Module, information: nn.Module) -> None:
        super().__init__()
        self.generator, self.information = generator, information

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)


def new_networks(replicates: int, generator: torch.Generator) -> dict[str, nn.Module]:
    """The players of a game before its first step."""
    how = {"replicates": replicates, "generator": generator}
    return {
        "generator": mlp(**GENERATOR, **how),
        "information": mlp(**INFORMATION, **how),
        "energy": energy_mlp(**ENERGY, **how),
    }


def penalty(discriminator: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """MEG's penalty on an energy, or on d = -E, at data x."""
    return PENALTY * losses.r1_penalty(discriminator, x)


def minus_information(gan: Gan, z: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the bound of Jensen and Shannon on the dependence of x = G(z) and z."""
    information = gan.generator.information
    product = torch.cat([x, z.roll(1, dims=1)], dim=2)  # each x with another's z
    return -losses.jsd_information(information(torch.cat([x, z], dim=2)), information(product))


def play(
    law: Law,
    has_entropy: bool,
    replicates: int,
    seed: int,
    d_steps: int = TRAINING["d_steps"],
) -> dict[str, Any]:
    """The weights of the players after all steps of their game."""
    rng = seeded(seed)
    networks = new_networks(replicates, rng)
    player = Player(networks["generator"], networks["information"])
    train_gan(
        Gan(player, NegativeEnergy(networks["energy"]), GENERATOR["in_features"]),
        law.truth.sample,
        losses.wasserstein_d_loss,  # of d = -E: E_p E - E E(G(z))
        losses.wasserstein_g_loss,  # E E(G(z))
        law.steps[0],
        rng,
        replicates=replicates,
        penalty=penalty,
        g_penalty=minus_information if has_entropy else None,
        **{**TRAINING, "d_steps": d_steps},
    )
    return {name: network.state_dict() for name, network in networks.items()}


def draws_of(generator: nn.Module, replicates: int) -> Sample:
    """Draws of each replicate's generator, (R, n, 2), or of all together, (n, 2)."""

    @torch.no_grad()
    def draw(size: tuple[int, ...], rng: torch.Generator) -> Tensor:
        n = size[-1]
        x = generator(randn(replicates, n, GENERATOR["in_features"], generator=rng))
        if len(size) == 2:
            return x
        which = torch.randint(replicates, (n,), generator=rng, device=rng.device)
        return x[which, torch.arange(n, device=rng.device)]

    return draw


class Pool(NamedTuple):
    """Points (R, n, 2) and the log density by which each was drawn, (R, n)."""

    points: Tensor
    log_q: Tensor


@torch.no_grad()
def pool_of(
    generator: nn.Module, blur: float, wide_share: float, replicates: int, rng: torch.Generator
) -> Pool:
    """Points about draws of the generator, or, with a chance of `wide_share`, from N(0, WIDE^2 I).

    q(y) = (1 - w) mean_j N(y; c_j, blur^2 I) + w N(y; 0, WIDE^2 I) with the draws c_j.
    """
    centres = draws_of(generator, replicates)((replicates, N_CENTRES), rng)
    which = torch.randint(N_CENTRES, (N_POOL,), generator=rng, device=rng.device)
    near = centres[:, which] + blur * randn(replicates, N_POOL, 2, generator=rng)
    far = WIDE * randn(replicates, N_POOL, 2, generator=rng)
    is_far = rand(replicates, N_POOL, 1, generator=rng) < wide_share
    points = torch.where(is_far, far, near)

    def log_normal(squares: Tensor, std: float) -> Tensor:
        return -squares / (2 * std**2) - math.log(2 * math.pi * std**2)

    parts = []
    for part in points.split(500, dim=1):
        squares = torch.cdist(part, centres).square()
        parts.append(log_normal(squares, blur).logsumexp(dim=2) - math.log(N_CENTRES))
    from_near = torch.cat(parts, dim=1)
    from_far = log_normal(points.square().sum(dim=2), WIDE)
    share = torch.tensor(wide_share, device=points.device)
    log_q = torch.logaddexp(from_near + (-share).log1p(), from_far + share.log())
    return Pool(points, log_q)


@torch.no_grad()
def weighted(energy: Energy, pool: Pool, n: int, rng: torch.Generator) -> Tensor:
    """n draws of e^{-E}/Z, (R, n, 2), from N_CANDIDATES of the pool with weights e^{-E}/q."""
    some = torch.randint(pool.points.shape[1], (N_CANDIDATES,), generator=rng, device=rng.device)
    points = pool.points[:, some]
    weights = (-energy(points) - pool.log_q[:, some]).softmax(dim=1)
    chosen = torch.multinomial(weights, n, replacement=True, generator=rng)
    return points.gather(1, chosen[..., None].expand(-1, -1, 2))


def kl(energy: nn.Module, truth: Distribution, replicates: int) -> Tensor:
    """KL(p || p_E) of each replicate, in nats, (R,)."""
    return metrics.kl_to_truth(energy, truth, BOX, replicates, N_CELLS).float().cpu()


def finish(
    law: Law, played: dict[str, Any], how: str, replicates: int, seed: int
) -> dict[str, Any]:
    """Maximum likelihood for the energy of a game, whose generator stays as it is.

    `how` is "weighted", or one of the controls. Returns the running average of the weights, and its
    KL along the way, (N_RECORDS + 1, R), the first that of the game's energy.
    """
    rng = seeded(seed)
    networks = new_networks(replicates, rng)
    for name, network in networks.items():
        network.load_state_dict(played[name])
    energy, generator = networks["energy"], networks["generator"].requires_grad_(False)
    n_steps = law.steps[1]
    if how == "chains":
        n_steps = CHAINS["n_steps"]
        kept = {key: CHAINS[key] for key in ("capacity", "fresh_share")}
        fresh = draws_of(generator, replicates)
        buffer = ReplayBuffer(fresh, generator=rng, replicates=replicates, **kept)
        negatives = persistent(mala(energy, CHAINS["step_size"]), CHAINS["k"], buffer)
    else:
        share = 1.0 if how == "wide" else WIDE_SHARE
        pool = pool_of(generator, law.blur, share, replicates, rng)

        def negatives(x: Tensor, rng: torch.Generator) -> Tensor:
            return weighted(energy, pool, x.shape[1], rng)

    average = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    course = [kl(energy, law.truth, replicates)]
    every = n_steps // N_RECORDS

    def follow(step: int, history: object) -> None:
        average.update_parameters(energy)
        if (step + 1) % every == 0 and len(course) <= N_RECORDS:
            course.append(kl(average.module, law.truth, replicates))

    train_ebm(
        energy,
        law.truth.sample,
        negatives,
        n_steps,
        rng,
        replicates=replicates,
        callback=follow,
        **FINISH,
    )
    return {"energy": average.module.state_dict(), "course": torch.stack(course)}


def refit(
    gan: Gan, energy: Energy, blur: float, steps: int, replicates: int, seed: int
) -> dict[str, Tensor]:
    """The weights of a discriminator between draws of e^{-E}/Z and those of the generator."""
    rng = seeded(seed)
    pool = pool_of(gan.generator, blur, WIDE_SHARE, replicates, rng)

    def draw(size: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return weighted(energy, pool, size[1], rng)

    start = mlp(**REFITTED, replicates=replicates, generator=rng)
    refitted = refit_discriminator(gan, start, draw, steps, rng, replicates=replicates, **REFIT)
    return refitted.discriminator.state_dict()


@torch.no_grad()
def score(generator: nn.Module, truth: Distribution, replicates: int, seed: int) -> dict[str, Any]:
    """Scores of the draws of generators, (R,)."""
    rng = seeded(seed)
    x = draws_of(generator, replicates)((replicates, N_SAMPLES), rng)
    y = truth.sample((replicates, N_DISTANCE), rng)
    found = {"energy_distance": metrics.energy_distance(x[:, :N_DISTANCE], y)}
    if truth.means is not None:
        report = metrics.mode_report(x, truth.means, STD, n_std=N_STD)
        found |= {key: getattr(report, key) for key in ("recovered", "high_quality", "jsd")}
    return {key: values.float().cpu() for key, values in found.items()}


def variants() -> dict[str, tuple[bool, int]]:
    """Whether a game of `meg_sweep` has the entropy term, and its steps of the energy."""
    return {f"{d} {kind}": (kind == "with", d) for d in D_STEPS for kind in ("with", "without")}


def make_sweep(replicates: int, seed: int, run: runs.Run) -> runs.Made:
    """The scores of the generators of `meg_sweep`, whose networks are not stored."""
    law, tensors, seconds = LAWS["gaussians25_meg"], {}, []
    for part, (has_entropy, d_steps) in variants().items():
        game = partial(play, law, has_entropy, replicates, seed, d_steps)
        played, took = run.once(f"meg_sweep, {part}", game)
        generator = new_networks(replicates, seeded(seed))["generator"]
        found = score(rounded(generator, played["generator"]), law.truth, replicates, seed + 3)
        tensors |= {f"{part}/{key}": values for key, values in found.items()}
        seconds.append(took)
    return {}, tensors, {**intervals(tensors), "seconds": round(sum(seconds), 1)}


def intervals(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    """Mean and 95 % interval over replicates; of a course, those at its end."""
    last = {key: values[-1] if "course" in key else values for key, values in tensors.items()}
    return {key: list(metrics.mean_interval(values.double())[:3]) for key, values in last.items()}


def parts_of(name: str, refit_steps: int) -> dict[str, float]:
    """The parts of a checkpoint, with how long each takes beside the others."""
    if name == "meg_sweep":
        steps, _ = LAWS["gaussians25_meg"].steps
        return {f"{name}, {part}": steps * (0.2 + d / 4) for part, (_, d) in variants().items()}
    game, end = LAWS[name].steps
    sizes = {"played": 1.5 * game, "weighted": end}
    if name == "gaussians25_meg":
        sizes |= {"refitted": refit_steps, "played without": 1.2 * game}
        sizes |= {"chains": CHAINS["n_steps"], "wide": end}
    return {f"{name}, {part}": size for part, size in sizes.items()}


def make(name: str, refit_steps: int, replicates: int, seed: int, run: runs.Run) -> runs.Made:
    """Networks, tensors and scores of the checkpoint `name`, from the finished parts of `run`."""
    if name == "meg_sweep":
        return make_sweep(replicates, seed, run)
    law, seconds = LAWS[name], []

    def once(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        made, took = run.once(f"{name}, {part}", lambda: function(*arguments))
        seconds.append(took)
        return made

    def built(network: str, weights: dict[str, Tensor]) -> nn.Module:
        return rounded(new_networks(replicates, seeded(seed))[network], weights)

    played = once("played", play, law, True, replicates, seed)
    ended = once("weighted", finish, law, played, "weighted", replicates, seed + 1)
    generator, energy = built("generator", played["generator"]), built("energy", ended["energy"])
    networks = {"energy": (energy, energy_mlp, ENERGY)}
    tensors = {"course": ended["course"], "kl": kl(energy, law.truth, replicates)}
    tensors |= score(generator, law.truth, replicates, seed + 3)
    if name == "gaussians25_meg":
        gan = Gan(generator, None, GENERATOR["in_features"])
        how = law.blur, refit_steps, replicates, seed + 2
        judge = mlp(**REFITTED, replicates=replicates, generator=seeded(seed))
        judge = rounded(judge, once("refitted", refit, gan, energy, *how))
        networks |= {
            "generator": (generator, mlp, GENERATOR),
            "energy_played": (built("energy", played["energy"]), energy_mlp, ENERGY),
            "discriminator": (judge, mlp, REFITTED),
        }
        without = once("played without", play, law, False, replicates, seed)["generator"]
        without = built("generator", without)
        found = score(without, law.truth, replicates, seed + 3)
        tensors |= {f"without/{key}": values for key, values in found.items()}
        for control in CONTROLS:
            found = once(control, finish, law, played, control, replicates, seed + 1)
            tensors[f"course/{control}"] = found["course"]
    scores = intervals({**tensors, "kl_played": ended["course"][0]})
    half = {
        key: (network.half(), build, {**layers, "replicates": replicates})
        for key, (network, build, layers) in networks.items()
    }
    return half, tensors, {**scores, "seconds": round(sum(seconds), 1)}


def settings_of(name: str, refit_steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the checkpoint `name` depends on, but for the seed."""
    if name == "meg_sweep":
        grid = settings_of("gaussians25_meg", refit_steps, replicates)
        of_game = ("generator", "energy", "information", "penalty", "batch_size", "learning_rate")
        scored = ("betas", "n_samples", "n_distance", "std", "n_std", "replicates")
        own = {"variants": variants(), "n_steps": grid["steps"][0]}
        return own | {key: grid[key] for key in (*of_game, *scored)}
    given = {
        "generator": GENERATOR,
        "energy": ENERGY,
        "information": INFORMATION,
        **TRAINING,
        "steps": LAWS[name].steps,
        "penalty": PENALTY,
        "finish": {**FINISH, "average": AVERAGE, "n_records": N_RECORDS},
        "pool": {
            "blur": LAWS[name].blur,
            "sizes": [N_CENTRES, N_POOL, N_CANDIDATES],
            "wide": [WIDE_SHARE, WIDE],
        },
        "box": BOX,
        "n_cells": N_CELLS,
        "n_samples": N_SAMPLES,
        "n_distance": N_DISTANCE,
        "replicates": replicates,
    }
    if name == "gaussians25_meg":
        given |= {"refitted": REFITTED, "refit": {**REFIT, "steps": refit_steps}}
        given |= {"controls": CONTROLS, "chains": CHAINS, "std": STD, "n_std": N_STD}
    return given


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refit-steps", type=runs.at_least(1), default=600)
    parser.add_argument("--replicates", type=runs.at_least(2), default=10)
    args = runs.parse(parser, argv)
    how = args.refit_steps, args.replicates
    wanted = {name: (settings_of(name, *how), parts_of(name, args.refit_steps)) for name in NAMES}
    how = *how, args.seed
    runs.make_checkpoints("plane_meg", wanted, lambda name, run: make(name, *how, run), args)


if __name__ == "__main__":
    main()
