"""Training loops: plain, with the loss passed in. Replicates train side by side, each on its own.

A sampler of data is a function (size, generator) -> (*size, *event), such as `Distribution.sample`
or what `datasets.minibatches` returns.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan_ebm_utils import base
from gan_ebm_utils.base import Gan, Kernel, Sample
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
    """The losses of each step, (n_steps, R), without the penalties; nan where none is yet.

    >>> history = History(torch.full((500, 5), 1.4), torch.full((500, 5), 0.7))
    >>> history.g_loss[-100:].mean(dim=0).shape  # of each replicate at the end
    torch.Size([5])
    """

    d_loss: Tensor
    g_loss: Tensor


class EbmHistory(NamedTuple):
    """The mean energies of each step on data and on negatives, (n_steps, R); nan where none yet.

    >>> history = EbmHistory(torch.full((500, 5), -2.0), torch.full((500, 5), -1.5))
    >>> bool((history.real < history.fake).all())  # as while an energy still learns
    True
    """

    real: Tensor
    fake: Tensor


@base.gradients()
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
    lowers loss(d(x), d(y)) + penalty(discriminator, x, y, generator), summed over replicates. Both
    samples pass in one batch, so that batch norm does not take out what tells them apart. The
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
    base.check_count(n_steps=n_steps, replicates=replicates, batch_size=batch_size)
    _check_sampler(real)
    descend = _descent("discriminator", discriminator, learning_rate, (0.9, 0.99), penalty)
    losses = _record(n_steps, replicates, generator)
    for step in tqdm(range(n_steps), desc="discriminator"):
        share = (1 + math.cos(math.pi * step / n_steps)) / 2
        x, y = (draw((replicates, batch_size), generator) for draw in (real, fake))
        base.check_shape(real=(x, "R n ..."), generated=(y, " ".join(map(str, x.shape))))
        # In one batch, since batch norm would take what differs between the two out of each.
        d = discriminator(torch.cat([x, y], dim=1))
        value = loss(*d.split(batch_size, dim=1))
        losses[step] = descend(value, step, share, discriminator, x, y, generator)
    return losses


def refit_discriminator(
    gan: Gan,
    discriminator: nn.Module,
    data: Sample,
    n_steps: int,
    generator: torch.Generator,
    *,
    replicates: int = 1,
    **settings: object,
) -> Gan:
    """`gan` with a copy of `discriminator` in the place of its own, fitted to its generator.

    The generator stays as it is, in evaluation mode, so that the logit tends to log(p_d / p_g) and
    not to where a game left it. `discriminator` is where the fit starts and is not changed; the
    copy comes back frozen, in evaluation mode. `settings` are those of `fit_discriminator`:
    batch_size, learning_rate, penalty. `data` draws from the points that the refit may see, as
    `datasets.minibatches(x)` does. The discriminator of `gan` may be None.

    Raises as `fit_discriminator` and `base.check_gan` do.

    >>> from gan_ebm_utils.datasets import exact_gan
    >>> from gan_ebm_utils.networks import mlp
    >>> g, exact = torch.Generator().manual_seed(0), exact_gan()
    >>> fresh = mlp(2, (16,), generator=g)
    >>> refitted = refit_discriminator(exact.gan, fresh, exact.data.sample, 9, g)
    >>> refitted.logit(exact.gan.prior((1, 5), g)).shape
    torch.Size([1, 5])
    """
    base.check_gan(gan._replace(discriminator=discriminator), replicates, generator)
    # What an earlier pass has left in a module, as the weight of `nn.utils.spectral_norm`, hangs on
    # a graph and cannot be copied otherwise.
    left = [t for module in discriminator.modules() for t in vars(module).values()]
    left = [t for t in left if isinstance(t, Tensor) and not t.is_leaf]
    refitted = copy.deepcopy(discriminator, {id(t): t.detach().clone() for t in left})
    if not _weights(refitted):  # a network that was refitted or loaded before
        refitted.requires_grad_(True)
    with base.evaluating(gan.generator):
        settings["replicates"] = replicates
        fit_discriminator(refitted, data, _draws(gan), gan_d_loss, n_steps, generator, **settings)
    return gan._replace(discriminator=refitted.eval().requires_grad_(False))


@base.gradients()
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
    base.check_count(n_steps=n_steps, replicates=replicates, batch_size=batch_size, d_steps=d_steps)
    base.check_gan(gan, replicates, generator)
    _check_sampler(data)
    d_descend = _descent("discriminator", gan.discriminator, learning_rate, betas, penalty)
    g_descend = _descent("generator", gan.generator, learning_rate, betas, g_penalty)
    if shared := len({*_weights(gan.discriminator)} & {*_weights(gan.generator)}):
        raise ValueError(f"generator and discriminator share {shared} weights; freeze these")
    size = (replicates, batch_size)
    history = History(*(_record(n_steps, replicates, generator) for _ in History._fields))
    for step in tqdm(range(n_steps), desc="GAN"):
        share = min(1.0, 2 * (1 - step / n_steps))
        for _ in range(d_steps):
            x, y = data(size, generator), _draws(gan)(size, generator)
            value = d_loss(gan.discriminator(x), gan.discriminator(y))
            history.d_loss[step] = d_descend(value, step, share, gan.discriminator, x, y, generator)
        # The generator's gradient passes through the discriminator, whose weights need none.
        with base.switched_off("requires_grad", gan.discriminator.parameters()):
            z = gan.prior(size, generator)
            y = gan.generator(z)
            value = g_loss(gan.discriminator(x), gan.discriminator(y))
            history.g_loss[step] = g_descend(value, step, share, gan, z, y, generator)
        if callback is not None:
            callback(step, history)
    return history


@base.gradients()
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

    Raises ValueError for counts below 1, a frozen energy, a negative alpha, samples that are not
    finite or negatives of another shape than the data, RuntimeError with the step if the loss
    stops being finite.

    >>> from gan_ebm_utils import datasets, networks, samplers
    >>> g = torch.Generator().manual_seed(0)
    >>> energy = networks.energy_mlp(2, (16,), replicates=5, generator=g)
    >>> cd1 = contrastive(samplers.mala(energy, 0.05), 1)
    >>> train_ebm(energy, datasets.moons().sample, cd1, 3, g, replicates=5).real.shape
    torch.Size([3, 5])
    """
    base.check_count(n_steps=n_steps, replicates=replicates, batch_size=batch_size)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    descend = _descent("energy", energy, learning_rate, betas, penalty)
    history = EbmHistory(*(_record(n_steps, replicates, generator) for _ in EbmHistory._fields))
    for step in tqdm(range(n_steps), desc="EBM"):
        x = data((replicates, batch_size), generator)
        with base.evaluating(energy):
            y = negatives(x, generator).detach()
        if y.shape != x.shape:
            raise ValueError(f"negatives must be {tuple(x.shape)}, got {tuple(y.shape)}")
        real, fake = energy(x), energy(y)
        mean_real, mean_fake = real.mean(dim=1), fake.mean(dim=1)
        total = mean_real - mean_fake
        if alpha:
            total = total + alpha * (real.square().mean(dim=1) + fake.square().mean(dim=1))
        share = min(1.0, 2 * (1 - step / n_steps))
        descend(total, step, share, energy, x, y, generator)
        history.real[step], history.fake[step] = mean_real.detach(), mean_fake.detach()
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


