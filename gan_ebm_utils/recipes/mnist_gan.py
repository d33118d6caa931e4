"""Train five GANs on MNIST and refit their discriminators; a plain DCGAN stands beside them.

    python -m gan_ebm_utils.recipes.mnist_gan

writes the checkpoint `mnist_gan`: `generator` and `discriminator`, trained with the non-saturating
loss and R1, and `discriminator_refitted`, fitted to the finished generators on part of the training
set; five replicates behind one leading axis. The refitted one sees the features of a classifier
that is trained here, on the same part, and not those of `mnist_features`, in which the card gives
the FID, its floor, and the FID of a DCGAN with batch normalisation trained for as many steps. It
takes about three hours on two CPU cores. A run that is cut off goes on after the last network that
was finished.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import Gan, default_device, randn, seeded
from gan_ebm_utils.datasets import minibatches, mnist
from gan_ebm_utils.networks import (
    ConvDiscriminator,
    ConvGenerator,
    FeatureDiscriminator,
    MnistClassifier,
)
from gan_ebm_utils.training import refit_discriminator, train_gan

GENERATOR = {"image_size": 28, "latent_dim": 32, "width": 64}
DISCRIMINATOR = {"image_size": 28, "width": 32}
TRAINING = {"batch_size": 64, "learning_rate": 5e-4, "betas": [0.5, 0.99]}
GAMMA = 1.0
CLASSIFIER = {"batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.02, "steps": 1500}
# On raw pixels a discriminator knows the generator by its strokes, and no choice among draws mends
# those: in trials the FID fell by a tenth. On features of a classifier it knows it by its shapes.
REFITTED = {"hidden": [128, 128]}
REFIT = {"batch_size": 128, "learning_rate": 1e-3}
N_REFIT = 50_000  # training images that the refit sees; the other 10,000 are for calibration
DCGAN = {"width": 64, "learning_rate": 2e-4, "betas": [0.5, 0.999], "std": 0.02}  # of its paper
N_FID = 10_000  # samples for the scores on the card


def train(seed: int, steps: int) -> dict[str, Tensor]:
    """The weights of one GAN after `steps` steps, in the device's precision."""
    device, rng = default_device(), seeded(seed)
    gan = Gan(
        ConvGenerator(**GENERATOR, generator=rng),
        ConvDiscriminator(**DISCRIMINATOR, generator=rng),
        GENERATOR["latent_dim"],
    )
    for network in gan[:2]:
        network.to(device, memory_format=torch.channels_last)

    def penalty(
        discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
    ) -> Tensor:
        return GAMMA / 2 * losses.r1_penalty(discriminator, real)

    # Without its cache: within one context that would keep the first weights for the whole run.
    with runs.autocast(device, cache_enabled=False):
        train_gan(
            gan,
            minibatches(mnist("train").images.to(device)),
            losses.gan_d_loss,
            losses.non_saturating_g_loss,
            steps,
            rng,
            penalty=penalty,
            **TRAINING,
        )
    return {
        f"{name}.{key}": value.cpu()
        for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator))
        for key, value in network.state_dict().items()
    }


