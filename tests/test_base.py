"""Devices, randomness, checks of input, and files in the making."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from gan_ebm_utils.base import (
    Calls,
    Gan,
    check_positive,
    check_samples,
    count_calls,
    default_device,
    dtype_of,
    evaluating,
    gradients,
    partial_folder,
    rand,
    randn,
    seeded,
)


def test_the_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("GAN_EBM_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu9", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setenv("GAN_EBM_DEVICE", name)
    with pytest.raises(ValueError, match=f"GAN_EBM_DEVICE is '{name}', which cannot be used here"):
        default_device()


def test_the_same_seed_gives_the_same_numbers():
    first, second, other = (randn(50, generator=seeded(seed, "cpu")) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_offset_moves_every_seed(monkeypatch):
    plain = randn(5, generator=seeded(17, "cpu"))
    monkeypatch.setenv("GAN_EBM_SEED_OFFSET", "10")
    assert torch.equal(randn(5, generator=seeded(7, "cpu")), plain)
    assert not torch.equal(randn(5, generator=seeded(17, "cpu")), plain)
    monkeypatch.setenv("GAN_EBM_SEED_OFFSET", "ten")
    with pytest.raises(ValueError, match="must be an integer, got 'ten'"):
        seeded(7, "cpu")


def test_draws_follow_their_laws_and_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    n, generator = 100_000, seeded(0, "cpu")
    normal, uniform = randn(n, generator=generator), rand(n, generator=generator)
    assert abs(normal.mean()) < 5 / n**0.5
    assert abs(normal.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    # The variance of a sample variance is (fourth moment - variance^2) / n: (1/80 - 1/144) / n.
    assert abs(uniform.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    assert uniform.min() >= 0 and uniform.max() < 1
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.randn(1)  # the control
        assert not torch.equal(torch.random.get_rng_state(), before)


def test_samples_are_checked():
    check_samples(x=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x is empty: shape \(0, 2\); give at least one"):
        check_samples(x=torch.zeros(0, 2))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="y holds 2 values that are not finite"):
            check_samples(x=torch.zeros(1), y=torch.tensor([bad, bad, 0.0]))


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf")])
def test_numbers_are_checked(number):
    check_positive(n=1, step=0.1)
    with pytest.raises(ValueError, match="step must be positive, got"):
        check_positive(n=1, step=number)


# --- files in the making ---

KILLED = """
import pathlib, signal, os
from gan_ebm_utils.base import partial_folder
with partial_folder(pathlib.Path({folder!r})) as part:
    (part / "data.npz").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_partial_folder_is_gone_afterwards(tmp_path):
    with partial_folder(tmp_path) as part:
        (part / "file").write_text("whole")
        os.replace(part / "file", tmp_path / "file")
    with pytest.raises(RuntimeError), partial_folder(tmp_path) as part:
        (part / "other").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_cleared_at_the_next_start(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], check=False)
    assert run.returncode == -signal.SIGKILL
    (remains,) = tmp_path.iterdir()  # the control: there is something to clear
    assert (remains / "data.npz").exists() and not (tmp_path / "data.npz").exists()
    with partial_folder(tmp_path):
        assert not remains.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_is_making_stays(tmp_path):
    mine = tmp_path / f".partial-{os.getppid()}-abc"
    mine.mkdir()
    with partial_folder(tmp_path):
        assert mine.exists()


def test_a_folder_of_no_process_stays(tmp_path):
    (tmp_path / ".partial-mine-x").mkdir()
    (tmp_path / ".partial-99999999999999999999-x").mkdir()  # no process has such a number
    with partial_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".partial-mine-x"]


def test_what_a_process_of_another_user_is_making_stays(tmp_path, monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    theirs = tmp_path / ".partial-12345-x"
    theirs.mkdir()
    monkeypatch.setattr(os, "kill", refuse)
    with partial_folder(tmp_path):
        assert theirs.exists()


# --- networks ---


def test_modes_are_restored_module_by_module():
    still = nn.BatchNorm1d(2).eval()  # on purpose
    network = nn.Sequential(nn.Dropout(), still)
    before = [module.training for module in network.modules()]
    assert before == [True, True, False]
    with evaluating(network, network, None, torch.sin):  # twice: it is restored all the same
        assert not any(module.training for module in network.modules())
        with evaluating(network):
            pass
        assert not network.training
    assert [module.training for module in network.modules()] == before
    with pytest.raises(KeyboardInterrupt), evaluating(network):
        raise KeyboardInterrupt
    assert [module.training for module in network.modules()] == before


def test_gradients_are_on_inside_and_as_they_were_after():
    for outer in (torch.enable_grad, torch.no_grad):
        with outer():
            before = torch.is_grad_enabled()
            with gradients():
                assert torch.ones(1, requires_grad=True).exp().requires_grad
            assert torch.is_grad_enabled() == before
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use torch.no_grad"):
        with gradients():
            pass


def test_a_network_that_is_given_twice_is_counted_once():
    network = nn.Linear(2, 1)
    with count_calls(network, network) as calls:
        network(torch.zeros(3, 5, 2)).sum().backward()
    assert calls() == Calls(15, 15)


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ((nn.Linear(1, 1),), torch.float32),
        ((nn.Linear(1, 1).bfloat16(),), torch.float32),
        ((None, torch.sin, nn.ReLU(), nn.BatchNorm1d(1, affine=False).double()), torch.float64),
        ((torch.sin, nn.ReLU()), None),
    ],
)
def test_the_type_of_networks(networks, expected):
    assert dtype_of(*networks) == expected


def test_the_prior_and_the_logit_of_a_gan():
    gan = Gan(nn.Linear(3, 2).double(), nn.Linear(2, 1).double(), 3)
    z = gan.prior((4, 5), seeded(0, "cpu"))
    assert z.shape == (4, 5, 3) and z.dtype == torch.float64
    assert torch.equal(gan.logit(z), gan.discriminator(gan.generator(z)))
    plain = Gan(nn.Identity(), None, 2).prior((1, 7), seeded(3, "cpu"))
    assert torch.equal(plain, randn(1, 7, 2, generator=seeded(3, "cpu")))
