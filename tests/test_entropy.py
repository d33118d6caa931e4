"""Entropies from samples, against laws whose entropy is known."""

import math

import pytest
import torch
from torch import nn

from gan_ebm_utils.base import rand, randn, seeded
from gan_ebm_utils.entropy import gaussian_bound, nearest_neighbour_entropy, scale_entropy
from gan_ebm_utils.networks import mlp


def rng(seed=0):
    return seeded(seed, "cpu")


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_normal_law(k, d):
    x = 3 * randn(20, 1000, d, generator=rng(10 * k + d), dtype=torch.float64) + 100
    truth = d / 2 * math.log(2 * math.pi * math.e * 9)
    values = nearest_neighbour_entropy(x, k)
    assert values.shape == (20,) and values.dtype == torch.float64
    # Its bias, of the density's curvature over a ball of k points, and five standard errors.
    assert abs(float(values.mean()) - truth) < 0.01 * k ** (2 / d) + 5 * values.std() / 20**0.5
    assert values.std() < 0.1


def test_a_uniform_law_and_a_change_of_units():
    x = rand(10, 2000, 2, generator=rng())
    values = nearest_neighbour_entropy(x)
    assert values.mean() == pytest.approx(0, abs=0.05)
    wide = nearest_neighbour_entropy(1000 * x.double())
    torch.testing.assert_close(wide, values + 2 * math.log(1000), atol=1e-3, rtol=0)
    assert torch.equal(nearest_neighbour_entropy(x[3:4]), values[3:4])  # each replicate on its own


def test_points_of_a_curve_have_none():
    """The control: with every doubling of n the estimate falls by log 2."""
    angle = 2 * math.pi * rand(10, 4000, generator=rng())
    x = torch.stack([angle.cos(), angle.sin()], dim=2)
    fall = nearest_neighbour_entropy(x[:, :2000]) - nearest_neighbour_entropy(x)
    assert fall.mean() == pytest.approx(math.log(2), abs=0.1)


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (torch.zeros(5, 2), 3, r"x must be \(R, n, d\); got \(5, 2\)"),
        (torch.zeros(1, 5, 2), 5, "k must be below the number of points n = 5, got 5"),
        (torch.zeros(1, 5, 2), 0, "k must be a whole number of at least 1"),
        (torch.zeros(1, 5, 2), 2, "5 of 5 points coincide with 2 others or more"),
        (torch.full((1, 5, 2), torch.nan), 2, "not finite"),
    ],
)
def test_bad_input(x, k, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbour_entropy(x, k)


def test_the_bound_is_tight_for_independent_gaussians_alone():
    scales = torch.tensor([0.5, 2.0])
    x = scales * randn(20, 4000, 2, generator=rng())
    truth = math.log(2 * math.pi * math.e)  # the scales cancel
    assert gaussian_bound(x).mean() == pytest.approx(truth, abs=0.02)
    # The control: rotated they are dependent, and the gap is the mutual information.
    rotated = x @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    correlation = (0.25 - 4) / (0.25 + 4)
    gap = -math.log(1 - correlation**2) / 2
    assert gaussian_bound(rotated).mean() == pytest.approx(truth + gap, abs=0.02)


def test_the_bound_of_a_point_and_its_gradient():
    assert gaussian_bound(torch.zeros(1, 5, 2))[0] == -math.inf
    x = randn(2, 50, 3, generator=rng()).requires_grad_()
    gaussian_bound(x).sum().backward()
    centred = x - x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(x.grad, (centred / centred.square().sum(dim=1, keepdim=True)).data)


def test_the_stand_in_is_the_sum_over_units():
    network = mlp(2, (3, 4), 2, 5, batch_norm=True, generator=rng())
    with torch.no_grad():
        for norm, scale in zip((network[1], network[4]), (2.0, -3.0), strict=True):
            norm.weight.fill_(scale)
    one = math.log(2 * math.pi * math.e) / 2
    expected = 3 * (one + math.log(2)) + 4 * (one + math.log(3))
    torch.testing.assert_close(scale_entropy(network, 5), torch.full((5,), expected))
    with torch.no_grad():
        network[1].weight[3:6] *= 10  # the second replicate
    change = scale_entropy(network, 5) - expected
    torch.testing.assert_close(change, torch.tensor([0, 3 * math.log(10), 0, 0, 0]))


def test_the_stand_in_takes_the_norms_of_images():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    assert float(scale_entropy(network).detach()) == pytest.approx(
        2 * math.log(2 * math.pi * math.e)
    )


def test_the_stand_in_needs_batch_normalisation():
    with pytest.raises(ValueError, match="no batch normalisation; give mlp"):
        scale_entropy(mlp(2, (3,), 2, generator=rng()))
    with pytest.raises(ValueError, match=r"x must be \(R, n, d\)"):
        gaussian_bound(torch.zeros(5, 2))
