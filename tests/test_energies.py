"""The energies of a GAN, against what they define on a generator that can be inverted."""

import math

import pytest
import torch
from torch import nn

from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.energies import (
    NegativeEnergy,
    ReconstructionError,
    dot_energy,
    flow_energy,
    latent_energy,
    pullback,
)
from gan_ebm_utils.networks import Autoencoder, Confined
from gan_ebm_utils.refine import ddls, dgflow, dot, drs, isir_gan, mh_gan
from gan_ebm_utils.samplers import langevin, mala, run_chain
from gan_ebm_utils.training import refit_discriminator


class Affine(nn.Module):
    """G(z) = a z + b, so that p_g = N(b, a^2)."""

    def forward(self, z):
        return 2 * z + 1


class Ratio(nn.Module):
    """log p - log p_g for p = N(0, 1) and p_g = N(1, 4), on the line."""

    def forward(self, x):
        return (-(x**2) / 2 + (x - 1) ** 2 / 8 + math.log(2))[..., 0]


GAN = Gan(Affine(), Ratio(), 1)


def rng(seed=0):
    return seeded(seed, "cpu")


def test_latents_of_the_exact_logit_give_the_data():
    start = randn(1, 20_000, 1, generator=rng())
    chain = run_chain(mala(latent_energy(GAN), 0.1), start, 60, rng(1), thin=60)
    x = GAN.generator(chain.positions[-1, 0])
    assert abs(x.mean()) <= 5 / math.sqrt(20_000)
    assert abs(x.square().mean() - 1) <= 5 * math.sqrt(2 / 20_000)
    before = GAN.generator(start[0])  # the control: p_g has mean 1 and variance 4
    assert abs(before.mean()) > 0.5 and before.square().mean() > 3


def test_the_energy_is_the_formula():
    z = randn(2, 5, 1, generator=rng())
    expected = z[..., 0] ** 2 / 2 - GAN.discriminator(GAN.generator(z))
    torch.testing.assert_close(latent_energy(GAN)(z), expected)


def test_a_critic_is_divided_by_its_temperature():
    z = randn(2, 5, 1, generator=rng())
    expected = z[..., 0] ** 2 / 2 - GAN.discriminator(GAN.generator(z)) / 3
    torch.testing.assert_close(latent_energy(GAN, 3.0)(z), expected)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        latent_energy(GAN, 0)


def test_an_energy_is_pulled_back_with_the_prior():
    z, start = randn(1, 20_000, 1, generator=rng()), randn(1, 20_000, 1, generator=rng(2))
    # p_g = N(1, 4) times e^{-3 x^2 / 8}, up to its constant: N(1/4, 1), or N(1/8, 1/4) in z.
    energy = pullback(lambda x: 3 * x[..., 0] ** 2 / 8, GAN)
    torch.testing.assert_close(energy(z), z[..., 0] ** 2 / 2 + 3 * (2 * z[..., 0] + 1) ** 2 / 8)
    x = 2 * run_chain(mala(energy, 0.1), start, 100, rng(1), thin=100).positions[-1, 0] + 1
    assert abs(x.mean() - 1 / 4) <= 5 / math.sqrt(20_000)
    assert abs(x.var() - 1) <= 5 * math.sqrt(2 / 20_000)


def test_an_energy_stands_in_the_place_of_a_discriminator():
    gan = Gan(Affine(), NegativeEnergy(Ratio()), 1)
    z = randn(2, 5, 1, generator=rng())
    assert torch.equal(gan.logit(z), -GAN.logit(z))
    assert [*gan.discriminator.parameters()] == [*Ratio().parameters()]


def test_the_error_of_a_reconstruction_is_a_mean_over_coordinates():
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    x = randn(2, 5, 1, 3, 4, generator=rng())
    errors = (x / 2).flatten(2)
    torch.testing.assert_close(ReconstructionError(Half())(x), errors.square().mean(dim=2))
    torch.testing.assert_close(ReconstructionError(Half(), 1)(x), errors.abs().mean(dim=2))
    for power in (0, 3, 0.5, "2"):
        with pytest.raises(ValueError, match=f"power must be 1 or 2, got {power!r}"):
            ReconstructionError(Half(), power)
    with pytest.raises(TypeError, match="the autoencoder must be an nn.Module, got function"):
        ReconstructionError(lambda x: x)
    with pytest.raises(ValueError, match=r"maps samples to samples; this one returned \(2, 5\)"):
        ReconstructionError(Ratio())(randn(2, 5, 1, generator=rng()))


