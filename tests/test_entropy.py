"""Entropies from samples, against laws whose entropy is known."""

import math

import pytest
import torch

from gan_ebm_utils.base import rand, randn, seeded
from gan_ebm_utils.entropy import nearest_neighbour_entropy


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
