"""Run latent chains of the stored SNGAN on two logits, with and without what theory asks for.

    python -m gan_ebm_utils.recipes.cifar10_chains

writes the checkpoint `cifar10_chains`: of Langevin chains that start at the prior, after several
numbers of steps, the FID, saturation and colours of their pictures, the mean square of their
latents and both logits. They step by 0.01 on |z|^2 / 2 - d(G(z)), where d is the hinge logit that
the game has left or the refitted one; with noise as the step asks for, without, or with a standard
deviation of 0.32, which is a variance of 0.1; or without the prior |z|^2 / 2. A run with a setting
of these reported a much worse FID than its generator (19.3 and 33.1, and oversaturated colours).

The scores are as in `one_budget`, of fewer samples: compare them with those of step 0. It takes two
hours of two CPU cores, in `--jobs` processes. A run that is cut off goes on after the last kind of
chain that was finished.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import joblib
import torch
from torch import Tensor

from gan_ebm_utils import checkpoints, metrics, runs
from gan_ebm_utils.base import Energy, Gan, default_device, seeded
from gan_ebm_utils.datasets import cifar10
from gan_ebm_utils.energies import latent_energy
from gan_ebm_utils.samplers import langevin, run_chain


class Kind(NamedTuple):
    """A kind of chain: which logit it climbs, its temperature, and whether the prior holds it."""

    which: str = ""  # the discriminator of the game; or "refitted"
    temperature: float = 1.0
    has_prior: bool = True


# A step of 0.01 at temperature 1 has noise with a standard deviation of 0.1.
KINDS = {
    "hinge": Kind(),
    "hinge, no noise": Kind(temperature=0.0),
    "hinge, noise 0.32": Kind(temperature=10.0),
    "hinge, no prior": Kind(has_prior=False),
    "refitted": Kind("refitted"),
    "refitted, noise 0.32": Kind("refitted", temperature=10.0),
}
CHAINS = {"step_size": 0.01, "points": [20, 50, 100, 200], "n": 500, "part": 100}
SCORES = ("fid", "saturation", "colour_distance", "mean_square", "hinge", "refitted")


def energy_of(gan: Gan, has_prior: bool) -> Energy:
    """|z|^2 / 2 - d(G(z)), or -d(G(z))."""
    return latent_energy(gan) if has_prior else lambda z: -gan.logit(z)


def scores_of(z: Tensor, gans: dict[str, Gan], judge: checkpoints.Checkpoint) -> list[float]:
    """SCORES of the pictures of latents (1, n, latent_dim)."""
    classifier, test = judge.networks["classifier"], cifar10("test").images
    truth = judge.tensors["test_mean"].cpu(), judge.tensors["test_covariance"].cpu()
    drawn, logits = [], {name: [] for name in gans}
    with torch.no_grad():
        for part in z.split(CHAINS["part"], dim=1):
            # In single precision: near black and white, bfloat16 has no bytes but these.
            x = gans[""].generator(part)
            for name, gan in gans.items():
                logits[name].append(gan.discriminator(x).mean())
            drawn.append(x)
        x = torch.cat(drawn, dim=1)
        seen = torch.cat([classifier.features(part) for part in x[0].split(CHAINS["part"])])
    return [
        metrics.frechet_distance(*metrics.moments(seen), *truth),
        float(metrics.saturation(x)),
        float(metrics.colour_distance(x, test)),
        float(z.square().mean()),
        *(float(torch.stack(logits[name]).mean()) for name in ("", "refitted")),
    ]


class Task(NamedTuple):
    """All that a process needs to make the chains of a kind or to find them."""

    name: str
    run: runs.Run


def make(task: Task) -> tuple[str, dict[str, Any]]:
    """Scores of a kind of chain, made now or by an earlier start."""
    make = partial(chains, KINDS[task.name], task.run.given["seed"])
    return task.name, task.run.once(task.name, make)[0]


def chains(kind: Kind, seed: int) -> dict[str, Tensor]:
    """Scores along the chains of a kind, at step 0 and at each of the points, (points, SCORES)."""
    device = default_device()
    stored, judge = (checkpoints.load(f"cifar10_{name}", device) for name in ("sngan", "features"))
    gans = {name: stored.gan(name) for name in ("", "refitted")}
    rng, given = seeded(seed), CHAINS  # all kinds start at the same latents
    z = gans[""].prior((1, given["n"]), rng)
    kernel = langevin(
        energy_of(gans[kind.which], kind.has_prior), given["step_size"], kind.temperature
    )
    course, step = [scores_of(z, gans, judge)], 0
    for point in given["points"]:
        with runs.autocast(device):
            ends = [
                run_chain(kernel, part, point - step, rng, thin=point - step).positions[-1]
                for part in z.split(given["part"], dim=1)
            ]
        z, step = torch.cat(ends, dim=1), point
        course.append(scores_of(z, gans, judge))
    return {"course": torch.tensor(course, dtype=torch.float64)}


def settings_of() -> dict[str, Any]:
    """Everything that the scores depend on, but for the data and the stored networks."""
    return {"kinds": {name: kind._asdict() for name, kind in KINDS.items()}, **CHAINS}


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = runs.parser(__doc__)
    text = "processes, each with one thread (default: 1 on a GPU, else as many as there are cores)"
    parser.add_argument("--jobs", type=runs.at_least(1), help=text)
    args = runs.parse(parser, argv)
    try:
        device, source = default_device(), runs.cifar10_source()
        for name in ("sngan", "features"):
            source[f"{name}_sha256"] = checkpoints.load(f"cifar10_{name}").card["sha256"]
    except (RuntimeError, ValueError) as error:  # no such device, no CIFAR-10, no networks
        parser.error(str(error))
    jobs, name = args.jobs or (1 if device.type == "cuda" else joblib.cpu_count()), "cifar10_chains"
    source["device"] = device.type
    run = runs.Run(name, settings_of(), args, runs.Progress(), **source)
    if run.is_stored(name, args.out):
        print(f"{name}: kept")
        run.remove_parts()
        return
    tensors, tasks = {}, []
    for kind in KINDS:  # each process tells of its own chains only
        apart = runs.Run(name, settings_of(), args, runs.Progress(), **source)
        tasks.append(Task(kind, apart if jobs > 1 else run))
        tasks[-1].run.expect({kind: 1})
    for kind, made in runs.in_processes(make, tasks, jobs):
        tensors[kind] = made["course"]
        print(f"{kind}: stored", flush=True)
    found = {
        "points": [0, *CHAINS["points"]],
        "scores": list(SCORES),
        "last": {k: dict(zip(SCORES, v[-1].tolist(), strict=True)) for k, v in tensors.items()},
    }
    checkpoints.save(name, {}, tensors, {**run.card(found), "threads": 1}, args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
