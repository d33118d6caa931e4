"""Refined samples of Stacked MNIST: the refit in features, and what is drawn and counted."""

import math

import pytest
import torch
from torch import nn

from gan_ebm_utils import losses
from gan_ebm_utils.base import Gan, seeded
from gan_ebm_utils.checkpoints import Checkpoint
from gan_ebm_utils.datasets import Images
from gan_ebm_utils.networks import FeatureDiscriminator, StackedLinear, mlp, stack_generator
from gan_ebm_utils.recipes import stacked_refined


def rng(seed=0):
    return seeded(seed, "cpu")


class Levels(nn.Module):
    """A generator of stacks whose three channels are grey, brighter for a larger latent."""

    def forward(self, z):
        return z[..., None, None].tanh().expand(*z.shape, 28, 28).contiguous()


class Reads(nn.Module):
    """A classifier that tells ten levels of grey apart."""

    def forward(self, x):
        return -((x[:, 0, 0, 0, None] * 5 + 4.5 - torch.arange(10.0)) ** 2)


@pytest.fixture
def small(monkeypatch):
    """Few and tiny digits, and few steps."""
    digits = torch.rand(90, 1, 1, 1, generator=rng(1)).expand(-1, 1, 28, 28) - 1
    images = Images(digits.contiguous(), torch.zeros(90, dtype=torch.long))
    monkeypatch.setattr(stacked_refined, "mnist", lambda split: images)
    sizes = {"N_REFIT": 50, "N_STACKS": 600, "N_HELD_OUT": 200, "PART": 100, "N_SAMPLES": 300}
    for name, value in {**sizes, "N_CHOICE": 100, "HIDDEN": (16,)}.items():
        monkeypatch.setattr(stacked_refined, name, value)
    for name, value in {"n_steps": 150, "batch_size": 64, "learning_rate": 3e-3}.items():
        monkeypatch.setitem(stacked_refined.REFIT, name, value)
    return images


def features():
    return FeatureDiscriminator((16,), generator=rng(5)).features.state_dict()


@pytest.mark.filterwarnings("ignore:in 1 of 1 replicates")  # of draws that are the data
def test_the_refit_learns_what_tells_stacks_from_draws(small):
    gan = Gan(Levels(), None, 3)
    fit = stacked_refined.refit(gan, features(), seed=0)
    assert fit["held_out_loss"] < 2 * math.log(2) - 0.05
    judge = stacked_refined.judge_of(features(), fit["weights"], 0)
    with torch.no_grad():
        real = judge(small.images[50 + torch.randint(40, (300, 3), generator=rng(2)), 0][None])
        fake = judge(gan.generator(gan.prior((1, 300), rng(3))))
    assert float(losses.gan_d_loss(real, fake)) < 2 * math.log(2) - 0.05
    # Other digits calibrate it and have its loss: here they are more like draws.
    small.images[50:] = 2 * small.images[50:] + 1
    unlike = stacked_refined.refit(gan, features(), seed=0)
    inner = [key for key in fit["weights"] if not key.startswith("2.")]
    assert all(torch.equal(unlike["weights"][key], fit["weights"][key]) for key in inner)
    assert not torch.equal(unlike["weights"]["2.weight"], fit["weights"]["2.weight"])
    assert unlike["held_out_loss"] > fit["held_out_loss"] + 0.1
    # A control: draws that are the data cannot be told from them.
    small.images[50:] = small.images[:40]
    same = Gan(Same(small.images), None, 3)
    alike = stacked_refined.refit(same, features(), seed=0)["held_out_loss"]
    assert alike > 2 * math.log(2) - 0.02


def test_a_head_that_knows_its_samples_by_heart_is_calibrated():
    """Twice the log ratio of N(1, 1) and N(0, 1) plus 3, and then the ratio x - 1/2 itself."""
    head = mlp(1, (8,), generator=rng())
    x = torch.randn(2, 4000, 1, generator=rng(1))
    pair = x[0] + 1, x[1]
    head.load_state_dict({key: torch.zeros_like(v) for key, v in head.state_dict().items()})
    first, last = (layer for layer in head if isinstance(layer, StackedLinear))
    with torch.no_grad():  # SiLU(a) - SiLU(-a) = a
        first.weight[0, 0, :2] = torch.tensor([1.0, -1.0])
        last.weight[0, :2, 0] = torch.tensor([2.0, -2.0])
        last.bias += 2.0
        known = torch.linspace(-2, 3, 9)[None, :, None]
        torch.testing.assert_close(head(known), 2 * known[..., 0] + 2)
    before = losses.gan_d_loss(*(head(each[None]) for each in pair))
    stacked_refined.calibrated(head, *pair)
    torch.testing.assert_close(head(known), known[..., 0] - 0.5, atol=0.15, rtol=0)
    assert losses.gan_d_loss(*(head(each[None]) for each in pair)) < before - 0.1
    assert all(weight.requires_grad for weight in head.parameters())


