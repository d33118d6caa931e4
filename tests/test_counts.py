"""Every count of the package is a whole number: 2.5 chains and True steps are refused by name."""

import numpy as np
import pytest
import torch
from torch import nn

from gan_ebm_utils import losses, networks, refine, samplers, training
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.datasets import exact_gan, gaussian

GAN, LAW = exact_gan().gan, gaussian([0.0, 0.0])


def rng():
    return seeded(0, "cpu")


def quadratic(x):
    return x.square().sum(dim=-1) / 2


def refined(sampler, **settings):
    return sampler(GAN, **{"n": 3, "generator": rng(), **settings})


def trained(**settings):
    small = Gan(
        networks.mlp(2, (4,), 2, generator=rng()), networks.mlp(2, (4,), generator=rng()), 2
    )
    options = {"n_steps": 1, "generator": rng(), **settings}
    return training.train_gan(
        small, LAW.sample, losses.gan_d_loss, losses.non_saturating_g_loss, **options
    )


def fitted(**settings):
    options = {"n_steps": 1, "generator": rng(), **settings}
    network = networks.mlp(2, (4,), generator=rng())
    return training.fit_discriminator(network, LAW.sample, LAW.sample, losses.gan_d_loss, **options)


def raised(**settings):
    options = {"n_steps": 1, "generator": rng(), **settings}
    energy = networks.energy_mlp(2, (4,), generator=rng())
    return training.train_ebm(energy, LAW.sample, lambda x, generator: x, **options)


def annealed(**settings):
    options = {"n_levels": 2, "step_size": 0.1, "generator": rng(), **settings}
    return samplers.annealed_log_partition(quadratic, LAW, **options)


def buffer(**settings):
    return samplers.ReplayBuffer(LAW.sample, **{"capacity": 5, "generator": rng(), **settings})


def chain(**settings):
    kernel, start = samplers.langevin(quadratic, 0.1), torch.zeros(3, 2)
    return samplers.run_chain(kernel, start, generator=rng(), **{"n_steps": 3, **settings})


def rejected(**settings):
    options = {"n": 3, "log_bound": 0.0, "generator": rng(), **settings}
    return samplers.rejection_sample(lambda x: -quadratic(x), LAW.sample, **options)


def convolutions(network, **settings):
    return network(**{"image_size": 8, "width": 4, **settings}, generator=rng())


SAMPLERS = ("drs", "mh_gan", "isir_gan", "ddls", "dgflow", "dot")
COUNTS = [
    *((f"{s}", "n", lambda n, s=s: refined(getattr(refine, s), n=n)) for s in SAMPLERS),
    *(
        (f"{s}", "replicates", lambda n, s=s: refined(getattr(refine, s), replicates=n))
        for s in SAMPLERS
    ),
    *(
        (f"{s}", "n_steps", lambda n, s=s: refined(getattr(refine, s), n_steps=n))
        for s in SAMPLERS[1:]
    ),
    *(
        ("drs", name, lambda n, name=name: refined(refine.drs, **{name: n}))
        for name in ("n_pilot", "max_proposals", "batch_size")
    ),
    ("isir_gan", "n_candidates", lambda n: refined(refine.isir_gan, n_candidates=n)),
    *(
        (
            "lipschitz_estimate",
            name,
            lambda n, name=name: refine.lipschitz_estimate(GAN, rng(), **{name: n}),
        )
        for name in ("replicates", "n_pairs", "n_draws")
    ),
    *(
        (make.__name__, name, lambda n, make=make, name=name: make(**{name: n}))
        for make in (trained, fitted, raised)
        for name in ("n_steps", "replicates", "batch_size")
    ),
    ("trained", "d_steps", lambda n: trained(d_steps=n)),
    ("annealed", "n_levels", lambda n: annealed(n_levels=n)),
    ("annealed", "n_chains", lambda n: annealed(n_chains=n)),
    ("annealed", "replicates", lambda n: annealed(replicates=n)),
    ("buffer", "capacity", lambda n: buffer(capacity=n)),
    ("buffer", "replicates", lambda n: buffer(replicates=n)),
    ("buffer", "n", lambda n: buffer().draw(n, rng())),
    ("chain", "n_steps", lambda n: chain(n_steps=n)),
    ("chain", "thin", lambda n: chain(thin=n)),
    ("rejected", "n", lambda n: rejected(n=n)),
    ("isir", "n_candidates", lambda n: samplers.isir(lambda x: -quadratic(x), LAW.sample, n)),
    ("mlp", "in_features", lambda n: networks.mlp(n, (4,), generator=rng())),
    ("mlp", "out_features", lambda n: networks.mlp(2, (n,), generator=rng())),
    ("mlp", "replicates", lambda n: networks.mlp(2, (4,), replicates=n, generator=rng())),
    ("fourier", "n_frequencies", lambda n: networks.FourierFeatures(2, n, 1.0, generator=rng())),
    ("noisy", "latent_dim", lambda n: networks.NoisyGenerator(nn.Identity(), n, 0.1)),
    *(
        (
            network.__name__,
            name,
            lambda n, network=network, name=name: convolutions(network, **{name: n}),
        )
        for network in (networks.ConvGenerator, networks.ConvDiscriminator)
        for name in ("channels", "width", "replicates")
    ),
    *(
        (
            "classifier",
            name,
            lambda n, name=name: networks.MnistClassifier(**{name: n}, generator=rng()),
        )
        for name in ("n_features", "width")
    ),
]


@pytest.mark.parametrize("count", [2.5, 8.0, True, "3"])
@pytest.mark.parametrize(
    ("name", "make"), [row[1:] for row in COUNTS], ids=[f"{row[0]}-{row[1]}" for row in COUNTS]
)
def test_a_count_is_a_whole_number(name, make, count):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least [123], got "):
        make(count)


def test_whole_numbers_of_numpy_are_counts():
    few = np.int64(3)
    assert refined(refine.mh_gan, n=few, n_steps=few, replicates=few).samples.shape == (3, 3, 2)
    assert chain(n_steps=few).positions.shape == (3, 3, 2)
    assert trained(n_steps=few).d_loss.shape == (3, 1)
    network = networks.mlp(2, (few,), replicates=few, generator=rng())
    assert network(randn(3, 5, 2, generator=rng())).shape == (3, 5)
