"""Train EBGANs of the plane, ten of each kind, and of digits, five of each kind.

    python -m gan_ebm_utils.recipes.plane_ebgans

writes five checkpoints. `gaussians25_ebgan` and `swiss_roll_ebgan` (a wide Swiss roll) hold
`generator` and `autoencoder`, ten replicates behind one leading axis. The first also holds two
classifiers that were fitted to the finished generators, `discriminator_plain` and
`discriminator_fourier`. `digits_ebgan` and `digits_conv_ebgan` hold generators trained
with and without the pulling-away term, and the autoencoder of the first replicate of each: no page
shows the others. The first is a perceptron of 64 pixels, the second has transposed convolutions.
`ebgan_sweep` holds scores of EBGANs of the 25 Gaussians at other margins, and without the
pulling-away term, as tensors. It takes about twenty minutes on one CPU core; a checkpoint that is
there with the same settings is kept, and a run that is cut off goes on after the last network that
was finished.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_ebm_utils import losses, metrics, runs
from gan_ebm_utils.base import Gan, Sample, seeded
from gan_ebm_utils.datasets import digits, gaussian_grid, minibatches, swiss_roll
from gan_ebm_utils.energies import NegativeEnergy, ReconstructionError
from gan_ebm_utils.networks import Autoencoder, ConvGenerator, mlp
from gan_ebm_utils.recipes.plane_gans import REFIT, refit, rounded
from gan_ebm_utils.training import train_gan

GENERATOR = {"in_features": 4, "hidden": [128, 128, 128], "out_features": 2, "activation": "ReLU"}
# These networks, the margin and the pulling-away term were chosen in trials of three or four
# replicates, by the mean of the share of good draws times the number of modes: with features of a
# smaller scale few draws are good, with a larger one modes are lost.
AUTOENCODER = {"event": [2], "hidden": [128, 128], "code_dim": 8, "fourier": [64, 1.5]}
TRAINING = {"batch_size": 128, "learning_rate": 1e-3, "betas": [0.5, 0.99]}
MARGIN, WEIGHT = 0.1, 0.1  # of the plane; of the pulling-away term, as in the paper
MARGINS = (0.03, 0.3, 1.0)  # beside the one of the plane
REFITTED = {
    "discriminator_plain": {"in_features": 2, "hidden": [128, 128]},
    "discriminator_fourier": {"in_features": 2, "hidden": [128, 128], "fourier": [64, 8.0]},
}
N_SAMPLES, N_SHOWN = 10_000, 1000  # per replicate: scored, and stored with the scores
N_STD = 4  # a sample within so many standard deviations of a mode is one of its


class Game(NamedTuple):
    """What an EBGAN is trained on, its networks, and its settings of `train_gan`."""

    data: Sample
    generator: tuple[Callable[..., nn.Module], dict[str, Any]]
    autoencoder: dict[str, Any]
    settings: dict[str, Any]

    @property
    def latent_dim(self) -> int:
        _, settings = self.generator
        return settings.get("latent_dim", settings.get("in_features"))


NOISE = 1.0  # of the Swiss roll: wide, so that its band has an inside
GRID = gaussian_grid()
PLANE = (mlp, GENERATOR), AUTOENCODER
IMAGES = digits().images


def rows(images: Tensor) -> Tensor:
    """Images (n, 1, 8, 8) as rows of pixels, (n, 64)."""
    return images.flatten(1)


OF_DIGITS = {**TRAINING, "batch_size": 64, "n_steps": 2000}
GAMES = {
    "gaussians25": Game(GRID.sample, *PLANE, {**TRAINING, "n_steps": 2000}),
    "swiss_roll": Game(swiss_roll(NOISE).sample, *PLANE, {**TRAINING, "n_steps": 1500}),
    "digits": Game(
        minibatches(rows(IMAGES)),
        (mlp, {**GENERATOR, "in_features": 16, "hidden": [128, 128], "out_features": 64}),
        {"event": [64], "hidden": [128], "code_dim": 32},
        OF_DIGITS,
    ),
    "digits_conv": Game(
        minibatches(IMAGES),
        (ConvGenerator, {"image_size": 8, "latent_dim": 16, "width": 16}),
        {"event": [1, 8, 8], "hidden": [128], "code_dim": 32},
        OF_DIGITS,
    ),
}
MARGIN_DIGITS, DIGITS = 0.2, 5  # replicates of the digits, at most


def networks_of(game: Game, replicates: int, generator: torch.Generator) -> tuple[nn.Module, ...]:
    """The generator and the autoencoder of a game before its first step."""
    build, settings = game.generator
    how = {"replicates": replicates, "generator": generator}
    return build(**settings, **how), Autoencoder(**game.autoencoder, **how)


def gan_of(generator: nn.Module, autoencoder: Autoencoder, latent_dim: int) -> Gan:
    """The `Gan` whose discriminator is minus the reconstruction error."""
    return Gan(generator, NegativeEnergy(ReconstructionError(autoencoder)), latent_dim)


def pulled_away(gan: Gan, z: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """The pulling-away term of the codes of a batch of generated samples, with its weight."""
    return WEIGHT * losses.pulling_away(gan.discriminator.energy.autoencoder.encode(x))


def train(game: Game, margin: float, is_pulled: bool, replicates: int, seed: int) -> list[dict]:
    """The weights of `replicates` generators and autoencoders after all steps of their game."""
    generator = seeded(seed)
    gan = gan_of(*networks_of(game, replicates, generator), game.latent_dim)
    train_gan(
        gan,
        game.data,
        partial(losses.ebgan_d_loss, margin=margin),
        losses.ebgan_g_loss,
        generator=generator,
        replicates=replicates,
        g_penalty=pulled_away if is_pulled else None,
        **game.settings,
    )
    return [part.state_dict() for part in (gan.generator, gan.discriminator.energy.autoencoder)]


@torch.no_grad()
def score(gan: Gan, replicates: int, seed: int) -> dict[str, Tensor]:
    """Scores of the draws of EBGANs of the 25 Gaussians, (R,), and some of the draws."""
    rng = seeded(seed)
    x = gan.generator(gan.prior((replicates, N_SAMPLES), rng))
    report = metrics.mode_report(x, GRID.means, 0.05, n_std=N_STD)
    energies = {
        "energy_fake": -gan.discriminator(x).mean(dim=1),
        "energy_real": -gan.discriminator(GRID.sample((replicates, N_SAMPLES), rng)).mean(dim=1),
    }
    found = {"recovered": report.recovered, "high_quality": report.high_quality, **energies}
    scores = {name: values.float().cpu() for name, values in found.items()}
    return {**scores, "draws": x[:, :N_SHOWN].half().cpu()}


def variants(name: str) -> dict[str, tuple[float, bool]]:
    """The margin, and whether there is a pulling-away term, of each game of a checkpoint.

    The names end those of the networks; the networks of `ebgan_sweep` are not stored.
    """
    if name == "ebgan_sweep":
        return {f"margin {m:g}": (m, True) for m in MARGINS} | {"not pulled": (MARGIN, False)}
    if "digits" in name:
        return {"": (MARGIN_DIGITS, True), "not_pulled": (MARGIN_DIGITS, False)}
    return {"": (MARGIN, True)}


def game_of(name: str) -> Game:
    """The game of a checkpoint."""
    return GAMES["gaussians25" if name == "ebgan_sweep" else name.removesuffix("_ebgan")]


def settings_of(name: str, refit_steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the checkpoint `name` depends on, but for the seed."""
    game = game_of(name)
    given = {
        **game.settings,
        "variants": variants(name),
        "weight": WEIGHT,
        "generator": game.generator[1],
        "autoencoder": game.autoencoder,
        "replicates": min(replicates, DIGITS) if "digits" in name else replicates,
    }
    if name == "swiss_roll_ebgan":
        given["noise"] = NOISE
    if name == "gaussians25_ebgan":
        given |= {"refitted": REFITTED, "refit": {**REFIT, "steps": refit_steps}}
    if name in ("gaussians25_ebgan", "ebgan_sweep"):
        given |= {"n_samples": N_SAMPLES, "n_shown": N_SHOWN, "n_std": N_STD}
    return given


