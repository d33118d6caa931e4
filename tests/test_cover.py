"""The cover is the course's own figure: its file says how it was made, and the recipe runs."""

import json
import math
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from gan_ebm_utils.recipes import cover

ROOT = Path(__file__).parents[1]


def test_the_cover_says_how_it_was_made():
    facts = json.loads(Image.open(ROOT / "book" / "_static" / "cover.png").text["Description"])
    assert facts["recipe"] == "cover"
    assert facts["seed"] == 0
    assert facts["settings"]["steps"] == 4000
    assert facts["generator"]["recovered"] == 25


def test_log_kernel_density_is_the_log_of_a_sum_of_gaussians():
    x, centres = torch.tensor([[0.0, 0.01]]), torch.tensor([[0.0, 0.0], [0.02, 0.01]])
    kernels = [math.exp(-(a**2) / (2 * cover.BLUR**2)) for a in (0.01, 0.02)]
    assert math.isclose(cover.log_kernel_density(x, centres).exp(), sum(kernels), rel_tol=1e-5)


def test_a_small_run_writes_the_picture_and_nothing_else(tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.setattr(cover, "N_KERNELS", 100)
    cover.main(["--out", str(tmp_path / "cover.png"), "--steps", "2", "--seed", "7"])
    assert [file.name for file in tmp_path.iterdir()] == ["cover.png"]
    assert json.loads(Image.open(tmp_path / "cover.png").text["Description"])["seed"] == 7
