"""Train the MNIST classifier whose penultimate features score image samples.

    python -m gan_ebm_utils.recipes.mnist_features

writes the checkpoint `mnist_features`: the classifier, the mean and covariance of its features over
the training and the test set, and a card. A run that is cut off goes on after its last epoch.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.base import default_device, seeded, to_bytes
from gan_ebm_utils.datasets import Images, mnist
from gan_ebm_utils.metrics import frechet_distance, moments
from gan_ebm_utils.networks import MnistClassifier

ARCHITECTURE = {"n_features": 64, "width": 16}
TRAINING = {
    "batch_size": 128,
    "learning_rate": 2e-3,
    "warmup_steps": 200,
    "weight_decay": 0.02,
    "ema_decay": 0.995,
    "max_shift": 2,
}
N_CHECK = 16  # test images stored with their logits


class Evaluation(NamedTuple):
    """Logits (n, 10) and features (n, n_features) of a set of images, float32."""

    logits: Tensor
    features: Tensor


def shifted(images: Tensor, generator: torch.Generator, max_shift: int) -> Tensor:
    """Each image (n, c, h, w) moved by up to `max_shift` pixels along both axes; the rim is -1.

    The result is laid out channels last.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4, value=-1.0)
    moves = torch.randint(2 * max_shift + 1, (2, n, 1), generator=generator)
    down, right = moves.to(images.device)
    row = down + torch.arange(height, device=images.device)  # (n, h)
    column = right + torch.arange(width, device=images.device)  # (n, w)
    first = torch.arange(n, device=images.device)[:, None, None]
    return padded[first, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


def train(
    classifier: nn.Module,
    data: Images,
    epochs: int,
    settings: dict[str, Any],
    changed: Callable[[Tensor, torch.Generator], Tensor],
    generator: torch.Generator,
    run: runs.Run,
    report: Callable[[nn.Module], None],
) -> tuple[nn.Module, float]:
    """Train on `data`, each batch of images `changed`; the averaged classifier, and the seconds.

    `settings` are as `TRAINING`. Each epoch is a step of a part of `run`. The generator's state is
    stored with the weights, so that a run that goes on has the result of an unbroken one; it is on
    the CPU, so that every device sees the same draws. `report(classifier)` is called after each
    epoch.
    """
    device = default_device()
    classifier.to(device, memory_format=torch.channels_last)
    moving = get_ema_multi_avg_fn(settings["ema_decay"])
    average = AveragedModel(classifier, multi_avg_fn=moving, use_buffers=True).eval()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=settings["weight_decay"])
    images, labels = data.images.to(device), data.labels.to(device)
    batch_size = min(settings["batch_size"], len(images))
    n_batches = len(images) // batch_size
    parts = {"classifier": classifier, "average": average, "optimizer": optimizer}

    def epoch(state: dict[str, Any] | None) -> dict[str, Any]:
        step = 0
        if state is not None:
            step = state["step"]
            generator.set_state(state["generator"])
            for key, part in parts.items():
                part.load_state_dict(state[key])
        order = torch.randperm(len(images), generator=generator).to(device)
        for rows in order[: n_batches * batch_size].split(batch_size):
            warmup = min(1.0, (step + 1) / settings["warmup_steps"])
            cosine = (1 + math.cos(math.pi * step / (epochs * n_batches))) / 2
            optimizer.param_groups[0]["lr"] = settings["learning_rate"] * warmup * cosine
            batch = changed(images[rows], generator)
            with runs.autocast(device):
                logits = classifier(batch)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels[rows]).backward()
            optimizer.step()
            average.update_parameters(classifier)
            step += 1
        report(average.module)
        state = {key: part.state_dict() for key, part in parts.items()}
        return {**state, "step": step, "generator": generator.get_state()}

    state, seconds = run.in_steps("training", epochs_of(epochs), epoch)
    average.load_state_dict(state["average"])
    return average.module, seconds


def epochs_of(epochs: int) -> list[str]:
    """The names of the steps of the training."""
    return [f"epoch {i + 1}" for i in range(epochs)]


@torch.no_grad()
def evaluate(classifier: nn.Module, images: Tensor, device: torch.device) -> Evaluation:
    """Logits and features of `images`, in chunks, back on the CPU."""
    rows = [chunk.to(device) for chunk in images.split(1000)]
    features = torch.cat([classifier.features(chunk) for chunk in rows])
    return Evaluation(classifier.head(features).cpu(), features.cpu())


