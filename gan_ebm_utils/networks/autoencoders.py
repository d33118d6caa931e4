"""Autoencoders, whose reconstruction error is the energy of EBGAN and BEGAN."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gan_ebm_utils.base import check_count, check_shape
from gan_ebm_utils.networks.stacked import mlp


class Autoencoder(nn.Module):
    """R autoencoders r(x) = decoder(encoder(x)), samples (R, n, *event) to their reconstructions.

    `encode(x)` gives the codes, (R, n, code_dim). The encoder is a multilayer perceptron with the
    `hidden` layers, the decoder one with the same layers in reverse order. `event` is the shape of
    one sample, such as (2,) or (1, 28, 28). `fourier` = (n_frequencies, scale) puts the
    `FourierFeatures` of x before the encoder.

    Raises ValueError for sizes below 1 and, when called, for samples of another shape.

    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> autoencoder = Autoencoder((1, 8, 8), (64,), 16, replicates=5, generator=g)
    >>> x = torch.zeros(5, 3, 1, 8, 8)
    >>> autoencoder(x).shape, autoencoder.encode(x).shape
    (torch.Size([5, 3, 1, 8, 8]), torch.Size([5, 3, 16]))
    """

    def __init__(
        self,
        event: Sequence[int],
        hidden: Sequence[int],
        code_dim: int,
        replicates: int = 1,
        *,
        generator: torch.Generator,
        activation: str = "SiLU",
        fourier: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.event = tuple(event)
        check_count(**{f"event[{axis}]": size for axis, size in enumerate(self.event)})
        size, hidden = math.prod(self.event), tuple(hidden)
        how = {"replicates": replicates, "generator": generator, "activation": activation}
        self.replicates = replicates
        self.encoder = mlp(size, hidden, code_dim, fourier=fourier, **how)
        self.decoder = mlp(code_dim, hidden[::-1], size, **how)

    def encode(self, x: Tensor) -> Tensor:
        check_shape(x=(x, " ".join(map(str, (self.replicates, "n", *self.event)))))
        return self.encoder(x.flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)).unflatten(2, self.event)
