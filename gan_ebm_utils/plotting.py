"""The look of figures and tables, and the kinds of panel that chapters share."""

import html
from collections.abc import Callable, Collection, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from torch import Tensor

from gan_ebm_utils.base import Box, Interval, check_count, check_shape, device_of, evaluating

# Colour-blind safe (seaborn's "colorblind"); real and generated look the same in every chapter.
COLORS = sns.color_palette("colorblind").as_hex()
REAL, FAKE, TRUTH = COLORS[0], COLORS[1], "0.25"


def set_style() -> None:
    """Set the defaults of all figures; each chapter calls this once."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rc("figure", dpi=100)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=100)
    plt.rc("axes", titlesize=11, labelsize=11)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("legend", fontsize=10, frameon=False)
    plt.rc(("xtick", "ytick"), labelsize=10)


def scatter(ax: Axes, x: Tensor, box: Box, color: str, title: str) -> None:
    """Points x (n, 2) inside `box` = (left, right, bottom, top), equal scales on both axes.

    >>> ax = plt.figure().add_subplot()
    >>> scatter(ax, torch.zeros(3, 2), (-1, 1, -1, 1), REAL, "three points")
    >>> plt.close(ax.figure)
    """
    check_shape(x=(x, "n 2"))
    x = x.detach().cpu().double().numpy()
    ax.scatter(x[:, 0], x[:, 1], s=2, color=color, alpha=0.4, linewidths=0, rasterized=True)
    _frame(ax, box, title)


def heatmap(
    ax: Axes, function: Callable[[Tensor], Tensor], box: Box, title: str, n: int = 150, **style: Any
) -> QuadMesh:
    """Colours of a function (n, 2) -> (n,) over `box`; `style` goes to matplotlib's pcolormesh.

    >>> ax = plt.figure().add_subplot()
    >>> mesh = heatmap(ax, lambda x: x.square().sum(dim=1), (-1, 1, -1, 1), "|x|^2", cmap="viridis")
    >>> plt.close(ax.figure)
    """
    check_count(2, n=n)
    how = {"steps": n, "dtype": torch.float32, "device": "cpu"}
    xs, ys = (torch.linspace(*ends, **how) for ends in (box[:2], box[2:]))
    points = torch.cartesian_prod(xs, ys).to(device_of(function))
    with torch.no_grad(), evaluating(function):
        values = function(points)
    check_shape(**{"x": (points, "n 2"), "function(x)": (values, "n")})
    values = values.cpu().double().reshape(n, n).T
    if not values.isfinite().any():
        raise ValueError(f"the function is finite nowhere in {box}; choose another box")
    grid = xs.numpy(), ys.numpy(), values.numpy()
    mesh = ax.pcolormesh(*grid, shading="gouraud", rasterized=True, **style)
    _frame(ax, box, title)
    return mesh


def image_grid(ax: Axes, images: Tensor, n_columns: int, title: str) -> None:
    """Images (n, c, h, w) in [-1, 1] as one picture, row by row; n is a multiple of n_columns.

    One channel is drawn as ink, three as red, green and blue. Raises ValueError for other shapes.

    >>> ax = plt.figure().add_subplot()
    >>> image_grid(ax, torch.zeros(6, 1, 8, 8), 3, "two rows")
    >>> plt.close(ax.figure)
    """
    check_count(n_columns=n_columns)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"give images (n, 1, h, w) or (n, 3, h, w), got {tuple(images.shape)}")
    if not len(images) or len(images) % n_columns:
        raise ValueError(f"give images by a multiple of {n_columns}, got {tuple(images.shape)}")
    framed = F.pad(images.detach().cpu().float(), (1, 1, 1, 1), value=-1.0)
    rows = framed.unflatten(0, (-1, n_columns))  # (rows, columns, channels, height, width)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    if picture.shape[2] == 3:
        picture = (picture.clamp(-1, 1) + 1) / 2
    shown = picture.squeeze(2).numpy()
    ax.imshow(shown, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    sns.despine(ax=ax, left=True, bottom=True)


def dots(
    ax: Axes, rows: Mapping[str, Interval], label: str, reference: Collection[str] = ()
) -> None:
    """A row for each interval, from the top, as a dot with its ends; `label` names the axis.

    Rows in `reference`, the data for example, are grey, and a line leads down from each.

    >>> ax = plt.figure().add_subplot()
    >>> dots(ax, {"data": Interval(3, 2, 4, 0), "GAN": Interval(1, 0, 2, 0)}, "score", ["data"])
    >>> plt.close(ax.figure)
    """
    _check_reference(rows, reference)
    for place, (name, (mean, low, high, _)) in enumerate(rows.items()):
        color = TRUTH if name in reference else COLORS[0]
        if name in reference:
            ax.axvline(mean, color="0.7", linewidth=1, linestyle="--", zorder=0)
        ax.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=color)
    ax.set(yticks=range(len(rows)), yticklabels=rows, xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)


def table(
    rows: Mapping[str, Mapping[str, Interval | str]],
    better: Mapping[str, Callable] | None = None,
    reference: Collection[str] = (),
) -> None:
    """Show a table in a notebook: a row for each name, a column for each key of the rows.

    `better` says for a column whether `max` or `min` is best. Its best row is marked if its
    interval meets none of the others'; rows in `reference` stand apart from the comparison.

    Raises ValueError for names in `better` or `reference` that the table has not, and for a column
    to compare that holds something else than intervals.

    >>> gan = {"FID": Interval(9, 8, 10, 0)}
    >>> table({"GAN": gan, "refined": {"FID": Interval(3, 2, 4, 0)}}, better={"FID": min})
    <IPython.core.display.HTML object>
    """
    # Recipes import this module too, where there may be no IPython.
    from IPython.display import HTML, display

    _check_reference(rows, reference)
    marked = set()
    for column, best_of in (better or {}).items():
        cells = {row: cells.get(column) for row, cells in rows.items() if row not in reference}
        if not all(isinstance(cell, Interval) for cell in cells.values()):
            raise ValueError(f"only intervals can be compared; column {column!r} holds {cells}")
        best = best_of(cells, key=lambda row: cells[row].mean)
        others = [cell for row, cell in cells.items() if row != best]
        if all(it.high < cells[best].low or it.low > cells[best].high for it in others):
            marked.add((best, column))
    frame = {
        _name(row, row in reference): {
            html.escape(column): _cell(cell, (row, column) in marked)
            for column, cell in cells.items()
        }
        for row, cells in rows.items()
    }
    text = pd.DataFrame.from_dict(frame, orient="index").to_html(
        escape=False, border=0, na_rep="", classes="course-table"
    )
    display(HTML(text))


def _check_reference(rows: Mapping, reference: Collection[str]) -> None:
    if not rows:
        raise ValueError("there are no rows to show")
    if unknown := [name for name in reference if name not in rows]:
        raise ValueError(f"reference must name rows, {list(rows)}; got {unknown}")


def _name(row: str, is_reference: bool) -> str:
    return f"<em>{html.escape(row)}</em>" if is_reference else html.escape(row)


def _cell(cell: Interval | str, is_marked: bool) -> str:
    if isinstance(cell, Interval):
        mean, _, ends = str(cell).partition(" ")
        text = f"{mean} <small>{ends}</small>"
    else:
        text = html.escape(cell)
    return f"<strong>{text}</strong>" if is_marked else text


def _frame(ax: Axes, box: Box, title: str) -> None:
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", title=title, xlabel="$x_1$", ylabel="$x_2$")
