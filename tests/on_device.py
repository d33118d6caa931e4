"""Every public function, on tensors of the device that GAN_EBM_DEVICE names.

    GAN_EBM_DEVICE=cuda pytest tests/on_device.py

A case calls one function with inputs that lie `at` a device and returns what must lie there, too;
scores lie on the CPU. It runs with the inputs on the device, and with the inputs on one device
while `default_device()` is the other. On a machine without a GPU `test_devices.py` runs this file
on the stand-in of `standin.py`.
"""

import importlib
import inspect
import pkgutil

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import gan_ebm_utils
from gan_ebm_utils import (
    base,
    calibration,
    checkpoints,
    datasets,
    energies,
    entropy,
    losses,
    metrics,
    networks,
    plotting,
    refine,
    runs,
    samplers,
    training,
)
from gan_ebm_utils.base import Gan, default_device, rand, randn
from gan_ebm_utils.claims import claim

DEVICE = default_device()
CPU = torch.device("cpu")
BOX = (-3.0, 3.0, -3.0, 3.0)
R = 2


def rng(at):
    return torch.Generator(at).manual_seed(0)


def normal(at, *shape):
    return randn(*shape, generator=rng(at))


def gan_at(at):
    """A GAN of the plane with 3 latents."""
    g = rng(at)
    generator = networks.mlp(3, (8,), 2, R, generator=g)
    return Gan(generator, networks.mlp(2, (8,), replicates=R, generator=g), 3)


def energy_at(at):
    return networks.energy_mlp(2, (8,), replicates=R, generator=rng(at))


def quadratic(x):
    return x.square().sum(dim=-1) / 2


def chain(kernel, at, **settings):
    return samplers.run_chain(kernel, normal(at, R, 5, 2), 4, rng(at), **settings)


def fresh(size, generator):
    return randn(*size, 2, generator=generator)


def law(name):
    """A data set's points and their log density, and both again for another batch shape."""

    def case(at):
        made = getattr(datasets, name)(*([[0.0, 1.0]] if name == "gaussian" else []))
        x = made.sample((R, 5), rng(at))
        return x, [made.log_prob(x)] if made.log_prob else []

    return case


def loss(name):
    return lambda at: getattr(losses, name)(normal(at, R, 5), normal(at, R, 5))


def divergence(name):
    def case(at):
        f, v = getattr(losses, name), normal(at, R, 5)
        parts = f.f(v.exp()), f.output(v), f.conjugate(v), f.log_ratio(v)
        return *parts, f.bound(v, v), f.d_loss(v, v)

    return case


def refined(name, **settings):
    def case(at):
        done = getattr(refine, name)(gan_at(at), 5, rng(at), replicates=R, **settings)
        return done.samples, done.latents, done.acceptance_rate

    return case


def network(build, *shape):
    def case(at):
        built = build(rng(at))
        return built, built(normal(at, *shape))

    return case


def flow(at):
    made, z = networks.CouplingFlow(2, (8,), R, generator=rng(at)), normal(at, R, 5, 2)
    return made, made(z), made.entropy(z)


def train(name, *arguments, **settings):
    def case(at):
        gan = gan_at(at)
        law = datasets.gaussian_grid().sample
        return gan, getattr(training, name)(gan, law, *arguments, 2, rng(at), replicates=R)

    return case


def exact(at):
    known = datasets.exact_gan()
    x = known.gan.generator(normal(at, R, 5, 2))
    return x, known.gan.discriminator(x), known.data.log_prob(x), known.generated.log_prob(x)


def counted(at):
    gan = gan_at(at)
    with base.count_calls(gan.discriminator) as calls:
        value = gan.discriminator(normal(at, R, 5, 2).requires_grad_())
        value.sum().backward()
    assert calls() == (10, 10)
    return value


def buffer(at):
    rests = samplers.ReplayBuffer(fresh, 10, rng(at), R, fresh_share=0.5)
    drawn = rests.draw(4, rng(at))
    rests.store(drawn + 1)
    return drawn, rests.positions


def persistent(at):
    rests = samplers.ReplayBuffer(fresh, 10, rng(at), R)
    kernel = samplers.langevin(quadratic, 0.1)
    return training.persistent(kernel, 2, rests)(normal(at, R, 4, 2), rng(at))


