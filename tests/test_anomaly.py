"""Anomalies among the digits of MNIST: the split, the scores, and what the recipe compares."""

import math

import pytest
import torch

from gan_ebm_utils.base import seeded
from gan_ebm_utils.datasets import Images
from gan_ebm_utils.recipes import mnist_meg_anomaly
from gan_ebm_utils.recipes.mnist_meg_anomaly import Split, auprc, baselines, energies, split_of

GIVEN = {
    "rule": mnist_meg_anomaly.RULE._asdict(),
    "sizes": {**mnist_meg_anomaly.SIZES, "width_g": 4, "width_d": 2, "width_t": 2},
    "steps": 4,
    "n_points": 2,
    "baselines": {"components": 9, "neighbour": 2, "mixture": 9, "n_fit": 576},
}


def rng(seed=0):
    return seeded(seed, "cpu")


def plane_of(labels):
    """Images that are bright in the row of their label, and noise elsewhere."""
    images = 0.1 * torch.randn(len(labels), 1, 28, 28, generator=rng(7))
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * int(label)] += 0.8
    return images.clamp(-1, 1)


@pytest.fixture
def images(monkeypatch):
    """600 and 200 images of ten classes in the place of MNIST; a pixel tells them apart."""
    parts = {}
    for split, n in (("train", 600), ("test", 200)):
        labels = torch.arange(n) % 10
        parts[split] = Images(plane_of(labels), labels)
        parts[split].images[:, 0, 27, 27] = torch.arange(n) / 1000 - int(split == "test")
    monkeypatch.setattr(mnist_meg_anomaly, "mnist", parts.__getitem__)
    return parts


def test_the_split_is_that_of_the_protocol(images):
    split = split_of(4, seed=1)
    assert len(split.normal) == 576 and len(split.test) == 144 + 80
    assert int(split.is_anomaly.sum()) == 80
    every = torch.cat([split.normal, split.test])[:, 0, 27, 27]
    assert len(every.unique()) == 800, "each image is in one part"
    bright = split.test[:, 0, 8].mean(dim=1) > 0.4
    assert torch.equal(bright, split.is_anomaly)
    assert not (split.normal[:, 0, 8].mean(dim=1) > 0.4).any()
    # The same seed gives the same split, another one another.
    assert torch.equal(split_of(4, seed=1).test, split.test)
    assert not torch.equal(split_of(4, seed=2).test, split.test)


def test_a_digit_that_is_none_is_refused(images):
    with pytest.raises(ValueError, match="digit must be 0 to 9, got 10"):
        split_of(10, seed=0)


def test_the_area_by_hand():
    is_anomaly = torch.tensor([True, False, True, False])
    split = Split(torch.zeros(0), torch.zeros(4), is_anomaly)
    # Ranks 1 and 3 are found: precisions 1 and 2/3, with anomalies of weight 0.2 1 and 0.4/1.4.
    found = auprc(split, torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert found == pytest.approx([(1 + 2 / 3) / 2, (1 + 0.4 / 1.4) / 2])
    found = auprc(split, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx([(1 / 2 + 2 / 4) / 2, (0.2 / 1.2 + 0.4 / 2.4) / 2])
    # A score that knows nothing has the prevalence.
    assert auprc(split, torch.zeros(4)) == pytest.approx([0.5, 0.4 / 2.4])


def test_the_game_is_that_of_the_docstring():
    assert (mnist_meg_anomaly.RULE.weight, mnist_meg_anomaly.RULE.d_steps) == (100, 1)
    assert mnist_meg_anomaly.RULE.is_energy and mnist_meg_anomaly.RULE.entropy == 1


def test_the_natural_prevalence_is_that_of_all_data(images):
    split = split_of(4, seed=1)
    assert auprc(split, torch.zeros(len(split.test))) == pytest.approx([80 / 224, 0.1])


def test_the_baselines_find_what_lies_apart(images):
    split = split_of(4, seed=1)
    found = baselines(split, 1, GIVEN)
    assert found["prevalence"].tolist() == pytest.approx([80 / 224, 0.1])
    near, mixture, ink = found["auprc"].tolist()
    assert near == mixture == pytest.approx([1, 1])
    # A control: the ink of all is alike.
    assert ink == pytest.approx([80 / 224, 0.1], abs=0.05)


def test_an_energy_is_scored_as_it_is(images):
    split, seed = split_of(4, seed=1), 3
    part = mnist_meg_anomaly.train(split, seed, GIVEN)
    again = mnist_meg_anomaly.train(split, seed, GIVEN)
    assert torch.equal(part["course"], again["course"])
    assert part["course"][:, 0].tolist() == [2, 4] and part["course"].isfinite().all()
    # The last row by hand, and the mean of both.
    data = mnist_meg_anomaly.minibatches(split.normal)
    sizes = GIVEN["sizes"]
    game = mnist_meg_anomaly.Game(mnist_meg_anomaly.RULE, sizes, data, GIVEN["steps"], seed, 1)
    mnist_meg_anomaly.repeat(game, 2)
    before = energies(game, split.test)[0]
    mnist_meg_anomaly.repeat(game, 2)
    x = split.test[None].clone().requires_grad_()
    energy = game.gan.discriminator.energy(x)
    (grad,) = torch.autograd.grad(energy.sum(), x)
    slope = grad[0].square().sum(dim=(1, 2, 3)).sqrt()
    found = energies(game, split.test)
    torch.testing.assert_close(found[0], energy[0].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], slope, atol=1e-5, rtol=1e-4)
    row = dict(zip(mnist_meg_anomaly.COURSE, part["course"][-1].tolist(), strict=True))
    assert [row["energy"], row["energy_natural"]] == pytest.approx(auprc(split, found[0]), abs=1e-6)
    assert [row["slope"], row["slope_natural"]] == pytest.approx(auprc(split, found[1]), abs=1e-6)
    both = auprc(split, before + found[0])
    assert part["mean_energy"].tolist() == pytest.approx(both, abs=1e-6)
    assert row["energy"] != pytest.approx(auprc(split, -found[0])[0], abs=1e-3), "a control"
    ranks = [y.argsort().argsort().double() for y in (found[0], split.test.mean(dim=(1, 2, 3)))]
    assert row["ink_rank"] == pytest.approx(float(torch.stack(ranks).corrcoef()[0, 1]), abs=1e-3)


def test_an_energy_that_is_lost_is_told(images, monkeypatch):
    monkeypatch.setattr(
        mnist_meg_anomaly, "energies", lambda game, x: 2 * (torch.full((len(x),), math.inf),)
    )
    with pytest.raises(RuntimeError, match="not finite after 2 steps; lower the learning_rate"):
        mnist_meg_anomaly.train(split_of(4, seed=1), 0, GIVEN)
