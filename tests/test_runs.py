"""What recipes share: every setting is in the key of a run, and what is damaged is made again."""

import argparse
import ast
import importlib
import json
import os
import pickle
from pathlib import Path

import cloudpickle
import numpy
import pytest
import torch

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.recipes import one_budget, plane_gans

RECIPES = Path(runs.__file__).parent / "recipes"
# Of each recipe: what its parts depend on, as code that runs in its module.
SETTINGS = {
    "cifar10_features": "[settings_of(size) for size in SIZES]",
    "cifar10_chains": "[settings_of()]",
    "cifar10_sngan": "[settings_of(size) for size in SIZES]",
    "cover": "settings_of(9)",
    "digits_classifier": "settings_of(9)",
    "ebgan_grid": "[settings_of(name) for name in GRIDS]",
    "gan_with_ebm": "[settings_of(n, *STEPS[n], g.replicates) for n, g in GAMES.items()]",
    "hybrids": "[settings_of(name, (9, 9), 9) for name in LAWS]",
    "mnist_autoencoders": "[settings_of(name, 9, 9) for name in GAMES]",
    "mnist_features": "settings_of(9)",
    "mnist_gan": "settings_of(9, 9, 9)",
    "mnist_meg_anomaly": "settings_of(9, 9)",
    "one_budget": """[
        (bench.choice_given(use), bench.scores_given(use, size), use.is_watched,
         bench.watch_given(use, size))
        for name, game in GAMES.items()
        for judge in [Judge(None, None, None, None, judged(name, 9, {}), {}, {})]
        for bench in [Bench(name, Stored({}, {}, {"sha256": "9"}), judge, game["n"], 9)]
        for use in uses_of(game)
        for size in bench.sizes(use)
    ]""",
    "plane_begans": "[settings_of(game, game.replicates) for game in GAMES.values()]",
    "plane_directed": "settings_of(9)",
    "plane_ebgans": "[settings_of(name, 9, 9) for name in NAMES]",
    "plane_ebms": "settings_of(9, 9)",
    "plain_refit": "settings_of({'settings': {'replicates': 9}}, 9)",
    "plane_gans": "[settings_of(name, 9, 9) for name in GAMES]",
    "plane_meg": "[settings_of(name, 9, 9) for name in NAMES]",
    "stacked_classifier": "settings_of(9)",
    "stacked_mnist": "[settings_of(size) for size in SIZES]",
    "stacked_refined": "settings_of()",
}
# What is stored or drawn to look at, when all is finished.
FREE = {("mnist_features", "N_CHECK"), ("ebgan_grid", "SECONDS"), ("stacked_mnist", "WARM_UP")}
FREE |= {("cifar10_sngan", "N_SHOWN")}
FREE |= {("cover", name) for name in ("BOX", "N_SCORED, N_SHOWN", "TOP")}


def numbers(source):
    """(constant, node) for every number in the constants at the top of a module."""
    found = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            left = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            name = ast.unparse(left).strip("()")
            nodes = [node for node in ast.walk(statement.value) if isinstance(node, ast.Constant)]
            found += [(name, node) for node in nodes if type(node.value) in (int, float)]
    return found


def key(recipe, source):
    """The settings of a recipe whose source is given, as text."""
    module = {"__name__": recipe, "Stored": checkpoints.Checkpoint}
    exec(compile(source, recipe, "exec"), module)
    return json.dumps(eval(SETTINGS[recipe], module), sort_keys=True)


def changed(source, node):
    """`source` with one number replaced by another."""
    lines = source.splitlines(keepends=True)
    line = lines[node.lineno - 1].encode()
    new = str(node.value + 1).encode()
    lines[node.lineno - 1] = (line[: node.col_offset] + new + line[node.end_col_offset :]).decode()
    return "".join(lines)


def in_no_key(recipe, source):
    """The constants of which a number can change unseen."""
    whole = key(recipe, source)
    return {name for name, node in numbers(source) if key(recipe, changed(source, node)) == whole}


