"""Train six losses on Stacked MNIST, with the same networks, and count the modes they generate.

    python -m gan_ebm_utils.recipes.stacked_mnist

writes the checkpoint `stacked_mnist`: of each training its course and its last scores; and for MEG,
MEG without its entropy term and the relativistic loss one `stacked_mnist_LOSS`, the averaged
generator and the discriminator of the longer training that each loss has. Does this benchmark tell
losses apart, or networks and lengths of training? So all losses have the same generator, with batch
normalisation, the same discriminator, without, and batches of the same size; some also have a
discriminator of a half and a quarter of the width, and modes are counted along the way.

| loss | discriminator's penalty | its steps | Adam's betas |
|---|---|---|---|
| `non_saturating` | none | 1 | 0.5, 0.9 |
| `non_saturating_r1` | 0.5 times the squared gradient norm at data | 1 | 0.5, 0.9 |
| `wgan_gp` | 10 times (norm - 1)^2 between data and samples | 5 | 0.5, 0.9 |
| `meg` | 10 times the squared norm at data | 5 | 0.5, 0.9 |
| `meg_no_entropy` | 10 times the squared norm at data | 5 | 0.5, 0.9 |
| `relativistic_r1_r2` | 0.5 times the squared norm at data, and at samples | 1 | 0, 0.99 |

The learning rate falls linearly to 0. MEG's discriminator is an energy E, and
its losses are those of a critic d = -E; its generator also raises a bound on the information
between z and G(z), by a statistics network that learns with it (Kumar et al. 2019,
arXiv:1901.08508). A norm is over all axes of a stack. A loss of five steps has a third of the steps
of the others, which takes as long.

Widths and batches are half of what `--full` has, where all losses have 10,000 steps of the
generator and the longer ones 20,000. Those of half size take about twelve hours of one core that
has no units for bfloat16; networks compute in it where the device is fast in it, else in float32.
The trainings run in `--jobs` processes. Each is stored on its way, with the scores so far, and when
it ends; a later start goes on from there. What a training depends on is its own settings, the data,
the two classifiers and the kind of device, and the card holds a key for each: one that the
checkpoint in `--out` holds under its key is taken from there, so that `--only` can spread the
trainings over many starts. On a GPU, which GAN_EBM_DEVICE can choose, a whole iteration is captured
as one CUDA graph.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import (
    Gan,
    Sample,
    count_calls,
    default_device,
    evaluating,
    randn,
    seeded,
)
from gan_ebm_utils.datasets import mnist, stacked_digits
from gan_ebm_utils.networks import Statistics, stack_discriminator, stack_generator


class Rule(NamedTuple):
    """A game: names of its losses, how often d steps, and what else both players minimise.

    `penalised` says where d's gradient is: "real", "fake", or "between" with a norm of 1 as its
    aim. `entropy` is the weight of the bound on the information between z and G(z).
    """

    d_loss: str
    g_loss: str
    d_steps: int = 1
    penalised: tuple[str, ...] = ()
    weight: float = 0.0
    entropy: float = 0.0
    is_energy: bool = False
    betas: tuple[float, float] = (0.5, 0.9)


LOSSES = {
    "meg": Rule(
        "wasserstein_d_loss", "wasserstein_g_loss", 5, ("real",), 10.0, 1.0, is_energy=True
    ),
    "meg_no_entropy": Rule(
        "wasserstein_d_loss", "wasserstein_g_loss", 5, ("real",), 10.0, 0.0, is_energy=True
    ),
    "relativistic_r1_r2": Rule(
        "relativistic_d_loss",
        "relativistic_g_loss",
        penalised=("real", "fake"),
        weight=0.5,
        betas=(0.0, 0.99),
    ),
    "non_saturating_r1": Rule(
        "gan_d_loss", "non_saturating_g_loss", penalised=("real",), weight=0.5
    ),
    "non_saturating": Rule("gan_d_loss", "non_saturating_g_loss"),
    "wgan_gp": Rule("wasserstein_d_loss", "wasserstein_g_loss", 5, ("between",), 10.0),
}
# `steps` are the generator's, by the discriminator's steps for each of them; `long` is what is
# different for a long training.
SIZES = {
    "half": {
        "width_g": 64,
        "width_d": 32,
        "latent_dim": 64,
        "batch_size": 64,
        "steps": {"1": 1200, "5": 400},
        "learning_rate": 5e-4,
        "decay": 0.998,
        "long": {"steps": {"1": 12_000, "5": 4000}},
    },
    "full": {
        "width_g": 128,
        "width_d": 64,
        "latent_dim": 128,
        "batch_size": 128,
        "steps": {"1": 10_000, "5": 10_000},
        "learning_rate": 2e-4,
        "decay": 0.999,
        "long": {"steps": {"1": 20_000, "5": 20_000}},
    },
}
SEEDS = {"meg": 3, "meg_no_entropy": 3, "relativistic_r1_r2": 3}  # 1 for the others
NARROW = {"relativistic_r1_r2": [2, 4], "meg": [2, 4]}
# `samplings` are those of a generator that is stored; the others have one.
SCORING = {"n_points": 6, "n_course": 5_000, "n_last": 26_000, "samplings": 3}
# The losses whose long training is stored with its networks.
KEPT = ("meg", "meg_no_entropy", "relativistic_r1_r2")
COURSE = ("step", "modes", "kl", "modes_averaged", "kl_averaged", "information")
COUNTING, SECOND = JUDGES = ("stacked_classifier", "mnist_features")
WARM_UP = 3  # iterations before one is captured, as PyTorch asks for


class Training(NamedTuple):
    """One training of a loss; `narrow` divides the width of its discriminator."""

    loss: str
    number: int = 0
    narrow: int = 1
    is_long: bool = False

    @property
    def name(self) -> str:
        if self.is_long:
            return f"{self.loss}-long"
        return f"{self.loss}-{self.number}" + f"-narrow{self.narrow}" * (self.narrow > 1)

    @property
    def keeps(self) -> bool:
        """Whether its networks are stored."""
        return self.is_long and self.loss in KEPT


def trainings() -> list[Training]:
    """All trainings in the order in which they are wanted: long ones, firsts of a loss, others."""
    most = max(SEEDS.values())
    longs = [Training(loss, is_long=True) for loss in LOSSES]
    firsts = [Training(loss, i) for i in range(most) for loss in LOSSES if i < SEEDS.get(loss, 1)]
    others = [Training(loss, 0, n) for loss, narrow in NARROW.items() for n in narrow]
    return longs + firsts + others


# ---- the game


class Game:
    """A training: its networks, their optimisers and all else that an iteration changes.

    `sizes` are those of a part, with `width_d` as it is here and `width_t`, that of the statistics
    network; `data` draws images of as many `channels`. The learning rate falls linearly to 0 over
    `n_steps`.
    """

    def __init__(
        self,
        rule: Rule,
        sizes: dict[str, Any],
        data: Sample,
        n_steps: int,
        seed: int,
        channels: int = 3,
    ) -> None:
        self.rule, self.sizes, self.data, self.n_steps = rule, sizes, data, n_steps
        self.rng, self.channels = seeded(seed), channels
        device, latent_dim, rng = self.rng.device, sizes["latent_dim"], self.rng
        generator, judge = self.pair()
        self.gan = Gan(generator, judge, latent_dim)
        self.averaged = copy.deepcopy(generator)
        self.networks = {"generator": generator, "discriminator": judge, "averaged": self.averaged}
        players = {"discriminator": [*judge.parameters()], "generator": [*generator.parameters()]}
        if rule.entropy:
            self.statistics = Statistics(sizes["width_t"], latent_dim, channels, generator=rng)
            self.networks["statistics"] = self.statistics
            players["generator"] += self.statistics.parameters()
        for network in self.networks.values():  # a seventh less time on a CPU
            network.to(memory_format=torch.channels_last)
        settings = {"betas": rule.betas, "fused": True, "capturable": device.type == "cuda"}
        # A tensor on the device, so that a captured iteration has a rate that falls.
        self.rate = torch.tensor(sizes["learning_rate"], device=device)
        self.optimizers = {
            name: torch.optim.Adam(weights, self.rate, **settings)
            for name, weights in players.items()
        }
        self.can_capture = True  # as a CUDA graph
        self.step = torch.zeros((), device=device)
        self.information = torch.full((), math.nan, device=device)

    def pair(self) -> tuple[nn.Module, nn.Module]:
        """New networks, a generator and a discriminator."""
        sizes, rng = self.sizes, self.rng
        shape = sizes["width_g"], sizes["latent_dim"], self.channels
        generator = stack_generator(*shape, generator=rng)
        energy = self.rule.is_energy
        return generator, stack_discriminator(
            sizes["width_d"], energy, self.channels, generator=rng
        )

    def iterate(self) -> None:
        """One step of the generator after its discriminator's, all on the device."""
        gan, rule, size = self.gan, self.rule, (1, self.sizes["batch_size"])
        d_loss, g_loss = getattr(losses, rule.d_loss), getattr(losses, rule.g_loss)
        self.rate.copy_(self.sizes["learning_rate"] * (1 - self.step / self.n_steps))
        for _ in range(rule.d_steps):
            x = self.data(size, self.rng)
            with self._autocast():
                with torch.no_grad():
                    y = gan.generator(gan.prior(size, self.rng)).float()
                # No layer of d lets one stack see another.
                d = gan.discriminator(torch.cat([x, y], dim=1)).float()
                loss = d_loss(*d.chunk(2, dim=1))
                for where in rule.penalised:
                    loss = loss + rule.weight * self._penalty(where, x, y)
            self._descend("discriminator", loss)
        with self._autocast():
            z = gan.prior((1, self.sizes.get("batch_size_g", size[1])), self.rng)
            y = gan.generator(z)
            fake = gan.discriminator(y).float()
            with torch.no_grad():
                real = gan.discriminator(x).float() if "relativistic" in rule.g_loss else fake
            loss = g_loss(real, fake)
            if rule.entropy:
                joint, product = self.statistics(y, z)
                information = losses.jsd_information(joint.float(), product.float())
                self.information.copy_(information.detach().squeeze())
                loss = loss - rule.entropy * information
        self._descend("generator", loss)
        self._average()

    def _autocast(self) -> torch.autocast:
        # Without its cache: within one context that would keep weights which have changed.
        return runs.autocast(self.rng.device, cache_enabled=False)

    def _penalty(self, where: str, x: Tensor, y: Tensor) -> Tensor:
        if where == "between":
            return losses.gradient_penalty(self.gan.discriminator, x, y, self.rng)
        return losses.r1_penalty(self.gan.discriminator, x if where == "real" else y)

    def _descend(self, player: str, loss: Tensor) -> None:
        """A step of a player's weights only: a generator's gradient passes through d."""
        weights = self.optimizers[player].param_groups[0]["params"]
        for weight in weights:
            weight.grad = None
        # Not autograd.grad: behind a penalty it may return other strides than the weight has, and
        # the fused Adam of a CPU takes memory as it lies, each weight with another's gradient.
        loss.sum().backward(inputs=weights)
        for weight in weights:
            weight.grad = self.shared(weight.grad)
        self.optimizers[player].step()

    def shared(self, grad: Tensor) -> Tensor:
        """The gradient of all processes, of which there is one."""
        return grad

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged generator; the sum of its weights is 1, so that it forgets its start.

        After t steps w_s has the weight (1 - decay) decay^(t - s) / (1 - decay^t).
        """
        self.step += 1
        decay = self.sizes["decay"]
        share = (1 - decay) / -torch.expm1(self.step * math.log(decay))
        new = self.gan.generator.state_dict().values()
        for old, value in zip(self.averaged.state_dict().values(), new, strict=True):
            if value.is_floating_point():
                old.lerp_(value, share)

    def state(self) -> dict[str, Any]:
        """All that another game needs to go on as this one."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "rng": self.rng.get_state(),
            "step": self.step,
            "information": self.information,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for optimizer in self.optimizers.values():
            # What was loaded is another tensor, on the CPU.
            optimizer.param_groups[0]["lr"] = self.rate
        self.rng.set_state(state["rng"])
        self.step.copy_(state["step"])
        self.information.copy_(state["information"])

    def _parts(self) -> dict[str, Any]:
        adams = {f"optimizer of the {name}": adam for name, adam in self.optimizers.items()}
        return {**self.networks, **adams}


