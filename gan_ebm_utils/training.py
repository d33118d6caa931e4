"""Training loops: plain, with the loss passed in. Replicates train side by side, each on its own.

A sampler of data is a function (size, generator) -> (*size, *event), such as `Distribution.sample`
or what `datasets.minibatches` returns.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan_ebm_utils.base import (
    Gan,
    Kernel,
    Sample,
    check_count,
    check_positive,
    evaluating,
    gradients,
)
from gan_ebm_utils.losses import gan_d_loss
from gan_ebm_utils.samplers import ReplayBuffer, run_chain

Loss = Callable[[Tensor, Tensor], Tensor]
# A network, data and samples of the model (R, n, *event), and a generator, to (R,).
Penalty = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
# A GAN, latents z and samples G(z) of a batch, through which gradients pass, to (R,).
GeneratorPenalty = Callable[[Gan, Tensor, Tensor, torch.Generator], Tensor]
# Data (R, n, *event) to samples of the model of the same shape.
Negatives = Callable[[Tensor, torch.Generator], Tensor]


class History(NamedTuple):
    """The losses of each step, (n_steps, R), without the penalties; nan where none is yet."""

    d_loss: Tensor
    g_loss: Tensor


class EbmHistory(NamedTuple):
    """The mean energies of each step on data and on negatives, (n_steps, R); nan where none yet."""

    real: Tensor
    fake: Tensor


@gradients()
def fit_discriminator(
    discriminator: nn.Module,
    real: Sample,
    fake: Sample,
    loss: Loss,
    n_steps: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    penalty: Penalty | None = None,
) -> Tensor:
    """Train `discriminator` alone to tell samples of `real` from samples of `fake`.

    Each of `n_steps` steps of Adam draws `batch_size` fresh samples of both per replicate and
    lowers loss(d(x), d(y)) + penalty(discriminator, x, y, generator), summed over replicates. The
    learning rate falls to 0 along a cosine, so that the last weights are settled. Weights that
    require no gradient stay as they are. Returns the loss of each step, (n_steps, replicates).

    Raises ValueError for counts below 1, samples that are not finite or a network that is frozen,
    RuntimeError with the step if the loss stops being finite.

    >>> from gan_ebm_utils.networks import mlp
    >>> g = torch.Generator().manual_seed(0)
    >>> d = mlp(2, (16,), generator=g)
    >>> near, far = (lambda size, g, a=a: a + torch.randn(*size, 2, generator=g) for a in (0, 3))
    >>> loss = fit_discriminator(d, near, far, gan_d_loss, 50, g)
    >>> loss.shape, bool(loss[-1] < loss[0])
    (torch.Size([50, 1]), True)
    """
    check_count(n_steps=n_steps, replicates=replicates, batch_size=batch_size)
    check_positive(learning_rate=learning_rate)
    optimizer = _adam("discriminator", discriminator, learning_rate, (0.9, 0.99))
    size = (replicates, batch_size)
    losses = _record(n_steps, replicates, generator)
    for step in tqdm(range(n_steps), desc="discriminator"):
        _set_rate(optimizer, learning_rate * (1 + math.cos(math.pi * step / n_steps)) / 2)
        x, y = real(size, generator), fake(size, generator)
        losses[step] = _discriminator_step(
            discriminator, optimizer, loss, penalty, x, y, generator, step
        )
    return losses


def refit_discriminator(
    gan: Gan,
    discriminator: nn.Module,
    data: Sample,
    n_steps: int,
    generator: torch.Generator,
    **settings: object,
) -> Gan:
    """`gan` with a copy of `discriminator` in the place of its own, fitted to its generator.

    The generator stays as it is, in evaluation mode, so that the logit tends to log(p_d / p_g) and
    not to where a game left it. `discriminator` is where the fit starts and is not changed; the
    copy comes back frozen, in evaluation mode. `settings` are those of `fit_discriminator`:
    replicates, batch_size, learning_rate, penalty. `data` draws from the points that the refit may
    see.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> from gan_ebm_utils.networks import mlp
    >>> g, exact = torch.Generator().manual_seed(0), exact_gan()
    >>> fresh = mlp(2, (16,), generator=g)
    >>> refitted = refit_discriminator(exact.gan, fresh, exact.data.sample, 9, g)
    >>> refitted.logit(exact.gan.prior((1, 5), g)).shape
    torch.Size([1, 5])
    """
    # What an earlier pass has left in a module, as the weight of `nn.utils.spectral_norm`, hangs on
    # a graph and cannot be copied otherwise.
    left = [t for module in discriminator.modules() for t in vars(module).values()]
    left = [t for t in left if isinstance(t, Tensor) and not t.is_leaf]
    refitted = copy.deepcopy(discriminator, {id(t): t.detach().clone() for t in left})
    if not _weights(refitted):  # a network that was refitted or loaded before
        refitted.requires_grad_(True)
    with evaluating(gan.generator):
        fit_discriminator(refitted, data, _draws(gan), gan_d_loss, n_steps, generator, **settings)
    return gan._replace(discriminator=refitted.eval().requires_grad_(False))


@gradients()
def train_gan(
    gan: Gan,
    data: Sample,
    d_loss: Loss,
    g_loss: Loss,
    n_steps: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.5, 0.99),
    d_steps: int = 1,
    penalty: Penalty | None = None,
    g_penalty: GeneratorPenalty | None = None,
    callback: Callable[[int, History], None] | None = None,
) -> History:
    """Train both networks in turn: `d_steps` steps of the discriminator, one of the generator.

    The discriminator lowers d_loss(d(x), d(G(z))) + penalty(d, x, G(z), generator), the generator
    lowers g_loss(d(x), d(G(z))) + g_penalty(gan, z, G(z), generator) with the same x and fresh z.
    Both use Adam; over the second half the learning rate falls linearly to 0. Weights that require
    no gradient stay as they are. `callback(step, history)` is called after each step, and may
    change what the losses use, as a weight that follows their values.

    Raises as `fit_discriminator` does, and ValueError for networks that share weights to train.

    >>> from gan_ebm_utils import datasets, losses, networks
    >>> g = torch.Generator().manual_seed(0)
    >>> layers = {"hidden": (16,), "replicates": 5, "generator": g}
    >>> gan = Gan(networks.mlp(2, out_features=2, **layers), networks.mlp(2, **layers), 2)
    >>> rule = gan_d_loss, losses.non_saturating_g_loss
    >>> train_gan(gan, datasets.moons().sample, *rule, 3, g, replicates=5).g_loss.shape
    torch.Size([3, 5])
    """
    check_count(n_steps=n_steps, replicates=replicates, batch_size=batch_size, d_steps=d_steps)
    check_positive(learning_rate=learning_rate)
    d_optimizer = _adam("discriminator", gan.discriminator, learning_rate, betas)
    g_optimizer = _adam("generator", gan.generator, learning_rate, betas)
    if shared := len({*_weights(gan.discriminator)} & {*_weights(gan.generator)}):
        raise ValueError(
            f"generator and discriminator share {shared} weights, which cannot follow two losses; "
            "freeze them, or give each network its own"
        )
    size = (replicates, batch_size)
    history = History(*(_record(n_steps, replicates, generator) for _ in History._fields))
    for step in tqdm(range(n_steps), desc="GAN"):
        for optimizer in (d_optimizer, g_optimizer):
            _set_rate(optimizer, learning_rate * min(1.0, 2 * (1 - step / n_steps)))
        for _ in range(d_steps):
            x, y = data(size, generator), _draws(gan)(size, generator)
            value = _discriminator_step(
                gan.discriminator, d_optimizer, d_loss, penalty, x, y, generator, step
            )
        history.d_loss[step] = value
        # The generator's gradient passes through the discriminator, whose weights need none.
        with _frozen(gan.discriminator):
            z = gan.prior(size, generator)
            y = gan.generator(z)
            value = g_loss(gan.discriminator(x), gan.discriminator(y))
            total = value if g_penalty is None else value + g_penalty(gan, z, y, generator)
            if not total.isfinite().all():
                raise RuntimeError(
                    f"the generator's loss is not finite at step {step}: "
                    f"{total.detach().tolist()}; lower the learning rate or add a penalty"
                )
            g_optimizer.zero_grad()
            total.sum().backward()
        g_optimizer.step()
        history.g_loss[step] = value.detach()
        if callback is not None:
            callback(step, history)
    return history


@gradients()
def train_ebm(
    energy: nn.Module,
    data: Sample,
    negatives: Negatives,
    n_steps: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.5, 0.99),
    alpha: float = 0.0,
    penalty: Penalty | None = None,
    callback: Callable[[int, EbmHistory], None] | None = None,
) -> EbmHistory:
    """Raise the likelihood of `data` under e^{-E}/Z by its two phases.

    Each step lowers E(x+) - E(x-) + alpha (E(x+)^2 + E(x-)^2), means over the batch, plus
    penalty(E, x+, x-, generator), where x+ are data and x- = negatives(x+, generator) come from the
    model, from a generator, or from chains: where these start is what tells contrastive divergence,
    persistent and short-run chains apart. With exact negatives, alpha = 0 and no penalty the mean
    gradient is that of the negative log-likelihood (Hinton 2002; alpha: Du and Mordatch 2019,
    arXiv:1903.08689). Adam; over the second half the learning rate falls linearly to 0.
    `callback(step, history)` is called after each step. While negatives are drawn the energy is in
    evaluation mode.

    Raises ValueError for counts below 1, a frozen energy, a negative alpha or negatives of another
    shape than the data, RuntimeError with the step if an energy stops being finite.

    >>> from gan_ebm_utils import datasets, networks, samplers
    >>> g = torch.Generator().manual_seed(0)
    >>> energy = networks.energy_mlp(2, (16,), replicates=5, generator=g)
    >>> cd1 = contrastive(samplers.mala(energy, 0.05), 1)
    >>> train_ebm(energy, datasets.moons().sample, cd1, 3, g, replicates=5).real.shape
    torch.Size([3, 5])
    """
    check_count(n_steps=n_steps, replicates=replicates, batch_size=batch_size)
    check_positive(learning_rate=learning_rate)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    optimizer = _adam("energy", energy, learning_rate, betas)
    history = EbmHistory(*(_record(n_steps, replicates, generator) for _ in EbmHistory._fields))
    for step in tqdm(range(n_steps), desc="EBM"):
        _set_rate(optimizer, learning_rate * min(1.0, 2 * (1 - step / n_steps)))
        x = data((replicates, batch_size), generator)
        with evaluating(energy):
            y = negatives(x, generator).detach()
        if y.shape != x.shape:
            raise ValueError(f"negatives must be {tuple(x.shape)}, got {tuple(y.shape)}")
        real, fake = energy(x), energy(y)
        total = real.mean(dim=1) - fake.mean(dim=1)
        total = total + alpha * (real.square().mean(dim=1) + fake.square().mean(dim=1))
        if penalty is not None:
            total = total + penalty(energy, x, y, generator)
        if not total.isfinite().all():
            raise RuntimeError(
                f"the loss of the energy is not finite at step {step}: mean on data "
                f"{real.mean(dim=1).tolist()}, on negatives {fake.mean(dim=1).tolist()}; "
                "lower the learning rate or the step size of the chains, or confine the energy"
            )
        optimizer.zero_grad()
        total.sum().backward()
        optimizer.step()
        history.real[step], history.fake[step] = (
            real.detach().mean(dim=1),
            fake.detach().mean(dim=1),
        )
        if callback is not None:
            callback(step, history)
    return history


def generated(gan: Gan) -> Negatives:
    """Negatives from a generator, G(z) with fresh z (Kim and Bengio 2016, arXiv:1606.03439).

    The discriminator of `gan` is not used. Its generator is trained elsewhere, as in a callback.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> g = torch.Generator().manual_seed(0)
    >>> generated(exact_gan().gan)(torch.zeros(5, 9, 2), g).shape
    torch.Size([5, 9, 2])
    """
    return lambda x, generator: _draws(gan)(tuple(x.shape[:2]), generator)


def contrastive(kernel: Kernel, k: int) -> Negatives:
    """Negatives of CD-k: chains of k steps that start at the data (Hinton 2002).

    >>> from gan_ebm_utils.samplers import mala
    >>> cd1 = contrastive(mala(lambda x: x.square().sum(dim=-1) / 2, 0.1), 1)
    >>> cd1(torch.zeros(5, 9, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([5, 9, 2])
    """
    return lambda x, generator: _moved(kernel, x, k, generator)


def persistent(kernel: Kernel, k: int, buffer: ReplayBuffer) -> Negatives:
    """Negatives of persistent chains: k steps from where earlier ones ended (Tieleman 2008).

    >>> from gan_ebm_utils.samplers import mala
    >>> g = torch.Generator().manual_seed(0)
    >>> noise = lambda size, g: torch.randn(*size, 2, generator=g)
    >>> kernel = mala(lambda x: x.square().sum(dim=-1) / 2, 0.1)
    >>> persistent(kernel, 3, ReplayBuffer(noise, 50, g))(torch.zeros(1, 9, 2), g).shape
    torch.Size([1, 9, 2])
    """

    def negatives(x: Tensor, generator: torch.Generator) -> Tensor:
        y = _moved(kernel, buffer.draw(x.shape[1], generator), k, generator)
        buffer.store(y)
        return y

    return negatives


def short_run(kernel: Kernel, k: int, noise: Sample) -> Negatives:
    """Negatives of short-run chains: k steps from fresh noise (Nijkamp et al. 2019).

    >>> from gan_ebm_utils.samplers import langevin
    >>> noise = lambda size, g: torch.randn(*size, 2, generator=g)
    >>> runs = short_run(langevin(lambda x: x.square().sum(dim=-1) / 2, 0.1), 3, noise)
    >>> runs(torch.zeros(5, 9, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([5, 9, 2])
    """
    return lambda x, generator: _moved(kernel, noise(tuple(x.shape[:2]), generator), k, generator)


def _draws(gan: Gan) -> Sample:
    """Samples of the generator, without gradients."""

    @torch.no_grad()
    def sample(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return gan.generator(gan.prior(size, generator))

    return sample


def _moved(kernel: Kernel, x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return run_chain(kernel, x, k, generator, thin=k).positions[-1]


def _record(n_steps: int, replicates: int, generator: torch.Generator) -> Tensor:
    """Room for a number of each step and replicate, filled with nan.

    A list of small tensors, each from between large ones, would keep the memory of thousands of
    steps in pieces: a megabyte for each step, where the networks are wide.
    """
    return torch.full((n_steps, replicates), math.nan, device=generator.device)


def _weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of `network` that are to be trained."""
    return [weight for weight in network.parameters() if weight.requires_grad]


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Inside the block no weight of `network` requires a gradient; afterwards those that did."""
    weights = _weights(network)
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _adam(
    name: str, network: nn.Module, learning_rate: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    if not (weights := _weights(network)):
        raise ValueError(
            f"the {name} has no weight that requires a gradient, so there is nothing to train; if "
            "it was frozen, as refitted and loaded networks are, call its requires_grad_(True)"
        )
    return torch.optim.Adam(weights, lr=learning_rate, betas=betas, fused=True)


def _set_rate(optimizer: torch.optim.Adam, learning_rate: float) -> None:
    optimizer.param_groups[0]["lr"] = learning_rate


def _discriminator_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Adam,
    loss: Loss,
    penalty: Penalty | None,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    step: int,
) -> Tensor:
    value = loss(discriminator(x), discriminator(y))
    total = value if penalty is None else value + penalty(discriminator, x, y, generator)
    if not total.isfinite().all():
        for name, batch in (("real", x), ("generated", y)):
            if not batch.isfinite().all():
                raise ValueError(
                    f"the {name} samples of step {step} hold values that are not finite"
                )
        raise RuntimeError(
            f"the discriminator's loss is not finite at step {step}: {total.detach().tolist()}; "
            "lower the learning rate or add a penalty"
        )
    optimizer.zero_grad()
    total.sum().backward()
    optimizer.step()
    return value.detach()
