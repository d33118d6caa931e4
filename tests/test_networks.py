"""Stacked replicates are separate networks; spectral normalisation bounds each of them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan_ebm_utils import losses
from gan_ebm_utils.base import randn, seeded
from gan_ebm_utils.entropy import nearest_neighbour_entropy
from gan_ebm_utils.networks import (
    Autoencoder,
    Confined,
    ConvDiscriminator,
    ConvGenerator,
    CouplingFlow,
    Experts,
    FeatureDiscriminator,
    FourierFeatures,
    MnistClassifier,
    NoisyGenerator,
    SpectralNorm,
    StackedBatchNorm,
    StackedLinear,
    energy_mlp,
    mlp,
    product_of_experts,
    spectral_norm,
)
from gan_ebm_utils.training import fit_discriminator


def rng(seed=0):
    return seeded(seed, "cpu")


# --- multilayer perceptrons ---


def single(stack, replicate, **kwargs):
    """The network of one replicate, as an R = 1 network."""
    network = mlp(**kwargs, replicates=1, generator=rng(9))
    state = {
        key: value if "frequencies" in key else value[replicate : replicate + 1]
        for key, value in stack.state_dict().items()
    }
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("options", [{}, {"out_features": 3}, {"fourier": (8, 2.0)}])
def test_a_stack_computes_what_its_networks_compute(options):
    kwargs = {"in_features": 2, "hidden": (16, 8), **options}
    stack, x = mlp(**kwargs, replicates=3, generator=rng()), randn(3, 5, 2, generator=rng(1))
    y = stack(x)
    assert y.shape == (3, 5, *([3] if "out_features" in options else []))
    for r in range(3):
        expected = single(stack, r, **kwargs)(x[r : r + 1])[0]
        torch.testing.assert_close(y[r], expected)
        assert not torch.allclose(y[r], single(stack, (r + 1) % 3, **kwargs)(x[r : r + 1])[0])


def test_the_first_layer_is_that_of_the_formula():
    layer, x = StackedLinear(2, 3, 4, generator=rng()), randn(4, 5, 2, generator=rng(1))
    expected = torch.einsum("rni,rio->rno", x, layer.weight) + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.abs().max() <= 2**-0.5


def test_the_last_layer_has_no_activation():
    y = mlp(2, (16,), activation="ReLU", generator=rng())(randn(1, 100, 2, generator=rng(1)))
    assert y.min() < 0 < y.max()


def test_gradients_of_one_replicate_do_not_see_the_others():
    network = mlp(2, (16,), replicates=2, generator=rng())
    x = randn(2, 5, 2, generator=rng(1))
    other = torch.stack([x[0], randn(5, 2, generator=rng(2))])
    parameters = list(network.parameters())
    first = torch.autograd.grad(network(x).square().sum(), parameters)
    second = torch.autograd.grad(network(other).square().sum(), parameters)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a[0], b[0])
    assert not torch.allclose(first[0][1], second[0][1])  # the control


def test_gradients_of_one_group_do_not_see_the_others():
    d = ConvDiscriminator(8, replicates=2, generator=rng())
    x = randn(2, 3, 1, 8, 8, generator=rng(1))
    other = torch.stack([x[0], randn(3, 1, 8, 8, generator=rng(2))])
    parameters = list(d.parameters())
    first = torch.autograd.grad(d(x).square().sum(), parameters)
    second = torch.autograd.grad(d(other).square().sum(), parameters)
    for a, b in zip(first, second, strict=True):
        (mine, theirs), (mine_again, theirs_again) = a.chunk(2), b.chunk(2)
        torch.testing.assert_close(mine, mine_again)
        assert not torch.allclose(theirs, theirs_again)  # the control


def test_fourier_features_are_those_of_the_formula():
    features, x = FourierFeatures(2, 4, 3.0, generator=rng()), randn(1, 6, 2, generator=rng(1))
    phase = x @ features.frequencies
    torch.testing.assert_close(features(x), torch.cat([x, phase.cos(), phase.sin()], dim=-1))
    assert features.out_features == features(x).shape[-1] == 10
    many = FourierFeatures(1, 100_000, 3.0, generator=rng()).frequencies
    assert abs(many.std() - 3) < 5 * 3 / (2 * 100_000) ** 0.5


def test_no_constructor_touches_the_global_generator():
    before = torch.random.get_rng_state()
    mlp(2, (4,), generator=rng(), fourier=(3, 1.0))
    mlp(2, (4,), generator=rng(), spectral=True)
    ConvGenerator(8, generator=rng())
    ConvDiscriminator(8, generator=rng())
    MnistClassifier(generator=rng())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_weights_come_from_the_generator():
    def weights(build, seed):
        return nn.utils.parameters_to_vector(build(generator=rng(seed)).parameters())

    builds = (
        lambda generator: mlp(2, (4,), generator=generator),
        lambda generator: ConvGenerator(8, generator=generator),
        lambda generator: ConvDiscriminator(8, generator=generator),
        MnistClassifier,
    )
    for build in builds:
        first = weights(build, 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            assert torch.equal(weights(build, 0), first)
        assert not torch.equal(weights(build, 1), first)  # the control


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"in_features": 0, "hidden": (4,)}, "in_features must be .* 1, got 0"),
        ({"in_features": 2, "hidden": (0,)}, "out_features must be .* 1, got 0"),
        ({"in_features": 2, "hidden": (4,), "replicates": 0}, "replicates must be .* 1, got 0"),
        ({"in_features": 2, "hidden": (4,), "activation": "Linear"}, "torch.nn.*got 'Linear'"),
        ({"in_features": 2, "hidden": (4,), "fourier": (4, 1.0), "spectral": True}, "1-Lipschitz"),
        ({"in_features": 2, "hidden": (4,), "fourier": (4, -1.0)}, "scale must be positive"),
    ],
)
def test_wrong_sizes_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        mlp(**kwargs, generator=rng())


@pytest.mark.parametrize("shape", [(5, 2), (3, 5, 2), (2, 5, 3)])
def test_wrong_inputs_are_named(shape):
    network = mlp(2, (4,), replicates=2, generator=rng())
    with pytest.raises(ValueError, match=r"x must be \(2, n, 2\), got"):
        network(torch.zeros(shape))


# --- spectral normalisation ---


def largest(weight):
    return torch.linalg.svdvals(weight)[..., 0]


def test_each_matrix_of_a_stack_has_norm_1():
    layer = StackedLinear(20, 10, 4, generator=rng())
    with torch.no_grad():
        layer.weight *= torch.tensor([0.1, 1.0, 5.0, 30.0])[:, None, None]
    spectral_norm(layer)
    for _ in range(20):  # training steps follow the norm
        layer(torch.zeros(4, 1, 20))
    torch.testing.assert_close(largest(layer.weight), torch.ones(4), rtol=1e-2, atol=0)


def test_a_step_does_not_change_the_norm():
    # W / s(W) is blind to the scale of W, so its gradient is orthogonal to W; with s held constant
    # it would not be.
    raw = randn(2, 6, 4, generator=rng())
    norm, slope = SpectralNorm(raw), randn(2, 6, 4, generator=rng(2))

    def along(function):
        weight = raw.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((slope * function(weight)).sum(), weight)
        return (gradient * raw).sum(dim=(1, 2)).abs() / (gradient.norm() * raw.norm())

    assert along(norm).max() < 1e-5
    assert along(lambda w: w / largest(w.detach())[:, None, None]).max() > 1e-2  # the control


def test_two_batches_in_one_step_can_be_differentiated():
    # Real and generated data pass before the step backwards; a buffer written in place would fail.
    network = mlp(2, (8,), replicates=2, spectral=True, generator=rng())
    real, fake = randn(2, 3, 2, generator=rng(1)), randn(2, 3, 2, generator=rng(2))
    (network(real) - network(fake)).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_pytorchs_own_takes_the_stack_for_one_matrix():
    layer = nn.utils.parametrizations.spectral_norm(StackedLinear(20, 10, 4, generator=rng()))
    for _ in range(20):
        layer(torch.zeros(4, 1, 20))
    assert (largest(layer.weight) - 1).abs().max() > 0.1


def test_evaluation_does_not_move_the_estimate():
    norm = SpectralNorm(torch.eye(3).expand(2, 3, 3))
    weight = randn(2, 3, 3, generator=rng(1))
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    norm(weight)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
    norm.train()
    norm(weight)
    assert not torch.equal(before["left"], norm.left)


def steepest(network):
    """Largest |f(x) - f(y)| / |x - y| over random close pairs, all replicates."""
    x = 3 * randn(2, 2000, 2, generator=rng(3))
    y = x + 0.01 * randn(2, 2000, 2, generator=rng(4))
    return ((network(x) - network(y)).abs() / (x - y).norm(dim=2)).max()


def test_a_normalised_network_is_1_lipschitz():
    def scaled(spectral):
        network = mlp(
            2, (32, 32), replicates=2, activation="ReLU", spectral=spectral, generator=rng()
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter *= 10
        for _ in range(20):
            network(torch.zeros(2, 1, 2))
        return network.eval()

    assert steepest(scaled(spectral=True)) <= 1.01
    assert steepest(scaled(spectral=False)) > 2


# --- convolutions ---


def conv_single(stack, replicate, network):
    """Copy the weights of one replicate, the blocks of the groups, into an R = 1 network."""
    state = {}
    for key, value in stack.state_dict().items():
        if key.startswith("linear"):
            state[key] = value[replicate : replicate + 1]
        else:
            state[key] = value.chunk(stack.replicates)[replicate]
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_compute_what_their_networks_compute(size, channels):
    options = {"image_size": size, "channels": channels, "width": 4}
    g = ConvGenerator(**options, latent_dim=5, replicates=3, generator=rng())
    d = ConvDiscriminator(**options, replicates=3, generator=rng(1))
    z = randn(3, 2, 5, generator=rng(2))
    x = g(z)
    assert x.shape == (3, 2, channels, size, size) and x.abs().max() < 1
    logits = d(x)
    assert logits.shape == (3, 2)
    for r in range(3):
        one_g = conv_single(g, r, ConvGenerator(**options, latent_dim=5, generator=rng(8)))
        one_d = conv_single(d, r, ConvDiscriminator(**options, generator=rng(8)))
        torch.testing.assert_close(x[r : r + 1], one_g(z[r : r + 1]))
        torch.testing.assert_close(logits[r : r + 1], one_d(x[r : r + 1]))
    assert not torch.allclose(x[0], g(z.flip(0))[0])


def test_a_logit_depends_on_its_own_image_alone():
    d = ConvDiscriminator(8, generator=rng())
    x = randn(1, 4, 1, 8, 8, generator=rng(1))
    torch.testing.assert_close(d(x)[:, :1], d(x[:, :1]))
    normalised = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm2d(1), nn.Unflatten(0, (1, -1)), d)
    assert not torch.allclose(normalised(x)[:, :1], normalised(x[:, :1]))  # the control


def test_the_classifier_scores_each_image_through_its_features():
    classifier = MnistClassifier(n_features=12, width=4, generator=rng())
    images = randn(5, 1, 28, 28, generator=rng(1))
    features, logits = classifier.features(images), classifier(images)
    assert features.shape == (5, 12) and logits.shape == (5, 10)
    assert classifier.features.num_features == classifier.num_features == 12
    torch.testing.assert_close(classifier.head(features), logits)
    torch.testing.assert_close(classifier(images[:1]), logits[:1])
    assert not torch.allclose(logits[0], logits[1])  # the control


@pytest.mark.parametrize("size", [4, 10, 0, 8.0])
def test_wrong_image_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"multiple of 4 and at least 8, got {size}"):
        ConvGenerator(size, generator=rng())


def test_wrong_images_are_named():
    with pytest.raises(ValueError, match=r"x must be \(2, n, 1, 8, 8\); got \(2, 3, 1, 9, 9\)"):
        ConvDiscriminator(8, replicates=2, generator=rng())(torch.zeros(2, 3, 1, 9, 9))
    with pytest.raises(ValueError, match=r"images must be \(n, 1, 28, 28\); got \(2, 1, 8, 8\)"):
        MnistClassifier(generator=rng())(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"x must be \(1, n, 16\), got \(1, 3, 5\)"):
        ConvGenerator(8, generator=rng())(torch.zeros(1, 3, 5))


def has_law(values, variance, kurtosis):
    """Whether mean and variance are 0 and `variance` within 5 standard errors of i.i.d. draws."""
    n = values.numel()
    mean_error, variance_error = (variance / n) ** 0.5, variance * ((kurtosis - 1) / n) ** 0.5
    return bool(
        abs(values.mean()) < 5 * mean_error and abs(values.var() - variance) < 5 * variance_error
    )


def test_linear_layers_start_as_pytorchs_do():
    layer = StackedLinear(50, 200, 10, generator=rng())
    for values in (layer.weight, layer.bias):  # uniform on +-1/sqrt(50), as nn.Linear(50, 200)
        assert values.abs().max() <= 50**-0.5
        assert has_law(values, 1 / 150, kurtosis=9 / 5)
        assert not has_law(1.2 * values, 1 / 150, kurtosis=9 / 5)  # the control
    assert has_law(nn.Linear(50, 2000).weight, 1 / 150, kurtosis=9 / 5)


def test_convolutions_start_with_the_variance_of_he():
    # 2 / inputs seen: 4 x 4 of them per channel; a transposed kernel of stride 2 shows 2 x 2.
    g = ConvGenerator(8, channels=3, width=32, replicates=4, generator=rng())
    d = ConvDiscriminator(8, channels=3, width=32, replicates=4, generator=rng())
    seen = {g.up1: 64 * 4, g.up2: 32 * 4, d.down1: 3 * 16, d.down2: 32 * 16}
    for layer, n_inputs in seen.items():
        assert has_law(layer.weight, 2 / n_inputs, kurtosis=3)
        assert not has_law(layer.weight, 1 / n_inputs, kurtosis=3)  # the control
        assert (layer.bias == 0).all()
    for layer in MnistClassifier(generator=rng()).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert has_law(layer.weight, 2 / layer.weight[0].numel(), kurtosis=3)


def test_a_network_is_layers_and_activations():
    network, x = mlp(2, (5, 4), replicates=2, activation="Tanh", generator=rng()), rng(1)
    x = randn(2, 6, 2, generator=x)
    (w1, b1, w2, b2, w3, b3) = network.parameters()
    expected = (((x @ w1 + b1).tanh() @ w2 + b2).tanh() @ w3 + b3)[..., 0]
    torch.testing.assert_close(network(x), expected)
    other = (F.silu(F.silu(x @ w1 + b1) @ w2 + b2) @ w3 + b3)[..., 0]
    assert not torch.allclose(network(x), other)  # the control


def test_image_networks_are_the_layers_that_they_name():
    g, d = ConvGenerator(8, generator=rng()), ConvDiscriminator(8, generator=rng(1))
    z = randn(1, 3, 16, generator=rng(2))
    h = F.silu(g.linear(z)).reshape(3, 32, 2, 2)
    for layer, after in ((g.up1, F.silu), (g.up2, torch.tanh)):
        h = after(F.conv_transpose2d(h, layer.weight, layer.bias, stride=2, padding=1))
    torch.testing.assert_close(g(z)[0], h)
    for layer in (d.down1, d.down2):
        h = F.silu(F.conv2d(h, layer.weight, layer.bias, stride=2, padding=1))
    torch.testing.assert_close(d(g(z)), d.linear(h.reshape(1, 3, -1))[..., 0])


def test_the_norm_is_right_before_the_first_step():
    layer = StackedLinear(8, 8, 20, generator=rng())
    u, v = (torch.linalg.qr(randn(20, 8, 8, generator=rng(k)))[0] for k in (1, 2))
    values = torch.tensor([10.0, 8, 7, 6, 5, 4, 3, 2])
    with torch.no_grad():
        layer.weight.copy_(u @ torch.diag(values) @ v.mT)
    spectral_norm(layer).eval()
    largest = torch.linalg.svdvals(layer.weight)[:, 0]
    torch.testing.assert_close(largest, torch.ones(20), rtol=1e-2, atol=0)


def test_the_norm_follows_training():
    network = mlp(2, (64, 64), replicates=3, activation="ReLU", spectral=True, generator=rng())
    fit_discriminator(
        network,
        lambda size, generator: randn(*size, 2, generator=generator),
        lambda size, generator: randn(*size, 2, generator=generator) + 2,
        losses.wasserstein_d_loss, 100, rng(1), replicates=3, batch_size=64, learning_rate=5e-3,
    )  # fmt: skip
    for layer in network.eval():
        if isinstance(layer, StackedLinear):
            largest = torch.linalg.svdvals(layer.weight)[:, 0]
            torch.testing.assert_close(largest, torch.ones(3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("out_features", [1, 3])
def test_a_pass_is_one_power_step(out_features, monkeypatch):
    calls = []
    step = SpectralNorm._power_step
    monkeypatch.setattr(
        SpectralNorm, "_power_step", lambda self, weight: calls.append(1) or step(self, weight)
    )
    layer = spectral_norm(StackedLinear(4, out_features, 2, generator=rng()))
    calls.clear()
    layer(torch.zeros(2, 5, 4))
    assert len(calls) == 1


def test_one_column_is_the_same_affine_map():
    layer = StackedLinear(7, 1, 3, generator=rng())
    x = randn(3, 5, 7, generator=rng(1))
    expected = torch.einsum("rni,rio->rno", x, layer.weight) + layer.bias
    torch.testing.assert_close(layer(x), expected)


# --- energies ---


def test_a_confined_energy_is_its_function_and_a_quadratic():
    energy = energy_mlp(2, (8,), replicates=3, generator=rng(), scale=1.5)
    same = mlp(2, (8,), replicates=3, generator=rng())
    x = randn(3, 7, 2, generator=rng(1))
    torch.testing.assert_close(energy(x), same(x) + x.square().sum(dim=2) / (2 * 1.5**2))
    far = 1e3 * torch.eye(2).expand(3, 2, 2)
    assert (energy(far) > 1e5).all() and not (same(far) > 1e5).any()
    with pytest.raises(ValueError, match="scale must be positive"):
        energy_mlp(2, (8,), generator=rng(), scale=0.0)
    with pytest.raises(TypeError, match="multiple values for argument 'out_features'"):
        energy_mlp(2, (8,), generator=rng(), out_features=2)
    pictures = randn(2, 3, 1, 8, 8, generator=rng(2))
    function = ConvDiscriminator(8, replicates=2, generator=rng())
    expected = function(pictures) + pictures.square().sum(dim=(2, 3, 4)) / 8
    torch.testing.assert_close(Confined(function, 2.0)(pictures), expected)


def test_a_noisy_generator_adds_the_last_latents():
    images = ConvGenerator(8, latent_dim=3, replicates=2, generator=rng())
    noisy = NoisyGenerator(images, 3, 0.5)
    z = torch.randn(2, 4, 3 + 64, generator=rng())
    expected = images(z[..., :3]) + 0.5 * z[..., 3:].reshape(2, 4, 1, 8, 8)
    torch.testing.assert_close(noisy(z), expected)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        NoisyGenerator(images, 3, 0)


def test_discriminators_on_features_share_them_and_train_their_heads_alone():
    discriminator = FeatureDiscriminator((8,), 12, 4, replicates=2, generator=rng())
    images = torch.rand(2, 3, 1, 28, 28, generator=rng(1)) * 2 - 1
    images.requires_grad_()
    logits = discriminator(images)
    features = torch.stack([discriminator.features(part) for part in images])
    torch.testing.assert_close(logits, discriminator.head(features))
    logits.sum().backward()
    assert images.grad.abs().amax(dim=(2, 3, 4)).min() > 0  # chains in latent space need it
    assert all(weight.grad is None for weight in discriminator.features.parameters())
    assert all(weight.grad is not None for weight in discriminator.head.parameters())
    with pytest.raises(ValueError, match=r"x must be \(R, n, 1, 28, 28\); got \(3, 1, 28, 28\)"):
        discriminator(images[0])


def test_a_discriminator_of_stacks_sees_each_channel_as_a_digit():
    discriminator = FeatureDiscriminator((8,), 12, 4, channels=3, generator=rng())
    stacks = torch.rand(1, 5, 3, 28, 28, generator=rng(1)) * 2 - 1
    channels = [discriminator.features(stacks[0, :, c : c + 1]) for c in range(3)]
    expected = discriminator.head(torch.cat(channels, dim=1)[None])
    torch.testing.assert_close(discriminator(stacks), expected)
    # A control: the order of the channels counts.
    assert not torch.allclose(discriminator(stacks.flip(2)), expected)
    with pytest.raises(ValueError, match=r"x must be \(R, n, 3, 28, 28\); got \(1, 5, 1, 28, 28\)"):
        discriminator(stacks[:, :, :1])


BUILDERS = {
    "mlp": lambda g: mlp(2, (8,), generator=g),
    "mlp, spectral": lambda g: mlp(2, (8,), generator=g, spectral=True),
    "mlp, fourier": lambda g: mlp(2, (8,), generator=g, fourier=(4, 1.0)),
    "energy_mlp": lambda g: energy_mlp(2, (8,), generator=g),
    "ConvGenerator": lambda g: ConvGenerator(8, latent_dim=2, width=2, generator=g),
    "Autoencoder": lambda g: Autoencoder((2,), (4,), 3, generator=g),
    "ConvDiscriminator": lambda g: ConvDiscriminator(8, width=2, generator=g),
    "MnistClassifier": lambda g: MnistClassifier(8, 2, generator=g),
    "FeatureDiscriminator": lambda g: FeatureDiscriminator((8,), 8, 2, generator=g),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_follow_the_generator_of_random_numbers(name):
    """Its device, not the user's default one, and its numbers, not the global ones."""
    plain = BUILDERS[name](rng()).state_dict()
    state = torch.random.get_rng_state()
    with torch.device("meta"):  # where tensors have no content
        other = BUILDERS[name](rng()).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[key], other[key]) for key in plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_networks_of_images_are_float32_whatever_the_default(dtype):
    g = torch.Generator().manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        images = ConvGenerator(8, generator=g)(torch.zeros(1, 2, 16, dtype=torch.float32))
        assert ConvDiscriminator(8, generator=g)(images).dtype == torch.float32
        pictures = torch.zeros(1, 2, 1, 28, 28, dtype=torch.float32)
        assert FeatureDiscriminator((8,), generator=g)(pictures).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# --- autoencoders ---


