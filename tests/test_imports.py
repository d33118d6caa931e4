"""The package is a house of floors: each module imports alone, and imports run downward only.

What is public in them comes with an example that runs.
"""

import ast
import doctest
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = "gan_ebm_utils"
ROOT = Path(__file__).parents[1]
# A family of networks may build on another, the package that names them all lies above; a recipe
# that goes on from another's checkpoint, or shares its networks, lies above that one.
FLOORS = {
    "base": 0,
    "calibration": 2,
    "checkpoints": 2,
    "claims": 1,
    "datasets": 1,
    "energies": 1,
    "entropy": 1,
    "losses": 1,
    "metrics": 1,
    "networks": 1.5,
    "networks.autoencoders": 1.25,
    "networks.flows": 1.25,
    "networks.images": 1.25,
    "networks.residual": 1.4,
    "networks.stacked": 1,
    "networks.stacks": 1.25,
    "plotting": 1,
    "recipes.cifar10_features": 4.5,
    "recipes.cifar10_chains": 4.7,
    "recipes.cifar10_sngan": 4.7,
    "recipes.digits_classifier": 4.5,
    "recipes.hybrids": 4.7,
    "recipes.mnist_autoencoders": 4.5,
    "recipes.mnist_meg_anomaly": 4.5,
    "recipes.plain_refit": 4.5,
    "recipes.plane_begans": 4.5,
    "recipes.plane_directed": 4.5,
    "recipes.plane_ebgans": 4.5,
    "recipes.plane_meg": 4.5,
    "recipes.stacked_classifier": 4.5,
    "recipes.stacked_refined": 4.5,
    "refine": 2,
    "runs": 3,
    "samplers": 1,
    "training": 2,
}
RECIPE_FLOOR = 4
NO_CODE = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
)  # fmt: skip
# Modules all of whose public functions and classes have an example.
SHOWN = {"calibration", "checkpoints", "energies", "entropy", "networks", "refine", "samplers"}
SHOWN |= {"training"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def floor(module):
    """The floor of a module's full name; the package itself lies below all."""
    parts = module.split(".")[1:]
    if not parts:
        return -1
    name = ".".join(parts)
    return FLOORS.get(name, RECIPE_FLOOR) if parts[0] == "recipes" else FLOORS[name]


def imported_modules(module, source, modules):
    """Full names of the modules of the package that `source` imports, at any depth of its code."""
    inside = module.split(".")
    is_package = any(name.startswith(f"{module}.") for name in modules)
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + is_package] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{stem}.{alias.name}"
                found.add(name if name in modules else stem)
    return {name for name in found if name.split(".")[0] == PACKAGE and name != PACKAGE}


def broken_rules(module, source, modules):
    """What the imports of one module do against the floors, a sentence each."""
    broken = []
    for other in sorted(imported_modules(module, source, modules)):
        if floor(other) >= floor(module):
            broken.append(f"{module} imports {other}, which is not below it")
        elif other == f"{PACKAGE}.plotting" and floor(module) < RECIPE_FLOOR:
            broken.append(f"{module} imports plotting, which only notebooks and recipes may")
    return broken


# Each module is imported in a fork of a process that has imported libraries alone: these take most
# of the time of an import.
IMPORT_EACH = """
import os, sys
import matplotlib, pandas, scipy.optimize, scipy.stats, seaborn, sklearn.datasets, torch
for module in sys.argv[1:]:
    assert not any(name.startswith("gan_ebm_utils") for name in sys.modules)
    sys.stdout.flush()
    if not (child := os.fork()):
        os.dup2(1, 2)
        __import__(module)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f"\\0{module} {status}\\0")
"""


