"""Data with a known law in the plane, and small images.

A two-dimensional data set is a `Distribution`: it draws i.i.d. points and, where the density has a
closed form or a quadrature, returns its logarithm, so that what a network learned can be compared
with the truth. Image sets are `Images`, scaled to [-1, 1].
"""

import gzip
import hashlib
import math
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import roots_legendre
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gan_ebm_utils import base
from gan_ebm_utils.base import Distribution, Gan

# The official files: MNIST from PyTorch's mirror, CIFAR-10 from its author.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/"
# SHA-256 of the compressed files, by name without extension.
SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "cifar-10-binary": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
}

# Points times quadrature nodes held in memory at once (16 MB in float32).
_CHUNK = 2**22


def _shape(size: int | tuple[int, ...]) -> tuple[int, ...]:
    shape = size if isinstance(size, tuple) else (size,)
    if not shape or not all(map(base.is_count, shape)):
        raise ValueError(f"size must be a positive int or a tuple of them, got {size!r}")
    return shape


def _arange(n: int) -> Tensor:
    """0, ..., n - 1, whatever default type and device the user has set."""
    return torch.arange(n, dtype=torch.float32, device="cpu")


def _check_points(x: Tensor, dim: int) -> None:
    if x.shape[-1:] != (dim,) or not x.is_floating_point():
        raise ValueError(f"log_prob takes floats (..., {dim}), got {x.dtype} {tuple(x.shape)}")