@pytest.mark.parametrize(("event", "fourier"), [((2,), (4, 1.0)), ([1, 8, 8], None)])
def test_an_autoencoder_is_an_encoder_and_a_decoder(event, fourier):
    options = {"event": event, "hidden": [7, 5], "code_dim": 3, "replicates": 2}
    network = Autoencoder(**options, fourier=fourier, generator=rng())
    x = randn(2, 9, *event, generator=rng(1))
    codes = network.encode(x)
    assert codes.shape == (2, 9, 3)
    assert torch.equal(network(x), network.decoder(codes).reshape(x.shape))
    sizes = [layer.weight.shape[1:] for layer in network.decoder if hasattr(layer, "weight")]
    assert sizes == [(3, 5), (5, 7), (7, math.prod(event))]
    # A replicate sees its own samples alone.
    other = torch.stack([x[0], x[1] + 1])
    assert torch.equal(network(other)[0], network(x)[0])
    assert not torch.allclose(network(other)[1], network(x)[1])


def test_samples_of_another_shape_are_named():
    network = Autoencoder((1, 8, 8), (5,), 3, replicates=2, generator=rng())
    with pytest.raises(ValueError, match=r"x must be \(2, n, 1, 8, 8\); got \(2, 4, 1, 9, 9\)"):
        network(torch.zeros(2, 4, 1, 9, 9))
    with pytest.raises(ValueError, match=r"event\[1\] must be a whole number of at least 1, got 0"):
        Autoencoder((1, 0), (5,), 3, generator=rng())
    with pytest.raises(ValueError, match="code_dim|out_features"):
        Autoencoder((2,), (5,), 0, generator=rng())


