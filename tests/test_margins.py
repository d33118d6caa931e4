"""The claims of every notebook keep their distance from their bounds."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MIN_MARGIN = 5.5  # standard deviations

spec = importlib.util.spec_from_file_location("margins", ROOT / "tests" / "margins" / "run.py")
margins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(margins)


def claims(notebook):
    """The claims that a stored notebook printed, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [
        line
        for cell in cells
        for output in cell.get("outputs", [])
        for line in "".join(output.get("text", [])).splitlines()
    ]
    return [line.removeprefix("✓ ") for line in lines if line.startswith("✓ ")]


def too_close(summary):
    """Texts of claims whose margin is below the least; a float identity has at least that."""
    return [row["text"] for row in summary if not float(row["margin"]) >= MIN_MARGIN]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_was_studied_and_keeps_its_margin(notebook):
    folder = ROOT / "tests" / "margins"
    summary = margins.read(folder / f"{notebook.stem}_summary.csv")
    assert [row["text"] for row in summary] == claims(notebook)
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