def _mixture_log_prob(centres: Tensor, weights: Tensor, std: float) -> Callable[[Tensor], Tensor]:
    """log sum_i w_i N(x; c_i, std^2 I) for centres (m, d) and weights (m,) that sum to 1."""
    dim = centres.shape[1]
    log_weights = weights.log() - dim / 2 * math.log(2 * math.pi * std**2)

    def chunk(x: Tensor) -> Tensor:
        # Differences, not torch.cdist: its matrix product cancels digits when std is small.
        squares = sum((x[:, None, k] - centres[:, k].to(x)) ** 2 for k in range(dim))  # (n, m)
        return torch.logsumexp(log_weights.to(x) - squares / (2 * std**2), dim=1)

    def log_prob(x: Tensor) -> Tensor:
        _check_points(x, dim)
        rows = x.reshape(-1, dim).split(max(1, _CHUNK // len(centres)))
        return torch.cat([chunk(part) for part in rows]).reshape(x.shape[:-1])

    return log_prob


def _mixture(means: Tensor, std: float) -> Distribution:
    """Equal Gaussians N(mean_i, std^2 I)."""

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        shape = _shape(size)
        mode = torch.randint(len(means), shape, generator=generator, device=generator.device)
        noise = base.randn(*shape, means.shape[1], generator=generator)
        return means.to(noise)[mode] + std * noise

    weights = torch.full_like(means[:, 0], 1 / len(means), dtype=torch.float64)
    log_prob = _mixture_log_prob(means.double(), weights, std)
    return Distribution(sample, log_prob, means.to(base.default_device()))


def gaussian(mean: Sequence[float], std: float = 1.0) -> Distribution:
    """The normal law N(mean, std^2 I) in `len(mean)` dimensions.

    Raises ValueError for an empty mean or std <= 0.

    >>> standard = gaussian([0.0, 0.0])
    >>> f"{standard.log_prob(torch.zeros(2)):.4f}"  # -log(2 pi)
    '-1.8379'
    """
    base.check_positive(std=std)
    means = torch.as_tensor(mean, dtype=torch.float32, device="cpu").detach().clone()
    base.check_samples(mean=means)
    base.check_shape(mean=(means, "d"))
    return _mixture(means[None], std)


def gaussian_grid(spacing: float = 1.0, std: float = 0.05, n_side: int = 5) -> Distribution:
    """A square grid of `n_side`^2 equal Gaussians centred at 0; by default the "25 Gaussians".

    `spacing` is the distance of neighbouring means; `means` is (n_side^2, 2). Two scalings are in
    use: spacing 1 with std .05, and spacing 2 with std .05 divided by 2.828 (Tanaka 2019,
    arXiv:1910.06832), which is `gaussian_grid(2 / 2.828, 0.05 / 2.828)`.

    >>> gaussian_grid().means.shape
    torch.Size([25, 2])
    """
    base.check_count(n_side=n_side)
    base.check_positive(spacing=spacing, std=std)
    axis = spacing * (_arange(n_side) - (n_side - 1) / 2)
    return _mixture(torch.cartesian_prod(axis, axis), std)


def gaussian_ring(n_modes: int = 8, radius: float = 1.5, std: float = 0.15) -> Distribution:
    """`n_modes` equal Gaussians, evenly spaced on a circle about 0; the first lies on the x-axis.

    >>> gaussian_ring().sample((10, 100), torch.Generator().manual_seed(0)).shape
    torch.Size([10, 100, 2])
    """
    base.check_count(n_modes=n_modes)
    base.check_positive(radius=radius, std=std)
    angle = 2 * math.pi * _arange(n_modes) / n_modes
    return _mixture(radius * torch.stack([angle.cos(), angle.sin()], dim=1), std)


def _noisy_curve(
    point: Callable[[Tensor], Tensor], pieces: int, speed: float, std: float
) -> Distribution:
    """The law of point(u) + std * noise, with u uniform on [0, 1) and standard normal noise.

    `point` maps (...) to (..., 2) and is smooth on each of `pieces` equal parts of [0, 1), with
    |point'(u)| <= speed. The density is int_0^1 N(x; point(u), std^2 I) du.
    """
    # Gauss-Legendre nodes lie at most pi/2 times their mean distance apart. Neighbours then are at
    # most .6 std apart on the curve, where the rule's error is far below float32's; and they crowd
    # at the ends of a piece, which are what a point far beyond an end sees.
    n = max(16, math.ceil(math.pi / 2 * speed / pieces / (0.6 * std)))
    roots, weights = (torch.from_numpy(array) for array in roots_legendre(n))
    u = (_arange(pieces)[:, None] + (1 + roots) / 2) / pieces
    weights = (weights / (2 * pieces)).repeat(pieces)

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        shape = _shape(size)
        on_curve = point(base.rand(*shape, generator=generator))
        return on_curve + std * base.randn(*shape, 2, generator=generator)

    return Distribution(sample, _mixture_log_prob(point(u.flatten()), weights, std), None)


def moons(noise: float = 0.1) -> Distribution:
    """Two interleaved half circles of radius 1, blurred by Gaussian noise of std `noise`.

    The arcs are (cos t, sin t) and (1 - cos t, 1/2 - sin t), t uniform on [0, pi], as in
    scikit-learn's `make_moons`; but that function spaces t evenly, so its points are not i.i.d.,
    while these are. `log_prob` integrates the arcs by quadrature (error below 1e-4 nat).

    >>> x = moons().sample(1000, torch.Generator().manual_seed(0))
    >>> bool(moons().log_prob(x).isfinite().all())
    True
    """
    base.check_positive(noise=noise)

    def point(u: Tensor) -> Tensor:
        second = (u >= 0.5).to(u)
        t = math.pi * (2 * u - second)
        side = 1 - 2 * second
        return torch.stack([second + side * t.cos(), second / 2 + side * t.sin()], dim=-1)

    return _noisy_curve(point, pieces=2, speed=2 * math.pi, std=noise)


def swiss_roll(noise: float = 0.25, scale: float = 7.5) -> Distribution:
    """The spiral (t cos t, t sin t), t = 1.5 pi (1 + 2u), u uniform, plus noise; all over `scale`.

    The curve is that of scikit-learn's `make_swiss_roll` without its middle axis; noise .25 and
    scale 7.5 are the protocol of Tanaka (2019, arXiv:1910.06832). `noise` is the standard deviation
    before the division. `log_prob` integrates the spiral by quadrature (error below 1e-4 nat).

    >>> swiss_roll().sample(5, torch.Generator().manual_seed(0)).shape
    torch.Size([5, 2])
    """
    base.check_positive(noise=noise, scale=scale)

    def point(u: Tensor) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * u)
        return torch.stack([t * t.cos(), t * t.sin()], dim=-1) / scale

    speed = 3 * math.pi * math.hypot(1, 4.5 * math.pi) / scale
    return _noisy_curve(point, pieces=1, speed=speed, std=noise / scale)


def checkerboard() -> Distribution:
    """Uniform on the eight dark squares of a 4 x 4 board on [-2, 2)^2.

    A square [i, i+1) x [j, j+1) is dark when i + j is even. The density is 1/8 there and 0
    elsewhere, so `log_prob` is -log 8 or -inf.

    >>> checkerboard().log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]]))
    tensor([-2.0794,    -inf])
    """

    def is_dark(x: Tensor) -> Tensor:
        return x.floor().sum(dim=-1) % 2 == 0

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        x, y = (4 * base.rand(*_shape(size), 2, generator=generator) - 2).unbind(dim=-1)
        # A point on a light square moves up one square, from the top row to the bottom row. These
        # sums are exact in float32, so that no point is rounded across an edge.
        moved = torch.where(y >= 1, y - 3, y + 1)
        return torch.stack([x, torch.where(is_dark(torch.stack([x, y], -1)), y, moved)], dim=-1)

    def log_prob(x: Tensor) -> Tensor:
        _check_points(x, 2)
        inside = is_dark(x) & ((x >= -2) & (x < 2)).all(dim=-1)
        return x.new_full(inside.shape, -math.log(8)).masked_fill(~inside, -math.inf)

    return Distribution(sample, log_prob, None)


class ExactGan(NamedTuple):
    """A GAN of which everything is known: the laws of the data and of the samples, and their ratio.

    `gan.discriminator` is log_prob of `data` minus log_prob of `generated`, and `log_bound` its
    largest value, so that log M of rejection sampling is exact.
    """

    gan: Gan
    data: Distribution
    generated: Distribution
    log_bound: float


class _Bend(nn.Module):
    """G(z) = (z_1 + c sqrt(1 + z_1^2), z_2 + sin(2 x_1)), with c = .3: density and inverse known.

    Both derivatives of x_1 by z_1 in the tails, 1 - c and 1 + c, are bounded, and so are the forces
    that a Langevin chain meets.
    """

    c = 0.3

    def forward(self, z: Tensor) -> Tensor:
        x = z[..., 0] + self.c * (1 + z[..., 0] ** 2).sqrt()
        return torch.stack([x, z[..., 1] + (2 * x).sin()], dim=-1)

    def log_prob(self, x: Tensor) -> Tensor:
        _check_points(x, 2)
        x, second = x[..., 0], x[..., 1] - (2 * x[..., 0]).sin()
        first = (x - self.c * (x**2 + 1 - self.c**2).sqrt()) / (1 - self.c**2)
        stretch = torch.log1p(self.c * first / (1 + first**2).sqrt())  # log of dx_1 / dz_1
        return -(first**2 + second**2) / 2 - math.log(2 * math.pi) - stretch


@torch.inference_mode(False)  # whose constants admit no derivatives of the ratio
def exact_gan() -> ExactGan:
    """A generator that can be inverted and the exact logit: the ground truth of samplers.

    G(z) = (z_1 + .3 sqrt(1 + z_1^2), z_2 + sin(2 x_1)) in the plane, so that p_g(x) is
    N(G^{-1}(x); 0, I) / |det G'|; the data are three equal Gaussians of standard deviation .4. The
    ratio p_d / p_g is bounded, since p_g has the wider tails. The networks take any number of
    replicates.

    >>> exact = exact_gan()
    >>> x = exact.gan.generator(torch.randn(2, 1000, 2, generator=torch.Generator().manual_seed(0)))
    >>> bool((exact.gan.discriminator(x) <= exact.log_bound).all())
    True
    """
    means = [[-0.8, -0.9], [1.3, -0.3], [0.2, 1.1]]
    data = _mixture(torch.tensor(means, dtype=torch.float32, device="cpu"), 0.4)
    bend = _Bend()

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        return bend(base.randn(*_shape(size), 2, generator=generator))

    ratio = nn.Module()  # a network without weights, which calls this
    ratio.forward = lambda x: data.log_prob(x) - bend.log_prob(x)
    # The best point of a grid, then uphill from there.
    axis = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64, device="cpu")
    x = torch.cartesian_prod(axis, axis)
    found = minimize(lambda x: -float(ratio(torch.from_numpy(x))), x[ratio(x).argmax()].numpy())
    gan = Gan(bend, ratio, 2)
    return ExactGan(gan, data, Distribution(sample, bend.log_prob, None), -float(found.fun))


