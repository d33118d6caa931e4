"""Entropies of samples, in nats."""

import math

import torch
from scipy.special import digamma
from torch import Tensor, nn

from gan_ebm_utils.base import check_count, check_samples, check_shape, distances

_GAUSSIAN = math.log(2 * math.pi * math.e) / 2  # the entropy of N(0, 1)


def nearest_neighbour_entropy(x: Tensor, k: int = 3) -> Tensor:
    """Differential entropy from distances to the k-th nearest neighbours, (R,) float64, on the CPU.

    H = psi(n) - psi(k) + log c + (d/n) sum_i log delta_i, for points (R, n, d) that are independent
    in each replicate; delta_i is the distance of x_i to its k-th neighbour among the others, and c
    the volume of the unit ball (Kozachenko and Leonenko 1987; for any k Kraskov et al. 2004,
    arXiv:cond-mat/0305641). On points of a surface, which have no density, it falls without end as
    n grows.

    Raises ValueError for other shapes, a k that is not below n, or points that coincide so often
    that a distance is 0.

    >>> x = torch.randn(1, 4000, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((nearest_neighbour_entropy(x) - math.log(2 * math.pi * math.e)).abs() < 0.1)
    True
    """
    check_count(k=k)
    check_shape(x=(x, "R n d"))
    check_samples(x=x)
    n, dim = x.shape[1:]
    if k >= n:
        raise ValueError(f"k must be below the number of points n = {n}, got {k}")
    # The nearest of all points is the point itself.
    parts = (
        [part.kthvalue(k + 1, dim=1).values for part in distances(y, y)] for y in x.cpu().double()
    )
    delta = torch.stack([torch.cat(rows) for rows in parts])
    if not delta.all():
        raise ValueError(
            f"{int((delta == 0).sum())} of {delta.numel()} points coincide with {k} others or more "
            "and have no density, so that the entropy is -inf; raise k if copies are meant"
        )
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return digamma(n) - digamma(k) + log_ball + dim * delta.log().mean(dim=1)


def gaussian_bound(x: Tensor) -> Tensor:
    """sum_i log(2 pi e Var x_i) / 2 of samples (R, n, d), in nats, (R,): at least their entropy.

    It is the entropy of independent Gaussians with the variances of the coordinates. Gradients pass
    through it. It is -inf where a coordinate does not vary.

    Raises ValueError for other shapes and for samples that are not finite.

    >>> x = torch.randn(1, 4000, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((gaussian_bound(x) - math.log(2 * math.pi * math.e)).abs() < 0.1)
    True
    """
    check_shape(x=(x, "R n d"))
    check_samples(x=x)
    return (_GAUSSIAN + x.var(dim=1, correction=0).log() / 2).sum(dim=1)


def scale_entropy(network: nn.Module, replicates: int = 1) -> Tensor:
    """sum_i log(2 pi e gamma_i^2) / 2 over all batch-normalised units of `network`, (R,).

    It is the stand-in for the entropy of a generator's samples of Kim and Bengio (2016,
    arXiv:1606.03439): each unit counts as a Gaussian whose standard deviation is the gamma of its
    batch normalisation. It bounds no entropy. The units of one layer lie side by side, replicate
    after replicate, as those of `networks.StackedBatchNorm` do.

    Raises ValueError for a network without batch normalisation.

    >>> from torch import nn
    >>> bool(scale_entropy(nn.BatchNorm1d(2)) == torch.tensor(2 * math.pi * math.e).log())
    True
    """
    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    gammas = [norm.weight.reshape(replicates, -1) for norm in norms if norm.affine]
    if not gammas:
        raise ValueError("the network has no batch normalisation; give mlp(..., batch_norm=True)")
    return (_GAUSSIAN + torch.cat(gammas, dim=1).abs().log()).sum(dim=1)
