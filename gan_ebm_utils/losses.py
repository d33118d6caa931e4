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

from gan_ebm_utils.base import at_least_float32, check_positive, check_shape, gradients, rand


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


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss E_p max(0, 1 - d) + E_q max(0, 1 + d) of SNGAN's discriminator.

    Its best d is the sign of p - q, so that a logit is no log ratio; the generator's loss beside it
    is `wasserstein_g_loss` (Miyato et al. 2018, arXiv:1802.05957, equation 16).

    >>> hinge_d_loss(torch.full((1, 4), 3.0), torch.full((1, 4), -0.5))
    tensor([0.5000])
    """
    _check("R n", real=real, fake=fake)
    return F.relu(1 - real).mean(dim=1) + F.relu(1 + fake).mean(dim=1)


def relativistic_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of the paired game: the mean of sp(-(d(x_i) - d(y_i))), in nats.

    Only differences of logits count, so d has no level of its own, and d is no log ratio. Both
    batches are (R, n) with one n, since the i-th of one is paired with the i-th of the other
    (Jolicoeur-Martineau 2018, arXiv:1807.00734; with R1 and R2 Huang et al. 2024,
    arXiv:2501.05441).

    Raises ValueError for batches of different lengths.

    >>> relativistic_d_loss(torch.full((1, 4), 7.0), torch.full((1, 4), 7.0))  # log 2
    tensor([0.6931])
    """
    _check("R n", real=real, fake=fake)
    check_shape(real=(real, "R n"), fake=(fake, "R n"))
    return F.softplus(fake - real).mean(dim=1)


def relativistic_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss of the paired game, the mean of sp(-(d(y_i) - d(x_i))).

    Unlike the other losses of a generator it needs the logits of data. Arguments, errors and source
    as for `relativistic_d_loss`.

    >>> relativistic_g_loss(torch.full((1, 4), 7.0), torch.full((1, 4), 7.0))  # log 2
    tensor([0.6931])
    """
    return relativistic_d_loss(fake, real)


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


def ebgan_d_loss(real: Tensor, fake: Tensor, margin: float) -> Tensor:
    """The margin loss of an energy: E_p E(x) + E_q [m - E(G(z))]^+, in units of E.

    `real` and `fake` are d = -E, as `energies.NegativeEnergy` returns them. The bracket is that of
    each sample, not of the mean. Over all E >= 0 the infimum is m (1 - TV(p, q)) (Zhao et al. 2016,
    arXiv:1609.03126, equation 1; the proof is in chapter 04).

    Raises ValueError for a margin that is not positive, or positive d, which no -E is.

    >>> ebgan_d_loss(torch.zeros(1, 2), torch.tensor([[-1.0, -5.0]]), margin=3.0)  # (2 + 0) / 2
    tensor([1.])
    """
    check_positive(margin=margin)
    _check_negative(real=real, fake=fake)
    return -real.mean(dim=1) + F.relu(margin + fake).mean(dim=1)


def ebgan_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss against an energy, E_q E (Zhao et al. 2016, equation 2).

    Arguments and errors as for `ebgan_d_loss`.

    >>> ebgan_g_loss(torch.zeros(1, 2), torch.tensor([[-1.0, -5.0]]))
    tensor([3.])
    """
    _check_negative(real=real, fake=fake)
    return -fake.mean(dim=1)


def pulling_away(codes: Tensor) -> Tensor:
    """The mean squared cosine of different codes (R, n, s): 0 if all are orthogonal, (R,).

    1 / (n (n - 1)) sum_i sum_{j != i} (c_i . c_j / (|c_i| |c_j|))^2. n vectors in s < n dimensions
    cannot do better than (n - s) / (s (n - 1)) (Zhao et al. 2016, arXiv:1609.03126, equation 4; the
    floor is the Welch bound).

    Raises ValueError for fewer than 2 codes.

    >>> pulling_away(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])), pulling_away(torch.ones(1, 3, 2))
    (tensor([0.]), tensor([1.0000]))
    """
    _check("R n s", codes=codes)
    if (n := codes.shape[1]) < 2:
        raise ValueError(f"give at least 2 codes, got {tuple(codes.shape)}")
    unit = F.normalize(codes, dim=2)
    squares = (unit @ unit.mT).square().sum(dim=(1, 2))
    # What the diagonal adds is 1 for each code but for those of length 0, whose cosines are 0.
    return (squares - unit.square().sum(dim=2).square().sum(dim=1)) / (n * (n - 1))


