"""Networks written in the usual style: as a `Gan` of one replicate, and the usual mistakes."""

import copy
import math
import re
import warnings

import pytest
import torch
from torch import nn

from gan_ebm_utils.base import Gan, Single, check_gan, count_calls, randn, seeded
from gan_ebm_utils.datasets import minibatches
from gan_ebm_utils.losses import gan_d_loss, non_saturating_g_loss
from gan_ebm_utils.refine import ddls, dgflow, dot, drs, isir_gan, mh_gan
from gan_ebm_utils.training import refit_discriminator, train_gan

SAMPLERS = [drs, mh_gan, isir_gan, ddls, dgflow, dot]
LATENT = 16


def rng(seed=0):
    return seeded(seed, "cpu")


class G(nn.Module):
    """(n, z) to images 3 x 32 x 32 in the style of a DCGAN."""

    def __init__(self, latent=LATENT, width=4):
        super().__init__()
        self.first = nn.Linear(latent, width * 8 * 8)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.rest(self.first(z).view(z.size(0), -1, 8, 8))


class Dcgan(G):
    """(n, z, 1, 1) to images."""

    def __init__(self, latent=LATENT, width=4):
        super().__init__(latent, width)
        self.first = nn.ConvTranspose2d(latent, width, 8)

    def forward(self, z):
        return self.rest(self.first(z))


class D(nn.Module):
    """Images to logits (n, 1)."""

    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Conv2d(width, width, 4, 4), nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.last = nn.Linear(width * 16, 1)
        nn.init.constant_(self.last.bias, -2.0)  # or all logits may lie in [0, 1]

    def forward(self, x):
        return self.last(self.body(x).view(x.size(0), -1))


def planar(bias=-2.0):
    """The same for points of the plane."""
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    d = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    nn.init.constant_(d[2].bias, bias)
    return g, d


def images(n=40):
    return randn(n, 3, 32, 32, generator=rng(1)).tanh()


def entry_points(gan, latent=LATENT):
    """Every function that takes a GAN, called on a small one."""
    data = minibatches(images())
    few = {"n_steps": 2}
    yield lambda: drs(gan, 3, rng(), n_pilot=10, batch_size=10)
    yield from (lambda f=f: f(gan, 3, rng(), **few) for f in SAMPLERS[1:])
    yield lambda: refit_discriminator(gan, gan.discriminator, data, 1, rng(), batch_size=4)
    yield lambda: train_gan(gan, data, gan_d_loss, non_saturating_g_loss, 1, rng(), batch_size=4)


def every_one_says(gan, error, *parts):
    for call in entry_points(gan):
        with pytest.raises(error) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)


# --- what Single makes ---


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1, 1)])
def test_one_number_for_each_sample_is_a_logit(shape):
    class Judge(nn.Module):
        def forward(self, x):
            return x.flatten(1).sum(dim=1).reshape(shape)

    x = randn(1, 5, 3, 4, 4, generator=rng())
    torch.testing.assert_close(Single(Judge())(x), x.flatten(2).sum(dim=2))


def test_what_it_makes_is_what_the_network_makes():
    g, d = G().eval(), D().eval()
    z = randn(1, 7, LATENT, generator=rng())
    x = Single(g)(z)
    assert x.shape == (1, 7, 3, 32, 32) and torch.equal(x[0], g(z[0]))
    assert torch.equal(Single(d)(x), d(x[0]).T)


def test_samples_on_a_line_keep_their_axis():
    g = nn.Sequential(Single(nn.Linear(2, 1)), nn.Unflatten(1, (-1, 1)))
    gan = Gan(g, Single(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))), 2)
    gan.discriminator.network[2].bias.data -= 2
    assert mh_gan(gan, 6, rng(), n_steps=2).samples.shape == (1, 6, 1)
    # Alone the numbers of the generator would be logits.
    with pytest.raises(ValueError, match=re.escape("nn.Sequential(Single(G), nn.Unflatten(1, (-1")):
        mh_gan(gan._replace(generator=g[0]), 6, rng(), n_steps=2)


