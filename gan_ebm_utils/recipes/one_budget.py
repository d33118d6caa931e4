"""Run every sampler on the same GANs at the same budgets of network calls, and score the samples.

    python -m gan_ebm_utils.recipes.one_budget gaussians25

writes the checkpoint `one_budget_gaussians25`; `swiss_roll` and `mnist` are the other two. A pass
is one sample through generator and discriminator, forward or backward. Its tensors are named
`discriminator/sampler/budget/score` and hold one number for each replicate of the stored GANs. Of
several sizes of steps one is chosen for each budget, by samples that are not scored, on MNIST
against a half of the test set that scores no sampler. MALA on the plane takes its sizes at random
instead, and on the Swiss roll has one longer budget. Each takes an hour or more on one CPU core; a
run that is cut off goes on after the last part that was finished.

A sampler is a row of SAMPLERS. The card holds a key for each part, a digest of what it depends on,
and a part that the checkpoint in `--out` holds under its key is taken from there: a sampler that is
added is all that is run. The digest is of a sampler's name and arguments, not of its code: one that
does something else needs another name.

On MNIST the networks compute in bfloat16, and the features for the FID in single precision.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_ebm_utils import checkpoints, metrics, runs
from gan_ebm_utils.base import (
    Calls,
    Gan,
    Kernel,
    Refined,
    count_calls,
    default_device,
    seeded,
)
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
REAL, DRAWS = "real/data/0", "none/generator/1"  # tensors of the two rows without a sampler
WATCHED = ("still", "rhat", "ess", "hops", "unique")  # the scores of chains
# `part` samples are drawn at a time; `n_emd` of them, the first, are scored by EMD and energy
# distance; `cells` are box and number for the test against the density. `longer` budgets are for
# one sampler alone.
PLANE = {"budgets": (10, 100, 1000), "n_choice": 500, "part": 1000}
GAMES: dict[str, dict[str, Any]] = {
    "gaussians25": {
        **PLANE,
        "gans": "gaussians25_gan",
        "n": 10_000,
        "n_emd": 2000,
        "cells": ((-2.5, 2.5, -2.5, 2.5), 25),  # one holds a mode's middle
    },
    "swiss_roll": {
        **PLANE,
        "gans": "swiss_roll_gan",
        "n": 5000,
        "n_emd": 5000,
        "cells": ((-2.0, 2.5, -2.5, 2.5), 10),
        "longer": {"ddls": (4000,)},  # its chains walk along the roll
    },
    "mnist": {
        "gans": "mnist_gan",
        "n": 2000,
        "budgets": (10, 100),
        "n_choice": 250,
        "part": 250,
        "arithmetic": "bfloat16",
    },
}


class Sampler(NamedTuple):
    """A sampler of the comparison: a row of SAMPLERS.

    `draw(gan, n, generator, replicates=R, part=m, **arguments)` returns `Refined`, n samples of
    each replicate of which at most m are in the making. `arguments(budget, n, size)` are those with
    which it spends about `budget` passes for each of n samples: whole steps, first states and the
    last pass through the generator do not fit every budget; what was spent is counted. `sizes` are
    those to choose among, by the game. `kernel(gan, arguments)` is one step of its chains, if they
    can be watched, and takes `passes`. `cost` gives the passes for a sample from the share of
    accepted proposals, where they are not those of all replicates. A sampler with `is_own` is also
    run with the discriminator that the GAN was trained with.
    """

    draw: Callable[..., Refined]
    arguments: Callable[[int, int, Any], dict[str, Any]]
    sizes: dict[str, tuple]
    kernel: Callable[[Gan, dict[str, Any]], Kernel] | None = None
    passes: int = 1
    cost: Callable[[Tensor], Tensor] | None = None
    is_own: bool = False


def in_parts(sampler: Callable[..., Refined]) -> Callable[..., Refined]:
    """A sampler of `refine` as `Sampler.draw`."""

    def draw(
        gan: Gan, n: int, generator: torch.Generator, *, part: int, **arguments: Any
    ) -> Refined:
        done = [sampler(gan, part, generator, **arguments) for _ in range(n // part)]
        rate = done[0].acceptance_rate
        if rate is not None:
            rate = torch.stack([each.acceptance_rate for each in done]).mean(dim=0)
        samples = torch.cat([each.samples for each in done], dim=1)
        forward, backward = (sum(calls) for calls in zip(*(d.calls for d in done), strict=True))
        return Refined(samples, None, rate, Calls(forward, backward))

    return draw


def rejected(
    gan: Gan, n: int, generator: torch.Generator, *, part: int, **arguments: Any
) -> Refined:
    """Rejection of proposals, `part` at a time, with one pilot for all n samples."""
    return drs(gan, n, generator, batch_size=part, **arguments)


def rejection_cost(acceptance: Tensor) -> Tensor:
    """All replicates propose until the last has its samples; each is charged for its own.

    The pilot is one pass for each sample, and the last through the generator a half.
    """
    return 1 / acceptance + 1.5


def transported(
    gan: Gan, n: int, generator: torch.Generator, *, replicates: int, **arguments: Any
) -> Refined:
    """Optimal transport with one estimate of k for all parts."""
    k = lipschitz_estimate(gan, generator, replicates=replicates)[:, None]
    return in_parts(dot)(gan, n, generator, replicates=replicates, k=k, **arguments)


def with_gradients(budget: int, **sizes: Any) -> dict[str, Any]:
    """Arguments of a sampler each of whose steps goes forward and backward."""
    return {**sizes, "n_steps": (budget - 3) // 2}


# MALA has one law at every size. Those of the plane were found in a trial with other seeds: the
# smallest is accepted where the energy is steepest, the largest walks along the roll.
MALA_SIZES = {
    "gaussians25": ((1e-2, 1e-3, 1e-4, 1e-5),),
    "swiss_roll": ((1.0, 1e-1, 1e-2, 1e-3),),
    "mnist": ((1.0, 0.3), (0.3, 0.1), (0.1, 0.03)),
}
LANGEVIN_SIZES = {
    **dict.fromkeys(("gaussians25", "swiss_roll"), (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)),
    "mnist": (0.3, 0.1, 0.03, 0.01),
}
DOT_SIZES = {
    **dict.fromkeys(("gaussians25", "swiss_roll"), (0.003, 0.01, 0.03, 0.1, 0.3)),
    "mnist": (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
}
FLOW_SIZES = {
    **dict.fromkeys(("gaussians25", "swiss_roll"), (2e-1, 2e-2, 2e-3, 2e-4, 2e-5, 2e-6)),
    "mnist": (0.5, 0.2, 0.05, 0.02),
}
SAMPLERS = {
    "drs": Sampler(
        rejected,
        lambda budget, n, _: {"budget": budget - 1, "n_pilot": n, "max_proposals": 2 * budget * n},
        {},
        cost=rejection_cost,
        is_own=True,
    ),
    "mh_gan": Sampler(
        in_parts(mh_gan),
        lambda budget, n, _: {"n_steps": budget - 2},
        {},
        lambda gan, _: independence_mh(gan.logit, gan.prior),
        is_own=True,
    ),
    "isir_gan": Sampler(
        in_parts(isir_gan),
        lambda budget, n, _: {
            "n_candidates": N_CANDIDATES,
            "n_steps": (budget - 1) // (N_CANDIDATES - 1),
        },
        {},
        lambda gan, given: isir(gan.logit, gan.prior, given["n_candidates"]),
        N_CANDIDATES - 1,
        is_own=True,
    ),
    "ddls": Sampler(
        in_parts(ddls),
        lambda budget, n, sizes: with_gradients(budget, step_size=sizes),
        MALA_SIZES,
        lambda gan, given: mixture(*(mala(latent_energy(gan), s) for s in given["step_size"])),
        2,
        is_own=True,
    ),
    "langevin": Sampler(
        in_parts(partial(ddls, kernel=langevin)),
        lambda budget, n, size: with_gradients(budget, step_size=size),
        LANGEVIN_SIZES,
        lambda gan, given: langevin(latent_energy(gan), given["step_size"]),
        2,
    ),
    "dot": Sampler(
        transported,
        lambda budget, n, size: with_gradients(budget, learning_rate=size),
        DOT_SIZES,
    ),
    "dgflow": Sampler(
        in_parts(dgflow),
        lambda budget, n, size: with_gradients(budget, step_size=size, temperature=TEMPERATURE),
        FLOW_SIZES,
        lambda gan, given: langevin(flow_energy(gan), given["step_size"], given["temperature"]),
        2,
    ),
}


class Judge(NamedTuple):
    """How samples (R, n, *event) are scored.

    `score` gives numbers (R,) by name, `error` what a choice of settings makes small, from other
    data, `mode` the mode that a sample belongs to, (...), where the law has modes, and `real` draws
    samples of the data, to be scored like others. `given` says what the results of each depend on.
    `tensors` and `facts` are stored with the scores.
    """

    score: Callable[[Tensor], dict[str, Tensor]]
    error: Callable[[Tensor], float]
    mode: Callable[[Tensor], Tensor] | None
    real: Callable[[], Tensor]
    given: dict[str, Any]
    tensors: dict[str, Tensor]
    facts: dict[str, float]


def judged(name: str, seed: int, read_from: dict[str, str]) -> dict[str, Any]:
    """What the results of each function of a judge depend on."""
    if name == "mnist":
        halves_of = {**read_from, "seed": seed}
        return {"error": halves_of, "score": halves_of, "mode": {}}
    game, is_grid = GAMES[name], name == "gaussians25"
    law = {"law": name, **({"std": STD} if is_grid else {})}
    error = {**law, "cells": game["cells"]}
    score = {**error, **({"n_std": N_STD} if is_grid else {}), "n_emd": game["n_emd"], "seed": seed}
    return {"error": error, "score": score, "mode": law}


def plane_judge(name: str, n: int, replicates: int, seed: int) -> Judge:
    """Scores against a law of the plane, its sample the same for all samplers."""
    law = gaussian_grid(std=STD) if name == "gaussians25" else swiss_roll()
    rng, cells, n_emd = seeded(seed), GAMES[name]["cells"], min(n, GAMES[name]["n_emd"])
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
        judged(name, seed, {}),
        {},
        {},
    )


def halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows 0 to n - 1 in two halves by chance: one to choose settings on, one to score on."""
    rows = torch.randperm(n, generator=seeded(seed, "cpu"))
    return rows[: n // 2], rows[n // 2 :]


@torch.no_grad()
def mnist_judge(n: int, replicates: int, seed: int, read_from: dict[str, str]) -> Judge:
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
    return Judge(score, error, None, real, judged("mnist", seed, read_from), tensors, facts)


class Use(NamedTuple):
    """A sampler at a budget, with a discriminator: "refitted", or "own", trained with the GAN."""

    which: str
    sampler: str
    budget: int

    @property
    def name(self) -> str:
        return "/".join(map(str, self))

    @property
    def row(self) -> Sampler:
        return SAMPLERS[self.sampler]

    @property
    def is_watched(self) -> bool:
        return self.row.kernel is not None and self.budget >= MIN_WATCHED


def uses_of(game: dict[str, Any]) -> list[Use]:
    """All runs of a game: the trained discriminators at its last budget but one."""
    uses = [Use("refitted", sampler, b) for b in game["budgets"] for sampler in SAMPLERS]
    uses += [
        Use("refitted", s, b) for s, budgets in game.get("longer", {}).items() for b in budgets
    ]
    return uses + [Use("own", s, game["budgets"][-2]) for s, row in SAMPLERS.items() if row.is_own]


class Comparison(runs.Run):
    """A run that takes parts from `known`, too: of each its key and its result."""

    def __init__(
        self, known: dict[str, tuple[str, Any]], *arguments: Any, **read_from: str
    ) -> None:
        super().__init__(*arguments, **read_from)
        self.known = known

    def found(self, name: str, key: str) -> dict[str, Any] | None:
        """As of any run; a known part has taken no time."""
        known, made = self.known.get(name, (None, None))
        return {"made": made, "seconds": [0.0]} if known == key else super().found(name, key)

    def made(self, name: str, given: dict[str, Any]) -> Any:
        """What `once` would return at once; None if it would have to make it."""
        found = self.found(name, runs.key_of(given))
        return found and found["made"]


class Bench(NamedTuple):
    """What all runs of a game share: its GANs, the judge, the number of samples, and the seed."""

    name: str
    gans: checkpoints.Checkpoint
    judge: Judge
    n: int
    seed: int

    def sizes(self, use: Use) -> tuple:
        """Those to choose among."""
        return use.row.sizes.get(self.name, (None,))

    def counts(self, n: int) -> dict[str, int]:
        return {"n": n, "part": min(n, GAMES[self.name]["part"])}

    def seed_of(self, *names: Any) -> int:
        """A seed of its own for each part of the run."""
        text = json.dumps([self.seed, self.name, *names])
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)

    def given(self, use: Use, **further: Any) -> dict[str, Any]:
        """What the results of a sampler depend on."""
        shared = {"gans_sha256": self.gans.card["sha256"], **use._asdict()}
        return {**shared, "arithmetic": GAMES[self.name].get("arithmetic"), **further}

    def choice_given(self, use: Use) -> dict[str, Any]:
        """Of the errors of all sizes."""
        counts = self.counts(min(self.n, GAMES[self.name]["n_choice"]))
        return self.given(
            use,
            arguments=[use.row.arguments(use.budget, counts["n"], s) for s in self.sizes(use)],
            **counts,
            judge=self.judge.given["error"],
            seed=self.seed_of(use.sampler, use.budget, "choice"),
        )

    def scores_given(self, use: Use, size: Any) -> dict[str, Any]:
        """Of `scores`."""
        return self.given(
            use,
            arguments=use.row.arguments(use.budget, self.n, size),
            **self.counts(self.n),
            judge=self.judge.given["score"],
            seed=self.seed_of(use.name),
        )

    def watch_given(self, use: Use, size: Any) -> dict[str, Any]:
        """Of `watch`."""
        return self.given(
            use,
            arguments=use.row.arguments(use.budget, self.n, size),
            passes=use.row.passes,
            n_chains=N_CHAINS,
            judge=self.judge.given["mode"],
            seed=self.seed_of(use.name, "watch"),
        )

    def draws_given(self) -> dict[str, Any]:
        """Of the scores of what the generator draws."""
        shared = {"gans_sha256": self.gans.card["sha256"], "judge": self.judge.given["score"]}
        shared |= {"arithmetic": GAMES[self.name].get("arithmetic"), **self.counts(self.n)}
        return {**shared, "seed": self.seed_of("generator")}

    def parts_of(self, use: Use, whole: Comparison) -> dict[str, float]:
        """The parts of a run, with how long each takes: about as its passes, 0 if it is there."""
        of, name, parts = self.sizes(use), f"{use.name}-choice", {}
        errors = [0.0]
        if len(of) > 1:
            given = self.choice_given(use)
            errors = whole.made(name, given)
            parts[name] = 0 if errors else len(of) * use.budget * given["n"]
        size = best(of, errors) if errors else None
        scored = errors and whole.made(use.name, self.scores_given(use, size))
        parts[use.name] = 0 if scored else use.budget * self.n
        if use.is_watched:
            name = f"{use.name}-watch"
            watched = errors and whole.made(name, self.watch_given(use, size))
            parts[name] = 0 if watched else use.budget * N_CHAINS
        return parts


