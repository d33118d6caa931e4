"""Train GANs and EBGANs over a grid of architectures, and score what each setting generates.

    python -m gan_ebm_utils.recipes.ebgan_grid --reduced

writes the checkpoint `ebgan_grid`: its tensors have a row for each setting and a column for each
replicate, and the card names the rows. The axes are the layers of generator and discriminator (an
EBGAN's count encoder and decoder, which is one layer), their sizes, and dropout in the
discriminator; a GAN of the full grid also has Adam or SGD for each player and three learning rates.

Without `--reduced` it is the grid of Zhao et al. 2016 (arXiv:1609.03126, table 1) on MNIST: 6,144
settings of the GAN and 512 of EBGAN, which take months of one CPU core. With `--reduced` it is a
smaller one on the 8 x 8 digits in which GAN, EBGAN and EBGAN-PT, with the pulling-away term, have
the same 32 settings each, at the same optimiser and rate: about 15 minutes on two CPU cores.

Settings run in `--jobs` processes of this machine, or with `--scheduler tcp://HOST:8786` on a
cluster of dask.distributed, whose workers need this package and, for the full grid, MNIST; they
share no disk with the client, which stores each setting when its scores arrive. A later start does
what is missing. A replicate whose losses stop being finite is stored as diverged, with its step,
and its scores are nan.

The networks are perceptrons with ReLU, and a tanh at the end of the generator, as in the paper, but
have no batch normalisation: a logit depends on its own sample alone.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import default_device, rand, randn, seeded
from gan_ebm_utils.datasets import digest, digits, minibatches, mnist
from gan_ebm_utils.energies import NegativeEnergy, ReconstructionError
from gan_ebm_utils.networks import mlp

# `optim_g`, `optim_d` and `rate` of each family; all other axes are common to the families.
ADAM = {"optim_g": ["Adam"], "optim_d": ["Adam"], "rate": [0.001]}
GRIDS: dict[str, dict[str, Any]] = {
    "full": {
        "data": "mnist",
        "axes": {
            "n_layer_g": [2, 3, 4, 5],
            "size_g": [400, 800, 1600, 3200],
            "n_layer_d": [2, 3, 4, 5],
            "size_d": [128, 256, 512, 1024],
            "dropout": [False, True],
        },
        "families": {
            "GAN": {"optim_g": ["Adam", "SGD"], "optim_d": ["Adam", "SGD"], "rate": [1e-2, 1e-3, 1e-4]},
            "EBGAN": ADAM,
        },
        "training": {
            "replicates": 1,
            "n_steps": 20_000,
            "batch_size": 128,
            "latent_dim": 100,
            # The paper's margin of 10 is one of the norm |x - r(x)|; its square over 784 pixels.
            "margin": 10**2 / 784,
        },
        "together": 1,
    },
    "reduced": {
        "data": "digits",
        "axes": {
            "n_layer_g": [2, 4],
            "size_g": [64, 256],
            "n_layer_d": [2, 4],
            "size_d": [32, 128],
            "dropout": [False, True],
        },
        "families": {"GAN": ADAM, "EBGAN": ADAM, "EBGAN-PT": ADAM},
        "training": {
            "replicates": 4,
            "n_steps": 2000,
            "batch_size": 64,
            "latent_dim": 16,
            "margin": 10**2 / 784,
        },
        "together": 4,
    },
}
# Common to both grids.
TRAINING = {"betas": [0.5, 0.99], "dropout": 0.5, "pulling_away": 0.1}
SCORING = {"n_samples": 2000, "n_distances": 500, "least_share": 0.01}
SECONDS = 12  # until a scheduler that does not answer is given up
SCORES = (*metrics.ClassScores._fields, "classes", "spread", "energy_distance")


class Setting(NamedTuple):
    """A point of the grid."""

    family: str
    n_layer_g: int
    size_g: int
    n_layer_d: int
    size_d: int
    dropout: bool
    optim_g: str
    optim_d: str
    rate: float

    @property
    def name(self) -> str:
        dropout = "_dropout" * self.dropout
        shape = f"G{self.n_layer_g}x{self.size_g}_D{self.n_layer_d}x{self.size_d}{dropout}"
        return f"{self.family}_{shape}_{self.optim_g}_{self.optim_d}_{self.rate:g}"

    @property
    def kind(self) -> tuple:
        """What settings share that can train as replicates of one batch."""
        shape = (self.n_layer_g, self.size_g, self.n_layer_d, self.size_d)
        return (self.family == "GAN", *shape, self.optim_g, self.optim_d, self.rate)


def settings_in(grid: dict[str, Any]) -> list[Setting]:
    """All settings of a grid, the rows of its table."""
    found = []
    for family, further in grid["families"].items():
        axes = {**grid["axes"], **further}
        found += [Setting(family, *values) for values in itertools.product(*axes.values())]
    return found


class Dropout(nn.Module):
    """Dropout whose draws come from generators, each for its own share of the replicates.

    `rates` hold the probability of a zero for each of the generators.
    """

    def __init__(self, rates: list[float], rngs: list[torch.Generator]) -> None:
        super().__init__()
        self.rates, self.rngs = rates, rngs

    def forward(self, h: Tensor) -> Tensor:
        parts = []
        for part, rate, rng in zip(h.chunk(len(self.rngs)), self.rates, self.rngs, strict=True):
            kept = rand(*part.shape, generator=rng) >= rate if rate else None
            parts.append(part if kept is None else part * kept / (1 - rate))
        return torch.cat(parts)


class Coder(nn.Module):
    """An autoencoder of one linear layer after an encoder; `codes` are those of the last pass."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        self.codes = self.encoder(x)
        return self.decoder(self.codes)


