"""Convolutional networks of digits and their stacks, each one replicate, and a classifier.

Generator and discriminator map (1, n, ...), the classifier (n, 1, 28, 28).
"""

import math

import torch
from torch import Tensor, nn

from gan_ebm_utils.base import Single, check_count
from gan_ebm_utils.energies import NegativeEnergy


def drawn(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """`network`, built on the device "meta", with weights drawn from `generator`.

    Their variance is 1 / (3 n) if a unit has n inputs, as in PyTorch's own layers, a sixth of He's.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(12, 10_000)
    >>> drawn(layer, torch.Generator().manual_seed(0)).weight.std().round(decimals=2)
    tensor(0.1700, grad_fn=<RoundBackward1>)
    """
    network.to_empty(device=generator.device).float()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # A transposed kernel hits an output only once in stride^2 of its weights.
            share = math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1
            std = (share * layer.bias.numel() / layer.weight.numel() / 3) ** 0.5
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)
    return network


def _quarter(side: int) -> int:
    check_count(4, side=side)
    if side % 4:
        raise ValueError(f"side must be a multiple of 4, got {side}")
    return side // 4


def _trunk(width: int, channels: int) -> list[nn.Module]:
    """Layers from stacks (n, channels, side, side) to 4 * width features at (side / 4)^2 places."""
    sizes = ((channels, width, 4, 2), (width, 2 * width, 4, 2), (2 * width, 4 * width, 3, 1))
    layers = [part for size in sizes for part in (nn.Conv2d(*size, 1), nn.LeakyReLU(0.2))]
    return [*layers, nn.Flatten()]


def stack_generator(
    width: int,
    latent_dim: int,
    channels: int = 3,
    side: int = 28,
    *,
    generator: torch.Generator,
) -> Single:
    """A generator of stacks, (1, n, latent_dim) to (1, n, channels, side, side) in (-1, 1).

    A linear layer gives 2 * width channels of a quarter of the side, two transposed convolutions
    double the size and halve the channels, and a last one mixes them; each but the last ends in
    batch normalisation. `side` is a multiple of 4.

    >>> g = torch.Generator().manual_seed(0)
    >>> stack_generator(4, 8, generator=g)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 3, 28, 28])
    """
    check_count(width=width, latent_dim=latent_dim, channels=channels)
    inner = _quarter(side)

    def end(n: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(n), nn.LeakyReLU(0.2)]

    with torch.device("meta"):
        layers = [nn.Linear(latent_dim, 2 * width * inner**2)]
        layers.append(nn.Unflatten(1, (2 * width, inner, inner)))
        layers += [*end(2 * width), nn.ConvTranspose2d(2 * width, width, 4, 2, 1)]
        layers += [*end(width), nn.ConvTranspose2d(width, width // 2, 4, 2, 1)]
        layers += [*end(width // 2), nn.Conv2d(width // 2, channels, 3, 1, 1), nn.Tanh()]
        return drawn(Single(nn.Sequential(*layers)), generator)


def stack_discriminator(
    width: int,
    is_energy: bool = False,
    channels: int = 3,
    side: int = 28,
    *,
    generator: torch.Generator,
) -> nn.Module:
    """A discriminator of stacks, (1, n, channels, side, side) to d (1, n), or -E of an energy.

    Three convolutions and a linear layer, without normalisation: d depends on its own stack alone.
    `side` is a multiple of 4.

    >>> g = torch.Generator().manual_seed(0)
    >>> stack_discriminator(2, generator=g)(torch.zeros(1, 5, 3, 28, 28)).shape
    torch.Size([1, 5])
    """
    check_count(width=width, channels=channels)
    with torch.device("meta"):
        last = nn.Linear(4 * width * _quarter(side) ** 2, 1)
        network = Single(nn.Sequential(*_trunk(width, channels), last))
    drawn(network, generator)
    return NegativeEnergy(network) if is_energy else network


class Statistics(nn.Module):
    """T(x, z) of stacks with their own latents, and with those of another row, both (1, n).

    Maps x (1, n, channels, 28, 28) and z (1, n, latent_dim) to what `losses.jsd_information`
    takes. The latents join after layers like those of a discriminator (Kumar et al. 2019,
    arXiv:1901.08508).

    >>> g = torch.Generator().manual_seed(0)
    >>> statistics = Statistics(2, 8, generator=g)
    >>> joint, product = statistics(torch.zeros(1, 5, 3, 28, 28), torch.zeros(1, 5, 8))
    >>> joint.shape
    torch.Size([1, 5])
    """

    def __init__(
        self, width: int, latent_dim: int, channels: int = 3, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        check_count(width=width, latent_dim=latent_dim, channels=channels)
        n = 4 * width
        with torch.device("meta"):
            layers = [*_trunk(width, channels), nn.Linear(196 * width, n), nn.LeakyReLU(0.2)]
            self.features = Single(nn.Sequential(*layers))
            layers = [nn.Linear(n + latent_dim, n), nn.LeakyReLU(0.2), nn.Linear(n, 1)]
            self.head = Single(nn.Sequential(*layers))
        drawn(self, generator)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.features(x)
        # The rows are independent, so that one place further is as good as any permutation.
        pairs = (torch.cat([seen, latents], dim=2) for latents in (z, z.roll(1, dims=1)))
        joint, product = map(self.head, pairs)
        return joint, product


def digit_classifier(
    width: int, hidden: int, dropout: float, *, generator: torch.Generator
) -> nn.Sequential:
    """A small classifier of digits, (n, 1, 28, 28) to logits (n, 10), with dropout.

    Two convolutions of stride 2 and two linear layers: a sixth of the work of `MnistClassifier`.

    >>> g = torch.Generator().manual_seed(0)
    >>> digit_classifier(4, 8, 0.5, generator=g)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    check_count(width=width, hidden=hidden)
    with torch.device("meta"):
        layers = [nn.Conv2d(1, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 4, 2, 1)]
        layers += [nn.SiLU(), nn.Flatten(), nn.Linear(98 * width, hidden), nn.SiLU()]
        layers += [nn.Dropout(dropout), nn.Linear(hidden, 10)]
        return drawn(nn.Sequential(*layers), generator)
