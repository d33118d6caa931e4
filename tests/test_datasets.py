"""Data sets: draws against their densities, images against their files, and damaged files."""

import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from sklearn.datasets import make_moons, make_swiss_roll

from gan_ebm_utils import base, datasets
from gan_ebm_utils.base import seeded

MAKERS = [
    datasets.gaussian_grid,
    datasets.gaussian_ring,
    datasets.moons,
    datasets.swiss_roll,
    datasets.checkerboard,
]
# Grid step and half width for Riemann sums; the step is at most .6 standard deviations.
QUADRATURE = {
    "gaussian_grid": (0.03, 2.5),
    "gaussian_ring": (0.05, 2.5),
    "moons": (0.05, 2.75),
    "swiss_roll": (0.02, 2.2),
    "checkerboard": (0.05, 2.5),
}


# --- laws in the plane ---


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("size, shape", [(7, (7, 2)), ((3, 5), (3, 5, 2))])
def test_sample_shape_and_generator(make, size, shape):
    before = torch.get_rng_state()
    x = make().sample(size, seeded(0, "cpu"))
    assert x.shape == shape
    assert x.dtype == torch.float32
    assert torch.equal(x, make().sample(size, seeded(0, "cpu")))
    assert not torch.equal(x, make().sample(size, seeded(1, "cpu")))
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("size", [0, -1, (3, 0), (), 2.5, True, (3, True), [3, 4], "3"])
def test_bad_size(make, size):
    with pytest.raises(ValueError, match=r"size must be a positive int.*got"):
        make().sample(size, seeded(0, "cpu"))


@pytest.mark.parametrize("make", MAKERS)
def test_sizes_of_numpy(make):
    x = make().sample((np.int64(3), 5), seeded(0, "cpu"))
    assert torch.equal(x, make().sample((3, 5), seeded(0, "cpu")))
    assert make().sample(np.int32(3), seeded(0, "cpu")).shape == (3, 2)


@pytest.mark.parametrize("make", MAKERS[:-1])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 1), ()])
def test_bad_points(make, shape):
    with pytest.raises(ValueError, match=r"takes floats \(\.\.\., 2\), got torch.float32 \("):
        make().log_prob(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"takes floats \(\.\.\., 2\), got torch.int64"):
        make().log_prob(torch.zeros(5, 2).long())


@pytest.mark.parametrize(
    "make",
    [
        lambda: datasets.gaussian([0.0], std=0.0),
        lambda: datasets.gaussian(0.0),
        lambda: datasets.gaussian([[0.0]]),
        lambda: datasets.gaussian_grid(n_side=2.5),
        lambda: datasets.gaussian_grid(n_side=True),
        lambda: datasets.gaussian_ring(n_modes=8.0),
        lambda: datasets.gaussian_grid(std=-1.0),
        lambda: datasets.gaussian_grid(n_side=0),
        lambda: datasets.gaussian_ring(n_modes=0),
        lambda: datasets.moons(noise=0.0),
        lambda: datasets.swiss_roll(scale=math.nan),
    ],
)
def test_bad_parameters(make):
    with pytest.raises(ValueError, match="got"):
        make()


@pytest.mark.parametrize(
    ("mean", "says"),
    [([], "mean is empty"), ([math.inf, 0.0], "1 of 2 values of mean are not finite")],
)
def test_a_mean_has_finite_coordinates(mean, says):
    with pytest.raises(ValueError, match=says):
        datasets.gaussian(mean)


def test_a_law_keeps_its_mean():
    mean = torch.ones(2, requires_grad=True)
    law = datasets.gaussian(mean)
    mean.data.zero_()
    assert torch.equal(law.means.cpu(), torch.ones(1, 2)) and not law.means.requires_grad
    for same in ((1.0, 1.0), [1, 1], np.ones(2), list(torch.ones(2))):
        assert torch.equal(datasets.gaussian(same).means, law.means)


