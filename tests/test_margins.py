"""The claims of every notebook keep their distance from their bounds."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9A-Z]*_*.ipynb"))
MIN_MARGIN = 5.5  # standard deviations

spec = importlib.util.spec_from_file_location("margins", ROOT / "tests" / "margins" / "run.py")
margins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(margins)


def too_close(summary):
    """Texts of claims whose margin is below the least; a float identity has at least that."""
    return [row["text"] for row in summary if not float(row["margin"]) >= MIN_MARGIN]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_was_studied_and_keeps_its_margin(notebook):
    folder = ROOT / "tests" / "margins"
    summary = margins.read(folder / f"{notebook.stem}_summary.csv")
    assert [row["text"] for row in summary] == [text for _, text in margins.claims_of(notebook)]
    assert min(int(row["runs"]) for row in summary) >= 30
    assert too_close(summary) == []
    assert summary == [
        {key: str(value) for key, value in row.items()}
        for row in margins.summarise(margins.read(folder / f"{notebook.stem}.csv"))
    ]


def row(value, at_most="", at_least="", text="a", offset=0):
    bounds = {"at_most": at_most, "at_least": at_least}
    return {"offset": offset, "text": text, "value": value, **bounds}


def test_the_margin_is_the_distance_to_the_nearer_bound():
    assert margins.margin([1.0, 2.0, 3.0], at_most=5.0, at_least=None) == 3.0
    assert margins.margin([1.0, 2.0, 3.0], at_most=5.0, at_least=1.5) == 0.5
    assert margins.margin([1.0, 2.0, 3.0], at_most=1.0, at_least=None) == -1.0
    assert margins.margin([1.0, 1.0], at_most=1.0, at_least=None) == math.inf
    assert margins.margin([2.0, 2.0], at_most=1.0, at_least=None) == -math.inf


def test_the_last_run_sets_the_bounds():
    rows = [row("1", at_most="2"), row("3", at_most="5", at_least="0", offset=1)]
    summary = margins.summarise(rows)
    assert summary[0]["at_most"] == 5.0
    assert summary[0]["worst"] == "1"  # the nearer to a bound


def test_a_claim_too_close_to_its_bound_is_found():
    rows = [row(str(n), at_least="0", text="close", offset=n) for n in (1, 2, 3)]
    rows += [row(str(n + 100), at_least="0", text="far", offset=n) for n in (1, 2, 3)]
    assert too_close(margins.summarise(rows)) == ["close"]
    with pytest.raises(ValueError, match="'far' occurs in 2 of 3 runs: the notebook has changed"):
        margins.summarise(rows[:-1])


def test_tables_are_written_whole(tmp_path):
    table = tmp_path / "t.csv"
    margins.write(table, ("a", "b"), [{"a": 1, "b": "x, y"}])
    assert list(csv.DictReader(table.open())) == [{"a": "1", "b": "x, y"}]
    with pytest.raises(ValueError):
        margins.write(table, ("a",), [{"unknown": 1}])
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def code(source, *printed):
    outputs = [{"output_type": "stream", "name": "stdout", "text": f"✓ {t}\n"} for t in printed]
    return {"cell_type": "code", "source": source, "outputs": outputs}


CELLS = [
    code("import torch\nn = 3"),
    {"cell_type": "markdown", "source": "Text with x = 1."},
    code("def make(k):\n    return [n] * k"),
    code("x = make(2)"),
    code("y = make(3)"),
    code("x.append(1)"),
    code("history = train_gan(y)"),
    code("ax.plot(y)\nprint(x)"),
    code("claim('of x', sum(x), at_least=0)", "of x"),
    code("claim('of y', sum(y), at_least=0)", "of y"),
]


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [({8}, [0, 2, 3, 5, 8]), ({9}, [0, 2, 4, 6, 9]), ({8, 9}, [0, 2, 3, 4, 5, 6, 8, 9])],
)
def test_a_run_executes_what_its_claims_need(wanted, needed):
    assert margins.cells_for(CELLS, wanted) == needed


def test_what_a_loop_binds_is_its_own():
    code = "for name, x in rows.items():\n    y = f(x)\n    table[name] = g(y)\n    n += 1"
    read, changed, replaced = margins.names_of(code)
    assert read == {"rows", "f", "table", "g", "n"}
    assert changed == {"name", "x", "y", "table", "n"}
    assert replaced == set()
    assert margins.names_of("with quiet() as q:\n    z = q(a)\nz = b\nz")[0] == {"quiet", "a", "b"}


def test_a_study_measures_what_the_table_lacks(tmp_path, monkeypatch):
    notebook = tmp_path / "01_a.ipynb"
    notebook.write_text(json.dumps({"cells": CELLS}), encoding="utf-8")
    asked = []

    def run_once(notebook, offset, texts):
        asked.append((offset, texts))
        run = {"offset": offset, "capability": "avx2", "threads": "1"}
        bounds = {"at_most": None, "at_least": 0.0}
        return [{**run, "text": text, "value": offset, **bounds} for text in texts]

    monkeypatch.setattr(margins, "FOLDER", tmp_path)
    monkeypatch.setattr(margins, "run_once", run_once)
    margins.study(notebook, runs=2, jobs=1)
    assert asked == [(1000, {"of x", "of y"}), (1001, {"of x", "of y"})]
    table = margins.read(tmp_path / "01_a.csv")
    assert [row["text"] for row in table] == ["of x", "of y"] * 2
    gone = {**table[0], "text": "gone"}
    margins.write(tmp_path / "01_a.csv", margins.RUN_COLUMNS, [gone, *table[1:]])
    asked.clear()
    margins.study(notebook, runs=2, jobs=1)
    assert asked == [(1000, {"of x"})]
    assert margins.read(tmp_path / "01_a.csv") == table
    summary = margins.read(tmp_path / "01_a_summary.csv")
    assert [row["text"] for row in summary] == ["of x", "of y"]


def test_a_run_is_made_by_the_python_that_was_asked_for(tmp_path, other_python):
    lines = ["import os", "from gan_ebm_utils.claims import claim"]
    lines.append("claim('own', float('OTHER' in os.environ), at_most=0.5)")
    cell = {**code("\n".join(lines), "own"), "metadata": {}, "execution_count": 1}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    path = tmp_path / "01_a.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    (row,) = margins.run_once(path, 1000, {"own"})
    assert row["value"] == 0