def imported_alone(modules, folder):
    """module -> (whether it could be imported, what that said), each without the others."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *modules], capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr
    said, ends = run.stdout.split("\0")[::2], run.stdout.split("\0")[1::2]
    ends = dict(end.split() for end in ends)
    return {
        module: (int(status) == 0, text.strip())
        for (module, status), text in zip(ends.items(), said, strict=False)
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_modules_import_alone_and_say_nothing(tmp_path):
    found = imported_alone(MODULES, ROOT)
    assert found == dict.fromkeys(MODULES, (True, ""))
    # The controls: one that speaks, and one that needs what another has imported.
    (tmp_path / "loud.py").write_text("print('hello')")
    (tmp_path / "lost.py").write_text("import nowhere")
    found = imported_alone(["loud", "lost", "json"], tmp_path)
    assert found["loud"] == (True, "hello") and found["json"] == (True, "")
    assert not found["lost"][0] and "nowhere" in found["lost"][1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert broken_rules(module, source, MODULES) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("base", "import gan_ebm_utils.losses"),
        ("base", "from gan_ebm_utils import losses"),
        ("base", "from . import losses"),
        ("losses", "from gan_ebm_utils.metrics import emd"),
        ("losses", "from .metrics import emd"),
        ("losses", "def f():\n    from .training import train_gan"),
        ("training", "from .plotting import save"),
        ("training", "from .recipes.mnist_features import main"),
        ("recipes.one", "from .two import main"),
        ("networks.stacked", "from .images import ConvGenerator"),
        ("networks.images", "from . import mlp"),
        ("losses", "from .networks.stacked import mlp"),
    ],
)
def test_an_import_that_breaks_the_floors_is_found(module, source):
    modules = [PACKAGE, f"{PACKAGE}.recipes", f"{PACKAGE}.recipes.one", f"{PACKAGE}.recipes.two"]
    modules += [f"{PACKAGE}.{name}" for name in FLOORS]
    assert broken_rules(f"{PACKAGE}.{module}", source, modules)


def test_an_import_that_keeps_to_the_floors_is_let_through():
    modules = [PACKAGE, *(f"{PACKAGE}.{name}" for name in FLOORS)]
    source = "import torch\nfrom gan_ebm_utils import base\nfrom .losses import bce"
    assert broken_rules(f"{PACKAGE}.training", source, modules) == []


def table_of_floors(text):
    """floor -> names of modules, as a table of CONTRIBUTING.md lists them."""
    rows = re.findall(r"\| (\d) \| (.*?) \|", text)
    return {int(number): set(re.findall(r"`(\w+)/?`", names)) for number, names in rows}


def test_the_table_of_floors_is_that_of_the_text():
    floors = {RECIPE_FLOOR: {"recipes"}}
    for name, number in FLOORS.items():
        if "." not in name:
            floors.setdefault(int(number), set()).add(name)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert table_of_floors(text) == floors
    assert table_of_floors(text.replace("`refine`, ", "")) != floors  # the control


def lines_of_code(source):
    """Lines that hold code: no blank one, no comment, no docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_of_code():
    head = '"""A\nmodule."""\n\nx = (  # a comment\n    1,\n)\n\n\n'
    function = 'def f():\n    """One."""\n    # no\n    return """two\nlines"""\n'
    assert lines_of_code(head + function) == 6


def test_the_package_stays_thin():
    sizes = {
        module: lines_of_code(path.read_text(encoding="utf-8"))
        for module, path in MODULES.items()
        if floor(module) < RECIPE_FLOOR
    }
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (limit,) = re.findall(r"at most ([\d,]+) lines of\s+code without recipes", text)
    assert sum(sizes.values()) <= int(limit.replace(",", "")), sizes


def without_example(source):
    """Public functions and classes of a module whose docstring has no example that runs."""
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
        if not any(not example.options.get(doctest.SKIP) for example in examples):
            found.append(node.name)
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if SHOWN & set(name.split("."))])
def test_what_is_public_has_an_example(module):
    assert without_example(MODULES[module].read_text(encoding="utf-8")) == []


EXAMPLE = '''
def shown():
    """One.

    >>> 1
    1
    """


def _private():
    pass
'''


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (">>> 1", "1", "shown"),
        (">>> 1", ">>> 1  # doctest: +SKIP", "shown"),
        ("_private", "public", "public"),
        ("def _private():", "class Public:", "Public"),
    ],
)
def test_a_missing_example_is_found(old, new, name):
    assert without_example(EXAMPLE) == []
    assert without_example(EXAMPLE.replace(old, new)) == [name]