@functools.cache
def quadrature(name):
    """Cell centres (m, 2), float64, the log density there and the area of a cell."""
    step, half = QUADRATURE[name]
    axis = torch.arange(-half + step / 2, half, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return grid, getattr(datasets, name)().log_prob(grid), step**2


@pytest.mark.parametrize("name", QUADRATURE)
def test_density_integrates_to_one(name):
    _, log_prob, area = quadrature(name)
    assert float(log_prob.exp().sum() * area) == pytest.approx(1, abs=1e-6)


def z_scores(name, x):
    """Deviation of sample means from integrals against the density, in standard errors."""
    grid, log_prob, area = quadrature(name)
    mass = log_prob.exp() * area

    def statistics(points, log_prob):
        a, b = points.double().unbind(dim=-1)
        return torch.stack([a, b, a * b, a**2, b**2, torch.sin(5 * a), torch.cos(5 * b), log_prob])

    on_grid = statistics(grid, log_prob.where(mass > 0, 0.0))
    expected = (on_grid * mass).sum(dim=1)
    drawn = statistics(x, getattr(datasets, name)().log_prob(x.double()).clamp(min=-100))
    return (drawn.mean(dim=1) - expected) / (drawn.std(dim=1) / math.sqrt(len(x)) + 1e-6)


@pytest.mark.parametrize("name", QUADRATURE)
def test_draws_follow_the_density(name):
    x = getattr(datasets, name)().sample(20_000, seeded(1, "cpu"))
    assert z_scores(name, x).abs().max() <= 5


@pytest.mark.parametrize("name", QUADRATURE)
def test_control_scaled_draws_are_found_out(name):
    x = 1.05 * getattr(datasets, name)().sample(20_000, seeded(1, "cpu"))
    assert z_scores(name, x).abs().max() > 10


def test_mode_centres():
    grid = datasets.gaussian_grid()
    centres, on_ring = grid.means.cpu(), datasets.gaussian_ring().means.cpu()
    assert centres.shape == (25, 2)
    assert centres.mean(dim=0).abs().max() < 1e-6
    assert torch.pdist(centres).min() == pytest.approx(1)
    assert on_ring.shape == (8, 2)
    assert torch.allclose(on_ring.norm(dim=1), torch.tensor(1.5))
    mode = torch.cdist(grid.sample(50_000, seeded(2, "cpu")), centres).argmin(dim=1)
    assert chisquare(torch.bincount(mode, minlength=25)).pvalue > 1e-6


def test_gaussian_against_torch():
    mean = [1.0, -2.0, 0.5]
    law = datasets.gaussian(mean, std=1.5)
    x = law.sample((4, 5000), seeded(3, "cpu"))
    normal = torch.distributions.Normal(torch.tensor(mean), 1.5)
    assert torch.allclose(law.log_prob(x), normal.log_prob(x).sum(-1), atol=1e-5)
    assert all(kstest(normal.cdf(x)[..., k].flatten(), "uniform").pvalue > 1e-6 for k in range(3))


def test_score_by_autograd():
    law = datasets.gaussian([1.0, 2.0], std=0.5)
    x = torch.randn(10, 2, generator=seeded(4, "cpu")).requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    assert torch.allclose(score, -(x - torch.tensor([1.0, 2.0])) / 0.25, atol=1e-5)


def exact_curve(name, n):
    """Points of the noiseless curve at the midpoints of n equal parts, and its noise."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    if name == "moons":
        t = math.pi * u
        outer = torch.stack([t.cos(), t.sin()], dim=1)
        inner = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)
        return torch.cat([outer, inner]), 0.1
    t = 1.5 * math.pi * (1 + 2 * u)
    return torch.stack([t * t.cos(), t * t.sin()], dim=1) / 7.5, 0.25 / 7.5


@pytest.mark.parametrize("name", ["moons", "swiss_roll"])
def test_curve_density_against_a_fine_rule(name):
    curve, std = exact_curve(name, 100_000)
    law = getattr(datasets, name)()
    # The midpoint rule itself is off by (step times distance)^2 / 24 beyond an end of the curve.
    x = law.sample(60, seeded(5, "cpu")).double()
    x = torch.cat([x, x + 6 * std * torch.randn(60, 2, generator=seeded(6, "cpu"))])
    exponent = torch.stack([-((p - curve) ** 2).sum(dim=1) / (2 * std**2) for p in x])
    exact = exponent.logsumexp(dim=1) - math.log(len(curve) * 2 * math.pi * std**2)
    assert (law.log_prob(x) - exact).abs().max() < 1e-5
    assert (law.log_prob(x.float()) - exact).abs().max() < 1e-4
    assert (law.log_prob(x) - exact - 2e-4).abs().max() > 1e-4  # the control


def test_moons_are_those_of_scikit_learn():
    # On a straight line the density is that along the curve, 1 / (2 pi), times the normal's peak.
    points, _ = make_moons(400, noise=None, shuffle=False)
    law = datasets.moons(noise=0.02)
    line = 1 / (2 * math.pi) / (0.02 * math.sqrt(2 * math.pi))
    middle = np.r_[20:180, 220:380]  # away from the ends of the arcs
    log_prob = law.log_prob(torch.from_numpy(points[middle]))
    assert (log_prob - math.log(line)).abs().max() < 1e-3
    moved = law.log_prob(torch.from_numpy(points[middle] + 0.01))
    assert (moved - math.log(line)).abs().max() > 0.1


def test_swiss_roll_is_that_of_scikit_learn():
    points, t = make_swiss_roll(400, noise=0.0, random_state=0)
    middle = (t > 5.5) & (t < 13)
    points, t = torch.from_numpy(points[middle][:, [0, 2]] / 7.5), torch.from_numpy(t[middle])
    density = 7.5 / (3 * math.pi * (1 + t**2).sqrt())  # du per length of the curve
    line = density / (0.25 / 7.5 * math.sqrt(2 * math.pi))
    log_prob = datasets.swiss_roll().log_prob(points)
    assert (log_prob - line.log()).abs().max() < 5e-3
    moved = datasets.swiss_roll().log_prob(points + 0.02)
    assert (moved - line.log()).abs().max() > 0.1


def test_moons_are_independent_draws():
    # scikit-learn puts exactly half of the points on each arc: there this variance is 0.
    x = datasets.moons(noise=1e-2).sample((1000, 100), seeded(7, "cpu"))
    on_first = (x.norm(dim=-1) - 1).abs() < 0.06
    on_second = ((x - torch.tensor([1.0, 0.5])).norm(dim=-1) - 1).abs() < 0.06
    counts = (on_second & ~on_first).sum(dim=1).double()
    share = counts.mean() / 100
    binomial = 100 * share * (1 - share)
    assert counts.var() == pytest.approx(float(binomial), rel=5 * math.sqrt(2 / 1000))


def test_checkerboard_squares():
    law = datasets.checkerboard()
    x = law.sample(400_000, seeded(8, "cpu"))
    assert (law.log_prob(x) == -math.log(8)).all()
    column, row = (x.floor() + 2).long().unbind(dim=1)
    counts = torch.bincount(4 * column + row, minlength=16)
    assert (counts > 0).sum() == 8
    assert chisquare(counts[counts > 0]).pvalue > 1e-6
    assert kstest((x - x.floor()).flatten(), "uniform").pvalue > 1e-6
    outside = torch.tensor([[2.5, 0.5], [-2.5, 0.5], [0.5, 1.5], [2.0, 0.0]])
    assert law.log_prob(outside).isneginf().all()


# --- images ---


def test_digits():
    images, labels = datasets.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.dtype == torch.int64
    assert sorted(labels.unique().tolist()) == list(range(10))


def test_minibatches():
    rows = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    sample = datasets.minibatches(rows)
    x = sample((10, 1000), seeded(10, "cpu"))
    assert x.shape == (10, 1000, 1, 2, 2)
    assert chisquare(torch.bincount(x[:, :, 0, 0, 0].flatten().long())).pvalue > 1e-6
    with pytest.raises(ValueError, match="size must be a positive int"):
        sample(0, seeded(0, "cpu"))
    with pytest.raises(ValueError, match="images is empty"):
        datasets.minibatches(rows[:0])
    with pytest.raises(ValueError, match="not finite"):
        datasets.minibatches(rows * math.nan)


def test_pixels_become_bytes_and_back():
    every = torch.arange(256.0)
    assert torch.equal(base.to_bytes(every / 127.5 - 1), every.to(torch.uint8))
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        ends = torch.tensor([-1.0, 0.0, 1.0], dtype=kind)
        assert base.to_bytes(ends).tolist() == [0, 128, 255]
        x = torch.linspace(-1, 1, 999).to(kind)
        assert torch.equal(base.to_bytes(x), base.to_bytes(x.float()))
    # 255.5 as a byte would be 0.
    beyond = torch.tensor([-1.5, -1.01, 1.01, 3.0])
    assert base.to_bytes(beyond).tolist() == [0, 0, 255, 255]


# --- prepared archives ---


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("GAN_EBM_DATA", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def random_arrays(event):
    rng = np.random.default_rng(0)
    return {
        f"{split}_{kind}": rng.integers(0, top, (n, *shape), dtype=np.uint8)
        for split, n in (("train", 20), ("test", 10))
        for kind, top, shape in (("images", 256, event), ("labels", 10, ()))
    }


LOADERS = [(datasets.mnist, "mnist", (28, 28)), (datasets.cifar10, "cifar10", (32, 32, 3))]


@pytest.mark.parametrize("loader, name, event", LOADERS)
def test_prepared_archive(data_folder, loader, name, event):
    arrays = random_arrays(event)
    np.savez_compressed(data_folder / f"{name}.npz", **arrays)
    for split in ("train", "test"):
        images, labels = loader(split)
        n = len(arrays[f"{split}_labels"])
        assert images.shape == ((n, 1, 28, 28) if name == "mnist" else (n, 3, 32, 32))
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        pixels = ((images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(pixels.reshape(n, *event), arrays[f"{split}_images"])
        assert np.array_equal(labels.numpy(), arrays[f"{split}_labels"])
    assert images.min() == -1
    assert images.max() == 1


def test_unknown_split(data_folder):
    with pytest.raises(ValueError, match='"train" or "test", got \'valid\''):
        datasets.mnist("valid")


@pytest.mark.parametrize("given", ["~/data", "$PLACE/data", "${PLACE}/data"])
def test_the_folder_of_the_data_is_expanded(tmp_path, monkeypatch, given):
    (tmp_path / "data").mkdir()
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **random_arrays((28, 28)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("GAN_EBM_DATA", given)
    monkeypatch.chdir(tmp_path / "empty")
    assert datasets.mnist().images.shape == (20, 1, 28, 28)
    assert os.listdir() == []


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(datasets, "MNIST_URL", "http://127.0.0.1:9/")  # nothing listens there
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("GAN_EBM_DATA", str(folder))
        with pytest.raises(
            RuntimeError, match="cannot be made from .*: .*Set GAN_EBM_DATA"
        ) as caught:
            datasets.mnist()
        assert str(folder / "mnist.npz") in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk(official, data_folder, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    loader, name, _, _ = official
    monkeypatch.setattr(datasets.np, "savez", refuse)
    with pytest.raises(RuntimeError, match=r"No space left.*GAN_EBM_DATA") as caught:
        loader()
    assert str(data_folder / f"{name}.npz") in str(caught.value)
    assert os.listdir(data_folder) == []


def damage(kind, path):
    raw = bytearray(path.read_bytes())
    arrays = dict(np.load(path))
    if kind == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "one bit altered":
        raw[raw.index(arrays["train_images"].tobytes()) + 5000] ^= 1
        path.write_bytes(raw)
    elif kind == "no archive":
        path.write_text("404: not found")
    elif kind == "array missing":
        del arrays["train_labels"]
        np.savez(path, **arrays)
    elif kind == "wrong shape":
        np.savez(path, **{**arrays, "train_images": arrays["train_images"][:, :27]})
    elif kind == "wrong type":
        np.savez(path, **{**arrays, "train_images": arrays["train_images"] / 255})
    elif kind == "labels too few":
        np.savez(path, **{**arrays, "train_labels": arrays["train_labels"][:-1]})
    elif kind == "labels out of range":
        np.savez(path, **{**arrays, "train_labels": arrays["train_labels"] + 1 + 9})
    elif kind == "objects":
        np.savez(path, **{**arrays, "train_labels": np.array([None] * 20)})


KINDS = (
    "truncated, empty, one bit altered, no archive, array missing, wrong shape, wrong type, "
    "labels too few, labels out of range, objects"
).split(", ")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archive(data_folder, kind):
    path = data_folder / "mnist.npz"
    np.savez(path, **random_arrays((28, 28)))
    datasets.mnist()  # the control: it was whole before
    damage(kind, path)
    with pytest.raises(RuntimeError, match=r"mnist\.npz is damaged.*Delete it"):
        datasets.mnist()


# --- downloads, from a server on this machine ---


def official_files(arrays):
    """The files as the official servers hold them: IDX for MNIST, a tar of records for CIFAR-10."""

    def idx(values):
        head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        return gzip.compress(head + values.tobytes())

    if arrays["train_images"].ndim == 3:
        return {
            "train-images-idx3-ubyte.gz": idx(arrays["train_images"]),
            "train-labels-idx1-ubyte.gz": idx(arrays["train_labels"]),
            "t10k-images-idx3-ubyte.gz": idx(arrays["test_images"]),
            "t10k-labels-idx1-ubyte.gz": idx(arrays["test_labels"]),
        }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, split, rows in [
            *((f"data_batch_{i + 1}", "train", slice(4 * i, 4 * i + 4)) for i in range(5)),
            ("test_batch", "test", slice(None)),
        ]:
            planes = arrays[f"{split}_images"][rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
            records = np.c_[arrays[f"{split}_labels"][rows], planes].tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(records)
            tar.addfile(member, io.BytesIO(records))
    return {"cifar-10-binary.tar.gz": packed.getvalue()}


class Server:
    """Serves a dict of files; with `stall` it sends half of each and then waits."""

    def __init__(self, files, stall=False):
        self.files, self.stall = files, stall
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                raw = server.files.get(self.path.lstrip("/"))
                if raw is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw[: len(raw) // 2])
                self.wfile.flush()
                if server.stall:
                    server.released.wait(60)
                self.wfile.write(raw[len(raw) // 2 :])

            def log_message(self, *args):
                pass

        self.released = threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *args: None  # the client that is killed
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(params=["mnist", "cifar10"])
def official(request, data_folder, monkeypatch):
    """(loader, name, arrays, server) with the registry of digests turned to the server's files."""
    loader, name, event = next(row for row in LOADERS if row[1] == request.param)
    arrays = random_arrays(event)
    server = Server(official_files(arrays))
    monkeypatch.setattr(datasets, f"{name.upper()}_URL", server.url)
    digests = {
        file.partition(".")[0]: hashlib.sha256(raw).hexdigest()
        for file, raw in server.files.items()
    }
    monkeypatch.setattr(datasets, "SHA256", digests)
    yield loader, name, arrays, server
    server.close()


def test_download_and_prepare(official, data_folder):
    loader, name, arrays, server = official
    images, labels = loader("test")
    assert np.array_equal(labels.numpy(), arrays["test_labels"])
    with np.load(data_folder / f"{name}.npz") as archive:
        assert archive.files == list(arrays)
        assert all(np.array_equal(archive[key], arrays[key]) for key in arrays)
    assert os.listdir(data_folder) == [f"{name}.npz"]
    server.files.clear()
    assert torch.equal(loader("test").images, images), "the second call must not need the server"


@pytest.mark.parametrize(
    "fault, says", [("altered", "hash"), ("cut short", None), ("gone", "404"), ("refused", None)]
)
def test_failed_download(official, data_folder, fault, says):
    loader, _, _, server = official
    file = sorted(server.files)[0]
    raw = server.files[file]
    if fault == "altered":
        server.files[file] = raw[:-1] + bytes([raw[-1] ^ 1])
    elif fault == "cut short":
        server.files[file] = raw[:-10]
    elif fault == "gone":
        del server.files[file]
    else:
        server.close()
    with pytest.raises(RuntimeError, match=says) as caught:
        loader()
    for part in (server.url, str(data_folder), "GAN_EBM_DATA"):
        assert part in str(caught.value)
    assert os.listdir(data_folder) == []


def test_killed_download_leaves_no_half_file(data_folder, monkeypatch):
    arrays = random_arrays((28, 28))
    server = Server(official_files(arrays), stall=True)
    try:
        monkeypatch.setattr(datasets, "MNIST_URL", server.url)
        digests = {
            file.partition(".")[0]: hashlib.sha256(raw).hexdigest()
            for file, raw in server.files.items()
        }
        monkeypatch.setattr(datasets, "SHA256", digests)
        code = f"""
            from gan_ebm_utils import datasets
            datasets.MNIST_URL = {server.url!r}
            datasets.SHA256 = {digests!r}
            datasets.mnist()
        """
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size for p in data_folder.glob(".partial-*/*") if p.is_file()):
            assert child.poll() is None, "the download ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (data_folder / "mnist.npz").exists()
        remains = [path for path in data_folder.glob(".partial-*") if path.is_dir()]
        assert len(remains) == 1, "the control: something was left to clear"

        server.stall = False
        assert np.array_equal(datasets.mnist().labels.numpy(), arrays["train_labels"])
        assert os.listdir(data_folder) == ["mnist.npz"]
    finally:
        server.close()


