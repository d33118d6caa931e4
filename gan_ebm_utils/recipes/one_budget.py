"""Run every sampler on the same GANs at the same budgets of network calls, and score the samples.

    python -m gan_ebm_utils.recipes.one_budget gaussians25

writes the checkpoint `one_budget_gaussians25`; `swiss_roll` and `mnist` are the other two. A pass
is one sample through generator and discriminator, forward or backward. Its tensors are named
`discriminator/sampler/budget/score` and hold one number for each replicate of the stored GANs. Of
several sizes of steps one is chosen for each budget, by samples that are not scored, on MNIST
against a half of the test set that scores no sampler. MALA on the plane takes its sizes at random
instead, and on the Swiss roll has one longer budget. Each takes an hour or more on one CPU core; a
run that is cut off goes on after the last sampler that was finished.

On MNIST the networks compute in bfloat16, and the features for the FID in single precision.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_ebm_utils import checkpoints, metrics, runs
from gan_ebm_utils.base import Distribution, Gan, Kernel, count_calls, default_device, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid, mnist, swiss_roll
from gan_ebm_utils.energies import flow_energy, latent_energy
from gan_ebm_utils.refine import ddls, dgflow, dot, drs, isir_gan, lipschitz_estimate, mh_gan
from gan_ebm_utils.samplers import independence_mh, isir, langevin, mala, mixture, run_chain

STD = 0.05
N_STD = 4  # a sample within so many standard deviations of a mode is one of its
N_CANDIDATES = 10  # of i-SIR
TEMPERATURE = 0.01  # of DGflow's noise, as published
N_CHAINS = 20  # of each replicate, watched step by step
MIN_WATCHED = 1000  # passes: R-hat of a chain that is shorter says little
SAMPLERS = {
    "drs": drs,
    "mh_gan": mh_gan,
    "isir_gan": isir_gan,
    "ddls": ddls,
    "langevin": functools.partial(ddls, kernel=langevin),
    "dot": dot,
    "dgflow": functools.partial(dgflow, temperature=TEMPERATURE),
}
UNWATCHED = ("drs", "dot")  # without chains, or with one that goes downhill only
OWN = ("drs", "mh_gan", "isir_gan", "ddls")  # also with the discriminator the GAN was trained with
# `part` samples are drawn at a time; `n_emd` of them, the first, are scored by EMD and energy
# distance; `cells` are box and number for the test against the density.
PLANE = {
    "budgets": (10, 100, 1000),
    "n_choice": 500,
    "part": 1000,
    "settings": {
        "langevin": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
        "dot": (0.003, 0.01, 0.03, 0.1, 0.3),
        "dgflow": (2e-1, 2e-2, 2e-3, 2e-4, 2e-5, 2e-6),
    },
}
# MALA has one law at every size. These four were found in a trial with other seeds: the smallest is
# accepted where the energy is steepest, the largest walks along the roll.
GRID_STEPS, ROLL_STEPS = (1e-2, 1e-3, 1e-4, 1e-5), (1.0, 1e-1, 1e-2, 1e-3)
GAMES: dict[str, dict[str, Any]] = {
    "gaussians25": {
        **PLANE,
        "gans": "gaussians25_gan",
        "latent_dim": 4,
        "n": 10_000,
        "n_emd": 2000,
        "cells": ((-2.5, 2.5, -2.5, 2.5), 25),  # one holds a mode's middle
        "settings": {**PLANE["settings"], "ddls": (GRID_STEPS,)},
    },
    "swiss_roll": {
        **PLANE,
        "gans": "swiss_roll_gan",
        "latent_dim": 4,
        "n": 5000,
        "n_emd": 5000,
        "cells": ((-2.0, 2.5, -2.5, 2.5), 10),
        "settings": {**PLANE["settings"], "ddls": (ROLL_STEPS,)},
        "longer": (4000,),  # DDLS alone: its chains walk along the roll
    },
    "mnist": {
        "gans": "mnist_gan",
        "latent_dim": 32,
        "n": 2000,
        "budgets": (10, 100),
        "n_choice": 250,
        "part": 250,
        "settings": {
            "ddls": ((1.0, 0.3), (0.3, 0.1), (0.1, 0.03)),
            "langevin": (0.3, 0.1, 0.03, 0.01),
            "dot": (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
            "dgflow": (0.5, 0.2, 0.05, 0.02),
        },
    },
}


class Judge(NamedTuple):
    """How samples (R, n, *event) are scored.

    `score` gives numbers (R,) by name, `error` what a choice of settings makes small, from other
    data, `mode` the mode that a sample belongs to, (...), where the law has modes, and `real` draws
    samples of the data, to be scored like others. `tensors` and `facts` are stored with the scores.
    """

    score: Callable[[Tensor], dict[str, Tensor]]
    error: Callable[[Tensor], float]
    mode: Callable[[Tensor], Tensor] | None
    real: Callable[[], Tensor]
    tensors: dict[str, Tensor]
    facts: dict[str, float]


def plane_judge(game: dict[str, Any], law: Distribution, replicates: int, seed: int) -> Judge:
    """Scores against a law of the plane, its sample the same for all samplers."""
    rng, n, cells = seeded(seed), game["n"], game["cells"]
    n_emd = min(n, game["n_emd"])
    reference = law.sample((replicates, n_emd), rng)

    def score(x: Tensor) -> dict[str, Tensor]:
        found = {
            "misfit": metrics.chi_square(x, law, *cells),
            "emd": metrics.emd(x[:, :n_emd], reference),
            "energy_distance": metrics.energy_distance(x[:, :n_emd], reference),
        }
        if law.means is not None:
            found |= metrics.mode_report(x, law.means, STD, n_std=N_STD)._asdict()
        return found

    def mode(x: Tensor) -> Tensor:
        points, exact = x.flatten(0, -2).cpu(), "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(points, law.means.cpu(), compute_mode=exact)
        return distance.argmin(dim=1).reshape(x.shape[:-1])

    return Judge(
        score,
        lambda x: float(metrics.chi_square(x, law, *cells).mean()),
        None if law.means is None else mode,
        lambda: law.sample((replicates, n), rng),
        {},
        {},
    )


def halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows 0 to n - 1 in two halves by chance: one to choose settings on, one to score on."""
    rows = torch.randperm(n, generator=seeded(seed, "cpu"))
    return rows[: n // 2], rows[n // 2 :]


@torch.no_grad()
def mnist_judge(n: int, replicates: int, seed: int) -> Judge:
    """FID in the features of `mnist_features`, and the classes that its classifier sees."""
    stored, images = checkpoints.load("mnist_features"), mnist("test").images
    classifier = stored.networks["classifier"]

    def features(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # the judge sees all digits
            return torch.cat([classifier.features(part.float().cpu()) for part in x.split(1000)])

    known, rng = features(images), seeded(seed, "cpu")
    choosing, scoring = halves(len(images), seed)
    truths = [metrics.moments(known[rows]) for rows in (choosing, scoring)]
    share = stored.tensors["test_frequencies"].double()

    def fid(seen: list[Tensor], truth: tuple[Tensor, Tensor]) -> Tensor:
        found = [metrics.moments(part) for part in seen]
        return torch.tensor([metrics.frechet_distance(*each, *truth) for each in found]).double()

    def error(x: Tensor) -> float:
        return float(fid([features(part) for part in x], truths[0]).mean())

    def score(x: Tensor) -> dict[str, Tensor]:
        seen = [features(part) for part in x]
        with torch.autocast("cpu", enabled=False):
            digits = torch.stack([classifier.head(part).argmax(dim=1) for part in seen])
        found = torch.stack([row.bincount(minlength=10) for row in digits]) / x.shape[1]
        # Each against the share of its digit among real images.
        return {"fid": fid(seen, truths[1]), "min_share": (found / share).amin(dim=1).double()}

    def real() -> Tensor:
        rows = [torch.randperm(len(choosing), generator=rng)[:n] for _ in range(replicates)]
        return images[choosing[torch.stack(rows)]]

    middle = len(images) // 2
    ends = [metrics.moments(known[:middle]), metrics.moments(known[middle:])]
    tensors = {
        f"{half}_{part}": value.float()
        for half, truth in zip(("choosing", "scoring"), truths, strict=True)
        for part, value in zip(("mean", "covariance"), truth, strict=True)
    }
    facts = {"fid_between_halves_in_order": metrics.frechet_distance(*ends[0], *ends[1])}
    return Judge(score, error, None, real, tensors, facts)


def arguments(sampler: str, budget: int, n: int, setting: Any) -> dict[str, Any]:
    """Arguments with which a sampler spends about `budget` passes for each of n samples.

    Whole steps, first states and the last pass through the generator do not fit every budget; what
    was spent is counted.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if sampler == "drs":  # a pilot of n proposals is one pass for each sample
        return {"budget": budget - 1, "n_pilot": n, "max_proposals": 2 * budget * n}
    if sampler == "mh_gan":
        return {"n_steps": budget - 2}
    if sampler == "isir_gan":
        return {"n_candidates": N_CANDIDATES, "n_steps": (budget - 1) // (N_CANDIDATES - 1)}
    steps = (budget - 3) // 2  # each forward and backward
    return {"learning_rate" if sampler == "dot" else "step_size": setting, "n_steps": steps}


class Run(NamedTuple):
    """Samples (R, n, *event), the share of accepted proposals (R,), and passes for each sample."""

    samples: Tensor
    acceptance: Tensor | None
    passes: float


def run(
    sampler: str, gan: Gan, n: int, part: int, replicates: int, budget: int, setting: Any, seed: int
) -> Run:
    """n samples of each replicate, `part` at a time, from one sampler at one budget."""
    rng, settings = seeded(seed), arguments(sampler, budget, n, setting)
    parts = [part] * (n // part)
    with count_calls(gan.generator, gan.discriminator) as calls:
        if sampler == "drs":
            settings["batch_size"], parts = part, [n]
        if sampler == "dot":
            settings["k"] = lipschitz_estimate(gan, rng, replicates=replicates)[:, None]
        runs = [SAMPLERS[sampler](gan, m, rng, replicates=replicates, **settings) for m in parts]
    kept = None
    if runs[0].acceptance_rate is not None:
        kept = torch.stack([torch.as_tensor(each.acceptance_rate) for each in runs]).mean(dim=0)
    samples = torch.cat([each.samples for each in runs], dim=1).float()
    return Run(samples, kept, sum(calls()) / 2 / (n * replicates))


def kernel_of(sampler: str, gan: Gan, setting: Any) -> tuple[Kernel, int]:
    """One step of the chains that a sampler runs, and the passes of a step.

    Raises ValueError for a sampler that is unknown or runs no chain that could be watched.
    """

    def propose(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return randn(*size, gan.latent_dim, generator=generator)

    def log_ratio(z: Tensor) -> Tensor:
        return gan.discriminator(gan.generator(z))

    if sampler == "mh_gan":
        return independence_mh(log_ratio, propose), 1
    if sampler == "isir_gan":
        return isir(log_ratio, propose, N_CANDIDATES), N_CANDIDATES - 1
    if sampler == "ddls":
        return mixture(*(mala(latent_energy(gan), size) for size in setting)), 2
    if sampler == "langevin":
        return langevin(latent_energy(gan), setting), 2
    if sampler == "dgflow":
        return langevin(flow_energy(gan), setting, TEMPERATURE), 2
    known = ", ".join(name for name in SAMPLERS if name not in UNWATCHED)
    raise ValueError(f"sampler must be one of {known}, whose chains are known, got {sampler!r}")


def watch(
    sampler: str, gan: Gan, replicates: int, budget: int, setting: Any, judge: Judge, seed: int
) -> dict[str, Tensor]:
    """How N_CHAINS chains of each replicate move within the budget: numbers (R,) by name.

    Chains start at the prior, and no state is left out. `rhat` is the larger and `ess` the smaller
    one of the coordinates of x, over the chains that move; the share of those that stand still is
    `still`, and where fewer than two move R-hat is infinite and the ESS 0. `ess` and `hops`
    (changes of mode) are for 1,000 passes of a chain, and `unique` is the share of states that
    differ from the one before.
    """
    rng = seeded(seed)
    kernel, passes = kernel_of(sampler, gan, setting)
    n_steps = budget // passes
    start = randn(replicates, N_CHAINS, gan.latent_dim, generator=rng)
    z = run_chain(kernel, start, n_steps, rng).positions
    moved = (z[1:] != z[:-1]).any(dim=-1).double().mean(dim=(0, 2))
    with torch.no_grad():
        x = torch.stack([gan.generator(part) for part in z]).float()
    total = n_steps * passes * N_CHAINS / 1000
    still = torch.stack([metrics.stands_still(x[:, r]) for r in range(replicates)]).cpu()
    share = still.double().mean(dim=1)
    found = {
        "still": share,
        "rhat": torch.full_like(share, float("inf")),
        "ess": torch.zeros_like(share),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the numbers are there to show chains that are stuck
        for r in range(replicates):
            if (~still[r]).sum() > 1:
                moving = x[:, r].cpu()[:, ~still[r]]
                found["rhat"][r] = metrics.rhat(moving).max()
                found["ess"][r] = metrics.ess(moving).min() / total
    if judge.mode is not None:
        mode = judge.mode(x)
        found["hops"] = (mode[1:] != mode[:-1]).double().sum(dim=(0, 2)).cpu() / total
    return {**found, "unique": moved.cpu()}


class Bench(NamedTuple):
    """What all runs of a game share; `game` is an entry of GAMES."""

    game: dict[str, Any]
    replicates: int
    judge: Judge


def measure(
    bench: Bench, sampler: str, gan: Gan, budget: int, setting: Any, seeds: tuple[int, int]
) -> dict[str, Tensor]:
    """Scores of a run and, at a large budget, how chains move, as numbers (R,) by name."""
    game, replicates, judge = bench
    done = run(sampler, gan, game["n"], game["part"], replicates, budget, setting, seeds[0])
    found = judge.score(done.samples)
    found["passes"] = torch.full((replicates,), done.passes, dtype=torch.float64)
    if done.acceptance is not None:
        found["acceptance"] = done.acceptance.cpu().double()
    if sampler == "drs":
        # All replicates propose until the last has its samples; each is charged for its own, the
        # pilot's one and the last pass through the generator.
        found["passes"] = 1 / found["acceptance"] + 1.5
    if budget >= MIN_WATCHED and sampler not in UNWATCHED:
        found |= watch(sampler, gan, replicates, budget, setting, judge, seeds[1])
    return found


def error_of(bench: Bench, sampler: str, gan: Gan, budget: int, setting: Any, seed: int) -> float:
    """The error of samples that no score sees; infinite if the setting lets chains blow up."""
    game, replicates, judge = bench
    n, part = game["n_choice"], min(game["n_choice"], game["part"])
    try:
        x = run(sampler, gan, n, part, replicates, budget, setting, seed).samples
    except FloatingPointError:
        return float("inf")
    return judge.error(x) if bool(x.isfinite().all()) else float("inf")


def settings_of(name: str, n: int) -> dict[str, Any]:
    """Everything that the scores depend on, but for the seed, the GANs, the data and the judge."""
    modes = {"std": STD, "n_std": N_STD} if name == "gaussians25" else {}
    return {
        **GAMES[name],
        **modes,
        "n": n,
        "samplers": list(SAMPLERS),
        "own": OWN,
        "n_candidates": N_CANDIDATES,
        "temperature": TEMPERATURE,
        "n_chains": N_CHAINS,
        "min_watched": MIN_WATCHED,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=GAMES, help="what the GANs were trained on")
    parser.add_argument("--n", type=int, help="samples of each replicate (default: as stored)")
    parser.add_argument("--state", **runs.STATE)
    args = runs.parse(parser, argv)
    game = dict(GAMES[args.name])
    n = game["n"] = game["n"] if args.n is None else args.n
    part = min(n, game["part"])
    if n < 10 or n % part:
        parser.error(f"--n must be at least 10, and a multiple of {part} above that, got {n}")

    device = default_device()
    stored = checkpoints.load(game["gans"], device)
    replicates = stored.card["settings"]["replicates"]
    settings = settings_of(args.name, n) | {"gans_sha256": stored.card["sha256"]}
    read_from: dict[str, str] = {}
    if args.name == "mnist":
        judge_card = checkpoints.load("mnist_features").card
        read_from = {**runs.mnist_source(), "features_sha256": judge_card["sha256"]}
        judge = mnist_judge(n, replicates, args.seed)
    else:
        law = gaussian_grid(std=STD) if args.name == "gaussians25" else swiss_roll()
        judge = plane_judge(game, law, replicates, args.seed)
    whole = runs.begin("one_budget", settings, args, **read_from)
    game |= {"part": part, "n_choice": min(n, game["n_choice"])}
    bench = Bench(game, replicates, judge)

    def once(name: str, make: Callable[[], Any]) -> Any:
        return whole.once(name, make)[0]

    def seed_of(*names: Any) -> int:
        """A seed of its own for each part of the run."""
        text = json.dumps([args.seed, args.name, *names])
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)

    chosen: dict[str, Any] = {}

    def choose(name: str, settings: tuple, error: Callable[[Any], float]) -> Any:
        """The setting with the smallest error; all errors go to the card."""
        if len(settings) == 1:
            return settings[0]
        errors = once(name, lambda: [error(setting) for setting in settings])
        best = min(range(len(settings)), key=errors.__getitem__)
        told = [e if e < float("inf") else None for e in errors]
        chosen[name] = {"of": settings, "errors": told, "chosen": settings[best]}
        return settings[best]

    @torch.no_grad()
    def unrefined() -> dict[str, Tensor]:
        rng, generator = seeded(seed_of("generator")), stored.networks["generator"]
        sizes = [part] * (n // part)
        draws = [randn(replicates, m, game["latent_dim"], generator=rng) for m in sizes]
        return judge.score(torch.cat([generator(z) for z in draws], dim=1).float())

    def refined(which: str, sampler: str, gan: Gan, budget: int) -> dict[str, Tensor]:
        name, settings = f"{which}/{sampler}/{budget}", game["settings"].get(sampler, (None,))
        how, seed = (bench, sampler, gan, budget), seed_of(sampler, budget, "choice")
        setting = choose(f"{name}-choice", settings, lambda s: error_of(*how, s, seed))
        seeds = (seed_of(name), seed_of(name, "watch"))
        return once(name, lambda: measure(*how, setting, seeds))

    # Of each: its name, the network, budgets and samplers. Only MALA has longer budgets, and the
    # discriminator that the GAN was trained with only the last but one.
    uses = (
        ("refitted", "discriminator_refitted", game["budgets"], tuple(SAMPLERS)),
        ("refitted", "discriminator_refitted", game.get("longer", ()), ("ddls",)),
        ("own", "discriminator", game["budgets"][-2:-1], OWN),
    )
    # On pictures, half the digits are enough and take half the time.
    with torch.autocast(device.type, torch.bfloat16, enabled=args.name == "mnist"):
        scores = {"real/data/0": once("real", lambda: judge.score(judge.real()))}
        scores["none/generator/1"] = once("generator", unrefined)
        for which, network, budgets, samplers in uses:
            gan = Gan(stored.networks["generator"], stored.networks[network], game["latent_dim"])
            for budget in budgets:
                for sampler in samplers:
                    scores[f"{which}/{sampler}/{budget}"] = refined(which, sampler, gan, budget)

    found = {f"{name}/{score}": v for name, each in scores.items() for score, v in each.items()}
    intervals = {
        name: list(metrics.mean_interval(value)[:3]) if value.isfinite().all() else None
        for name, value in found.items()
    }
    card = whole.card({**intervals, **judge.facts}) | {"chosen": chosen}
    checkpoints.save(f"one_budget_{args.name}", {}, {**judge.tensors, **found}, card, args.out)
    whole.remove_parts()


if __name__ == "__main__":
    main()
