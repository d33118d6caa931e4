"""The commands of the Makefile: what readers are told of them, and what they run."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def lines_of(target):
    """What a target of the Makefile runs."""
    return re.search(rf"(?m)^{target}:.*\n((?:\t.*\n)+)", MAKEFILE)[1]


def test_every_command_is_told_and_readers_hear_of_theirs():
    pages = ["README.md", "book/how_to_use.md", "CONTRIBUTING.md"]
    readme, how_to_use, contributing = ((ROOT / page).read_text(encoding="utf-8") for page in pages)
    commands = re.findall(r"(?m)^([a-z]+):.*## ", MAKEFILE)
    assert [name for name in commands if f"`make {name}" not in contributing] == ["help"]
    for name in ("book", "test", "lab"):
        assert f"make {name}" in readme and f"make {name}" in how_to_use


def test_make_test_runs_every_test_and_leaves_the_notebooks_to_the_wheel():
    """Two runs of pytest share all tests; with `--nbval` the test of the wheel would be skipped."""
    assert re.findall(r'-m pytest.* -m ("[a-z ]+"|[a-z]+) ', lines_of("test")) == [
        '"not slow"',
        "slow",
    ]
    assert "--nbval" not in lines_of("test")
    assert "--nbval" in lines_of("gpu")


def test_a_device_that_is_not_there_ends_the_tests_with_a_reason(monkeypatch, pytestconfig):
    spec = importlib.util.spec_from_file_location("settings", ROOT / "conftest.py")
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    monkeypatch.setenv("GAN_EBM_DEVICE", "cuda:99")
    with pytest.raises(pytest.UsageError, match="no GAN_EBM_DEVICE 'cuda:99' here"):
        settings.pytest_configure(pytestconfig)
    monkeypatch.setenv("GAN_EBM_DEVICE", "cpu")
    settings.pytest_configure(pytestconfig)
