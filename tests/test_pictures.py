"""The networks and recipes of colour pictures."""

import argparse
import sys
from functools import partial

import pytest
import together
import torch
from matplotlib.image import imread
from torch import nn

from gan_ebm_utils import base, checkpoints, metrics, runs
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.datasets import Images
from gan_ebm_utils.networks import (
    ImageClassifier,
    ImageFeatureDiscriminator,
    sngan_discriminator,
    sngan_generator,
    stack_discriminator,
    stack_generator,
)
from gan_ebm_utils.recipes import (
    cifar10_chains,
    cifar10_features,
    cifar10_sngan,
    mnist_features,
)


def rng(seed=0):
    return seeded(seed, "cpu")


def layers(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def singular_value(layer):
    return float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))


# --- networks ---


def test_the_pair_of_sngan_has_the_sizes_of_its_paper():
    generator = sngan_generator(256, 128, generator=rng())
    convolutions = [layer for layer in layers(generator, nn.Conv2d) if layer.kernel_size == (3, 3)]
    shapes = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert shapes == [(256, 256)] * 6 + [(256, 3)]
    assert len(layers(generator, nn.BatchNorm2d)) == 7
    discriminator = sngan_discriminator(128, generator=rng())
    convolutions = [
        layer for layer in layers(discriminator, nn.Conv2d) if layer.kernel_size == (3, 3)
    ]
    shapes = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert shapes == [(3, 128)] + [(128, 128)] * 7
    assert not layers(discriminator, nn.BatchNorm2d)


def test_a_generator_draws_pictures_that_depend_on_every_latent():
    generator = sngan_generator(8, 5, generator=rng())
    z = randn(1, 4, 5, generator=rng(1)).requires_grad_()
    x = generator(z)
    assert x.shape == (1, 4, 3, 32, 32) and x.abs().max() < 1 and x.std() > 0.05
    (slope,) = torch.autograd.grad(x.square().sum(), z)
    assert (slope.abs() > 0).all()


def test_a_logit_depends_on_its_own_picture_and_on_all_of_it():
    discriminator = sngan_discriminator(4, generator=rng()).eval()
    x = randn(1, 3, 3, 32, 32, generator=rng(1)).requires_grad_()
    d = discriminator(x)
    torch.testing.assert_close(d[:, :1], discriminator(x[:, :1]))
    (slope,) = torch.autograd.grad(d[0, 0], x)
    assert (slope[0, 0].abs() > 0).double().mean() > 0.99
    assert (slope[0, 1:] == 0).all()
    # The sum over the 64 places, not their mean: doubled places double the logit but for its bias.
    pool = layers(discriminator, nn.AvgPool2d)[-1]
    torch.testing.assert_close(pool(torch.ones(1, 1, 8, 8)), torch.full((1, 1, 1, 1), 64.0))


def test_each_layer_of_the_discriminator_has_a_largest_singular_value_of_one():
    discriminator, x = (
        sngan_discriminator(4, generator=rng()),
        randn(1, 2, 3, 32, 32, generator=rng()),
    )
    for _ in range(200):  # the power iteration
        discriminator(x)
    normalised = layers(discriminator.eval(), nn.Conv2d | nn.Linear)
    assert len(normalised) == 8 + 2 + 1  # residuals, shortcuts, and the last one
    for layer in normalised:
        assert singular_value(layer) == pytest.approx(1, abs=1e-3)
    # The control: the weights beneath are what they were drawn with.
    beneath = [layer.parametrizations.weight.original.flatten(1) for layer in normalised]
    assert max(float((torch.linalg.matrix_norm(w, 2) - 1).abs().detach()) for w in beneath) > 0.3


def test_networks_are_drawn_from_their_own_generator():
    makers = (
        lambda g: sngan_generator(2, 3, generator=g),
        lambda g: sngan_discriminator(2, generator=g),
        lambda g: ImageClassifier(2, generator=g),
    )
    for make in makers:
        torch.manual_seed(1)
        before, first = torch.get_rng_state(), make(rng()).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        second, other = make(rng()).state_dict(), make(rng(1)).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)


