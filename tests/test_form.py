"""The form of the notebooks: what strict nbval, the book and a reader need of each of them.

A check takes a notebook as a dict and returns its complaints, a sentence each. The controls at the
end break a good notebook in one way at a time.
"""

import ast
import copy
import csv
import json
import re
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9A-Z]*_*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.md"))
MAX_LINES, MAX_MEDIAN_LINES, MAX_BYTES, MAX_SECONDS, MIN_EXERCISES = 40, 15, 1_500_000, 90, 3
MAX_COLUMNS = 100
TAGS = {"hide-cell", "hide-input", "hide-output", "nbval-ignore-output"}
TAGS |= {"remove-cell", "remove-input", "remove-output"}
MYSTNB = {"image": {"alt", "width", "align"}, "figure": {"caption", "name"}}


# ---- what a notebook holds


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if source(cell).strip()]


def prose(notebook):
    cells = notebook["cells"]
    return "\n\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")


def tags(cell):
    return set(cell["metadata"].get("tags", ()))


def is_compared(cell):
    return "nbval-ignore-output" not in tags(cell)


def has_image(cell):
    return any("image/png" in output.get("data", {}) for output in cell["outputs"])


def texts(cell):
    """Everything a code cell's outputs hold, images apart."""
    found = []
    for output in cell["outputs"]:
        found.append("".join(output.get("text", "")))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                found.append(data if isinstance(data, str) else "".join(map(str, data)))
    return "\n".join(found)


def python(cell):
    """The cell's code without magics, which are no Python."""
    lines = source(cell).splitlines()
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines)


def calls(cell):
    """Names of the functions that a cell calls."""
    nodes = [node.func for node in ast.walk(ast.parse(python(cell))) if isinstance(node, ast.Call)]
    return {getattr(node, "id", getattr(node, "attr", None)) for node in nodes}


def start(cell):
    return repr(source(cell).strip().splitlines()[0])


# ---- the checks of one notebook


def check_is_executed_in_order(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    if counts == list(range(1, len(counts) + 1)):
        return []
    return [f"execution counts are {counts}: run the notebook anew from the top"]


def check_has_no_error_and_no_stderr(notebook):
    return [
        f"the cell {start(cell)} has stored {output.get('name', 'an error')}"
        for cell in code_cells(notebook)
        for output in cell["outputs"]
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]


def check_kernel_is_python3(notebook):
    name = notebook["metadata"].get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"the kernel's name is {name!r}, not 'python3'"]


def check_first_cell_installs(notebook):
    cell = code_cells(notebook)[0]
    text = source(cell)
    if "%pip install" not in text or "gan_ebm_utils" not in text:
        return ["the first code cell does not install gan_ebm_utils with %pip"]
    if not re.search(r"(?m)^\s+%pip", text):
        return ["the first code cell installs even where gan_ebm_utils is there"]
    return ["the first code cell has an output"] if cell["outputs"] else []


def check_figures_are_described(notebook):
    found, names = [], []
    for cell in filter(has_image, code_cells(notebook)):
        meta = cell["metadata"].get("mystnb", {})
        alt = meta.get("image", {}).get("alt", "")
        figure = meta.get("figure", {})
        for name, text in (("alt text", alt), ("caption", figure.get("caption", ""))):
            if len(text.split()) < 4:
                found.append(f"the figure of the cell {start(cell)} has no {name} of four words")
        names.append(figure.get("name"))
        images = sum("image/png" in output.get("data", {}) for output in cell["outputs"])
        if images > 1:
            found.append(f"the cell {start(cell)} makes {images} figures under one name")
    if None in names or len(set(names)) < len(names):
        found.append(f"each figure needs a name of its own, got {names}")
    return found


def check_mystnb_keys_are_known(notebook):
    found = []
    for cell in notebook["cells"]:
        meta = cell["metadata"].get("mystnb", {})
        for key, options in meta.items():
            if key not in MYSTNB:
                found.append(f"mystnb does not know {key!r}")
            else:
                found += [f"mystnb does not know {key}.{o!r}" for o in set(options) - MYSTNB[key]]
    return found


def check_tags_are_known(notebook):
    unknown = set().union(*map(tags, notebook["cells"])) - TAGS
    return [f"unknown tags {sorted(unknown)}: a cell may not be skipped"] if unknown else []


