"""Measure how far the claims of a notebook stay from their bounds.

    python tests/margins/run.py [NOTEBOOK ...] [--runs 30] [--jobs 2]

Each run executes the notebook with an offset added to every seed, so with numbers that the book
does not use, over vector instructions (avx2, default) and threads (1, 2) in turn. The values of all
claims go to NOTEBOOK.csv in this folder, one row per claim and run; what the claims then keep from
their bounds, in standard deviations over the runs, to NOTEBOOK_summary.csv.

The claims are those that the stored notebook has printed. What the table holds is not measured
again, and a run executes only the cells that the missing claims need. So delete the rows of a claim
whose code has changed; those of a claim that is gone are dropped.
"""

import argparse
import ast
import csv
import io
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
FIRST_OFFSET = 1000  # far from the seeds of the book
# Without vector instructions a run takes three times as long, so these are fewer.
AVX2 = [("avx2", "1"), ("avx2", "2"), ("avx2", "1")]
CONDITIONS = [("default", "1"), *AVX2, *AVX2, ("default", "2"), *AVX2, *AVX2, *AVX2]
RUN_COLUMNS = ("offset", "capability", "threads", "text", "at_most", "at_least", "value")
SUMMARY_COLUMNS = ("text", "at_most", "at_least", "runs", "mean", "sd", "worst", "margin")

EXECUTE = f"""
import json, nbformat, sys
from nbclient import NotebookClient
sys.path.append({str(ROOT / "book" / "_tools")!r})
from execute_notebooks import OwnKernel
notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells = [notebook.cells[number] for number in json.loads(sys.argv[2])]
NotebookClient(notebook, kernel_manager_class=OwnKernel, timeout=None).execute()
"""
# Calls that change none of their arguments, and objects whose methods change nothing but a figure.
HARMLESS = {"print", "claim", "display", "setattr"}
DRAWING = {"ax", "axes", "fig", "figure", "plt", "plotting", "sns"}
IN_PLACE = ("train", "fit", "refit")  # functions that change their arguments, whatever they return


def claims_of(notebook):
    """The claims that a stored notebook has printed, in order: pairs of cell number and text."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        (number, line.removeprefix("✓ "))
        for number, cell in enumerate(cells)
        for output in cell.get("outputs", [])
        for line in "".join(output.get("text", [])).splitlines()
        if line.startswith("✓ ")
    ]


def names_of(code):
    """(read, changed, replaced): names that a cell needs, alters or binds, and those it binds anew.

    What it binds anew it needs from no other cell; what it only alters it does.
    """
    lines = [re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in code.splitlines()]
    read, changed, replaced = set(), set(), set()
    look_through(ast.parse("\n".join(lines)).body, read, changed, replaced)
    return read, changed - {None}, replaced


def look_through(body, read, changed, bound):
    """Add the names that statements read before they bind them, change, and bind for certain."""
    for statement in body:
        inner = [getattr(statement, part, []) for part in ("body", "orelse")]
        is_block = isinstance(statement, ast.For | ast.While | ast.With | ast.If)
        local, loads, made = set(), set(), set()
        for node in (
            itertools.chain(*map(ast.walk, heads(statement))) if is_block else ast.walk(statement)
        ):
            if isinstance(node, ast.arg):
                local.add(node.arg)
            elif isinstance(node, ast.comprehension):
                local |= {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
            elif isinstance(node, ast.alias):
                made.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.Name):
                (loads if isinstance(node.ctx, ast.Load) else made).add(node.id)
            elif isinstance(node, ast.Attribute | ast.Subscript):
                if not isinstance(node.ctx, ast.Load):
                    changed.add(root_of(node))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                changed |= changed_by(node.value)
            elif isinstance(node, ast.Call) and str(called(node)).startswith(IN_PLACE):
                changed |= changed_by(node)
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            local, made = local | made, {statement.name}
        if isinstance(statement, ast.AugAssign):
            loads |= {root_of(statement.target)}
        read |= loads - local - bound
        changed |= made - local
        if is_block:
            # A loop may run no time at all: what it binds is bound inside it only.
            for block in inner:
                look_through(block, read, changed, bound | made)
        elif not isinstance(statement, ast.AugAssign):
            bound |= made - local


def heads(block):
    """What a loop, a condition or a with-statement evaluates before its body."""
    if isinstance(block, ast.For):
        return [block.iter, block.target]
    if isinstance(block, ast.With):
        return [
            part for item in block.items for part in (item.context_expr, item.optional_vars) if part
        ]
    return [block.test]


def root_of(node):
    """The name at the left end of a chain such as a.b[c].d, or None."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def called(call):
    return getattr(call.func, "id", getattr(call.func, "attr", None))


def changed_by(call):
    """Names of the objects that a call may change: its arguments, and what a method belongs to."""
    if called(call) in HARMLESS or root_of(call) in DRAWING:
        return {root_of(call)} - HARMLESS - {"plotting"}  # a module that no call changes
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return {root_of(argument) for argument in arguments} | {root_of(call)}