def test_bad_sizes_of_networks_are_refused():
    for make in (
        lambda: sngan_generator(0, 3, generator=rng()),
        lambda: sngan_generator(2, 0, generator=rng()),
        lambda: sngan_discriminator(0, generator=rng()),
        lambda: ImageClassifier(0, generator=rng()),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            make()
    with pytest.raises(ValueError, match="32"):
        ImageClassifier(2, generator=rng())(torch.zeros(1, 3, 28, 28))


# --- the classifier whose features score ---


def test_pictures_are_mirrored_and_shifted_and_nothing_else():
    x = -torch.ones(400, 3, 32, 32)
    x[:, 0, 16, 10], x[:, 0, 16, 20] = 1, 0.5  # a mirror swaps their order
    moved = cifar10_features.mirrored(x, rng(), 4)
    assert moved.shape == x.shape and ((moved > -1).flatten(1).sum(dim=1) == 2).all()
    first, second = (moved[:, 0] == 1).flatten(1), (moved[:, 0] == 0.5).flatten(1)
    gap = second.int().argmax(dim=1) % 32 - first.int().argmax(dim=1) % 32
    assert set(gap.tolist()) == {10, -10}
    assert 0.4 < (gap < 0).double().mean() < 0.6
    columns = (first.int().argmax(dim=1) % 32)[gap > 0]
    assert sorted(set(columns.tolist())) == list(range(6, 15))


def test_edges_of_blocks_are_seen():
    x = randn(50, 3, 32, 32, generator=rng()) * 0.1
    assert cifar10_features.edge_ratio(x) == pytest.approx(1, abs=0.1)
    blocks = randn(50, 3, 4, 4, generator=rng(1)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert cifar10_features.edge_ratio(x + blocks) > 3
    assert cifar10_features.edge_ratio((x + blocks)[..., 4:]) < 1  # they lie elsewhere


def coloured(n, seed):
    """Pictures of one colour each, eight of them, with noise."""
    labels = torch.arange(n) % 8
    colours = torch.cartesian_prod(*[torch.tensor([-0.6, 0.6])] * 3)
    x = colours[labels][:, :, None, None] + 0.1 * randn(n, 3, 32, 32, generator=rng(seed))
    return Images(x.clamp(-1, 1), labels)


def test_a_classifier_learns_and_its_average_has_statistics_of_its_own(tmp_path):
    data, test_set, generator = coloured(300, 1), coloured(200, 2), rng()
    settings = {**cifar10_features.settings_of("small"), "batch_size": 50, "warmup_steps": 5}
    settings["ema_decay"] = 0.8
    run = runs.Run("r", {}, argparse.Namespace(seed=0, state=tmp_path), runs.Progress())
    run.expect(dict.fromkeys(mnist_features.epochs_of(6), 1))
    seen, classifier = [], ImageClassifier(4, generator=generator)
    changed = partial(cifar10_features.mirrored, max_shift=4)
    how = settings, changed, generator, run, lambda found: seen.append(found.training)
    found, _ = mnist_features.train(classifier, data, 6, *how)
    assert seen == [False] * 6 and not found.training
    logits = mnist_features.evaluate(found, test_set.images, torch.device("cpu")).logits
    assert (logits.argmax(dim=1) == test_set.labels).double().mean() > 0.9
    norm = layers(found, nn.BatchNorm2d)[0]
    assert (norm.running_mean != 0).all(), "statistics are averaged with the weights"
    assert not torch.equal(norm.running_mean, layers(classifier, nn.BatchNorm2d)[0].running_mean)


# --- the games ---


def test_processes_share_a_batch_and_have_one_game(tmp_path):
    pytest.importorskip("accelerate")
    (alone,) = together.play(1, "dcgan", tmp_path)
    first, second = together.play(2, "dcgan", tmp_path)
    for name in ("generator", "discriminator"):
        for key, value in first["weights"][name].items():
            if "running" not in key:  # each normalises its own part of the batch
                torch.testing.assert_close(value, second["weights"][name][key], rtol=0, atol=0)
    assert [x.shape[1] for x in alone["seen"]] == [8, 8]
    assert [x.shape[1] for x in first["seen"]] == [x.shape[1] for x in second["seen"]] == [4, 4]
    assert not torch.equal(first["seen"][0], second["seen"][0]), "each draws its own part"
    assert not torch.equal(first["drawn"], second["drawn"]), "also in a run that goes on"


def test_gradients_of_processes_are_averaged(tmp_path, monkeypatch):
    """Two steps of Adam go almost as far for any gradient: its own sum is looked at."""
    pytest.importorskip("accelerate")
    game = cifar10_sngan.PictureGame("sngan", together.SIZES, together.data, 10, 0)
    grad = torch.tensor([1.0, 2.0])
    assert game.can_capture and game.shared(grad) is grad

    class Two:
        num_processes, process_index = 2, 1

        def reduce(self, value, how):
            assert how == "mean"
            return (value + torch.tensor([3.0, 0.0])) / 2

    monkeypatch.setattr(cifar10_sngan, "accelerator", Two)
    game = cifar10_sngan.PictureGame("sngan", together.SIZES, together.data, 10, 0)
    assert not game.can_capture and torch.equal(game.shared(grad), torch.tensor([2.0, 1.0]))
    assert game.sizes["batch_size"] == game.sizes["batch_size_g"] == 4


def test_an_iteration_is_that_of_the_paper(monkeypatch):
    """Five steps of d, each with pictures and draws in one pass, then one of G with its batch."""
    pytest.importorskip("accelerate")
    sizes = {**together.SIZES, "batch_size_g": 6}
    game = cifar10_sngan.PictureGame("sngan", sizes, together.data, 10, 0)
    seen, sizes_of_z, players = [], [], []
    judge, prior, descend = game.gan.discriminator, Gan.prior, game._descend
    judge.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    monkeypatch.setattr(Gan, "prior", lambda *how: sizes_of_z.append(how[1][1]) or prior(*how))
    monkeypatch.setattr(game, "_descend", lambda *how: players.append(how[0]) or descend(*how))
    game.iterate()
    assert players == ["discriminator"] * 5 + ["generator"]
    assert seen == [16] * 5 + [6] and sizes_of_z == [8] * 5 + [6]
    assert game.optimizers["generator"].defaults["betas"] == (0.0, 0.9)
    assert float(game.rate) == pytest.approx(2e-4)
    game.iterate()
    assert float(game.rate) == pytest.approx(2e-4 * 0.9)


def test_a_picture_of_draws_is_whole_and_in_order(tmp_path):
    x = torch.linspace(-1, 1, 64)[:, None, None, None].expand(64, 3, 4, 4)
    run = runs.Run("r", {}, argparse.Namespace(seed=0, state=tmp_path), runs.Progress())
    run.folder.mkdir()
    cifar10_sngan.show(x, run, "sngan")
    pixels = torch.from_numpy(imread(run.folder / "sngan.png"))[..., :3]
    assert pixels.shape == (32, 32, 3)
    corners = pixels[::4, ::4, 0].flatten()
    torch.testing.assert_close(corners, (x[:, 0, 0, 0] + 1) / 2, atol=0.005, rtol=0)
    assert [file.name for file in run.folder.iterdir()] == ["sngan.png"]


@pytest.mark.parametrize(
    ("card", "line"),
    [({"data_sha256": "other"}, "another copy of CIFAR-10"), (None, "cifar10_features")],
)
def test_what_a_recipe_needs_is_told(card, line, tmp_path, monkeypatch, capsys):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(runs, "cifar10_source", lambda: {"data_sha256": "this"})

    def load(name, device="cpu", folder=None):
        if card is None:
            raise ValueError(f"no checkpoint {name}")
        return checkpoints.Checkpoint({}, {}, card)

    monkeypatch.setattr(checkpoints, "load", load)
    with pytest.raises(SystemExit):
        cifar10_sngan.main(["--out", str(tmp_path), "--state", str(tmp_path)])
    assert line in capsys.readouterr().err


def test_accelerate_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "cifar10_source", lambda: {"data_sha256": "this"})
    monkeypatch.setattr(checkpoints, "load", lambda *how: None)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SystemExit):
        cifar10_sngan.main(["--out", str(tmp_path), "--state", str(tmp_path)])
    assert "pip install gan-ebm-utils[images]" in capsys.readouterr().err