def check_claims_are_compared(notebook):
    claiming = [cell for cell in code_cells(notebook) if "claim" in calls(cell)]
    found = [] if claiming else ["no cell calls claim(...)"]
    for cell in claiming:
        if not is_compared(cell):
            found.append(f"the claim in the cell {start(cell)} is not compared")
        elif "✓" not in texts(cell):
            found.append(f"the cell {start(cell)} claims and has stored no ✓")
    return found


def check_exercises_are_solved(notebook):
    """Every exercise has a label and, below it, a folded solution; one solution is code that ran.

    The directives of sphinx-exercise: exercise, solution, and solution-start ... solution-end
    around code cells.
    """
    exercises, solved, folded, with_code, gate = [], [], [], [], None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            if gate and source(cell).strip():
                with_code.append(gate)
            continue
        for kind, argument, options in directives(source(cell)):
            if kind in ("exercise", "exercise-start"):
                exercises.append(options.get("label"))
            elif kind in ("solution", "solution-start"):
                if argument in exercises:
                    solved.append(argument)
                if "dropdown" in options.get("class", ""):
                    folded.append(argument)
                gate = argument if kind == "solution-start" else gate
            elif kind == "solution-end":
                gate = None
    found = []
    if len(exercises) < MIN_EXERCISES:
        found.append(f"{len(exercises)} exercises, at least {MIN_EXERCISES} are needed")
    if None in exercises:
        found.append("an exercise has no label")
    unsolved = [label for label in exercises if label not in solved]
    if unsolved:
        found.append(f"no solution below the exercises {unsolved}")
    if set(solved) - set(folded):
        found.append(f"solutions without the class dropdown: {sorted(set(solved) - set(folded))}")
    if gate:
        found.append(f"solution-start {gate} has no solution-end")
    if not with_code:
        found.append("no solution holds a code cell")
    return found


def directives(text):
    """(name, argument, options) of each directive in a text, in order."""
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        opening = re.match(r"\s*(?::{3,}|`{3,})\{([\w:-]+)\}\s*(.*)", line)
        if opening:
            options = {}
            for option in lines[number + 1 :]:
                pair = re.match(r"\s*:([\w-]+):\s*(.*)", option)
                if not pair:
                    break
                options[pair[1]] = pair[2].strip()
            found.append((opening[1], opening[2].strip(), options))
    return found


def check_fences_are_colons(notebook):
    backticks = re.findall(r"(?m)^\s*`{3,}(\{[\w:-]+\})", prose(notebook))
    return [f"{name} stands in a backtick fence, which Colab shows raw" for name in backticks]


def check_proofs_begin_with_text(notebook):
    """A list as the first thing in a proof is flattened to one paragraph by the theme."""
    found = []
    opening = r"(?m)^:{3,}\{prf:proof\}[^\n]*\n(?:[ \t]*:[\w-]+:.*\n|[ \t]*\n)*(.*)"
    for block in re.findall(opening, prose(notebook)):
        if re.match(r"\s*(?:\d+[.)]|[-*+])\s", block):
            found.append(f"a proof begins with a list; put a line &nbsp; before {block[:40]!r}")
    return found


def check_outputs_fit_the_column(notebook):
    return [
        f"the cell {start(cell)} prints a line of {len(line)} characters: {line[:40]!r}"
        for cell in code_cells(notebook)
        for line in texts(cell).splitlines()
        if len(line) > MAX_COLUMNS
    ]


def check_cells_are_short(notebook):
    lines = {start(cell): len(source(cell).splitlines()) for cell in code_cells(notebook)}
    found = [
        f"the cell {cell} has {n} lines, more than {MAX_LINES}"
        for cell, n in lines.items()
        if n > MAX_LINES
    ]
    median = statistics.median(len(source(cell).splitlines()) for cell in code_cells(notebook))
    if median > MAX_MEDIAN_LINES:
        found.append(f"the median cell has {median:g} lines, more than {MAX_MEDIAN_LINES}")
    return found


def check_names_no_path_of_a_machine(notebook):
    # Image data are left out: base64 may spell anything.
    text = "\n".join([*map(source, notebook["cells"]), *map(texts, code_cells(notebook))])
    here = "|".join(re.escape(str(path)) for path in (ROOT, Path.home(), tempfile.gettempdir()))
    pattern = rf"(?<![\w.])(?:{here}|/home/\w+|/Users/\w+|/root|/tmp|[A-Z]:\\Users)(?=[/\\\s\"'])"
    return [f"a path of one machine: {path}" for path in re.findall(pattern, text)]


