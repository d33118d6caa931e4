"""Train GANs and EBGANs over a grid of architectures, and score what each setting generates.

    python -m gan_ebm_utils.recipes.ebgan_grid --reduced

writes the checkpoint `ebgan_grid`: its tensors have a row for each setting and a column for each
replicate, and the card names the rows. The axes are the layers of generator and discriminator (an
EBGAN's count encoder and decoder, which is one layer), their sizes, and dropout in the
discriminator; a GAN of the full grid also has Adam or SGD for each player and three learning rates.

Without `--reduced` it is the grid of Zhao et al. 2016 (arXiv:1609.03126, table 1) on MNIST: 6,144
settings of the GAN and 512 of EBGAN, which take months of one CPU core. With `--reduced` it is a
smaller one on the 8 x 8 digits in which GAN, EBGAN and EBGAN-PT, with the pulling-away term, have
the same 32 settings each, at the same optimiser and rate: about 10 minutes on two CPU cores.

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
import asyncio
import difflib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
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
            "GAN": {
                "optim_g": ["Adam", "SGD"],
                "optim_d": ["Adam", "SGD"],
                "rate": [1e-2, 1e-3, 1e-4],
            },
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
        # A step of networks this wide is arithmetic, which no batch saves.
        "together": {"most": 1, "widest": 0},
    },
    "reduced": {
        "data": "digits",
        "axes": {
            "n_layer_g": [2, 4],
            "size_g": [32, 128],
            "n_layer_d": [2, 4],
            "size_d": [32, 128],
            "dropout": [False, True],
        },
        "families": {"GAN": ADAM, "EBGAN": ADAM, "EBGAN-PT": ADAM},
        "training": {
            "replicates": 5,
            "n_steps": 2000,
            "batch_size": 64,
            "latent_dim": 16,
            # The same for each pixel: 0.43 of the variance of a pixel, on MNIST 0.47. It is not
            # tuned. In a trial of one architecture 0.03 scored lower, and collapsed with dropout;
            # 0.5 and 2 scored as high without dropout, and higher with it.
            "margin": 10**2 / 784,
        },
        # Two to four settings in one batch take 0.6 to 0.75 of the time of one after the other at
        # 32 units, and longer than that at 128.
        "together": {"most": 4, "widest": 32},
    },
}
# Common to both grids.
TRAINING = {"betas": [0.5, 0.99], "dropout": 0.5, "pulling_away": 0.1}
SCORING = {"n_samples": 2000, "n_distances": 500, "least_share": 0.01}
SECONDS = 5  # until a scheduler that does not answer is given up
ARRIVED = "last task"  # the part that holds its settings until each is stored
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
        # Not autograd.grad, whose results may have other strides (see `stacked_mnist`).
        optimizer.zero_grad()
        loss.sum().backward(inputs=weights)
        optimizer.step()
        return loss.detach()

    return descend


class Played(NamedTuple):
    """Trained generators, their latents' generators of numbers, and when each diverged, or -1."""

    generator: nn.Module
    rngs: list[torch.Generator]
    diverged: Tensor


def play(settings: list[Setting], training: dict[str, Any], images: Tensor, seed: int) -> Played:
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
        d_loss, g_loss = (
            partial(losses.ebgan_d_loss, margin=training["margin"]),
            losses.ebgan_g_loss,
        )
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
    """Images (n, size), a classifier of samples (R, n, size) to logits (R, n, 10), and digests."""

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


@torch.no_grad()
def scores_of(
    played: Played, training: dict[str, Any], scoring: dict[str, Any], data: Data
) -> list[dict[str, Tensor]]:
    """Of each setting the SCORES of fresh samples, nan where it `diverged`, and when it did."""
    size = training["replicates"], scoring["n_samples"], training["latent_dim"]
    x = played.generator(torch.cat([randn(*size, generator=rng) for rng in played.rngs]))
    lost = ~x.isfinite().flatten(1).all(dim=1)
    diverged = torch.where(lost & (played.diverged < 0), training["n_steps"], played.diverged)
    x[diverged >= 0] = 0  # which could not be scored
    scores, diverged = score(x, data, scoring), diverged.cpu()
    found = {key: value.masked_fill(diverged >= 0, math.nan) for key, value in scores.items()}
    parts = {key: v.split(size[0]) for key, v in {**found, "diverged": diverged}.items()}
    return [{key: part[i].clone() for key, part in parts.items()} for i in range(len(played.rngs))]