def _check_sampler(data: Sample) -> None:
    if isinstance(data, Tensor):
        raise TypeError("data must be a sampler, got a tensor; give datasets.minibatches(data)")


def _draws(gan: Gan) -> Sample:
    """Samples of the generator, without gradients."""
    return torch.no_grad()(lambda size, generator: gan.generator(gan.prior(size, generator)))


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


def _descent(
    name: str, network: nn.Module, rate: float, betas: tuple[float, float], penalty: Callable | None
) -> Callable[..., Tensor]:
    """A function that takes one step of Adam down losses (R,) plus their penalty."""
    base.check_positive(learning_rate=rate)
    if not (weights := _weights(network)):
        raise ValueError(f"the {name} has no weight to train; call its requires_grad_(True)")
    optimizer = torch.optim.Adam(weights, betas=betas, fused=True)

    def descend(losses: Tensor, step: int, share: float, *arguments: object) -> Tensor:
        """At a `share` of the rate, with the penalty's arguments; returns the losses without it."""
        total = losses if penalty is None else losses + penalty(*arguments)
        if not total.isfinite().all():
            _, x, y, _ = arguments  # for a generator latents, which are finite, and its samples
            for kind, batch in (("real", x), ("generated", y)):
                base.check_samples(**{f"the {kind} batch of step {step}": batch})
            found = f"the {name}'s loss is not finite at step {step}: {total.tolist()}"
            line = "lower the learning rate or step size, add a penalty, or confine the energy"
            raise RuntimeError(f"{found}; {line}")
        optimizer.param_groups[0]["lr"] = rate * share
        optimizer.zero_grad()
        total.sum().backward()
        optimizer.step()
        return losses.detach()

    return descend