def repeat(game: Game, n: int) -> None:
    """n iterations of a game; on a GPU one is captured as a CUDA graph and played again and again.

    Networks of this size are bound there by the launches of their kernels.
    """
    device = game.rng.device
    if device.type != "cuda" or n <= WARM_UP or not game.can_capture:
        for _ in range(n):
            game.iterate()
        return
    with torch.cuda.device(device):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                game.iterate()
        torch.cuda.current_stream().wait_stream(stream)
        graph.register_generator_state(game.rng)
        with torch.cuda.graph(graph):
            game.iterate()  # recorded, not done
        for _ in range(n - WARM_UP):
            graph.replay()


# ---- the scores


def classes(classifier: nn.Module, stacks: Tensor) -> Tensor:
    """The classes (1, n, 3) of the channels of stacks (1, n, 3, 28, 28).

    Raises ValueError for a classifier in training mode, whose dropout would count modes of its own.
    """
    if any(module.training for module in classifier.modules()):
        raise ValueError("the classifier is in training mode; call its eval() before it counts")
    channels = stacks.reshape(-1, 1, 28, 28).split(3000)
    found = torch.cat([classifier(part).argmax(dim=1) for part in channels])
    return found.reshape(1, -1, stacks.shape[2])


@torch.no_grad()
def stacks_of(generator: nn.Module, latent_dim: int, n: int, rng: torch.Generator) -> list[Tensor]:
    """n samples of a generator in evaluation mode, in parts (1, 1000, 3, 28, 28).

    They are computed in the precision of the training, and returned in single precision.
    """
    with evaluating(generator), runs.autocast(rng.device):
        parts = randn(1, n, latent_dim, generator=rng).split(1000, dim=1)
        return [generator(z).float() for z in parts]