def test_a_refit_sees_features_only_and_in_evaluation_mode():
    judge = ImageFeatureDiscriminator(2, (4,), generator=rng()).train()
    x = randn(2, 3, 3, 32, 32, generator=rng(1))
    d = judge(x)
    assert d.shape == (2, 3)
    torch.testing.assert_close(judge(x[:1, :1]), d[:1, :1])  # no statistics of the batch
    assert not any(weight.requires_grad for weight in judge.features.parameters())
    assert all(weight.requires_grad for weight in judge.head.parameters())
    # The control: features in training mode see the batch.
    judge.features.train()
    assert (judge(x[:1]) - judge(x)[:1]).abs().max() > 1e-4


def test_draws_come_in_parts_of_a_generator_in_evaluation_mode(monkeypatch):
    generator = sngan_generator(2, 3, generator=rng())
    monkeypatch.setattr(cifar10_sngan, "PART", 4)
    sizes = []
    for x in cifar10_sngan.draws_of(generator, 3, 10, rng(1)):
        assert torch.is_grad_enabled() and generator.training, "only while they are drawn"
        sizes.append(x.shape[1])
    assert sizes == [4, 4, 2]
    with torch.no_grad():
        z = Gan(None, None, 3).prior((1, 4), rng(1))
        (first, *_) = cifar10_sngan.draws_of(generator, 3, 4, rng(1))
        assert torch.equal(first, generator.eval()(z))