def negatives(name, *arguments):
    def case(at):
        make = getattr(training, name)
        return make(samplers.mala(energy_at(at), 0.1), 2, *arguments)(normal(at, R, 4, 2), rng(at))

    return case


def train_ebm(at):
    energy = energy_at(at)
    moves = training.contrastive(samplers.langevin(energy, 0.1), 2)
    data = datasets.gaussian_ring().sample
    return energy, training.train_ebm(energy, data, moves, 2, rng(at), replicates=R, alpha=0.1)


def fit_discriminator(at):
    judge = networks.mlp(2, (8,), replicates=R, generator=rng(at), spectral=True)

    def penalty(critic, x, y, g):
        return losses.gradient_penalty(critic, x, y, g) + losses.r1_penalty(critic, x)

    p, q = (datasets.gaussian([m, 0.0]).sample for m in (0.0, 1.0))
    settings = {"replicates": R, "batch_size": 8, "penalty": penalty}
    return judge, training.fit_discriminator(judge, p, q, losses.gan_d_loss, 2, rng(at), **settings)


def calibrated(at):
    real, fake = normal(at, R, 200) + 0.5, normal(at, R, 200).flip(1) - 0.5
    methods = ("platt", "temperature", "isotonic")
    maps = [calibration.calibrate(real, fake, method) for method in methods]
    return maps, [f(real) for f in maps]


def saved(at, folder):
    kwargs = {"in_features": 2, "hidden": [8]}
    networks_ = {"f": (networks.mlp(**kwargs, generator=rng(at)), networks.mlp, kwargs)}
    card = dict.fromkeys(checkpoints.REQUIRED, 0)
    checkpoints.save("one", networks_, {"x": normal(at, 3)}, card, folder)
    loaded = checkpoints.load("one", at, folder)
    return *loaded.networks.values(), *loaded.tensors.values()


def stored(at, folder):
    runs.store({"x": normal(at, 3)}, folder / "state.pt")
    return runs.read(folder / "state.pt")


def panel(draw):
    def case(at):
        draw(plt.figure().add_subplot(), at)
        plt.close("all")

    return case


def heatmap(ax, at):
    energy, centre = energy_at(at), normal(at, 2)
    plotting.heatmap(ax, datasets.moons().log_prob, BOX, "", n=4)
    plotting.heatmap(ax, lambda x: energy(x.expand(R, -1, -1))[0], BOX, "", n=4)
    plotting.heatmap(ax, lambda x: (x - centre).norm(dim=-1), BOX, "", n=4)


def quadratures(function, *arguments):
    """For a network, for a function that closes over one, and for one that holds nothing."""

    def case(at):
        energy, gan = energy_at(at), gan_at(at)._replace(generator=nn.Identity())
        several = (energy, lambda x: energy(x) + 1, energies.latent_energy(gan), quadratic)
        return [function(e, *arguments, BOX, R, 50) for e in several]

    return case


def features(at):
    return metrics.moments(normal(at, 50, 3))


def of_logit(make):
    return lambda at: make(gan_at(at))(normal(at, R, 5, 3))


def by_logit(make):
    return lambda at: chain(make(quadratic), at)


def reject(at):
    done = samplers.rejection_sample(lambda x: -quadratic(x), fresh, 5, 0.0, rng(at))
    return done.samples


def device_of(at):
    energy, gan, centre = energy_at(at), gan_at(at), normal(at, 2)
    beta, law = torch.tensor(0.5), datasets.gaussian_grid()
    holding = (
        energy,
        energy.forward,
        lambda x: beta * energy(x),
        energies.latent_energy(gan),
        lambda z: gan.discriminator(gan.generator(z)),
        lambda x: law.log_prob(x - centre),
    )
    assert {base.device_of(f).type for f in holding} == {at.type}
    assert base.device_of(quadratic) == default_device()
    assert base.device_of(law.log_prob) == CPU


def controlled(at):
    rule, d = losses.Began(0.5), -normal(at, R, 5).abs()
    rule.d_loss(d, d), rule.g_loss(d, d)
    rule.callback(0, None)
    return rule.k, rule.m_global