def made(
    settings: list[Setting],
    training: dict[str, Any],
    scoring: dict[str, Any],
    name: str,
    source: dict[str, str],
    seed: int,
) -> tuple[list[dict[str, Tensor]], float]:
    """The `scores_of` each setting, and the seconds that each took: the work of a task.

    It holds all that a worker needs, who may be on another machine, with one thread.

    Raises RuntimeError where the worker's data or classifier are others than the client's.
    """
    start, data = time.perf_counter(), read(name)
    if data.source != source:
        line = f"a worker has {data.source}, the client {source}"
        raise RuntimeError(f"{line}; install the same package and data on both")
    with runs.one_thread():
        played = play(settings, training, data.images, seed)
        scores = scores_of(played, training, scoring, data)
    return scores, (time.perf_counter() - start) / len(settings)


# A task: its number, and the arguments of `made`. What comes back: the number, and its result.
Task = tuple[int, tuple]
Done = tuple[int, tuple[list[dict[str, Tensor]], float]]


def work(task: Task) -> Done:
    """Do a task, wherever it is."""
    number, arguments = task
    return number, made(*arguments)


def connected(address: str) -> Any:
    """A client of the dask scheduler at `address`.

    Raises ConnectionError, with the address, where none answers within SECONDS.
    """
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port, resolve_address
        from distributed.core import rpc
    except ImportError as error:
        line = 'pip install "gan-ebm-utils[cluster]", or leave out --scheduler'
        raise ConnectionError(f"--scheduler {address} needs dask.distributed: {line}") from error
    answer: list[Any] = []

    async def identity() -> str:
        async with rpc(address, timeout=SECONDS) as server:
            return (await server.identity())["type"]

    def ask() -> None:
        try:
            get_address_host_port(address), resolve_address(address)
            answer.append(asyncio.run(identity()))
        except Exception as error:  # what is no scheduler may answer anything
            answer.append(error)

    # Asked first, and in a thread that ends with the program: a client waits for ever for what
    # listens and never answers, and once more at the end of the program.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if answer == ["Scheduler"]:
        return Client(address)
    found = f"{answer[0]}" if answer else f"no answer in {SECONDS} s"
    line = "start one with `dask scheduler`, and give its address as tcp://HOST:8786"
    raise ConnectionError(f"no dask scheduler at {address!r}: {found}; {line}")


def on_cluster(tasks: list[Task], client: Any) -> Iterator[Done]:
    """Do tasks on a cluster; results come as they are there, and are then kept there no longer.

    The scheduler gives the task of a worker that dies to another one.
    """
    from distributed import KilledWorker, as_completed

    if not client.scheduler_info()["workers"]:
        print("the scheduler has no worker yet: waiting for one", flush=True)
    futures = as_completed([client.submit(work, task, pure=False) for task in tasks])
    killed = []
    for future in futures:
        try:
            result = future.result()
        except KilledWorker as error:  # as where a setting needs more memory than a worker has
            killed.append(error)
            continue
        except CancelledError as error:
            line = "the scheduler went away; start again, what is stored is kept"
            raise SystemExit(f"{line}: {error}") from error
        future.release()
        yield result
    if killed:
        raise SystemExit(f"{len(killed)} tasks killed their workers again and again: {killed[0]}")


def settings_of(name: str) -> dict[str, Any]:
    """Everything that the table of a grid depends on, but for the seed and the data."""
    grid = GRIDS[name]
    training = {**TRAINING, **grid["training"]}
    return {
        "grid": name,
        "axes": grid["axes"],
        "families": grid["families"],
        "training": training,
        "scoring": SCORING,
        "together": grid["together"],
    }


def cost(setting: Setting) -> float:
    """How long a setting takes, beside others: a constant, and a part that is arithmetic."""
    g = setting.size_g**2 * (setting.n_layer_g - 2) + setting.size_g * 100
    d = setting.size_d**2 * (setting.n_layer_d - 2) + setting.size_d * 100
    return 50_000 + 3 * g + 4 * d