def test_it_is_one_replicate():
    with pytest.raises(ValueError, match=r"takes \(1, n, \.\.\.\), got \(2, 5, 3\)"):
        Single(nn.Linear(3, 2))(torch.zeros(2, 5, 3))
    gan = Gan(Single(G()), Single(D()), LATENT)
    with pytest.raises(ValueError, match=r"takes \(1, n, ...\).*leave out replicates"):
        mh_gan(gan, 5, rng(), replicates=2)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize("network", [nn.Flatten(0), Pair()])
def test_a_row_for_each_sample(network):
    with pytest.raises(ValueError, match=r"must map \(5, .*, a row for each sample"):
        Single(network)(torch.zeros(1, 5, 3))


def test_it_is_a_module_like_others(tmp_path):
    gan = Gan(Single(G()), Single(D()), LATENT)
    copied = copy.deepcopy(gan.generator)
    fresh = Single(G())
    torch.save(copied.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    z = randn(1, 4, LATENT, generator=rng())
    made = [network.eval()(z) for network in (gan.generator, copied, fresh)]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert Single(G().double()).to("meta").network.first.weight.device.type == "meta"
    with count_calls(gan.generator, gan.discriminator) as calls:
        gan.logit(z).sum().backward()
    assert calls() == (8, 8)


def test_every_function_takes_it():
    gan = Gan(Single(G()), Single(D()), LATENT)
    before = copy.deepcopy([network.state_dict() for network in gan[:2]])
    *samplers, refit, train = entry_points(gan)
    for call in samplers:
        refined = call()
        assert refined.samples.shape == (1, 3, 3, 32, 32) and refined.calls.forward > 0
    # In evaluation mode, and in training mode again afterwards.
    for state, network in zip(before, gan[:2], strict=True):
        assert all(module.training for module in network.modules())
        assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert not refit().discriminator.network.last.weight.equal(
        gan.discriminator.network.last.weight
    )
    train()
    assert not before[0]["network.first.weight"].equal(gan.generator.network.first.weight)


def test_chains_of_usual_networks_do_not_touch_one_another():
    """Batch norm in training mode would make a sample depend on the others of its batch."""
    gan = Gan(Single(G()), Single(D()), LATENT)
    z = randn(1, 6, LATENT, generator=rng())
    refined = mh_gan(gan, 6, rng(), n_steps=3)
    alone = [gan.generator.eval()(refined.latents[:, i : i + 1]) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone, dim=1), refined.samples)
    gan.generator.train()  # the control
    assert (gan.generator(z)[:, :2] - gan.generator(z[:, :2])).abs().max() > 1e-3


# --- mistakes, and the line that mends each ---


def test_without_single():
    every_one_says(Gan(G(), D(), LATENT), ValueError, "generator", "write Single(G)")
    every_one_says(Gan(Single(G()), D(), LATENT), ValueError, "discriminator", "write Single(D)")
    every_one_says(Gan(G(), Single(D()), LATENT), ValueError, "generator", "write Single(G)")
    every_one_says(Gan(Single(G()), Single(D()).network, LATENT), ValueError, "write Single(D)")


def test_without_single_in_the_plane():
    g, d = planar()
    for gan, line in (
        (Gan(g, d, 2), "write Single(G)"),
        (Gan(Single(g), d, 2), "write Single(D)"),  # which returns (1, n, 1)
        (Gan(g[:1].append(g[3]), d, 2), "write Single(D)"),  # a line of layers takes any axes
    ):
        with pytest.raises(ValueError, match=re.escape(line)):
            mh_gan(gan, 5, rng(), n_steps=2)


def test_latents_of_a_dcgan():
    line = "where latents have axes Single(nn.Sequential(nn.Unflatten(1, (z, 1, 1)), G))"
    every_one_says(Gan(Dcgan(), Single(D()), LATENT), ValueError, f"(1, 100, {LATENT})", line)
    every_one_says(Gan(Single(Dcgan()), Single(D()), LATENT), ValueError, line)
    mended = Single(nn.Sequential(nn.Unflatten(1, (LATENT, 1, 1)), Dcgan()))
    assert mh_gan(Gan(mended, Single(D()), LATENT), 3, rng(), n_steps=2).samples.shape[1] == 3