MADE = {  # what they return lies where their inputs lie
    "base.seeded": lambda at: randn(3, generator=base.seeded(0, at)),
    "base.randn": lambda at: randn(3, generator=rng(at)),
    "base.rand": lambda at: rand(3, generator=rng(at)),
    "base.count_calls": counted,
    "base.device_of": device_of,
    "base.at_least_float32": lambda at: base.at_least_float32(normal(at, 3)),
    "base.distances": lambda at: list(base.distances(normal(at, 5, 2), normal(at, 3, 2))),
    "base.Single": network(lambda g: base.Single(nn.Linear(2, 1).to(g.device)), 1, 5, 2),
    "base.check_gan": lambda at: base.check_gan(gan_at(at), R, rng(at), depth=2),
    "base.check_logits": lambda at: base.check_logits(normal(at, 3)),
    "base.check_samples": lambda at: base.check_samples(x=normal(at, 3)),
    "checkpoints.save": saved,
    "checkpoints.load": saved,
    "claims.claim": lambda at: claim("a claim", normal(at, 3).abs().max(), at_least=0),
    "datasets.exact_gan": exact,
    "base.to_bytes": lambda at: base.to_bytes(normal(at, 3)),
    "datasets.minibatches": lambda at: datasets.minibatches(normal(CPU, 6, 2))((R, 3), rng(at)),
    "energies.latent_energy": of_logit(energies.latent_energy),
    "energies.pullback": lambda at: energies.pullback(energy_at(at), gan_at(at))(
        normal(at, R, 5, 3)
    ),
    "energies.NegativeEnergy": lambda at: energies.NegativeEnergy(energy_at(at))(
        normal(at, R, 5, 2)
    ),
    "energies.ReconstructionError": lambda at: energies.ReconstructionError(
        networks.Autoencoder((2,), (4,), 3, R, generator=rng(at))
    )(normal(at, R, 5, 2)),
    "energies.dot_energy": lambda at: energies.dot_energy(
        gan_at(at), normal(at, R, 5, 3), normal(at, R, 1).exp()
    )(2 * normal(at, R, 5, 3)),
    "energies.flow_energy": of_logit(energies.flow_energy),
    "losses.gradient_penalty": lambda at: losses.gradient_penalty(
        energy_at(at), normal(at, R, 5, 2), normal(at, R, 5, 2), rng(at)
    ),
    "entropy.gaussian_bound": lambda at: entropy.gaussian_bound(normal(at, R, 9, 2)),
    "entropy.scale_entropy": lambda at: entropy.scale_entropy(
        networks.mlp(2, (8,), 2, R, generator=rng(at), batch_norm=True), R
    ),
    "losses.jsd_information": lambda at: losses.jsd_information(normal(at, R, 5), normal(at, R, 7)),
    "losses.pulling_away": lambda at: losses.pulling_away(normal(at, R, 5, 3)),
    "losses.ebgan_d_loss": lambda at: losses.ebgan_d_loss(
        -normal(at, R, 5).abs(), -normal(at, R, 5).abs(), 1.0
    ),
    "losses.ebgan_g_loss": lambda at: losses.ebgan_g_loss(
        -normal(at, R, 5).abs(), -normal(at, R, 5).abs()
    ),
    "losses.Began": controlled,
    "datasets.stacked_digits": lambda at: datasets.stacked_digits(normal(at, 5, 1, 2, 2).tanh())(
        (R, 3), rng(at)
    ),
    "losses.r1_penalty": lambda at: losses.r1_penalty(energy_at(at), normal(at, R, 5, 2)),
    "networks.StackedLinear": network(
        lambda g: networks.StackedLinear(2, 3, R, generator=g), R, 5, 2
    ),
    "networks.StackedBatchNorm": lambda at: networks.StackedBatchNorm(2, R, torch.device(at))(
        normal(at, R, 5, 2)
    ),
    "networks.Experts": network(
        lambda g: networks.Experts(networks.StackedLinear(2, 3, R, generator=g), 2, R), R, 5, 2
    ),
    "networks.product_of_experts": network(
        lambda g: networks.product_of_experts(2, (8,), 3, R, generator=g), R, 5, 2
    ),
    "networks.CouplingFlow": flow,
    "networks.FourierFeatures": network(
        lambda g: networks.FourierFeatures(2, 3, 1.0, generator=g), R, 5, 2
    ),
    "networks.SpectralNorm": lambda at: networks.SpectralNorm(normal(at, R, 2, 3)).train()(
        normal(at, R, 2, 3)
    ),
    "networks.spectral_norm": network(
        lambda g: networks.spectral_norm(networks.StackedLinear(2, 3, R, generator=g)), R, 5, 2
    ),
    "networks.mlp": network(
        lambda g: networks.mlp(2, (8,), None, R, generator=g, fourier=(4, 1.0), batch_norm=True),
        R,
        5,
        2,
    ),
    "networks.Autoencoder": network(
        lambda g: networks.Autoencoder((2,), (4,), 3, R, generator=g), R, 5, 2
    ),
    "networks.Confined": network(
        lambda g: networks.Confined(networks.mlp(2, (8,), None, R, generator=g), 2.0), R, 5, 2
    ),
    "networks.energy_mlp": network(
        lambda g: networks.energy_mlp(2, (8,), replicates=R, generator=g), R, 5, 2
    ),
    "networks.NoisyGenerator": network(
        lambda g: networks.NoisyGenerator(networks.mlp(3, (8,), 2, R, generator=g), 3, 0.1), R, 5, 5
    ),
    "networks.ConvGenerator": network(
        lambda g: networks.ConvGenerator(8, 1, 4, 2, R, generator=g), R, 5, 4
    ),
    "networks.ConvDiscriminator": network(
        lambda g: networks.ConvDiscriminator(8, 1, 2, R, generator=g), R, 5, 1, 8, 8
    ),
    "networks.MnistClassifier": network(
        lambda g: networks.MnistClassifier(4, 2, generator=g), 5, 1, 28, 28
    ),
    "networks.FeatureDiscriminator": network(
        lambda g: networks.FeatureDiscriminator((4,), 4, 2, R, generator=g), R, 5, 1, 28, 28
    ),
    "networks.stack_generator": network(
        lambda g: networks.stack_generator(2, 3, generator=g), 1, 4, 3
    ),
    "networks.stack_discriminator": network(
        lambda g: networks.stack_discriminator(2, True, generator=g), 1, 4, 3, 28, 28
    ),
    "networks.Statistics": lambda at: networks.Statistics(2, 3, generator=rng(at))(
        normal(at, 1, 4, 3, 28, 28), normal(at, 1, 4, 3)
    ),
    "networks.sngan_generator": network(
        lambda g: networks.sngan_generator(2, 3, generator=g), 1, 4, 3
    ),
    "networks.sngan_discriminator": network(
        lambda g: networks.sngan_discriminator(2, generator=g), 1, 4, 3, 32, 32
    ),
    "networks.ImageClassifier": network(
        lambda g: networks.ImageClassifier(2, generator=g).eval(), 4, 3, 32, 32
    ),
    "networks.ImageFeatureDiscriminator": network(
        lambda g: networks.ImageFeatureDiscriminator(2, (4,), generator=g), R, 4, 3, 32, 32
    ),
    "networks.digit_classifier": network(
        lambda g: networks.digit_classifier(2, 4, 0.5, generator=g).eval(), 4, 1, 28, 28
    ),
    "refine.mh_gan": lambda at: (
        refined("mh_gan", n_steps=3)(at),
        refined("mh_gan", n_steps=1, data=normal(at, R, 5, 2))(at),
    ),
    "refine.isir_gan": refined("isir_gan", n_steps=3, n_candidates=4),
    "refine.drs": lambda at: [
        refined("drs", n_pilot=100, batch_size=50, **rule)(at)
        for rule in ({}, {"log_bound": 1.0}, {"percentile": 50}, {"budget": 4})
    ],
    "refine.ddls": lambda at: [
        refined("ddls", n_steps=3, step_size=(0.1, 0.01))(at),
        refined("ddls", n_steps=3, kernel=samplers.langevin)(at),
    ],
    "refine.dgflow": refined("dgflow", n_steps=3),
    "refine.dot": lambda at: [
        refined("dot", n_steps=3, tangent=True)(at),
        refined("dot", n_steps=3, space="data")(at),
    ],
    "refine.lipschitz_estimate": lambda at: refine.lipschitz_estimate(
        gan_at(at), rng(at), replicates=R, n_pairs=5
    ),
    "calibration.calibrate": calibrated,
    "calibration.calibrate_discriminator": lambda at: calibration.calibrate_discriminator(
        gan_at(at), normal(CPU, 200, 2), rng(at), replicates=R
    ).logit(normal(at, R, 5, 3)),
    "samplers.langevin": lambda at: chain(samplers.langevin(energy_at(at), 0.1), at),
    "samplers.mala": lambda at: chain(samplers.mala(energy_at(at), 0.1), at),
    "samplers.mixture": lambda at: chain(
        samplers.mixture(*(samplers.mala(quadratic, eps) for eps in (0.1, 1.0))), at
    ),
    "samplers.independence_mh": by_logit(lambda r: samplers.independence_mh(r, fresh)),
    "samplers.isir": by_logit(lambda r: samplers.isir(r, fresh, 3)),
    "samplers.rejection_sample": reject,
    "samplers.annealed_log_partition": lambda at: samplers.annealed_log_partition(
        energy_at(at), datasets.gaussian([0.0, 0.0]), 3, 0.1, rng(at), 5, R
    ),
    "samplers.log_uniform": lambda at: samplers.log_uniform(normal(at, R, 5), rng(at)),
    "metrics.stands_still": lambda at: metrics.stands_still(normal(at, 8, R, 2)),
    "samplers.run_chain": lambda at: chain(samplers.langevin(quadratic, 0.1), at, thin=2),
    "samplers.ReplayBuffer": buffer,
    "training.fit_discriminator": fit_discriminator,
    "training.refit_discriminator": lambda at: training.refit_discriminator(
        gan_at(at), gan_at(at).discriminator, datasets.moons().sample, 2, rng(at), replicates=R
    ),
    "training.train_gan": train("train_gan", losses.gan_d_loss, losses.non_saturating_g_loss),
    "training.train_ebm": train_ebm,
    "training.generated": lambda at: training.generated(gan_at(at))(normal(at, R, 4, 2), rng(at)),
    "training.contrastive": negatives("contrastive"),
    "training.persistent": persistent,
    "training.short_run": negatives("short_run", fresh),
}
MADE |= {
    f"datasets.{name}": law(name)
    for name in (
        "gaussian", "gaussian_grid", "gaussian_ring", "moons", "swiss_roll", "checkerboard",
    )
}  # fmt: skip
MADE |= {
    f"losses.{name}": loss(name)
    for name in (
        "gan_d_loss", "saturating_g_loss", "non_saturating_g_loss", "wasserstein_d_loss",
        "hinge_d_loss", "wasserstein_g_loss", "relativistic_d_loss", "relativistic_g_loss",
    )
}  # fmt: skip
MADE |= {f"losses.{name}": divergence(name) for name in ("kl", "reverse_kl", "js", "pearson")}
SCORED = {  # what they return is a score, or was stored, on the CPU
    "runs.store": stored,
    "runs.read": stored,
    "calibration.diagnose": lambda at: calibration.diagnose(
        gan_at(at), normal(CPU, 200, 2), rng(at), replicates=R, n_draws=300
    ),
    "entropy.nearest_neighbour_entropy": lambda at: entropy.nearest_neighbour_entropy(
        normal(at, R, 9, 2)
    ),
    "datasets.digest": lambda at: datasets.digest(
        datasets.Images(normal(at, 3, 1, 2, 2).clamp(-1, 1), torch.arange(3, device=at))
    ),
    "metrics.mean_interval": lambda at: metrics.mean_interval(normal(at, 5)),
    "metrics.emd": lambda at: metrics.emd(normal(at, R, 5, 2), normal(at, R, 5, 2)),
    "metrics.emd_floor": lambda at: metrics.emd_floor(fresh, 5, rng(at), R),
    "metrics.mode_report": lambda at: metrics.mode_report(
        normal(at, R, 50, 2), datasets.gaussian_grid().means, 0.1
    ),
    "metrics.precision_coverage": lambda at: metrics.precision_coverage(
        normal(at, R, 9, 2), normal(at, R, 8, 2)
    ),
    "metrics.calibration": lambda at: metrics.calibration(normal(at, R, 50), normal(at, R, 50)),
    "metrics.energy_distance": lambda at: metrics.energy_distance(
        normal(at, R, 5, 2), normal(at, R, 6, 2)
    ),
    "metrics.chi_square": lambda at: metrics.chi_square(
        normal(at, R, 500, 2), datasets.gaussian([0.0, 0.0]), BOX
    ),
    "metrics.log_partition": quadratures(metrics.log_partition),
    "metrics.kl_to_truth": quadratures(metrics.kl_to_truth, datasets.gaussian([0.0, 0.0], 0.5)),
    "metrics.rhat": lambda at: metrics.rhat(normal(at, 500, R, 2)),
    "metrics.ess": lambda at: metrics.ess(normal(at, 500, R, 2)),
    "metrics.class_scores": lambda at: metrics.class_scores(normal(at, R, 5, 10)),
    "metrics.stacked_modes": lambda at: metrics.stacked_modes(
        torch.zeros(R, 5, 3, dtype=torch.long, device=at)
    ),
    "metrics.kl_floor": lambda at: metrics.kl_floor(9, torch.full((4,), 0.25, device=at)),
    "metrics.saturation": lambda at: metrics.saturation(normal(at, R, 5, 3, 4, 4).tanh()),
    "metrics.colour_distance": lambda at: metrics.colour_distance(
        normal(at, R, 5, 3, 4, 4).tanh(), normal(at, 5, 3, 4, 4).tanh()
    ),
    "metrics.moments": features,
    "metrics.frechet_distance": lambda at: metrics.frechet_distance(*features(at), *features(at)),
    "plotting.scatter": panel(lambda ax, at: plotting.scatter(ax, normal(at, 5, 2), BOX, "C0", "")),
    "plotting.heatmap": panel(heatmap),
    "plotting.image_grid": panel(
        lambda ax, at: plotting.image_grid(ax, normal(at, 4, 1, 8, 8), 2, "")
    ),
}
CASES = MADE | SCORED
NO_TENSORS = {
    "base.default_device",
    "base.dtype_of",
    "base.evaluating",
    "base.gradients",
    "base.is_count",
    "base.switched_off",
    "base.check_count",
    "base.check_positive",
    "base.check_modules",
    "base.check_shape",
    "base.environment_path",
    "base.whole_file",
    "base.partial_folder",
    "checkpoints.available",
    "runs.parser",
    "runs.parse",
    "runs.at_least",
    "runs.one_thread",
    "runs.in_processes",
    "runs.key_of",
    "runs.Progress",
    "runs.Run",
    "runs.make_checkpoints",
    "runs.mnist_source",
    "runs.cifar10_source",
    "runs.precision",
    "runs.autocast",
    "plotting.set_style",
    "plotting.dots",
    "plotting.table",
    # These read files into tensors on the CPU.
    "datasets.digits",
    "datasets.mnist",
    "datasets.cifar10",
}


