"""What every other module stands on: devices, randomness, shared types, unfinished files."""

import contextlib
import dis
import errno
import functools
import itertools
import math
import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

# A sampler of data, (size, generator) -> (*size, *event).
Sample = Callable[[tuple[int, ...], torch.Generator], Tensor]
# Points (*batch, *event) to energies (*batch), in nats; low is likely.
Energy = Callable[[Tensor], Tensor]
# A part of the plane: left, right, bottom, top.
Box = tuple[float, float, float, float]

# Distances held in memory at once (32 MB in float64).
_CHUNK = 2**22
# What the networks of a `Gan` map, and the lines that mend the usual mistakes.
_MAPS = {
    "generator": "latents (R, n, latent_dim) to samples (R, n, *event); write Single(G), or where "
    "latents have axes Single(nn.Sequential(nn.Unflatten(1, (z, 1, 1)), G)), or for samples on a "
    "line nn.Sequential(Single(G), nn.Unflatten(1, (-1, 1))); replicates, and latent_dim in "
    "Gan(generator, discriminator, latent_dim), are those that G was built with",
    "discriminator": "samples (R, n, *event) to logits (R, n); write Single(D), D returning one "
    "number for each sample, or for flat samples Single(nn.Sequential(nn.Flatten(), D)), or for a "
    "map of logits Single(nn.Sequential(D, nn.AdaptiveAvgPool2d(1)))",
}