def cells_for(cells, wanted):
    """Numbers of the cells that those in `wanted` need, themselves included, in order."""
    needed, names = set(), set()
    for number in range(len(cells) - 1, -1, -1):
        if cells[number]["cell_type"] != "code":
            continue
        read, changed, replaced = names_of("".join(cells[number]["source"]))
        if number in wanted or changed & names:
            needed.add(number)
            names = names - replaced | read
    return sorted(needed)


def run_once(notebook, offset, texts):
    """Execute what `texts` need with the given seed offset; return the rows of these claims."""
    capability, threads = CONDITIONS[offset % len(CONDITIONS)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "claims.jsonl"
        environment = os.environ | {
            "ATEN_CPU_CAPABILITY": capability,
            "OMP_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "passive",
            "GAN_EBM_SEED_OFFSET": str(offset),
            "GAN_EBM_CLAIMS_LOG": str(log),
            "TQDM_DISABLE": "1",
        }
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        numbers = cells_for(cells, {n for n, text in claims_of(notebook) if text in texts})
        subprocess.run(
            [sys.executable, "-c", EXECUTE, str(notebook), json.dumps(numbers)],
            cwd=folder,
            env=environment,
            check=True,
        )
        claims = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    run = {"offset": offset, "capability": capability, "threads": threads}
    return [{**run, **claim} for claim in claims if claim["text"] in texts]


def margin(values, at_most, at_least):
    """Distance of the mean from the nearer bound in standard deviations; inf if all are equal."""
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    gaps = [at_most - mean if at_most is not None else math.inf]
    gaps.append(mean - at_least if at_least is not None else math.inf)
    return min(gaps) / sd if sd else math.copysign(math.inf, min(gaps))


def excess(value, at_most, at_least):
    """How far a value lies beyond the nearer bound; negative within both."""
    beyond = [value - at_most] if at_most is not None else []
    return max([*beyond, at_least - value] if at_least is not None else beyond)


def summarise(rows):
    """One row per claim, in the order of the notebook."""
    claims, runs = {}, len({int(row["offset"]) for row in rows})
    for row in rows:
        claims.setdefault(row["text"], []).append(row)
    summary = []
    for text, of_text in claims.items():
        # A bound may itself be computed; all runs of one claim are judged by the last one's.
        at_most, at_least = (number(of_text[-1][side]) for side in ("at_most", "at_least"))
        values = [float(row["value"]) for row in of_text]
        if len(values) != runs:
            raise ValueError(
                f"claim {text!r} occurs in {len(values)} of {runs} runs: the notebook has changed; "
                "measure again"
            )
        summary.append(
            {
                "text": text,
                "at_most": "" if at_most is None else at_most,
                "at_least": "" if at_least is None else at_least,
                "runs": len(values),
                "mean": f"{statistics.fmean(values):.6g}",
                "sd": f"{statistics.stdev(values):.3g}",
                "worst": f"{max(values, key=lambda value: excess(value, at_most, at_least)):.6g}",
                "margin": f"{margin(values, at_most, at_least):.2f}",
            }
        )
    return summary


def number(cell):
    """A cell of the table as a number, None if it is empty."""
    return None if cell in ("", None) else float(cell)


def read(table):
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(table, columns, rows):
    """Write the table whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    partial = table.with_name(f".partial-{os.getpid()}-{table.name}")
    try:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="\n")
        os.replace(partial, table)
    finally:
        partial.unlink(missing_ok=True)


def study(notebook, runs, jobs):
    table = FOLDER / f"{notebook.stem}.csv"
    order = {text: place for place, (_, text) in enumerate(claims_of(notebook))}
    rows = [row for row in read(table) if row["text"] in order]
    offsets = range(FIRST_OFFSET, FIRST_OFFSET + runs)
    missing = {offset: set(order) for offset in offsets}
    for row in rows:
        missing.get(int(row["offset"]), set()).discard(row["text"])
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(run_once, notebook, n, texts): n for n, texts in missing.items() if texts
        }
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # a fault of the notebook would hit every run
            rows += future.result()
            write(table, RUN_COLUMNS, rows)
            print(f"{notebook.stem}: offset {futures[future]}", flush=True)
    # Without those of claims that are gone, in the order in which the notebook has them now.
    rows.sort(key=lambda row: (int(row["offset"]), order[row["text"]]))
    write(table, RUN_COLUMNS, rows)
    write(FOLDER / f"{notebook.stem}_summary.csv", SUMMARY_COLUMNS, summarise(rows))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(argv)
    if args.runs < 2 or args.jobs < 1:
        parser.error("--runs must be at least 2 and --jobs at least 1")
    notebooks = args.notebooks or sorted((ROOT / "notebooks").glob("[0-9A-Z]*_*.ipynb"))
    for notebook in notebooks:
        study(notebook.resolve(), args.runs, args.jobs)


if __name__ == "__main__":
    main()
