"""Notebooks are stored whole, with the same bytes every time, or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
CELLS = [
    "import sys",
    "from tqdm import tqdm\nfor _ in tqdm(range(3)):\n    pass",
    "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])",
    "print(1 + 1)",
]


@pytest.fixture
def tree(tmp_path):
    """A course with one notebook, and the script that executes it."""
    (tmp_path / "book" / "_tools").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "book/_tools/execute_notebooks.py", tmp_path / "book/_tools")
    return tmp_path


def write(tree, name, sources):
    cells = [
        {"cell_type": "code", "execution_count": 9, "metadata": {"collapsed": True, "tags": ["t"]},
         "outputs": [], "source": source}
        for source in sources
    ]  # fmt: skip
    notebook = {"cells": cells, "metadata": {"widgets": {}}, "nbformat": 4, "nbformat_minor": 4}
    path = tree / "notebooks" / name
    path.write_text(json.dumps(notebook))
    return path


def execute(tree, *arguments):
    command = [sys.executable, tree / "book/_tools/execute_notebooks.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_second_run_writes_the_same_bytes(tree):
    path = write(tree, "01_toy.ipynb", CELLS)
    run = execute(tree)
    assert run.returncode == 0, run.stderr
    first = path.read_bytes()
    assert execute(tree, path).returncode == 0
    assert path.read_bytes() == first
    notebook = json.loads(first)
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-00{n}" for n in range(1, 5)]
    assert all(cell["metadata"] == {"tags": ["t"]} for cell in notebook["cells"])
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    outputs = [output for cell in notebook["cells"] for output in cell["outputs"]]
    assert [output["output_type"] for output in outputs] == ["display_data", "stream"]
    header, row = (tree / "book/run_times.csv").read_text().splitlines()
    assert header == "Chapter,Seconds,When,Machine"
    assert row.startswith("01_toy,") and "CPU cores" in row


def test_a_notebook_that_fails_is_not_stored_and_the_others_are(tree):
    bad = write(tree, "01_bad.ipynb", ["1 / 0"])
    good = write(tree, "02_good.ipynb", ["print(2)"])
    before = bad.read_bytes()
    run = execute(tree)
    assert run.returncode == 1
    assert "ZeroDivisionError" in run.stderr and "01_bad.ipynb" in run.stderr
    assert bad.read_bytes() == before
    assert json.loads(good.read_text())["cells"][0]["execution_count"] == 1
    assert "01_bad" not in (tree / "book/run_times.csv").read_text()
    assert sorted(path.name for path in (tree / "notebooks").iterdir()) == [bad.name, good.name]


SAYS_WHICH = "import os, sys\nprint(sys.executable, os.environ.get('OTHER', 'own'))"


def test_the_kernel_is_the_python_that_was_asked_for(tree, other_python):
    path = write(tree, "01_which.ipynb", [SAYS_WHICH])
    run = execute(tree)
    assert run.returncode == 0, run.stderr
    (cell,) = json.loads(path.read_text())["cells"]
    assert "".join(cell["outputs"][0]["text"]) == f"{sys.executable} own\n"
    # The control: by its name alone the kernel would be the other one.
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute()
    assert notebook.cells[0].outputs[0].text == f"{sys.executable} other\n"


def test_an_unknown_notebook_is_named(tree):
    run = execute(tree, "notebooks/77_none.ipynb")
    assert run.returncode == 1 and "77_none.ipynb" in run.stderr


SAYS = "def claim(text):\n    print('✓ ' + text)"
FOLDED = [
    "# @title Set-up\n" + SAYS,
    "claim('a')\nclaim('b')",
    "claim('a')\nprint(1)",
    "claim('a')",
]


def test_claims_and_titled_cells_are_folded(tree):
    path = write(tree, "01_toy.ipynb", FOLDED)
    assert execute(tree).returncode == 0
    stored = path.read_bytes()
    setup, two, mixed, one = json.loads(stored)["cells"]
    assert "".join(two["source"]) == "# @title ✓ 2 checks\nclaim('a')\nclaim('b')"
    assert "".join(one["source"]).startswith("# @title ✓ 1 check\n")
    for cell, title in ((setup, "Set-up"), (two, "✓ 2 checks"), (one, "✓ 1 check")):
        assert cell["metadata"] == {
            "cellView": "form",  # Colab shows the title
            "collapsed": True,
            "jupyter": {"outputs_hidden": True, "source_hidden": True},
            "mystnb": {"code_prompt_hide": title, "code_prompt_show": title},
            "tags": ["hide-cell", "t"],
        }
    assert mixed["metadata"] == {"tags": ["t"]}
    assert "".join(mixed["source"]) == FOLDED[2]
    assert execute(tree).returncode == 0
    assert path.read_bytes() == stored
    write_again = json.loads(stored)
    write_again["cells"][1]["source"] = "# @title ✓ 2 checks\nclaim('a')"  # one claim has gone
    write_again["cells"][0]["source"] = SAYS  # and a title
    path.write_text(json.dumps(write_again))
    assert execute(tree).returncode == 0
    setup, one = json.loads(path.read_bytes())["cells"][:2]
    assert "".join(one["source"]) == "# @title ✓ 1 check\nclaim('a')"
    assert setup["metadata"] == {"tags": ["t"]}