def public_names():
    """Functions, networks and divergences of the package's modules; results are named tuples."""
    names = set()
    for info in pkgutil.iter_modules(gan_ebm_utils.__path__):
        if info.name == "recipes":
            continue  # which are programs
        module = importlib.import_module(f"gan_ebm_utils.{info.name}")
        for name, thing in vars(module).items():
            own = f"{getattr(thing, '__module__', '')}.".startswith(f"{module.__name__}.")
            is_type = inspect.isclass(thing) and issubclass(thing, (tuple, Exception))
            if own and not name.startswith("_") and not is_type:
                names.add(f"{info.name}.{name}")
    return names


def result_of(name, at, folder):
    case = CASES[name]
    return case(at, folder) if "folder" in inspect.signature(case).parameters else case(at)


def tensors(result):
    """All tensors in a result, those of networks included."""
    for leaf in tree_leaves(result):
        if isinstance(leaf, nn.Module):
            yield from (*leaf.parameters(), *leaf.buffers())
        elif isinstance(leaf, Tensor):
            yield leaf


def test_no_public_function_is_left_out():
    assert public_names() == CASES.keys() | NO_TENSORS


PLACES = {"all there": (DEVICE, DEVICE), "CPU": (DEVICE, CPU), "there": (CPU, DEVICE)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CASES)
def test_what_it_makes_lies_with_its_inputs(name, place, monkeypatch, tmp_path):
    default, at = PLACES[place]
    monkeypatch.setenv("GAN_EBM_DEVICE", default.type)
    expected = CPU if name in SCORED else at
    assert {x.device.type for x in tensors(result_of(name, at, tmp_path))} <= {expected.type}