def source_of(recipe):
    return (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", SETTINGS)
def test_every_number_of_a_recipe_is_in_its_key(recipe):
    assert {(recipe, name) for name in in_no_key(recipe, source_of(recipe))} <= FREE


def test_a_number_that_is_in_no_key_is_found():
    source = source_of("plane_ebms")
    assert in_no_key("plane_ebms", source.replace('        "box": BOX,\n', "")) == {"BOX, N_CELLS"}
    assert in_no_key("plane_ebms", source.replace("        **BUFFER,\n", "")) == {"BUFFER"}

    source = source_of("one_budget")
    less = source.replace("            n_chains=N_CHAINS,\n", "").replace(
        "            passes", "  #"
    )
    assert in_no_key("one_budget", less) == {"N_CHAINS", "SAMPLERS"}


def test_all_recipes_are_here():
    assert {path.stem for path in RECIPES.glob("*.py")} == {*SETTINGS, "__init__"}


def begin(folder, settings=None, seed=0, recipe="r", parts=(), **read_from):
    args = argparse.Namespace(seed=seed, state=folder)
    run = runs.Run(recipe, settings or {}, args, runs.Progress(), **read_from)
    run.expect(dict(parts))
    return run


def test_parts_of_another_run_are_not_taken(tmp_path):
    run = begin(tmp_path, {"box": (1.0, 2.0)}, parts={"p": 1})
    assert run.given == {"recipe": "r", "settings": {"box": [1.0, 2.0]}, "seed": 0}
    assert run.once("p", lambda: "first")[0] == "first"
    others = (
        begin(tmp_path, {"box": (1.0, 2.0)}, recipe="s", parts={"p": 1}),
        begin(tmp_path, {"box": (1.0, 3.0)}, parts={"p": 1}),
        begin(tmp_path, {"box": (1.0, 2.0)}, parts={"p": 1}, data="b"),
        begin(tmp_path, {"box": (1.0, 2.0)}, seed=1, parts={"p": 1}),
    )
    for other in others:
        assert other.once("p", lambda: "another")[0] == "another"
    same = begin(tmp_path, {"box": [1.0, 2.0]}, parts={"p": 1})
    assert same.once("p", lambda: 1 / 0)[0] == "first"
    same.remove_parts()
    assert len(list(tmp_path.rglob("*.pt"))) == len(others), "parts of other runs are left alone"
    for other in others:
        other.remove_parts()
    assert os.listdir(tmp_path) == []


def test_a_part_can_depend_on_less_than_the_run(tmp_path):
    run = begin(tmp_path, {"a": 1}, parts={"p": 1, "q": 1})
    run.once("p", lambda: "first", {"b": 2})
    args = argparse.Namespace(seed=0, state=tmp_path)
    known = {"q": (runs.key_of({"c": 1}), "known")}
    other = one_budget.Comparison(known, "r", {"a": 2}, args, runs.Progress())
    other.expect({"p": 1, "q": 1})
    assert other.made("p", {"b": 2}) == "first" and other.made("p", {"b": 3}) is None
    assert other.made("q", {"c": 1}) == "known" and other.made("q", {"c": 2}) is None
    assert other.once("p", lambda: 1 / 0, {"b": 2})[0] == "first"
    assert other.keys == run.keys == {"p": runs.key_of({"b": 2})}
    assert other.once("q", lambda: 1 / 0, {"c": 1}) == ("known", 0)
    assert other.once("q", lambda: "made", {"c": 2})[0] == "made"
    other.remove_parts()
    assert os.listdir(tmp_path) == []


def test_a_part_in_steps_goes_on_after_the_last_one(tmp_path):
    steps, seen = ["s1", "s2", "s3"], []

    def advance(state):
        seen.append(state)
        if seen == [None, [1]]:
            raise KeyboardInterrupt
        return [*(state or []), len(state or []) + 1]

    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, parts=dict.fromkeys(steps, 1)).in_steps("p", steps, advance)
    made, seconds = begin(tmp_path, parts=dict.fromkeys(steps, 1)).in_steps("p", steps, advance)
    assert made == [1, 2, 3] and seconds > 0
    assert seen == [None, [1], [1], [1, 2]]
    (file,) = tmp_path.rglob("*.pt")
    assert begin(tmp_path, parts={"s1": 1}).in_steps("p", ["s1"], lambda _: 1 / 0)[0] == made
    file.write_bytes(file.read_bytes()[:-1])
    assert begin(tmp_path, parts={"s1": 1}).in_steps("p", ["s1"], lambda _: "anew")[0] == "anew"