# --- batch normalisation ---


def test_each_replicate_and_unit_is_normalised_by_itself():
    x = 5 * randn(3, 400, 2, generator=rng()) + torch.arange(3.0)[:, None, None]
    norm = StackedBatchNorm(2, 3)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
        norm.bias.copy_(torch.arange(6.0))
    y = norm(x)
    for r in range(3):
        own = nn.BatchNorm1d(2)
        with torch.no_grad():
            own.weight.copy_(norm.weight[2 * r : 2 * r + 2])
            own.bias.copy_(norm.bias[2 * r : 2 * r + 2])
        torch.testing.assert_close(y[r], own(x[r]))
        torch.testing.assert_close(norm.running_var[2 * r : 2 * r + 2], own.running_var)
    norm.eval()
    torch.testing.assert_close(norm(x[:, :7]), norm(x)[:, :7])  # depends on no batch
    norm.train()
    assert not torch.allclose(norm(x[:, :7]), norm(x)[:, :7])  # the control


def test_hidden_layers_are_normalised_and_the_last_is_not():
    network = mlp(2, (8, 8), 3, 2, batch_norm=True, generator=rng())
    kinds = [type(layer).__name__ for layer in network]
    hidden = ["StackedLinear", "StackedBatchNorm", "SiLU"]
    assert kinds == [*hidden, *hidden, "StackedLinear"]
    plain = mlp(2, (8, 8), 3, 2, generator=rng())
    assert all(torch.equal(network[3 * i].weight, plain[2 * i].weight) for i in range(3))
    assert mlp(2, (8,), batch_norm=True, generator=rng())(torch.ones(1, 5, 2)).shape == (1, 5)