def best(sizes: tuple, errors: list[float]) -> Any:
    """The one with the smallest error."""
    return sizes[min(range(len(errors)), key=errors.__getitem__)]


class Run(NamedTuple):
    """Samples (R, n, *event), and of each replicate the share of accepted proposals and passes."""

    samples: Tensor
    acceptance: Tensor | None
    passes: Tensor


def run(row: Sampler, gan: Gan, replicates: int, given: dict[str, Any]) -> Run:
    """n samples of each replicate, with the arguments and the seed that are given."""
    n, rng = given["n"], seeded(given["seed"])
    how = {"replicates": replicates, "part": given["part"], **given["arguments"]}
    with count_calls(gan.generator, gan.discriminator) as calls:
        done = row.draw(gan, n, rng, **how)
    rate = done.acceptance_rate
    if rate is not None:
        rate = rate.cpu().double()
    spent = sum(calls()) / 2 / (n * replicates)
    passes = row.cost(rate) if row.cost else torch.full((replicates,), spent, dtype=torch.float64)
    return Run(done.samples.float(), rate, passes)


def scores(
    row: Sampler, gan: Gan, replicates: int, judge: Judge, given: dict[str, Any]
) -> dict[str, Tensor]:
    """Scores of a run as numbers (R,) by name."""
    done = run(row, gan, replicates, given)
    found = {**judge.score(done.samples), "passes": done.passes}
    return found if done.acceptance is None else {**found, "acceptance": done.acceptance}


