"""The map of methods is what its tool writes, and every link of it leads to a chapter."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "book" / "_tools" / "make_map.py"
PAGE = (ROOT / "book" / "map.md").read_text(encoding="utf-8")
TOC = (ROOT / "_toc.yml").read_text(encoding="utf-8")

spec = importlib.util.spec_from_file_location("make_map", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def details(page):
    """method -> where its row of the tables below the map leads, None without a link."""
    rows = re.findall(r"(?m)^\| (?:\[(\w+)\]\(\.\./notebooks/(\w+)\.ipynb\))? +\| (.*?) \|", page)
    found = {}
    for number, stem, names in rows:
        for name in re.sub(r"\{cite\}`[^`]*`", "", names).split(","):
            found[name.strip()] = (number, stem) if number else None
    return found


def test_the_page_holds_what_the_tool_writes():
    assert tool.written(PAGE) == PAGE
    assert tool.written(PAGE.replace("MH-GAN <", "MHGAN <")) == PAGE  # it is written anew


def test_the_map_is_one_block_of_html():
    """In Markdown an empty line would end it."""
    assert all(line.strip() for line in tool.table().splitlines())


def test_every_link_leads_to_a_chapter_that_is_listed():
    for number, stem in tool.CHAPTERS.items():
        assert stem.startswith(f"{number}_")
        assert f"- file: notebooks/{stem}\n" in TOC
    linked = {chapter for *_, chapter in tool.METHODS if chapter}
    assert linked == set(tool.CHAPTERS)


def test_every_method_has_a_name_and_is_in_the_tables_below():
    below = details(PAGE)
    for *_, name, _, chapter in tool.METHODS:
        if name == "VAE hybrids":  # several rows
            assert chapter is None
        else:
            expected = (chapter, tool.CHAPTERS[chapter]) if chapter else None
            assert below[name.removesuffix(" with MALA")] == expected, name  # a variant of a row


@pytest.mark.parametrize(("old", "new"), [("[07]", "[06]"), ("| MH-GAN ", "| MHGAN ")])
def test_a_row_that_differs_from_the_map_is_found(old, new):
    assert details(PAGE) != details(PAGE.replace(old, new))


def test_rows_and_columns_are_those_of_the_head():
    for row, column, _, kind, _ in tool.METHODS:
        assert row in tool.ROWS and column in tool.COLUMNS and kind in tool.KINDS
    body = tool.table()
    assert body.count("<td ") == len(tool.ROWS) * len(tool.COLUMNS)
    assert body.count('scope="col"') == len(tool.COLUMNS) + 1
    assert body.count('scope="row"') == len(tool.ROWS)
