"""Train MEG on nine digits of MNIST and score how its energy finds the tenth; plain baselines.

    python -m gan_ebm_utils.recipes.mnist_meg_anomaly

writes the checkpoint `mnist_meg_anomaly`: areas under the precision-recall curve (average
precisions), for five held-out digits and several splits of the data, the tenth digit being what is
to be found. The protocol is that of Kumar et al. 2019 (arXiv:1901.08508): 80 % of the normal digits
train, the other 20 % and all images of the held-out digit are scored, the penalty on the energy's
slope has the weight 100, one step of the energy stands beside one of the generator, and a high
energy E(x) means "anomalous". A score that knows nothing has the prevalence of the held-out digit,
so each area is also given at the prevalence that the digit has in MNIST, where an anomaly counts as
a fifth of an image. Beside MEG's energy stand

- the mean of its energies at all points of the course where it is scored,
- the norm of its slope |grad E(x)|, which the authors take for another data set,
- the distance to the fifth neighbour among the training images, in 50 principal components,
- the negative log density of a mixture of Gaussians that is fitted in the same components,
- the ink of the image, its mean pixel, of which no training is needed.

The game is that of `stacked_mnist` with one channel, and the learning rate falls to 0 as there. It
takes about an hour of one core. Trainings run in `--jobs` processes, and a run that is cut off goes
on after the last one that was finished.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import joblib
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.base import default_device, seeded
from gan_ebm_utils.datasets import minibatches, mnist
from gan_ebm_utils.recipes.stacked_mnist import LOSSES, Game, Rule, repeat

DIGITS = (1, 4, 5, 7, 9)
RULE = LOSSES["meg"]._replace(d_steps=1, weight=100.0)
SIZES = {
    "width_g": 32,
    "width_d": 16,
    "width_t": 16,
    "latent_dim": 64,
    "batch_size": 32,
    "learning_rate": 5e-4,
    "decay": 0.99,
}
N_POINTS = 12
N_TRAIN = 0.8  # share of the normal digits
BASELINES = {"components": 50, "neighbour": 5, "mixture": 20, "n_fit": 20_000}
BASELINE_SCORES = ("neighbours", "mixture", "ink")
COURSE = ("step", "energy", "energy_natural", "slope", "slope_natural", "ink_rank", "information")


class Split(NamedTuple):
    """Normal training images (n, 1, 28, 28), and test images with what of them is anomalous."""

    normal: Tensor
    test: Tensor
    is_anomaly: Tensor


def split_of(digit: int, seed: int) -> Split:
    """The images of both halves of MNIST with `digit` held out, and the others split by `seed`.

    Raises ValueError for a digit that is none.
    """
    if digit not in range(10):
        raise ValueError(f"digit must be 0 to 9, got {digit}")
    parts = [mnist("train"), mnist("test")]
    images, labels = (torch.cat(parts) for parts in zip(*parts, strict=True))
    normal = (labels != digit).nonzero()[:, 0]
    normal = normal[torch.randperm(len(normal), generator=seeded(seed, "cpu"))]
    n = int(N_TRAIN * len(normal))
    held_out = (labels == digit).nonzero()[:, 0]
    test = torch.cat([normal[n:], held_out])
    return Split(images[normal[:n]], images[test], labels[test] == digit)


def auprc(split: Split, score: Tensor) -> list[float]:
    """Average precisions of a score (n,) that is high where an image is anomalous.

    The first is that of the test images, the second that of images of which as large a share is
    anomalous as in all data: there an anomaly counts 1 - N_TRAIN times.
    """
    truth, values = split.is_anomaly.numpy(), score.double().numpy()
    weight = torch.where(split.is_anomaly, 1 - N_TRAIN, 1.0).numpy()
    return [
        float(average_precision_score(truth, values, sample_weight=each)) for each in (None, weight)
    ]


def energies(game: Game, images: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) and |grad E(x)| of images, both (n,), on the CPU."""
    device, judge = game.rng.device, game.gan.discriminator
    found = []
    for part in images.split(2000):
        x = part[None].to(device).requires_grad_()
        energy = -judge(x)
        (slope,) = torch.autograd.grad(energy.sum(), x)
        found.append(torch.stack([energy[0].detach(), slope[0].flatten(1).norm(dim=1)]).cpu())
    energy, slope = torch.cat(found, dim=1)
    return energy, slope


def train(split: Split, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    """Scores of one MEG along its course, (points, COURSE), and areas of its mean energy, (2,)."""
    rule, sizes, steps = Rule(**given["rule"]), given["sizes"], given["steps"]
    data = minibatches(split.normal.to(default_device()))
    game, course, total = Game(rule, sizes, data, steps, seed, channels=1), [], 0
    ink = split.test.mean(dim=(1, 2, 3))
    for i in range(given["n_points"]):
        until = steps * (i + 1) // given["n_points"]
        repeat(game, until - int(game.step))
        energy, slope = energies(game, split.test)
        if not bool((energy.isfinite() & slope.isfinite()).all()):
            raise RuntimeError(
                f"the energy is not finite after {until} steps; lower the learning_rate"
            )
        rank = float(spearmanr(energy.numpy(), ink.numpy()).statistic)
        areas = [*auprc(split, energy), *auprc(split, slope)]
        course.append([float(until), *areas, rank, float(game.information)])
        total = total + energy.double()
    areas = {"course": course, "mean_energy": auprc(split, total)}
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in areas.items()}


