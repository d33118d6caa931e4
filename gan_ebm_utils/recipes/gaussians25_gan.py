"""Train ten GANs on the 25 Gaussians with R1, ten without it, and refit the discriminators.

    python -m gan_ebm_utils.recipes.gaussians25_gan

writes the checkpoint `gaussians25_gan`: `generator` and `discriminator` trained with R1,
`discriminator_refitted` fitted to those generators when they were finished,
`generator_without_r1` and `discriminator_without_r1` trained without, each ten replicates behind
one leading axis, and a card. It takes about half an hour on two CPU cores. GANs that the folder
already holds, trained with the same settings and seed, are kept, and only the refit is run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics
from gan_ebm_utils.base import Distribution, Gan, default_device, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid, minibatches
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.refine import ddls, drs, mh_gan
from gan_ebm_utils.training import refit_discriminator, train_gan

STD = 0.05
DISCRIMINATOR = {"in_features": 2, "hidden": [128, 128, 128], "activation": "ReLU"}
GENERATOR = {**DISCRIMINATOR, "out_features": 2}
TRAINING = {"batch_size": 256, "learning_rate": 1e-3, "betas": [0.5, 0.99]}
GAMMA = 0.1
# The modes are narrow, so the refitted discriminator sees Fourier features.
REFITTED = {"in_features": 2, "hidden": [64, 64], "fourier": [64, 2.0]}
REFIT = {"batch_size": 512, "learning_rate": 5e-3}
N_REFIT = 100_000  # data points that the refit sees, the same for all replicates
SAMPLERS = {
    "drs": (drs, {}),
    "mh_gan": (mh_gan, {"n_steps": 640}),
    "ddls": (ddls, {"step_size": 1e-4, "n_steps": 1000}),
}
N_SAMPLES = 10_000  # per replicate, for the scores on the card
N_EMD = 1000


def train(gamma: float, steps: int, replicates: int, seed: int) -> Gan:
    """`replicates` GANs with the non-saturating loss and the penalty gamma/2 E |grad d|^2."""
    generator = seeded(seed)
    gan = Gan(
        mlp(**GENERATOR, replicates=replicates, generator=generator),
        mlp(**DISCRIMINATOR, replicates=replicates, generator=generator),
        GENERATOR["in_features"],
    )

    def penalty(
        discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
    ) -> Tensor:
        return gamma / 2 * losses.r1_penalty(discriminator, real)

    train_gan(
        gan,
        gaussian_grid(std=STD).sample,
        losses.gan_d_loss,
        losses.non_saturating_g_loss,
        steps,
        generator,
        replicates=replicates,
        penalty=penalty if gamma else None,
        **TRAINING,
    )
    return gan


def refit(gan: Gan, law: Distribution, steps: int, replicates: int, seed: int) -> nn.Module:
    """A discriminator fitted to the finished generators of `gan` on N_REFIT points of `law`."""
    generator = seeded(seed)
    gan.generator.requires_grad_(False)
    discriminator = mlp(**REFITTED, replicates=replicates, generator=generator)
    data = minibatches(law.sample((N_REFIT,), generator))
    refit_discriminator(gan, discriminator, data, steps, generator, replicates=replicates, **REFIT)
    return discriminator


def score(x: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Mean and 95 % interval over replicates of each score of x (R, n, 2)."""
    law, replicates = gaussian_grid(std=STD), len(x)
    scores = metrics.mode_report(x, law.means, STD, n_std=4)._asdict()
    scores["emd"] = metrics.emd(x[:, :N_EMD], law.sample((replicates, N_EMD), generator))
    scores["emd_floor"] = metrics.emd_floor(law.sample, N_EMD, generator, replicates)
    return {
        name: list(metrics.mean_interval(values)[:3]) if values.isfinite().all() else None
        for name, values in scores.items()
    }


def kept_gans(settings: dict[str, Any], seed: int, folder: Path | None) -> tuple[dict, dict]:
    """Networks and scores of the GANs that `folder` holds, if settings and seed are those given."""
    if "gaussians25_gan" not in checkpoints.available(folder):
        return {}, {}
    stored = checkpoints.load("gaussians25_gan", folder=folder)
    theirs = stored.card["settings"]
    if stored.card["seed"] != seed or any(theirs.get(k) != v for k, v in settings.items()):
        return {}, {}
    builders = stored.card["networks"]
    networks = {
        name: (network, builders[name]["function"], builders[name]["kwargs"])
        for name, network in stored.networks.items()
        if name != "discriminator_refitted"
    }
    scores = {k: v for k, v in stored.card["metrics"].items() if k.startswith("gamma")}
    return networks, {**scores, "seconds": stored.card["metrics"]["seconds"]}


def new_gans(
    settings: dict[str, Any], seed: int
) -> tuple[dict[str, tuple[nn.Module, str, dict]], dict[str, Any]]:
    """The GANs with and without R1 and their scores."""
    networks, scores, start = {}, {}, time.perf_counter()
    replicates = settings["replicates"]
    for suffix, gamma in (("", GAMMA), ("_without_r1", 0.0)):
        gan = train(gamma, settings["steps"], replicates, seed)
        rng = seeded(seed + 1)
        with torch.no_grad():
            x = gan.generator(randn(replicates, N_SAMPLES, gan.latent_dim, generator=rng))
        scores[f"gamma {gamma}"] = score(x, rng)
        for part, network, kwargs in (
            ("generator", gan.generator, GENERATOR),
            ("discriminator", gan.discriminator, DISCRIMINATOR),
        ):
            networks[part + suffix] = (network, "mlp", {**kwargs, "replicates": replicates})
    return networks, {**scores, "seconds": round(time.perf_counter() - start, 1)}


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

    settings = {
        **TRAINING,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "std": STD,
        "steps": args.steps,
        "replicates": args.replicates,
        "n_samples": N_SAMPLES,
        "n_emd": N_EMD,
    }
    networks, scores = kept_gans(settings, args.seed, args.out)
    if not networks:
        networks, scores = new_gans(settings, args.seed)

    start = time.perf_counter()
    gan = Gan(networks["generator"][0], networks["discriminator"][0], GENERATOR["in_features"])
    refitted = refit(gan, gaussian_grid(std=STD), args.refit_steps, args.replicates, args.seed + 2)
    # Half the digits are enough for a logit; the scores are those of what is stored.
    refitted = refitted.half().float()
    scores["seconds_refit"] = round(time.perf_counter() - start, 1)
    for name, (sampler, options) in SAMPLERS.items():
        rng = seeded(args.seed + 3)
        found = sampler(
            gan._replace(discriminator=refitted),
            N_SAMPLES,
            rng,
            replicates=args.replicates,
            **options,
        )
        scores[f"refitted, {name}"] = score(found.samples, rng)
        print(name, scores[f"refitted, {name}"], flush=True)
    kwargs = {**REFITTED, "replicates": args.replicates}
    networks["discriminator_refitted"] = (refitted.half(), "mlp", kwargs)
    card = {
        "recipe": "gaussians25_gan",
        "settings": {
            **settings,
            "refitted": REFITTED,
            "refit": {**REFIT, "steps": args.refit_steps, "n_data": N_REFIT},
            "samplers": {name: options for name, (_, options) in SAMPLERS.items()},
        },
        "seed": args.seed,
        "metrics": scores,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": default_device().type,
        "threads": torch.get_num_threads(),
    }
    checkpoints.save("gaussians25_gan", networks, {}, card, args.out)
    print(json.dumps(card["metrics"], indent=2))


if __name__ == "__main__":
    main()
