"""Train generators as samplers of energies of the plane, ten of each kind.

    python -m gan_ebm_utils.recipes.plane_directed

writes the checkpoint `plane_directed`. A kind says what stands for the entropy in the generator's
loss E - H: "none"; "0.01", "0.1" and "1", the batch-norm stand-in with this weight; "coordinates",
the Gaussian bound by the variances of the coordinates; "exact", the entropy of an invertible
generator. The tensors fixed/KIND/NAME are of generators of the known energy of a ring: draws
(R, n, 2), their energy, entropy, stand-in, bound and modes, (R,), and the course of entropy,
stand-in and bound over the steps, (records, R). The tensors LAW/KIND/NAME are of games in which the
energy is learned from data, on the same ring and on a wide Swiss roll, and the networks
energy_LAW_KIND are these energies; kl is KL(p || p_E), kl_of_draws that of the draws to p_E. It
takes about 20 minutes on one CPU core; a run that is cut off goes on after the last training that
was finished.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from gan_ebm_utils import metrics, runs
from gan_ebm_utils.base import Distribution, Energy, Gan, evaluating, seeded
from gan_ebm_utils.datasets import gaussian_ring, swiss_roll
from gan_ebm_utils.entropy import gaussian_bound, nearest_neighbour_entropy, scale_entropy
from gan_ebm_utils.networks import CouplingFlow, mlp, product_of_experts
from gan_ebm_utils.recipes.plane_gans import rounded
from gan_ebm_utils.training import generated, train_ebm

FIXED = ("none", "0.01", "0.1", "1", "coordinates", "exact")
LEARNED = ("none", "1", "coordinates", "exact")
NOISE = 1.0  # of the Swiss roll: wide, so that its band has an inside
RING = {"n_modes": 8, "radius": 1.5, "std": 0.15}
LAWS = {"ring": gaussian_ring(**RING), "swiss_roll": swiss_roll(NOISE)}
GENERATOR = {"in_features": 4, "hidden": [128, 128], "out_features": 2, "activation": "ReLU"}
FLOW = {"n_layers": 8, "hidden": [32, 32]}
# Of the energies; scale is the width of the confining term.
ENERGY = {"in_features": 2, "hidden": [64, 64], "n_experts": 16, "fourier": [16, 1.0], "scale": 2.0}
DESCENT = {"learning_rate": 1e-3, "betas": [0.5, 0.99], "batch_size": 256, "n_steps": 1500}
# The energy learns slowly and the generator moves several times for each of its steps, so that the
# draws are negatives of the present energy; at equal rates games ran away in trials.
GAME = {**DESCENT, "batch_size": 128, "n_steps": 2000, "energy_rate": 3e-4, "g_steps": 3}
EVERY, N_COURSE = 50, 500  # steps between records of the course, and the draws of one
N_SAMPLES, N_EMD, N_SHOWN = 2000, 1000, 500  # draws that are scored, also by the EMD, and stored
BOX, N_CELLS = (-8.0, 8.0, -8.0, 8.0), 400  # of the quadrature
STD, LEAST = 2, 0.25  # a mode holds what is within 2 deviations, and is found at 25 % of its share


def new_generator(kind: str, replicates: int, rng: torch.Generator) -> tuple[nn.Module, int]:
    """A generator before its first step, and its number of latents."""
    how = {"replicates": replicates, "generator": rng}
    if kind == "exact":
        return CouplingFlow(**FLOW, **how), 2
    return mlp(**GENERATOR, batch_norm=True, **how), GENERATOR["in_features"]


def entropy_term(kind: str, generator: nn.Module, z: Tensor, x: Tensor) -> Tensor | float:
    """What stands for the entropy of G(z) in the loss, (R,)."""
    if kind == "none":
        return 0.0
    if kind == "coordinates":
        return gaussian_bound(x)
    if kind == "exact":
        return generator.entropy(z)
    return float(kind) * scale_entropy(generator, len(x))


def climb(gan: Gan, kind: str, energy: Energy, optimizer: Any, size: Any, rng: Any) -> None:
    """One step of the generator down E(G(z)) minus what stands for its entropy."""
    z = gan.prior(size, rng)
    x = gan.generator(z)
    loss = energy(x).mean(dim=1) - entropy_term(kind, gan.generator, z, x)
    optimizer.zero_grad()
    loss.sum().backward()
    optimizer.step()


def adam(network: nn.Module, how: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=how["learning_rate"], betas=how["betas"])


def share_of(step: int, n_steps: int) -> float:
    """The share of the learning rate, which falls linearly to 0 over the second half."""
    return min(1.0, 2 * (1 - step / n_steps))


def entropies(x: Tensor) -> Tensor:
    """Nearest-neighbour entropies (R,), -inf where draws coincide and have no density."""
    found = []
    for one in x:
        try:
            found.append(nearest_neighbour_entropy(one[None]))
        except ValueError:
            found.append(torch.full((1,), -torch.inf, dtype=torch.float64))
    return torch.cat(found)


def modes(x: Tensor) -> Tensor:
    """The modes of the ring that hold enough of the draws, (R,)."""
    means = LAWS["ring"].means
    near = torch.cdist(x, means.expand(len(x), -1, -1)) < STD * RING["std"]
    return (near.float().mean(dim=1) >= LEAST / len(means)).sum(dim=1)


@torch.no_grad()
def look(gan: Gan, kind: str, n: int, replicates: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Draws of the generators, their entropy, its bound and its stand-in."""
    with evaluating(gan.generator):
        z = gan.prior((replicates, n), rng)
        x = gan.generator(z)
        found = {"draws": x, "entropy": entropies(x), "bound": gaussian_bound(x)}
        if kind == "exact":
            found["exact"] = gan.generator.entropy(z)
        else:
            found["stand_in"] = scale_entropy(gan.generator, replicates)
    return found


