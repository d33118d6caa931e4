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
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.base import default_device, seeded
from gan_ebm_utils.datasets import Images, mnist, to_bytes
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


def shifted(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
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
    data: Images,
    epochs: int,
    seed: int,
    device: torch.device,
    run: runs.Run,
    report: Callable[[nn.Module], None],
) -> tuple[nn.Module, float]:
    """Train on `data`; return the averaged classifier and the seconds it took.

    Each epoch is a step of a part of `run`. The generator's state is stored with the weights, so
    that a run that goes on has the result of an unbroken one. `report(classifier)` is called after
    each epoch.
    """
    generator = seeded(seed, "cpu")  # so that every device sees the same draws
    classifier = MnistClassifier(**ARCHITECTURE, generator=generator)
    classifier.to(device, memory_format=torch.channels_last)
    average = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(TRAINING["ema_decay"]))
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=TRAINING["weight_decay"])
    images, labels = data.images.to(device), data.labels.to(device)
    batch_size = min(TRAINING["batch_size"], len(images))
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
            warmup = min(1.0, (step + 1) / TRAINING["warmup_steps"])
            cosine = (1 + math.cos(math.pi * step / (epochs * n_batches))) / 2
            optimizer.param_groups[0]["lr"] = TRAINING["learning_rate"] * warmup * cosine
            batch = shifted(images[rows], TRAINING["max_shift"], generator)
            with torch.autocast(device.type, torch.bfloat16):
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


def write(
    classifier: nn.Module,
    train_set: Images,
    test_set: Images,
    device: torch.device,
    seconds: float,
    run: runs.Run,
    out: Path | None,
) -> dict[str, Any]:
    """Score the classifier, write the checkpoint into `out` and return the metrics on its card."""
    scored = {
        "train": evaluate(classifier, train_set.images, device),
        "test": evaluate(classifier, test_set.images, device),
    }
    stats = {split: moments(scores.features) for split, scores in scored.items()}
    frequencies = {
        split: torch.bincount(data.labels, minlength=10) / len(data.labels)
        for split, data in (("train", train_set), ("test", test_set))
    }
    metrics = {
        **accuracy_metrics(scored["test"].logits, test_set.labels),
        "n_parameters": sum(p.numel() for p in classifier.parameters()),
        "frechet_train_test": {
            "value": float(frechet_distance(*stats["train"], *stats["test"])),
            "n_train": len(train_set.labels),
            "n_test": len(test_set.labels),
        },
        "seconds": round(seconds, 1),
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
    network = (classifier, MnistClassifier, ARCHITECTURE)
    checkpoints.save("mnist_features", {"classifier": network}, tensors, run.card(metrics), out)
    return metrics


def settings_of(epochs: int) -> dict[str, Any]:
    """Everything that the classifier depends on, but for the seed and the data."""
    return {**TRAINING, **ARCHITECTURE, "epochs": epochs}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=runs.at_least(1), default=12)
    args = runs.parse(parser, argv)

    device = default_device()
    train_set, test_set = mnist("train"), mnist("test")
    settings, source = settings_of(args.epochs), runs.mnist_source()
    run = runs.Run("mnist_features", settings, args, runs.Progress(), **source)
    run.expect(dict.fromkeys(epochs_of(args.epochs), 1))

    def report(classifier: nn.Module) -> None:
        right = evaluate(classifier, test_set.images, device).logits.argmax(1) == test_set.labels
        print(f"test accuracy {right.double().mean():.4f}", flush=True)

    classifier, seconds = train(train_set, args.epochs, args.seed, device, run, report)
    metrics = write(classifier, train_set, test_set, device, seconds, run, args.out)
    run.remove_parts()
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
