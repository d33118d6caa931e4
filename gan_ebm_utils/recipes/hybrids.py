"""Train hybrids of VAE and GAN, ten of each kind, and score their draws.

    python -m gan_ebm_utils.recipes.hybrids

writes `ring_hybrids`, `gaussians25_hybrids` and `digits_hybrids`. There are six kinds of model,
GAN, VAE, adversarial autoencoder, VAE/GAN, VEEGAN and alpha-GAN, with R1 on their discriminators
("r1") and without ("plain"). All have the same networks, so that they differ in their losses only.
The protocol in the plane is that of PacGAN (2,500 draws, three standard deviations, one draw makes
a mode) with fewer steps; the digits are the small ones of scikit-learn, scored by the classifier
`digits_classifier` and by the diversity of Rosca et al. 2018 (arXiv:1802.06847). Each checkpoint
holds scores of the draws ("drawn"), of MH-GAN with a discriminator that is refitted to data and
draws ("refined"), and of the decoder at latents that MH-GAN chooses with one that is fitted to
codes and prior ("codes"). Digits are few, so a refit has fewer steps there, and its loss on digits
that it has not seen is stored ("refit_loss"). A run that is cut off goes on after the last model
that was finished.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils import checkpoints, metrics, runs
from gan_ebm_utils.base import Gan, Sample, randn, seeded, switched_off
from gan_ebm_utils.datasets import digest, digits, gaussian_grid, gaussian_ring, minibatches
from gan_ebm_utils.losses import gan_d_loss, r1_penalty
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.recipes.digits_classifier import held_out
from gan_ebm_utils.refine import mh_gan
from gan_ebm_utils.training import refit_discriminator

# What the discriminators of each kind tell apart: a real input from fake ones. x is data, z a
# latent, y = G(z), c a code of x, r = G(c); xc and yz are pairs.
JUDGED: dict[str, dict[str, tuple[str, list[str]]]] = {
    "gan": {"discriminator": ("x", ["y"])},
    "vae": {},
    "aae": {"code_discriminator": ("z", ["c"])},
    "vae_gan": {"discriminator": ("x", ["y", "r"])},
    "veegan": {"pair_discriminator": ("xc", ["yz"])},
    "alpha_gan": {"discriminator": ("x", ["y", "r"]), "code_discriminator": ("z", ["c"])},
}
NOISY = ("vae",)  # whose decoder is a Gaussian with a learned s, so that a draw is G(z) + s z'
HIDDEN = [128, 128]  # of every network
NOISE = 0.1  # of a decoder before its first step; from 1 the codes of the ring were ignored
TRAINING = {"batch_size": 128, "learning_rate": 1e-3, "betas": [0.5, 0.99]}
GAMMA = 0.1  # of R1
# Of the generator's error in features in VAE/GAN, of the absolute error in alpha-GAN.
WEIGHTS = {"vae_gan": 1e-2, "alpha_gan": 10.0}
REFITTED = {"hidden": [128, 128], "fourier": [64, 2.0]}
REFIT = {"batch_size": 512, "learning_rate": 3e-3}
N_SAMPLES, N_STD = 2500, 3
N_PROPOSALS = 100
REFIT_SHARE = 0.2  # of the steps of a refit are enough on the digits, or it learns them by heart
SSIM = (0.01**2, 0.03**2)  # its two constants, for grey levels in [0, 1]
N_SHOWN = 500  # draws of each replicate that are stored, in the plane
N_PICTURES, N_BETWEEN = 20, 8  # digits of one replicate, and pictures from one to another


LAWS = {
    "ring_hybrids": {"radius": 1.0, "std": 0.01},
    "gaussians25_hybrids": {"spacing": 2.0, "std": 0.05},
    "digits_hybrids": {"latent_dim": 10, "std": 1.0},
}


class Law(NamedTuple):
    """What is learned, in `dim` dimensions, and with how many latents.

    `std` is the scale of an error: the standard deviation of a mode, or 1 pixel of [-1, 1].
    """

    sample: Sample
    dim: int
    latent_dim: int
    std: float
    means: Tensor | None


def pixels(is_held: bool) -> Tensor:
    """The digits that a model does not see, or the others, as vectors of pixels."""
    images = digits().images.flatten(1)
    return images[held_out(len(images)) == is_held]


def law_of(name: str) -> Law:
    """What the models of a checkpoint learn."""
    how = LAWS[name]
    if name == "digits_hybrids":
        data = pixels(False)
        return Law(minibatches(data), data.shape[1], how["latent_dim"], how["std"], None)
    truth = {"ring_hybrids": gaussian_ring, "gaussians25_hybrids": gaussian_grid}[name](**how)
    return Law(truth.sample, 2, 2, how["std"], truth.means)


class Seen(NamedTuple):
    """What a step sees: data, latents, draws, codes, their reconstructions, and the posterior."""

    x: Tensor
    z: Tensor
    y: Tensor
    c: Tensor
    r: Tensor
    mean: Tensor
    log_std: Tensor

    def view(self, name: str) -> Tensor:
        """One of them, or a pair, as `JUDGED` names it."""
        return torch.cat([getattr(self, part) for part in name], dim=-1)


class Model(nn.Module):
    """The networks of one kind, each of R replicates, and the log of a decoder's noise s, (R, 1).

    The encoder maps x to mean and log standard deviation of q(z|x), a Gaussian. A VAE learns s. In
    an adversarial autoencoder it stays, since nothing holds its objective from above as s falls.
    """

    def __init__(self, kind: str, law: Law, replicates: int, rng: torch.Generator) -> None:
        super().__init__()
        self.kind, n_x, n_z = kind, law.dim, law.latent_dim

        def new(n_in: int, n_out: int | None) -> nn.Sequential:
            how = {"activation": "ReLU", "replicates": replicates, "generator": rng}
            return mlp(n_in, tuple(HIDDEN), n_out, **how)

        self.generator, self.encoder = new(n_z, n_x), new(n_x, 2 * n_z)
        n_inputs = {"x": n_x, "z": n_z, "xc": n_x + n_z}
        judged = JUDGED[kind].items()
        self.judges = nn.ModuleDict({name: new(n_inputs[real], None) for name, (real, _) in judged})
        start = torch.full((replicates, 1), math.log(NOISE), device=rng.device)
        self.log_noise = nn.Parameter(start, requires_grad=kind in NOISY)

    def players(self) -> list[nn.Parameter]:
        """All weights but those of the discriminators."""
        weights = [*self.generator.parameters(), *self.encoder.parameters(), self.log_noise]
        return [weight for weight in weights if weight.requires_grad]

    def see(self, x: Tensor, rng: torch.Generator) -> Seen:
        """A step's batches."""
        mean, log_std = self.encoder(x).chunk(2, dim=-1)
        z = randn(*mean.shape, generator=rng)
        noise = randn(*mean.shape, generator=rng)
        # VEEGAN's reconstructor is a function, without noise.
        c = mean if self.kind == "veegan" else mean + log_std.exp() * noise
        return Seen(x, z, self.generator(z), c, self.generator(c), mean, log_std)

    def judge(self, seen: Seen, gamma: float) -> Tensor:
        """The losses of the discriminators, with R1 at their real inputs, (R,)."""
        total = seen.x.new_zeros(len(seen.x))
        for name, (real, fakes) in JUDGED[self.kind].items():
            d, x = self.judges[name], seen.view(real).detach()
            for fake in fakes:
                total = total + gan_d_loss(d(x), d(seen.view(fake).detach())) / len(fakes)
            if gamma:
                total = total + gamma / 2 * r1_penalty(d, x)
        return total

    def play(self, seen: Seen) -> Tensor:
        """The losses of generator and encoder, (R,)."""
        return LOSSES[self.kind](self, seen).mean(dim=1)


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows, (R, n)."""
    return (a - b).square().sum(dim=-1)


def fools(logit: Tensor) -> Tensor:
    """The non-saturating loss of each sample."""
    return F.softplus(-logit)


def reconstruction(model: Model, seen: Seen) -> Tensor:
    """-log p(x|c) of a Gaussian decoder with noise s, but for a constant, (R, n)."""
    scaled = squares(seen.x, seen.r) * (-2 * model.log_noise).exp() / 2
    return scaled + seen.x.shape[-1] * model.log_noise


def prior_kl(seen: Seen) -> Tensor:
    """KL(q(z|x) || N(0, I)), (R, n)."""
    variance = (2 * seen.log_std).exp()
    return (seen.mean.square() + variance - 1 - 2 * seen.log_std).sum(dim=-1) / 2


def gan_loss(model: Model, seen: Seen) -> Tensor:
    return fools(model.judges["discriminator"](seen.y))


def vae_loss(model: Model, seen: Seen) -> Tensor:
    """Minus the ELBO."""
    return reconstruction(model, seen) + prior_kl(seen)


def aae_loss(model: Model, seen: Seen) -> Tensor:
    """The ELBO's second term at the aggregate of the codes, from a log ratio log p0/q."""
    return reconstruction(model, seen) - model.judges["code_discriminator"](seen.c)