def test_the_time_left_is_that_of_the_parts_so_far(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: clock[0])

    def take(seconds):
        clock[0] += seconds

    parts = {"a": 1, "b": 4, "c": 20, "d": 1}
    run = begin(tmp_path, parts=parts)
    for name, seconds in (("a", 10), ("b", 60)):
        run.once(name, lambda seconds=seconds: take(seconds))
    assert capsys.readouterr().out.splitlines() == [
        "part 1 of 4: a, 10 s; about 0:04:10 left",  # at 10 s for each of 25
        "part 2 of 4: b, 60 s; about 0:04:54 left",  # at 14 s for each of 21
    ]
    run = begin(tmp_path, parts=parts)
    for name, seconds in (("a", 0), ("b", 0), ("c", 40), ("d", 2)):
        run.once(name, lambda seconds=seconds: take(seconds))
    # What was there already takes no time, and says nothing of how fast this start is.
    assert capsys.readouterr().out.splitlines() == [
        "part 3 of 4: c, 40 s; about 0:00:02 left",
        "part 4 of 4: d, 2 s",
    ]
    run = begin(tmp_path, parts=dict.fromkeys(("s1", "s2", "s3"), 1))
    run.in_steps("s", ["s1"], lambda _: take(100))
    run = begin(tmp_path, parts=dict.fromkeys(("s1", "s2", "s3"), 1))
    run.in_steps("s", ["s1", "s2"], lambda _: take(20))
    assert "part 2 of 3: s2, 20 s; about 0:00:20 left" in capsys.readouterr().out
    file = next(run.folder.glob("a-*.pt"))
    file.write_bytes(file.read_bytes()[:-1])
    run = begin(tmp_path, parts={**parts, "e": 1})
    run.once("a", lambda: take(9))
    assert "part 1 of 5: a, 9 s\n" in capsys.readouterr().out, "no size to tell others from"


def test_a_part_is_made_once(tmp_path):
    run = begin(tmp_path, parts=dict.fromkeys(("a/b", "a-b", ".."), 1))
    made = []

    def make(x):
        made.append(x)
        return {"x": torch.tensor([x, float("nan")])}

    for name in ("a/b", "a-b", "..", "a/b"):
        found, seconds = run.once(name, lambda name=name: make(float(len(name))))
        assert found["x"][0] == len(name) and seconds >= 0
    assert made == [3, 3, 2], "names that look alike are told apart"
    assert len(os.listdir(run.folder)) == 3
    run.remove_parts()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", [0, 20, 40, -300, -1])