def test_what_a_classifier_has_learned_is_not_shown_to_a_refit(monkeypatch):
    """Pictures carry their number in a pixel."""
    known = torch.zeros(50_000, 1).float() + torch.arange(50_000.0)[:, None]
    seen = {}
    monkeypatch.setattr(cifar10_sngan, "cifar10", lambda split: Images(known, known[:, 0].long()))

    def train(classifier, data, *how):
        seen["learned"] = data.images[:, 0]
        return classifier, 0.0

    def features(network, parts):
        found = torch.cat([*parts])
        if found.shape[1:] != (1,):  # draws
            return torch.zeros(len(found), 128)
        seen["refit"] = found[:, 0]
        return found.expand(-1, 128)

    monkeypatch.setattr(mnist_features, "train", train)
    monkeypatch.setattr(cifar10_sngan, "seen", features)
    monkeypatch.setattr(cifar10_sngan, "draws_of", lambda g, z, n, rng: [torch.zeros(1, n, 2)])

    def note(_, x):
        seen.setdefault("scored", x[0][0, :, 0])  # the first: real ones

    def fit(head, real, *how, **settings):
        seen["fitted"] = real((1, 100_000), rng())[0, :, 0]
        head.register_forward_pre_hook(note)

    def calibrated(head, real, fake):
        seen["calibrated"] = real[:, 0]

    monkeypatch.setattr(cifar10_sngan, "fit_discriminator", fit)
    monkeypatch.setattr(cifar10_sngan, "calibrated", calibrated)
    weights = cifar10_sngan.classify(0, None)
    cifar10_sngan.refit(None, 3, weights, 0)
    learned, shown = set(seen["learned"].tolist()), set(seen["refit"].tolist())
    assert len(learned) == 20_000 and len(shown) == 30_000 and not learned & shown
    # Nor is what it is fitted to what it is calibrated by, or either what it is scored by.
    uses = [set(seen[name].tolist()) for name in ("fitted", "calibrated", "scored")]
    assert [min(use) for use in uses] == [20_000, 45_000, 47_500]
    assert [max(use) for use in uses] == [44_999, 47_499, 49_999]