class Images(NamedTuple):
    """Images (n, c, h, w) float32 in [-1, 1] and their labels (n,) int64, on the CPU."""

    images: Tensor
    labels: Tensor


def digest(*sets: Images) -> str:
    """SHA-256 of the pixels (as bytes 0..255) and labels of the given sets, in that order.

    >>> images, labels = digits()
    >>> digest(Images(images, labels)) == digest(Images(-images, labels))
    False
    """
    total = hashlib.sha256()
    for data in sets:
        total.update(base.to_bytes(data.images).cpu().numpy().tobytes())
        total.update(data.labels.cpu().numpy().tobytes())
    return total.hexdigest()


def minibatches(images: Tensor) -> Callable[[int | tuple[int, ...], torch.Generator], Tensor]:
    """A sampler of the rows of `images`, drawn with replacement, called as `Distribution.sample`.

    The returned function maps (size, generator) to (*size, *images.shape[1:]), on the generator's
    device, wherever the images are. Raises ValueError for an empty set or non-finite pixels.

    >>> sample = minibatches(torch.arange(6.0).reshape(3, 2))
    >>> sample((4, 5), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 5, 2])
    """
    base.check_samples(images=images)

    def sample(size: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        shape = _shape(size)
        row = torch.randint(len(images), shape, generator=generator, device=generator.device)
        return images[row.to(images.device)].to(generator.device)

    return sample


def stacked_digits(images: Tensor) -> Callable[[int | tuple[int, ...], torch.Generator], Tensor]:
    """A sampler of Stacked MNIST: three digits drawn independently are the channels of one image.

    `images` are digits of one channel, (n, 1, h, w); the sampler is called as that of `minibatches`
    and gives (*size, 3, h, w). Ten classes make 1000 modes (Metz et al. 2016, arXiv:1611.02163).
    Every call draws fresh stacks, where Kumar et al. 2019 (arXiv:1901.08508) fix 128,000 of them.

    Raises ValueError for images of another shape, as of more channels.

    >>> sample = stacked_digits(torch.zeros(5, 1, 28, 28))
    >>> sample((1, 4), torch.Generator().manual_seed(0)).shape
    torch.Size([1, 4, 3, 28, 28])
    """
    base.check_shape(images=(images, "n 1 h w"))
    draw = minibatches(images[:, 0])
    return lambda size, generator: draw((*_shape(size), 3), generator)


def _to_images(values: np.ndarray, labels: np.ndarray, top: int) -> Images:
    """`Images` from values in 0..top, channels last if there are channels."""
    pixels = torch.from_numpy(values)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels.float().div_(top / 2).sub_(1), torch.from_numpy(labels).long())


