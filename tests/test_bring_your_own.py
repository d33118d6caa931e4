"""The twelve lines of README.md, run as they stand on networks written in the usual style."""

import copy
import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_single import LATENT, D, G
from torch import nn

from gan_ebm_utils.base import seeded
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.metrics import mode_report

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Bring your own GAN\n")[1].split("\n## ")[0]
LINES = re.search(r"```python\n(.*?)```", SECTION, re.S).group(1)
GRID, STD = gaussian_grid(), 0.05


def run(**given):
    names = dict(given)
    exec(LINES, names)
    return names


def quality(samples):
    return float(mode_report(samples, GRID.means.cpu(), STD).high_quality)


def test_there_are_at_most_twelve():
    assert len([line for line in LINES.splitlines() if line.strip()]) <= 12


@pytest.fixture(scope="module")
def trained():
    """A GAN of 25 Gaussians and its data: usual layers, an ordinary loop."""
    torch.manual_seed(0)

    def layers(*sizes, between):
        *inner, last = itertools.pairwise(sizes)
        for a, b in inner:
            yield from (nn.Linear(a, b), *between(b))
        yield nn.Linear(*last)

    g = nn.Sequential(
        *layers(2, 128, 128, 2, between=lambda size: (nn.BatchNorm1d(size), nn.ReLU()))
    )
    d = nn.Sequential(*layers(2, 128, 128, 128, 1, between=lambda size: (nn.LeakyReLU(0.2),)))
    data = GRID.sample((20_000,), seeded(0, "cpu"))
    steps, adam = 3000, {"lr": 2e-3, "betas": (0.5, 0.99)}
    optimizers = [torch.optim.Adam(network.parameters(), **adam) for network in (g, d)]
    falling = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1, 2 * (1 - i / steps)))
        for o in optimizers
    ]
    for _ in range(steps):
        x = data[torch.randint(len(data), (256,))].requires_grad_()
        real, fake = d(x), d(g(torch.randn(256, 2)).detach())
        (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        optimizers[1].zero_grad()
        (loss + 0.05 * slope.square().sum(dim=1).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        F.softplus(-d(g(torch.randn(256, 2)))).mean().backward()
        optimizers[0].step()
        for schedule in falling:
            schedule.step()
    return g, d, data


class Without(nn.Module):
    """G whose latents turn until no sample is near five of the modes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z):
        x, angle = self.network(z), torch.tensor(2.4)  # no turn comes back soon
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
        for _ in range(20):
            lost = GRID.means[[0, 6, 12, 17, 23]].to(x)
            z = z @ turn
            near = torch.cdist(x, lost).amin(dim=1, keepdim=True) < 2.5 * STD
            x = torch.where(near, self.network(z), x)
        return x


def test_high_quality_of_25_gaussians(trained, capsys):
    g, d, data = trained
    given = {"data": data, "latent_dim": 2, "n": 2000, "n_steps": 4000}
    names = run(G=g, D=d, **given)
    before = quality(g.eval()(torch.randn(2000, 2))[None].detach())
    g.train()
    # Five seeds, with 3,000 steps: .32 to .43 before, .986 to .996 (MH-GAN), .982 to .997 (i-SIR).
    assert before < 0.5
    for name in ("isir_gan", "mh_gan"):
        refined = names["refined"][name]
        assert refined.samples.shape == (1, 2000, 2)
        assert quality(refined.samples) >= 0.98, name
        assert refined.calls.forward > 2 * 640 * 2000 * 0.9 and refined.calls.backward == 0
    told = capsys.readouterr().out.splitlines()
    # Whether a tenth of the data lies beside all draws differs between machines.
    assert len(told) == 2 and told[0].startswith(("refinement has what it needs", "refinement can"))
    assert "Calls(forward=" in told[1]


def test_modes_without_draws_are_told_beforehand(trained, capsys):
    g, d, data = trained
    run(G=Without(g), D=d, data=data, latent_dim=2, n=10, n_steps=500)
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith("refinement can raise a quality score and still move away from the data")
    share = float(re.search(r"([\d.]+)% of the data lie where", told).group(1))
    assert 12 <= share <= 25  # five modes of 25, but for what lies at their rims


def test_images(capsys):
    """3 x 32 x 32, batch norm in both networks, logits (n, 1)."""
    torch.manual_seed(0)
    g, d = G(), D()
    with torch.no_grad():  # half of the data are what G makes, half their negatives
        made = copy.deepcopy(g).eval()(torch.randn(1200, LATENT))
    data = made * torch.randn(1200, 1, 1, 1).sign()
    names = run(G=g, D=d, data=data, latent_dim=LATENT, n=8, n_steps=50)
    for refined in names["refined"].values():
        assert refined.samples.shape == (1, 8, 3, 32, 32) and refined.samples.isfinite().all()
        assert refined.latents.shape == (1, 8, LATENT)
    # No draw of G is a negative, so no sampler brings them.
    told = capsys.readouterr().out
    assert told.startswith("refinement can raise a quality score and still move away")
    assert 0.4 <= float(re.search(r"([\d.]+)% of the data lie where", told).group(1)) / 100 <= 0.6
    assert g.training and d.training and d.last.weight.requires_grad  # as they were
