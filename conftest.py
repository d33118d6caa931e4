"""Settings that must stand before a notebook's kernel starts, the order of the tests, a fixture."""

import json
import os
import sys
from pathlib import Path

import pytest

# A progress bar writes to stderr, which nbval compares. Kernels inherit the environment.
os.environ["TQDM_DISABLE"] = "1"

# Two workers with two threads each on two cores wait for one another (473 s instead of 25 s).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"


# A machine without a GPU has a device to try everything on, see tests/standin.py.
if os.environ.get("GAN_EBM_DEVICE") == "standin":
    tests = Path(__file__).parent / "tests"
    sys.path.insert(0, str(tests))
    import standin

    standin.install()
    os.environ["PYTHONSTARTUP"] = str(tests / "standin_startup.py")  # of the notebooks' kernels


def pytest_configure(config):
    """End at once, and say why, where GAN_EBM_DEVICE names a device that is not there."""
    if "GAN_EBM_DEVICE" in os.environ:
        from gan_ebm_utils.base import default_device

        try:
            default_device()
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items):
    """Run what takes minutes last, so that a cheap failure shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def other_python(tmp_path, monkeypatch):
    """A user's kernelspec named python3, in whose kernels the environment variable OTHER is set."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Other", "language": "python", "env": {"OTHER": "other"}}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