def check_constants_are_not_moved(notebook):
    return [
        f"the cell {start(cell)} moves the means of a law, which lie where the notebook works"
        for cell in code_cells(notebook)
        if re.search(r"\bmeans(\[[^\]]*\])?\.to\(", source(cell))
    ]


def check_is_small(notebook):
    size = len(json.dumps(notebook, ensure_ascii=False).encode())
    return [] if size < MAX_BYTES else [f"{size} bytes, at most {MAX_BYTES} are allowed"]


def check_compared_cells_are_stable(notebook):
    """What makes a compared cell fail on another day or another machine."""
    found = []
    for cell in filter(is_compared, code_cells(notebook)):
        last = source(cell).rstrip().splitlines()[-1].split("#")[0].rstrip()
        if last.endswith(";"):
            found.append(f"the cell {start(cell)} ends in ';', which nbval does not honour")
        if re.search(r"\b0x[0-9a-f]{6,}", texts(cell)):
            found.append(f"the cell {start(cell)} has stored a memory address")
        if any("image/svg+xml" in output.get("data", {}) for output in cell["outputs"]):
            found.append(f"the cell {start(cell)} has stored an SVG, which differs every time")
        unstable = calls(cell) & {"clear_output", "to_jshtml", "to_html5_video"}
        found += [f"the cell {start(cell)} calls {name}" for name in sorted(unstable)]
    for cell in code_cells(notebook):
        if re.search(r"(?i)#\s*(?:NBVAL_|PYTEST_VALIDATE)", source(cell)):
            found.append(f"the cell {start(cell)} speaks to nbval in a comment: use a tag")
    return found


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


# ---- the checks of the whole book


def labels(text):
    """Every label that a page or a notebook's prose defines."""
    text = re.sub(r"(?ms)^\s*`{3,}(?!\{).*?^\s*`{3,}\s*$", "", text)  # code shown to the reader
    patterns = [
        r"(?m)^\s*:label:\s*(\S+)",
        r"(?m)^\s*:name:\s*(\S+)",
        r"(?m)^\(([^()\s]+)\)=\s*$",
        r"(?m)\$\$\s*\(([^()\s]+)\)\s*$",
        r"\\label\{([^}]+)\}",
    ]
    return [label for pattern in patterns for label in re.findall(pattern, text)]


def notebook_labels(notebook):
    figures = [cell["metadata"].get("mystnb", {}).get("figure", {}) for cell in notebook["cells"]]
    return labels(prose(notebook)) + [figure["name"] for figure in figures if "name" in figure]


def repeated(names):
    return sorted(name for name, count in Counter(names).items() if count > 1)


def cited_keys(text):
    groups = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return {key.strip() for group in groups for key in group.split(",")}


def bibliography_keys(text):
    return set(re.findall(r"(?m)^\s*@\w+\{\s*([^,\s]+)\s*,", text))


def listed_chapters(toc):
    return re.findall(r"(?m)^\s*-\s*file:\s*notebooks/(\w+?)(?:\.ipynb)?\s*$", toc)


def slow_or_missing(chapters, rows):
    """Complaints about the table of run times."""
    seconds = {row["Chapter"]: float(row["Seconds"]) for row in rows}
    found = []
    for name in chapters:
        if name not in seconds:
            found.append(f"no run time of {name}: make notebooks")
        elif seconds[name] > MAX_SECONDS:
            found.append(f"{name} took {seconds[name]:g} s, at most {MAX_SECONDS} are allowed")
    return found


def read(path):
    return path.read_text(encoding="utf-8")


def load(path):
    return json.loads(read(path))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, check):
    assert check(load(path)) == []


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_chapters_are_listed():
    chapters = [path.stem for path in NOTEBOOKS]
    assert sorted(listed_chapters(read(ROOT / "_toc.yml"))) == chapters