def test_bad_input_of_batch_normalisation():
    with pytest.raises(ValueError, match="features"):
        StackedBatchNorm(0, 2)
    with pytest.raises(ValueError, match=r"x must be \(3, n, 2\); got \(2, 5, 3\)"):
        StackedBatchNorm(2, 3)(torch.zeros(2, 5, 3))


# --- products of experts ---


def test_the_energy_of_a_product_of_experts():
    energy = product_of_experts(2, (8,), 4, 3, scale=1.5, generator=rng())
    with torch.no_grad():
        energy.function.bias.normal_(generator=rng(1))
    x = randn(3, 5, 2, generator=rng(2))
    votes, b = energy.function.network(x), energy.function.bias
    assert votes.shape == (3, 5, 4)
    expected = x.square().sum(dim=2) / (2 * 1.5**2) - (b * x).sum(dim=2)
    expected = expected - (1 + votes.exp()).log().sum(dim=2)
    torch.testing.assert_close(energy(x), expected)


def test_the_confining_term_holds_the_experts():
    energy = product_of_experts(2, (8,), 4, 3, generator=rng())
    far = 1e4 * F.normalize(randn(3, 100, 2, generator=rng(1)), dim=2)
    with torch.no_grad():
        assert (energy(far) > 0).all()
        assert (energy.function(far).amin(dim=1) < -100).all()  # the control, without the term
    assert isinstance(energy, Confined) and isinstance(energy.function, Experts)


