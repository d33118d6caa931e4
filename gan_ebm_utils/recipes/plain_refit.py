"""Refit discriminators without Fourier features to the GANs of `gaussians25_gan`.

    python -m gan_ebm_utils.recipes.plain_refit

writes the checkpoint `gaussians25_plain`: `discriminator`, with the layers that the GANs' own
discriminators have, fitted anew to the finished generators with the data, the rates and the steps
of `discriminator_refitted` there. So the two differ in the network alone. The card holds scores of
samples refined with it. It takes about five minutes on two CPU cores; a run that is cut off goes on
after the last part that was finished.
"""

from __future__ import annotations

import argparse
from typing import Any

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.base import default_device, seeded
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.recipes import plane_gans

GANS = "gaussians25_gan"


def settings_of(card: dict[str, Any], refit_steps: int) -> dict[str, Any]:
    """Everything that the fit depends on, but for the seed and the GANs with the given card."""
    own = plane_gans.settings_of(GANS, refit_steps, card["settings"]["replicates"])
    kept = ("discriminator", "refit", "replicates", "std", "n_std", "n_samples", "n_emd")
    return {key: own[key] for key in (*kept, "n_proposals")}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refit-steps", type=runs.at_least(1), default=6000)
    args = runs.parse(parser, argv)
    checkpoint, law = checkpoints.load(GANS, default_device()), plane_gans.GAMES[GANS].law
    settings = settings_of(checkpoint.card, args.refit_steps)
    replicates, layers = settings["replicates"], settings["discriminator"]
    source = {"checkpoint_sha256": checkpoint.card["sha256"]}
    run = runs.Run("plain_refit", settings, args, runs.Progress(), **source)
    run.expect({"fitted": 20, "scores of chains": 1})
    gan = checkpoint.gan()

    weights, fit_took = run.once(
        "fitted",
        lambda: plane_gans.refit(gan, law, args.refit_steps, replicates, args.seed + 2, layers),
    )
    network = mlp(**layers, replicates=replicates, generator=seeded(args.seed))
    gan = gan._replace(discriminator=plane_gans.rounded(network, weights))
    scores, score_took = run.once(
        "scores of chains", lambda: plane_gans.score_chains(gan, law, replicates, args.seed + 3)
    )
    built = (gan.discriminator.half(), mlp, {**layers, "replicates": replicates})
    card = run.card({"mh_gan": scores, "seconds": round(fit_took + score_took, 1)})
    checkpoints.save("gaussians25_plain", {"discriminator": built}, {}, card, args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
