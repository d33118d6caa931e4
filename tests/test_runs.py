"""What recipes share: every setting is in the key of a run, and what is damaged is made again."""

import argparse
import ast
import importlib
import json
import os
import pickle
from pathlib import Path

import numpy
import pytest
import torch

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.recipes import plane_gans

RECIPES = Path(runs.__file__).parent / "recipes"
# Of each recipe: the settings of all its checkpoints, as code that runs in its module.
SETTINGS = {
    "gaussians25_r1": "settings_of(9, 9)",
    "mnist_features": "settings_of(9)",
    "mnist_gan": "settings_of(9, 9, 9)",
    "one_budget": "[settings_of(name, game['n']) for name, game in GAMES.items()]",
    "plane_ebms": "settings_of(9, 9)",
    "plane_gans": "[settings_of(name, 9, 9) for name in GAMES]",
}
# The number of images that are stored to look at, when all is finished.
FREE = {("mnist_features", "N_CHECK")}


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
    module = {"__name__": recipe}
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


def test_recipes_have_settings_if_they_make_checkpoints():
    found = {path.stem for path in RECIPES.glob("*.py") if "checkpoints.save(" in path.read_text()}
    assert found == set(SETTINGS)


def test_parts_of_another_run_are_not_taken(tmp_path):
    args = argparse.Namespace(seed=0, state=tmp_path)
    run = runs.begin("r", {"box": (1.0, 2.0)}, args)
    assert run.given == {"recipe": "r", "settings": {"box": [1.0, 2.0]}, "seed": 0}
    folders = {
        runs.begin("r", {"box": [1.0, 2.0]}, args).folder,
        runs.begin("s", {"box": (1.0, 2.0)}, args).folder,
        runs.begin("r", {"box": (1.0, 3.0)}, args).folder,
        runs.begin("r", {"box": (1.0, 2.0)}, args, data="b").folder,
        runs.begin("r", {"box": (1.0, 2.0)}, argparse.Namespace(seed=1, state=tmp_path)).folder,
    }
    assert len(folders) == 5 and run.folder in folders


def test_a_part_is_made_once(tmp_path):
    run = runs.begin("r", {}, argparse.Namespace(seed=0, state=tmp_path))
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
        with pytest.raises(SystemExit):
            recipe_main([*name, "--out", str(folder)])
        assert f"cannot be written to {folder}; give another" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]


def test_folders_are_looked_at_and_not_made(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", **runs.STATE)
    new = str(tmp_path / "a" / "b")
    assert runs.parse(parser, ["--out", new, "--state", new]).out == Path(new)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", **runs.STATE)
    with pytest.raises(SystemExit):
        runs.parse(parser, ["--out", new, "--state", str(tmp_path / "file")])
    assert "file; give another folder" in capsys.readouterr().err


def test_seeds_are_not_shifted_unseen(monkeypatch, capsys):
    monkeypatch.setenv("GAN_EBM_SEED_OFFSET", "1000")
    with pytest.raises(SystemExit):
        plane_gans.main([])
    assert "a recipe's seed is --seed" in capsys.readouterr().err


def test_only_a_whole_checkpoint_with_the_same_card_is_kept(tmp_path):
    run = runs.begin("r", {"a": 1}, argparse.Namespace(seed=0))
    assert not run.is_stored("c", tmp_path)
    checkpoints.save("c", {}, {"x": torch.zeros(2)}, run.card({}), tmp_path)
    assert run.is_stored("c", tmp_path)
    assert not runs.begin("r", {"a": 2}, argparse.Namespace(seed=0)).is_stored("c", tmp_path)
    assert not runs.begin("r", {"a": 1}, argparse.Namespace(seed=0), data="d").is_stored(
        "c", tmp_path
    )
    (tmp_path / "c.safetensors").unlink()
    assert not run.is_stored("c", tmp_path)


def test_what_could_not_be_read_again_is_not_stored(tmp_path):
    file = tmp_path / "a.pt"
    with pytest.raises(pickle.UnpicklingError):
        runs.store({"score": numpy.float64(1.0)}, file)
    assert not list(tmp_path.iterdir())
