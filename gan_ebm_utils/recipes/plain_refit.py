"""Refit discriminators without Fourier features to the GANs of `gaussians25_gan`.

    python -m gan_ebm_utils.recipes.plain_refit

writes the checkpoint `gaussians25_plain`. Its `discriminator` has the layers of the GANs' own
discriminators and is fitted anew to the finished generators, with the data, the rates and the steps
of `discriminator_refitted` there; so those two differ in the network alone. `discriminator_further`
begins at the weights of the own ones instead. The card holds scores of samples refined with each.
It takes about ten minutes on two CPU cores; a run that is cut off goes on after the last part that
was finished.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.base import default_device, seeded
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.recipes import plane_gans

GANS = "gaussians25_gan"
NAMES = ("discriminator", "discriminator_further")


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
    run.expect(
        {part: size for name in NAMES for part, size in ((name, 20), (f"{name}, scores", 1))}
    )
    gan, built, scores, seconds = checkpoint.gan(), {}, {}, 0.0
    for name in NAMES:
        begin = gan.discriminator.state_dict() if name == "discriminator_further" else None
        given = law, args.refit_steps, replicates, args.seed + 2, layers, begin
        weights, took = run.once(name, partial(plane_gans.refit, gan, *given))
        network = mlp(**layers, replicates=replicates, generator=seeded(args.seed))
        fitted = gan._replace(discriminator=plane_gans.rounded(network, weights))
        given = fitted, law, replicates, args.seed + 3
        scores[name], more = run.once(f"{name}, scores", partial(plane_gans.score_chains, *given))
        kwargs = {**layers, "replicates": replicates}
        built[name] = (fitted.discriminator.half(), mlp, kwargs)
        seconds += took + more
    card = run.card({**scores, "seconds": round(seconds, 1)})
    checkpoints.save("gaussians25_plain", built, {}, card, args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
