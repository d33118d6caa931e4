"""Refit discriminators to the generators of Stacked MNIST, and refine their samples with them.

    python -m gan_ebm_utils.recipes.stacked_refined

reads the checkpoints `stacked_mnist_LOSS` and writes `stacked_refined`: for each loss the head of a
discriminator fitted to its generator, which stays as it is, and the classes of the digits in its
samples as they are drawn, after independence Metropolis-Hastings (`mh`), and after MALA in the
latent space (`ddls`), with the FID of each and the calls of networks it took.

The head sees features of a classifier that scores nothing here, the one of `mnist_gan`. It is
fitted to features of stacks of training digits and of stored draws, so that a step costs little,
and calibrated on others: a logit that has learned its samples by heart is too steep.
Of several step sizes of MALA one is chosen, by the FID of other draws against the training digits.
Generators and features compute in bfloat16 where the device is fast in it. It takes about twenty
minutes of one core of a recent CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, losses, metrics, runs
from gan_ebm_utils.base import Calls, Gan, Refined, Sample, default_device, seeded
from gan_ebm_utils.calibration import calibrate
from gan_ebm_utils.datasets import minibatches, mnist
from gan_ebm_utils.networks import FeatureDiscriminator, StackedLinear, mlp
from gan_ebm_utils.recipes.stacked_mnist import COUNTING, KEPT, SECOND, classes, fid_of
from gan_ebm_utils.refine import ddls, mh_gan
from gan_ebm_utils.training import fit_discriminator

REFIT = {"n_steps": 1000, "batch_size": 256, "learning_rate": 1e-3}
HIDDEN = (256, 256)
# Training digits that the refit may see, stacks that it has of the generator, and how many of both,
# of other digits, calibrate it, and as many again are for its card.
N_REFIT, N_STACKS, N_HELD_OUT = 50_000, 40_000, 2_500
N_SAMPLES, PART = 6_000, 1_000
SAMPLERS = {"mh": {"n_steps": 16}, "ddls": {"n_steps": 10}}
STEP_SIZES, N_CHOICE = (0.2, 0.05, 0.01), 1_000


class InPrecision(nn.Module):
    """A network that computes in `runs.precision` and returns single precision.

    A logit and what accepts by it are computed outside: in bfloat16 they would be steps of 1 %.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with runs.autocast(x.device):
            return self.network(x).float()


def judge_of(features: dict[str, Tensor], head: dict[str, Tensor] | None, seed: int) -> nn.Module:
    """A discriminator of stacks with these features, and with this head if there is one."""
    rng = seeded(seed)
    judge = FeatureDiscriminator(HIDDEN, channels=3, generator=rng).to(rng.device)
    judge.features.load_state_dict(features)
    judge.features = InPrecision(judge.features)
    if head:
        judge.head.load_state_dict(head)
    return judge.eval()


def calibrated(head: nn.Module, real: Tensor, fake: Tensor) -> None:
    """Scale and shift the logits of a head by Platt's fit to features (n, d) that it has not seen.

    Its last layer takes both, so that it stays the same kind of network.
    """
    with torch.no_grad():
        curve = calibrate(head(real[None]), head(fake[None]))
        linear = next(x for x in reversed([*head.modules()]) if isinstance(x, StackedLinear))
        linear.weight *= curve.slope
        linear.bias.mul_(curve.slope).add_(curve.offset)


