"""The cover is the course's own figure: its file says how it was made, and the recipe runs."""

import json
import math
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from gan_ebm_utils import checkpoints
from gan_ebm_utils.base import default_device, randn, seeded
from gan_ebm_utils.recipes import cover

ROOT = Path(__file__).parents[1]


def test_the_cover_says_how_it_was_made():
    facts = json.loads(Image.open(ROOT / "book" / "_static" / "cover.png").text["Description"])
    assert facts["recipe"] == "cover"
    assert facts["seed"] == 0
    assert facts["settings"]["steps"] == 4000
    assert facts["checkpoint_sha256"] == checkpoints.load("gaussians25_r1").card["sha256"]
    assert facts["generator"]["recovered"] == 25
    # A GAN worth correcting, and an energy that corrects it: within a tenth of a nat of -log p.
    assert 0.6 < facts["generator"]["high_quality"] < 0.95
    assert abs(facts["energy_minus_truth"]["mean"]) < 0.05
    assert facts["energy_minus_truth"]["std"] < 0.1


def test_log_kernel_density_integrates_to_one():
    centres = torch.tensor([[0.0, 0.0], [0.02, 0.01]])
    axis = torch.linspace(-0.5, 0.5, 201)
    density = cover.log_kernel_density(torch.cartesian_prod(axis, axis), centres).exp()
    assert math.isclose(density.sum() * (axis[1] - axis[0]) ** 2, 1, rel_tol=1e-3)
    kernels = [math.exp(-(a**2) / (2 * cover.BLUR**2)) for a in (0.01, 0.02)]
    x = torch.tensor([[0.0, 0.01]])
    expected = math.log(sum(kernels) / (2 * 2 * math.pi * cover.BLUR**2))
    assert math.isclose(cover.log_kernel_density(x, centres), expected, rel_tol=1e-4)


def test_replicate_0_is_the_first_of_the_checkpoint():
    checkpoint = checkpoints.load("gaussians25_r1")
    z = randn(1, 5, 2, generator=seeded(0, "cpu"))
    alone = cover.replicate_0(checkpoint).generator(z.to(default_device()))[0].cpu()
    together = checkpoint.networks["generator"](z.expand(10, 5, 2))
    assert torch.allclose(alone, together[0], atol=1e-5)
    assert not torch.allclose(alone, together[1], atol=1e-2)


def test_a_small_run_writes_the_picture_and_nothing_else(tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.setattr(cover, "N_KERNELS", 100)
    state = tmp_path / "state"
    out = tmp_path / "cover.png"
    cover.main(["--out", str(out), "--steps", "2", "--seed", "7", "--state", str(state)])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cover.png", "state"]
    assert not list(state.iterdir())
    assert json.loads(Image.open(tmp_path / "cover.png").text["Description"])["seed"] == 7
