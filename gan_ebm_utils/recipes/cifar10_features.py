"""Train the CIFAR-10 classifier whose penultimate features score image samples.

    python -m gan_ebm_utils.recipes.cifar10_features

writes the checkpoint `cifar10_features`: the classifier, the mean and covariance of its features
over the images that it was trained on, over training images that it did not see, and over the test
set, and a card, which also says how far the images look like re-encoded in JPEG. Without `--full`
its width is three eighths of that and it takes about 80 minutes of one CPU core; with it, a few
minutes of a GPU. A run that is cut off goes on after its last epoch.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gan_ebm_utils import runs
from gan_ebm_utils.base import seeded
from gan_ebm_utils.datasets import Images, cifar10
from gan_ebm_utils.networks import ImageClassifier
from gan_ebm_utils.recipes import mnist_features

SIZES = {"small": {"width": 24, "epochs": 24}, "full": {"width": 64, "epochs": 30}}
# Training images that it sees: the features of the others are as those of test images, so that an
# FID between the two is a floor.
N_TRAIN = 40_000
TRAINING = {
    "batch_size": 128,
    "learning_rate": 4e-3,
    "warmup_steps": 400,
    "weight_decay": 0.05,
    "ema_decay": 0.995,
    "max_shift": 4,
}


def mirrored(images: Tensor, generator: torch.Generator, max_shift: int) -> Tensor:
    """Each image (n, c, h, w) shifted by up to `max_shift` pixels, and mirrored or not."""
    is_mirrored = torch.randint(2, (len(images), 1, 1, 1), generator=generator).bool()
    moved = mnist_features.shifted(images, generator, max_shift)
    return torch.where(is_mirrored.to(images.device), moved.flip(3), moved)


def edge_ratio(images: Tensor) -> float:
    """Mean step of grey from column to column at edges of JPEG's blocks of 8, over that inside.

    It is about 1 where there are no blocks.
    """
    step = images.mean(dim=1).diff(dim=2).abs().mean(dim=(0, 1))  # between columns i and i + 1
    is_edge = torch.arange(1, len(step) + 1) % 8 == 0
    return float(step[is_edge].mean() / step[~is_edge].mean())


def settings_of(size: str) -> dict[str, Any]:
    """Everything that the classifier depends on, but for the seed and the data."""
    return {**TRAINING, **SIZES[size], "n_train": N_TRAIN}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="the full width, for a GPU")
    args = runs.parse(parser, argv)
    settings, generator = settings_of("full" if args.full else "small"), seeded(args.seed, "cpu")
    architecture = {"width": settings["width"]}
    built = ImageClassifier(**architecture, generator=generator), ImageClassifier, architecture
    known, changed = cifar10("train"), partial(mirrored, max_shift=TRAINING["max_shift"])
    sets = {
        "train": Images(*(part[:N_TRAIN] for part in known)),
        "held_out": Images(*(part[N_TRAIN:] for part in known)),
        "test": cifar10("test"),
    }
    images = sets["test"].images
    edges = {"edge_ratio": edge_ratio(images), "edge_ratio_elsewhere": edge_ratio(images[..., 4:])}
    how = sets, settings, changed, generator, args, edges
    mnist_features.make("cifar10_features", built, *how, **runs.cifar10_source())


if __name__ == "__main__":
    main()
