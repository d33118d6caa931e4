"""The wheel holds the package and nothing else, and every notebook gives its outputs on it alone.

The notebooks run under strict nbval in a fresh environment that holds the wheel and a kernel, two
at a time. Where pytest itself is told to run them in the checkout (`--nbval`), they do not run here
again.
"""

import csv
import json
import os
import subprocess
import sys
import venv
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = "gan_ebm_utils"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9A-Z]*_*.ipynb"))
IMPORT_ALL = f"""
import importlib, pkgutil, {PACKAGE}
for module in pkgutil.walk_packages({PACKAGE}.__path__, "{PACKAGE}."):
    importlib.import_module(module.name)
print({PACKAGE}.__file__)
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
def python(wheel, tmp_path_factory):
    """The Python of a fresh environment that holds the wheel and a kernel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    # pip takes no `-e .` in a constraints file.
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("-e .\n", "")
    (folder / "pins.txt").write_text(pins, encoding="utf-8")
    pip = [python, "-m", "pip", "install", "-q", "--constraint", folder / "pins.txt"]
    run(*pip, wheel, "ipykernel", cwd=folder)
    return python


@pytest.fixture(scope="module")
def outside(python, tmp_path_factory):
    """The environment variables of a user who has nothing but that Python, named as a kernel."""
    folder = tmp_path_factory.mktemp("user")
    kernel = folder / "jupyter" / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "fresh", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "home").mkdir()
    inside = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GAN_EBM_DATA", "XDG_CACHE_HOME"}
    env = {key: value for key, value in os.environ.items() if key not in inside}
    env |= {
        "HOME": str(folder / "home"),
        "JUPYTER_PATH": str(folder / "jupyter"),
        "OMP_NUM_THREADS": "1",  # two notebooks at a time
    }
    # A new user's first start: fonts are listed once, which says so on stderr, and a profile made.
    run(python, "-m", "IPython", "-c", "import matplotlib.pyplot", env=env, cwd=folder)
    return env


def code_cell(source, stdout):
    """A cell that was executed and printed `stdout`."""
    output = {"output_type": "stream", "name": "stdout", "text": stdout}
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": source}
    return {**cell, "outputs": [output] if stdout else []}


def nbval(paths, folder, python, env):
    """Run copies of notebooks in an empty folder under strict nbval on the kernel `fresh`.

    Each copy ends with a cell whose stored output says which Python and which package it must find.
    Returns, by the notebook's name, what nbval said of each cell: None, or why it failed.
    """
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    source = f"import sys, {PACKAGE}\nprint(sys.executable, {PACKAGE}.__file__)"
    expected = f"{python} {Path(site, PACKAGE, '__init__.py')}\n"
    (folder / "empty").mkdir()
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        last = code_cell(source, expected)
        notebook["cells"].append({**last, "id": "last"} if notebook["nbformat_minor"] > 4 else last)
        (folder / "empty" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    options = ["-p", "no:cacheprovider", "--nbval", "--nbval-kernel-name=fresh", "--tb=short"]
    options += ["-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    options += [f"--rootdir={folder / 'empty'}", f"--junitxml={folder / 'results.xml'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(path.name for path in paths)],
        cwd=folder / "empty",
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), f"{done.stdout}\n{done.stderr}"  # all passed, some failed
    found = {path.name: [] for path in paths}
    for case in ET.parse(folder / "results.xml").iter("testcase"):
        (name,) = (name for name in found if name in f"{case.get('classname')} {case.get('name')}")
        found[name].append("\n".join(part.text or part.tag for part in case) or None)
    return found


def by_time(paths):
    """The longest first, so that none runs alone at the end."""
    with (ROOT / "book" / "run_times.csv").open(newline="", encoding="utf-8") as file:
        seconds = {row["Chapter"]: float(row["Seconds"]) for row in csv.DictReader(file)}
    return sorted(paths, key=lambda path: -seconds.get(path.stem, 0))


@pytest.fixture(scope="module")
def cells(python, outside, request, tmp_path_factory):
    if request.config.getoption("nbval"):
        pytest.skip("with --nbval the notebooks run in the checkout")
    return nbval(by_time(NOTEBOOKS), tmp_path_factory.mktemp("notebooks"), python, outside)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for suffix in ("py", "safetensors", "json")
        for path in (ROOT / PACKAGE).rglob(f"*.{suffix}")
        if ".partial-" not in str(path)
    }
    assert names == files


def test_every_module_needs_only_what_the_wheel_asks_for(python, outside, tmp_path):
    imported = Path(run(python, "-c", IMPORT_ALL, cwd=tmp_path, env=outside).strip())
    assert python.parents[1] in imported.parents
    assert imported.parts[-3:] == ("site-packages", PACKAGE, "__init__.py")
    with pytest.raises(AssertionError, match="No module named 'nbclient'"):
        run(python, "-c", "import nbclient", cwd=tmp_path, env=outside)


def test_what_is_wrong_in_a_notebook_is_found(python, outside, tmp_path):
    """The controls: each notebook but the first is bad in one way."""
    sources = {
        "good": ("print(1)", "1\n"),
        "other_output": ("print(2)", "1\n"),
        "no_output": ("pass", "1\n"),
        "needs_a_file": ("open('requirements.txt')", ""),
        "needs_more_than_the_wheel": ("import nbclient", ""),
        "other_package": (f"import {PACKAGE}\n{PACKAGE}.__file__ = 'elsewhere'", ""),
    }
    paths = []
    for name, cell in sources.items():
        notebook = {"cells": [code_cell(*cell)], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        paths.append(tmp_path / f"{name}.ipynb")
        paths[-1].write_text(json.dumps(notebook), encoding="utf-8")
    found = nbval(paths, tmp_path, python, outside)
    failed = {name.removesuffix(".ipynb"): [bool(cell) for cell in found[name]] for name in found}
    assert failed.pop("good") == [False, False]
    assert failed.pop("other_package") == [False, True]
    assert failed == {name: [True, False] for name in failed}
    assert "FileNotFoundError" in found["needs_a_file.ipynb"][0]
    assert "ModuleNotFoundError" in found["needs_more_than_the_wheel.ipynb"][0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_gives_its_outputs_on_the_wheel_alone(cells, path):
    failed = [cell for cell in cells[path.name] if cell]
    assert not failed, "\n".join(failed)
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(cells[path.name]) == 1 + sum(cell["cell_type"] == "code" for cell in stored)
