"""Draw the cover: data, what a GAN draws, and the energy that its discriminator defines.

    python -m gan_ebm_utils.recipes.cover --out book/_static/cover.png

The GAN is replicate 0 of the checkpoint `gaussians25_r1`. Its draws get Gaussian noise of standard
deviation BLUR, so that their law p_g has a density, an average of Gaussians over latents:
p_g(x) = E_z N(x; G(z), BLUR^2 I), here over N_KERNELS of them. A fresh discriminator is fitted to
tell data from these draws, and the right panel shows -log p_g(x) - d(x) in nats above its minimum.
Grey is where p + p_g < LEAST, so that d has seen too few samples there. The middle panel shows the
draws without the noise.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from gan_ebm_utils import checkpoints, losses, metrics, plotting, runs
from gan_ebm_utils.base import Gan, default_device, randn, seeded, whole_file
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.training import fit_discriminator

STD = 0.05
BLUR = STD  # narrower noise leaves a p_g that 50,000 kernels and d resolve less well
BOX = (-2.5, 2.5, -2.5, 2.5)
DISCRIMINATOR = {"in_features": 2, "hidden": [128, 128], "fourier": [64, 5.0]}
BATCH_SIZE = 512
N_KERNELS = 50_000
N_SCORED, N_SHOWN = 10_000, 4000
LEAST = 0.004  # of the 4 million samples of the fit, some 130 fall within reach of such a point
TOP = 10.0  # nats above the minimum where the colours end


def log_kernel_density(x: Tensor, centres: Tensor) -> Tensor:
    """log of the mean of N(x; c, BLUR^2 I) over centres (m, 2), at points (n, 2), in nats."""
    log_sum = x.new_empty(len(x))
    # Chunks of 4 MB, written into one tensor: a list of results would fragment the memory.
    rows = max(1, 2**20 // len(centres))
    for first in range(0, len(x), rows):
        chunk = x[first : first + rows, None]
        squares = sum((chunk[..., k] - centres[:, k]).square() for k in range(2))
        log_sum[first : first + rows] = torch.logsumexp(-squares / (2 * BLUR**2), dim=1)
    return log_sum - math.log(len(centres) * 2 * math.pi * BLUR**2)


def replicate_0(checkpoint: checkpoints.Checkpoint) -> Gan:
    """The checkpoint's GAN with the first replicate of its generator alone."""
    gan, kwargs = checkpoint.gan(), checkpoint.card["networks"]["generator"]["kwargs"]
    generator = mlp(**{**kwargs, "replicates": 1}, generator=seeded(0))
    weights = gan.generator.state_dict()
    generator.load_state_dict({name: weight[:1] for name, weight in weights.items()})
    return gan._replace(generator=generator)


def settings_of(steps: int) -> dict[str, Any]:
    """Everything that the energy depends on, but for the seed and the GAN."""
    return {
        **DISCRIMINATOR,
        "batch_size": BATCH_SIZE,
        "steps": steps,
        "std": STD,
        "blur": BLUR,
        "n_kernels": N_KERNELS,
        "n_scored": N_SCORED,
        "least": LEAST,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=runs.at_least(1), default=4000)
    args = runs.parse(parser, argv, file=True)

    law = gaussian_grid(std=STD)
    checkpoint = checkpoints.load("gaussians25_r1", default_device())
    gan = replicate_0(checkpoint)
    settings, read_from = settings_of(args.steps), {"checkpoint_sha256": checkpoint.card["sha256"]}
    run = runs.Run("cover", settings, args, runs.Progress(), **read_from)
    run.expect({"discriminator": 1})

    def draw(n: int, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            return gan.generator(gan.prior((1, n), rng))[0]

    def blurred(size: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return (draw(size[1], rng) + BLUR * randn(size[1], 2, generator=rng))[None]

    def fit() -> dict[str, Any]:
        generator = seeded(args.seed)
        discriminator = mlp(**DISCRIMINATOR, generator=generator)
        fit_discriminator(
            discriminator,
            law.sample,
            blurred,
            losses.gan_d_loss,
            args.steps,
            generator,
            batch_size=BATCH_SIZE,
        )
        return {"weights": discriminator.state_dict(), "generator": generator.get_state()}

    fitted, _ = run.once("discriminator", fit)
    generator = seeded(args.seed)
    discriminator = mlp(**DISCRIMINATOR, generator=generator)
    discriminator.load_state_dict(fitted["weights"])
    generator.set_state(fitted["generator"])  # the draws go on where those of the fit ended
    data, draws = law.sample(N_SCORED, generator), draw(N_SCORED, generator)
    report = metrics.mode_report(draws[None], law.means, STD)
    centres = draw(N_KERNELS, generator)

    def energy(x: Tensor) -> Tensor:
        log_p_g = log_kernel_density(x, centres)
        values = -log_p_g - discriminator(x[None])[0]
        known = log_p_g.exp() + law.log_prob(x).exp() > LEAST
        return torch.where(known, values - values[known].min(), torch.nan)

    # The law of the data is known here, so the energy can be held against -log p itself.
    with torch.no_grad():
        logit = discriminator(data[None])[0]
    error = law.log_prob(data) - log_kernel_density(data, centres) - logit

    plotting.set_style()
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    plotting.scatter(axes[0], data[:N_SHOWN], BOX, plotting.REAL, "data")
    plotting.scatter(axes[1], draws[:N_SHOWN], BOX, plotting.FAKE, "what the generator draws")
    axes[2].set_facecolor("0.8")
    mesh = plotting.heatmap(
        axes[2], energy, BOX, r"energy $-\log\, p_g(x) - d(x)$", n=200, cmap="mako", vmax=TOP
    )
    figure.colorbar(mesh, ax=axes[2], label="nats above the minimum", extend="max", shrink=0.8)
    for ax in axes:
        ax.set(xlabel="", ylabel="", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        ax.title.set_size(14)
    facts = {
        **run.given,
        "generator": {name: float(values) for name, values in report._asdict().items()},
        "energy_minus_truth": {"mean": float(error.mean()), "std": float(error.std())},
    }
    with whole_file(args.out) as part:
        figure.savefig(part, dpi=150, metadata={"Description": json.dumps(facts)})
    run.remove_parts()
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