class Same(nn.Module):
    """A generator that picks digits of the data by its latents."""

    def __init__(self, images):
        super().__init__()
        self.images = images[:50, 0]

    def forward(self, z):
        rows = (torch.special.ndtr(z.float()) * 50).long().clamp(0, 49)
        return self.images[rows]


def test_features_are_in_half_the_bits_and_logits_are_not(monkeypatch):
    able = {"amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    judge = stacked_refined.judge_of(features(), None, 0)
    stacks = torch.rand(1, 7, 3, 28, 28, generator=rng(1)) * 2 - 1
    with torch.no_grad():
        seen, exact = judge.seen(stacks), judge.features.network(stacks[0, :, :1])
        logits = judge(stacks)
    assert seen.dtype == logits.dtype == torch.float32
    assert torch.equal(seen, seen.bfloat16().float())
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(seen[0, :, :64], exact, atol=0.1, rtol=0.1)


def judged(monkeypatch):
    """The two judges, and the FIDs that are asked for: judge, split, and the first grey level."""
    asked, network = [], Checkpoint({"classifier": Reads().eval()}, {}, {})
    judges = {stacked_refined.COUNTING: network, stacked_refined.SECOND: network._replace(card={1})}

    def fid_of(stacks, judge, split="test"):
        asked.append((judge.card, split, float(stacks[0].flatten()[0])))
        return float(len(stacks))

    monkeypatch.setattr(stacked_refined, "fid_of", fid_of)
    return judges, asked


def test_samples_are_counted_and_paid_for(small, monkeypatch):
    judges, asked = judged(monkeypatch)
    generator = stack_generator(4, 5, generator=rng()).eval()
    judge = FeatureDiscriminator((16,), channels=3, generator=rng(1))
    with torch.no_grad():
        judge.head[-2].bias -= 3  # some logits are negative, as those of a fit are
    gan = Gan(generator, judge.requires_grad_(False), 5)
    found = {
        name: stacked_refined.score(gan, {"sampler": name, "settings": how}, judges, 3)
        for name, how in (("none", {}), ("mh", {"n_steps": 4}), ("ddls", {"n_steps": 2}))
    }
    assert {judge == {1} for judge, _, _ in asked} == {True}, "the second classifier scores"
    splits = [split for _, split, _ in asked]
    assert splits == ["test"] * 2 + ["train"] * len(stacked_refined.STEP_SIZES) + ["test"]
    trials = {first for _, split, first in asked if split == "train"}
    assert asked[-1][2] not in trials, "what is scored is drawn anew"
    for made in found.values():
        assert made["classes"].shape == (300, 3) and made["classes"].dtype == torch.uint8
        assert made["fid"] == 3, "three parts of a hundred"
    assert found["none"]["calls"] == [1, 0]
    # Each proposal is a call of both networks, and so are the start and the check of the pair, by
    # a hundred draws for each part; the sample is a further one.
    assert found["mh"]["calls"] == [2 * (4 + 1 + 1) + 1, 0]
    assert found["ddls"]["calls"] == [2 * (2 + 1 + 1) + 1, 2 * (2 + 1)]
    assert found["ddls"]["chosen"] in stacked_refined.STEP_SIZES
    assert found["mh"]["chosen"] is found["none"]["chosen"] is None
    again = stacked_refined.score(gan, {"sampler": "none", "settings": {}}, judges, 3)
    assert torch.equal(again["classes"], found["none"]["classes"])


def test_the_step_size_with_the_least_error_is_taken(small, monkeypatch):
    (judges, _), errors, sizes = judged(monkeypatch), iter([3.0, 1.0, 2.0, 9.0]), []

    def ddls(gan, n, rng, *, step_size, n_steps):
        sizes.append(step_size)
        return stacked_refined.drawn(gan, n, rng)

    monkeypatch.setattr(stacked_refined, "ddls", ddls)
    monkeypatch.setattr(stacked_refined, "fid_of", lambda *_: next(errors))
    use = {"sampler": "ddls", "settings": {"n_steps": 2}}
    made = stacked_refined.score(Gan(Levels(), None, 3), use, judges, 3)
    assert made["chosen"] == stacked_refined.STEP_SIZES[1]
    assert sizes == [*stacked_refined.STEP_SIZES, *[made["chosen"]] * 3]
    assert made["fid"] == 9


def test_without_the_pairs_the_recipe_says_what_is_missing(tmp_path, capsys, monkeypatch):
    def nothing(name, *_, **__):
        raise ValueError(f"unknown checkpoint {name!r}")

    monkeypatch.setattr(stacked_refined.checkpoints, "load", nothing)
    monkeypatch.setattr(stacked_refined.runs, "mnist_source", dict)
    with pytest.raises(SystemExit):
        stacked_refined.main(["--out", str(tmp_path), "--state", str(tmp_path)])
    assert "unknown checkpoint 'stacked_mnist_meg'" in capsys.readouterr().err
