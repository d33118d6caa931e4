"""Train an SNGAN and a DCGAN on CIFAR-10, and refit their discriminators.

    python -m gan_ebm_utils.recipes.cifar10_sngan

writes the checkpoints `cifar10_sngan` and `cifar10_dcgan`: `generator`, with averaged weights,
`discriminator`, as the game left it, and `discriminator_refitted`, fitted to the finished
generator. The refitted one sees the features of a classifier that is trained here, on another part
of the training set, and not those of `cifar10_features`. In these the card gives the FID, for
several numbers of draws, and that of real images for the same numbers; and the tensors hold both
discriminators' logits of test images and draws, and how far these are from the nearest training
image, with some draws and these images.

| game | networks | loss | d's steps | Adam's betas |
|---|---|---|---|---|
| `sngan` | residual, d with spectral normalisation | hinge | 5 | 0, 0.9 |
| `dcgan` | plain convolutions, d without normalisation | non-saturating | 1 | 0.5, 0.9 |

The learning rate falls linearly from 2e-4 to 0. With `--full` the networks, batches and steps of
the discriminator are those of Miyato et al. 2018 (arXiv:1802.05957), with 20,000 steps of 50,000.
Without it widths are a quarter, for about three hours of two CPU cores.

The games run through Accelerate: on a CPU, on a GPU, where a whole iteration is captured as one
CUDA graph, or on several with `accelerate launch -m gan_ebm_utils.recipes.cifar10_sngan`, which
share each batch. Pictures of draws are written beside the stored parts as a game goes on, as
`NAME.png`. A run that is cut off goes on after the last part that was finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from matplotlib.image import imsave
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import (
    Gan,
    default_device,
    distances,
    evaluating,
    seeded,
    to_bytes,
    whole_file,
)
from gan_ebm_utils.datasets import Images, cifar10, minibatches
from gan_ebm_utils.networks import (
    ImageClassifier,
    ImageFeatureDiscriminator,
    sngan_discriminator,
    sngan_generator,
    stack_discriminator,
    stack_generator,
)
from gan_ebm_utils.recipes import cifar10_features, mnist_features
from gan_ebm_utils.recipes.stacked_mnist import Game, Rule, repeat
from gan_ebm_utils.recipes.stacked_refined import calibrated
from gan_ebm_utils.training import fit_discriminator

RULES = {
    "sngan": Rule("hinge_d_loss", "wasserstein_g_loss", 5, betas=(0.0, 0.9)),
    "dcgan": Rule("gan_d_loss", "non_saturating_g_loss"),
}
BUILDERS = {
    "sngan": (sngan_generator, sngan_discriminator),
    "dcgan": (stack_generator, stack_discriminator),
}
SIDE = {"dcgan": {"side": 32}}  # what else a builder takes
SIZES: dict[str, dict[str, Any]] = {
    "quarter": {
        "latent_dim": 128,
        "batch_size": 64,
        "batch_size_g": 64,
        "learning_rate": 2e-4,
        "decay": 0.998,
        "sngan": {"width_g": 64, "width_d": 32, "steps": 6000},
        "dcgan": {"width_g": 64, "width_d": 32, "steps": 6000},
    },
    "full": {
        "latent_dim": 128,
        "batch_size": 64,
        "batch_size_g": 128,
        "learning_rate": 2e-4,
        "decay": 0.999,
        "sngan": {"width_g": 256, "width_d": 128, "steps": 20_000},
        "dcgan": {"width_g": 128, "width_d": 64, "steps": 20_000},
    },
}
N_POINTS = 20  # of a game, at which it is stored
CLASSIFIER = {"width": 16, "epochs": 10}
HIDDEN = (256, 256)
REFIT = {"n_steps": 1000, "batch_size": 256, "learning_rate": 1e-3}
# Training images of the classifier; others that the refits see, since the features of images that a
# classifier has learned tell them from all others; others again, which calibrate a refit, and as
# many for its card. As many draws of a generator stand beside the last three.
N_LEARNED, N_REFIT, N_HELD_OUT = 20_000, 25_000, 2_500
N_FID, PART = 10_000, 500
FID_SIZES = (500, 1000, 2000, 5000, 10_000)  # of as many draws an FID is given
N_NEAR, N_PAIRS = 1000, 8  # draws whose nearest image is looked for, and those that are stored
N_SHOWN = 64  # draws of a picture


def accelerator() -> Any:
    """The part of this process among those that share the work."""
    from accelerate import Accelerator  # here, since only this recipe needs it

    return Accelerator(cpu=default_device().type == "cpu")


class PictureGame(Game):
    """A game whose networks are those of a kind, and whose batches are shared by processes."""

    def __init__(self, kind: str, sizes: dict[str, Any], *how: Any) -> None:
        self.kind, self.accelerator = kind, accelerator()
        n = self.accelerator.num_processes
        shares = {key: sizes[key] // n for key in ("batch_size", "batch_size_g")}
        super().__init__(RULES[kind], {**sizes, **shares}, *how)
        self.can_capture = n == 1
        self.apart()

    def pair(self) -> tuple[nn.Module, nn.Module]:
        built = zip(BUILDERS[self.kind], pair_of(self.kind, self.sizes), strict=True)
        generator, judge = (builder(**how, generator=self.rng) for builder, how in built)
        return generator, judge

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.apart()

    def apart(self) -> None:
        """Let other processes than the first have draws of their own."""
        if rank := self.accelerator.process_index:
            own = {"seed": self.rng.initial_seed(), "step": int(self.step), "rank": rank}
            self.rng.manual_seed(int(runs.key_of(own), 16))

    def shared(self, grad: Tensor) -> Tensor:
        return self.accelerator.reduce(grad, "mean") if not self.can_capture else grad


def pair_of(kind: str, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the builders of a kind take, but for the generator of random numbers."""
    other, own = SIDE.get(kind, {}), given[kind]
    generator = {"width": own["width_g"], "latent_dim": given["latent_dim"], **other}
    return generator, {"width": own["width_d"], **other}