def stored(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they lie in the checkpoint: scores in single precision, some of the draws in half."""
    draws = found.pop("draws")[:, :N_SHOWN].half().cpu()
    return {"draws": draws, **{key: value.float().cpu() for key, value in found.items()}}


def fixed(kind: str, replicates: int, seed: int) -> dict[str, Tensor]:
    """Scores of generators of the known energy of the ring, and their course."""
    rng, judge, ring = seeded(seed), seeded(seed + 1), LAWS["ring"]
    generator, latent_dim = new_generator(kind, replicates, rng)
    gan, optimizer = Gan(generator, None, latent_dim), adam(generator, DESCENT)
    energy = lambda x: -ring.log_prob(x)  # noqa: E731
    course: dict[str, list[Tensor]] = {}
    size, n_steps = (replicates, DESCENT["batch_size"]), DESCENT["n_steps"]
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = DESCENT["learning_rate"] * share_of(step, n_steps)
        if step % EVERY == 0:
            seen = look(gan, kind, N_COURSE, replicates, judge)
            del seen["draws"]
            for key, values in seen.items():
                course.setdefault(key, []).append(values.float().cpu())
        climb(gan, kind, energy, optimizer, size, rng)
    found = look(gan, kind, N_SAMPLES, replicates, judge)
    found |= {"modes": modes(found["draws"]), "energy": energy(found["draws"]).mean(dim=1)}
    courses = {f"course/{key}": torch.stack(values) for key, values in course.items()}
    return {**stored(found), **courses}


def learned(law: Distribution, kind: str, replicates: int, seed: int) -> tuple[dict, dict]:
    """The weights of energies that are learned against generators, and scores of the draws."""
    rng = seeded(seed)
    generator, latent_dim = new_generator(kind, replicates, rng)
    energy = product_of_experts(**ENERGY, replicates=replicates, generator=rng)
    gan, optimizer = Gan(generator, None, latent_dim), adam(generator, GAME)
    size, n_steps = (replicates, GAME["batch_size"]), GAME["n_steps"]

    def follow(step: int, history: Any) -> None:
        optimizer.param_groups[0]["lr"] = GAME["learning_rate"] * share_of(step, n_steps)
        for _ in range(GAME["g_steps"]):
            climb(gan, kind, energy, optimizer, size, rng)

    train_ebm(
        energy,
        law.sample,
        generated(gan),
        n_steps,
        rng,
        replicates=replicates,
        batch_size=GAME["batch_size"],
        learning_rate=GAME["energy_rate"],
        betas=GAME["betas"],
        callback=follow,
    )
    return energy.state_dict(), look(gan, kind, N_SAMPLES, replicates, seeded(seed + 1))


@torch.no_grad()
def score(energy: nn.Module, law: Distribution, found: dict, seed: int) -> dict[str, Tensor]:
    """Scores of learned energies and of the draws of their generators, (R,)."""
    x, rng = found["draws"], seeded(seed)
    log_z = metrics.log_partition(energy, BOX, len(x), N_CELLS)
    entropy = found.get("exact", found["entropy"])
    return stored(
        {
            **found,
            "kl": metrics.kl_to_truth(energy, law, BOX, len(x), N_CELLS),
            "kl_of_draws": energy(x).mean(dim=1).cpu() + log_z.cpu() - entropy.cpu(),
            "emd": metrics.emd(x[:, :N_EMD], law.sample((len(x), N_EMD), rng)),
            "emd_floor": metrics.emd_floor(law.sample, N_EMD, rng, len(x)),
        }
    )


def settings_of(replicates: int) -> dict[str, Any]:
    """Everything that the trainings and their scores depend on, but for the seed."""
    return {
        "fixed": FIXED,
        "learned": LEARNED,
        "ring": RING,
        "noise": NOISE,
        "generator": GENERATOR,
        "flow": FLOW,
        "energy": ENERGY,
        "descent": DESCENT,
        "game": GAME,
        "course": [EVERY, N_COURSE],
        "n_samples": [N_SAMPLES, N_EMD, N_SHOWN],
        "box": BOX,
        "n_cells": N_CELLS,
        "mode": [STD, LEAST],
        "replicates": replicates,
    }


def make(name: str, seed: int, run: runs.Run) -> runs.Made:
    """Energies, tensors and scores of the checkpoint, from the finished parts of `run`."""
    replicates, tensors, networks, seconds = run.given["settings"]["replicates"], {}, {}, 0.0
    for kind in FIXED:
        made, took = run.once(f"fixed, {kind}", lambda kind=kind: fixed(kind, replicates, seed))
        tensors |= {f"fixed/{kind}/{key}": value for key, value in made.items()}
        seconds += took
    how = {**ENERGY, "replicates": replicates}
    for law_name, law in LAWS.items():
        for kind in LEARNED:
            (weights, found), took = run.once(
                f"{law_name}, {kind}",
                lambda law=law, kind=kind: learned(law, kind, replicates, seed),
            )
            seconds += took
            energy = rounded(product_of_experts(**how, generator=seeded(seed)), weights)
            scores = score(energy, law, found, seed + 2)
            tensors |= {f"{law_name}/{kind}/{key}": value for key, value in scores.items()}
            networks[f"energy_{law_name}_{kind}"] = (energy.half(), product_of_experts, how)
    medians = {
        key: round(float(values.median()), 4)
        for key, values in tensors.items()
        if values.ndim == 1 and values.isfinite().all()
    }
    return networks, tensors, {**medians, "seconds": round(seconds, 1)}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=runs.at_least(2), default=10)
    args = runs.parse(parser, argv)
    parts = {f"fixed, {kind}": DESCENT["n_steps"] for kind in FIXED}
    parts |= {f"{name}, {kind}": 4 * GAME["n_steps"] for name in LAWS for kind in LEARNED}
    wanted = {"plane_directed": (settings_of(args.replicates), parts)}
    runs.make_checkpoints(
        "plane_directed", wanted, lambda name, run: make(name, args.seed, run), args
    )


if __name__ == "__main__":
    main()
