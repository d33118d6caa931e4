"""Networks whose replicates train side by side: R independent copies behind one leading axis.

One file a family: `stacked` layers and perceptrons of the plane, and `images`.
"""

from gan_ebm_utils.networks.images import (
    ConvDiscriminator,
    ConvGenerator,
    FeatureDiscriminator,
    MnistClassifier,
)
from gan_ebm_utils.networks.stacked import (
    Confined,
    FourierFeatures,
    NoisyGenerator,
    Scalar,
    SpectralNorm,
    StackedLinear,
    energy_mlp,
    mlp,
    spectral_norm,
)

__all__ = [
    "Confined",
    "ConvDiscriminator",
    "ConvGenerator",
    "FeatureDiscriminator",
    "FourierFeatures",
    "MnistClassifier",
    "NoisyGenerator",
    "Scalar",
    "SpectralNorm",
    "StackedLinear",
    "energy_mlp",
    "mlp",
    "spectral_norm",
]
