"""Train the classifier of the 8 x 8 digits by whose classes samples are scored.

    python -m gan_ebm_utils.recipes.digits_classifier

writes the checkpoint `digits_classifier`: the network `classifier`, which maps flat images
(1, n, 64) in [-1, 1] to logits (1, n, 10), the row numbers of the images that it has not seen, and
a card with its accuracy on these. It takes ten seconds on one CPU core. A run that is cut off
trains again.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.base import seeded
from gan_ebm_utils.datasets import Images, digest, digits
from gan_ebm_utils.metrics import class_scores
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.recipes.mnist_features import accuracy_metrics, shifted

ARCHITECTURE = {"in_features": 64, "hidden": [256], "out_features": 10}
TRAINING = {"batch_size": 128, "learning_rate": 3e-3, "weight_decay": 0.02, "max_shift": 1}
EACH = 4  # every so manyth image is held out


def held_out(n: int) -> Tensor:
    """Which of n images the classifier does not see, (n,) of truth values."""
    return torch.arange(n) % EACH == 0


def train(data: Images, steps: int, seed: int) -> dict[str, Tensor]:
    """The weights after `steps` steps on `data`, whose images are moved by up to a pixel."""
    rng = seeded(seed, "cpu")
    network = mlp(**ARCHITECTURE, generator=rng)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=TRAINING["weight_decay"])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = TRAINING["learning_rate"] * (1 - step / steps)
        rows = torch.randint(len(data.images), (TRAINING["batch_size"],), generator=rng)
        images = shifted(data.images[rows], rng, TRAINING["max_shift"])
        loss = F.cross_entropy(network(images.reshape(1, len(rows), -1))[0], data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()


def settings_of(steps: int) -> dict[str, Any]:
    """Everything that the classifier depends on, but for the seed and the data."""
    return {**ARCHITECTURE, **TRAINING, "steps": steps, "held_out": f"every {EACH}th, from row 0"}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=runs.at_least(1), default=3000)
    args = runs.parse(parser, argv)
    data = digits()
    is_held = held_out(len(data.labels))
    source = {"data": "digits of scikit-learn (UCI, CC BY 4.0)", "data_sha256": digest(data)}
    run = runs.Run("digits_classifier", settings_of(args.steps), args, runs.Progress(), **source)
    run.expect({"training": 1})
    seen = Images(data.images[~is_held], data.labels[~is_held])
    weights, seconds = run.once("training", lambda: train(seen, args.steps, args.seed))
    network = mlp(**ARCHITECTURE, generator=seeded(args.seed, "cpu"))
    network.load_state_dict(weights)
    with torch.no_grad():
        logits = network(data.images[is_held].flatten(1)[None])
    scores = class_scores(logits)._asdict()
    metrics = {
        **accuracy_metrics(logits[0], data.labels[is_held]),
        # What the scores of samples are at best, nearly.
        "class_scores_of_held_out": {name: float(score) for name, score in scores.items()},
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(seconds, 1),
    }
    tensors = {"held_out": is_held.nonzero()[:, 0]}
    networks = {"classifier": (network, mlp, ARCHITECTURE)}
    checkpoints.save("digits_classifier", networks, tensors, run.card(metrics), args.out)
    run.remove_parts()
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