def digits() -> Images:
    """The 1797 handwritten digits, 8 x 8, that come with scikit-learn; pixel value / 8 - 1.

    >>> digits().images.shape
    torch.Size([1797, 1, 8, 8])
    """
    data = load_digits()
    return _to_images(data.images, data.target, top=16)


def mnist(split: str = "train") -> Images:
    """MNIST (LeCun, Cortes and Burges): 28 x 28, 60,000 "train" or 10,000 "test" images.

    Read from `mnist.npz` in the folder named by the environment variable GAN_EBM_DATA (default: the
    user's cache). The archive holds train_images (n, 28, 28) and train_labels (n,), uint8, and the
    same for test. If it is missing, the official files are downloaded and checked by SHA-256.

    Raises ValueError for an unknown split, RuntimeError for a damaged archive, a failed download or
    a folder that cannot be written.
    """
    return _load("mnist", split, (28, 28), MNIST_URL, _official_mnist)


def cifar10(split: str = "train") -> Images:
    """CIFAR-10 (Krizhevsky 2009): 3 x 32 x 32, 50,000 "train" or 10,000 "test" images.

    Read from `cifar10.npz`, downloaded and checked as `mnist` does it; images are (n, 32, 32, 3) in
    the archive.
    """
    return _load("cifar10", split, (32, 32, 3), CIFAR10_URL, _official_cifar10)


