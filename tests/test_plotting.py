"""Panels draw what they are given and name what they cannot draw."""

import re

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt

from gan_ebm_utils import plotting
from gan_ebm_utils.base import Interval

BOX = (-1.0, 2.0, -3.0, 4.0)


@pytest.fixture
def ax():
    plotting.set_style()
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_scatter_shows_the_points_in_the_box(ax):
    x = torch.tensor([[0.0, 1.0], [0.5, -2.0]])
    plotting.scatter(ax, x, BOX, plotting.REAL, "points")
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), x.numpy())
    assert (*ax.get_xlim(), *ax.get_ylim()) == BOX
    assert (ax.get_title(), ax.get_xlabel(), ax.get_aspect()) == ("points", "$x_1$", 1.0)


def test_heatmap_has_the_first_coordinate_along_x(ax):
    mesh = plotting.heatmap(ax, lambda x: 10 * x[:, 0] + x[:, 1], BOX, "plane", n=8)
    values = mesh.get_array().reshape(8, 8)  # rows are x_2
    np.testing.assert_allclose(values[0, [0, -1]], [-13, 17], rtol=1e-5)
    np.testing.assert_allclose(values[[0, -1], 0], [-13, -6], rtol=1e-5)


def test_image_grid_goes_row_by_row(ax):
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(-1, 1, 4, 4)
    plotting.image_grid(ax, images, 3, "pictures")
    picture = np.asarray(ax.images[0].get_array())
    assert picture.shape == (12, 18)  # 4 + 2 pixels of frame each
    centres = picture[2::6, 2::6].ravel()
    np.testing.assert_allclose(centres, torch.linspace(-1, 1, 6), rtol=1e-5)


def test_colours_are_those_of_the_channels(ax, caplog):
    images = -torch.ones(4, 3, 2, 2)
    images[0, 0], images[1, 1], images[2, 2] = 1, 1, 5  # beyond white is white
    plotting.image_grid(ax, images, 2, "pictures")
    picture = np.asarray(ax.images[0].get_array())
    assert picture.shape == (8, 8, 3)
    centres = picture[1::4, 1::4]
    np.testing.assert_array_equal(
        centres.reshape(4, 3), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    )
    assert not caplog.records, "matplotlib would tell of what it has to clip"


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_every_type_is_drawn(ax, kind):
    x = torch.tensor([[0, 1], [1, -2]], dtype=kind)
    plotting.scatter(ax, x, BOX, plotting.REAL, "points")
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[0, 1], [1, -2]])
    mesh = plotting.heatmap(ax, lambda x: (x[:, 0] > 0).to(kind), BOX, "step", n=8)
    np.testing.assert_array_equal(mesh.get_array().reshape(8, 8)[0, [0, -1]], [0, 1])
    plotting.image_grid(ax, torch.ones(2, 1, 4, 4).to(kind), 2, "pictures")
    assert ax.images[0].get_array()[2, 2] == 1


def test_points_far_away_keep_their_digits(ax):
    x = 1e8 + torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    plotting.scatter(ax, x, (1e8, 1e8 + 3, 1e8, 1e8 + 3), plotting.REAL, "points")
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), x.numpy())


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (
            lambda ax: plotting.scatter(ax, torch.zeros(3, 4, 2), BOX, "r", ""),
            r"x must be \(n, 2\)",
        ),
        (lambda ax: plotting.image_grid(ax, torch.zeros(0, 1, 4, 4), 3, ""), "a multiple of 3"),
        (
            lambda ax: plotting.image_grid(ax, torch.zeros(6, 1, 4, 4), 0, ""),
            "n_columns must be a whole number of at least 1, got 0",
        ),
        (
            lambda ax: plotting.image_grid(ax, torch.zeros(6, 1, 4, 4), 1.5, ""),
            "n_columns must be a whole number of at least 1, got 1.5",
        ),
        (
            lambda ax: plotting.heatmap(ax, lambda x: x[:, 0], BOX, "", n=1),
            "n must be a whole number of at least 2, got 1",
        ),
        (
            lambda ax: plotting.heatmap(ax, lambda x: x, BOX, "", n=8),
            r"function\(x\) \(n\); got \(64, 2\), \(64, 2\)",
        ),
        (lambda ax: plotting.image_grid(ax, torch.zeros(5, 1, 4, 4), 3, ""), "a multiple of 3"),
        (lambda ax: plotting.image_grid(ax, torch.zeros(6, 2, 4, 4), 3, ""), r"\(n, 3, h, w\)"),
        (lambda ax: plotting.heatmap(ax, lambda x: x[:, 0] / 0, BOX, ""), "finite nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_named(ax, draw, says):
    with pytest.raises(ValueError, match=says):
        draw(ax)


def test_dots_stand_in_rows_with_their_ends(ax):
    rows = {"data": Interval(3.0, 2.0, 5.0, 1), "GAN": Interval(1.0, 0.5, 1.5, 1)}
    plotting.dots(ax, rows, "score", reference=["data"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "GAN"]
    assert ax.yaxis_inverted() and ax.get_xlabel() == "score"
    bars = [container.lines[2][0].get_segments()[0] for container in ax.containers]
    np.testing.assert_allclose(bars, [[[2, 0], [5, 0]], [[0.5, 1], [1.5, 1]]])
    colors = [container.lines[0].get_color() for container in ax.containers]
    assert colors == [plotting.TRUTH, plotting.COLORS[0]]
    with pytest.raises(ValueError, match=r"reference must name rows, \['data', 'GAN'\]; got"):
        plotting.dots(ax, rows, "score", reference=["dta"])
    with pytest.raises(ValueError, match="no rows"):
        plotting.dots(ax, {}, "score")


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as HTML."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda it: found.append(it.data))
    return found


def score(mean, half):
    return Interval(mean, mean - half, mean + half, 1)


ROWS = {
    "data": {"FID": score(0.0, 0.1), "quality": score(9.0, 0.1), "calls": "1"},
    "a < b": {"FID": score(5.0, 1.0), "quality": score(5.0, 1.0)},
    "best": {"FID": score(2.0, 1.0), "quality": score(6.5, 1.0), "calls": "802"},
}


def test_a_table_marks_the_best_where_intervals_allow_it(shown):
    plotting.table(ROWS, better={"FID": min, "quality": max}, reference=["data"])
    heads = re.findall("<th>(.*?)</th>", shown[0])
    assert heads == ["", "FID", "quality", "calls", "<em>data</em>", "a &lt; b", "best"]
    # Lowest of those that compete, and apart from the other; the qualities overlap.
    assert re.findall("<strong>(.*?)</strong>", shown[0]) == ["2.0 <small>[1.0, 3.0]</small>"]
    assert re.findall("<em>(.*?)</em>", shown[0]) == ["data"]
    assert shown[0].count("<td></td>") == 1  # the calls that are missing
    plotting.table(ROWS, better={"FID": max}, reference=["data"])
    assert re.findall("<strong>(.*?)<", shown[1]) == ["5.0 "]
    plotting.table(ROWS)
    assert "<strong>" not in shown[2]


def test_a_table_says_what_it_cannot_compare(shown):
    with pytest.raises(ValueError, match="only intervals can be compared; column 'calls' holds"):
        plotting.table(ROWS, better={"calls": min})
    with pytest.raises(ValueError, match="column 'EMD' holds"):
        plotting.table(ROWS, better={"EMD": min})
    with pytest.raises(ValueError, match=r"reference must name rows.*got \['real'\]"):
        plotting.table(ROWS, reference=["real"])
    assert shown == []
