"""Draw the pictures of the first page: `python book/_tools/make_opening.py`.

The ten GANs, the seed and the order of the draws are those of the first cells of chapter 06, and
so are the shares of good samples. The GAN drawn is the median one by what its generator draws. What
the page says of the pictures is stored in them, as JSON in their descriptions.

The picture of the energy is the right panel of the cover, which alone is legible on a phone.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import torch
from PIL import Image

from gan_ebm_utils import checkpoints, metrics, plotting
from gan_ebm_utils.base import default_device, seeded
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.refine import drs

STATIC = FOLDER = Path(__file__).parents[1] / "_static"
REPLICATES, N, BUDGET, STD, N_STD, N_SHOWN = 10, 10_000, 30, 0.05, 4, 4000
GOOD, BAD = plotting.FAKE, "0.1"
PANEL = 925, 0, 1500, 510  # of the cover, in pixels from its left and upper edges


def samples():
    """name of a picture -> samples of all GANs, (R, n, 2)."""
    stored = checkpoints.load("gaussians25_gan", default_device())
    own, refitted = stored.gan(), stored.gan("refitted")
    rng, how = seeded(1), {"replicates": REPLICATES, "budget": BUDGET}
    with torch.no_grad():
        drawn = own.generator(own.prior((REPLICATES, N), rng))
    return {
        "drawn": drawn,
        "own": drs(own, N, rng, **how).samples,
        "refitted": drs(refitted, N, rng, **how).samples,
    }


def draw(x, means, path, facts):
    """Samples (n, 2), those far from all modes darker than the others."""
    near = torch.cdist(x, means.to(x)).amin(dim=1) < N_STD * STD
    figure, ax = plt.subplots(figsize=(3, 3))
    for which, colour in ((near, GOOD), (~near, BAD)):
        ax.scatter(*x[which].cpu().numpy().T, s=3, color=colour, linewidths=0)
    ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
    ax.axis("off")
    figure.savefig(path, dpi=200, metadata={"Description": json.dumps(facts), "Software": None})
    plt.close(figure)


def main():
    plotting.set_style()
    means = gaussian_grid(std=STD).means
    everything = samples()
    good = {
        name: metrics.mode_report(x, means, STD, n_std=N_STD).high_quality.cpu()
        for name, x in everything.items()
    }
    median = int(good["drawn"].median(dim=0).indices)
    for name, x in everything.items():
        interval = metrics.mean_interval(good[name], 4)
        facts = {
            "replicate": median,
            "good_percent": round(100 * float(good[name][median]), 2),
            "good_percent_of_ten": [round(100 * v, 2) for v in interval[:3]],
            "shown": N_SHOWN,
        }
        draw(x[median, :N_SHOWN], means, FOLDER / f"opening_{name}.png", facts)
        print(name, json.dumps(facts))
    Image.open(STATIC / "cover.png").crop(PANEL).save(FOLDER / "energy.png", optimize=True)


if __name__ == "__main__":
    main()
