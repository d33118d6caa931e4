"""Write the repository's public address wherever the course needs it.

`make bind URL=https://github.com/owner/name`. The address stands in pyproject.toml
([tool.course] url); everything else is written from it: launch buttons in _config.yml, the install
cell of each notebook, the links in README.md, CITATION.cff. Binding again, to the same address or
to another, replaces what the last one wrote.
"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
BRANCH = "main"
URL = re.compile(r"https://github\.com/[A-Za-z0-9-]+/[A-Za-z0-9._-]+")
INSTALL = re.compile(r"(%pip install -q )\S.*")


def checked(url):
    """The address without a closing `/` or `.git`; ValueError if it is none of GitHub's."""
    address = url.strip().rstrip("/").removesuffix(".git")
    if not URL.fullmatch(address):
        raise ValueError(
            f"the address must look like https://github.com/owner/name, got {url!r}: "
            "make bind URL=https://github.com/owner/name"
        )
    return address


def between(text, begin, end, block, name):
    """`text` with the lines between the lines `begin` and `end` replaced by `block`."""
    pattern = re.compile(rf"(?<={re.escape(begin)}\n).*?(?={re.escape(end)}\n)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{name} must hold the lines {begin!r} and {end!r} once, in this order")
    return pattern.sub(lambda match: block, text)


def bound_pyproject(text, address):
    new, count = re.subn(r'(?m)^url = ".*"$', f'url = "{address}"', text)
    if count != 1:
        raise ValueError(f"pyproject.toml must hold one line `url = ...`, found {count}")
    return new


def bound_config(text, address):
    block = (
        f"repository:\n  url: {address}\n  path_to_book: ''\n  branch: {BRANCH}\n"
        "launch_buttons:\n  colab_url: https://colab.research.google.com\n"
    )
    return between(text, "# bind: begin", "# bind: end", block, "_config.yml")


def bound_citation(text, address):
    kept = re.sub(r"(?m)^repository-code: .*\n", "", text)
    return f"{kept}repository-code: {address}\n"


def bound_readme(text, address, notebooks):
    colab = address.replace("https://github.com", "https://colab.research.google.com/github")
    links = [f"- [{path.stem}]({colab}/blob/{BRANCH}/notebooks/{path.name})" for path in notebooks]
    block = "\n".join(["", f"The repository is <{address}>. In Colab:", "", *links, "", ""])
    return between(text, "<!-- bind: begin -->", "<!-- bind: end -->", block, "README.md")


def bound_notebook(text, address, name):
    """The notebook with its first code cell installing from the address; outputs stay."""
    notebook = nbformat.reads(text, as_version=4)
    cell = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    source = "" if cell is None else cell.source
    if len(INSTALL.findall(source)) != 1:
        raise ValueError(f"{name}: the first code cell must hold one line `%pip install -q ...`")
    cell.source = INSTALL.sub(rf"\g<1>git+{address}", source)
    return nbformat.writes(notebook) + "\n"


def bind(root, url):
    """Bind the tree below `root`; nothing is written unless every file can be."""
    address = checked(url)
    notebooks = sorted((root / "notebooks").glob("[0-9A-Z]*_*.ipynb"))

    def read(path):
        return path.read_text(encoding="utf-8")

    new = {
        path: bound(read(path), address)
        for path, bound in (
            (root / "pyproject.toml", bound_pyproject),
            (root / "_config.yml", bound_config),
            (root / "CITATION.cff", bound_citation),
        )
    }
    new[root / "README.md"] = bound_readme(read(root / "README.md"), address, notebooks)
    for path in notebooks:
        new[path] = bound_notebook(read(path), address, path.name)
    for path, text in new.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return sorted(path.relative_to(root).as_posix() for path in new)


if __name__ == "__main__":
    try:
        files = bind(ROOT, sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(f"not bound: {error}")
    print("\n".join(files))
