"""Invertible generators, whose samples have a density that is known."""

import math

import torch
from torch import Tensor, nn

from gan_ebm_utils.base import check_count, check_shape
from gan_ebm_utils.networks.stacked import mlp


class CouplingFlow(nn.Module):
    """R invertible generators of the plane, latents (R, n, 2) to samples (R, n, 2).

    Each of `n_layers` affine coupling layers maps (z', z'') to (z'' e^{s(z')} + t(z'), z'), with s
    and t from a perceptron of one input and |s| < 2, so that log |det dG/dz| is the sum of the s
    (Dinh et al. 2016, arXiv:1605.08803). It begins near the identity.

    >>> flow = CouplingFlow(replicates=5, generator=torch.Generator().manual_seed(0))
    >>> flow(torch.zeros(5, 9, 2)).shape
    torch.Size([5, 9, 2])
    """

    def __init__(
        self,
        n_layers: int = 6,
        hidden: tuple[int, ...] = (32, 32),
        replicates: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_count(n_layers=n_layers)
        how = {"replicates": replicates, "generator": generator}
        self.nets = nn.ModuleList(mlp(1, hidden, 2, **how) for _ in range(n_layers))
        with torch.no_grad():
            for net in self.nets:
                net[-1].weight.mul_(0.1)
                net[-1].bias.zero_()

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Samples G(z), (R, n, 2), and log |det dG/dz|, (R, n)."""
        check_shape(z=(z, "R n 2"))
        (first, second), log_det = z.split(1, dim=-1), z.new_zeros(z.shape[:2])
        for net in self.nets:
            s, t = net(first).chunk(2, dim=-1)
            s = 2 * torch.tanh(s / 2)
            first, second = second * s.exp() + t, first
            log_det = log_det + s.squeeze(-1)
        return torch.cat([first, second], dim=-1), log_det

    def forward(self, z: Tensor) -> Tensor:
        return self.with_log_det(z)[0]

    def entropy(self, z: Tensor) -> Tensor:
        """Mean of -log p_G(G(z)) over the latents (R, n, 2), in nats, (R,).

        For z from the prior N(0, I) it is an unbiased estimate of the entropy of G(z).
        """
        _, log_det = self.with_log_det(z)
        log_prior = -z.square().sum(dim=-1) / 2 - math.log(2 * math.pi)
        return (log_det - log_prior).mean(dim=1)