class Distribution(NamedTuple):
    """A law on R^d: `sample(size, generator)`, `log_prob(x)` and the centres of its modes.

    `sample` takes an int or a tuple of ints and returns `(*size, d)`, float32, on the generator's
    device. `log_prob` maps `(..., d)` to `(...)`, in nats; it is None where no exact density is at
    hand; it is computed where its argument lies. `means` is `(modes, d)` on `default_device()`, or
    None for laws without separate modes.
    """

    sample: Callable[[int | tuple[int, ...], torch.Generator], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None
    means: Tensor | None


class Gan(NamedTuple):
    """A generator x = G(z), z ~ N(0, I) in `latent_dim` dimensions, and the discriminator's logit.

    With R replicates the generator maps (R, n, latent_dim) to (R, n, *event), and the discriminator
    maps that to logits d(x), (R, n), so that D(x) = 1 / (1 + e^{-d(x)}).
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_dim: int

    def prior(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Latents z ~ N(0, I), (*size, latent_dim), in the type of the networks' weights."""
        dtype = dtype_of(self.generator, self.discriminator)
        return randn(*size, self.latent_dim, generator=generator, dtype=dtype)

    def logit(self, z: Tensor) -> Tensor:
        """d(G(z)), (R, n)."""
        return self.discriminator(self.generator(z))


class Single(nn.Module):
    """Anyone's network as one replicate: (1, n, ...) to (1, n, *event), or to logits (1, n).

    `network` maps (n, latent_dim) to (n, *event), or (n, *event) to one number for each sample:
    (n,), (n, 1) or (n, 1, 1, 1). The `Gan` of two such networks is `Gan(Single(G), Single(D), z)`.
    Numbers for samples, data on a line, get their axis back by
    `nn.Sequential(Single(G), nn.Unflatten(1, (-1, 1)))`.

    Raises TypeError for what is no module, ValueError for more than one replicate or an output of
    another length.

    >>> Single(nn.Linear(2, 1))(torch.zeros(1, 5, 2)).shape
    torch.Size([1, 5])
    >>> Single(nn.Unflatten(1, (3, 4, 4)))(torch.zeros(1, 5, 48)).shape
    torch.Size([1, 5, 3, 4, 4])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        check_modules(network=network)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or len(x) != 1:
            raise ValueError(
                f"Single takes (1, n, ...), got {tuple(x.shape)}; leave out replicates"
            )
        y, n = self.network(x.squeeze(0)), x.shape[1]
        if not isinstance(y, Tensor) or not y.ndim or len(y) != n:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            made = f"({n}, ...) to ({n}, ...), a row for each sample"
            raise ValueError(f"the network in Single must map {made}; it returned {found}")
        return y.reshape(1, -1) if y.numel() == len(y) else y.unsqueeze(0)


class State(NamedTuple):
    """Where chains stand: positions (*batch, *event), energies (*batch), gradients or None."""

    position: Tensor
    energy: Tensor
    grad: Tensor | None


class Info(NamedTuple):
    """What one step did: the probability that it moves and whether it moved, both (*batch)."""

    acceptance_rate: Tensor
    is_accepted: Tensor


class Kernel(NamedTuple):
    """One step of a Markov chain, as two pure functions.

    `init(position)` makes the first state; `step(state, generator)` draws the next and says what it
    did. Every chain of the batch moves on its own. `networks` are those that both call, to be put
    in evaluation mode for as long as a chain runs; what is no network in it is left alone.
    """

    init: Callable[[Tensor], State]
    step: Callable[[State, torch.Generator], tuple[State, Info]]
    networks: tuple[object, ...] = ()


class Chain(NamedTuple):
    """What `run_chain` keeps: every thin-th state, and how the chains moved over all steps.

    `positions` is (kept, *batch, *event) and `energies` (kept, *batch), oldest first. Of each
    chain, (*batch), `acceptance_rate` is the mean probability of a move, and `accepted_share` the
    share of the steps that moved.
    """

    positions: Tensor
    energies: Tensor
    acceptance_rate: Tensor
    accepted_share: Tensor


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval; prints as "98.2 [97.8, 98.6]"."""

    mean: float
    low: float
    high: float
    digits: int

    def __str__(self) -> str:
        mean, low, high = (f"{number:.{self.digits}f}" for number in self[:3])
        return f"{mean} [{low}, {high}]"


class Calls(NamedTuple):
    """Rows that passed through networks: forward, and backward from their outputs."""

    forward: int
    backward: int


class Refined(NamedTuple):
    """Samples from a sampler that refines a proposal, and what they cost.

    `samples` are (n, *event), or (R, n, *event) with replicates, and `latents` theirs, or None.
    `acceptance_rate` is the share of proposals that were kept, one per replicate, or None for a
    method that refuses nothing. `calls` are those of all replicates together.
    """

    samples: Tensor
    latents: Tensor | None
    acceptance_rate: float | Tensor | None
    calls: Calls


def default_device() -> torch.device:
    """The device a notebook runs on: GAN_EBM_DEVICE if that is set, else a GPU if there is one.

    Raises ValueError if the variable names no device of this machine.
    """
    name = os.environ.get("GAN_EBM_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.Generator(device)
    # PyTorch raises AssertionError for CUDA in a build without it.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"no GAN_EBM_DEVICE {name!r} here; set it to cpu, cuda or mps") from error
    return device


def seeded(seed: int, device: torch.device | str | None = None) -> torch.Generator:
    """A generator of random numbers on `device` (default: `default_device()`).

    The integer in the environment variable GAN_EBM_SEED_OFFSET is added to `seed`, so that a whole
    notebook can be run again with other numbers.

    >>> float(randn(1, generator=seeded(0, "cpu"))) == float(randn(1, generator=seeded(1, "cpu")))
    False
    """
    offset = os.environ.get("GAN_EBM_SEED_OFFSET", "0")
    try:
        total = seed + int(offset)
    except ValueError as error:
        raise ValueError(f"GAN_EBM_SEED_OFFSET must be an integer, got {offset!r}") from error
    return torch.Generator(device or default_device()).manual_seed(total)


def randn(*shape: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal numbers of the given shape and type (default: float32).

    They lie on the generator's device.
    """
    dtype = dtype or torch.float32  # not the default that a user may have set
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


def rand(*shape: int, generator: torch.Generator) -> Tensor:
    """Numbers uniform on [0, 1) of the given shape, float32, on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or in float32 where its type is a shorter one.

    Logits of an autocast network come in half precision, which is too coarse to compare with
    uniform numbers, to sum, or to move by small steps.
    """
    fits = x.dtype in (torch.float32, torch.float64)  # nearly always, and in each step of a chain
    return x if fits else x.to(torch.promote_types(x.dtype, torch.float32))


def to_bytes(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8 0..255, the inverse of the scaling in `datasets`.

    Those beyond are black or white, as they look.

    >>> to_bytes(torch.tensor([-1.0, 0.0, 1.0, 3.0]))
    tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """|x_i - y_j| of points (n, d) and (m, d), as (rows, m) for some rows of x after the other.

    From differences: a matrix product cancels digits where points are far from 0 or near each
    other. In units of a power of two, so that no square overflows and no digit is lost.

    >>> list(distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])))
    [tensor([[5., 1.]])]
    """
    largest = float(torch.maximum(x.abs().max(), y.abs().max()))
    unit = math.ldexp(0.5, math.frexp(largest)[1])
    x, y = x / unit, y / unit
    for part in x.split(max(1, _CHUNK // len(y))):
        yield unit * torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")


def _reached(*functions: object) -> tuple[list[nn.Module], list[Tensor]]:
    """The networks and tensors that functions are, hold, close over or name, the nearest first."""
    parts, known = list(functions), set()
    for part in parts:  # which grows on the way
        if id(part) in known or isinstance(part, nn.Module | Tensor):
            continue
        known.add(id(part))
        if isinstance(part, tuple | list | dict):
            parts += part.values() if isinstance(part, dict) else part
        elif isinstance(part, functools.partial):
            parts += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, MethodType):
            parts += [part.__self__, part.__func__]
        elif isinstance(part, FunctionType):
            # A function that is defined only later has a cell, which is still empty.
            parts += [c.cell_contents for c in part.__closure__ or () if c != CellType()]
            parts += [part.__globals__[n] for n in _names(part.__code__) if n in part.__globals__]
        elif callable(part) and not isinstance(part, type):
            parts += getattr(part, "__dict__", {}).values()
    networks = [part for part in parts if isinstance(part, nn.Module)]
    return networks, [part for part in parts if isinstance(part, Tensor)]


def _weights(networks: list[nn.Module]) -> Iterator[Tensor]:
    return itertools.chain(*((*net.parameters(), *net.buffers()) for net in networks))


@functools.lru_cache(maxsize=1000)
def _names(code: CodeType) -> tuple[str, ...]:
    """The global names that a function's code reads, those of functions inside it included."""
    own = (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return sum(inner, tuple(own))


def dtype_of(*functions: object) -> torch.dtype | None:
    """The type of the first weight or buffer of floats that functions reach, at least float32.

    A function reaches the networks that it is, holds, closes over or names. None where there is no
    such number.

    >>> dtype_of(nn.ReLU(), nn.Linear(2, 1).double())
    torch.float64
    """
    types = (x.dtype for x in _weights(_reached(*functions)[0]) if x.is_floating_point())
    return next((torch.promote_types(dtype, torch.float32) for dtype in types), None)


def device_of(function: object) -> torch.device:
    """Where `function` takes its points: on the device of the first network that it reaches.

    It reaches what it is, holds, closes over or names. Without a network it is the device of the
    nearest tensor, and without any tensor `default_device()`.

    >>> device_of(nn.Linear(2, 1))
    device(type='cpu')
    """
    networks, tensors = _reached(function)
    first = next(itertools.chain(_weights(networks), tensors), None)
    return default_device() if first is None else first.device


@contextlib.contextmanager
def switched_off(attribute: str, parts: Iterable[object]) -> Iterator[None]:
    """The `attribute` of all `parts` is False inside the block, and as it was after it.

    >>> layer = nn.Linear(2, 1)
    >>> with switched_off("requires_grad", layer.parameters()):
    ...     layer.weight.requires_grad
    False
    >>> layer.weight.requires_grad
    True
    """
    on = [part for part in parts if getattr(part, attribute)]
    try:
        for part in on:
            setattr(part, attribute, False)
        yield
    finally:
        for part in on:
            setattr(part, attribute, True)


def evaluating(*functions: object) -> contextlib.AbstractContextManager[None]:
    """The networks that functions reach in evaluation mode inside the block, as they were after it.

    In training mode batch normalisation couples the samples of a batch and forgets what it learnt,
    dropout makes an energy random, and spectral normalisation changes with each pass. A function
    reaches what it is, holds, closes over or names.

    >>> network = nn.Dropout()
    >>> with evaluating(network):
    ...     network.training
    False
    >>> network.training
    True
    """
    networks, _ = _reached(*functions)
    return switched_off("training", [module for net in networks for module in net.modules()])


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Gradients are recorded inside the block, also where the caller has switched them off.

    Raises RuntimeError within `torch.inference_mode`, whose tensors can never have one.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode() rules out gradients; use torch.no_grad()")
    with torch.enable_grad():
        yield


@contextlib.contextmanager
def count_calls(*networks: nn.Module) -> Iterator[Callable[[], Calls]]:
    """Count the rows that pass through `networks` inside the block, in all of them together.

    A row is one sample: the product of the first two axes of an output (R, n, ...), the size of an
    output (n,). The value of the block is a function that returns the counts so far.

    >>> network = nn.Linear(2, 1)
    >>> with count_calls(network) as calls:
    ...     _ = network(torch.zeros(3, 5, 2))
    >>> calls()
    Calls(forward=15, backward=0)
    """
    forward, backward = [], []  # rows of each pass

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        n = math.prod(output.shape[:2])
        forward.append(n)
        if output.requires_grad:
            output.register_hook(lambda grad: backward.append(n))

    with contextlib.ExitStack() as hooks:
        for network in dict.fromkeys(networks):  # one that is given twice is one network
            hooks.enter_context(network.register_forward_hook(count))
        yield lambda: Calls(sum(forward), sum(backward))


def check_samples(**samples: Tensor) -> None:
    """Raise ValueError unless each named tensor holds at least one number and only finite ones.

    What is no tensor of real numbers raises TypeError.

    >>> check_samples(x=torch.tensor([1.0, float("nan")]))
    Traceback (most recent call last):
    ValueError: 1 of 2 values of x are not finite; remove them
    """
    for name, x in samples.items():
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a tensor of real numbers, got {kind}")
        if not x.numel():
            raise ValueError(f"{name} is empty: shape {tuple(x.shape)}; give at least one sample")
        if bad := int((~x.isfinite()).sum()):
            raise ValueError(f"{bad} of {x.numel()} values of {name} are not finite; remove them")


def check_positive(**numbers: float) -> None:
    """Raise ValueError unless each named number is finite and above 0.

    >>> check_positive(std=0)
    Traceback (most recent call last):
    ValueError: std must be positive, got 0
    """
    for name, number in numbers.items():
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # a text; several numbers
            if 0 < number < math.inf:
                continue
        raise ValueError(f"{name} must be positive, got {number}")


def check_shape(**given: tuple[Tensor, str]) -> None:
    """Raise ValueError unless each named tensor has the axes that stand beside it.

    An axis is a number, or a name that stands for one size wherever it occurs; "..." at the end are
    any further axes.

    >>> check_shape(x=(torch.zeros(1, 3, 2), "R n d"), means=(torch.zeros(4, 3), "modes d"))
    Traceback (most recent call last):
    ValueError: x must be (R, n, d), means (modes, d); got (1, 3, 2), (4, 3)
    """
    sizes, good = {}, True
    for tensor, axes in given.values():
        names, n = axes.removesuffix("...").split(), tensor.ndim
        good &= n > len(names) if axes.endswith("...") else n == len(names)
        for axis, size in zip(names, tensor.shape, strict=False):
            good &= size == (int(axis) if axis.isdigit() else sizes.setdefault(axis, size))
    if not good:
        wanted = (f"{name} ({', '.join(axes.split())})" for name, (_, axes) in given.items())
        found = ", ".join(str(tuple(tensor.shape)) for tensor, _ in given.values())
        raise ValueError(f"{', '.join(wanted).replace(' ', ' must be ', 1)}; got {found}")


def check_gan(
    gan: Gan, replicates: int, generator: torch.Generator, depth: int | None = None
) -> tuple[Tensor, Tensor]:
    """Latents (R, 100, latent_dim) and their logits (R, 100), without a draw from `generator`.

    Raises ValueError, or TypeError for what is no module, with the line to write instead, unless
    `gan` maps latents to samples and those to one logit each, which an energy does not. With
    `depth`, the frames up to the line to warn of, the discriminator is a trained one: raises
    FloatingPointError for logits that are not finite, and warns of those that may be
    probabilities.

    >>> gan = Gan(nn.Linear(3, 2), nn.Linear(2, 1), 3)
    >>> check_gan(gan, 1, seeded(0, "cpu"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: given ... the discriminator returned (1, 100, 1); ... write Single(D), ...
    """
    check_count(replicates=replicates, latent_dim=gan.latent_dim)
    check_modules(generator=gan.generator, discriminator=gan.discriminator)
    if getattr(gan.discriminator, "is_energy", False):
        kind = type(gan.discriminator).__name__
        line = "give NegativeEnergy(E), and refit a classifier where a log ratio is needed"
        raise ValueError(f"the discriminator is an energy ({kind}), low for data; {line}")
    own = torch.Generator(generator.device).manual_seed(0)  # the caller's draws are for samples
    z = gan.prior((replicates, 100), own)
    with torch.no_grad(), evaluating(*gan[:2]):
        x = _tried("generator", gan.generator, z)
        d = at_least_float32(_tried("discriminator", gan.discriminator, x))
    if depth:
        check_logits(d)
        if 0 <= d.min() < d.max() <= 1:
            line = "for probabilities D give the logit log D - log(1 - D), and refit it"
            warnings.warn(f"all logits lie in [0, 1]: {line}", stacklevel=depth)
    return z, d


def check_logits(d: Tensor) -> None:
    """Raise FloatingPointError unless all logits are finite.

    >>> check_logits(torch.tensor([0.0, float("inf")]))
    Traceback (most recent call last):
    FloatingPointError: 1 of 2 logits are nan or infinite; regularise or calibrate the discriminator
    """
    if bad := int((~d.isfinite()).sum()):
        found = f"{bad} of {d.numel()} logits are nan or infinite"
        raise FloatingPointError(f"{found}; regularise or calibrate the discriminator")


def check_modules(**networks: object) -> None:
    """Raise TypeError, with what to give instead, unless each named network is an `nn.Module`.

    >>> check_modules(discriminator=lambda x: x)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: the discriminator must be an nn.Module, got function; give what it calls, ...
    """
    for name, network in networks.items():
        if network is None:
            line = "refit_discriminator(gan, Single(D), minibatches(data), n_steps, generator)"
            raise TypeError(f"the {name} is None; {line} fits a new discriminator D")
        if not isinstance(network, nn.Module):
            line = "give what it calls, as Single(nn.Sequential(nn.Unflatten(1, (z, 1, 1)), G))"
            raise TypeError(
                f"the {name} must be an nn.Module, got {type(network).__name__}; {line}"
            )


def _tried(name: str, network: nn.Module, x: Tensor) -> Tensor:
    """network(x), or ValueError with what to write so that it works."""
    cause, mending = None, f"it must map {_MAPS[name]}"
    try:
        y = network(x)
        if y.shape[:2] == x.shape[:2] and (y.ndim == 2) == (name == "discriminator"):
            return y
        found = f"returned {tuple(y.shape)}"
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        found, cause = f"raised: {error}", error
    for weight in _weights([network]):
        dtype = weight.dtype if weight.is_floating_point() else x.dtype
        if (weight.device, dtype) != (x.device, x.dtype):
            mending = (
                f"its weights are {dtype} on {weight.device}: all must be float32, or all "
                "float64, by .float() or .double(), and on one device; write "
                f'seeded(0, "{weight.device}"), or move both networks with .to("{x.device}")'
            )
    found = f"given {tuple(x.shape)} of {x.dtype} the {name} {found}"
    raise ValueError(f"{found}; {mending}") from cause


def is_count(number: object, least: int = 1) -> bool:
    """Whether `number` is a whole number of at least `least`; a truth value is none."""
    return isinstance(number, Integral) and not isinstance(number, bool) and number >= least


def check_count(least: int = 1, /, **counts: int) -> None:
    """Raise ValueError unless each named count is a whole number of at least `least`.

    >>> check_count(n=2.5)
    Traceback (most recent call last):
    ValueError: n must be a whole number of at least 1, got 2.5
    """
    for name, count in counts.items():
        if not is_count(count, least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")


def environment_path(name: str) -> Path | None:
    """The path in the environment variable `name`, its ~ and $VARIABLES expanded; None if unset.

    Raises ValueError for a home or a variable that is not known here, which would otherwise become
    the name of a folder.

    >>> environment_path("GAN_EBM_NO_SUCH_VARIABLE") is None
    True
    """
    if not (given := os.environ.get(name)):
        return None
    if os.path.exists(given):  # its name may hold a $
        return Path(given)
    path = os.path.expanduser(os.path.expandvars(given))
    if path.startswith("~") or re.search(r"\$\w|\$\{", path):
        raise ValueError(f"{name} is {given!r}, whose ~ or $ is not known here; set the whole path")
    return Path(path)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends without an error, and not before.

    Its folder is made if need be; errors are those of `partial_folder`.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder, "note")) as part:
    ...         _ = part.write_text("whole")
    ...         before = os.path.exists(Path(folder, "note"))
    ...     print(before, Path(folder, "note").read_text())
    False whole
    """
    with partial_folder(path.parent) as part:
        yield part / path.name
        os.replace(part / path.name, path)


@contextlib.contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder inside `folder` for files in the making, removed at the end.

    A file is made there and moved to its final name in `folder` by `os.replace`, so nothing
    half-written ever bears that name; `whole_file` does so for a single one. `folder` is made if
    need be. What a killed process left behind is removed on entry. What a living one is making
    stays, on whatever machine or in whatever container it runs: it holds a lock, which the
    operating system releases when the process ends.

    Raises OSError, with the folder, where it or the block cannot write.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with partial_folder(Path(folder)) as part:
    ...         _ = (part / "note").write_text("half")
    ...     os.listdir(folder)
    []
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".partial-*.lock"):
            # Refused while the owner lives, to another user, and where there are no locks: then all
            # is left alone. Over NFS the server keeps the locks, so they hold among machines; only
            # a mount that keeps them to itself ("nolock") must not be shared.
            with contextlib.suppress(OSError):
                with path.open("r+b") as file:
                    _lock(file, wait=False)
                    for remains in folder.glob(f"{path.stem}-*"):
                        shutil.rmtree(remains)
                path.unlink()
        path = folder / f".partial-{uuid.uuid4().hex}.lock"
        try:
            with path.open("xb") as file:
                with contextlib.suppress(OSError):  # no locks here: it is refused to others, too
                    _lock(file, wait=True)  # for one who clears up and has just seen the file
                with tempfile.TemporaryDirectory(prefix=f"{path.stem}-", dir=folder) as part:
                    yield Path(part)
        finally:
            with contextlib.suppress(OSError):  # it was not made, or is removed already
                path.unlink()
    except OSError as error:
        is_closed = isinstance(error, PermissionError | FileExistsError | NotADirectoryError)
        if not is_closed and error.errno not in (errno.EDQUOT, errno.ENOSPC, errno.EROFS):
            raise  # of something else that the block does, as a download
        raise OSError(f"nothing was written to {folder}, give one with room: {error}") from error


def _lock(file: BinaryIO, wait: bool) -> None:
    """Lock a file until it is closed, at the latest by the end of the process.

    Raises OSError where another has the lock, or where there are no locks.
    """
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
