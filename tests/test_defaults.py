"""What the package computes does not hang on the default type and device that a user has set."""

import math

import matplotlib
import pytest
import torch
from torch import nn

matplotlib.use("agg")
import matplotlib.pyplot as plt

from gan_ebm_utils import base, claims, datasets, energies, losses, metrics, plotting
from gan_ebm_utils.base import Gan

BOX = (-4.0, 4.0, -4.0, 4.0)
LAWS = {
    "gaussian": lambda: datasets.gaussian([0.5, -0.5]),
    "gaussian_grid": datasets.gaussian_grid,
    "gaussian_ring": datasets.gaussian_ring,
    "moons": datasets.moons,
    "swiss_roll": datasets.swiss_roll,
    "checkerboard": datasets.checkerboard,
}


def rng(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), device="cpu", dtype=torch.float32)


def of_law(name):
    law = LAWS[name]()
    x = law.sample((2, 50), rng())
    return (
        x,
        law.means,
        None if law.log_prob is None else (law.log_prob(x), law.log_prob(x.double())),
    )


def of_exact_gan():
    exact = datasets.exact_gan()
    x = exact.generated.sample((2, 50), rng())
    return x, exact.gan.discriminator(x), exact.log_bound, exact.data.means


def of_panel():
    figure, ax = plt.subplots()
    mesh = plotting.heatmap(ax, lambda x: x.square().sum(dim=1), BOX, "", n=8)
    plotting.scatter(ax, draw(5, 2), BOX, "r", "")
    plotting.image_grid(ax, draw(4, 1, 3, 3), 2, "")
    plt.close(figure)
    return torch.from_numpy(mesh.get_array().data)


def of_energies():
    gan, z = Gan(lambda z: 2 * z, lambda x: x.sum(dim=-1), 3), draw(2, 5, 3)
    made = (energies.latent_energy(gan), energies.latent_energy(gan, 2.0))
    flows = (energies.flow_energy(gan, name) for name in ("KL", "log D", "JS"))
    return [f(z) for f in (*made, energies.dot_energy(gan, z + 1, 2.0), *flows)]


def of_losses():
    real, fake = draw(2, 9), draw(2, 9, seed=1)
    parts = [losses.gan_d_loss(real, fake), losses.non_saturating_g_loss(real, fake)]
    for f in (losses.kl, losses.reverse_kl, losses.js, losses.pearson):
        parts += [f.bound(real, fake), f.f(real.exp()), f.log_ratio(real)]
    x, y = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    square = lambda x: x.square().sum(dim=-1)  # noqa: E731
    rule = losses.Began(0.5)
    parts += [rule.d_loss(-real.abs(), -fake.abs()), rule.g_loss(-real.abs(), -fake.abs())]
    rule.callback(0, None)
    return [
        *parts,
        rule.k,
        losses.ebgan_d_loss(-real.abs(), -fake.abs(), 1.0),
        losses.jsd_information(real, fake),
        losses.relativistic_d_loss(real, fake),
        losses.pulling_away(x),
        losses.gradient_penalty(square, x, y, rng()).detach(),
        losses.r1_penalty(square, x).detach(),
    ]


def of_metrics():
    x, y, law = draw(2, 40, 2), draw(2, 40, 2, seed=1), datasets.gaussian([0.0, 0.0])
    network = nn.Sequential(nn.Linear(2, 1, device="cpu", dtype=torch.float32), nn.Flatten(1))
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(0.1)
    energy = lambda x: x.square().sum(dim=2) / 2  # noqa: E731
    chains = draw(1000, 4, 2)
    features = metrics.moments(x[0]), metrics.moments(y[0])
    return [
        metrics.emd(x, y),
        metrics.emd_floor(law.sample, 20, rng(), replicates=3),
        metrics.energy_distance(x, y),
        metrics.mode_report(x, law.means, 0.3),
        metrics.precision_coverage(x, y),
        metrics.calibration(x[..., 0], y[..., 0], n_bins=3),
        metrics.chi_square(draw(2, 500, 2), law, BOX, n_cells=4),
        metrics.class_scores(x),
        metrics.stacked_modes((x > 0).long(), n_classes=2),
        metrics.kl_floor(9, draw(5).softmax(dim=0)),
        metrics.log_partition(energy, BOX, replicates=2, n=50),
        metrics.log_partition(network, BOX, n=50),
        metrics.kl_to_truth(energy, law, BOX, n=100),
        metrics.rhat(chains),
        metrics.ess(chains),
        metrics.mean_interval(x[0, :, 0]),
        *features,
        metrics.frechet_distance(*features[0], *features[1]),
    ]


def of_base():
    numbers = base.randn(3, 2, generator=rng()), base.rand(3, 2, generator=rng())
    with base.count_calls(nn.Identity()) as calls:
        pass
    generator = base.seeded(3, "cpu")
    prior = Gan(lambda z: z, lambda x: x[..., 0], 2).prior((2, 3), rng())
    return *numbers, calls(), base.rand(2, generator=generator), prior


def of_images():
    images, labels = datasets.digits()
    claims.claim("it is so", images.max(), at_most=1)
    batch = datasets.minibatches(images)((2, 3), rng())
    return (
        images,
        labels,
        batch,
        datasets.stacked_digits(images)((2, 3), rng()),
        base.to_bytes(images),
        datasets.digest(datasets.Images(images, labels)),
    )


CASES = {
    **{name: (lambda name=name: of_law(name)) for name in LAWS},
    "exact_gan": of_exact_gan,
    "panels": of_panel,
    "energies": of_energies,
    "losses": of_losses,
    "metrics": of_metrics,
    "base": of_base,
    "images": of_images,
}


def leaves(found):
    if isinstance(found, tuple | list):
        return [leaf for part in found for leaf in leaves(part)]
    return [found]


@pytest.fixture(params=["float64", "float16", "meta"])
def defaults(request):
    """Set the default type, or a device on which there are no numbers."""
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=CASES)
def plain(request):
    """A case with what it returns before anything is set."""
    return CASES[request.param], CASES[request.param]()


def test_what_a_user_has_set_changes_nothing(plain, defaults):
    make, expected = plain
    found = leaves(make())
    assert len(found) == len(leaves(expected))
    for a, b in zip(found, leaves(expected), strict=True):
        if isinstance(b, torch.Tensor):
            assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        else:
            assert a == b or (math.isnan(a) and math.isnan(b))


def test_the_defaults_are_set(defaults):
    """The control: what states neither type nor device differs."""
    x = torch.zeros(1)
    assert x.dtype != torch.float32 or x.device.type == "meta"