def test_an_energy_is_no_logit():
    """Low for data: every sampler refuses it by name, and the adapter refuses what is no energy."""
    autoencoder = Autoencoder((1,), (4,), 2, replicates=2, generator=rng())
    energy = ReconstructionError(autoencoder)
    confined = Confined(nn.Flatten(), 1.0)
    for given, kind in ((energy, "ReconstructionError"), (confined, "Confined")):
        gan = Gan(Affine(), given, 1)
        for sampler in (drs, mh_gan, isir_gan, ddls, dgflow, dot):
            with pytest.raises(
                ValueError, match=rf"is an energy \({kind}\), low for data; give Neg"
            ):
                sampler(gan, 5, rng(), replicates=2)
        with pytest.raises(ValueError, match="low for data"):
            refit_discriminator(gan, given, lambda size, g: randn(*size, 1, generator=g), 1, rng(),
                                replicates=2)  # fmt: skip
    gan = Gan(Affine(), NegativeEnergy(energy), 1)
    assert mh_gan(gan, 5, rng(), replicates=2, n_steps=2).samples.shape == (2, 5, 1)
    with pytest.raises(ValueError, match=r"give NegativeEnergy\(ReconstructionError\(autoencoder"):
        NegativeEnergy(autoencoder)
    with pytest.raises(ValueError, match="negated already"):
        NegativeEnergy(NegativeEnergy(energy))
    with pytest.raises(TypeError, match="the energy must be an nn.Module, got function"):
        NegativeEnergy(lambda x: x)


def test_transport_starts_where_it_is():
    start = randn(2, 5, 1, generator=rng())
    d = GAN.discriminator(GAN.generator(start))
    torch.testing.assert_close(dot_energy(GAN, start, 2.0)(start), -d / 2)
    moved = dot_energy(GAN, start, 2.0)(start + 3)
    torch.testing.assert_close(moved, 3 - GAN.discriminator(GAN.generator(start + 3)) / 2)
    with pytest.raises(ValueError, match="k must be positive"):
        dot_energy(GAN, start, 0.0)
    k = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"k must be \(R, 1\), start \(R, n, ...\); got \(2,\)"):
        dot_energy(GAN, start[:, :2], k)  # of two points in two replicates it would divide each
    torch.testing.assert_close(dot_energy(GAN, start, k[:, None])(start), -d / k[:, None])
    torch.testing.assert_close(dot_energy(GAN, start, k[:1])(start), -d)


@pytest.mark.parametrize(
    ("divergence", "factor"),
    [("KL", lambda d: torch.ones_like(d)), ("log D", lambda d: 1 / (1 + d.exp())),
     ("JS", torch.sigmoid)],
)  # fmt: skip
def test_a_flow_climbs_the_logit_with_its_own_speed(divergence, factor):
    z = randn(2, 5, 1, generator=rng()).requires_grad_()
    d = GAN.discriminator(GAN.generator(z))
    (slope,) = torch.autograd.grad(d.sum(), z, retain_graph=True)
    (grad,) = torch.autograd.grad(flow_energy(GAN, divergence)(z).sum(), z)
    torch.testing.assert_close(grad, -factor(d.detach())[..., None] * slope)


def test_an_unknown_divergence():
    with pytest.raises(ValueError, match="one of .*KL.*got 'TV'"):
        flow_energy(GAN, "TV")


@pytest.mark.parametrize("event", [(3,), (1, 8, 8), (2, 4, 1)])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_the_way_of_a_sample_is_over_all_its_axes(event, n):
    class Sum(nn.Module):
        def forward(self, x):
            return x.flatten(2).sum(dim=2)

    gan = Gan(nn.Identity(), Sum(), math.prod(event))
    x, y = randn(2, n, *event, generator=rng()), randn(2, n, *event, generator=rng(1))
    way = torch.stack(
        [
            (a - b).square().sum().sqrt()
            for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)
        ]
    )
    expected = way.reshape(2, n) - Sum()(y) / 3
    torch.testing.assert_close(dot_energy(gan, x, 3.0)(y), expected)


def test_chains_find_the_networks_of_an_energy():
    modes = []
    gan = Gan(nn.Dropout(), nn.Sequential(nn.Dropout(), Ratio()), 1)
    for network in gan[:2]:
        network.register_forward_hook(lambda module, *_: modes.append(module.training))
    z = randn(2, 5, 1, generator=rng())
    for energy, exact in (
        (latent_energy(gan), lambda d: z[..., 0] ** 2 / 2 - d),
        (latent_energy(gan, 2.0), lambda d: z[..., 0] ** 2 / 2 - d / 2),
        (dot_energy(gan, z, 2.0), lambda d: -d / 2),
        (flow_energy(gan), lambda d: -d),
    ):
        # The chain's first energies are those of its start, which a step of 1e-12 hardly leaves.
        found = run_chain(langevin(energy, 1e-12), z, 1, rng()).energies[0]
        torch.testing.assert_close(found, exact(Ratio()(z)), rtol=0, atol=1e-4)
        assert gan.generator.training and gan.discriminator.training
    assert modes and not any(modes)