def test_an_fid_is_averaged_over_parts_of_one_size(monkeypatch):
    monkeypatch.setattr(cifar10_sngan, "FID_SIZES", (10, 25, 60))
    x = randn(60, 3, generator=rng())
    truth = {"test_mean": torch.zeros(3), "test_covariance": torch.eye(3)}
    found = cifar10_sngan.fids(x, checkpoints.Checkpoint({}, truth, {}))
    for n, parts in ((10, 6), (25, 2), (60, 1)):  # what is left over of 25 is left out
        each = [
            metrics.frechet_distance(*metrics.moments(x[n * i : n * (i + 1)]), *truth.values())
            for i in range(parts)
        ]
        assert found[str(n)] == pytest.approx(sum(each) / parts)
    assert found["10"] > found["25"] > found["60"]


def test_the_nearest_training_image_is_found(monkeypatch):
    """Features are the mean of each channel; draws are training images, a little brighter."""
    known, test = coloured(40, 1), coloured(20, 2)
    monkeypatch.setattr(cifar10_sngan, "cifar10", lambda s: known if s == "train" else test)
    monkeypatch.setattr(cifar10_sngan.cifar10_features, "N_TRAIN", 10)
    for name, value in {"FID_SIZES": (10,), "N_FID": 12, "N_NEAR": 9, "N_PAIRS": 3}.items():
        monkeypatch.setattr(cifar10_sngan, name, value)
    rows = torch.tensor([7, 3, 30, 1, 2, 0, 9, 4, 5, 6, 8, 10])
    draws = (known.images[rows] + 1e-4)[None]
    monkeypatch.setattr(cifar10_sngan, "draws_of", lambda *how: iter(draws.split(5, dim=1)))
    network = nn.Sequential(nn.AvgPool2d(32), nn.Flatten())
    truth = {"test_mean": torch.zeros(3), "test_covariance": torch.eye(3)}
    judge = checkpoints.Checkpoint({"classifier": argparse.Namespace(features=network)}, truth, {})
    trio = {
        "generator": None,
        "discriminator": lambda x: x[:, :, 0, 0, 0],
        "discriminator_refitted": lambda x: 2 * x[:, :, 1, 0, 0],
    }
    found = cifar10_sngan.compare(trio, 3, judge, 0)
    near = found["tensors"]
    own, refitted = near["logits"]
    assert torch.equal(own, torch.stack([test.images[:12, 0, 0, 0], draws[0, :, 0, 0, 0]]))
    assert torch.equal(refitted[1], 2 * draws[0, :, 1, 0, 0])
    assert torch.equal(near["nearest"], base.to_bytes(known.images[rows[:3]]))
    assert torch.equal(near["drawn"], base.to_bytes(draws[0, :3]))
    assert near["distance"].tolist() == pytest.approx([1e-4 * 3**0.5] * 9, rel=0.01)
    assert near["distance_of_test_images"].shape == (9,)
    assert near["distance_of_test_images"].mean() > 2 * near["distance"].mean()
    means = network(known.images[10:])
    expected = cifar10_sngan.fids(means, judge)
    assert found["fid_of_real_images"] == expected != found["fid"]


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch, capsys):
    order = []

    class Three:
        num_processes = 3

        def __init__(self):
            order.append("share")  # from here on "cuda" is the GPU of this process

    def load(name, device):
        order.append("load")
        return checkpoints.Checkpoint({}, {}, {"data_sha256": "this", "sha256": "9"})

    monkeypatch.setattr(cifar10_sngan, "accelerator", Three)
    monkeypatch.setattr(runs, "cifar10_source", lambda: {"data_sha256": "this"})
    monkeypatch.setattr(checkpoints, "load", load)
    with pytest.raises(SystemExit):
        cifar10_sngan.main(["--out", str(tmp_path), "--state", str(tmp_path)])
    assert "a batch of 64 cannot be shared by 3 processes" in capsys.readouterr().err
    assert order == ["share", "load"]