@torch.no_grad()
def read(stacks: list[Tensor], classifier: nn.Module) -> Tensor:
    """The classes (1, n, 3) of all stacks, or none of them, (1, 0, 3), if one is not finite."""
    if not all(bool(part.isfinite().all()) for part in stacks):
        return torch.empty(1, 0, 3, dtype=torch.long)
    return torch.cat([classes(classifier, part) for part in stacks], dim=1)


def modes_of(found: Tensor) -> tuple[float, float]:
    """Modes and KL of classes (1, n, 3), nan without any."""
    if not found.numel():
        return math.nan, math.nan
    return tuple(float(score) for score in metrics.stacked_modes(found))


def counts_of(found: Tensor) -> Tensor:
    """How often each mode is among classes (1, n, 3), (10, 10, 10)."""
    place = (found[0] * torch.tensor([100, 10, 1], device=found.device)).sum(dim=1)
    return place.bincount(minlength=1000).reshape(10, 10, 10).int().cpu()


@torch.no_grad()
def fid_of(stacks: list[Tensor], judge: checkpoints.Checkpoint, split: str = "test") -> float:
    """FID of all channels as digits, against those of a split, in features of `mnist_features`."""
    if not all(bool(part.isfinite().all()) for part in stacks):
        return math.nan
    network = judge.networks["classifier"].features
    seen = torch.cat([network(part.reshape(-1, 1, 28, 28)) for part in stacks])
    truth = judge.tensors[f"{split}_mean"], judge.tensors[f"{split}_covariance"]
    return metrics.frechet_distance(*metrics.moments(seen), *truth)


