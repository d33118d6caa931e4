"""The energies that a GAN defines, in its latent space and on its samples.

Latents are (R, n, latent_dim), samples (R, n, *event), energies (R, n) in nats. Each energy is a
module that holds both networks, so that a sampler finds them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils.base import Energy, Gan, check_positive


class _GanEnergy(nn.Module):
    """E(z) = function(z, d(G(z)))."""

    def __init__(self, gan: Gan, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.generator, self.discriminator, self.function = gan[0], gan[1], function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z, self.discriminator(self.generator(z)))


def latent_energy(gan: Gan) -> Energy:
    """E(z) = |z|^2 / 2 - d(G(z)): the law whose pushforward is p_g e^d / Z.

    If d = log(p_d / p_g), the pushforward is p_d (Che et al. 2020, arXiv:2003.06060).
    """
    return _GanEnergy(gan, lambda z, d: z.square().sum(dim=-1) / 2 - d)


def wgan_latent_energy(gan: Gan, temperature: float = 1.0) -> Energy:
    """E(z) = |z|^2 / 2 - f(G(z)) / T, for a Wasserstein critic f in the place of the logit.

    At T = 1 this is the energy of Che et al. (2020, arXiv:2003.06060). A critic is no
    log ratio, so that no T makes the pushforward p_d in general; `refine.calibrate` fits one.
    """
    check_positive(temperature=temperature)
    return _GanEnergy(gan, lambda z, d: z.square().sum(dim=-1) / 2 - d / temperature)


def dot_energy(gan: Gan, start: Tensor, k: float | Tensor) -> Energy:
    """E(z) = |z - z_0| - d(G(z)) / k, whose minimum transports z_0 along a ray.

    `start` is z_0, (R, n, latent_dim); `k` a Lipschitz constant of d(G(z)), one number or (R, 1)
    (Tanaka 2019, arXiv:1910.06832). With the identity for G it moves samples (R, n, *event); the
    norm is over all of the event's axes.

    Raises ValueError for a k that is not positive, or of another shape.
    """
    if isinstance(k, Tensor) and k.numel() > 1 and tuple(k.shape) != (len(start), 1):
        raise ValueError(
            f"k must be one number or one for each replicate, ({len(start)}, 1), got "
            f"{tuple(k.shape)}"
        )
    check_positive(k=float(k.min()) if isinstance(k, Tensor) else float(k))
    return _GanEnergy(gan, lambda z, d: (z - start).flatten(2).norm(dim=2) - d / k)


# First variations of f-divergences of p_g from p_d, as functions of d = log p_d - log p_g.
_FLOWS = {
    "KL": lambda d: -d,
    "log D": lambda d: F.softplus(-d),
    "JS": lambda d: -F.softplus(d),
}


def flow_energy(gan: Gan, divergence: str = "KL") -> Energy:
    """The energy that a gradient flow of a divergence descends, with the ratio kept at its start.

    "KL" gives -d, "log D" gives sp(-d), "JS" gives -sp(d), for latents z at x = G(z) (Ansari et al.
    2021, arXiv:2012.00780).

    Raises ValueError for another divergence.
    """
    if divergence not in _FLOWS:
        raise ValueError(f"divergence must be one of {list(_FLOWS)}, got {divergence!r}")
    return _GanEnergy(gan, lambda z, d: _FLOWS[divergence](d))