def test_run_times_are_known_and_short():
    with (ROOT / "book" / "run_times.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert slow_or_missing([path.stem for path in NOTEBOOKS], rows) == []
    assert sorted(row["Chapter"] for row in rows) == [path.stem for path in NOTEBOOKS]


def test_labels_are_unique():
    names = [label for path in NOTEBOOKS for label in notebook_labels(load(path))]
    names += [label for path in PAGES for label in labels(read(path))]
    assert repeated(names) == []


def test_citations_exist():
    pages = [prose(load(path)) for path in NOTEBOOKS] + [read(path) for path in PAGES]
    cited = set().union(*map(cited_keys, pages))
    assert cited - bibliography_keys(read(ROOT / "book" / "references.bib")) == set()


# ---- controls: a good notebook, broken in one way at a time


def markdown_cell(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def code_cell(count, text, outputs=(), **metadata):
    return {
        "cell_type": "code",
        "execution_count": count,
        "metadata": metadata,
        "outputs": list(outputs),
        "source": text.splitlines(keepends=True),
    }


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def display(kind, data):
    return {"output_type": "display_data", "metadata": {}, "data": {kind: data}}


GOOD = {
    "metadata": {"kernelspec": {"name": "python3"}},
    "cells": [
        markdown_cell("# 99. A chapter\n\n:::{prf:theorem}\n:label: thm-99\n$x = x$\n:::"),
        code_cell(
            1,
            'import importlib.util\n\nif importlib.util.find_spec("gan_ebm_utils") is None:\n'
            "    %pip install -q ..",
        ),
        code_cell(2, "x = 1\nprint(x)", [stream("1\n")], tags=["nbval-ignore-output"]),
        code_cell(
            3,
            "plt.plot([x, x])",
            [display("image/png", "iVBORw0KGgo/tmp/x")],
            mystnb={
                "image": {"alt": "A line from left to right."},
                "figure": {"caption": "The line does not rise.", "name": "fig-99-line"},
            },
        ),
        code_cell(4, 'claim("x is positive", x, at_least=0)', [stream("✓ x is positive\n")]),
        markdown_cell(
            ":::{exercise}\n:label: ex-99-a\nShow it.\n:::\n\n"
            ":::{solution} ex-99-a\n:class: dropdown\nSo.\n:::"
        ),
        markdown_cell(
            ":::{exercise}\n:label: ex-99-b\nWhy?\n:::\n\n"
            "::::{solution} ex-99-b\n:class: dropdown\nSo.\n::::"
        ),
        markdown_cell(":::{exercise}\n:label: ex-99-c\nCompute it.\n:::"),
        markdown_cell(":::{solution-start} ex-99-c\n:class: dropdown\n:::"),
        code_cell(5, "y = 2 * x"),
        markdown_cell(":::{solution-end}\n:::"),
    ],
}
INSTALL, IGNORED, FIGURE, CLAIM, SOLUTION = 1, 2, 3, 4, 9


def with_cell(number, **changes):
    def change(notebook):
        notebook["cells"][number].update(changes)

    return change


def with_metadata(number, *keys, value):
    def change(notebook):
        inner = notebook["cells"][number]["metadata"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def with_text(old, new):
    def change(notebook):
        for cell in notebook["cells"]:
            cell["source"] = source(cell).replace(old, new)

    return change


def without_cell(number):
    return lambda notebook: notebook["cells"].pop(number)


def with_kernel(name):
    return lambda notebook: notebook["metadata"]["kernelspec"].update(name=name)


def with_figure_twice(notebook):
    notebook["cells"].append(copy.deepcopy(notebook["cells"][FIGURE]))


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
BREAKS = [
    (check_is_executed_in_order, with_cell(CLAIM, execution_count=None)),
    (check_is_executed_in_order, with_cell(CLAIM, execution_count=7)),
    (check_has_no_error_and_no_stderr, with_cell(IGNORED, outputs=[ERROR])),
    (check_has_no_error_and_no_stderr, with_cell(IGNORED, outputs=[stream("warning", "stderr")])),
    (check_kernel_is_python3, with_kernel("my-env")),
    (check_first_cell_installs, without_cell(INSTALL)),
    (check_first_cell_installs, with_cell(INSTALL, source="%pip install gan_ebm_utils")),
    (check_first_cell_installs, with_cell(INSTALL, outputs=[stream("installed")])),
    (check_figures_are_described, with_metadata(FIGURE, "mystnb", "image", value={})),
    (check_figures_are_described, with_metadata(FIGURE, "mystnb", "image", "alt", value="")),
    (check_figures_are_described, with_metadata(FIGURE, "mystnb", "figure", "caption", value="")),
    (check_figures_are_described, with_metadata(FIGURE, "mystnb", "figure", "name", value=None)),
    (check_figures_are_described, with_cell(FIGURE, metadata={})),
    (check_figures_are_described, with_cell(FIGURE, outputs=[display("image/png", "iV")] * 2)),
    (check_figures_are_described, with_figure_twice),
    (check_mystnb_keys_are_known, with_metadata(FIGURE, "mystnb", "image", value={"atl": "A"})),
    (check_mystnb_keys_are_known, with_metadata(FIGURE, "mystnb", "images", value={"alt": "A"})),
    (check_tags_are_known, with_metadata(CLAIM, "tags", value=["nbval-skip"])),
    (check_claims_are_compared, without_cell(CLAIM)),
    (check_claims_are_compared, with_metadata(CLAIM, "tags", value=["nbval-ignore-output"])),
    (check_claims_are_compared, with_cell(CLAIM, outputs=[])),
    (check_exercises_are_solved, with_text("{exercise}", "{note}")),
    (check_exercises_are_solved, with_text(":label: ex-99-a\n", "")),
    (check_exercises_are_solved, with_text("{solution} ex-99-b", "{solution} ex-99-a")),
    (check_exercises_are_solved, with_text("ex-99-b\n:class: dropdown", "ex-99-b")),
    (check_exercises_are_solved, without_cell(SOLUTION)),
    (check_exercises_are_solved, with_text("{solution-end}", "{note}")),
    (check_fences_are_colons, with_text(":::{prf:theorem}", "```{prf:theorem}")),
    (
        check_proofs_begin_with_text,
        with_text("{prf:theorem}\n:label: thm-99\n", "{prf:proof}\n1. "),
    ),
    (
        check_proofs_begin_with_text,
        with_text("{prf:theorem}\n:label: thm-99\n", "{prf:proof}\n\n- "),
    ),
    (check_outputs_fit_the_column, with_cell(IGNORED, outputs=[stream("1 " * 51)])),
    (check_cells_are_short, with_cell(IGNORED, source="x = 1\n" * 41)),
    (check_cells_are_short, with_text("x", "x\n" * 16)),
    (check_names_no_path_of_a_machine, with_cell(IGNORED, source='open("/home/ada/x.npz")')),
    (check_names_no_path_of_a_machine, with_cell(IGNORED, outputs=[stream(f"{ROOT}/x.npz")])),
    (check_constants_are_not_moved, with_cell(IGNORED, source="ring.means[0].to(device)")),
    (check_is_small, with_cell(IGNORED, outputs=[display("image/png", "A" * MAX_BYTES)])),
    (check_compared_cells_are_stable, with_cell(SOLUTION, source="plt.plot(x);  # a line")),
    (check_compared_cells_are_stable, with_cell(SOLUTION, outputs=[stream("<f at 0x7fd10c2e>")])),
    (
        check_compared_cells_are_stable,
        with_cell(SOLUTION, outputs=[display("image/svg+xml", "<svg/>")]),
    ),
    (check_compared_cells_are_stable, with_cell(SOLUTION, source="clear_output()")),
    (check_compared_cells_are_stable, with_cell(SOLUTION, source="# NBVAL_SKIP\nx")),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_notebook_passes(check):
    assert check(GOOD) == []


@pytest.mark.parametrize(("check", "break_it"), BREAKS)
def test_a_broken_notebook_is_found(check, break_it):
    notebook = copy.deepcopy(GOOD)
    break_it(notebook)
    assert check(notebook)


def test_every_check_has_a_control():
    assert {check for check, _ in BREAKS} == set(CHECKS)


def test_labels_are_found():
    text = (
        "(sec-a)=\n## A\n\n:::{prf:lemma}\n:label: lem-b\n:::\n\n$$\nx\n$$ (eq-c)\n\n"
        "\\begin{align}\\label{eq-d}\\end{align}\n\n:::{figure} a.png\n:name: fig-e\n:::\n\n"
        "```markdown\n:label: shown\n```\n"
    )
    assert sorted(labels(text)) == ["eq-c", "eq-d", "fig-e", "lem-b", "sec-a"]
    assert "fig-99-line" in notebook_labels(GOOD)
    assert repeated([*labels(text), "eq-c"]) == ["eq-c"]


def test_citations_are_found():
    assert cited_keys("{cite}`a`, {cite:t}`b,c` and {cite:p}`d`") == {"a", "b", "c", "d"}
    assert bibliography_keys("@article{a,\n title={A}}\n@book{ b ,\n}") == {"a", "b"}


def test_toc_and_run_times_are_read():
    assert listed_chapters("chapters:\n  - file: notebooks/01_a\n  - file: book/b") == ["01_a"]
    rows = [{"Chapter": "01_a", "Seconds": "91"}]
    assert len(slow_or_missing(["01_a", "02_b"], rows)) == 2
    assert slow_or_missing(["01_a"], [{"Chapter": "01_a", "Seconds": "90"}]) == []