def errors_of(
    row: Sampler, gan: Gan, replicates: int, judge: Judge, given: dict[str, Any]
) -> list[float]:
    """Errors of samples that no score sees; infinite where chains blow up."""

    def error(arguments: dict[str, Any]) -> float:
        try:
            x = run(row, gan, replicates, {**given, "arguments": arguments}).samples
        except FloatingPointError:
            return float("inf")
        return judge.error(x) if bool(x.isfinite().all()) else float("inf")

    return [error(arguments) for arguments in given["arguments"]]


def watch(
    row: Sampler, gan: Gan, replicates: int, judge: Judge, given: dict[str, Any]
) -> dict[str, Tensor]:
    """How N_CHAINS chains of each replicate move within the budget: numbers (R,) by name.

    Chains start at the prior, and no state is left out. `rhat` is the larger and `ess` the smaller
    one of the coordinates of x, over the chains that move; the share of those that stand still is
    `still`, and where fewer than two move R-hat is infinite and the ESS 0. `ess` and `hops`
    (changes of mode) are for 1,000 passes of a chain, and `unique` is the share of states that
    differ from the one before.
    """
    rng, n_chains = seeded(given["seed"]), given["n_chains"]
    n_steps = given["budget"] // given["passes"]
    kernel = row.kernel(gan, given["arguments"])
    z = run_chain(kernel, gan.prior((replicates, n_chains), rng), n_steps, rng).positions
    moved = (z[1:] != z[:-1]).any(dim=-1).double().mean(dim=(0, 2))
    with torch.no_grad():
        x = torch.stack([gan.generator(part) for part in z]).float()
    total = n_steps * given["passes"] * n_chains / 1000
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


