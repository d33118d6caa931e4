"""The look of the figures, and the three kinds of panel that chapters share."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from torch import Tensor

from gan_ebm_utils.base import check_count, device_of, evaluating

# Colour-blind safe (seaborn's "colorblind"); real and generated look the same in every chapter.
COLORS = sns.color_palette("colorblind").as_hex()
REAL, FAKE, TRUTH = COLORS[0], COLORS[1], "0.25"


def set_style() -> None:
    """Set the defaults of all figures; each chapter calls this once."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
        }
    )


def scatter(
    ax: Axes, x: Tensor, box: tuple[float, float, float, float], color: str, title: str
) -> None:
    """Points x (n, 2) inside `box` = (left, right, bottom, top), equal scales on both axes."""
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must be (n, 2), one replicate, got {tuple(x.shape)}")
    x = x.detach().cpu().double().numpy()
    ax.scatter(x[:, 0], x[:, 1], s=2, color=color, alpha=0.4, linewidths=0, rasterized=True)
    _frame(ax, box, title)


def heatmap(
    ax: Axes,
    function: Callable[[Tensor], Tensor],
    box: tuple[float, float, float, float],
    title: str,
    n: int = 150,
    **style: object,
) -> QuadMesh:
    """Colours of a function (n, 2) -> (n,) over `box`; `style` goes to matplotlib's pcolormesh."""
    check_count(2, n=n)
    left, right, bottom, top = box
    how = {"steps": n, "dtype": torch.float32, "device": "cpu"}
    xs, ys = torch.linspace(left, right, **how), torch.linspace(bottom, top, **how)
    points = torch.cartesian_prod(xs, ys).to(device_of(function))
    with torch.no_grad(), evaluating(function):
        values = function(points)
    if values.shape != points.shape[:1]:
        raise ValueError(
            f"the function must map points (n, 2) to (n,); for {tuple(points.shape)} it returned "
            f"{tuple(values.shape)}"
        )
    values = values.cpu().double().reshape(n, n).T
    if not values.isfinite().any():
        raise ValueError(f"the function is finite nowhere in {box}; choose another box")
    mesh = ax.pcolormesh(
        xs.numpy(), ys.numpy(), values.numpy(), shading="gouraud", rasterized=True, **style
    )
    _frame(ax, box, title)
    return mesh


def image_grid(ax: Axes, images: Tensor, n_columns: int, title: str) -> None:
    """Images (n, 1, h, w) in [-1, 1] as one picture, row by row; n is a multiple of n_columns."""
    check_count(n_columns=n_columns)
    if images.ndim != 4 or images.shape[1] != 1 or not len(images) or len(images) % n_columns:
        raise ValueError(
            f"images must be (n, 1, h, w) with n a multiple of {n_columns}, got "
            f"{tuple(images.shape)}"
        )
    framed = F.pad(images.detach().cpu().float(), (1, 1, 1, 1), value=-1.0)
    n, _, height, width = framed.shape
    rows = framed.reshape(n // n_columns, n_columns, height, width)
    picture = rows.permute(0, 2, 1, 3).reshape(n // n_columns * height, n_columns * width)
    ax.imshow(picture.numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    sns.despine(ax=ax, left=True, bottom=True)


def _frame(ax: Axes, box: tuple[float, float, float, float], title: str) -> None:
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", title=title, xlabel="$x_1$", ylabel="$x_2$")
