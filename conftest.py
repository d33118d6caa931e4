"""Settings that must stand before a notebook's kernel starts, and the order of the tests."""

import os
import sys
from pathlib import Path

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


def pytest_collection_modifyitems(items):
    """Run what takes minutes last, so that a cheap failure shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
