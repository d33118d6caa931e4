"""The wheel holds the package and nothing else, and every notebook runs on it alone."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = "gan_ebm_utils"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# Runs in the fresh environment. The last cell is ours: it says which package the others had.
RUN = f"""
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell("import {PACKAGE}\\nprint({PACKAGE}.__file__)"))
NotebookClient(notebook, kernel_name="python3", timeout=None).execute()
print(notebook.cells[-1].outputs[0].text)
"""


def run(*command, **options):
    """Run a command; on failure show what it said."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The Python of a fresh environment that holds the wheel and a kernel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    # pip takes no `-e .` in a constraints file.
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("-e .\n", "")
    (folder / "pins.txt").write_text(pins, encoding="utf-8")
    pip = [python, "-m", "pip", "install", "-q", "--constraint", folder / "pins.txt"]
    run(*pip, wheel, "ipykernel", "nbclient", cwd=folder)
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for suffix in ("py", "safetensors", "json")
        for path in (ROOT / PACKAGE).rglob(f"*.{suffix}")
        if ".partial-" not in str(path)
    }
    assert names == files


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_on_the_wheel_alone(environment, path, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "empty").mkdir()
    outside = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GAN_EBM_DATA", "XDG_CACHE_HOME"}
    env = {key: value for key, value in os.environ.items() if key not in outside}
    env["HOME"] = str(tmp_path / "home")
    said = run(environment, "-c", RUN, path, cwd=tmp_path / "empty", env=env)
    imported = Path(said.strip().splitlines()[-1])
    # The environment's Python may be a link: compare the folders, not what they resolve to.
    assert environment.parents[1] in imported.parents
    assert imported.parts[-3:] == ("site-packages", PACKAGE, "__init__.py")


def test_a_notebook_that_needs_a_file_of_the_repository_fails(environment, tmp_path):
    cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": []}
    cell["source"] = "open('requirements.txt')"
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "needs.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        run(environment, "-c", RUN, path, cwd=tmp_path)
