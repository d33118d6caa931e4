"""The public address is written everywhere at once, again and again, or not at all."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST = "https://github.com/ada/course"
SECOND = "https://github.com/emmy-noether/gan.ebm_2"
SCRIPT = "book/_tools/bind.py"
FILES = ["pyproject.toml", "_config.yml", "CITATION.cff", "README.md", SCRIPT]
FILES += [path.relative_to(ROOT) for path in ROOT.glob("notebooks/[0-9A-Z]*_*.ipynb")]


spec = importlib.util.spec_from_file_location("bind", ROOT / SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
bind = script.bind


@pytest.fixture
def tree(tmp_path):
    """A copy of every file that binding reads."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def contents(tree):
    return {path: path.read_text(encoding="utf-8") for path in tree.rglob("*.*") if path.is_file()}


def test_binding_writes_the_address_everywhere(tree):
    bind(tree, FIRST)
    assert f'url = "{FIRST}"' in (tree / "pyproject.toml").read_text()
    assert f"repository:\n  url: {FIRST}\n" in (tree / "_config.yml").read_text()
    assert "colab_url: https://colab.research.google.com" in (tree / "_config.yml").read_text()
    assert f"repository-code: {FIRST}\n" in (tree / "CITATION.cff").read_text()
    colab = "https://colab.research.google.com/github/ada/course/blob/main/notebooks/"
    for path in (tree / "notebooks").glob("*.ipynb"):
        before = json.loads((ROOT / "notebooks" / path.name).read_text(encoding="utf-8"))
        after = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            (old, new)
            for old, new in zip(before["cells"], after["cells"], strict=True)
            if old != new
        ]
        assert len(changed) <= 1
        installs = next(cell for cell in after["cells"] if cell["cell_type"] == "code")
        assert f"%pip install -q git+{FIRST}" in "".join(installs["source"])
        assert f"]({colab}{path.name})" in (tree / "README.md").read_text(encoding="utf-8")


def test_binding_again_changes_nothing_and_rebinding_leaves_nothing(tree):
    bind(tree, FIRST)
    first = contents(tree)
    bind(tree, FIRST + ".git/")
    assert contents(tree) == first
    bind(tree, SECOND)
    assert not [path for path, text in contents(tree).items() if FIRST in text]
    bind(tree, FIRST)
    assert contents(tree) == first


@pytest.mark.parametrize(
    "url",
    ["", "course", "http://github.com/ada/course", "https://github.com/ada", "https://a.org/b/c",
     "https://github.com/ada/course/tree/main", "https://github.com/ada/co urse"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(tree, url):
    before = contents(tree)
    with pytest.raises(ValueError, match="must look like https://github.com/owner/name"):
        bind(tree, url)
    assert contents(tree) == before


def test_a_file_without_its_place_is_named_and_nothing_is_written(tree):
    config = tree / "_config.yml"
    config.write_text(config.read_text().replace("# bind: end\n", ""))
    before = contents(tree)
    with pytest.raises(ValueError, match="_config.yml must hold the lines '# bind: begin'"):
        bind(tree, FIRST)
    assert contents(tree) == before


def test_the_command_says_what_it_wrote_or_why_not(tree):
    def run(*arguments):
        command = [sys.executable, tree / SCRIPT, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    assert run(FIRST).stdout.splitlines() == sorted(str(name) for name in FILES if name != SCRIPT)
    assert run().returncode == 1
    assert run().stderr.startswith("not bound: the address must look like")


def test_the_tree_agrees_with_its_own_address(tree):
    """A chapter added after binding must be bound too; before, nothing links to nowhere."""
    text = (tree / "pyproject.toml").read_text(encoding="utf-8")
    url = re.search(r'(?m)^url = "(.*)"$', text)[1]
    before = contents(tree)
    if url:
        bind(tree, url)
        assert contents(tree) == before
    else:
        assert "launch_buttons" not in before[tree / "_config.yml"]
        assert "repository-code" not in before[tree / "CITATION.cff"]
        assert "colab.research" not in before[tree / "README.md"]
