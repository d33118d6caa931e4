"""The commands of the Makefile: what readers are told of them, and what they run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def lines_of(target):
    """What a target of the Makefile runs."""
    return re.search(rf"(?m)^{target}:.*\n((?:\t.*\n)+)", MAKEFILE)[1]


def test_readers_are_told_of_every_command():
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    told += (ROOT / "book" / "how_to_use.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^([a-z]+):.*## ", MAKEFILE)
    assert [name for name in commands if f"make {name}" not in told] == ["help", "clean"]


def test_make_test_runs_every_test_and_leaves_the_notebooks_to_the_wheel():
    """Two runs of pytest share all tests; with `--nbval` the test of the wheel would be skipped."""
    assert re.findall(r'-m pytest.* -m ("[a-z ]+"|[a-z]+) ', lines_of("test")) == [
        '"not slow"',
        "slow",
    ]
    assert "--nbval" not in lines_of("test")
    assert "--nbval" in lines_of("gpu")


def pytest_on(device):
    """pytest on one file, up to the list of its tests, where GAN_EBM_DEVICE is `device`."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_claims.py"]
    env = os.environ | {"GAN_EBM_DEVICE": device}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_device_that_is_not_there_ends_the_tests_with_a_reason():
    refused = pytest_on("cuda:99")
    assert refused.returncode != 0
    assert "GAN_EBM_DEVICE is 'cuda:99', which cannot be used here" in refused.stderr
    assert "test_claims" not in refused.stdout
    assert "test_claims" in pytest_on("cpu").stdout
