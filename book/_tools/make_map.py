"""Write the map of methods into book/map.md: `python book/_tools/make_map.py`.

The map is a table of links. Its rows are what scores a sample, its columns how a sample is drawn.
On a narrow screen each row becomes a block, in which the columns' names stand before their methods;
the roles keep it a table for those who listen to it. The look is in book/_static/course.css.
"""

import html
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "book" / "map.md"
BEGIN, END = "<!-- map: begin -->", "<!-- map: end -->"

COLUMNS = {
    "once": "one pass through the generator",
    "choose": "choose among its samples",
    "latents": "move in latent space",
    "samples": "move in data space",
}
ROWS = {
    "ratio": (
        "log ratio",
        "<i>d</i> ≈ log <i>p</i>/<i>p</i><sub>g</sub>, relative to the generator",
    ),
    "critic": ("critic", "a potential of <i>W</i><sub>1</sub>, no ratio"),
    "error": ("reconstruction error", "low on the data"),
    "energy": ("energy", "<i>p</i> = e<sup>−<i>E</i></sup>/<i>Z</i>, absolute"),
}
# What is trained: (sign, its name, in words). The sign tells the kinds apart without colour.
KINDS = {
    "game": ("●", "game", "trained as a game: the generator and its scorer"),
    "likelihood": ("◆", "likelihood", "trained by likelihood: an energy, often with a generator"),
    "nothing": ("○", "sampler", "nothing trained: a sampler for a finished GAN"),
}
CHAPTERS = {
    "01": "01_density_ratios",
    "02": "02_energy_based_models",
    "04": "04_ebgan",
    "05": "05_began",
    "06": "06_rejection_sampling_drs",
    "07": "07_mh_gan",
    "08": "08_ddls",
    "09": "09_transport",
    "11": "11_deep_directed",
    "12": "12_meg",
    "13": "13_gan_with_ebm",
    "B": "B_latent_chains",
}
# (row, column, method, kind, chapter); None: the chapter is in preparation.
METHODS = (
    ("ratio", "once", "GAN", "game", "01"),
    ("ratio", "once", "f-GAN", "game", "01"),
    ("ratio", "once", "VAE hybrids", "game", None),
    ("ratio", "choose", "DRS", "nothing", "06"),
    ("ratio", "choose", "OBRS", "nothing", "06"),
    ("ratio", "choose", "MH-GAN", "nothing", "07"),
    ("ratio", "choose", "i-SIR", "nothing", "07"),
    ("ratio", "latents", "DDLS", "nothing", "08"),
    ("ratio", "latents", "DGflow", "nothing", "09"),
    ("ratio", "samples", "DGflow", "nothing", "09"),
    ("critic", "once", "WGAN", "game", "01"),
    ("critic", "latents", "DDLS on a WGAN", "nothing", "B"),
    ("critic", "latents", "DOT", "nothing", "09"),
    ("critic", "samples", "DOT", "nothing", "09"),
    ("error", "once", "EBGAN", "game", "04"),
    ("error", "once", "BEGAN", "game", "05"),
    ("energy", "once", "deep directed", "likelihood", "11"),
    ("energy", "once", "MEG", "likelihood", "12"),
    ("energy", "once", "VERA", "likelihood", "13"),
    ("energy", "latents", "MEG with MALA", "likelihood", "12"),
    ("energy", "samples", "EBM", "likelihood", "02"),
    ("energy", "samples", "CoopNets", "likelihood", "13"),
    ("energy", "samples", "GAN with EBM", "likelihood", "13"),
)


def sign(kind):
    shape, name, _ = KINDS[kind]
    return f'<span class="map-sign {kind}" role="img" aria-label="{name}">{shape}</span>'


def method(name, kind, chapter):
    """One method, a link to its chapter where there is one."""
    text = f"{sign(kind)}{html.escape(name)}"
    if chapter is None:
        return f'<li class="map-later">{text}</li>'
    href = f"../notebooks/{CHAPTERS[chapter]}.html"
    return f'<li><a href="{href}">{text} <span class="map-chapter">{chapter}</span></a></li>'


def cell(row, column):
    inside = [entry[2:] for entry in METHODS if entry[:2] == (row, column)]
    label = f'<td role="cell" data-column="{COLUMNS[column]}">'
    if not inside:
        return f"{label}</td>"
    return "\n".join(
        [f'{label}<ul role="list">', *(method(*entry) for entry in inside), "</ul></td>"]
    )


def table():
    """The map as lines of HTML without an empty one, which would end the block in Markdown."""
    head = [f'<th role="columnheader" scope="col">{name}</th>' for name in COLUMNS.values()]
    lines = [
        '<figure class="method-map" id="fig-map">',
        '<table role="table" aria-label="Map of methods">',
        '<thead role="rowgroup"><tr role="row">',
        '<th role="columnheader" scope="col">what scores a sample</th>',
        *head,
        "</tr></thead>",
        '<tbody role="rowgroup">',
    ]
    for row, (name, meaning) in ROWS.items():
        lines += [
            '<tr role="row">',
            f'<th role="rowheader" scope="row">{name} <small>{meaning}</small></th>',
            *(cell(row, column) for column in COLUMNS),
            "</tr>",
        ]
    legend = [f"<li>{sign(kind)} {words}</li>" for kind, (*_, words) in KINDS.items()]
    lines += ["</tbody>", "</table>", "<figcaption>", '<ul role="list">', *legend, "</ul>"]
    return "\n".join([*lines, "</figcaption>", "</figure>"])


def written(page):
    """The text of the page with the map between its two lines."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
