"""Devices, randomness, checks of input, and files in the making."""

import concurrent.futures
import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gan_ebm_utils import base
from gan_ebm_utils.base import (
    Calls,
    Gan,
    check_count,
    check_positive,
    check_samples,
    check_shape,
    count_calls,
    default_device,
    device_of,
    dtype_of,
    environment_path,
    evaluating,
    gradients,
    partial_folder,
    rand,
    randn,
    seeded,
    whole_file,
)


def test_the_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("GAN_EBM_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu9", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setenv("GAN_EBM_DEVICE", name)
    with pytest.raises(ValueError, match=f"no GAN_EBM_DEVICE '{name}' here; set it to cpu"):
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
        with pytest.raises(ValueError, match="2 of . values of y are not finite"):
            check_samples(x=torch.zeros(1), y=torch.tensor([bad, bad, 0.0]))
    with pytest.raises(TypeError, match="x must be a tensor of real numbers, got ndarray"):
        check_samples(x=np.zeros(3))
    with pytest.raises(TypeError, match="x must be a tensor of real numbers, got torch.complex64"):
        check_samples(x=torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    "number",
    [
        0,
        -1,
        float("nan"),
        float("inf"),
        None,
        "1",
        [1.0],
        torch.ones(2),
        np.ones(2),
        torch.zeros(1),
    ],
)
def test_numbers_are_checked(number):
    check_positive(n=1, step=0.1, size=np.float32(2), scale=torch.tensor(3.0))
    with pytest.raises(ValueError, match="step must be positive, got"):
        check_positive(n=1, step=number)


@pytest.mark.parametrize("count", [1, 7, np.int64(3), np.uint8(2), 10**20])
def test_whole_numbers_are_counts(count):
    check_count(n=count)


@pytest.mark.parametrize(
    "count",
    [
        0,
        -1,
        2.5,
        3.0,
        np.float64(3),
        True,
        np.True_,
        float("nan"),
        "3",
        None,
        (3,),
        torch.tensor(3),
    ],
)
def test_what_is_no_count_is_named(count):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got ") as caught:
        check_count(steps=3, n=count)
    assert str(caught.value).endswith(repr(count))


def test_a_count_may_have_another_least_value():
    check_count(2, n=2)
    check_count(0, n=0)
    with pytest.raises(ValueError, match="n must be a whole number of at least 2, got 1"):
        check_count(2, n=1)


# --- paths of the environment ---


def test_a_path_of_the_environment_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PLACE", "/some/where")
    for given, path in (
        ("~/data", "/home/someone/data"),
        ("$PLACE/data", "/some/where/data"),
        ("${PLACE}/data", "/some/where/data"),
        ("plain/data", "plain/data"),
        ("//server/c$/data", "//server/c$/data"),  # a share of Windows
    ):
        monkeypatch.setenv("GAN_EBM_DATA", given)
        assert environment_path("GAN_EBM_DATA") == Path(path)
    monkeypatch.setenv("GAN_EBM_DATA", "")
    assert environment_path("GAN_EBM_DATA") is None
    monkeypatch.delenv("GAN_EBM_DATA")
    assert environment_path("GAN_EBM_DATA") is None


@pytest.mark.parametrize("given", ["$NOWHERE_AT_ALL/x", "${NOWHERE_AT_ALL}/x", "~no-such-user/x"])
def test_a_path_that_cannot_be_expanded_is_named(monkeypatch, given):
    monkeypatch.setenv("GAN_EBM_DATA", given)
    with pytest.raises(ValueError, match="GAN_EBM_DATA is .*not known here") as caught:
        environment_path("GAN_EBM_DATA")
    assert given in str(caught.value)


# --- files in the making ---

MAKING = """
import pathlib, sys, time
from gan_ebm_utils.base import partial_folder
with partial_folder(pathlib.Path(sys.argv[1])) as part:
    (part / "data.npz").write_bytes(b"half")
    print(part, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that is making a file in `tmp_path`, and the folder in which it does."""
    with subprocess.Popen(
        [sys.executable, "-c", MAKING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_partial_folder_is_gone_afterwards(tmp_path):
    with partial_folder(tmp_path) as part:
        (part / "file").write_text("whole")
        os.replace(part / "file", tmp_path / "file")
    with pytest.raises(RuntimeError), partial_folder(tmp_path) as part:
        (part / "other").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_cleared_at_the_next_start(tmp_path, other):
    process, theirs = other
    kill(process)
    assert (theirs / "data.npz").exists()  # the control: there is something to clear
    with partial_folder(tmp_path):
        assert not theirs.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_is_making_stays(tmp_path, other):
    process, theirs = other
    for path in (theirs, *theirs.iterdir()):
        os.utime(path, (0, 0))  # a slow download
    with partial_folder(tmp_path):
        pass
    assert (theirs / "data.npz").exists() and process.poll() is None
    assert len(list(tmp_path.iterdir())) == 2  # their folder and its lock


def test_no_process_is_asked_whether_it_lives(tmp_path, other, monkeypatch):
    # On Windows os.kill ends it, and a number of another machine or container is another's here.
    def refuse(*arguments):
        raise AssertionError("a signal was sent")

    process, theirs = other
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        with partial_folder(tmp_path):
            assert theirs.exists()
    kill(process)
    monkeypatch.setattr(os, "kill", refuse)
    with partial_folder(tmp_path):
        assert not theirs.exists()


def test_one_process_may_make_several(tmp_path, monkeypatch):
    with partial_folder(tmp_path) as first, partial_folder(tmp_path) as second:
        assert first.exists() and second.exists()
    monkeypatch.setattr(base, "_lock", lambda file, wait: None)
    with partial_folder(tmp_path) as first, partial_folder(tmp_path):
        assert not first.exists()  # the control: all locks are had at once
        first.mkdir()


def test_many_may_start_at_once(tmp_path):
    def write(i):
        for k in range(30):
            with whole_file(tmp_path / f"{i}-{k}") as part:
                part.write_text("whole")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(8))) == [None] * 8
    assert len(list(tmp_path.iterdir())) == 240


def test_who_clears_up_may_have_just_seen_the_lock(tmp_path, monkeypatch):
    # The other has locked the new file first: it is waited for, and only then is there a folder.
    lock, seen = base._lock, []

    def late(file, wait):
        if wait:
            assert [path.name for path in tmp_path.iterdir()] == [Path(file.name).name]
            other = open(file.name, "r+b")
            lock(other, wait=False)
            timer = threading.Timer(0.2, lambda: (seen.append("released"), other.close()))
            timer.start()
        lock(file, wait)

    monkeypatch.setattr(base, "_lock", late)
    with partial_folder(tmp_path) as part:
        assert seen == ["released"] and part.exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_there_are_no_locks_all_is_left_alone(tmp_path, other, monkeypatch, code):
    def refuse(file, how):
        raise OSError(code, "no locks here")

    process, theirs = other
    kill(process)
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        with whole_file(tmp_path / "file") as part:
            with partial_folder(tmp_path):
                part.write_text("whole")
        assert (tmp_path / "file").exists() and theirs.exists()
    with partial_folder(tmp_path):
        assert not theirs.exists()  # the control


def test_a_folder_without_a_lock_is_left_alone(tmp_path):
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / ".partial-y.lock").touch()  # of a process that was killed before it had a folder
    with partial_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".partial-x"]


