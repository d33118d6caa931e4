"""Networks whose replicates train side by side: R independent copies behind one leading axis.

One file a family: `stacked` layers and perceptrons, `images`, `autoencoders`, `flows`. Those of
`stacks` and `residual` are one network each.
"""

from gan_ebm_utils.networks.autoencoders import Autoencoder as Autoencoder
from gan_ebm_utils.networks.flows import CouplingFlow as CouplingFlow
from gan_ebm_utils.networks.images import ConvDiscriminator as ConvDiscriminator
from gan_ebm_utils.networks.images import ConvGenerator as ConvGenerator
from gan_ebm_utils.networks.images import FeatureDiscriminator as FeatureDiscriminator
from gan_ebm_utils.networks.images import MnistClassifier as MnistClassifier
from gan_ebm_utils.networks.residual import ImageClassifier as ImageClassifier
from gan_ebm_utils.networks.residual import (
    ImageFeatureDiscriminator as ImageFeatureDiscriminator,
)
from gan_ebm_utils.networks.residual import sngan_discriminator as sngan_discriminator
from gan_ebm_utils.networks.residual import sngan_generator as sngan_generator
from gan_ebm_utils.networks.stacked import Confined as Confined
from gan_ebm_utils.networks.stacked import Experts as Experts
from gan_ebm_utils.networks.stacked import FourierFeatures as FourierFeatures
from gan_ebm_utils.networks.stacked import NoisyGenerator as NoisyGenerator
from gan_ebm_utils.networks.stacked import SpectralNorm as SpectralNorm
from gan_ebm_utils.networks.stacked import StackedBatchNorm as StackedBatchNorm
from gan_ebm_utils.networks.stacked import StackedLinear as StackedLinear
from gan_ebm_utils.networks.stacked import energy_mlp as energy_mlp
from gan_ebm_utils.networks.stacked import mlp as mlp
from gan_ebm_utils.networks.stacked import product_of_experts as product_of_experts
from gan_ebm_utils.networks.stacked import spectral_norm as spectral_norm
from gan_ebm_utils.networks.stacks import Statistics as Statistics
from gan_ebm_utils.networks.stacks import digit_classifier as digit_classifier
from gan_ebm_utils.networks.stacks import stack_discriminator as stack_discriminator
from gan_ebm_utils.networks.stacks import stack_generator as stack_generator