def stacked(make: Callable[..., nn.Module], n: int, rngs: list[torch.Generator]) -> nn.Module:
    """One network with n replicates drawn from each generator: no draw depends on the others."""
    states = [make(replicates=n, generator=rng).state_dict() for rng in rngs]
    whole = make(replicates=n * len(rngs), generator=seeded(0))
    whole.load_state_dict({key: torch.cat([state[key] for state in states]) for key in states[0]})
    return whole


def networks_of(
    settings: list[Setting], training: dict[str, Any], size: int, rngs: list[torch.Generator]
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of settings of one kind, before their first step."""
    first, n = settings[0], training["replicates"]
    hidden = [first.size_g] * (first.n_layer_g - 1)
    make = partial(mlp, training["latent_dim"], hidden, size, activation="ReLU")
    generator = nn.Sequential(*stacked(make, n, rngs), nn.Tanh())
    # The same perceptron for all, but for its end: a number, or a point of the data.
    hidden, end = [first.size_d] * (first.n_layer_d - 1), None if first.family == "GAN" else size
    layers = list(stacked(partial(mlp, size, hidden, end, activation="ReLU"), n, rngs))
    if any(setting.dropout for setting in settings):
        drop = Dropout([training["dropout"] * setting.dropout for setting in settings], rngs)
        layers = [
            part for layer in layers for part in ([layer, drop] if _is_relu(layer) else [layer])
        ]
    if end is None:
        return generator, nn.Sequential(*layers)
    coder = Coder(nn.Sequential(*layers[:-1]), layers[-1])
    return generator, NegativeEnergy(ReconstructionError(coder))


def _is_relu(layer: nn.Module) -> bool:
    return isinstance(layer, nn.ReLU)


def descent(kind: str, rate: float, betas: list[float], network: nn.Module) -> Callable:
    """A function that takes one step of the optimiser `kind` down losses (R,)."""
    weights = list(network.parameters())
    if kind == "Adam":
        optimizer = torch.optim.Adam(weights, rate, betas=tuple(betas), fused=True)
    else:
        optimizer = torch.optim.SGD(weights, rate)

    def descend(loss: Tensor) -> Tensor:
        # Of these weights only: the generator's gradient passes through the discriminator.
        for weight, grad in zip(weights, torch.autograd.grad(loss.sum(), weights), strict=True):
            weight.grad = grad
        optimizer.step()
        return loss.detach()

    return descend


class Played(NamedTuple):
    """Trained generators, their latents' generators of numbers, and when each diverged, or -1."""

    generator: nn.Module
    rngs: list[torch.Generator]
    diverged: Tensor


def play(
    settings: list[Setting], training: dict[str, Any], images: Tensor, seed: int
) -> Played:
    """Train settings of one kind as replicates of one batch, (settings * replicates, n, size).

    Each setting has a generator of numbers of its own, so that its law does not depend on what else
    is in the batch. A replicate that has diverged changes no other one.
    """
    first, n, draw = settings[0], training["replicates"], minibatches(images)
    rngs = [seeded(seed_of(seed, setting)) for setting in settings]
    generator, discriminator = networks_of(settings, training, images.shape[1], rngs)
    betas = training["betas"]
    g_descend = descent(first.optim_g, first.rate, betas, generator)
    d_descend = descent(first.optim_d, first.rate, betas, discriminator)
    d_loss, g_loss = losses.gan_d_loss, losses.non_saturating_g_loss
    if first.family != "GAN":
        d_loss, g_loss = partial(losses.ebgan_d_loss, margin=training["margin"]), losses.ebgan_g_loss
    pulls = [training["pulling_away"] * (s.family == "EBGAN-PT") for s in settings]
    weight = torch.tensor(pulls, device=default_device()).repeat_interleave(n)
    diverged = torch.full((len(weight),), -1, device=default_device())
    size = (n, training["batch_size"])

    def latents() -> Tensor:
        return torch.cat([randn(*size, training["latent_dim"], generator=rng) for rng in rngs])

    for step in range(training["n_steps"]):
        x = torch.cat([draw(size, rng) for rng in rngs])
        with torch.no_grad():
            y = generator(latents())
        # In one pass: no layer lets one sample see another.
        d = d_descend(d_loss(*discriminator(torch.cat([x, y], dim=1)).chunk(2, dim=1)))
        fake = discriminator(generator(latents()))
        loss = g_loss(fake, fake)
        if weight.any():
            loss = loss + weight * losses.pulling_away(discriminator.energy.autoencoder.codes)
        is_bad = ~(g_descend(loss) + d).isfinite()
        diverged[is_bad & (diverged < 0)] = step
        if step % 100 == 0 and (diverged >= 0).all():
            break
    return Played(generator, rngs, diverged)


def seed_of(seed: int, setting: Setting) -> int:
    """A seed of its own for each setting."""
    return int(runs.key_of({"seed": seed, "setting": setting.name}), 16)


class Data(NamedTuple):
    """Images (n, size), a classifier of samples (R, n, size) to logits (R, n, 10), their digests."""

    images: Tensor
    classify: Callable[[Tensor], Tensor]
    source: dict[str, str]


def read(name: str) -> Data:
    """The data set `name` and the classifier that scores samples of it, on `default_device()`."""
    device, is_mnist = default_device(), name == "mnist"
    judge = checkpoints.load("mnist_features" if is_mnist else "digits_classifier", device)
    classifier = judge.networks["classifier"]
    if is_mnist:
        images, source = mnist("train").images, runs.mnist_source()

        def classify(x: Tensor) -> Tensor:
            parts = x.reshape(-1, 1, 28, 28).split(1000)
            return torch.cat([classifier(part) for part in parts]).reshape(*x.shape[:2], 10)
    else:
        data = digits()
        images = data.images
        source = {"data": "digits of scikit-learn (UCI, CC BY 4.0)", "data_sha256": digest(data)}

        def classify(x: Tensor) -> Tensor:
            return classifier(x.reshape(1, -1, x.shape[2])).reshape(*x.shape[:2], 10)

    source["classifier_sha256"] = judge.card["sha256"]
    return Data(images.flatten(1).to(device), classify, source)


@torch.no_grad()
def score(x: Tensor, data: Data, scoring: dict[str, Any]) -> dict[str, Tensor]:
    """The SCORES of samples x (R, n, size), each (R,), in float64.

    `classes` is the number of classes with at least `least_share` of the samples, `spread` the mean
    distance of two samples over that of two images, `energy_distance` that to the images in units
    of pixels, each from the first `n_distances` samples.
    """
    n = scoring["n_distances"]
    logits = data.classify(x)
    seen = [row.bincount(minlength=10) / x.shape[1] for row in logits.argmax(dim=2).cpu()]
    rows = torch.arange(n) * len(data.images) // n  # spread over all images
    truth = data.images[rows.to(data.images.device)].expand(len(x), -1, -1)

    def width(y: Tensor) -> Tensor:
        return torch.stack([torch.pdist(part).double().mean() for part in y]).cpu()

    return {
        **metrics.class_scores(logits)._asdict(),
        "classes": (torch.stack(seen) >= scoring["least_share"]).sum(dim=1).double(),
        "spread": width(x[:, :n]) / width(truth),
        "energy_distance": metrics.energy_distance(x[:, :n], truth),
    }


def made(
    settings: list[Setting],
    training: dict[str, Any],
    scoring: dict[str, Any],
    name: str,
    source: dict[str, str],
    seed: int,
) -> tuple[list[dict[str, Tensor]], float]:
    """The scores of each setting, with `diverged`, and the seconds for each: the work of a task.

    It holds all that a worker needs, who may be on another machine, with one thread.

    Raises RuntimeError where the worker's data or classifier are others than the client's.
    """
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = read(name)
        if data.source != source:
            raise RuntimeError(f"a worker has {data.source}, the client {source}; install one package")
        played, n = play(settings, training, data.images, seed), training["replicates"]
        size = n, scoring["n_samples"], training["latent_dim"]
        with torch.no_grad():
            x = played.generator(torch.cat([randn(*size, generator=rng) for rng in played.rngs]))
        lost = ~x.isfinite().flatten(1).all(dim=1)
        diverged = torch.where(lost & (played.diverged < 0), training["n_steps"], played.diverged)
        x[diverged >= 0] = 0  # which could not be scored
        scores = score(x, data, scoring)
    finally:
        torch.set_num_threads(threads)
    diverged = diverged.cpu()
    found = {key: value.masked_fill(diverged >= 0, math.nan) for key, value in scores.items()}
    found["diverged"] = diverged
    parts = {key: value.split(n) for key, value in found.items()}
    each = [{key: part[i].clone() for key, part in parts.items()} for i in range(len(settings))]
    return each, (time.perf_counter() - start) / len(settings)
