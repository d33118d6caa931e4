"""Hybrids of VAE and GAN: what each minimises, and which network each gradient reaches."""

import math

import pytest
import torch
import torch.nn.functional as F

from gan_ebm_utils.base import rand, randn, seeded
from gan_ebm_utils.recipes import hybrids
from gan_ebm_utils.recipes.hybrids import JUDGED, LOSSES, Model

LAW = hybrids.Law(lambda size, rng: randn(*size, 3, generator=rng), 3, 2, 1.0, None)
R, N = 2, 5


def rng(seed=0):
    return seeded(seed, "cpu")


def step(kind):
    """A model and what one step of it sees."""
    model = Model(kind, LAW, R, rng())
    return model, model.see(randn(R, N, 3, generator=rng(1)), rng(2))


def softplus(x):
    return F.softplus(x)


def expected(kind, model, seen):
    """The losses of generator and encoder, (R, N), written out."""
    x, z, y, c, r = seen[:5]
    d = model.judges["discriminator"] if "discriminator" in model.judges else None
    code = model.judges["code_discriminator"] if "code_discriminator" in model.judges else None
    s, mean, std = model.log_noise.exp(), seen.mean, seen.log_std.exp()
    error = ((x - r) ** 2).sum(dim=2)
    kl = (mean**2 + std**2 - 1 - 2 * std.log()).sum(dim=2) / 2
    if kind == "gan":
        return softplus(-d(y))
    if kind == "vae":
        return error / (2 * s**2) + 3 * s.log() + kl
    if kind == "aae":
        return error / (2 * s**2) + 3 * s.log() - code(c)
    if kind == "vae_gan":
        layers = d[:-2]
        of_features = ((layers(x) - layers(r)) ** 2).sum(dim=2) / 2
        return kl + 0.01 * of_features + softplus(-d(y)) + softplus(-d(r))
    if kind == "veegan":
        back = model.encoder(y)[..., :2]
        return ((z - back) ** 2).sum(dim=2) - model.judges["pair_discriminator"](
            torch.cat([y, z], dim=2)
        )
    return 10 * (x - r).abs().sum(dim=2) - code(c) - d(r) - d(y)


def test_digits_are_seen_once_and_refits_to_them_are_short(monkeypatch):
    steps, codes, refit = [], [], hybrids.refit

    def noted(gan, data, n_in, n_steps, *how):
        steps.append(n_steps)
        return refit(gan, data, n_in, n_steps, *how)

    monkeypatch.setattr(hybrids, "refit", noted)
    monkeypatch.setattr(hybrids, "N_SAMPLES", 20)
    monkeypatch.setattr(hybrids, "N_PROPOSALS", 2)
    distance = hybrids.metrics.energy_distance
    monkeypatch.setattr(
        hybrids.metrics, "energy_distance", lambda c, z: codes.append(c) or distance(c, z)
    )
    for name, n_steps, n_codes in (
        ("digits_hybrids", [2, 2], len(hybrids.pixels(True))),
        ("ring_hybrids", [7, 7], 20),
    ):
        law = hybrids.law_of(name)
        model = Model("aae", law, R, rng()).eval().requires_grad_(False)
        found = hybrids.score(model, law, 7, R, 0)
        assert steps == n_steps and codes[0].shape[1] == n_codes
        assert ("refit_loss" in found) == (name == "digits_hybrids")
        steps.clear()
        codes.clear()


def test_the_loss_of_a_refit_is_that_of_digits_it_has_not_seen(monkeypatch):
    law, held = hybrids.law_of("digits_hybrids"), hybrids.pixels(True)
    model = Model("gan", law, R, rng()).eval().requires_grad_(False)

    class Knows(torch.nn.Module):
        def forward(self, x):  # 3 for what is held out, -3 for all else
            known = (x[:, :, None] == held).all(dim=3).any(dim=2)
            return 6.0 * known - 3

    monkeypatch.setattr(hybrids, "refit", lambda gan, *how: gan._replace(discriminator=Knows()))
    monkeypatch.setattr(hybrids, "N_SAMPLES", 20)
    monkeypatch.setattr(hybrids, "N_PROPOSALS", 2)
    _, losses = hybrids.draws_of(model, law, 7, R, 0)
    assert losses["refit_loss"].tolist() == pytest.approx([2 * math.log1p(math.exp(-3))] * R)


def gradients(value, weights):
    found = torch.autograd.grad(value.sum(), [*weights], allow_unused=True, retain_graph=True)
    return [torch.zeros(()) if grad is None else grad for grad in found]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_is_the_one_that_is_written(kind):
    model, seen = step(kind)
    found, wanted = LOSSES[kind](model, seen), expected(kind, model, seen)
    torch.testing.assert_close(found, wanted)
    # The same gradient for the generator, but in VAE/GAN for nothing else.
    weights = [*model.generator.parameters()]
    for one, other in zip(gradients(found, weights), gradients(wanted, weights), strict=True):
        torch.testing.assert_close(one, other)


def error_in_features(model, seen):
    layers = model.judges["discriminator"][:-2]
    return ((layers(seen.x) - layers(seen.r)) ** 2).sum(dim=2) / 2


def encoder_gradient(kind, value):
    model, seen = step(kind)
    return torch.cat(
        [g.flatten() for g in gradients(value(model, seen), model.encoder.parameters())]
    )


