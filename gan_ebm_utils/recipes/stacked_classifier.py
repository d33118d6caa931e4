"""Train a second classifier of MNIST, independent of `mnist_features`, for counts of stacked modes.

    python -m gan_ebm_utils.recipes.stacked_classifier

writes the checkpoint `stacked_classifier`: the network `classifier`, images (n, 1, 28, 28) to
logits (n, 10), and a card with its accuracy on the test digits. It is a small network of strided
convolutions, a sixth of the work of the other one, with dropout before its last layer, so that a
classifier left in training mode can be seen to miscount. It takes two minutes on one CPU core. A
run that is cut off trains again.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_ebm_utils import runs
from gan_ebm_utils.base import default_device, seeded
from gan_ebm_utils.datasets import Images, mnist
from gan_ebm_utils.networks import digit_classifier
from gan_ebm_utils.recipes.mnist_features import accuracy_metrics, shifted

ARCHITECTURE = {"width": 16, "hidden": 128, "dropout": 0.5}
TRAINING = {"batch_size": 128, "learning_rate": 3e-3, "weight_decay": 0.02, "max_shift": 2}


def train(data: Images, epochs: int, seed: int) -> dict[str, Tensor]:
    """The weights after `epochs` passes over `data`, at a rate that falls to 0."""
    device, rng = default_device(), seeded(seed, "cpu")  # so that every device sees the same draws
    classifier = digit_classifier(**ARCHITECTURE, generator=rng).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=TRAINING["weight_decay"])
    images, labels = data.images.to(device), data.labels.to(device)
    size = min(TRAINING["batch_size"], len(images))
    n_steps, step = epochs * (len(images) // size), 0
    with torch.random.fork_rng():  # dropout draws from the global generator
        torch.manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=rng).to(device)
            for rows in order[: len(order) // size * size].split(size):
                optimizer.param_groups[0]["lr"] = TRAINING["learning_rate"] * (1 - step / n_steps)
                logits = classifier(shifted(images[rows], rng, TRAINING["max_shift"]))
                optimizer.zero_grad()
                F.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
                step += 1
    return {key: value.cpu() for key, value in classifier.state_dict().items()}


def settings_of(epochs: int) -> dict[str, Any]:
    """Everything that the classifier depends on, but for the seed and the data."""
    return {**TRAINING, **ARCHITECTURE, "epochs": epochs}


def make(epochs: int, seed: int, run: runs.Run) -> runs.Made:
    """The classifier and its scores, from the finished part of `run`."""
    weights, seconds = run.once("training", lambda: train(mnist("train"), epochs, seed))
    classifier = digit_classifier(**ARCHITECTURE, generator=seeded(0, "cpu"))
    classifier.load_state_dict(weights)
    classifier.eval()
    test_set = mnist("test")
    with torch.no_grad():
        logits = torch.cat([classifier(part) for part in test_set.images.split(1000)])
    metrics = {
        **accuracy_metrics(logits, test_set.labels),
        "n_parameters": sum(p.numel() for p in classifier.parameters()),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(metrics, indent=2))
    return {"classifier": (classifier, digit_classifier, ARCHITECTURE)}, {}, metrics


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=runs.at_least(1), default=10)
    args = runs.parse(parser, argv)
    wanted = {"stacked_classifier": (settings_of(args.epochs), {"training": 1})}
    runs.make_checkpoints(
        "stacked_classifier",
        wanted,
        lambda name, run: make(args.epochs, args.seed, run),
        args,
        **runs.mnist_source(),
    )


if __name__ == "__main__":
    main()