def accuracy_metrics(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy with its exact 95 % binomial interval, and where the worst class goes wrong."""
    predicted = logits.argmax(dim=1)
    right = predicted == labels
    interval = binomtest(int(right.sum()), len(labels)).proportion_ci(0.95, method="exact")
    confusion = torch.bincount(10 * labels + predicted, minlength=100).reshape(10, 10)
    recall = confusion.diagonal() / confusion.sum(dim=1).clamp(min=1)
    worst = int(recall.argmin())
    errors = confusion[worst].clone()
    errors[worst] = 0
    return {
        "test_accuracy": float(right.double().mean()),
        "test_accuracy_interval_95": [interval.low, interval.high],
        "n_test": len(labels),
        "worst_class": {
            "digit": worst,
            "n": int(confusion[worst].sum()),
            "errors": int(errors.sum()),
            "most_often_taken_for": int(errors.argmax()),
            "that_often": int(errors.max()),
        },
    }


def scores_of(
    classifier: nn.Module, sets: dict[str, Images], seconds: float
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is stored beside a classifier: moments of its features and a check, and its metrics.

    Of `sets` one is "test", with which the others are compared.
    """
    device, test_set = default_device(), sets["test"]
    scored = {split: evaluate(classifier, data.images, device) for split, data in sets.items()}
    stats = {split: moments(scores.features) for split, scores in scored.items()}
    frequencies = {
        split: torch.bincount(data.labels, minlength=10) / len(data.labels)
        for split, data in sets.items()
    }
    metrics = {
        **accuracy_metrics(scored["test"].logits, test_set.labels),
        "n_parameters": sum(p.numel() for p in classifier.parameters()),
        "seconds": round(seconds, 1),
    }
    for split in sets.keys() - {"test"}:
        metrics[f"frechet_{split}_test"] = {
            "value": float(frechet_distance(*stats[split], *stats["test"])),
            f"n_{split}": len(sets[split].labels),
            "n_test": len(test_set.labels),
        }
    tensors = {
        "check_images": to_bytes(test_set.images[:N_CHECK]),
        "check_labels": test_set.labels[:N_CHECK],
        "check_logits": scored["test"].logits[:N_CHECK],
    }
    for split, (mean, covariance) in stats.items():
        tensors[f"{split}_mean"] = mean.float()
        tensors[f"{split}_covariance"] = covariance.float()
        tensors[f"{split}_frequencies"] = frequencies[split]
    return tensors, metrics


def settings_of(epochs: int) -> dict[str, Any]:
    """Everything that the classifier depends on, but for the seed and the data."""
    return {**TRAINING, **ARCHITECTURE, "epochs": epochs}


def make(
    name: str,
    built: checkpoints.Built,
    sets: dict[str, Images],
    settings: dict[str, Any],
    changed: Callable[[Tensor, torch.Generator], Tensor],
    generator: torch.Generator,
    args: argparse.Namespace,
    facts: dict[str, Any],
    **source: str,
) -> None:
    """Train the classifier `built` on one of `sets`, "train", and write the checkpoint `name`.

    `settings` are all that it depends on, but for the seed and the data, as `settings_of` has them.
    `facts` come to the metrics on its card.
    """
    device, test_set, epochs = default_device(), sets["test"], settings["epochs"]
    run = runs.Run(name, settings, args, runs.Progress(), **source)
    run.expect(dict.fromkeys(epochs_of(epochs), 1))

    def report(classifier: nn.Module) -> None:
        right = evaluate(classifier, test_set.images, device).logits.argmax(1) == test_set.labels
        print(f"test accuracy {right.double().mean():.4f}", flush=True)

    classifier, *how = built
    found, seconds = train(
        classifier, sets["train"], epochs, settings, changed, generator, run, report
    )
    tensors, metrics = scores_of(found, sets, seconds)
    metrics, networks = {**metrics, **facts}, {"classifier": (found, *how)}
    checkpoints.save(name, networks, tensors, run.card(metrics), args.out)
    run.remove_parts()
    print(json.dumps(metrics, indent=2))


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=runs.at_least(1), default=12)
    args = runs.parse(parser, argv)
    generator = seeded(args.seed, "cpu")
    built = MnistClassifier(**ARCHITECTURE, generator=generator), MnistClassifier, ARCHITECTURE
    sets = {"train": mnist("train"), "test": mnist("test")}
    settings = settings_of(args.epochs)
    changed = partial(shifted, max_shift=TRAINING["max_shift"])
    source = runs.mnist_source()
    make("mnist_features", built, sets, settings, changed, generator, args, {}, **source)


if __name__ == "__main__":
    main()
