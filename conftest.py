"""Settings that must stand before a notebook's kernel starts, and the order of the tests."""

import os

import pytest

# A progress bar writes to stderr, which nbval compares. Kernels inherit the environment.
os.environ["TQDM_DISABLE"] = "1"

# Two workers with two threads each on two cores wait for one another (473 s instead of 25 s).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"


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