def train_classifier(seed: int, steps: int) -> dict[str, Tensor]:
    """The weights of a classifier of the training images that the refit may see."""
    device, rng = default_device(), seeded(seed)
    classifier = MnistClassifier(generator=rng).to(device, memory_format=torch.channels_last)
    settings = {"lr": CLASSIFIER["learning_rate"], "weight_decay": CLASSIFIER["weight_decay"]}
    optimizer = torch.optim.AdamW(classifier.parameters(), **settings)
    known = mnist("train")
    images, labels = known.images[:N_REFIT].to(device), known.labels[:N_REFIT].to(device)
    for _ in range(steps):
        size = (CLASSIFIER["batch_size"],)
        rows = torch.randint(len(images), size, generator=rng, device=device)
        with runs.autocast(device, cache_enabled=False):
            loss = F.cross_entropy(classifier(images[rows]).float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {key: value.cpu() for key, value in classifier.features.state_dict().items()}


def refit(
    gan: Gan, features: dict[str, Tensor], replicates: int, seed: int, steps: int
) -> dict[str, Tensor]:
    """The weights of discriminators fitted to the generators of `gan`, which stay as they are."""
    device, rng = default_device(), seeded(seed)
    discriminator = FeatureDiscriminator(**REFITTED, replicates=replicates, generator=rng)
    discriminator.features.load_state_dict(features)
    discriminator.to(device)
    data = minibatches(mnist("train").images[:N_REFIT].to(device))
    with runs.autocast(device, cache_enabled=False):
        refitted = refit_discriminator(
            gan, discriminator, data, steps, rng, replicates=replicates, **REFIT
        )
    return {key: value.cpu() for key, value in refitted.discriminator.state_dict().items()}


class Dcgan(nn.Module):
    """A plain DCGAN, with batch normalisation in both networks (Radford et al. 2015)."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(latent_dim, 2 * width * 49, bias=False),
            nn.BatchNorm1d(2 * width * 49),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * width * 49, 1),
        )


def train_dcgan(seed: int, steps: int) -> nn.Module:
    """The generator of a DCGAN after `steps` steps of Adam."""
    device, rng, latent_dim = default_device(), seeded(seed), GENERATOR["latent_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Dcgan(DCGAN["width"], latent_dim)
        for layer in networks.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(layer.weight, std=DCGAN["std"])
    networks.to(device, memory_format=torch.channels_last)
    players = [networks.discriminator, networks.generator]
    rate, betas = DCGAN["learning_rate"], DCGAN["betas"]
    optimizers = [torch.optim.Adam(player.parameters(), rate, betas) for player in players]
    data, size = minibatches(mnist("train").images.to(device)), TRAINING["batch_size"]
    for _ in range(steps):
        for role, optimizer in enumerate(optimizers):
            with runs.autocast(device):
                fake = networks.generator(randn(size, latent_dim, generator=rng))
                if role == 0:
                    real = networks.discriminator(data(size, rng)).float()
                    fake = networks.discriminator(fake.detach()).float()
                    loss = losses.gan_d_loss(real.T, fake.T).sum()
                else:
                    loss = F.softplus(-networks.discriminator(fake).float()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return networks.generator.eval()


def stacked(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of networks that were trained one by one, as those of one with replicates.

    Every tensor of the convolutional networks has the replicates, or the groups, first.
    """
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@torch.no_grad()
def fid(draw: Callable[[int, torch.Generator], Tensor], seed: int) -> list[float]:
    """FID of N_FID images (R, n, c, h, w) in own features, against the test set's moments."""
    stored, rng, n = checkpoints.load("mnist_features"), seeded(seed), min(1000, N_FID)
    features, tensors = stored.networks["classifier"].features, stored.tensors
    drawn = (draw(n, rng).float().cpu() for _ in range(N_FID // n))
    seen = torch.cat([torch.stack([features(x) for x in images]) for images in drawn], dim=1)
    truth = tensors["test_mean"], tensors["test_covariance"]
    return [metrics.frechet_distance(*metrics.moments(each), *truth) for each in seen]


def settings_of(steps: int, refit_steps: int, replicates: int) -> dict[str, Any]:
    """Everything that the networks depend on, but for the seed, the data and the judge."""
    return {
        **TRAINING,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "gamma": GAMMA,
        "steps": steps,
        "classifier": CLASSIFIER,
        "refitted": REFITTED,
        "refit": {**REFIT, "steps": refit_steps, "n_data": N_REFIT},
        "dcgan": DCGAN,
        "replicates": replicates,
        "n_fid": N_FID,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=runs.at_least(1), default=10_000)
    parser.add_argument("--refit-steps", type=runs.at_least(1), default=4000)
    parser.add_argument("--replicates", type=runs.at_least(2), default=5)
    args = runs.parse(parser, argv)

    device, replicates = default_device(), args.replicates
    gans = {f"gan-{args.seed + 100 * r}": args.seed + 100 * r for r in range(replicates)}
    # In steps of one GAN; one of the classifier, which is small, takes a quarter, one of the DCGAN,
    # which is wide, three. An FID takes as long as some hundred.
    sizes = {**dict.fromkeys(gans, args.steps), "classifier": CLASSIFIER["steps"] / 4}
    sizes |= {"refit": args.refit_steps, "fid": 100 * replicates, "dcgan": 3 * args.steps}
    judge = checkpoints.load("mnist_features").card
    run = runs.Run(
        "mnist_gan",
        settings_of(args.steps, args.refit_steps, replicates),
        args,
        runs.Progress(),
        **runs.mnist_source(),
        features_sha256=judge["sha256"],
    )
    run.expect(sizes)
    parts = [run.once(name, lambda seed=s: train(seed, args.steps)) for name, s in gans.items()]
    seconds = sum(took for _, took in parts)
    weights = stacked([part for part, _ in parts])
    networks = {}
    for name, builder, settings in (
        ("generator", ConvGenerator, GENERATOR),
        ("discriminator", ConvDiscriminator, DISCRIMINATOR),
    ):
        settings = {**settings, "replicates": replicates}
        network = builder(**settings, generator=seeded(0, "cpu"))
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        network.load_state_dict(own)
        network.half().float().eval().requires_grad_(False)  # as it is stored
        networks[name] = (network, builder, settings)

    features, took = run.once(
        "classifier", lambda: train_classifier(args.seed + 1, CLASSIFIER["steps"])
    )
    seconds += took
    pair = [networks[name][0] for name in ("generator", "discriminator")]
    for network in pair:
        network.to(device, memory_format=torch.channels_last)
    gan = Gan(*pair, GENERATOR["latent_dim"])
    weights, took = run.once(
        "refit", lambda: refit(gan, features, replicates, args.seed + 2, args.refit_steps)
    )
    seconds += took
    settings = {**REFITTED, "replicates": replicates}
    refitted = FeatureDiscriminator(**settings, generator=seeded(0, "cpu"))
    refitted.load_state_dict(weights)
    networks["discriminator_refitted"] = (refitted, FeatureDiscriminator, settings)

    def draw(n: int, rng: torch.Generator) -> Tensor:
        return gan.generator(gan.prior((replicates, n), rng))

    def dcgan_scores() -> list[float]:
        generator = train_dcgan(args.seed, args.steps)
        return fid(
            lambda n, rng: generator(randn(n, gan.latent_dim, generator=rng))[None], args.seed + 3
        )

    scores, _ = run.once("fid", lambda: fid(draw, args.seed + 3))
    of_dcgan, took = run.once("dcgan", dcgan_scores)
    found = {
        "fid": list(metrics.mean_interval(torch.tensor(scores))[:3]),
        "fid_of_each": scores,
        "fid_train_against_test": judge["metrics"]["frechet_train_test"]["value"],
        "fid_dcgan": of_dcgan[0],
        "seconds": round(seconds, 1),
        "seconds_dcgan": round(took, 1),
    }
    for name, (network, builder, settings) in list(networks.items()):
        networks[name] = (network.half(), builder, settings)
    checkpoints.save("mnist_gan", networks, {}, run.card(found), args.out)
    run.remove_parts()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