if DEVICE.type == "standin":  # Apple's MPS has no float64

    @pytest.mark.parametrize("name", CASES)
    def test_it_needs_no_float64_there(name, tmp_path):
        import standin

        with standin.without_float64():
            result_of(name, DEVICE, tmp_path)


@pytest.mark.parametrize("default", [DEVICE, CPU])
def test_means_lie_where_a_notebook_works(default, monkeypatch):
    monkeypatch.setenv("GAN_EBM_DEVICE", default.type)
    laws = datasets.gaussian_grid(), datasets.gaussian_ring(), datasets.exact_gan().data
    assert {made.means.device.type for made in laws} == {default.type}


# ---- the device is one: what must fail there does


def there(*shape):
    return torch.ones(shape, device=DEVICE)


def here(*shape):
    return torch.ones(shape)


REFUSED = {
    "a sum": lambda: there(2) + here(2),
    "a sum, turned round": lambda: here(2) + there(2),
    "a sum in place": lambda: here(2).add_(there(2)),
    "a number in place": lambda: torch.tensor(1.0).add_(there(1)[0]),
    "cat": lambda: torch.cat([there(2), here(2)]),
    "a stack of numbers": lambda: torch.stack([there(1)[0], torch.tensor(1.0)]),
    "cdist": lambda: torch.cdist(there(2, 2), here(2, 2)),
    "where": lambda: torch.where(there(2) > 0, here(2), there(2)),
    "an index of the other": lambda: here(2)[torch.arange(2, device=DEVICE)],
    "gather": lambda: there(2).gather(0, torch.arange(2)),
    "a network": lambda: nn.Linear(2, 1)(there(3, 2)),
    "a gradient": lambda: torch.autograd.grad(there(2).requires_grad_().sum() * here(2), here(2)),
    "a generator there": lambda: torch.randn(2, generator=rng(DEVICE)),
    "a generator here": lambda: torch.randn(2, generator=rng(CPU), device=DEVICE),
    "an initialisation": lambda: nn.init.normal_(here(2), generator=rng(DEVICE)),
}