def last_scores(
    generators: list[nn.Module],
    latent_dim: int,
    judges: dict[str, checkpoints.Checkpoint],
    scoring: dict[str, Any],
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Modes and KL of generators, (generators, samplings), and what else is seen of one sampling.

    That is how often each mode was found in the first, (generators, 10, 10, 10); and for the last
    generator its modes and KL, (2,), as SECOND counts them, and its FID, ().
    """
    n, scored, counts = scoring["n_last"], [], []
    for generator in generators:
        first = stacks_of(generator, latent_dim, n, rng)
        others = (stacks_of(generator, latent_dim, n, rng) for _ in range(scoring["samplings"] - 1))
        classifier = judges[COUNTING].networks["classifier"]
        found = [read(stacks, classifier) for stacks in itertools.chain([first], others)]
        scored.append([modes_of(each) for each in found])
        counts.append(counts_of(found[0]))
    modes, kl = torch.tensor(scored, dtype=torch.float64).unbind(dim=2)
    second = modes_of(read(first, judges[SECOND].networks["classifier"]))
    fid = fid_of(first, judges[SECOND])
    of_second = {"second": torch.tensor(second), "fid": torch.tensor(fid)}
    of_first = {"modes": modes, "kl": kl, "counts": torch.stack(counts)}
    return {**of_first, **{key: value.double() for key, value in of_second.items()}}


# ---- the trainings


def settings_of(size: str) -> dict[str, Any]:
    """Everything that the scores depend on, but for the seed, the data and the classifiers."""
    return {
        "size": size,
        "sizes": SIZES[size],
        "losses": {name: rule._asdict() for name, rule in LOSSES.items()},
        "trainings": [training.name for training in trainings()],
        "scoring": SCORING,
    }


def own_settings(training: Training, size: str) -> dict[str, Any]:
    """What of the settings one training depends on."""
    rule, sizes, is_long = LOSSES[training.loss], dict(SIZES[size]), training.is_long
    long = sizes.pop("long")
    sizes |= long if is_long else {}
    return {
        "training": training._asdict(),
        "rule": rule._asdict(),
        "sizes": {
            **sizes,
            "steps": sizes["steps"][str(rule.d_steps)],
            "width_t": sizes["width_d"],
            "width_d": sizes["width_d"] // training.narrow,
        },
        "scoring": {**SCORING, "samplings": SCORING["samplings"] if is_long else 1},
    }


def points_of(given: dict[str, Any]) -> list[int]:
    """After which steps modes are counted."""
    n, steps = given["scoring"]["n_points"], given["sizes"]["steps"]
    return [steps * (i + 1) // n for i in range(n)]


def seed_of(seed: int, training: Training) -> int:
    """A seed of its own for each training."""
    return int(runs.key_of({"seed": seed, "training": training.name}), 16)


class Task(NamedTuple):
    """All that a process needs to make one training or to find it; its key is that of `given`."""

    training: Training
    given: dict[str, Any]
    run: runs.Run

    def stored(self) -> dict[str, Any]:
        """The part as far as it is, or one without steps."""
        found = self.run.found(self.training.name, runs.key_of(self.given))
        return found or {"made": {}, "seconds": []}

    def is_finished(self) -> bool:
        return "scores" in self.stored()["made"]


def train(task: Task) -> Training:
    """Make a training, or what is missing of it; its part stores all of it."""
    own, training = task.given, task.training
    rule, sizes, scoring = Rule(**own["rule"]), own["sizes"], own["scoring"]
    device = default_device()
    judges = {name: checkpoints.load(name, device) for name in JUDGES}
    counting = judges[COUNTING].networks["classifier"]
    data = stacked_digits(mnist("train").images.to(device))
    names, points = [*stages_of(training, own)], points_of(own)
    # Drawn apart from the training's: the course does not depend on how often it is looked at.
    seed = seed_of(own["seed"], training)

    def game() -> Game:
        return Game(rule, sizes, data, points[-1], seed)

    def advance(state: dict[str, Any] | None) -> dict[str, Any]:
        start, course = time.process_time(), state["course"] if state else []
        if len(course) == len(points):
            return finish(state)
        play, done = game(), int(state["game"]["step"]) if state else 0
        if state:
            play.load(state["game"])
        until = points[len(course)]
        repeat(play, until - done)
        rng, row = seeded(seed + 1 + len(course)), [float(until)]
        for generator in (play.gan.generator, play.averaged):
            stacks = stacks_of(generator, sizes["latent_dim"], scoring["n_course"], rng)
            row += modes_of(read(stacks, counting))
        row.append(float(play.information))
        told = f"{row[1]:.0f} modes, KL {row[2]:.3f}; averaged {row[3]:.0f}, {row[4]:.3f}"
        print(f"{names[len(course)]}: {told}", flush=True)
        # Unlike the time on the clock it does not depend on what else the machine does.
        seconds = (state["seconds_cpu"] if state else 0.0) + time.process_time() - start
        return {"game": play.state(), "course": [*course, row], "seconds_cpu": seconds}

    def finish(state: dict[str, Any]) -> dict[str, Any]:
        play, fresh = game(), game()
        play.load(state["game"])
        generators = [play.gan.generator, play.averaged]
        for network in generators:
            network.half().float()  # as it is stored
        rng = seeded(seed + 1 + len(names))
        scores = last_scores(generators, sizes["latent_dim"], judges, scoring, rng)
        with count_calls(*fresh.gan[:2]) as calls:
            fresh.iterate()
        pair = {"generator": play.averaged, "discriminator": play.gan.discriminator}
        kept = {
            f"{name}.{key}": value.half() if value.is_floating_point() else value
            for name, network in pair.items()
            for key, value in network.state_dict().items()
            if training.keeps
        }
        course = torch.tensor(state["course"], dtype=torch.float64)
        return {
            "scores": {"course": course, **scores},
            "calls": list(calls()),
            "precision": str(runs.precision(device)),
            "seconds_cpu": state["seconds_cpu"],
            "weights": {key: value.cpu() for key, value in kept.items()},
        }

    task.run.in_steps(training.name, names, advance, own)
    return training


def cost(training: Training, given: dict[str, Any]) -> float:
    """How long a training takes, beside others: steps, in those of a discriminator."""
    rule = Rule(**given["rule"])
    penalties = sum(2 if where == "fake" else 1 for where in rule.penalised)
    each = rule.d_steps * (2 + penalties) / training.narrow + 3 + bool(rule.entropy)
    return given["sizes"]["steps"] * each


def stages_of(training: Training, given: dict[str, Any]) -> dict[str, float]:
    """The steps of a part, with how long each takes: up to each count of modes, and the end."""
    whole, points = cost(training, given), points_of(given)
    shares = [(end - start) / points[-1] for start, end in itertools.pairwise([0, *points])]
    names = [f"{training.name} at {point}" for point in points]
    costs = {name: whole * share for name, share in zip(names, shares, strict=True)}
    return costs | {training.name: 0.03 * whole}  # the scores of the last draws


# ---- the checkpoints


def networks_of(task: Task, weights: dict[str, Tensor]) -> dict[str, checkpoints.Built]:
    """The networks of a finished training, in half precision."""
    rule, sizes = Rule(**task.given["rule"]), task.given["sizes"]
    made = {
        "generator": (
            stack_generator,
            {"width": sizes["width_g"], "latent_dim": sizes["latent_dim"]},
        ),
        "discriminator": (
            stack_discriminator,
            {"width": sizes["width_d"], "is_energy": rule.is_energy},
        ),
    }
    found = {}
    for name, (builder, settings) in made.items():
        network = builder(**settings, generator=seeded(0, "cpu")).half().eval()
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        network.load_state_dict(own)
        found[name] = (network, builder, settings)
    return found


def of_data(judges: dict[str, checkpoints.Checkpoint], seed: int) -> dict[str, Any]:
    """What stacks of test digits score with each classifier, and the floors of the KL."""
    rng, found = seeded(seed, "cpu"), {}
    draw, n = stacked_digits(mnist("test").images), SCORING["n_last"]
    stacks = [draw((1, len(part)), rng) for part in torch.arange(n).split(1000)]
    for name in JUDGES:
        modes, kl = modes_of(read(stacks, judges[name].networks["classifier"]))
        found[name] = {"modes": modes, "kl": kl}
    uniform = torch.full((1000,), 1e-3)
    share = judges["mnist_features"].tensors["train_frequencies"].double()
    of_digits = torch.einsum("i,j,k->ijk", share, share, share).flatten()
    floors = {
        str(size): {
            "uniform": metrics.kl_floor(size, uniform),
            "digits_of_mnist": metrics.kl_floor(size, of_digits / of_digits.sum()),
        }
        for size in (SCORING["n_course"], n)
    }
    return {"test_digits": found, "kl_floor": floors}


def numbers(scores: Tensor) -> Any:
    """Scores in lists, as a card takes them: None for those that are not finite."""
    return json.loads(json.dumps(scores.tolist()).replace("NaN", "null"))


class Known(NamedTuple):
    """Finished trainings by their names: key, tensors, and what the card says of each."""

    keys: dict[str, str]
    scores: dict[str, dict[str, Tensor]]
    facts: dict[str, dict[str, Any]]


def known_trainings(name: str, folder: Path | None, wanted: dict[str, str]) -> Known:
    """What the checkpoint `name` in `folder` holds of trainings `wanted`, given with their keys.

    A training whose networks are stored counts only with them.
    """
    known = Known({}, {}, {})
    try:
        stored = checkpoints.load(name, folder=folder)
    except (ValueError, RuntimeError):  # there is none, or it is damaged
        return known
    for training, key in stored.card.get("keys", {}).items():
        if wanted.get(training) != key:
            continue
        loss, _, rest = training.partition("-")
        if Training(loss, is_long=rest == "long").keeps:
            try:
                if checkpoints.load(f"{name}_{loss}", folder=folder).card["key"] != key:
                    continue
            except (ValueError, RuntimeError, KeyError):
                continue
        start = f"{training}/"
        own = {k.removeprefix(start): v for k, v in stored.tensors.items() if k.startswith(start)}
        known.keys[training], known.scores[training] = key, own
        known.facts[training] = stored.card["metrics"]["trainings"][training]
    return known


def add(known: Known, task: Task, run: runs.Run, name: str, out: Path | None) -> None:
    """Add a training that was finished now; its networks, if they are kept, are written."""
    part, training, key = task.stored(), task.training, runs.key_of(task.given)
    scores = part["made"]["scores"]
    known.keys[training.name], known.scores[training.name] = key, scores
    found = known.facts[training.name] = {
        "modes": numbers(scores["modes"].mean(dim=1)),
        "kl": numbers(scores["kl"].mean(dim=1)),
        "second": numbers(scores["second"]),
        "fid": numbers(scores["fid"]),
        "steps": points_of(task.given)[-1],
        "calls": part["made"]["calls"],
        "precision": part["made"]["precision"],
        "seconds": round(sum(part["seconds"]), 1),
        "seconds_cpu": round(part["made"]["seconds_cpu"], 1),
    }
    if training.keeps:
        networks = networks_of(task, part["made"]["weights"])
        card = {**run.card({**found, "training": training.name}), "threads": 1, "key": key}
        checkpoints.save(f"{name}_{training.loss}", networks, {}, card, out)


def write(
    run: runs.Run,
    known: Known,
    name: str,
    out: Path | None,
    judges: dict[str, checkpoints.Checkpoint],
) -> None:
    """Write the scores of all trainings that are finished."""
    of_all = {
        "trainings": known.facts,
        "course": list(COURSE),
        "weights": ["last", "averaged"],
        "judges": list(JUDGES),
        **of_data(judges, run.given["seed"]),
        **{
            key: round(sum(each[key] for each in known.facts.values()), 1)
            for key in ("seconds", "seconds_cpu")
        },
    }
    tensors = {
        f"{training}/{key}": value
        for training, scores in known.scores.items()
        for key, value in scores.items()
    }
    card = {**run.card(of_all), "threads": 1, "keys": known.keys}
    checkpoints.save(name, {}, tensors, card, out)


def _remove_part(task: Task) -> None:
    task.run.keys = {task.training.name: runs.key_of(task.given)}
    task.run.remove_parts()


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = runs.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="the full widths, for a GPU")
    text = "only these losses or trainings, as meg or meg-0; the checkpoint has what is finished"
    parser.add_argument("--only", nargs="+", metavar="NAME", help=text)
    text = "processes, each with one thread (default: 1 on a GPU, else as many as there are cores)"
    parser.add_argument("--jobs", type=runs.at_least(1), help=text)
    args = runs.parse(parser, argv)
    size, known = "full" if args.full else "half", {*LOSSES, *(t.name for t in trainings())}
    if unknown := sorted({*(args.only or ())} - known):
        line = f"give some of {', '.join(sorted(known))}"
        parser.error(f"no loss or training {', '.join(unknown)}; {line}")
    try:
        device = default_device()
        judges = {name: checkpoints.load(name) for name in JUDGES}
        source = {**runs.mnist_source()}
        source |= {f"{name}_sha256": judge.card["sha256"] for name, judge in judges.items()}
    except (RuntimeError, ValueError) as error:  # no such device, no MNIST, no classifier
        parser.error(str(error))
    jobs = args.jobs or (1 if device.type == "cuda" else joblib.cpu_count())
    name = "stacked_mnist" + "_full" * args.full
    run = runs.Run("stacked_mnist", settings_of(size), args, runs.Progress(), **source)
    tasks, keys = [], {}
    for training in trainings():
        own = own_settings(training, size)
        task = Task(training, {**own, "seed": args.seed, "device": device.type, **source}, run)
        if jobs > 1:  # each process tells of its own training only
            apart = runs.Run("stacked_mnist", {}, args, runs.Progress())
            task = task._replace(run=apart)
        keys[training.name] = runs.key_of(task.given)
        tasks.append(task)
    there = known_trainings(name, args.out, keys).keys
    for task in tasks:
        if task.training.name in there:
            print(f"{task.training.name}: kept")
            _remove_part(task)
    tasks = [task for task in tasks if task.training.name not in there]
    wanted = {*(args.only or LOSSES)}
    chosen = [task for task in tasks if wanted & {task.training.loss, task.training.name}]
    for task in chosen:
        stages, there = stages_of(*task[:2]), len(task.stored()["seconds"])
        left = {stage: 0 for stage in [*stages][:there]}
        task.run.progress.parts |= stages | left
    for training in runs.in_processes(train, chosen, jobs):
        print(f"{training.name}: stored", flush=True)
    finished = [task for task in tasks if task.is_finished()]
    if finished:
        # Read again: another start may have added to it in the meantime.
        known = known_trainings(name, args.out, keys)
        for task in finished:
            add(known, task, run, name, args.out)
        write(run, known, name, args.out, judges)
    for task in finished:
        _remove_part(task)
    if left := [task.training.name for task in tasks if task not in finished]:
        print(f"missing: {', '.join(left)}; a start without --only makes them")


if __name__ == "__main__":
    main()