def together(settings: list[Setting], most: int, widest: int) -> list[list[Setting]]:
    """Settings that train in one batch, the longest first, so that all processes end together.

    At most `most`, and only networks of at most `widest` units a layer.
    """
    lists = []
    for kind, rows in itertools.groupby(sorted(settings, key=lambda s: s.kind), lambda s: s.kind):
        _, _, size_g, _, size_d, *_ = kind
        same, n = list(rows), most if max(size_g, size_d) <= widest else 1
        lists += [same[i : i + n] for i in range(0, len(same), n)]
    return sorted(lists, key=lambda batch: -sum(map(cost, batch)))


class Grid(runs.Run):
    """A run of a grid: which settings there are, and which are stored."""

    def __init__(self, name: str, args: argparse.Namespace, source: dict[str, str]) -> None:
        settings = settings_of(name)
        super().__init__("ebgan_grid", settings, args, runs.Progress(), **source)
        self.name, self.source, self.seed = name, source, args.seed
        self.rows = settings_in(GRIDS[name])
        shared = {key: self.given["settings"][key] for key in ("training", "scoring")}
        for setting in self.rows:
            own = {"setting": setting._asdict(), **shared, "seed": args.seed, **source}
            self.keys[setting.name] = runs.key_of(own)

    def stored(self, setting: Setting) -> dict[str, Any] | None:
        """What is stored of a setting: its scores and seconds."""
        return self.found(setting.name, self.keys[setting.name])

    def fill(self, settings: list[Setting], engine: Callable[[list[Task]], Iterator[Done]]) -> None:
        """Make what is missing of `settings`, and store each setting when its scores are there."""
        self.settle()
        missing = [setting for setting in settings if self.stored(setting) is None]
        there = {setting.name for setting in settings} - {setting.name for setting in missing}
        self.progress.parts = {s.name: 0 if s.name in there else cost(s) for s in settings}
        for name in there:
            self.progress.finished(name, None)
        tasks = together(missing, **GRIDS[self.name]["together"])
        given = self.given["settings"]
        shared = (
            given["training"],
            given["scoring"],
            GRIDS[self.name]["data"],
            self.source,
            self.seed,
        )
        last = time.perf_counter()
        for number, (results, seconds) in engine([(i, (t, *shared)) for i, t in enumerate(tasks)]):
            since, last = time.perf_counter() - last, time.perf_counter()
            names = (setting.name for setting in tasks[number])
            arrived = dict(zip(names, results, strict=True))
            self.keep(ARRIVED, arrived, seconds, runs.key_of(self.given))
            self.settle()
            for setting, result in zip(tasks[number], results, strict=True):
                # Several processes at once: the time left is told by when parts are finished.
                self.progress.finished(setting.name, since / len(results))
                if text := divergence(result["diverged"]):
                    print(f"{setting.name}: {text}", flush=True)

    def settle(self) -> None:
        """Store each setting of the task that arrived last by itself, also after a kill in between.

        Alone it would be trained to other digits than in a batch.
        """
        arrived = self.found(ARRIVED, runs.key_of(self.given))
        if arrived is not None:
            for name, result in arrived["made"].items():
                self.keep(name, result, arrived["seconds"][0], self.keys[name])
            self.keys[ARRIVED] = runs.key_of(self.given)
            self.file_of(ARRIVED).unlink()

    def table(self) -> tuple[dict[str, Tensor], float]:
        """The stored scores, a row for each setting, and the seconds that all took together."""
        parts = [self.stored(setting) for setting in self.rows]
        tensors = {
            name: torch.stack([part["made"][name] for part in parts])
            for name in (*SCORES, "diverged")
        }
        return tensors, sum(sum(part["seconds"]) for part in parts)


def divergence(steps: Tensor) -> str:
    """What is to be said of replicates that diverged at these steps, -1 for one that did not."""
    bad = steps[steps >= 0].tolist()
    text = f"diverged at step {', '.join(map(str, bad))} ({len(bad)} of {len(steps)} replicates)"
    return text if bad else ""