def vae_gan_loss(model: Model, seen: Seen) -> Tensor:
    """The error in the features of the last hidden layer; the game does not reach the encoder."""
    judge, own = model.judges["discriminator"], model.generator(seen.c.detach())
    features, wanted = judge[:-2], judge[:-2](seen.x).detach()
    error, of_generator = (squares(features(r), wanted) / 2 for r in (seen.r, own))
    # The encoder sees the error once, the generator with the weight gamma.
    error = error + (WEIGHTS["vae_gan"] - 1) * of_generator
    return prior_kl(seen) + error + fools(judge(seen.y)) + fools(judge(own))


def veegan_loss(model: Model, seen: Seen) -> Tensor:
    """Minus the log ratio at the pair (y, z), and the error of reconstructing z from y."""
    back, _ = model.encoder(seen.y).chunk(2, dim=-1)
    return squares(seen.z, back) - model.judges["pair_discriminator"](seen.view("yz"))


def alpha_gan_loss(model: Model, seen: Seen) -> Tensor:
    """The absolute error, and log ratios at codes, reconstructions and draws."""
    judge = model.judges["discriminator"]
    error = (seen.x - seen.r).abs().sum(dim=-1)
    own = model.generator(seen.c.detach())
    ratios = model.judges["code_discriminator"](seen.c) + judge(own) + judge(seen.y)
    return WEIGHTS["alpha_gan"] * error - ratios


