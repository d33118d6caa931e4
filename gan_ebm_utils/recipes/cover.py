"""Draw the cover: data, what a GAN draws, and the energy that its discriminator defines.

    python -m gan_ebm_utils.recipes.cover --out book/_static/cover.png

The GAN is replicate 0 of the checkpoint `gaussians25_gan`. Its draws get Gaussian noise of standard
deviation BLUR, so that their law p_g has a density, an average of Gaussians over latents:
p_g(x) = E_z N(x; G(z), BLUR^2 I). A fresh discriminator is fitted to tell data from these draws,
and the right panel shows -log p_g(x) - d(x) in nats above its minimum. Grey is where neither law
has a sample nearby, and d is unknown.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from gan_ebm_utils import checkpoints, losses, metrics, plotting
from gan_ebm_utils.base import default_device, partial_folder, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.training import fit_discriminator

BLUR = 0.03
BOX = (-2.5, 2.5, -2.5, 2.5)
DISCRIMINATOR = {"in_features": 2, "hidden": [128, 128], "fourier": [64, 5.0]}
N_KERNELS = 20_000
TOP = 10.0  # nats above the minimum where the colours end


def log_kernel_density(x: Tensor, centres: Tensor) -> Tensor:
    """log sum_c N(x; c, BLUR^2 I) over centres (m, 2), at points (n, 2), up to a constant."""
    parts = []
    for rows in x.split(1000):
        squares = (rows[:, None] - centres).square().sum(dim=2)
        parts.append(torch.logsumexp(-squares / (2 * BLUR**2), dim=1))
    return torch.cat(parts)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")

    generator, law = seeded(args.seed), gaussian_grid()
    checkpoint = checkpoints.load("gaussians25_gan", default_device())
    replicates = checkpoint.card["settings"]["replicates"]

    def draw(n: int, rng: torch.Generator) -> Tensor:
        """n points of replicate 0, (n, 2); the others are drawn and left."""
        with torch.no_grad():
            return checkpoint.networks["generator"](randn(replicates, n, 2, generator=rng))[0]

    def blurred(size: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return (draw(size[1], rng) + BLUR * randn(size[1], 2, generator=rng))[None]

    discriminator = mlp(**DISCRIMINATOR, generator=generator)
    fit_discriminator(
        discriminator,
        law.sample,
        blurred,
        losses.gan_d_loss,
        args.steps,
        generator,
        batch_size=512,
    )
    data, draws = law.sample(5000, generator), draw(5000, generator)
    report = metrics.mode_report(draws[None], law.means, std=0.05)
    centres = draw(N_KERNELS, generator)

    def energy(x: Tensor) -> Tensor:
        log_density = log_kernel_density(x, centres)
        known = torch.cdist(x, torch.cat([data, centres])).min(dim=1).values < 4 * BLUR
        values = -log_density - discriminator(x[None])[0]
        return torch.where(known, values - values[known].min(), torch.nan)

    plotting.set_style()
    figure, axes = plt.subplots(1, 3, figsize=(15, 5))
    plotting.scatter(axes[0], data, BOX, plotting.REAL, "data")
    plotting.scatter(axes[1], draws, BOX, plotting.FAKE, "what the generator draws")
    axes[2].set_facecolor("0.9")
    mesh = plotting.heatmap(
        axes[2], energy, BOX, r"energy $-\log p_g(x) - d(x)$", n=250, cmap="mako", vmax=TOP
    )
    figure.colorbar(mesh, ax=axes[2], label="nats above the minimum", extend="max", shrink=0.8)
    for ax in axes:
        ax.title.set_size(16)
    facts = {
        "recipe": "cover",
        "settings": {**DISCRIMINATOR, "steps": args.steps, "blur": BLUR, "kernels": N_KERNELS},
        "seed": args.seed,
        "generator": {name: float(values) for name, values in report._asdict().items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(args.out.parent) as part:
        figure.savefig(part / args.out.name, metadata={"Description": json.dumps(facts)})
        os.replace(part / args.out.name, args.out)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
