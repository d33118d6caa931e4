"""Residual networks of colour images, 32 x 32: the pair of SNGAN, and a classifier.

Generator and discriminator map (1, n, ...), the classifier (n, 3, 32, 32).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gan_ebm_utils.base import Single, check_count, check_shape
from gan_ebm_utils.networks.stacked import mlp
from gan_ebm_utils.networks.stacks import drawn


class _Block(nn.Module):
    """Shortcut plus residual, two convolutions after their activations; both are resized alike.

    `resize` is "up" (twice the size), "down" (half of it) or "". The first block of a network sees
    an image, which no activation may cut.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        resize: str = "",
        has_norm: bool = False,
        is_first: bool = False,
    ) -> None:
        super().__init__()
        up = [nn.Upsample(scale_factor=2)] if resize == "up" else []
        down = [nn.AvgPool2d(2)] if resize == "down" else []
        norms = [[nn.BatchNorm2d(n)] if has_norm else [] for n in (n_in, n_out)]
        start = [] if is_first else [*norms[0], nn.ReLU()]
        first, second = (nn.Conv2d(n, n_out, 3, padding=1) for n in (n_in, n_out))
        self.residual = nn.Sequential(*start, *up, first, *norms[1], nn.ReLU(), second, *down)
        # It commutes with both ways of resizing, and is cheaper at the smaller size.
        self.shortcut = nn.Sequential(*down, nn.Conv2d(n_in, n_out, 1), *up)
        if n_in == n_out and not resize:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


def sngan_generator(width: int, latent_dim: int, *, generator: torch.Generator) -> Single:
    """The generator of SNGAN, (1, n, latent_dim) to images (1, n, 3, 32, 32) in (-1, 1).

    A linear layer gives `width` channels of 4 x 4, and three residual blocks with batch
    normalisation double the size (Miyato et al. 2018, arXiv:1802.05957, with a width of 256).

    Raises ValueError for a width or latent_dim below 1.

    >>> g = torch.Generator().manual_seed(0)
    >>> sngan_generator(4, 8, generator=g)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 3, 32, 32])
    """
    check_count(width=width, latent_dim=latent_dim)
    with torch.device("meta"):
        layers = [nn.Linear(latent_dim, 16 * width), nn.Unflatten(1, (width, 4, 4))]
        layers += [_Block(width, width, "up", has_norm=True) for _ in range(3)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()]
        return drawn(Single(nn.Sequential(*layers)), generator)


def sngan_discriminator(width: int, *, generator: torch.Generator) -> Single:
    """The discriminator of SNGAN, images (1, n, 3, 32, 32) to logits (1, n).

    Four residual blocks, of which the first two halve the size, the sum over all places and a
    linear layer (Miyato et al. 2018, arXiv:1802.05957, with a width of 128). Each weight matrix is
    divided by its largest singular value, so that each layer is 1-Lipschitz as the paper counts it;
    in training mode each pass is a step of its power iteration.

    Raises ValueError for a width below 1.

    >>> g = torch.Generator().manual_seed(0)
    >>> sngan_discriminator(2, generator=g)(torch.zeros(1, 5, 3, 32, 32)).shape
    torch.Size([1, 5])
    """
    check_count(width=width)
    with torch.device("meta"):
        blocks = [_Block(3, width, "down", is_first=True), _Block(width, width, "down")]
        blocks += [_Block(width, width), _Block(width, width)]
        total = [nn.ReLU(), nn.AvgPool2d(8, divisor_override=1), nn.Flatten()]
        network = drawn(Single(nn.Sequential(*blocks, *total, nn.Linear(width, 1))), generator)
    # PyTorch draws the first singular vectors from its global generator.
    device = generator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device=device)))
        for layer in [*network.modules()]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)
    return network


class _Sum(nn.Module):
    """x + network(x)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return x + self.network(x)


class ImageClassifier(nn.Module):
    """A small residual classifier of 32 x 32 colour images, whose features score samples.

    `classifier(images)` maps (n, 3, 32, 32) in [-1, 1] to logits (n, 10). `classifier.features` is
    the part before the last linear layer, a module of its own that maps the images to
    (n, 8 * width) and carries `num_features`, so that torchmetrics takes it as a feature network.

    Raises ValueError for a width below 1 and, when called, for images of another shape.

    >>> g = torch.Generator().manual_seed(0)
    >>> ImageClassifier(4, generator=g).features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 32])
    """

    def __init__(self, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        check_count(width=width)

        def step(n_in: int, n_out: int, *last: nn.Module) -> nn.Sequential:
            convolution = nn.Conv2d(n_in, n_out, 3, padding=1)
            return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU(), *last)

        with torch.device("meta"):
            layers, half = [step(3, width)], nn.MaxPool2d(2)
            for n in (width, 2 * width, 4 * width):
                layers.append(step(n, 2 * n, half))
                if n != 2 * width:
                    layers.append(_Sum(nn.Sequential(step(2 * n, 2 * n), step(2 * n, 2 * n))))
            self.features = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten())
            self.head = nn.Linear(8 * width, 10)
        self.features.num_features = 8 * width
        drawn(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images=(images, "n 3 32 32"))
        return self.head(self.features(images))


class ImageFeatureDiscriminator(nn.Module):
    """A discriminator that sees features only, images (R, n, 3, 32, 32) to logits (R, n).

    `features` is the part of an `ImageClassifier` before its last layer, `head` a perceptron on
    top, the same for all R. The features have no gradient of their own and stay in evaluation mode,
    so that their batch normalisation does not see the batch. Such a logit ignores what they ignore
    (Ding et al. 2020, arXiv:1909.10670, fit ratios in features).

    Raises ValueError for sizes below 1.

    >>> g = torch.Generator().manual_seed(0)
    >>> ImageFeatureDiscriminator(2, (4,), generator=g)(torch.zeros(1, 5, 3, 32, 32)).shape
    torch.Size([1, 5])
    """

    def __init__(self, width: int, hidden: tuple[int, ...], *, generator: torch.Generator) -> None:
        super().__init__()
        classifier = ImageClassifier(width, generator=generator)
        self.features = classifier.features.requires_grad_(False)
        self.head = mlp(8 * width, tuple(hidden), generator=generator).to(generator.device)
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageFeatureDiscriminator:
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        seen = self.features(x.flatten(0, 1))
        return self.head(seen[None])[0].unflatten(0, x.shape[:2])
