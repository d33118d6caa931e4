"""The pictures of the first page are the course's own: their files say how they were made."""

import importlib.util
import json
import math
import re
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from gan_ebm_utils import checkpoints
from gan_ebm_utils.base import default_device, randn, seeded
from gan_ebm_utils.recipes import cover

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
INDEX = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
OPENING = ("drawn", "own", "refitted")


def facts_of(name):
    return json.loads(Image.open(STATIC / f"{name}.png").text["Description"])


def told(page):
    """Percentages under the three pictures, and in the sentence above them."""
    below = re.findall(r"opening_\w+\.png\n(?:.*\n)*?([\d.]+) % are good\.", page)
    bad, own, refitted = re.search(
        r"([\d.]+) % of its samples are bad[^%]*?([\d.]+) % are good, or ([\d.]+) %", page
    ).groups()
    return [float(number) for number in below], [100 - float(bad), float(own), float(refitted)]


def test_the_first_page_says_what_its_pictures_show():
    facts = [facts_of(f"opening_{name}") for name in OPENING]
    assert len({fact["replicate"] for fact in facts}) == 1
    below, above = told(INDEX)
    assert below == [fact["good_percent"] for fact in facts]
    means = [fact["good_percent_of_ten"][0] for fact in facts]
    assert [round(mean) for mean in means[:2]] == above[:2] and means[2] == above[2]
    assert told(INDEX.replace("84.35 %", "84.36 %"))[0] != below  # the control


def test_what_is_kept_is_as_good_as_chapter_06_claims():
    """The bounds of the chapter's claims, on the means over ten GANs."""
    drawn, own, refitted = (facts_of(f"opening_{name}")["good_percent_of_ten"] for name in OPENING)
    assert 70 < drawn[0] < 90
    assert own[0] - drawn[0] < 5
    assert refitted[0] > 99


def test_the_pictures_are_those_of_their_tool(tmp_path, monkeypatch):
    """A small run of the tool writes the three, good samples in one colour and bad in another."""
    path = ROOT / "book" / "_tools" / "make_opening.py"
    spec = importlib.util.spec_from_file_location("make_opening", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    monkeypatch.setattr(tool, "N", 200)
    tool.main()
    assert Image.open(tmp_path / "energy.png") == Image.open(STATIC / "energy.png")
    (tmp_path / "energy.png").unlink()
    assert sorted(file.stem for file in tmp_path.iterdir()) == [f"opening_{n}" for n in OPENING]
    pictures = [Image.open(file).convert("RGB") for file in sorted(tmp_path.iterdir())]
    colours = [{colour for _, colour in picture.getcolors(2**16)} for picture in pictures]
    dark, good = (26, 26, 26), (222, 143, 5)
    assert all(good in seen for seen in colours)
    assert dark in colours[0] and dark in colours[1]


def test_the_cover_says_how_it_was_made():
    facts = facts_of("cover")
    assert facts["recipe"] == "cover"
    assert facts["seed"] == 0
    assert facts["settings"]["steps"] == 4000
    assert facts["checkpoint_sha256"] == checkpoints.load("gaussians25_r1").card["sha256"]
    assert facts["generator"]["recovered"] == 25
    # A GAN worth correcting, and an energy that corrects it: within a tenth of a nat of -log p.
    assert 0.6 < facts["generator"]["high_quality"] < 0.95
    assert abs(facts["energy_minus_truth"]["mean"]) < 0.05
    assert facts["energy_minus_truth"]["std"] < 0.1
    (told,) = re.findall(r"differs from the true .* by ([\d.]+) nats", INDEX)
    assert f"{math.hypot(*facts['energy_minus_truth'].values()):.2f}" == told


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