def stored_network(builder: Callable, how: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """A network in half precision, as a checkpoint takes it."""
    network = builder(**how, generator=seeded(0, "cpu"))
    network.load_state_dict(weights)
    return network.half().eval().requires_grad_(False), builder, how


def play(kind: str, given: dict[str, Any], seed: int, run: runs.Run) -> tuple[Any, float]:
    """The state of a finished game, and the seconds it took."""
    images = cifar10("train").images.to(default_device())
    sizes, data = {**given, **given[kind]}, minibatches(images)
    points = points_of(kind, given)

    def advance(state: dict[str, Any] | None) -> dict[str, Any]:
        game, done = PictureGame(kind, sizes, data, points[-1], seed), 0
        if state:
            game.load(state)
            done = int(game.step)
        repeat(game, next(point for point in points if point > done) - done)
        if run.writes:
            drawn = draws_of(game.averaged, sizes["latent_dim"], N_SHOWN, seeded(seed))
            show(torch.cat([*drawn], dim=1)[0], run, kind)
        return game.state()

    return run.in_steps(kind, [*stages_of(kind, given)], advance)


def show(images: Tensor, run: runs.Run, kind: str) -> None:
    """Write images (64, 3, h, w) as a picture, eight in a row."""
    grid = to_bytes(images.float()).cpu().unflatten(0, (-1, 8)).permute(0, 3, 1, 4, 2)
    with whole_file(run.folder / f"{kind}.png") as part:
        imsave(part, grid.flatten(2, 3).flatten(0, 1).numpy(), format="png")


def points_of(kind: str, given: dict[str, Any]) -> list[int]:
    """After which steps a game is stored."""
    steps = given[kind]["steps"]
    return sorted({max(1, steps * (i + 1) // N_POINTS) for i in range(N_POINTS)})


def stages_of(kind: str, given: dict[str, Any]) -> dict[str, float]:
    """The parts of a game, with how long each takes."""
    points, rule = points_of(kind, given), RULES[kind]
    weight = 6.0 if kind == "sngan" else 1.0  # residual networks have more to do
    starts = [0, *points[:-1]]
    return {
        f"{kind} at {end}": weight * (rule.d_steps + 1) * (end - start)
        for start, end in zip(starts, points, strict=True)
    }


# ---- the refits and the scores


def classify(seed: int, run: runs.Run) -> dict[str, Tensor]:
    """The weights of the features of a classifier of training images that no refit sees."""
    images, labels = cifar10("train")
    data, generator = Images(images[:N_LEARNED], labels[:N_LEARNED]), seeded(seed, "cpu")
    settings = {**cifar10_features.TRAINING, **CLASSIFIER}
    changed = partial(cifar10_features.mirrored, max_shift=settings["max_shift"])
    classifier = ImageClassifier(CLASSIFIER["width"], generator=generator)
    how = CLASSIFIER["epochs"], settings, changed, generator, run, lambda _: None
    found, _ = mnist_features.train(classifier, data, *how)
    return found.features.half().float().state_dict()  # as it is stored


def draws_of(
    generator: nn.Module, latent_dim: int, n: int, rng: torch.Generator
) -> Iterator[Tensor]:
    """n samples of a generator in evaluation mode, in parts (1, PART, 3, 32, 32)."""
    gan = Gan(generator, None, latent_dim)
    for size in (len(part) for part in torch.arange(n).split(PART)):
        with torch.no_grad(), evaluating(generator):  # closed before it yields
            x = gan.generator(gan.prior((1, size), rng))
        yield x


@torch.no_grad()
def seen(features: nn.Module, parts: Iterable[Tensor]) -> Tensor:
    """Features (n, n_features) of parts of images (n, 3, 32, 32)."""
    return torch.cat([features(part) for part in parts])


def refit(
    generator: nn.Module, latent_dim: int, features: dict[str, Tensor], seed: int
) -> dict[str, Any]:
    """A calibrated discriminator of the finished generator, and its loss on other images."""
    rng = seeded(seed)
    images, (width, hidden) = cifar10("train").images, (CLASSIFIER["width"], HIDDEN)
    judge = ImageFeatureDiscriminator(width, hidden, generator=rng)
    judge.features.load_state_dict(features)
    n = N_REFIT + 2 * N_HELD_OUT
    known = (x.to(rng.device) for x in images[N_LEARNED : N_LEARNED + n].split(PART))
    drawn = draws_of(generator, latent_dim, n, rng)
    real, fake = seen(judge.features, known), seen(judge.features, (x[0] for x in drawn))
    learn = [minibatches(each) for each in (real[:N_REFIT], fake[:N_REFIT])]
    fit_discriminator(judge.head, *learn, losses.gan_d_loss, generator=rng, **REFIT)
    calibrated(judge.head, *(x[N_REFIT:][:N_HELD_OUT] for x in (real, fake)))
    judge.head.half().float()  # as it is stored
    with torch.no_grad():
        logits = [judge.head(x[None, N_REFIT + N_HELD_OUT :]) for x in (real, fake)]
    loss = float(losses.gan_d_loss(*logits))
    return {"weights": judge.state_dict(), "held_out_loss": loss}


def fids(features: Tensor, judge: checkpoints.Checkpoint) -> dict[str, float]:
    """FID of n features against the test set, averaged over their parts, for n in FID_SIZES."""
    truth = judge.tensors["test_mean"].cpu(), judge.tensors["test_covariance"].cpu()
    found = {}
    for n in FID_SIZES:
        parts = [metrics.moments(part) for part in features.split(n) if len(part) == n]
        each = [metrics.frechet_distance(*part, *truth) for part in parts]
        found[str(n)] = sum(each) / len(each)
    return found


@torch.no_grad()
def compare(
    networks: dict[str, Any], latent_dim: int, judge: checkpoints.Checkpoint, seed: int
) -> dict[str, Any]:
    """FIDs of draws and of images that the judge has not seen, logits, and nearest training images.

    `logits` are (discriminators, 2, n), of test images and of draws. Distances are those of the
    judge's features.
    """
    network, device = judge.networks["classifier"].features, default_device()
    images, test = cifar10("train").images, cifar10("test").images

    def features(x: Tensor) -> Tensor:
        return seen(network, (part.to(device) for part in x.split(PART)))

    parts = draws_of(networks["generator"], latent_dim, N_FID, seeded(seed))
    drawn = torch.cat([x[0].float().cpu() for x in parts])
    known, of_draws = features(images), features(drawn)

    def nearest(x: Tensor) -> tuple[Tensor, ...]:  # distances, and rows of `images`
        near = (part.min(dim=1) for part in distances(x.cpu(), known.cpu()))
        return tuple(map(torch.cat, zip(*near, strict=True)))

    def logits(name: str, x: Tensor) -> Tensor:
        rows = (part[None].to(device) for part in x[: min(len(test), N_FID)].split(PART))
        return torch.cat([networks[name](part)[0].cpu() for part in rows])

    judges = "discriminator", "discriminator_refitted"
    distance, rows = nearest(of_draws[:N_NEAR])
    return {
        "fid": fids(of_draws, judge),
        "fid_of_real_images": fids(known[cifar10_features.N_TRAIN :], judge),
        "tensors": {
            "logits": torch.stack(
                [torch.stack([logits(name, x) for x in (test, drawn)]) for name in judges]
            ),
            "distance": distance,
            "distance_of_test_images": nearest(features(test[:N_NEAR]))[0],
            "drawn": to_bytes(drawn[:N_PAIRS]),
            "nearest": to_bytes(images[rows[:N_PAIRS]]),
        },
    }


def settings_of(size: str) -> dict[str, Any]:
    """Everything that the networks depend on, but for the seed, the data and the judge."""
    return {
        "rules": {kind: rule._asdict() for kind, rule in RULES.items()},
        "sizes": SIZES[size],
        "side": SIDE,
        "n_points": N_POINTS,
        "classifier": {**cifar10_features.TRAINING, **CLASSIFIER},
        "refit": {**REFIT, "hidden": list(HIDDEN), "n_data": N_REFIT},
        "n_learned": N_LEARNED,
        "n_held_out": N_HELD_OUT,
        "n_fid": N_FID,
        "fid_sizes": list(FID_SIZES),
        "n_near": N_NEAR,
        "n_pairs": N_PAIRS,
        "part": PART,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = runs.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="the sizes of the paper, for a GPU")
    args = runs.parse(parser, argv)
    given = SIZES["full" if args.full else "quarter"]
    try:
        share = accelerator()  # first: it chooses the device of each process
        device, source = default_device(), runs.cifar10_source()
        judge = checkpoints.load("cifar10_features", device)
    except (RuntimeError, ValueError) as error:  # no such device, no CIFAR-10, no classifier
        parser.error(str(error))
    except ImportError as error:
        parser.error(f"{error}; install it with: pip install gan-ebm-utils[images]")
    batches = {given[key] % share.num_processes for key in ("batch_size", "batch_size_g")}
    if batches != {0}:
        line = f"a batch of {given['batch_size']} cannot be shared by {share.num_processes}"
        parser.error(f"{line} processes; start a number that divides it")
    if judge.card["data_sha256"] != source["data_sha256"]:
        line = "another copy of CIFAR-10 than this one; run the recipe cifar10_features on it"
        parser.error(f"cifar10_features was trained on {line}")
    source |= {"features_sha256": judge.card["sha256"], "device": device.type}
    settings = settings_of("full" if args.full else "quarter")
    run = runs.Run("cifar10_sngan", settings, args, runs.Progress(), **source)
    if all(run.is_stored(f"cifar10_{kind}", args.out) for kind in RULES):
        print(", ".join(f"cifar10_{kind}" for kind in RULES) + ": kept")
        run.remove_parts()
        return
    run.writes, run.wait = share.is_main_process, share.wait_for_everyone
    sizes = dict.fromkeys(mnist_features.epochs_of(CLASSIFIER["epochs"]), 500.0)
    for kind in RULES:
        sizes |= {**stages_of(kind, given), f"refit of {kind}": 500.0, f"scores of {kind}": 500.0}
    run.expect(sizes)

    def seed_of(part: str) -> int:
        return int(runs.key_of({"seed": args.seed, "part": part}), 16)

    def once(part: str, make: Callable, *before: Any) -> Any:
        return run.once(part, partial(make, *before, seed_of(part)))[0]

    latent_dim, features = given["latent_dim"], classify(seed_of("classifier"), run)
    for kind in RULES:
        state, seconds = play(kind, given, seed_of(kind), run)
        built = {
            "generator": (BUILDERS[kind][0], pair_of(kind, given)[0], state["averaged"]),
            "discriminator": (BUILDERS[kind][1], pair_of(kind, given)[1], state["discriminator"]),
        }
        networks = {name: stored_network(*how) for name, how in built.items()}
        generator = networks["generator"][0].float().to(device)
        fit = once(f"refit of {kind}", refit, generator, latent_dim, features)
        how = {"width": CLASSIFIER["width"], "hidden": list(HIDDEN)}
        networks["discriminator_refitted"] = stored_network(
            ImageFeatureDiscriminator, how, fit["weights"]
        )
        trio = {name: network.float().to(device) for name, (network, *_) in networks.items()}
        scores = once(f"scores of {kind}", compare, trio, latent_dim, judge)
        found = {
            "fid": scores["fid"],
            "fid_of_real_images": scores["fid_of_real_images"],
            "held_out_loss": fit["held_out_loss"],
            "precision": str(runs.precision(device)),
            "processes": share.num_processes,
            "seconds": round(seconds, 1),
        }
        for network in trio.values():
            network.half().cpu()
        if run.writes:
            tensors = scores["tensors"]
            checkpoints.save(f"cifar10_{kind}", networks, tensors, run.card(found), args.out)
            print(json.dumps({f"cifar10_{kind}": found}, indent=2))
    run.wait()  # for those that still read a part
    if run.writes:
        run.remove_parts()


if __name__ == "__main__":
    main()