class Began:
    """The losses of BEGAN and the control of their balance.

    With L = E, the energy of an autoencoder, the discriminator lowers E_p L - k E_q L and the
    generator E_q L; after each step k <- k + rate (gamma E_p L - E_q L), kept in [0, 1]: an
    integral controller that is at rest where E_q L / E_p L = gamma (Berthelot et al. 2017,
    arXiv:1703.10717, section 3.4). Give `d_loss`, `g_loss` and `callback` to `train_gan`; both
    losses take d = -L. After each step `real` = E_p L, `fake` = E_q L, `k` and `m_global` = E_p L +
    |gamma E_p L - E_q L| (equation 7 there) are those of the replicates, (R,).

    Raises ValueError for a gamma that is not in (0, 1] or a rate below 0, as a loss does for
    positive d, which no -L is, or another number of replicates than before.

    >>> rule = Began(gamma=0.5, rate=0.1)
    >>> rule.d_loss(-torch.ones(1, 4), -torch.ones(1, 4))  # k is 0 at first
    tensor([1.])
    >>> _ = rule.g_loss(-torch.ones(1, 4), -torch.zeros(1, 4))
    >>> rule.callback(0, None)
    >>> rule.k, rule.m_global
    (tensor([0.0500]), tensor([1.5000]))
    """

    def __init__(self, gamma: float, rate: float = 1e-3) -> None:
        check_positive(gamma=gamma)
        if gamma > 1:
            raise ValueError(f"gamma is E L(G(z)) / E L(x) and lies in (0, 1], got {gamma}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate must be at least 0 and finite, got {rate}")
        self.gamma, self.rate = gamma, rate
        self.k: Tensor | None = None
        self.m_global: Tensor | None = None
        self.real = self.fake = torch.empty(0)

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """E_p L - k E_q L, (R,)."""
        _check_negative(real=real, fake=fake)
        if self.k is None:
            # In half precision k would stand still: what a step adds is below its last digit.
            self.k = torch.zeros_like(at_least_float32(real[:, 0]))
        if len(self.k) != len(real):
            line = "make a Began for each game"
            raise ValueError(f"k is that of {len(self.k)} replicates, got {len(real)}; {line}")
        self.real = -at_least_float32(real.detach()).mean(dim=1)
        return -real.mean(dim=1) + self.k * fake.mean(dim=1)

    def g_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """E_q L, (R,)."""
        _check_negative(real=real, fake=fake)
        self.fake = -at_least_float32(fake.detach()).mean(dim=1)
        return -fake.mean(dim=1)

    def callback(self, step: int, history: object) -> None:
        """Move k after a step of both players, whose losses the step has just computed."""
        if self.k is None or len(self.real) != len(self.fake):
            raise RuntimeError("k moves after a step of both players: call d_loss and g_loss first")
        surplus = self.gamma * self.real - self.fake
        self.m_global = self.real + surplus.abs()
        self.k = (self.k + self.rate * surplus).clamp(0, 1)


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


def jsd_information(joint: Tensor, product: Tensor) -> Tensor:
    """The Jensen-Shannon bound on the dependence of x and z, -E_pxz sp(-T) - E_px,pz sp(T), (R,).

    In nats. `joint` holds T(x, z) at pairs that belong together, (R, n); `product` at pairs of
    independent x and z, (R, m). The supremum over T is 2 JSD(p(x, z), p(x) p(z)) - 2 log 2, reached
    by T = log p(x, z) / (p(x) p(z)). So the value is below 0 however large the mutual information
    is, while the mean of that T over `joint` is the information (Kumar et al. 2019,
    arXiv:1901.08508, section 3.2; Hjelm et al. 2018, arXiv:1808.06670, equation 4).

    >>> jsd_information(torch.zeros(1, 4), torch.zeros(1, 4))  # -2 log 2: independent
    tensor([-1.3863])
    """
    _check("R n", joint=joint, product=product)
    return -F.softplus(-joint).mean(dim=1) - F.softplus(product).mean(dim=1)


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


def _check_negative(**batches: Tensor) -> None:
    """Raise ValueError unless the batches are d = -E, (R, n), of an energy that is at least 0."""
    _check("R n", **batches)
    for name, d in batches.items():
        if (largest := float(d.detach().max())) > 0:
            line = "energies and logits have opposite signs; train NegativeEnergy(E)"
            raise ValueError(f"{name} must be -E with E >= 0, got up to {largest:.3g}; {line}")