LOSSES: dict[str, Callable[[Model, Seen], Tensor]] = {
    "gan": gan_loss,
    "vae": vae_loss,
    "aae": aae_loss,
    "vae_gan": vae_gan_loss,
    "veegan": veegan_loss,
    "alpha_gan": alpha_gan_loss,
}


def play(kind: str, gamma: float, law: Law, n_steps: int, replicates: int, seed: int) -> Any:
    """The weights of a model after all steps; the learning rate falls to 0 over the second half."""
    rng = seeded(seed)
    model = Model(kind, law, replicates, rng)
    how = {"lr": TRAINING["learning_rate"], "betas": tuple(TRAINING["betas"]), "fused": True}
    of_players = torch.optim.Adam(model.players(), **how)
    of_judges = torch.optim.Adam(model.judges.parameters(), **how) if model.judges else None
    for step in range(n_steps):
        share = min(1.0, 2 * (1 - step / n_steps))
        for optimizer in filter(None, (of_players, of_judges)):
            optimizer.param_groups[0]["lr"] = TRAINING["learning_rate"] * share
        seen = model.see(law.sample((replicates, TRAINING["batch_size"]), rng), rng)
        if of_judges:
            descend(of_judges, model.judge(seen, gamma))
        with switched_off("requires_grad", model.judges.parameters()):
            loss = model.play(seen)
            if not loss.isfinite().all():
                raise RuntimeError(
                    f"{kind}: the loss is not finite at step {step}: {loss.tolist()}"
                )
            descend(of_players, loss)
    return model.state_dict()