def parts_of(name: str, refit_steps: int) -> dict[str, float]:
    """The parts of a checkpoint, with how long each takes."""
    steps = game_of(name).settings["n_steps"]
    parts = {f"{name}, {variant or 'pulled'}": steps for variant in variants(name)}
    if name == "gaussians25_ebgan":
        parts |= {f"{name}, {which}": refit_steps for which in REFITTED}
    return parts


def make(name: str, refit_steps: int, seed: int, run: runs.Run) -> runs.Made:
    """Networks, tensors and scores of the checkpoint `name`, from the finished parts of `run`."""
    game, seconds = game_of(name), []
    replicates = run.given["settings"]["replicates"]

    def once(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        made, took = run.once(f"{name}, {part}", lambda: function(*arguments))
        seconds.append(took)
        return made

    networks, tensors, found = {}, {}, {}
    for variant, given in variants(name).items():
        weights = once(variant or "pulled", train, game, *given, replicates, seed)
        parts = map(rounded, networks_of(game, replicates, seeded(seed)), weights)
        gan = gan_of(*parts, game.latent_dim)
        if name in ("gaussians25_ebgan", "ebgan_sweep"):
            scores = score(gan, replicates, seed + 1)
            tensors |= {f"{variant or 'pulled'}/{key}": value for key, value in scores.items()}
            found[variant or "pulled"] = {
                key: list(metrics.mean_interval(scores[key].double())[:3])
                for key in ("recovered", "high_quality")
            }
        if name == "ebgan_sweep":
            continue
        suffix = variant and f"_{variant}"
        build, settings = game.generator
        how = {**settings, "replicates": replicates}
        networks[f"generator{suffix}"] = (gan.generator.half(), build, how)
        autoencoder, how = gan.discriminator.energy.autoencoder, dict(game.autoencoder)
        if "digits" in name:
            autoencoder = first_of(autoencoder, game)
        else:
            how["replicates"] = replicates
        networks[f"autoencoder{suffix}"] = (autoencoder.half(), Autoencoder, how)
    if name == "gaussians25_ebgan":
        gan = Gan(gan.generator.float(), None, game.latent_dim)
        for which, layers in REFITTED.items():
            weights = once(which, refit, gan, GRID, refit_steps, replicates, seed + 2, layers)
            how = {**layers, "replicates": replicates}
            network = rounded(mlp(**how, generator=seeded(seed)), weights)
            networks[which] = (network.half(), mlp, how)
        gan.generator.half()
    return networks, tensors, {**found, "seconds": round(sum(seconds), 1)}


def first_of(autoencoder: Autoencoder, game: Game) -> Autoencoder:
    """The first of the replicates by itself."""
    one = Autoencoder(**game.autoencoder, generator=seeded(0))
    weights = {
        key: value[:1] if value.shape != one.state_dict()[key].shape else value
        for key, value in autoencoder.state_dict().items()
    }
    return rounded(one, weights)


NAMES = (*(f"{name}_ebgan" for name in GAMES), "ebgan_sweep")


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refit-steps", type=runs.at_least(1), default=2000)
    parser.add_argument("--replicates", type=runs.at_least(2), default=10)
    args = runs.parse(parser, argv)
    wanted = {
        name: (
            settings_of(name, args.refit_steps, args.replicates),
            parts_of(name, args.refit_steps),
        )
        for name in NAMES
    }
    how = args.refit_steps, args.seed
    runs.make_checkpoints("plane_ebgans", wanted, lambda name, run: make(name, *how, run), args)


if __name__ == "__main__":
    main()
