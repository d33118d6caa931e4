"""Networks that take or give images (R, n, c, h, w), and a classifier of MNIST, (n, 1, 28, 28)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_ebm_utils.base import check_count, check_shape, is_count
from gan_ebm_utils.networks.stacked import StackedLinear, mlp


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
        self.inner = (2 * width, image_size // 4, image_size // 4)  # after two layers, or before

    def _conv(self, kind: type, n_in: int, n_out: int, generator: torch.Generator) -> nn.Module:
        """A layer that halves an image or, transposed, doubles it."""
        # Inputs that one output sees; a transposed stride-2 kernel of 4 x 4 hits it 2 x 2 times.
        seen = n_in * (2 * 2 if kind is nn.ConvTranspose2d else 4 * 4)
        n_in, n_out = self.replicates * n_in, self.replicates * n_out
        sizes = {"kernel_size": 4, "stride": 2, "padding": 1, "groups": self.replicates}
        # Without weights at first: the constructor would draw them from the global generator.
        conv = nn.utils.skip_init(kind, n_in, n_out, **sizes, device=generator.device).float()
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
        n_features = math.prod(self.inner)
        self.linear = StackedLinear(latent_dim, n_features, replicates, generator=generator)
        self.up1 = self._conv(nn.ConvTranspose2d, 2 * width, width, generator)
        self.up2 = self._conv(nn.ConvTranspose2d, width, channels, generator)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.linear(z)).movedim(0, 1).reshape(z.shape[1], -1, *self.inner[1:])
        h = h.contiguous(memory_format=torch.channels_last)  # (n, R * 2 width, h/4, w/4)
        x = self.up2(F.silu(self.up1(h))).tanh()
        return x.unflatten(1, (self.replicates, -1)).movedim(0, 1)


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
        self.down1 = self._conv(nn.Conv2d, channels, width, generator)
        self.down2 = self._conv(nn.Conv2d, width, 2 * width, generator)
        self.linear = StackedLinear(math.prod(self.inner), 1, replicates, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        check_shape(x=(x, " ".join(map(str, (self.replicates, "n", *self.event)))))
        h = x.movedim(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        h = F.silu(self.down2(F.silu(self.down1(h))))  # (n, R * 2 width, h/4, w/4)
        return self.linear(h.reshape(len(h), self.replicates, -1).movedim(0, 1)).squeeze(-1)


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
            convolutions = (
                nn.Conv2d(1, width, 5, padding=2),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            )
            layers = [layer for conv in convolutions for layer in (conv, nn.SiLU())]
            layers += [nn.Flatten(), nn.Linear(4 * width * 7 * 7, n_features), nn.SiLU()]
            self.features = nn.Sequential(*layers)
            self.head = nn.Linear(n_features, 10)
        self.features.num_features = n_features
        self.to_empty(device=generator.device).float()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        check_shape(images=(images, "n 1 28 28"))
        return self.head(self.features(images))


class FeatureDiscriminator(nn.Module):
    """R discriminators on the features of a classifier, (R, n, channels, 28, 28) to (R, n).

    `features` is the part of a `MnistClassifier` before its last layer; it has no gradient of its
    own and sees each channel as a digit. `head` holds R multilayer perceptrons on the features of
    all channels. Such a logit ignores what the features ignore, as the texture of a single stroke
    (Ding et al. 2020, arXiv:1909.10670, fit ratios in features).

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
        channels: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_count(channels=channels)
        self.channels = channels
        classifier = MnistClassifier(n_features, width, generator=generator)
        self.features = classifier.features.requires_grad_(False)
        inputs = n_features * channels
        self.head = mlp(inputs, hidden, replicates=replicates, generator=generator)

    def seen(self, x: Tensor) -> Tensor:
        """What the heads see of images, (R, n, channels * n_features)."""
        check_shape(x=(x, f"R n {self.channels} 28 28"))
        found = self.features(x.flatten(0, 2)[:, None])
        return found.unflatten(0, x.shape[:3]).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.seen(x))