def test_the_game_does_not_reach_the_encoder():
    """Of VAE/GAN it sees KL and error in features, of alpha-GAN error and code ratio."""

    def of_vae_gan(model, seen):
        return hybrids.prior_kl(seen) + error_in_features(model, seen)

    def of_alpha_gan(model, seen):
        error = 10 * (seen.x - seen.r).abs().sum(dim=2)
        return error - model.judges["code_discriminator"](seen.c)

    for kind, own in (("vae_gan", of_vae_gan), ("alpha_gan", of_alpha_gan)):
        whole = encoder_gradient(kind, LOSSES[kind])
        torch.testing.assert_close(whole, encoder_gradient(kind, own))
        through = encoder_gradient(kind, lambda m, s: m.judges["discriminator"](s.r))
        assert through.abs().max() > 1e-4, "a control: it could be reached"


def test_the_reconstructor_of_veegan_learns_latents_only():
    def own(model, seen):
        return ((seen.z - model.encoder(seen.y)[..., :2]) ** 2).sum(dim=2)

    torch.testing.assert_close(
        encoder_gradient("veegan", LOSSES["veegan"]), encoder_gradient("veegan", own)
    )
    seen = step("veegan")[1]
    assert torch.equal(seen.c, seen.mean), "it is a function, without noise"


@pytest.mark.parametrize("kind", [kind for kind in JUDGED if JUDGED[kind]])
def test_discriminators_tell_what_the_table_says(kind):
    model, seen = step(kind)
    named = {"x": seen.x, "z": seen.z, "y": seen.y, "c": seen.c, "r": seen.r}
    named |= {"xc": torch.cat([seen.x, seen.c], 2), "yz": torch.cat([seen.y, seen.z], 2)}
    total = 0
    for name, (real, fakes) in JUDGED[kind].items():
        d = model.judges[name]
        total = total + softplus(-d(named[real])).mean(dim=1)
        total = total + sum(softplus(d(named[fake])).mean(dim=1) for fake in fakes) / len(fakes)
    torch.testing.assert_close(model.judge(seen, 0.0), total)
    others = gradients(model.judge(seen, 0.0), model.players())
    assert all(not grad.any() for grad in others), "only discriminators learn from it"
    assert (model.judge(seen, 0.5) > model.judge(seen, 0.0)).all(), "R1"


def test_the_draws_of_a_decoder_have_its_noise():
    noisy, plain = (hybrids.gan_of(Model(kind, LAW, R, rng()), LAW) for kind in ("vae", "gan"))
    assert noisy.latent_dim == 2 + 3 and plain.latent_dim == 2
    model = Model("vae", LAW, R, rng())
    with torch.no_grad():
        model.log_noise.copy_(torch.tensor([[0.1], [2.0]]).log())  # each replicate has its own
        z = randn(R, 500, 5, generator=rng(1))
        rest = hybrids.gan_of(model, LAW).generator(z) - model.generator(z[..., :2])
    torch.testing.assert_close(rest[0], 0.1 * z[0, :, 2:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rest[1], 2.0 * z[1, :, 2:], atol=1e-5, rtol=1e-4)


def test_only_a_vae_learns_its_noise():
    for kind in LOSSES:
        model, seen = step(kind)
        learned = any(weight is model.log_noise for weight in model.players())
        assert learned == (kind == "vae")
    model, seen = step("vae")
    (grad,) = torch.autograd.grad(model.play(seen)[0], model.log_noise)
    assert grad[0] != 0 and grad[1] == 0, "replicates are apart"


def test_diversity_is_that_of_pairs():
    x = 2 * rand(R, 400, 64, generator=rng()) - 1
    same = x[:, :1].expand(-1, 400, -1)
    assert hybrids.diversity(same).abs().max() < 1e-5
    noise, weak = hybrids.diversity(x), hybrids.diversity(same + 0.1 * x)
    assert (noise > 0.9).all() and (weak < noise).all()
    # By hand, of two images.
    a, b = (x[0, :2].double() + 1) / 2
    c1, c2 = 1e-4, 9e-4
    light = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    both = ((a - a.mean()) * (b - b.mean())).sum() / 63
    form = (2 * both + c2) / (a.var() + b.var() + c2)
    found = hybrids.diversity(x[:1, :2].double())
    assert float(found) == pytest.approx(1 - float(light * form), abs=1e-6)


def test_models_see_other_digits_than_those_they_are_scored_with():
    held, seen = hybrids.pixels(True), hybrids.pixels(False)
    assert len(held) + len(seen) == 1797 and len(held) == math.ceil(1797 / 4)
    assert not (held[:50, None] == seen[None]).all(dim=2).any()


def test_ways_lead_from_one_digit_to_another():
    law = hybrids.law_of("digits_hybrids")
    model = Model("aae", law, R, rng()).eval()
    with torch.no_grad():
        found = hybrids.pictures(model, R)
    n, k = hybrids.N_PICTURES, hybrids.N_BETWEEN
    ways, ends = found["ways"].reshape(1, n // 2, k, 64), found["reconstructed"]
    assert torch.equal(ways[:, :, 0], ends[:, ::2]) and torch.equal(ways[:, :, -1], ends[:, 1::2])