def baselines(split: Split, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    """Areas of the BASELINE_SCORES, (scores, 2), and both prevalences."""
    settings = given["baselines"]
    normal, test = (x.flatten(1).numpy() for x in (split.normal, split.test))
    components = PCA(settings["components"], random_state=seed).fit(normal)
    known, seen = components.transform(normal), components.transform(test)
    near = NearestNeighbors(n_neighbors=settings["neighbour"]).fit(known)
    distance = near.kneighbors(seen)[0][:, -1]
    mixture = GaussianMixture(settings["mixture"], random_state=seed, reg_covar=1e-3)
    density = mixture.fit(known[: settings["n_fit"]]).score_samples(seen)
    found = {
        "neighbours": torch.from_numpy(distance),
        "mixture": torch.from_numpy(-density),
        "ink": split.test.mean(dim=(1, 2, 3)),
    }
    return {
        "auprc": torch.tensor(
            [auprc(split, found[name]) for name in BASELINE_SCORES], dtype=torch.float64
        ),
        "prevalence": torch.tensor(auprc(split, torch.zeros(len(split.test))), dtype=torch.float64),
    }


# ---- the parts


class Task(NamedTuple):
    """All that a process needs to make one part or to find it; its key is that of `given`."""

    kind: str  # "meg" or "baselines"
    digit: int
    number: int
    given: dict[str, Any]
    run: runs.Run

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.digit}-{self.number}"


def make(task: Task) -> tuple[Task, dict[str, Any]]:
    """A task and its part, made now or by an earlier start."""
    # All that is compared has the same split.
    seed = task.given["seed"] + 100 * task.number + task.digit
    split, kinds = split_of(task.digit, seed), {"meg": train, "baselines": baselines}
    own = partial(kinds[task.kind], split, seed, task.given["settings"])
    return task, task.run.once(task.name, own, task.given)[0]


def settings_of(steps: int, seeds: int) -> dict[str, Any]:
    """Everything that the scores depend on, but for the seed and the data."""
    return {
        "digits": list(DIGITS),
        "rule": RULE._asdict(),
        "sizes": SIZES,
        "steps": steps,
        "seeds": seeds,
        "n_points": N_POINTS,
        "n_train": N_TRAIN,
        "baselines": BASELINES,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = runs.parser(__doc__)
    parser.add_argument("--steps", type=runs.at_least(N_POINTS), default=2400)
    parser.add_argument("--seeds", type=runs.at_least(2), default=3)
    text = "processes, each with one thread (default: 1 on a GPU, else as many as there are cores)"
    parser.add_argument("--jobs", type=runs.at_least(1), help=text)
    args = runs.parse(parser, argv)
    try:
        device, source = default_device(), runs.mnist_source()
    except (RuntimeError, ValueError) as error:  # no such device, no MNIST
        parser.error(str(error))
    settings, name = settings_of(args.steps, args.seeds), "mnist_meg_anomaly"
    run = runs.Run(name, settings, args, runs.Progress(), **source)
    jobs = args.jobs or (1 if device.type == "cuda" else joblib.cpu_count())
    tasks = []
    for number in range(args.seeds):
        for digit in DIGITS:
            for kind, weight in (("meg", 5.0), ("baselines", 1.0)):
                given = {**run.given, "device": device.type}
                apart = runs.Run(name, settings, args, runs.Progress(), **source)
                task = Task(kind, digit, number, given, apart if jobs > 1 else run)
                run.keys[task.name] = runs.key_of(given)
                task.run.progress.parts[task.name] = weight
                tasks.append(task)
    if run.is_stored(name, args.out):
        print(f"{name}: kept")
        run.remove_parts()
        return
    made = {}
    for task, part in runs.in_processes(make, tasks, jobs):
        made[task[:3]] = part
        print(f"{task.name}: stored", flush=True)

    def table(kind: str, key: str) -> Tensor:
        """(digits, seeds, ...)"""
        return torch.stack(
            [
                torch.stack([torch.as_tensor(made[kind, d, i][key]) for i in range(args.seeds)])
                for d in DIGITS
            ]
        )

    tensors = {
        "course": table("meg", "course"),
        "mean_energy": table("meg", "mean_energy"),
        "baselines": table("baselines", "auprc"),
        "prevalence": table("baselines", "prevalence"),
    }
    found = {
        "digits": list(DIGITS),
        "course": list(COURSE),
        "baselines": list(BASELINE_SCORES),
        "auprc_of_energy": tensors["course"][:, :, -1, 1].mean(dim=1).tolist(),
        "prevalence": tensors["prevalence"][..., 0].mean(dim=1).tolist(),
    }
    checkpoints.save(name, {}, tensors, {**run.card(found), "threads": 1}, args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