def test_windows_has_other_locks(tmp_path, monkeypatch):
    calls = []
    msvcrt = types.SimpleNamespace(
        LK_LOCK=1, LK_NBLCK=2, locking=lambda *given: calls.append(given)
    )
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    with (tmp_path / "lock").open("xb") as file, monkeypatch.context() as patch:
        patch.setattr(base.os, "name", "nt")
        base._lock(file, wait=True)
        base._lock(file, wait=False)
        assert calls == [(file.fileno(), 1, 1), (file.fileno(), 2, 1)]


def test_a_folder_is_made_or_named(tmp_path):
    with partial_folder(tmp_path / "new" / "folder") as part:
        assert part.parent == tmp_path / "new" / "folder"
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(OSError, match="nothing was written to .*give one with room") as caught,
            partial_folder(folder),
        ):
            raise AssertionError("nothing may run")
        assert str(folder) in str(caught.value)


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")  # which root never meets

    monkeypatch.setattr(base.tempfile, "TemporaryDirectory", refuse)
    with (
        pytest.raises(OSError, match="nothing was written to .*Permission denied"),
        whole_file(tmp_path / "file"),
    ):
        raise AssertionError("nothing may run")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_named(tmp_path):
    with (
        pytest.raises(OSError, match="nothing was written to .*No space left") as caught,
        whole_file(tmp_path / "file") as part,
    ):
        part.write_text("half")
        raise OSError(28, "No space left on device")
    assert str(tmp_path) in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with whole_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["file"]


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