# --- a GAN of which everything is known ---


def test_the_exact_gan_is_exact():
    exact = datasets.exact_gan()
    axis = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    x, cell = torch.cartesian_prod(axis, axis), (18 / 1200) ** 2
    p_g, p_d = exact.generated.log_prob(x).exp(), exact.data.log_prob(x).exp()
    assert abs(p_g.sum() * cell - 1) < 1e-6 and abs(p_d.sum() * cell - 1) < 1e-6
    # The density is that of the samples: moments by quadrature and by the generator.
    n = 200_000
    drawn = exact.gan.generator(torch.randn(n, 2, generator=seeded(0, "cpu")).double())
    torch.testing.assert_close(
        exact.generated.sample((n,), seeded(0, "cpu")), drawn.float(), rtol=1e-5, atol=1e-5
    )
    for f in (
        lambda x: x[:, 0],
        lambda x: x[:, 1],
        lambda x: x[:, 0] * x[:, 1],
        lambda x: x[:, 1] ** 2,
    ):
        mean, square = (p_g * f(x)).sum() * cell, (p_g * f(x) ** 2).sum() * cell
        assert abs(f(drawn).mean() - mean) <= 5 * ((square - mean**2) / n).sqrt()
    # The logit is the log ratio, and its bound is the least one.
    torch.testing.assert_close(
        exact.gan.discriminator(x), exact.data.log_prob(x) - exact.generated.log_prob(x)
    )
    largest = float(exact.gan.discriminator(x).max())
    assert largest <= exact.log_bound <= largest + 1e-3
    # E_{p_g} e^d = 1.
    assert abs((p_g * exact.gan.discriminator(x).exp()).sum() * cell - 1) < 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_exact_gan_is_made_without_gradients_too(mode):
    with mode():
        exact = datasets.exact_gan()
    assert exact.log_bound == datasets.exact_gan().log_bound
    x = torch.zeros(1, 2, requires_grad=True)
    assert torch.autograd.grad(exact.gan.discriminator(x).sum(), x)[0].isfinite().all()