def _load(name: str, split: str, event: tuple, url: str, official: Callable) -> Images:
    """The images of `split` in the archive `name`, which `official` makes from files at `url`."""
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    folder = base.environment_path("GAN_EBM_DATA") or Path(_pooch().os_cache("gan_ebm_utils"))
    path = folder / f"{name}.npz"
    try:
        if not path.exists():
            with base.whole_file(path) as file:
                np.savez(file, **official(file.parent))
    except (OSError, ValueError) as error:  # a disk, the network, an HTTP status; a wrong checksum
        raise RuntimeError(
            f"{path} cannot be made from {url}: {error}. Set GAN_EBM_DATA to a folder that holds "
            f"{path.name} or can be written, or try again later."
        ) from error
    try:
        with np.load(path) as archive:
            images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
        if images.dtype != np.uint8 or images.shape[1:] != event or not len(images):
            raise ValueError(f"{split}_images is {images.dtype} {images.shape}")
        if labels.shape != images.shape[:1] or not np.isin(labels, range(10)).all():
            raise ValueError(f"{split}_labels is {labels.dtype} {labels.shape}, or not in 0..9")
    # A flipped bit can raise a dozen kinds of error, from zipfile's to the tokenizer's.
    except Exception as error:
        raise RuntimeError(f"{path} is damaged: {error}. Delete it to load it anew.") from error
    return _to_images(images, labels, top=255)


def _pooch() -> ModuleType:
    """Pooch, imported where it is used: in a notebook without ipywidgets its import warns."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    return pooch


def _download(url: str, part: Path) -> Path:
    file = url.rpartition("/")[2]
    return Path(_pooch().retrieve(url, SHA256[file.partition(".")[0]], path=part, fname=file))


def _official_mnist(part: Path) -> dict[str, np.ndarray]:
    def idx(file: str) -> np.ndarray:
        # IDX: two zero bytes, the type (8 = uint8), the number of axes, their sizes, the values.
        raw = gzip.decompress(_download(MNIST_URL + file, part).read_bytes())
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    return {
        f"{split}_{kind}": idx(f"{prefix}-{kind}-idx{axes}-ubyte.gz")
        for split, prefix in (("train", "train"), ("test", "t10k"))
        for kind, axes in (("images", 3), ("labels", 1))
    }


def _official_cifar10(part: Path) -> dict[str, np.ndarray]:
    # Records of 3073 bytes: the label, then the red, the green and the blue plane, row by row.
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    arrays = {}
    with tarfile.open(_download(CIFAR10_URL + "cifar-10-binary.tar.gz", part)) as tar:
        for split, names in batches.items():
            files = [tar.extractfile(f"cifar-10-batches-bin/{name}.bin") for name in names]
            rows = np.frombuffer(b"".join(f.read() for f in files), np.uint8).reshape(-1, 3073)
            arrays[f"{split}_images"] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            arrays[f"{split}_labels"] = rows[:, 0]
    return arrays
