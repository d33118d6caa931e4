"""Draw book/_static/map.png, the map of methods: `python book/_tools/make_map.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

OUT = Path(__file__).parents[1] / "_static" / "map.png"

COLUMNS = (
    "one pass\nthrough G",
    "G, then accept\nor reject",
    "moves in\nlatent space",
    "moves in\ndata space",
)
ROWS = (
    ("log ratio", "$d\\approx\\log\\,p/p_g$\nrelative to G"),
    ("critic", "a potential of $W_1$,\nno ratio"),
    ("reconstruction\nerror", "low on the data"),
    ("energy", "$p_\\theta=e^{-E}/Z$\nabsolute"),
)
HEIGHTS = (3, 2, 2, 3)  # chips that fit below one another in a row

# What is trained: (fill, edge, line style, text). Line styles tell the kinds apart without colour.
KINDS = {
    "game": ("#0072B2", "#0072B2", "-", "white"),
    "likelihood": ("#FFFFFF", "#009E73", "-", "#00543D"),
    "nothing": ("#FDF1DC", "#B86E00", "--", "#6B4000"),
}
LEGEND = {
    "game": "trained as a game: G and its scorer",
    "likelihood": "trained by likelihood: an energy, often with a generator",
    "nothing": "nothing trained: samples with a finished GAN",
}
# (row, first column, last column, place from the top, text, kind)
CHIPS = (
    (0, 0, 0, 0, "GAN · 01", "game"),
    (0, 0, 0, 1, "f-GAN · 01", "game"),
    (0, 0, 0, 2, "VAE hybrids · 14", "game"),
    (0, 1, 1, 0, "DRS · 06", "nothing"),
    (0, 1, 1, 1, "MH-GAN · 07", "nothing"),
    (0, 1, 1, 2, "i-SIR · 07", "nothing"),
    (0, 2, 2, 0, "DDLS · 08", "nothing"),
    (0, 2, 3, 1, "DGflow · 09", "nothing"),
    (1, 0, 0, 0, "WGAN · 01", "game"),
    (1, 2, 2, 0, "DDLS on a WGAN · 08", "nothing"),
    (1, 2, 3, 1, "DOT · 09", "nothing"),
    (2, 0, 0, 0, "EBGAN · 04", "game"),
    (2, 0, 0, 1, "BEGAN · 05", "game"),
    (3, 0, 0, 0, "deep directed · 11", "likelihood"),
    (3, 0, 0, 1, "VERA · 13", "likelihood"),
    (3, 0, 0, 2, "MEG · 12", "likelihood"),
    (3, 2, 2, 2, "MEG + MALA · 12", "likelihood"),
    (3, 3, 3, 0, "EBM · 02", "likelihood"),
    (3, 3, 3, 1, "CoopNets · 13", "likelihood"),
    (3, 3, 3, 2, "GAN with EBM · 13", "likelihood"),
)
WIDTH, LEFT, CHIP, GAP, PAD = 2.35, 2.25, 0.44, 0.12, 0.14  # inches


def chip(axes, x, y, width, text, kind):
    fill, edge, line, colour = KINDS[kind]
    box = "round,pad=0,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch((x, y), width, CHIP, boxstyle=box, fc=fill, ec=edge, ls=line, lw=1.6)
    )
    axes.text(x + width / 2, y + CHIP / 2, text, ha="center", va="center", color=colour)


def draw():
    rows = [n * (CHIP + GAP) - GAP + 2 * PAD for n in HEIGHTS]
    head, foot = 1.0, 1.15
    size = (LEFT + len(COLUMNS) * WIDTH, head + sum(rows) + foot)
    plt.rcParams.update({"font.size": 13, "mathtext.fontset": "cm"})
    figure = plt.figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")

    middle = LEFT + len(COLUMNS) * WIDTH / 2
    axes.text(middle, 0.2, "How a sample is drawn", ha="center", va="center", weight="bold")
    axes.text(0.1, 0.2, "What scores it", va="center", weight="bold")
    for column, name in enumerate(COLUMNS):
        x = LEFT + (column + 0.5) * WIDTH
        axes.text(x, 0.68, name, ha="center", va="center", color="#333333")

    tops = [head + sum(rows[:row]) for row in range(len(rows))]
    for row, (top, height) in enumerate(zip(tops, rows, strict=True)):
        if row % 2 == 0:
            axes.add_patch(Rectangle((0, top), size[0], height, fc="#F2F4F6", ec="none"))
        name, formula = ROWS[row]
        lines = name.count("\n") + formula.count("\n") + 2
        y = top + height / 2 - 0.115 * lines
        axes.text(0.1, y, name, va="top", weight="bold", linespacing=1.15)
        axes.text(
            0.1, y + 0.24 * (name.count("\n") + 1), formula, va="top", fontsize=12, color="#333333"
        )
    for row, first, last, place, text, kind in CHIPS:
        x = LEFT + first * WIDTH + PAD / 2
        y = tops[row] + PAD + place * (CHIP + GAP)
        chip(axes, x, y, (last - first + 1) * WIDTH - PAD, text, kind)

    for place, (kind, text) in enumerate(LEGEND.items()):
        y = size[1] - foot + 0.12 + 0.34 * place
        fill, edge, line, _ = KINDS[kind]
        axes.add_patch(
            FancyBboxPatch(
                (LEFT + 0.1, y),
                0.5,
                0.22,
                boxstyle="round,pad=0,rounding_size=0.06",
                fc=fill,
                ec=edge,
                ls=line,
                lw=1.6,
            )
        )
        axes.text(LEFT + 0.75, y + 0.11, text, va="center", fontsize=12, color="#333333")
    axes.text(
        0.1, size[1] - foot + 0.23, "number: chapter", va="center", fontsize=12, color="#333333"
    )
    figure.savefig(OUT, dpi=130, facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw()
