"""Run notebooks from the first cell to the last and store them with their outputs.

`make notebooks` runs every chapter; `python book/_tools/execute_notebooks.py PATH ...` runs some.
On one machine a second run writes the same bytes. Run times go to book/run_times.csv.

A cell whose first line is `# @title Words` is folded: its title stands for it in the book, in
JupyterLab and in Colab, until a reader opens it. A cell that prints nothing but claims is folded
under the title "✓ n checks".
"""

import csv
import datetime
import io
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).parents[2]
COLUMNS = ("Chapter", "Seconds", "When", "Machine")
# What else a cell's metadata holds, times and scroll positions, differs from run to run.
CELL_METADATA = ("cellView", "collapsed", "jupyter", "mystnb", "tags")
TITLE = "# @title "  # what Colab shows in the place of a folded cell, JupyterLab as its first line
CHECK = "✓ "


class OwnKernel(AsyncKernelManager):
    """A kernel of the Python that runs this, whatever a user's kernelspec named python3 starts."""

    @property
    def kernel_spec(self):
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def normalise(notebook):
    """Remove in place what differs between two runs of the same notebook."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number:03d}"
        kept = {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        cell["metadata"] = nbformat.from_dict(kept)


def fold(cell):
    """Fold in place a code cell that has a title, or only claims; unfold one that has lost it."""
    printed = "".join(output.get("text", "") for output in cell.outputs).splitlines()
    only_claims = printed and all(line.startswith(CHECK) for line in printed)
    if only_claims and all(output.output_type == "stream" for output in cell.outputs):
        title = f"{CHECK}{len(printed)} check{'s' if len(printed) > 1 else ''}"
        body = cell.source.split("\n", 1)[1] if cell.source.startswith(TITLE) else cell.source
        cell.source = f"{TITLE}{title}\n{body}"
    meta = cell.metadata
    tags = [tag for tag in meta.get("tags", []) if tag != "hide-cell"]
    mystnb = {key: value for key, value in meta.get("mystnb", {}).items() if "prompt" not in key}
    for key in ("cellView", "collapsed", "jupyter"):
        meta.pop(key, None)
    if cell.source.startswith(TITLE):
        title = cell.source.split("\n", 1)[0].removeprefix(TITLE)
        tags = sorted([*tags, "hide-cell"])
        mystnb |= {"code_prompt_show": title, "code_prompt_hide": title}
        meta["cellView"] = "form"  # Colab
        meta["jupyter"] = {"source_hidden": True, "outputs_hidden": True}  # JupyterLab
        meta["collapsed"] = True  # both, of the outputs
    elif "hide-input" in tags:
        meta["jupyter"] = {"source_hidden": True}
    for key, value in (("mystnb", mystnb), ("tags", tags)):
        if value:
            meta[key] = value
        else:
            meta.pop(key, None)


def execute(path):
    """Run the notebook at `path`, store it, and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    normalise(notebook)
    client = NotebookClient(
        notebook,
        kernel_manager_class=OwnKernel,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,  # one output for one cell's text, however it was flushed
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    normalise(notebook)  # the kernel has filled language_info in
    for cell in notebook.cells:
        if cell.cell_type == "code":
            fold(cell)
    for number, cell in enumerate(notebook.cells, start=1):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            raise ValueError(f"cell {number} of {path.name} ends in an error")
    write_text(path, nbformat.writes(notebook) + "\n")
    return seconds


def write_text(path, text):
    """Write a file whole or not at all."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def note_run_time(table, chapter, seconds):
    """Put one row into the table of run times, in place of the chapter's former row."""
    rows = {}
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            rows = {row["Chapter"]: row for row in csv.DictReader(file)}
    machine = f"{os.cpu_count()} CPU cores, torch {version('torch').split('+')[0]}"
    today = datetime.date.today().isoformat()
    values = (chapter, str(round(seconds)), today, machine)
    rows[chapter] = dict(zip(COLUMNS, values, strict=True))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    write_text(table, text.getvalue())


def main(arguments):
    paths = [Path(name).resolve() for name in arguments]
    paths = paths or sorted((ROOT / "notebooks").glob("[0-9A-Z]*_*.ipynb"))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        sys.exit(f"no such notebook: {', '.join(missing)}")
    os.environ["TQDM_DISABLE"] = "1"
    failed = []
    for path in paths:
        try:
            seconds = execute(path)
        except (CellExecutionError, DeadKernelError, ValueError) as error:
            print(f"{path.name}: not stored.\n{error}", file=sys.stderr)
            failed.append(path.name)
            continue
        note_run_time(ROOT / "book" / "run_times.csv", path.stem, seconds)
        print(f"{path.name}: {seconds:.0f} s")
    if failed:
        sys.exit(f"not stored because a cell failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