@pytest.mark.skipif(DEVICE.type == "cpu", reason="GAN_EBM_DEVICE names no other device")
@pytest.mark.parametrize("what", REFUSED)
def test_devices_do_not_mix(what):
    with pytest.raises(RuntimeError, match=r"device|CPU|cpu"):
        REFUSED[what]()


@pytest.mark.skipif(DEVICE.type == "cpu", reason="GAN_EBM_DEVICE names no other device")
@pytest.mark.parametrize("convert", [lambda x: x.numpy(), lambda x: plt.plot(x)])
def test_numpy_does_not_take_it(convert):
    with pytest.raises(TypeError, match="numpy"):
        convert(there(2))


def test_a_number_and_indices_may_lie_here():
    assert (there(2) + torch.tensor(1.0)).device.type == DEVICE.type
    assert there(2)[torch.tensor([True, False])].device.type == DEVICE.type
    x = there(3)
    x[0], x[1:] = 2.0, here(2) * 3  # copied, as a GPU does
    assert x.tolist() == [2, 3, 3]


def test_it_computes_what_the_cpu_computes():
    def trained(at):
        net = networks.mlp(2, (8,), replicates=R, generator=rng(CPU)).to(at)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            net(normal(CPU, R, 5, 2).to(at)).square().sum().backward()
            optimizer.step()
        return torch.cat([weight.detach().cpu().flatten() for weight in net.parameters()])

    torch.testing.assert_close(trained(DEVICE), trained(CPU), atol=1e-4, rtol=1e-4)
