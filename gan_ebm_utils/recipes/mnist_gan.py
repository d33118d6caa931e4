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
import datetime
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pooch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics
from gan_ebm_utils.base import Gan, default_device, randn, seeded
from gan_ebm_utils.checkpoints import store
from gan_ebm_utils.datasets import digest, minibatches, mnist
from gan_ebm_utils.networks import (
    ConvDiscriminator,
    ConvGenerator,
    FeatureDiscriminator,
    MnistClassifier,
)
from gan_ebm_utils.training import refit_discriminator, train_gan

LATENT_DIM = 32
GENERATOR = {"image_size": 28, "latent_dim": LATENT_DIM, "width": 64}
DISCRIMINATOR = {"image_size": 28, "width": 32}
TRAINING = {"batch_size": 64, "learning_rate": 5e-4, "betas": [0.5, 0.99]}
GAMMA = 1.0
CLASSIFIER = {"batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.02, "steps": 1500}
# On raw pixels a discriminator knows the generator by its strokes, and no choice among draws mends
# those: in trials the FID fell by a tenth. On features of a classifier it knows it by its shapes.
REFITTED = {"hidden": [128, 128]}
REFIT = {"batch_size": 128, "learning_rate": 1e-3}
N_REFIT = 50_000  # training images that the refit sees; the other 10,000 are for calibration
N_FID = 10_000  # samples for the scores on the card


def train(seed: int, steps: int) -> dict[str, Tensor]:
    """The weights of one GAN after `steps` steps, in bfloat16 arithmetic."""
    device, rng = default_device(), seeded(seed)
    gan = Gan(
        ConvGenerator(**GENERATOR, generator=rng),
        ConvDiscriminator(**DISCRIMINATOR, generator=rng),
        LATENT_DIM,
    )
    for network in gan[:2]:
        network.to(device, memory_format=torch.channels_last)

    def penalty(
        discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
    ) -> Tensor:
        return GAMMA / 2 * losses.r1_penalty(discriminator, real)

    # Without its cache: within one context that would keep the first weights for the whole run.
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
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
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(classifier(images[rows]).float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {key: value.cpu() for key, value in classifier.features.state_dict().items()}


def refit(
    generator: nn.Module, features: dict[str, Tensor], replicates: int, seed: int, steps: int
) -> dict[str, Tensor]:
    """The weights of discriminators fitted to generators that stay as they are."""
    device, rng = default_device(), seeded(seed)
    discriminator = FeatureDiscriminator(**REFITTED, replicates=replicates, generator=rng)
    discriminator.features.load_state_dict(features)
    discriminator.to(device)
    gan = Gan(generator.requires_grad_(False), discriminator, LATENT_DIM)
    data = minibatches(mnist("train").images[:N_REFIT].to(device))
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        refitted = refit_discriminator(
            gan, discriminator, data, steps, rng, replicates=replicates, **REFIT
        )
    return {key: value.cpu() for key, value in refitted.discriminator.state_dict().items()}


class Dcgan(nn.Module):
    """A plain DCGAN, with batch normalisation in both networks (Radford et al. 2015)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(LATENT_DIM, 2 * width * 49, bias=False),
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
    """A DCGAN after `steps` steps of Adam with the settings of its paper; returns the generator."""
    device, rng = default_device(), seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Dcgan()
        for layer in networks.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
    networks.to(device, memory_format=torch.channels_last)
    players = [networks.discriminator, networks.generator]
    optimizers = [torch.optim.Adam(player.parameters(), 2e-4, (0.5, 0.999)) for player in players]
    data, size = minibatches(mnist("train").images.to(device)), TRAINING["batch_size"]
    for _ in range(steps):
        for role, optimizer in enumerate(optimizers):
            with torch.autocast(device.type, torch.bfloat16):
                fake = networks.generator(randn(size, LATENT_DIM, generator=rng))
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
def fid(draw: Callable[[int, torch.Generator], Tensor], seed: int) -> float:
    """FID of N_FID images in own features, against the test set's moments."""
    stored, generator = checkpoints.load("mnist_features"), seeded(seed)
    classifier = stored.networks["classifier"]
    images = torch.cat([draw(1000, generator).float().cpu() for _ in range(N_FID // 1000)])
    features = torch.cat([classifier.features(chunk) for chunk in images.split(1000)])
    found, tensors = metrics.moments(features), stored.tensors
    return metrics.frechet_distance(*found, tensors["test_mean"], tensors["test_covariance"])


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--refit-steps", type=int, default=4000)
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: the package's checkpoints)")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(pooch.os_cache("gan_ebm_utils")),
        help="folder for the networks of a run that was cut off (default: the user's cache)",
    )
    args = parser.parse_args(argv)
    if args.steps < 1 or args.refit_steps < 1 or args.replicates < 2:
        parser.error("--steps and --refit-steps must be at least 1, --replicates at least 2")

    run = {
        "recipe": "mnist_gan",
        "settings": {
            **TRAINING,
            "generator": GENERATOR,
            "discriminator": DISCRIMINATOR,
            "gamma": GAMMA,
            "steps": args.steps,
            "classifier": CLASSIFIER,
            "refitted": REFITTED,
            "refit": {**REFIT, "steps": args.refit_steps, "n_data": N_REFIT},
            "replicates": args.replicates,
            "n_fid": N_FID,
        },
        "seed": args.seed,
        "data": "MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0)",
        "data_sha256": digest(mnist("train"), mnist("test")),
    }
    key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]

    def once(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returns, from a file if an earlier run has stored it."""
        file = args.state / f"mnist_gan-{key}-{name}.pt"
        if not file.exists():
            start = time.perf_counter()
            result = make()
            seconds = time.perf_counter() - start
            store({**result, "seconds": seconds}, file)
            print(f"{name}: {seconds:.0f} s", flush=True)
        return torch.load(file, weights_only=True)

    def seed_of(replicate: int) -> int:
        return args.seed + 100 * replicate

    seeds = [seed_of(replicate) for replicate in range(args.replicates)]
    parts = [once(f"gan-{s}", lambda s=s: train(s, args.steps)) for s in seeds]
    seconds = sum(part.pop("seconds") for part in parts)
    weights = stacked(parts)
    networks = {}
    for name, function, settings in (
        ("generator", ConvGenerator, GENERATOR),
        ("discriminator", ConvDiscriminator, DISCRIMINATOR),
    ):
        settings = {**settings, "replicates": args.replicates}
        network = function(**settings, generator=seeded(0, "cpu"))
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        network.load_state_dict(own)
        networks[name] = (network.half().float(), function.__name__, settings)  # as it is stored

    def one(replicate: int) -> nn.Module:
        generator = ConvGenerator(**GENERATOR, generator=seeded(0, "cpu"))
        state = networks["generator"][0].state_dict()
        generator.load_state_dict(
            {k: v.chunk(args.replicates)[replicate] for k, v in state.items()}
        )
        return generator.to(default_device(), memory_format=torch.channels_last)

    features = once("classifier", lambda: train_classifier(args.seed + 1, CLASSIFIER["steps"]))
    seconds += features.pop("seconds")
    together = networks["generator"][0].to(default_device(), memory_format=torch.channels_last)
    weights = once(
        "refit", lambda: refit(together, features, args.replicates, args.seed + 2, args.refit_steps)
    )
    seconds += weights.pop("seconds")
    together.cpu()
    settings = {**REFITTED, "replicates": args.replicates}
    refitted = FeatureDiscriminator(**settings, generator=seeded(0, "cpu"))
    refitted.load_state_dict(weights)
    networks["discriminator_refitted"] = (refitted, "FeatureDiscriminator", settings)

    def draw(generator: nn.Module) -> Callable[[int, torch.Generator], Tensor]:
        return lambda n, rng: generator(randn(1, n, LATENT_DIM, generator=rng))[0]

    scores = torch.tensor([fid(draw(one(r)), s + 2) for r, s in enumerate(seeds)])

    def dcgan_scores() -> dict[str, float]:
        generator = train_dcgan(args.seed, args.steps)
        return {"fid": fid(lambda n, rng: generator(randn(n, LATENT_DIM, generator=rng)), 2)}

    dcgan = once("dcgan", dcgan_scores)
    features = checkpoints.load("mnist_features").card["metrics"]["frechet_train_test"]
    card = {
        **run,
        "metrics": {
            "fid": list(metrics.mean_interval(scores)[:3]),
            "fid_of_each": scores.tolist(),
            "fid_train_against_test": features["value"],
            "fid_dcgan": dcgan["fid"],
            "seconds": round(seconds, 1),
            "seconds_dcgan": round(dcgan["seconds"], 1),
        },
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": default_device().type,
        "threads": torch.get_num_threads(),
    }
    for name, (network, function, settings) in list(networks.items()):
        networks[name] = (network.half(), function, settings)
    checkpoints.save("mnist_gan", networks, {}, card, args.out)
    for file in args.state.glob(f"mnist_gan-{key}-*.pt"):
        file.unlink()
    print(json.dumps(card["metrics"], indent=2))


if __name__ == "__main__":
    main()
