"""Losses of GANs and the penalties that go with them.

Every loss takes the logits of real data first and of generated data second, both (R, n), and
returns (R,): the mean is over the batch axis only, so the sum over replicates trains each of them
on its own. The symbols: D = sigmoid(d), sp(t) = softplus(t) = log(1 + e^t).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_ebm_utils.base import check_shape, gradients, rand


def gan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of the minimax game, -V: E_p sp(-d) + E_q sp(d), in nats.

    At the optimal logit d = log p/q its value is 2 log 2 - 2 JSD(p, q) (Goodfellow et al. 2014,
    arXiv:1406.2661, equation 1 and theorem 1).

    >>> gan_d_loss(torch.zeros(1, 4), torch.zeros(1, 4))  # 2 log 2
    tensor([1.3863])
    """
    _check("R n", real=real, fake=fake)
    return F.softplus(-real).mean(dim=1) + F.softplus(fake).mean(dim=1)


def saturating_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss of the minimax game: E_q log(1 - D) = -E_q sp(d).

    `real` is not used; it stands there because every loss of a generator has the same arguments.

    >>> saturating_g_loss(torch.zeros(1, 4), torch.zeros(1, 4))  # -log 2
    tensor([-0.6931])
    """
    _check("R n", real=real, fake=fake)
    return -F.softplus(fake).mean(dim=1)


def non_saturating_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss in use, -E_q log D = E_q sp(-d) (Goodfellow et al. 2014, section 3).

    >>> non_saturating_g_loss(torch.zeros(1, 4), torch.zeros(1, 4))  # log 2
    tensor([0.6931])
    """
    _check("R n", real=real, fake=fake)
    return F.softplus(-fake).mean(dim=1)


def wasserstein_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss E_q f - E_p f; over 1-Lipschitz critics its infimum is -W_1(p, q).

    A critic is no log ratio: f + c and, without a constraint, any multiple do as well (Arjovsky et
    al. 2017, arXiv:1701.07875, equation 2).

    >>> wasserstein_d_loss(torch.ones(1, 4), torch.zeros(1, 4))
    tensor([-1.])
    """
    _check("R n", real=real, fake=fake)
    return fake.mean(dim=1) - real.mean(dim=1)


def wasserstein_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss against a critic, -E_q f.

    >>> wasserstein_g_loss(torch.ones(1, 4), torch.full((1, 4), 2.0))
    tensor([-2.])
    """
    _check("R n", real=real, fake=fake)
    return -fake.mean(dim=1)


class FDivergence(NamedTuple):
    """An f-divergence D_f(p || q) = E_q f(p/q) and its variational bound.

    For every T with values in the domain of the conjugate f*, D_f(p || q) >= E_p T - E_q f*(T),
    with equality at T = f'(p/q) (Nguyen et al. 2010, arXiv:0809.0853; Nowozin et al. 2016,
    arXiv:1606.00709, equation 4 and table 6). `output` maps a network's value v, any real number,
    to T(v) in that domain; `conjugate` maps v to f*(T(v)), written without loss of digits;
    `log_ratio` maps v to the log p/q that T(v) stands for, nan where that ratio is not positive.

    >>> js.bound(torch.zeros(1, 4), torch.zeros(1, 4))  # 2 JSD of two equal laws
    tensor([0.])
    """

    name: str
    f: Callable[[Tensor], Tensor]
    output: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    log_ratio: Callable[[Tensor], Tensor]

    def bound(self, real: Tensor, fake: Tensor) -> Tensor:
        """E_p T - E_q f*(T) from network values (R, n), as (R,): at most D_f(p || q)."""
        _check("R n", real=real, fake=fake)
        return self.output(real).mean(dim=1) - self.conjugate(fake).mean(dim=1)

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the variational function: minus `bound`."""
        return -self.bound(real, fake)


# f*(T) = e^{T - 1}, T = 1 + log(p/q).
kl = FDivergence(
    "KL",
    f=lambda u: torch.special.xlogy(u, u),
    output=lambda v: v,
    conjugate=lambda v: (v - 1).exp(),
    log_ratio=lambda v: v - 1,
)
# f*(T) = -1 - log(-T) for T < 0, T = -q/p.
reverse_kl = FDivergence(
    "reverse KL",
    f=lambda u: -u.log(),
    output=lambda v: -(-v).exp(),
    conjugate=lambda v: v - 1,
    log_ratio=lambda v: v,
)
# f*(T) = -log(2 - e^T) for T < log 2, T = log 2 + log(p / (p + q)). This f gives 2 JSD.
js = FDivergence(
    "2 JSD",
    f=lambda u: torch.special.xlogy(u, u) - (1 + u) * ((1 + u) / 2).log(),
    output=lambda v: math.log(2) - F.softplus(-v),
    conjugate=lambda v: F.softplus(v) - math.log(2),
    log_ratio=lambda v: v,
)
# f*(T) = T + T^2/4, T = 2 (p/q - 1). T <= -2 stands for a ratio that is not positive.
pearson = FDivergence(
    "Pearson",
    f=lambda u: (u - 1) ** 2,
    output=lambda v: v,
    conjugate=lambda v: v + v**2 / 4,
    log_ratio=lambda v: torch.where(v > -2, 1 + v / 2, torch.nan).log(),
)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator
) -> Tensor:
    """E (|grad f(x)| - 1)^2 at random points x between real and generated ones, (R,).

    `real` and `fake` are (R, n, *event); the norm is over all of the event's axes (Gulrajani et al.
    2017, arXiv:1704.00028, equation 3).

    >>> twice = lambda x: 2 * x.sum(dim=-1)  # of slope 2
    >>> gradient_penalty(twice, torch.zeros(1, 4, 1), torch.ones(1, 4, 1), torch.Generator())
    tensor([1.])
    """
    _check("R n ...", real=real, fake=fake)
    check_shape(fake=(fake, " ".join(map(str, real.shape))))  # x lies between two of them
    share = rand(*real.shape[:2], *[1] * (real.ndim - 2), generator=generator).to(real.dtype)
    # Not the root of a square: its derivative is infinite where the gradient is 0.
    norm = _gradient(critic, share * real + (1 - share) * fake).norm(dim=2)
    return ((norm - 1) ** 2).mean(dim=1)


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """E_p |grad d(x)|^2 over real data (R, n, *event), (R,); weight it with gamma/2.

    The norm is over all of the event's axes (Mescheder et al. 2018, arXiv:1801.04406, equation 9).

    >>> r1_penalty(lambda x: 2 * x.sum(dim=-1), torch.zeros(1, 4, 1))
    tensor([4.])
    """
    _check("R n ...", real=real)
    return _gradient(discriminator, real).square().sum(dim=2).mean(dim=1)


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient at each point of (R, n, *event), (R, n, size), open to a further derivative."""
    with gradients():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    return gradient.flatten(start_dim=2)


def _check(axes: str, **batches: Tensor) -> None:
    """Raise ValueError unless the batches are floats with these axes, of any n and of one R."""
    check_shape(**{name: (x, axes.replace("n", f"n_{name}")) for name, x in batches.items()})
    for name, x in batches.items():
        if not x.numel() or not x.is_floating_point():
            raise ValueError(f"{name} must hold some floats, got {x.dtype} {tuple(x.shape)}")