def descend(optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    """One step down the losses (R,)."""
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()


class Decoder(nn.Module):
    """G(z) + s z' of latents (z, z'), with the s of each replicate."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.generator, self.noise = model.generator, model.log_noise.detach().exp()[..., None]

    def forward(self, z: Tensor) -> Tensor:
        n_z = self.generator[0].weight.shape[1]
        x = self.generator(z[..., :n_z])
        return x + self.noise * z[..., n_z:]


def gan_of(model: Model, law: Law) -> Gan:
    """The model's draws as those of a generator; noise of a decoder counts as latents."""
    n_z = law.latent_dim
    if model.kind not in NOISY:
        return Gan(model.generator, None, n_z)
    return Gan(Decoder(model), None, n_z + law.dim)


def refit(gan: Gan, data: Sample, n_in: int, n_steps: int, replicates: int, rng: Any) -> Gan:
    """`gan` with a discriminator that is fitted to `data` and its draws."""
    # Fourier features of many inputs are noise.
    how = REFITTED if n_in == 2 else {"hidden": REFITTED["hidden"]}
    start = mlp(n_in, **how, replicates=replicates, generator=rng)
    return refit_discriminator(gan, start, data, n_steps, rng, replicates=replicates, **REFIT)


def draws_of(
    model: Model, law: Law, n_steps: int, replicates: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws (R, N_SAMPLES, dim) of a model by name, and the loss of a refit to digits."""
    rng, size = seeded(seed), (replicates, N_SAMPLES)
    how = {"replicates": replicates, "n_steps": N_PROPOSALS}
    gan, n_z, losses = gan_of(model, law), law.latent_dim, {}
    with torch.no_grad():
        found = {"drawn": gan.generator(gan.prior(size, rng))}
    if law.means is None:
        n_steps = math.ceil(REFIT_SHARE * n_steps)
    refitted = refit(gan, law.sample, law.dim, n_steps, replicates, rng)
    found["refined"] = mh_gan(refitted, N_SAMPLES, rng, **how).samples
    if law.means is None:
        with torch.no_grad():
            real, fake = pixels(True).to(rng.device), gan.generator(gan.prior(size, rng))
            logits = (refitted.discriminator(x) for x in (real.expand(replicates, -1, -1), fake))
            losses["refit_loss"] = gan_d_loss(*logits)
    if model.kind != "gan":

        @torch.no_grad()
        def codes(size: tuple[int, int], rng: torch.Generator) -> Tensor:
            return model.see(law.sample(size, rng), rng).c

        # The prior itself is the generator of this game, and codes are its data.
        prior = Gan(nn.Identity(), None, n_z)
        fitted = refit(prior, codes, n_z, n_steps, replicates, rng)
        z = mh_gan(fitted, N_SAMPLES, rng, **how).samples
        rest = randn(*size, gan.latent_dim - n_z, generator=rng)
        with torch.no_grad():
            found["codes"] = gan.generator(torch.cat([z, rest], dim=-1))
    return found, losses


def diversity(x: Tensor) -> Tensor:
    """1 - SSIM of an image and the next, on average; images (R, n, pixels) in [-1, 1] to (R,).

    SSIM with one window, the whole image (Wang et al. 2004), where Rosca et al. 2018 take several
    scales.
    """
    a = (x.clamp(-1, 1) + 1) / 2
    b = a.roll(1, dims=1)
    means, variances = [y.mean(dim=2) for y in (a, b)], [y.var(dim=2) for y in (a, b)]
    both = (a * b).mean(dim=2) - means[0] * means[1]
    both = both * x.shape[2] / (x.shape[2] - 1)
    c1, c2 = SSIM
    light = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    form = (2 * both + c2) / (variances[0] + variances[1] + c2)
    return 1 - (light * form).mean(dim=1)


def digit_scores(x: Tensor) -> dict[str, Tensor]:
    """Scores (R,) of flat digits (R, n, 64)."""
    judge = checkpoints.load("digits_classifier", x.device).networks["classifier"]
    logits = torch.cat([judge(part[None]) for part in x])
    found = metrics.class_scores(logits)._asdict()
    return {**found, "diversity": diversity(x)}


def scores_of(x: Tensor, law: Law) -> dict[str, Tensor]:
    """Scores (R,) of samples."""
    if law.means is None:
        return digit_scores(x)
    report = metrics.mode_report(x, law.means, law.std, n_std=N_STD)
    return {key: getattr(report, key) for key in ("recovered", "high_quality", "reverse_kl")}


@torch.no_grad()
def score(model: Model, law: Law, n_steps: int, replicates: int, seed: int) -> dict[str, Tensor]:
    """Scores (R,) of a model's draws and codes, and some of its draws."""
    rng = seeded(seed + 1)
    with torch.enable_grad():
        drawn, tensors = draws_of(model, law, n_steps, replicates, seed)
    for name, x in drawn.items():
        tensors |= {f"{name}/{key}": value for key, value in scores_of(x, law).items()}
        shown = x[:, :N_SHOWN] if law.means is not None else x[:1, :N_PICTURES]
        tensors[f"{name}/draws"] = shown.half()
    if model.kind != "gan":
        is_plane = law.means is not None
        # Each digit once: codes of one that is drawn twice would be too near each other.
        held = pixels(True).to(rng.device).expand(replicates, -1, -1)
        x = law.sample((replicates, N_SAMPLES), rng) if is_plane else held
        seen = model.see(x, rng)
        error = squares(seen.x, seen.r) / law.std**2 / law.dim
        tensors["reconstruction"] = error.mean(dim=1).sqrt()  # in units of `std`
        tensors["code_distance"] = metrics.energy_distance(seen.c, seen.z)
        if not is_plane:
            tensors |= pictures(model, replicates)
    if model.kind in NOISY:
        tensors["noise"] = model.log_noise.exp().flatten() / law.std
    return {
        key: values.cpu() if values.dtype == torch.half else values.float().cpu()
        for key, values in tensors.items()
    }


def pictures(model: Model, replicates: int) -> dict[str, Tensor]:
    """Of the first replicate: held-out digits, their reconstructions, and ways between them."""
    x = pixels(True)[:N_PICTURES].to(model.log_noise.device)
    mean, _ = model.encoder(x.expand(replicates, -1, -1)).chunk(2, dim=-1)
    share = torch.linspace(0, 1, N_BETWEEN, device=x.device)[:, None]
    ways = torch.lerp(mean[:, ::2, None], mean[:, 1::2, None], share).flatten(1, 2)
    found = {"reconstructed": model.generator(mean), "ways": model.generator(ways)}
    return {"held_out": x[None].half(), **{key: y[:1].half() for key, y in found.items()}}


def variants() -> dict[str, tuple[str, float]]:
    """The names of all models of a law: kind, and weight of R1."""
    found = {f"{kind}/plain": (kind, 0.0) for kind in LOSSES}
    return found | {f"{kind}/r1": (kind, GAMMA) for kind in LOSSES if JUDGED[kind]}


def made(
    kind: str, gamma: float, law: Law, steps: tuple[int, int], replicates: int, seed: int
) -> dict[str, Tensor]:
    """What is stored of a model."""
    model = Model(kind, law, replicates, seeded(seed))
    model.load_state_dict(play(kind, gamma, law, steps[0], replicates, seed))
    model.eval().requires_grad_(False)
    return score(model, law, steps[1], replicates, seed + 1)


def make(name: str, steps: tuple[int, int], replicates: int, seed: int, run: runs.Run) -> runs.Made:
    """The tensors and scores of the checkpoint `name`."""
    tensors, metrics_of, seconds = {}, {}, []
    for variant, (kind, gamma) in variants().items():
        work = partial(made, kind, gamma, law_of(name), steps, replicates, seed)
        found, took = run.once(f"{name}, {variant}", work)
        tensors |= {f"{variant}/{key}": values for key, values in found.items()}
        seconds.append(took)
    for key, values in tensors.items():
        # Of draws that are nowhere near a mode the divergence is infinite.
        if not key.endswith("draws") and len(values) > 1 and values.isfinite().all():
            metrics_of[key] = list(metrics.mean_interval(values.double())[:3])
    return {}, tensors, {**metrics_of, "seconds": round(sum(seconds), 1)}


def settings_of(name: str, steps: tuple[int, int], replicates: int) -> dict[str, Any]:
    """Everything that the checkpoint `name` depends on, but for the seed."""
    return {
        "variants": variants(),
        "judged": JUDGED,
        "hidden": HIDDEN,
        "noise": NOISE,
        **TRAINING,
        "weights": WEIGHTS,
        "refit": {**REFITTED, **REFIT, "share_on_digits": REFIT_SHARE},
        "steps": steps,
        "scores": [N_SAMPLES, N_STD, N_PROPOSALS, N_SHOWN, N_PICTURES, N_BETWEEN, *SSIM],
        "law": LAWS[name],
        "replicates": replicates,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=runs.at_least(1), default=8000)
    parser.add_argument("--refit-steps", type=runs.at_least(1), default=1500)
    parser.add_argument("--replicates", type=runs.at_least(2), default=10)
    args = runs.parse(parser, argv)
    steps = args.steps, args.refit_steps
    parts = {variant: 1 + len(JUDGED[kind]) for variant, (kind, _) in variants().items()}
    wanted = {
        name: (
            settings_of(name, steps, args.replicates),
            {f"{name}, {variant}": size for variant, size in parts.items()},
        )
        for name in LAWS
    }
    how = steps, args.replicates, args.seed
    source = {"digits_sha256": digest(digits())}
    source["digits_classifier_sha256"] = checkpoints.load("digits_classifier").card["sha256"]
    runs.make_checkpoints(
        "hybrids", wanted, lambda name, run: make(name, *how, run), args, **source
    )


if __name__ == "__main__":
    main()