@torch.no_grad()
def draws(gan: Gan, replicates: int, given: dict[str, Any]) -> Tensor:
    """What the generator draws, unrefined."""
    rng, size = seeded(given["seed"]), (replicates, given["part"])
    drawn = [gan.generator(gan.prior(size, rng)) for _ in range(given["n"] // given["part"])]
    return torch.cat(drawn, dim=1).float()


def settings_of(name: str, n: int) -> dict[str, Any]:
    """What the card says of a run, but for the seed, the GANs, the data and the judge."""
    modes = {"std": STD, "n_std": N_STD} if name == "gaussians25" else {}
    rows = SAMPLERS.items()
    return {
        **GAMES[name],
        **modes,
        "n": n,
        "samplers": list(SAMPLERS),
        "own": [sampler for sampler, row in rows if row.is_own],
        "settings": {sampler: row.sizes[name] for sampler, row in rows if name in row.sizes},
        "n_candidates": N_CANDIDATES,
        "temperature": TEMPERATURE,
        "n_chains": N_CHAINS,
        "min_watched": MIN_WATCHED,
    }


def known_parts(name: str, folder: Path | None) -> dict[str, tuple[str, Any]]:
    """What the checkpoint `name` in `folder` holds: of each part its key and its result.

    Nothing, where there is no such checkpoint, or one without keys.
    """
    try:
        stored = checkpoints.load(name, folder=folder)
    except (ValueError, RuntimeError):  # there is none, or it is damaged
        return {}
    known, chosen = {}, stored.card.get("chosen", {})
    for part, key in stored.card.get("keys", {}).items():
        if part.endswith("-choice"):
            told = chosen[part]["errors"] if part in chosen else []
            made = [float("inf") if error is None else error for error in told]
        else:
            name = part.removesuffix("-watch")
            each = {k.removeprefix(f"{name}/"): v for k, v in stored.tensors.items()}
            scores = each.keys() - stored.tensors.keys()  # those of this run
            made = {k: each[k] for k in scores if (k in WATCHED) == (name != part)}
        if made:
            known[part] = key, made
    return known


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=GAMES, help="what the GANs were trained on")
    parser.add_argument("--n", type=int, help="samples of each replicate (default: as stored)")
    args = runs.parse(parser, argv)
    game = GAMES[args.name]
    n = game["n"] if args.n is None else args.n
    part = min(n, game["part"])
    if n < 10 or n % part:
        parser.error(f"--n must be at least 10, and a multiple of {part} above that, got {n}")

    device, checkpoint = default_device(), f"one_budget_{args.name}"
    gans = checkpoints.load(game["gans"], device)
    replicates = gans.card["settings"]["replicates"]
    read_from: dict[str, str] = {}
    if args.name == "mnist":
        judge_card = checkpoints.load("mnist_features").card
        read_from = {**runs.mnist_source(), "features_sha256": judge_card["sha256"]}
        judge = mnist_judge(n, replicates, args.seed, read_from)
    else:
        judge = plane_judge(args.name, n, replicates, args.seed)
    bench, uses = Bench(args.name, gans, judge, n, args.seed), uses_of(game)
    settings = settings_of(args.name, n) | {"gans_sha256": gans.card["sha256"]}
    known = known_parts(checkpoint, args.out)
    whole = Comparison(known, "one_budget", settings, args, runs.Progress(), **read_from)
    whole.expect({REAL: n, DRAWS: n})
    for use in uses:
        whole.expect(bench.parts_of(use, whole))

    def once(name: str, given: dict[str, Any], make: Callable[..., Any], *before: Any) -> Any:
        return whole.once(name, lambda: make(*before, given), given)[0]

    found, chosen = {}, {}
    # On pictures, half the digits are enough and take half the time.
    with torch.autocast(device.type, torch.bfloat16, enabled=args.name == "mnist"):
        given = {"judge": judge.given["score"], "n": n, "replicates": replicates}
        found[REAL] = once(REAL, given, lambda _: judge.score(judge.real()))
        given = bench.draws_given()
        found[DRAWS] = once(
            DRAWS, given, lambda how: judge.score(draws(gans.gan(), replicates, how))
        )
        for use in uses:
            (size, *others), part = (of := bench.sizes(use)), f"{use.name}-choice"
            how = use.row, gans.gan("" if use.which == "own" else use.which), replicates, judge
            if others:
                errors = once(part, bench.choice_given(use), errors_of, *how)
                size = best(of, errors)
                told = [error if error < float("inf") else None for error in errors]
                chosen[part] = {"of": of, "errors": told, "chosen": size}
            found[use.name] = once(use.name, bench.scores_given(use, size), scores, *how)
            if use.is_watched:
                part, given = f"{use.name}-watch", bench.watch_given(use, size)
                found[use.name] |= once(part, given, watch, *how)

    tensors = {f"{name}/{score}": v for name, each in found.items() for score, v in each.items()}
    intervals = {
        name: list(metrics.mean_interval(value)[:3]) if value.isfinite().all() else None
        for name, value in tensors.items()
    }
    card = whole.card({**intervals, **judge.facts}) | {"chosen": chosen, "keys": whole.keys}
    checkpoints.save(checkpoint, {}, {**judge.tensors, **tensors}, card, args.out)
    whole.remove_parts()


if __name__ == "__main__":
    main()
