"""No constant stays behind on another device: `on_device.py` on a stand-in, or on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import standin

TESTS = Path(__file__).parent
# A GPU if the tests run on one.
GIVEN = os.environ.get("GAN_EBM_DEVICE", "cpu")
DEVICE = standin.NAME if GIVEN == "cpu" else GIVEN


@pytest.mark.skipif(
    DEVICE == standin.NAME and not standin.IS_AVAILABLE,
    reason="PyTorch is too old for a device written in Python",
)
def test_every_public_function_keeps_to_the_device_of_its_inputs():
    # A process of its own: the stand-in must be known before the first gradient.
    environment = os.environ | {"GAN_EBM_DEVICE": DEVICE}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "on_device.py"],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " skipped" not in run.stdout
