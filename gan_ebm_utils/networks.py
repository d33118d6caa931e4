"""Networks whose replicates train side by side: R independent copies behind one leading axis.

A network of the plane maps (R, n, d) to (R, n, out), or to (R, n) if it is a scalar function such
as a logit or an energy. A network of images takes or gives (R, n, c, h, w).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan_ebm_utils.base import check_count, check_positive, is_count, rand, randn


class StackedLinear(nn.Module):
    """R affine maps at once: x_r W_r + b_r.

    Maps (R, n, in) to (R, n, out) with weights (R, in, out) and biases (R, 1, out), both drawn
    uniformly from +-1/sqrt(in), as PyTorch's own linear layer does.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        replicates: int = 1,
        *,
        generator: torch.Generator,
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


class FourierFeatures(nn.Module):
    """x followed by the cosines and sines of random projections of it: (R, n, d) to (R, n, d + 2m).

    The frequencies B are (m, d) with entries N(0, scale^2) in radians per unit of x; they are not
    trained and are the same for all replicates: gamma(x) = [x, cos(B x), sin(B x)]. They let a
    network resolve structure of size about 1/scale (Tancik et al. 2020, arXiv:2006.10739, section
    6).
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
    """Give each replicate of `layer` a largest singular value of 1, so that it is 1-Lipschitz."""
    parametrize.register_parametrization(
        layer, "weight", SpectralNorm(layer.weight.detach()), unsafe=True
    )
    return layer


class Scalar(nn.Module):
    """Drop a last axis of size 1: (R, n, 1) to (R, n)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1)


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
) -> nn.Sequential:
    """R multilayer perceptrons, (R, n, in_features) to (R, n, out_features).

    Without `out_features` each is a scalar function, (R, n, in_features) to (R, n). `fourier` =
    (n_frequencies, scale) puts `FourierFeatures` first. `activation` is the name of one in
    torch.nn. `spectral` normalises each linear layer, which makes the network 1-Lipschitz if its
    activation is: ReLU is, SiLU has slopes up to 1.1.

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
        layers += [spectral_norm(layer) if spectral else layer, getattr(nn, activation)()]
    layers.pop()
    return nn.Sequential(*layers, *([Scalar()] if out_features is None else []))


class Confined(nn.Module):
    """An energy with a finite partition function: E(x) = f(x) + |x|^2 / (2 s^2).

    `function` is f, (R, n, *event) to (R, n), which grows at most linearly, as networks of linear
    layers with ReLU, SiLU or Fourier features do; the norm is over all of the event's axes, and
    `scale` = s is in units of x.
    """

    def __init__(self, function: nn.Module, scale: float) -> None:
        super().__init__()
        check_positive(scale=scale)
        self.function, self.scale = function, scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) + x.square().flatten(2).sum(dim=2) / (2 * self.scale**2)


def energy_mlp(
    in_features: int,
    hidden: tuple[int, ...],
    replicates: int = 1,
    *,
    generator: torch.Generator,
    scale: float = 2.0,
    activation: str = "SiLU",
    fourier: tuple[int, float] | None = None,
) -> Confined:
    """R confined energies, (R, n, in_features) to (R, n), whose f is an `mlp`.

    >>> g = torch.Generator().manual_seed(0)
    >>> energy_mlp(2, (64, 64), replicates=10, generator=g)(torch.zeros(10, 5, 2)).shape
    torch.Size([10, 5])
    """
    function = mlp(
        in_features,
        hidden,
        replicates=replicates,
        generator=generator,
        activation=activation,
        fourier=fourier,
    )
    return Confined(function, scale)


class NoisyGenerator(nn.Module):
    """G(z) + std z' with standard normal z': a law that has a density, of one latent (z, z').

    Maps (R, n, latent_dim + size of the event) to (R, n, *event); the first `latent_dim` columns go
    through `generator` (Che et al. 2020, arXiv:2003.06060). A discriminator for it
    must be fitted to its samples, not to those of G.
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


class _Convolutions(nn.Module):
    """Layers that run R copies as the groups of one convolution.

    Grouped convolutions on a CPU are about twice as fast with channels last.
    """

    def __init__(self, image_size: int, channels: int, width: int, replicates: int) -> None:
        super().__init__()
        check_count(channels=channels, width=width, replicates=replicates)
        if not is_count(image_size, 8) or image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4 and at least 8, got {image_size}")
        self.replicates = replicates
        self.event = (channels, image_size, image_size)

    def _conv(
        self,
        layer: type[nn.Module],
        n_in: int,
        n_out: int,
        generator: torch.Generator,
        **sizes: int,
    ) -> nn.Module:
        # Without weights at first: the constructor would draw them from the global generator.
        with torch.device("meta"):
            conv = layer(
                self.replicates * n_in, self.replicates * n_out, groups=self.replicates, **sizes
            )
        conv.to_empty(device=generator.device).float()
        # Inputs that one output sees; a transposed stride-2 kernel of 4 x 4 hits it 2 x 2 times.
        seen = (
            n_in
            * math.prod(conv.kernel_size)
            / math.prod(conv.stride if isinstance(conv, nn.ConvTranspose2d) else (1, 1))
        )
        nn.init.normal_(conv.weight, std=seen**-0.5 * math.sqrt(2), generator=generator)
        nn.init.zeros_(conv.bias)
        return conv


class ConvGenerator(_Convolutions):
    """R small convolutional generators, (R, n, latent_dim) to images (R, n, c, h, w) in (-1, 1).

    A linear layer gives 2 * width channels of size h/4, and two transposed convolutions of stride 2
    double it twice. `image_size` h = w is a multiple of 4: 8 for digits, 28 for MNIST.

    >>> g = torch.Generator().manual_seed(0)
    >>> ConvGenerator(8, replicates=5, generator=g)(torch.zeros(5, 3, 16)).shape
    torch.Size([5, 3, 1, 8, 8])
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        latent_dim: int = 16,
        width: int = 16,
        replicates: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(image_size, channels, width, replicates)
        self.base = (2 * width, image_size // 4, image_size // 4)
        self.linear = StackedLinear(
            latent_dim, math.prod(self.base), replicates, generator=generator
        )
        up = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.up1 = self._conv(nn.ConvTranspose2d, 2 * width, width, generator, **up)
        self.up2 = self._conv(nn.ConvTranspose2d, width, channels, generator, **up)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.linear(z)).mT  # (R, features, n)
        h = h.movedim(2, 0).reshape(z.shape[1], -1, *self.base[1:])  # (n, R * 2 width, h/4, w/4)
        h = h.contiguous(memory_format=torch.channels_last)
        h = F.silu(self.up1(h))
        x = self.up2(h).tanh().reshape(-1, self.replicates, *self.event)
        return x.movedim(0, 1)


class ConvDiscriminator(_Convolutions):
    """R small convolutional discriminators, images (R, n, c, h, w) to logits (R, n).

    Two convolutions of stride 2 halve the image twice; there is no batch normalisation, so a logit
    depends on its own image alone.

    Raises ValueError for images of another shape.

    >>> g = torch.Generator().manual_seed(0)
    >>> ConvDiscriminator(28, generator=g)(torch.zeros(1, 3, 1, 28, 28)).shape
    torch.Size([1, 3])
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        width: int = 16,
        replicates: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(image_size, channels, width, replicates)
        down = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.down1 = self._conv(nn.Conv2d, channels, width, generator, **down)
        self.down2 = self._conv(nn.Conv2d, width, 2 * width, generator, **down)
        n_features = 2 * width * (image_size // 4) ** 2
        self.linear = StackedLinear(n_features, 1, replicates, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[0] != self.replicates or tuple(x.shape[2:]) != self.event:
            expected = ", ".join(str(size) for size in self.event)
            raise ValueError(f"x must be ({self.replicates}, n, {expected}), got {tuple(x.shape)}")
        n = x.shape[1]
        h = x.movedim(0, 1).reshape(n, -1, *self.event[1:])  # (n, R * c, h, w)
        h = h.contiguous(memory_format=torch.channels_last)
        h = F.silu(self.down2(F.silu(self.down1(h))))
        return self.linear(h.reshape(n, self.replicates, -1).movedim(0, 1)).squeeze(-1)


class MnistClassifier(nn.Module):
    """A small convolutional classifier of 28 x 28 images, whose penultimate layer scores samples.

    `classifier(images)` maps (n, 1, 28, 28) in [-1, 1] to logits (n, 10). `classifier.features` is
    the part before the last linear layer, a module of its own that maps the images to
    (n, n_features) and carries `num_features`, so that torchmetrics takes it as a feature network.

    Raises ValueError for images of another shape.

    >>> g = torch.Generator().manual_seed(0)
    >>> MnistClassifier(generator=g).features(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self, n_features: int = 64, width: int = 16, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        check_count(n_features=n_features, width=width)
        self.num_features = n_features
        # Without weights at first: the constructors would draw them from the global generator.
        with torch.device("meta"):
            self.features = nn.Sequential(
                nn.Conv2d(1, width, 5, padding=2),
                nn.SiLU(),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.SiLU(),
                nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
                nn.SiLU(),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(4 * width * 7 * 7, n_features),
                nn.SiLU(),
            )
            self.head = nn.Linear(n_features, 10)
        self.features.num_features = n_features
        self.to_empty(device=generator.device).float()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"images must be (n, 1, 28, 28), got {tuple(images.shape)}")
        return self.head(self.features(images))


class FeatureDiscriminator(nn.Module):
    """R discriminators on the features of one classifier, images (R, n, 1, 28, 28) to (R, n).

    `features` is the part of a `MnistClassifier` before its last layer; it has no gradient of its
    own. `head` holds R multilayer perceptrons. Such a logit ignores what the features ignore, as
    the texture of a single stroke (Ding et al. 2020, arXiv:1909.10670, fit ratios in features).

    Raises ValueError for images of another shape.

    >>> g = torch.Generator().manual_seed(0)
    >>> FeatureDiscriminator((32,), replicates=2, generator=g)(torch.zeros(2, 3, 1, 28, 28)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        hidden: tuple[int, ...],
        n_features: int = 64,
        width: int = 16,
        replicates: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        classifier = MnistClassifier(n_features, width, generator=generator)
        self.features = classifier.features.requires_grad_(False)
        self.head = mlp(n_features, tuple(hidden), replicates=replicates, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[2:] != (1, 28, 28):
            raise ValueError(f"x must be (R, n, 1, 28, 28), got {tuple(x.shape)}")
        return self.head(self.features(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
