"""The energies that a GAN defines, in its latent space and on its samples.

Latents are (R, n, latent_dim), samples (R, n, *event), energies (R, n) in nats. Each takes a `Gan`
and is a function whose networks a sampler finds. Last come the energy of an autoencoder, in units
of the data, and the adapter by which an energy stands in a `Gan`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils.base import Energy, Gan, check_modules, check_positive, check_shape


def pullback(energy: Energy, gan: Gan) -> Energy:
    """E'(z) = |z|^2 / 2 + E(G(z)): the law of z that is the prior times e^{-E(G(z))}.

    Its pushforward by G is p_g e^{-E} / Z, whatever `energy` of samples is given (Che et al. 2020,
    arXiv:2003.06060, for E = -d).

    >>> import torch
    >>> gan = Gan(nn.Identity(), nn.Flatten(), 2)
    >>> pullback(lambda x: x.square().sum(dim=-1), gan)(torch.ones(1, 3, 2))
    tensor([[3., 3., 3.]])
    """
    return lambda z: z.square().sum(dim=-1) / 2 + energy(gan.generator(z))


def latent_energy(gan: Gan, temperature: float = 1.0) -> Energy:
    """E(z) = |z|^2 / 2 - d(G(z)) / T: the law whose pushforward is p_g e^{d/T} / Z.

    If d = log(p_d / p_g) and T = 1, the pushforward is p_d (Che et al. 2020, arXiv:2003.06060). A
    Wasserstein critic in the place of d is no log ratio, so that no T makes the pushforward p_d in
    general; `calibration.calibrate` fits one.

    Raises ValueError for a temperature that is not positive.

    >>> import torch
    >>> from gan_ebm_utils.datasets import exact_gan
    >>> latent_energy(exact_gan().gan)(torch.zeros(1, 3, 2)).shape
    torch.Size([1, 3])
    """
    check_positive(temperature=temperature)
    return pullback(lambda x: -gan.discriminator(x) / temperature, gan)


def dot_energy(gan: Gan, start: Tensor, k: float | Tensor) -> Energy:
    """E(z) = |z - z_0| - d(G(z)) / k, whose minimum transports z_0 along a ray.

    `start` is z_0, (R, n, latent_dim); `k` a Lipschitz constant of d(G(z)), one number or (R, 1)
    (Tanaka 2019, arXiv:1910.06832). With the identity for G it moves samples
    (R, n, *event); the norm is over all of the event's axes.

    Raises ValueError for a k that is not positive, or of another shape.

    >>> import torch
    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, z = exact_gan().gan, torch.zeros(1, 3, 2)
    >>> bool((dot_energy(gan, z, k=2.0)(z) == -gan.logit(z) / 2).all())
    True
    """
    if isinstance(k, Tensor) and k.numel() > 1:
        check_shape(k=(k, "R 1"), start=(start, "R n ..."))  # or of R = n it would divide each
    check_positive(k=float(k.min()) if isinstance(k, Tensor) else k)
    return lambda z: (z - start).flatten(2).norm(dim=2) - gan.logit(z) / k


# First variations of f-divergences of p_g from p_d, as functions of d = log p_d - log p_g.
_FLOWS = {"KL": lambda d: -d, "log D": lambda d: F.softplus(-d), "JS": lambda d: -F.softplus(d)}


def flow_energy(gan: Gan, divergence: str = "KL") -> Energy:
    """The energy that a gradient flow of a divergence descends, with the ratio kept at its start.

    "KL" gives -d, "log D" gives sp(-d), "JS" gives -sp(d), for latents z at x = G(z) (Ansari et al.
    2021, arXiv:2012.00780).

    Raises ValueError for another divergence.

    >>> import torch
    >>> from gan_ebm_utils.datasets import exact_gan
    >>> gan, z = exact_gan().gan, torch.zeros(1, 3, 2)
    >>> bool((flow_energy(gan, "KL")(z) == -gan.logit(z)).all())
    True
    """
    if divergence not in _FLOWS:
        raise ValueError(f"divergence must be one of {list(_FLOWS)}, got {divergence!r}")
    flow = _FLOWS[divergence]
    return lambda z: flow(gan.logit(z))


class ReconstructionError(nn.Module):
    """E(x), the mean over the coordinates of |x - r(x)|^power, (R, n, *event) to (R, n).

    `autoencoder` maps samples to reconstructions r(x) of the same shape. With `power` 2 it is the
    energy of EBGAN (Zhao et al. 2016, arXiv:1609.03126, section 2.3), with 1 the loss L of BEGAN
    (Berthelot et al. 2017, arXiv:1703.10717, equation 1). It is at least 0, in units of x^power,
    and low for data: a sampler takes its `NegativeEnergy`.

    Raises ValueError for another power and, when called, for reconstructions of another shape.

    >>> import torch
    >>> ReconstructionError(nn.Tanh())(torch.zeros(1, 3, 2))  # tanh 0 = 0
    tensor([[0., 0., 0.]])
    """

    is_energy = True  # low for data: `base.check_gan` refuses it in the place of a logit

    def __init__(self, autoencoder: nn.Module, power: int = 2) -> None:
        super().__init__()
        check_modules(autoencoder=autoencoder)
        if power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {power!r}")
        self.autoencoder, self.power = autoencoder, power

    def extra_repr(self) -> str:
        return f"power={self.power}"

    def forward(self, x: Tensor) -> Tensor:
        r = self.autoencoder(x)
        if r.shape != x.shape:
            found = f"returned {tuple(r.shape)} for {tuple(x.shape)}"
            raise ValueError(f"an autoencoder maps samples to samples; this one {found}")
        error = (x - r).flatten(2)
        return (error.abs() if self.power == 1 else error.square()).mean(dim=2)


class NegativeEnergy(nn.Module):
    """d(x) = -E(x), so that an energy can stand in a `Gan`, whose discriminator is high for data.

    The energy of an autoencoder is low for data. Its negative ranks samples but is no log ratio:
    calibrate it, or refit a classifier, before it is taken for one.

    Raises TypeError for what is no module, ValueError for the negative of an energy, or an
    autoencoder without its `ReconstructionError`.

    >>> import torch
    >>> NegativeEnergy(ReconstructionError(nn.ReLU()))(-torch.ones(1, 3, 2))
    tensor([[-1., -1., -1.]])
    """

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        check_modules(energy=energy)
        if isinstance(energy, NegativeEnergy):
            raise ValueError("this energy is negated already: -(-E) is high for data; give E")
        if hasattr(energy, "encode"):
            line = "give NegativeEnergy(ReconstructionError(autoencoder))"
            raise ValueError(f"an autoencoder returns reconstructions, not energies; {line}")
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        return -self.energy(x)
