"""Layers and multilayer perceptrons whose replicates lie behind one leading axis.

They map (R, n, d) to (R, n, out), or to (R, n) where each is a scalar function such as a logit or
an energy.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan_ebm_utils.base import check_count, check_positive, check_shape, rand, randn


class StackedLinear(nn.Module):
    """R affine maps at once: x_r W_r + b_r.

    Maps (R, n, in) to (R, n, out) with weights (R, in, out) and biases (R, 1, out), both drawn
    uniformly from +-1/sqrt(in), as PyTorch's own linear layer does.

    Raises ValueError for sizes below 1 and, when called, for inputs of another shape.

    >>> layer = StackedLinear(3, 2, 5, generator=torch.Generator().manual_seed(0))
    >>> x = torch.ones(5, 4, 3)
    >>> torch.allclose(layer(x)[1], x[1] @ layer.weight[1] + layer.bias[1])
    True
    """

    def __init__(
        self, in_features: int, out_features: int, replicates: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        check_count(in_features=in_features, out_features=out_features, replicates=replicates)
        bound = in_features**-0.5
        weight = rand(replicates, in_features, out_features, generator=generator)
        bias = rand(replicates, 1, out_features, generator=generator)
        self.weight = nn.Parameter(bound * (2 * weight - 1))
        self.bias = nn.Parameter(bound * (2 * bias - 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight  # read once: with spectral normalisation each read is a power step
        replicates, in_features, out_features = weight.shape
        if x.ndim != 3 or x.shape[0] != replicates or x.shape[2] != in_features:
            raise ValueError(f"x must be ({replicates}, n, {in_features}), got {tuple(x.shape)}")
        if out_features == 1:
            # A matrix product with one column takes twice as long, forward and backward.
            return (x * weight.mT).sum(dim=2, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x, weight)


class StackedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of each replicate and unit by itself: gamma (x - m) / s + beta.

    Maps (R, n, d) to the same shape; the mean m and standard deviation s are those of the batch in
    training mode, and running averages in evaluation mode (Ioffe and Szegedy 2015,
    arXiv:1502.03167). It is PyTorch's own over the R d units side by side, so that `weight`, the
    gammas, and `bias`, the betas, are (R d,).

    Raises ValueError for sizes below 1 and, when called, for inputs of another shape.

    >>> x = 3 + torch.randn(5, 100, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((StackedBatchNorm(2, 5)(x).mean(dim=1).abs() < 1e-5).all())
    True
    """

    def __init__(
        self, features: int, replicates: int, device: torch.device | str | None = None
    ) -> None:
        check_count(features=features, replicates=replicates)
        super().__init__(replicates * features, device=device, dtype=torch.float32)
        self.shape = replicates, features

    def forward(self, x: Tensor) -> Tensor:
        replicates, features = self.shape
        check_shape(x=(x, f"{replicates} n {features}"))
        flat = x.movedim(0, 1).flatten(1)  # (n, R d)
        return super().forward(flat).unflatten(1, self.shape).movedim(1, 0)