def metrics_of(grid: Grid, tensors: dict[str, Tensor], data: Data) -> dict[str, Any]:
    """What stands on the card beside the table: its rows, and a summary of each family."""
    families = {}
    for family in GRIDS[grid.name]["families"]:
        own = torch.tensor([setting.family == family for setting in grid.rows])
        finite = tensors["diverged"][own] < 0
        # Of each setting the mean over the replicates that did not diverge.
        means = {name: tensors[name][own].nanmean(dim=1).nanquantile(0.5) for name in SCORES}
        families[family] = {
            "settings": int(own.sum()),
            "diverged_replicates": int((~finite).sum()),
            "median": {k: float(v) if v.isfinite() else None for k, v in means.items()},
        }
    rows = torch.randint(
        len(data.images), (1, SCORING["n_samples"]), generator=seeded(grid.seed, "cpu")
    )
    real = score(data.images[rows.to(data.images.device)], data, SCORING)
    return {
        "families": families,
        "of_images": {name: float(value) for name, value in real.items()},
        "rows": [setting._asdict() for setting in grid.rows],
    }


def is_stored(grid: Grid, folder: Path | None) -> bool:
    """Whether `folder` holds the whole table of this grid.

    Raises ValueError if it holds that of another one.
    """
    try:
        card = checkpoints.load("ebgan_grid", folder=folder).card
    except (ValueError, RuntimeError):  # there is none, or it is damaged
        return False
    own, other = ({**run, **run["settings"]} for run in (grid.given, card))
    differ = [key for key in own if key != "settings" and other.get(key) != own[key]]
    if differ:
        raise ValueError(
            f"{file_of(folder)} is the table of another grid: {other.get('grid')}, seed "
            f"{card['seed']}; {', '.join(differ)} differ. Give another --out, or remove the file"
        )
    return True


def file_of(folder: Path | None) -> Path:
    return (folder or checkpoints.DATA) / "ebgan_grid.json"


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = runs.parser(__doc__)
    parser.add_argument("--reduced", action="store_true", help="the smaller grid, on the digits")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of dask.distributed, tcp://HOST:8786"
    )
    jobs = joblib.cpu_count()
    text = f"processes on this machine, each with one thread (default: {jobs})"
    parser.add_argument("--jobs", type=runs.at_least(1), default=jobs, help=text)
    text = "only these settings, which are stored for a start without it, as GAN_G2x32_D2x32_..."
    parser.add_argument("--only", nargs="+", metavar="SETTING", help=text)
    args = runs.parse(parser, argv)
    name = "reduced" if args.reduced else "full"
    names = [setting.name for setting in settings_in(GRIDS[name])]
    for given in args.only or []:
        if given not in names:
            near = difflib.get_close_matches(given, names, n=3, cutoff=0.0)
            line = f"it has {len(names)}, as {', '.join(near)}"
            parser.error(f"no setting {given!r} in the {name} grid; {line}")
    try:
        data = read(GRIDS[name]["data"])
        grid = Grid(name, args, data.source)
        if is_stored(grid, args.out):
            print(f"ebgan_grid: kept; to make it anew, remove {file_of(args.out)}")
            grid.remove_parts()
            return
        client = connected(args.scheduler) if args.scheduler else None
    except (RuntimeError, ValueError, ConnectionError) as error:  # no MNIST, another grid, no dask
        parser.error(str(error))
    settings = [setting for setting in grid.rows if not args.only or setting.name in args.only]
    for setting in settings:
        if args.only and grid.stored(setting) is not None:
            print(f"{setting.name}: kept; to make it anew, remove {grid.file_of(setting.name)}")
    if client is None:
        grid.fill(settings, lambda tasks: runs.in_processes(work, tasks, args.jobs))
    else:
        with client:
            grid.fill(settings, lambda tasks: on_cluster(tasks, client))
    if left := sum(grid.stored(setting) is None for setting in grid.rows):
        print(f"{left} of {len(grid.rows)} settings are missing; a start without --only makes them")
        return
    tensors, seconds = grid.table()
    found = {**metrics_of(grid, tensors, data), "seconds": round(seconds, 1)}
    engine = {"threads": 1, "jobs": args.jobs if client is None else f"cluster at {args.scheduler}"}
    checkpoints.save("ebgan_grid", {}, tensors, {**grid.card(found), **engine}, args.out)
    grid.remove_parts()
    for family, row in found["families"].items():
        lost = f"{row['diverged_replicates']} replicates diverged"
        print(f"{family}: median inception score {row['median']['inception']}, {lost}")


if __name__ == "__main__":
    main()
