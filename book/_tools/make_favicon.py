"""Draw book/_extra/favicon.ico, the logo in the small: `python book/_tools/make_favicon.py`."""

import io
from pathlib import Path as File

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, PathPatch
from matplotlib.path import Path
from PIL import Image

BOOK = File(__file__).parents[1]
SIZE = 256
# The curve of book/_static/logo.svg, drawn thicker because 16 pixels show no thin line.
WELL = [(5, 8), (10, 58), (24, 58), (30, 38), (33, 27), (38, 27), (41, 35), (46, 48), (55, 48)]
WELL += [(59, 14)]


def icon():
    figure = plt.figure(figsize=(1, 1), dpi=SIZE)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 64), ylim=(64, 0))
    axes.axis("off")
    codes = [Path.MOVETO] + [Path.CURVE4] * (len(WELL) - 1)
    axes.add_patch(
        PathPatch(Path(WELL, codes), fill=False, ec="#3d87b8", lw=8, capstyle="round", zorder=1)
    )
    axes.add_patch(Circle((19, 38), 9, fc="#d9822b", ec="none", zorder=2))
    png = io.BytesIO()
    figure.savefig(png, transparent=True)
    plt.close(figure)
    return Image.open(png)


if __name__ == "__main__":
    icon().save(BOOK / "_extra" / "favicon.ico", sizes=[(16, 16), (32, 32), (48, 48)])