def refit(gan: Gan, features: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """The weights of a head fitted to the generator of `gan`, and its loss on held-out stacks."""
    judge, rng = judge_of(features, None, seed), seeded(seed + 1)
    digits = mnist("train").images.to(rng.device)
    with torch.no_grad():
        seen = torch.cat([judge.features(x) for x in digits.split(PART)])
        draws = (gan.generator(gan.prior((1, n), rng)) for n in _parts(N_STACKS + 2 * N_HELD_OUT))
        fake = torch.cat([judge.seen(x)[0] for x in draws])

    def stacks(of: Tensor) -> Sample:  # three digits at a time
        return lambda size, rng: minibatches(of)((*size, 3), rng).flatten(start_dim=2)

    learn = stacks(seen[:N_REFIT]), minibatches(fake[:N_STACKS])
    fit_discriminator(judge.head, *learn, losses.gan_d_loss, generator=rng, **REFIT)
    others = stacks(seen[N_REFIT:])((1, 2 * N_HELD_OUT), rng)[0], fake[N_STACKS:]
    calibrated(judge.head, *(x[:N_HELD_OUT] for x in others))
    judge.head.half().float()  # as it is stored
    with torch.no_grad():
        logits = [judge.head(x[None, N_HELD_OUT:]) for x in others]
    loss = float(losses.gan_d_loss(*logits))
    weights = {key: value.half().cpu() for key, value in judge.head.state_dict().items()}
    return {"weights": weights, "held_out_loss": loss}


def _parts(n: int) -> list[int]:
    return [len(part) for part in torch.arange(n).split(PART)]


def drawn(gan: Gan, n: int, rng: torch.Generator) -> Refined:
    """n samples as the generator makes them."""
    with torch.no_grad():
        samples = gan.generator(gan.prior((1, n), rng))
    return Refined(samples, None, None, Calls(n, 0))


def refined(gan: Gan, n: int, sampler: Any, seed: int) -> tuple[list[Tensor], list[float]]:
    """n samples in parts, and forward and backward calls for each of them."""
    rng = seeded(seed)
    found = [sampler(gan, size, rng) for size in _parts(n)]
    calls = [sum(each.calls[i] for each in found) / n for i in (0, 1)]
    return [each.samples for each in found], calls


def score(
    gan: Gan, how: dict[str, Any], judges: dict[str, checkpoints.Checkpoint], seed: int
) -> dict[str, Any]:
    """Classes (n, 3), FID and calls of the samples of one sampler; `how` names it.

    A step size is chosen by an FID against the training digits, and scored against the test digits.
    The calls of the choice are not among those of a sample.
    """
    name, settings = how["sampler"], dict(how["settings"])
    chosen = None
    if name == "ddls":
        errors = {}
        for size in STEP_SIZES:
            trial = partial(ddls, step_size=size, **settings)
            stacks = refined(gan, N_CHOICE, trial, seed)[0]
            errors[size] = fid_of(stacks, judges[SECOND], "train")
        chosen = settings["step_size"] = min(errors, key=errors.get)
    sampler = partial({"none": drawn, "mh": mh_gan, "ddls": ddls}[name], **settings)
    stacks, calls = refined(gan, N_SAMPLES, sampler, seed + 1)
    with torch.no_grad():
        judge = judges[COUNTING].networks["classifier"]
        found = torch.cat([classes(judge, part) for part in stacks], dim=1)[0]
    fid = fid_of(stacks, judges[SECOND])
    return {"classes": found.to(torch.uint8).cpu(), "fid": fid, "calls": calls, "chosen": chosen}


def settings_of() -> dict[str, Any]:
    """Everything that the results depend on, but for the seed, the data and the checkpoints."""
    return {
        "refit": {**REFIT, "hidden": list(HIDDEN), "n_data": N_REFIT, "n_stacks": N_STACKS},
        "n_held_out": N_HELD_OUT,
        "n_samples": N_SAMPLES,
        "part": PART,
        "samplers": SAMPLERS,
        "step_sizes": list(STEP_SIZES),
        "n_choice": N_CHOICE,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args = runs.parse(parser, argv)
    try:
        device, source = default_device(), runs.mnist_source()
        pairs = {loss: checkpoints.load(f"stacked_mnist_{loss}", device) for loss in KEPT}
        judges = {name: checkpoints.load(name, device) for name in (COUNTING, SECOND)}
        seen = checkpoints.load("mnist_gan")
    except (RuntimeError, ValueError) as error:  # no such device, no MNIST, no checkpoint
        parser.error(str(error))
    source |= {f"{loss}_sha256": pair.card["sha256"] for loss, pair in pairs.items()}
    source |= {f"{name}_sha256": judge.card["sha256"] for name, judge in judges.items()}
    source["mnist_gan_sha256"] = seen.card["sha256"]
    name = "stacked_refined"
    run = runs.Run(name, settings_of(), args, runs.Progress(), **source, device=device.type)
    if run.is_stored(name, args.out):
        print(f"{name}: kept")
        run.remove_parts()
        return
    uses = {"none": {}, **SAMPLERS}
    sizes = {"refit": 3.0, "none": 1.0, "mh": 10.0, "ddls": 20.0}
    run.expect({f"{loss}-{part}": size for loss in KEPT for part, size in sizes.items()})
    features = seen.networks["discriminator_refitted"].features.state_dict()
    networks, tensors, found, seconds = {}, {}, {}, 0.0

    def once(part: str, make: Callable, *before: Any) -> Any:
        nonlocal seconds
        seed = int(runs.key_of({"seed": args.seed, "part": part}), 16)
        made, took = run.once(part, partial(make, *before, seed))
        seconds += took
        return made

    for loss, pair in pairs.items():
        own = pair.gan()._replace(generator=InPrecision(pair.networks["generator"]))
        fit = once(f"{loss}-refit", refit, own, features)
        judge = judge_of(features, fit["weights"], 0).requires_grad_(False)
        how = {"in_features": 3 * judge.features.network.num_features, "hidden": list(HIDDEN)}
        head = mlp(**how, generator=seeded(0, "cpu")).half().eval()
        head.load_state_dict(fit["weights"])
        networks[f"head_{loss}"] = (head, mlp, how)
        gan = own._replace(discriminator=judge)
        found[loss] = {"held_out_loss": fit["held_out_loss"]}
        for sampler, settings in uses.items():
            use = {"sampler": sampler, "settings": settings}
            made = once(f"{loss}-{sampler}", score, gan, use, judges)
            tensors[f"{loss}/{sampler}/classes"] = made["classes"]
            modes, kl = metrics.stacked_modes(made["classes"].long()[None])
            told = {key: made[key] for key in ("fid", "calls", "chosen")}
            found[loss][sampler] = {"modes": float(modes), "kl": float(kl), **told}
    card = run.card({**found, "seconds": round(seconds, 1)})
    checkpoints.save(name, networks, tensors, card, args.out)
    run.remove_parts()


if __name__ == "__main__":
    main()