def test_a_function_that_is_not_yet_defined_has_no_device():
    def outer():
        early = lambda: late  # noqa: E731
        found = device_of(early)
        late = torch.zeros(1)
        return found, late

    assert outer()[0] == torch.device("cpu")


SCALE = {"net": nn.Linear(2, 1).double()}


def named(x):
    return [SCALE["net"](row) for row in x]


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


def ways_to_reach(net):
    """Functions that call `net`, which each hides it in another way."""
    gan = Gan(net, nn.ReLU(), 2)
    return {
        "closure": lambda x: net(x),
        "partial": functools.partial(torch.add, net),
        "method": gan.logit,
        "object": Holder(net),
        "dict": (lambda table: lambda x: table["net"](x))({"net": net}),
        "function in a function": lambda x: [(lambda y: net(y))(row) for row in x],
    }


@pytest.mark.parametrize("way", ways_to_reach(None))
def test_a_network_is_found_however_a_function_reaches_it(way):
    net = nn.Sequential(nn.Linear(2, 1).double(), nn.Dropout())
    function = ways_to_reach(net)[way]
    assert dtype_of(function) == torch.float64
    with evaluating(function):
        assert not net[1].training
    assert net[1].training
    assert device_of(ways_to_reach(net.to("meta"))[way]) == torch.device("meta")


def test_a_network_is_found_by_its_global_name():
    assert dtype_of(named) == torch.float64
    assert dtype_of(lambda x: torch.relu(x)) is None  # control: nothing is named


def test_an_error_of_something_else_than_the_folder_stays_what_it_is(tmp_path):
    with pytest.raises(ConnectionRefusedError), partial_folder(tmp_path):
        raise ConnectionRefusedError(111, "refused")
    with pytest.raises(FileNotFoundError, match="missing"), partial_folder(tmp_path):
        open(tmp_path / "missing")


def test_a_path_that_is_there_may_hold_a_dollar(tmp_path, monkeypatch):
    (tmp_path / "a$b").mkdir()
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path / "a$b"))
    assert environment_path("SOME_FOLDER") == tmp_path / "a$b"


@pytest.mark.parametrize(
    ("shapes", "axes", "good"),
    [
        ([(3, 5, 2), (4, 2)], ["R n d", "modes d"], True),
        ([(3, 5, 2), (4, 3)], ["R n d", "modes d"], False),
        ([(3, 5)], ["R n d"], False),
        ([(3, 5, 2)], ["3 n 2"], True),
        ([(3, 5, 2)], ["4 n 2"], False),
        ([(3, 5, 1, 8, 8)], ["R n ..."], True),
        ([(3, 5)], ["R n ..."], False),
        ([(3, 5), (3, 5)], ["R n", "R n"], True),
        ([(3, 5), (3, 6)], ["R n", "R n"], False),
        ([(3, 5), (3, 6)], ["R n", "R m"], True),
        ([()], ["R"], False),
    ],
)
def test_shapes(shapes, axes, good):
    given = {
        f"x{i}": (torch.zeros(s), a) for i, (s, a) in enumerate(zip(shapes, axes, strict=True))
    }
    if good:
        check_shape(**given)
    else:
        with pytest.raises(ValueError, match=r"^x0 must be \(.*\); got \("):
            check_shape(**given)