def test_a_map_of_logits_or_a_flat_input():
    patches = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))
    every_one_says(
        Gan(Single(G()), Single(patches), LATENT),
        ValueError, "for a map of logits Single(nn.Sequential(D, nn.AdaptiveAvgPool2d(1)))",
    )  # fmt: skip
    flat = nn.Sequential(nn.Linear(3 * 32 * 32, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
    every_one_says(
        Gan(Single(G()), Single(flat), LATENT),
        ValueError, "for flat samples Single(nn.Sequential(nn.Flatten(), D))",
    )  # fmt: skip
    many = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    every_one_says(Gan(Single(G()), Single(many), LATENT), ValueError, "one number for each sample")


def test_another_latent_size():
    gan = Gan(Single(G(LATENT)), Single(D()), 10)
    found, line = f"and {LATENT}x256)", "latent_dim in Gan(generator, discriminator, latent_dim)"
    every_one_says(gan, ValueError, "(1, 100, 10)", found, line)
    every_one_says(gan._replace(generator=G()), ValueError, "(1, 100, 10)", found, line)


def test_no_discriminator():
    gan = Gan(Single(G()), None, LATENT)
    line = "refit_discriminator(gan, Single(D), minibatches(data), n_steps, generator)"
    every_one_says(gan, TypeError, "discriminator is None", line)
    every_one_says(Gan(None, Single(D()), LATENT), TypeError, "generator is None")
    # And that line works.
    made = refit_discriminator(gan, Single(D()), minibatches(images()), 2, rng(), batch_size=8)
    assert mh_gan(made, 3, rng(), n_steps=2).samples.shape == (1, 3, 3, 32, 32)


def test_plain_functions():
    g, d, line = G(), D(), "Single(nn.Sequential(nn.Unflatten(1, (z, 1, 1)), G))"
    every_one_says(Gan(lambda z: g(z[0])[None], Single(d), LATENT), TypeError, "function", line)
    every_one_says(Gan(Single(g), lambda x: d(x[0]).T, LATENT), TypeError, "function", line)
    with pytest.raises(TypeError, match="must be an nn.Module"):
        Single(lambda z: g(z))
    with pytest.raises(TypeError, match="must be an nn.Module, got type"):
        Single(G)  # the class, not a network


def test_probabilities_for_logits():
    judge = nn.Sequential(D(), nn.Sigmoid())
    gan = Gan(Single(G()), Single(judge), LATENT)
    for call in list(entry_points(gan))[:-2]:
        with pytest.warns(
            UserWarning, match=r"give the logit log D - log\(1 - D\), and refit it"
        ) as found:
            call()
        assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in entry_points(Gan(Single(G()), Single(judge[0]), LATENT)):
            call()


@pytest.mark.parametrize("which", [0, 1])
def test_another_device(which):
    networks = [Single(G()), Single(D())]
    networks[which].to("meta")  # a device that every machine has
    gan = Gan(*networks, LATENT)
    with pytest.raises(ValueError) as caught:
        check_gan(gan, 1, rng())
    for part in ('seeded(0, "meta")', 'move both networks with .to("cpu")'):
        assert part in str(caught.value)


def test_a_tensor_for_a_sampler_of_data():
    gan = Gan(Single(G()), Single(D()), LATENT)
    for call in (
        lambda: refit_discriminator(gan, gan.discriminator, images(), 1, rng()),
        lambda: train_gan(gan, images(), gan_d_loss, non_saturating_g_loss, 1, rng()),
    ):
        with pytest.raises(TypeError, match=r"got a tensor; give datasets.minibatches\(data\)"):
            call()


def test_what_is_right_is_not_touched():
    """Looking draws nothing from the caller's generator, and latents have the weights' type."""
    g = rng()
    state = g.get_state()
    z, d = check_gan(Gan(Single(G().double()), Single(D().double()), LATENT), 1, g)
    assert torch.equal(g.get_state(), state)
    assert z.dtype == d.dtype == torch.float64 and d.shape == (1, 100)
    assert math.isfinite(float(d.sum()))