def test_a_damaged_part_is_made_again(tmp_path, capsys, where):
    file = tmp_path / "part.pt"
    runs.store({"x": torch.zeros(100)}, file)
    whole = bytearray(file.read_bytes())
    assert runs.read(file)["x"].tolist() == [0] * 100
    whole[where] ^= 1  # PyTorch reads many a file with such a bit, with other numbers
    file.write_bytes(whole)
    assert runs.read(file) is None
    assert "is damaged and is made again" in capsys.readouterr().out
    file.write_bytes(whole[: len(whole) // 2])
    assert runs.read(file) is None
    assert runs.read(tmp_path / "none.pt") is None


@pytest.mark.parametrize("recipe", SETTINGS)
def test_a_folder_that_cannot_be_written_is_refused_at_once(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GAN_EBM_DATA", str(tmp_path / "no data"))
    recipe_main = importlib.import_module(f"gan_ebm_utils.recipes.{recipe}").main
    name = ["gaussians25"] if recipe == "one_budget" else []
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        out = folder / "cover.png" if recipe == "cover" else folder
        with pytest.raises(SystemExit):
            recipe_main([*name, "--out", str(out)])
        assert f"cannot be written to {folder}; give another" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]


def test_folders_are_looked_at_and_not_made(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    new = str(tmp_path / "a" / "b")
    assert runs.parse(parser, ["--out", new, "--state", new]).out == Path(new)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    parser = argparse.ArgumentParser()
    with pytest.raises(SystemExit):
        runs.parse(parser, ["--out", new, "--state", str(tmp_path / "file")])
    assert "file; give another folder" in capsys.readouterr().err


def test_seeds_are_not_shifted_unseen(monkeypatch, capsys):
    monkeypatch.setenv("GAN_EBM_SEED_OFFSET", "1000")
    with pytest.raises(SystemExit):
        plane_gans.main([])
    assert "a recipe's seed is --seed" in capsys.readouterr().err


def test_only_a_whole_checkpoint_with_the_same_card_is_kept(tmp_path):
    run = begin(tmp_path, {"a": 1})
    assert not run.is_stored("c", tmp_path)
    checkpoints.save("c", {}, {"x": torch.zeros(2)}, run.card({}), tmp_path)
    assert run.is_stored("c", tmp_path)
    assert not begin(tmp_path, {"a": 2}).is_stored("c", tmp_path)
    assert not begin(tmp_path, {"a": 1}, recipe="s").is_stored("c", tmp_path)
    assert not begin(tmp_path, {"a": 1}, data="d").is_stored("c", tmp_path)
    (tmp_path / "of the old form.json").write_text("[]")
    assert not run.is_stored("of the old form", tmp_path)
    (tmp_path / "c.safetensors").unlink()
    assert not run.is_stored("c", tmp_path)


def test_what_could_not_be_read_again_is_not_stored(tmp_path):
    file = tmp_path / "a.pt"
    with pytest.raises(pickle.UnpicklingError):
        runs.store({"score": numpy.float64(1.0)}, file)
    assert not list(tmp_path.iterdir())


def test_each_process_computes_with_one_thread_and_then_with_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = runs.in_processes(lambda _: torch.get_num_threads(), [0], jobs=1)
        assert list(found) == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("recipe", "work"),
    [("ebgan_grid", "work"), ("mnist_meg_anomaly", "make"), ("stacked_mnist", "train")],
)
def test_a_recipe_that_is_started_can_send_its_work_to_other_processes(recipe, work):
    # Started as `python -m`, its functions are sent by what they hold, not by their names.
    module = importlib.import_module(f"gan_ebm_utils.recipes.{recipe}")
    cloudpickle.register_pickle_by_value(module)
    try:
        # Not read again: in this process that would give the module's classes other globals.
        sent = cloudpickle.dumps(getattr(module, work))
        guarded = runs.one_thread()(getattr(module, work))  # holds a generator
        with pytest.raises(TypeError, match="generator"):
            cloudpickle.dumps(guarded)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert module.__file__.encode() in sent  # its code, not its name alone


def test_of_processes_that_run_together_one_writes_and_the_others_read(tmp_path, capsys):
    first, second = begin(tmp_path, parts={"a": 1, "b": 1}), begin(tmp_path)
    order = []

    def make(name):
        return lambda state: order.append(name) or [*(state or []), len(order)]

    # The second waits at each step until the first has stored it.
    def wait():
        done = (second.found("part", runs.key_of(second.given)) or {"seconds": []})["seconds"]
        order.append(f"waits at {len(done)}")
        if order.count("second") > len(done):
            first.in_steps("part", ["a", "b"][: len(done) + 1], make("first"))

    second.writes, second.wait = False, wait
    made, _ = second.in_steps("part", ["a", "b"], make("second"))
    assert order[:4] == ["waits at 0", "second", "waits at 0", "first"]
    assert made == first.in_steps("part", ["a", "b"], lambda _: 1 / 0)[0], "it is the first's"
    assert capsys.readouterr().out.count("part 1 of 2: a") == 1, "only the first tells of it"