# --- chains ---


@pytest.fixture
def chained(monkeypatch):
    """Scores of the chains of a kind on a tiny pair; the end of the last ones is in `ends`."""
    generator = stack_generator(4, 5, side=32, generator=rng()).eval()
    judges = {
        "discriminator": stack_discriminator(2, side=32, generator=rng(1)),
        "discriminator_refitted": stack_discriminator(4, side=32, generator=rng(2)),
    }
    for judge in judges.values():  # steep, so that the energy is felt
        judge.network[-1].weight.data *= 1000
    card = {"networks": {"generator": {"kwargs": {"latent_dim": 5}}}}
    trio = checkpoints.Checkpoint({"generator": generator, **judges}, {}, card)
    moments = {"test_mean": torch.zeros(16), "test_covariance": torch.eye(16)}
    classifier = ImageClassifier(2, generator=rng(3)).eval()
    stored = {
        "cifar10_sngan": trio,
        "cifar10_features": checkpoints.Checkpoint({"classifier": classifier}, moments, {}),
    }
    monkeypatch.setattr(checkpoints, "load", lambda name, device="cpu": stored[name])
    monkeypatch.setattr(cifar10_chains, "cifar10", lambda split: coloured(20, 2))
    given = {"step_size": 0.01, "points": [1, 3], "n": 6, "part": 4}
    monkeypatch.setattr(cifar10_chains, "CHAINS", given)
    ends, score = [], cifar10_chains.scores_of
    monkeypatch.setattr(
        cifar10_chains, "scores_of", lambda z, *how: ends.append(z) or score(z, *how)
    )

    def run(**kind):
        ends.clear()
        made = cifar10_chains.chains(cifar10_chains.Kind(**kind), 0)["course"]
        return [dict(zip(cifar10_chains.SCORES, row, strict=True)) for row in made.tolist()]

    run.ends, run.trio = ends, trio
    return run


def test_a_chain_without_noise_goes_down_its_energy(chained):
    for which in ("", "refitted"):
        for has_prior in (True, False):
            course = chained(which=which, temperature=0.0, has_prior=has_prior)
            z, *others = chained.ends
            gan = chained.trio.gan(which)
            for _ in range(3):
                z = z.detach().requires_grad_()
                energy = has_prior * z.square().sum(dim=2) / 2 - gan.logit(z)
                z = z - 0.005 * torch.autograd.grad(energy.sum(), z)[0]
            torch.testing.assert_close(others[-1], z, atol=1e-5, rtol=1e-4)
            if not has_prior:
                climbed = "refitted" if which else "hinge"
                assert course[-1][climbed] > course[0][climbed] + 1e-4


def test_the_noise_of_a_chain_is_that_of_its_temperature(chained, monkeypatch):
    monkeypatch.setitem(cifar10_chains.CHAINS, "n", 4000)
    monkeypatch.setitem(cifar10_chains.CHAINS, "part", 4000)
    monkeypatch.setitem(cifar10_chains.CHAINS, "points", [1])
    for judge in ("discriminator", "discriminator_refitted"):
        chained.trio.networks[judge].network[-1].weight.data.zero_()
    for temperature, std in ((1.0, 0.1), (10.0, 0.1**0.5)):
        course = chained(temperature=temperature)
        moved = chained.ends[1] - 0.995 * chained.ends[0]
        assert float(moved.std()) == pytest.approx(std, rel=0.05)
        assert course[1]["mean_square"] == pytest.approx(0.995**2 + std**2, rel=0.05)


def test_all_kinds_of_chains_start_alike_and_end_apart(chained):
    kinds = [kind._asdict() for kind in cifar10_chains.KINDS.values()]
    courses = [chained(**kind) for kind in kinds]
    assert all(course[0] == courses[0][0] for course in courses)
    assert len({course[-1]["fid"] for course in courses}) == len(kinds)