class FourierFeatures(nn.Module):
    """x followed by the cosines and sines of random projections of it: (R, n, d) to (R, n, d + 2m).

    The frequencies B are (m, d) with entries N(0, scale^2) in radians per unit of x; they are not
    trained and are the same for all replicates: gamma(x) = [x, cos(B x), sin(B x)]. They let a
    network resolve structure of size about 1/scale (Tancik et al. 2020, arXiv:2006.10739, section
    6).

    >>> features = FourierFeatures(2, 1, 1.0, generator=torch.Generator().manual_seed(0))
    >>> features(torch.zeros(1, 1, 2))
    tensor([[[0., 0., 1., 0.]]])
    """

    def __init__(
        self, in_features: int, n_frequencies: int, scale: float, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        check_count(in_features=in_features, n_frequencies=n_frequencies)
        check_positive(scale=scale)
        frequencies = scale * randn(in_features, n_frequencies, generator=generator)
        self.register_buffer("frequencies", frequencies)
        self.out_features = in_features + 2 * n_frequencies

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.frequencies
        return torch.cat([x, phase.cos(), phase.sin()], dim=-1)


class SpectralNorm(nn.Module):
    """Divide each matrix of a stack (R, in, out) by its largest singular value: W_r / s(W_r).

    The singular vectors are exact at first; then one step of power iteration per pass in training
    mode follows them (Miyato et al. 2018, arXiv:1802.05957, algorithm 1). PyTorch's own
    parametrization would take the stack for one matrix. Register it with `spectral_norm`.

    >>> weight = torch.diag(torch.tensor([4.0, 2.0]))[None]
    >>> SpectralNorm(weight)(weight)
    tensor([[[1.0000, 0.0000],
             [0.0000, 0.5000]]])
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        self.register_buffer("left", left[:, :, :1].clone())  # (R, in, 1)
        self.register_buffer("right", right.mT[:, :, :1].clone())  # (R, out, 1)

    @torch.no_grad()
    def _power_step(self, weight: Tensor) -> None:
        self.right = F.normalize(weight.mT @ self.left, dim=1)
        self.left = F.normalize(weight @ self.right, dim=1)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self._power_step(weight)
        return weight / (self.left.mT @ weight @ self.right)


def spectral_norm(layer: StackedLinear) -> StackedLinear:
    """Give each replicate of `layer` a largest singular value of 1, so that it is 1-Lipschitz.

    >>> layer = spectral_norm(StackedLinear(3, 2, 5, generator=torch.Generator().manual_seed(0)))
    >>> torch.allclose(torch.linalg.matrix_norm(layer.weight, 2), torch.ones(5))
    True
    """
    norm = SpectralNorm(layer.weight.detach())
    return parametrize.register_parametrization(layer, "weight", norm, unsafe=True)


def mlp(
    in_features: int,
    hidden: tuple[int, ...],
    out_features: int | None = None,
    replicates: int = 1,
    *,
    generator: torch.Generator,
    activation: str = "SiLU",
    fourier: tuple[int, float] | None = None,
    spectral: bool = False,
    batch_norm: bool = False,
) -> nn.Sequential:
    """R multilayer perceptrons, (R, n, in_features) to (R, n, out_features).

    Without `out_features` each is a scalar function, (R, n, in_features) to (R, n). `fourier` =
    (n_frequencies, scale) puts `FourierFeatures` first. `activation` is the name of one in
    torch.nn. `spectral` normalises each linear layer, which makes the network 1-Lipschitz if its
    activation is: ReLU is, SiLU has slopes up to 1.1. `batch_norm` normalises each hidden layer
    before its activation.

    Raises ValueError for sizes below 1, an unknown activation, spectral normalisation after Fourier
    features and, when called, for inputs of another shape.

    >>> g = torch.Generator().manual_seed(0)
    >>> logit = mlp(2, (64, 64), replicates=10, generator=g)
    >>> logit(torch.zeros(10, 5, 2)).shape
    torch.Size([10, 5])
    """
    if activation not in nn.modules.activation.__all__:
        raise ValueError(f'activation must be one of torch.nn, as "SiLU", got {activation!r}')
    if spectral and fourier is not None:
        raise ValueError("spectral needs a 1-Lipschitz first layer, which Fourier features are not")
    layers: list[nn.Module] = []
    if fourier is not None:
        layers.append(FourierFeatures(in_features, *fourier, generator=generator))
        in_features = layers[0].out_features
    sizes = (in_features, *hidden, 1 if out_features is None else out_features)
    for n_in, n_out in itertools.pairwise(sizes):
        layer = StackedLinear(n_in, n_out, replicates, generator=generator)
        layers.append(spectral_norm(layer) if spectral else layer)
        if batch_norm:
            layers.append(StackedBatchNorm(n_out, replicates, generator.device))
        layers.append(getattr(nn, activation)())
    # A network ends without norm and activation, and a scalar function drops its last axis.
    layers = layers[: -1 - batch_norm]
    return nn.Sequential(*layers, *([nn.Flatten()] if out_features is None else []))


class Confined(nn.Module):
    """An energy with a finite partition function: E(x) = f(x) + |x|^2 / (2 s^2).

    `function` is f, (R, n, *event) to (R, n), which grows at most linearly, as networks of linear
    layers with ReLU, SiLU or Fourier features do; the norm is over all of the event's axes, and
    `scale` = s is in units of x.

    >>> Confined(nn.Flatten(), scale=2.0)(torch.tensor([[[4.0]]]))
    tensor([[6.]])
    """

    is_energy = True  # low for data: `base.check_gan` refuses it in the place of a logit

    def __init__(self, function: nn.Module, scale: float) -> None:
        super().__init__()
        check_positive(scale=scale)
        self.function, self.scale = function, scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) + x.square().flatten(2).sum(dim=2) / (2 * self.scale**2)


def energy_mlp(
    in_features: int, hidden: tuple[int, ...], *, scale: float = 2.0, **options: Any
) -> Confined:
    """R confined energies, (R, n, in_features) to (R, n), whose f is an `mlp` with `options`.

    `scale` is the one of `Confined`, and `options` are further arguments of `mlp`: its `generator`,
    and `replicates` if R is not 1.

    >>> g = torch.Generator().manual_seed(0)
    >>> energy_mlp(2, (64, 64), replicates=10, generator=g)(torch.zeros(10, 5, 2)).shape
    torch.Size([10, 5])
    """
    return Confined(mlp(in_features, hidden, None, **options), scale)


class Experts(nn.Module):
    """f(x) = -b . x - sum_i softplus(u_i(x)), minus the votes of m experts, (R, n, d) to (R, n).

    `network` is u, (R, n, d) to (R, n, m), and b is trained with it. With a confining term it is
    the energy of a product of experts; without one it falls without end along any ray on which an
    expert grows (Kim and Bengio 2016, arXiv:1606.03439).

    >>> network = StackedLinear(2, 3, 1, generator=torch.Generator().manual_seed(0))
    >>> x = torch.zeros(1, 4, 2)
    >>> torch.equal(Experts(network, 2, 1)(x), -F.softplus(network(x)).sum(dim=2))
    True
    """

    def __init__(self, network: nn.Module, in_features: int, replicates: int) -> None:
        super().__init__()
        self.network = network
        device = next(network.parameters()).device
        self.bias = nn.Parameter(torch.zeros(replicates, 1, in_features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return -(self.bias * x).sum(dim=2) - F.softplus(self.network(x)).sum(dim=2)


def product_of_experts(
    in_features: int,
    hidden: tuple[int, ...],
    n_experts: int,
    replicates: int = 1,
    *,
    scale: float = 2.0,
    generator: torch.Generator,
    **options: Any,
) -> Confined:
    """R energies E(x) = |x|^2 / (2 s^2) - b . x - sum_i softplus(u_i(x)), (R, n, d) to (R, n).

    The experts u are the `n_experts` outputs of an `mlp` with `options`; `scale` = s is the one of
    `Confined` (Kim and Bengio 2016, arXiv:1606.03439).

    >>> g = torch.Generator().manual_seed(0)
    >>> product_of_experts(2, (64,), 8, 10, generator=g)(torch.zeros(10, 5, 2)).shape
    torch.Size([10, 5])
    """
    network = mlp(in_features, hidden, n_experts, replicates, generator=generator, **options)
    return Confined(Experts(network, in_features, replicates), scale)


class NoisyGenerator(nn.Module):
    """G(z) + std z' with standard normal z': a law that has a density, of one latent (z, z').

    Maps (R, n, latent_dim + size of the event) to (R, n, *event); the first `latent_dim` columns go
    through `generator` (Che et al. 2020, arXiv:2003.06060). A discriminator for it must be fitted
    to its samples, not to those of G.

    >>> NoisyGenerator(nn.Identity(), latent_dim=1, std=0.5)(torch.tensor([[[1.0, 4.0]]]))
    tensor([[[3.]]])
    """

    def __init__(self, generator: nn.Module, latent_dim: int, std: float) -> None:
        super().__init__()
        check_count(latent_dim=latent_dim)
        check_positive(std=std)
        self.generator, self.latent_dim, self.std = generator, latent_dim, std

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, std={self.std}"

    def forward(self, z: Tensor) -> Tensor:
        x = self.generator(z[..., : self.latent_dim])
        return x + self.std * z[..., self.latent_dim :].reshape(x.shape)