# --- invertible generators ---


def flow_away_from_the_identity():
    flow = CouplingFlow(4, (16,), 3, generator=rng()).double()
    with torch.no_grad():
        for net in flow.nets:
            net[-1].weight.mul_(10)
    return flow


def test_the_determinant_of_a_flow_is_that_of_its_jacobian():
    flow, z = flow_away_from_the_identity(), randn(3, 1, 2, generator=rng(1)).double()
    x, log_det = flow.with_log_det(z)
    torch.testing.assert_close(flow(z), x)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow(z).sum(dim=0)[0], z)[:, :, 0]
    expected = torch.stack([jacobian[:, r].det().abs().log() for r in range(3)])
    torch.testing.assert_close(log_det[:, 0], expected)
    assert (log_det.abs() > 0.01).all()  # the control: it is not that of the identity


def test_the_entropy_of_a_flow_is_that_of_its_neighbours():
    flow, z = flow_away_from_the_identity(), randn(3, 4000, 2, generator=rng(1)).double()
    with torch.no_grad():
        found, normal = flow.entropy(z), math.log(2 * math.pi * math.e)
        estimated = nearest_neighbour_entropy(flow(z))
    torch.testing.assert_close(found, estimated, atol=0.1, rtol=0)
    assert (found - normal).abs().max() > 0.3  # the control: it is not that of the latents


def test_a_flow_takes_latents_of_the_plane():
    with pytest.raises(ValueError, match=r"z must be \(R, n, 2\)"):
        CouplingFlow(generator=rng())(torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="n_layers"):
        CouplingFlow(0, generator=rng())
