"""The recipes: the checkpoint that the package carries, and the run that makes it."""

import argparse
import json
import math
import os
import random
import re
from functools import partial
from pathlib import Path

import killed
import numpy as np
import pytest
import safetensors.torch
import torch

from gan_ebm_utils import checkpoints, datasets, entropy, networks, runs
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.metrics import frechet_distance, kl_to_truth, mode_report, moments
from gan_ebm_utils.networks import ConvDiscriminator, ConvGenerator
from gan_ebm_utils.recipes import (
    gan_with_ebm,
    mnist_autoencoders,
    mnist_features,
    mnist_gan,
    one_budget,
    plain_refit,
    plane_begans,
    plane_directed,
    plane_ebgans,
    plane_ebms,
    plane_gans,
)
from gan_ebm_utils.refine import mh_gan
from gan_ebm_utils.samplers import langevin, run_chain

# `mnist_features.digest` of the official files, whose own digests are in `datasets.SHA256`.
MNIST_SHA256 = "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b"

KINDS = gan_with_ebm.KINDS

# --- all recipes ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a prepared mnist.npz of 200 and 50 images, and a cifar10.npz of 20 and 10."""
    folder = tmp_path_factory.mktemp("data")
    prepare_small_mnist(folder)
    prepare_small_cifar10(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(data):
    """Of each recipe: what an unbroken run on tiny settings has made, and its seconds."""
    made = {}

    def of(recipe):
        if recipe not in made:
            seconds = killed.unbroken(recipe, data / recipe, data)
            made[recipe] = killed.made_by(data / recipe), seconds
        return made[recipe]

    return of


@pytest.mark.parametrize("recipe", killed.OPTIONS)
def test_a_killed_recipe_ends_as_an_unbroken_one(recipe, data, unbroken):
    if recipe == "cifar10_sngan":
        pytest.importorskip("accelerate")
    whole, seconds = unbroken(recipe)
    assert len(whole) > 20
    seed = random.randrange(2**32)
    print(f"killed at moments of random.Random({seed})")
    folder = killed.killed_twice(recipe, data / f"{recipe}-cut", data, seconds, random.Random(seed))
    assert killed.differences(whole, killed.made_by(folder)) == []
    assert not list((folder / "state").rglob("*.pt")), "the parts of a finished run are removed"


def test_another_result_is_noticed(data, unbroken):
    whole, _ = unbroken("plane_gans")
    killed.finish(killed.start("plane_gans", data / "other", data, seed=1))
    other = killed.made_by(data / "other")
    different = killed.differences(whole, other)
    assert "swiss_roll_gan/generator/0.weight" in different
    assert "gaussians25_r1/metrics/generator/emd/0" in different
    assert not any("seconds" in name for name in different)
    assert killed.differences(whole, whole) == []
    assert killed.differences({"x": 1.0}, {}) == ["x"]


def test_all_recipes_are_killed():
    assert killed.OPTIONS.keys() == {
        file.stem for file in Path(plane_gans.__file__).parent.glob("*.py")
    } - {"__init__"}


# --- the checkpoints in the package ---


def test_the_package_is_small_and_which_networks_are_in_half_precision():
    files = list(checkpoints.DATA.iterdir())
    assert sum(file.stat().st_size for file in files) < 45_000_000
    types = {}
    for file in checkpoints.DATA.glob("*.safetensors"):
        stored = safetensors.torch.load_file(file)
        found = {v.dtype for k, v in stored.items() if k.startswith("networks/")}
        types[file.stem] = found - {torch.int64}  # counts of batch normalisation
    whole, half = {torch.float32}, {torch.float16}
    for judge in ("mnist_features", "digits_classifier", "stacked_classifier"):
        assert types.pop(judge) == whole, "results name the digest of a judge"
    for name in gan_with_ebm.GAMES:
        assert types.pop(name) == whole | half, "half precision is too coarse for a cold energy"
    budgets = {
        "ebgan_grid",
        "ebgan_sweep",
        "meg_sweep",
        "mnist_meg_anomaly",
        "stacked_mnist",
        *(f"one_budget_{name}" for name in one_budget.GAMES),
    } & types.keys()
    assert {name for name, found in types.items() if found == half} == types.keys() - budgets
    assert all(types[name] == set() for name in budgets)


@pytest.fixture(scope="module")
def mnist():
    return checkpoints.load("mnist_features")


def test_card(mnist):
    card = mnist.card
    assert card["recipe"] == "mnist_features"
    assert card["settings"].keys() >= {"epochs", "batch_size", "learning_rate", "n_features"}
    assert isinstance(card["seed"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", card["date"])
    assert card["torch"]
    metrics = card["metrics"]
    low, high = metrics["test_accuracy_interval_95"]
    assert 0.99 <= low < metrics["test_accuracy"] < high <= 1
    assert metrics["n_test"] == 10_000
    assert metrics["seconds"] > 0
    assert metrics["frechet_train_test"]["n_train"] == 60_000
    assert metrics["worst_class"]["errors"] < 0.02 * metrics["worst_class"]["n"]


def test_made_from_the_real_mnist(mnist):
    assert mnist.card["data_sha256"] == MNIST_SHA256


def test_size():
    size = (checkpoints.DATA / "mnist_features.safetensors").stat().st_size
    assert size < 2_000_000


def check_images(mnist):
    return mnist.tensors["check_images"].float() / 127.5 - 1


def test_stored_logits(mnist):
    classifier = mnist.networks["classifier"]
    logits, expected = classifier(check_images(mnist)), mnist.tensors["check_logits"]
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits.argmax(dim=1), mnist.tensors["check_labels"])
    # Controls: other weights give other logits, permuted labels a low accuracy.
    other = networks.MnistClassifier(**mnist_features.ARCHITECTURE, generator=seeded(0, "cpu"))
    assert not torch.allclose(other(check_images(mnist)), expected, rtol=1e-3, atol=1e-3)
    permuted = mnist.tensors["check_labels"].roll(1)
    assert (logits.argmax(dim=1) == permuted).double().mean() < 0.5


def test_reference_statistics(mnist):
    assert mnist.networks["classifier"].num_features == 64
    stats = {}
    for split in ("train", "test"):
        mean = mnist.tensors[f"{split}_mean"]
        covariance = mnist.tensors[f"{split}_covariance"]
        assert (mean.shape, covariance.shape) == ((64,), (64, 64))
        assert torch.allclose(covariance, covariance.T)
        assert torch.linalg.eigvalsh(covariance.double()).min() > 0
        frequencies = mnist.tensors[f"{split}_frequencies"]
        assert frequencies.sum() == pytest.approx(1)
        assert (frequencies - 0.1).abs().max() < 0.02
        stats[split] = (mean.double(), covariance.double())
    floor = mnist.card["metrics"]["frechet_train_test"]["value"]
    assert float(frechet_distance(*stats["train"], *stats["test"])) == pytest.approx(floor, 1e-2)
    # The mean feature of the 16 check images is near the reference's mean: in its metric, 64 / 16
    # is the expected square. That of 16 images of noise, the control, is far.
    classifier = mnist.networks["classifier"]
    noise = 2 * torch.rand(16, 1, 28, 28, generator=seeded(1, "cpu")) - 1
    mean, covariance = stats["test"]
    squares = []
    for images in (check_images(mnist), noise):
        gap = classifier.features(images).double().mean(dim=0) - mean
        squares.append(float(gap @ torch.linalg.solve(covariance, gap)))
    assert squares[0] < 12
    assert squares[1] > 50


@pytest.mark.skipif(
    not Path(os.environ.get("GAN_EBM_DATA", "/nowhere"), "mnist.npz").exists(),
    reason="GAN_EBM_DATA names no folder with mnist.npz",
)
def test_accuracy_on_the_real_test_set(mnist):
    data = datasets.mnist("test")
    scores = mnist_features.evaluate(mnist.networks["classifier"], data.images, "cpu")
    right = (scores.logits.argmax(dim=1) == data.labels).double().mean()
    assert float(right) == pytest.approx(mnist.card["metrics"]["test_accuracy"], abs=2e-4)
    mean, _ = mnist_features.moments(scores.features)
    assert torch.allclose(mean.float(), mnist.tensors["test_mean"], atol=1e-3)


# --- the run that makes it, on a small set of its own ---


def bright_squares(n, seed):
    """Images of class k with a bright square at the k-th of ten places, on noise."""
    generator = seeded(seed, "cpu")
    labels = torch.randint(10, (n,), generator=generator)
    images = torch.rand(n, 1, 28, 28, generator=generator) - 1
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 4)
        image[0, 9 * row + 1 : 9 * row + 7, 7 * column + 1 : 7 * column + 6] = 1
    return datasets.Images(images, labels)


def train_features(data, epochs, folder, report=lambda classifier: None):
    args = argparse.Namespace(seed=0, state=folder)
    run = runs.Run("mnist_features", {}, args, runs.Progress())
    run.expect(dict.fromkeys(mnist_features.epochs_of(epochs), 1))
    rng = seeded(0, "cpu")
    classifier = networks.MnistClassifier(**mnist_features.ARCHITECTURE, generator=rng)
    how = mnist_features.TRAINING, partial(mnist_features.shifted, max_shift=2), rng, run, report
    return mnist_features.train(classifier, data, epochs, *how)[0]


def trained_accuracy(data, test_set, folder):
    classifier = train_features(data, 20, folder)
    logits = mnist_features.evaluate(classifier, test_set.images, torch.device("cpu")).logits
    return mnist_features.accuracy_metrics(logits, test_set.labels)["test_accuracy"]


def test_training_learns_labels_and_nothing_from_permuted_ones(tmp_path):
    data, test_set = bright_squares(600, 1), bright_squares(300, 2)
    permuted = data.labels[torch.randperm(600, generator=seeded(3, "cpu"))]
    assert trained_accuracy(data, test_set, tmp_path) > 0.9
    assert trained_accuracy(data._replace(labels=permuted), test_set, tmp_path / "permuted") < 0.3


def prepare_small_mnist(folder):
    """Write a mnist.npz of 200 and 50 images."""
    arrays = {}
    for split, n in (("train", 200), ("test", 50)):
        data = bright_squares(n, n)
        arrays[f"{split}_images"] = mnist_features.to_bytes(data.images)[:, 0].numpy()
        arrays[f"{split}_labels"] = data.labels.numpy()
    np.savez(folder / "mnist.npz", **arrays)


def prepare_small_cifar10(folder):
    """Write a cifar10.npz of 20 and 10 images."""
    arrays, draws = {}, np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 10)):
        arrays[f"{split}_images"] = draws.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.int64) % 10
    np.savez(folder / "cifar10.npz", **arrays)


@pytest.fixture
def small_mnist(data, monkeypatch):
    monkeypatch.setenv("GAN_EBM_DATA", str(data))


def test_resuming_needs_the_stored_generator(small_mnist, tmp_path):
    # The control: with a fresh generator the result is another one.
    data = datasets.mnist("train")

    def weights(folder, spoil):
        def stop(classifier):
            if list(folder.rglob("*.pt")):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_features(data, 2, folder, stop)
        (file,) = folder.rglob("*.pt")
        if spoil:
            state = runs.read(file)
            state["made"]["generator"] = seeded(0, "cpu").get_state()
            runs.store(state, file)
        return train_features(data, 2, folder).head.weight

    kept = weights(tmp_path / "kept", spoil=False)
    spoiled = weights(tmp_path / "spoiled", spoil=True)
    assert not torch.equal(kept, spoiled)


def test_bad_epochs(capsys):
    with pytest.raises(SystemExit):
        mnist_features.main(["--epochs", "0"])
    assert "at least 1, got 0" in capsys.readouterr().err


def test_shifted_moves_whole_images():
    images = -torch.ones(500, 1, 28, 28)
    images[:, :, 14, 14] = 1
    moved = mnist_features.shifted(images, seeded(4, "cpu"), 2)
    assert moved.shape == images.shape
    assert (moved.flatten(1) > 0).sum(dim=1).eq(1).all()
    _, _, row, column = (moved > 0).nonzero().unbind(dim=1)
    assert sorted(set(zip(row.tolist(), column.tolist(), strict=True))) == [
        (i, j) for i in range(12, 17) for j in range(12, 17)
    ]


def test_accuracy_metrics():
    labels = torch.arange(100) % 10
    logits = torch.nn.functional.one_hot(labels, 10).float()
    logits[3] = torch.nn.functional.one_hot(torch.tensor(8), 10)  # a 3 taken for an 8
    metrics = mnist_features.accuracy_metrics(logits, labels)
    assert metrics["test_accuracy"] == 0.99
    low, high = metrics["test_accuracy_interval_95"]
    assert (low, high) == (pytest.approx(0.9455, abs=1e-4), pytest.approx(0.9997, abs=1e-4))
    assert metrics["worst_class"] == {
        "digit": 3,
        "n": 10,
        "errors": 1,
        "most_often_taken_for": 8,
        "that_often": 1,
    }
    json.dumps(metrics)


def test_moments():
    x = torch.randn(1000, 3, generator=seeded(5, "cpu"))
    mean, covariance = mnist_features.moments(x)
    assert torch.allclose(mean, x.double().mean(dim=0))
    assert np.allclose(covariance, np.cov(x.numpy().T), atol=1e-6)
    assert math.isclose(float(covariance[0, 0]), 1, abs_tol=0.25)


# --- plane_gans ---


def test_gans_of_the_plane_are_stored_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plane_gans, "N_SAMPLES", 50)
    monkeypatch.setattr(plane_gans, "N_EMD", 20)
    games = {
        name: game._replace(settings={**game.settings, "n_steps": 2})
        for name, game in plane_gans.GAMES.items()
    }
    monkeypatch.setattr(plane_gans, "GAMES", games)
    out, state = tmp_path / "out", tmp_path / "state"
    arguments = ["--refit-steps", "2", "--replicates", "2", "--out", str(out)]
    arguments += ["--state", str(state)]
    plane_gans.main(arguments)
    for name, game in games.items():
        stored = checkpoints.load(name, folder=out)
        for which in ("", "refitted" if game.is_refitted else "without_r1"):
            gan = stored.gan(which)
            assert gan.latent_dim == game.generator["in_features"]
            assert gan.logit(torch.zeros(2, 3, gan.latent_dim)).shape == (2, 3)
        assert stored.card["metrics"]["generator"]["emd"][0] > 0
        # The second one has had no penalty, from the same first weights.
        if not game.is_refitted:
            pair = [stored.gan(which).discriminator[0].weight for which in ("", "without_r1")]
            assert not torch.equal(*pair) and (pair[0] - pair[1]).abs().max() < 0.1
    assert "part 16 of 16" in capsys.readouterr().out
    plane_gans.main(arguments)
    assert capsys.readouterr().out.count("kept") == len(games)
    damaged = out / "swiss_roll_gan.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    with pytest.raises(RuntimeError, match="or run its recipe"):
        checkpoints.load("swiss_roll_gan", folder=out)
    plane_gans.main(arguments)
    assert capsys.readouterr().out.count("kept") == len(games) - 1
    assert damaged.read_bytes() == whole
    assert os.listdir(state) == []


def test_without_r1_the_rarest_mode_is_all_but_lost():
    scores = checkpoints.load("gaussians25_r1").card["metrics"]
    assert scores["generator"]["recovered"][0] == 25
    assert scores["generator_without_r1"]["min_share"][0] < 0.2


def is_stored(name, recipe, refit_steps, state):
    """Whether the package's checkpoint is the one that the recipe would make now."""
    args = argparse.Namespace(seed=0, state=state)
    settings = recipe.settings_of(name, refit_steps, 10)
    run = runs.Run(recipe.__name__.rsplit(".", 1)[1], settings, args, runs.Progress())
    return run.is_stored(name, None)


@pytest.mark.parametrize("name", plane_gans.GAMES)
def test_the_stored_gans_of_the_plane_are_those_of_the_recipe(name, monkeypatch, tmp_path):
    assert is_stored(name, plane_gans, 6000, tmp_path)
    monkeypatch.setitem(plane_gans.DISCRIMINATOR, "activation", "SiLU")
    assert not is_stored(name, plane_gans, 6000, tmp_path)


@pytest.mark.parametrize("name", plane_gans.GAMES)
def test_stored_gans_of_the_plane_score_as_their_cards_say(name):
    stored, game = checkpoints.load(name), plane_gans.GAMES[name]
    law, rng = game.law, seeded(7, "cpu")
    found = {"generator": stored.gan().generator(stored.gan().prior((10, 1000), rng))}
    if game.is_refitted:
        chains = mh_gan(stored.gan("refitted"), 1000, rng, replicates=10, n_steps=100)
        found["mh_gan, refitted"] = chains.samples
    else:
        free = stored.gan("without_r1")
        found["generator_without_r1"] = free.generator(free.prior((10, 1000), rng))
    key, tolerance = ("emd", 0.03) if law.means is None else ("high_quality", 0.015)
    for who, x in found.items():
        expected = stored.card["metrics"][who][key][0]
        assert plane_gans.score(x, law, rng)[key][0] == pytest.approx(expected, abs=tolerance)


# --- gan_with_ebm ---


@pytest.mark.parametrize("name", gan_with_ebm.GAMES)
def test_the_stored_gans_with_energies_are_those_of_the_recipe(name):
    stored, game = checkpoints.load(name), gan_with_ebm.GAMES[name]
    settings = gan_with_ebm.settings_of(name, *gan_with_ebm.STEPS[name], game.replicates)
    assert stored.card["settings"] == json.loads(json.dumps(settings))
    parts = {f"generator_{kind}" for kind in KINDS} | {"energy_cold", "energy_warm"}
    if name != "digits_gan_ebm":
        parts |= {"discriminator_plain", "discriminator_refitted"}
    assert {*stored.networks} == parts
    records = settings["rounds"] // gan_with_ebm.EVERY
    for kind in KINDS:
        assert stored.tensors[f"{kind}/d_loss"].shape == (records, game.replicates)
        assert len(stored.tensors[f"{kind}/generator"]) in (2, game.replicates)


@pytest.mark.parametrize("name", ("moons_gan_ebm", "swiss_roll_gan_ebm"))
def test_stored_energies_are_as_far_from_the_data_as_their_tensors_say(name, monkeypatch):
    stored, game = checkpoints.load(name), gan_with_ebm.GAMES[name]
    monkeypatch.setattr(gan_with_ebm, "TEMPERATURES", (1e-4,))
    row = stored.card["settings"]["temperatures"].index(1e-4)
    energy = gan_with_ebm.energy_of(game, "cold", stored.networks["energy_cold"])
    found, noted = gan_with_ebm.divergences(name, energy, 10)[0], stored.tensors["cold/kl"][row]
    assert torch.allclose(found, noted, rtol=0.01)
    assert not torch.allclose(found.roll(1), noted, rtol=0.01)


def test_a_cold_chain_is_langevin_where_nothing_is_clipped():
    x, rng = 0.1 * randn(2, 50, 2, generator=seeded(0)), lambda: seeded(1)
    energy, eta, sigma = lambda x: x.square().sum(dim=-1) / 2, 0.1, 0.01
    exact = run_chain(langevin(energy, 2 * eta, sigma**2 / (2 * eta)), x, 5, rng()).positions
    free = run_chain(gan_with_ebm.cold_langevin(energy, eta, sigma, 10.0), x, 5, rng()).positions
    assert torch.allclose(free, exact, atol=1e-6)
    held = run_chain(gan_with_ebm.cold_langevin(energy, eta, sigma, 0.01), x, 5, rng()).positions
    assert not torch.allclose(held, exact, atol=1e-3)
    wide = run_chain(gan_with_ebm.cold_langevin(energy, eta, 10.0, 10.0), x, 5, rng()).positions
    assert float(wide.abs().max()) == 1


def test_a_round_teaches_the_gan_and_not_the_energy():
    rng = seeded(2)
    layers = {"hidden": (8,), "replicates": 2, "generator": rng}
    gan = Gan(networks.mlp(20, out_features=2, **layers), networks.mlp(2, **layers), 20)
    energy = networks.mlp(2, **layers)
    kernel = gan_with_ebm.cold_langevin(energy, 3.0, 0.005, 0.05)
    how = {"learning_rate": 1e-2, "betas": (0.5, 0.999)}
    game = gan_with_ebm.Pipeline(gan, kernel, (2, 16), 100, rng, **how)
    before = [[w.clone() for w in net.parameters()] for net in (*gan[:2], energy)]
    kept = game.buffer.positions.clone()
    ends = game(torch.zeros(2, 16, 2), rng)
    assert ends.shape == (2, 16, 2) and not ends.requires_grad
    changed = (game.buffer.positions != kept).any(dim=2).sum(dim=1)
    assert changed.tolist() == [16, 16]
    moved = [
        any(not torch.equal(w, old) for w, old in zip(net.parameters(), was, strict=True))
        for net, was in zip((*gan[:2], energy), before, strict=True)
    ]
    assert moved == [True, True, False]
    assert game.d_losses[0].shape == (2,)


def test_rounds_that_fill_no_record_are_refused(capsys):
    with pytest.raises(SystemExit):
        gan_with_ebm.main(["--rounds", "30"])
    assert "multiple of 20, got 30" in capsys.readouterr().err


# --- plane_begans ---


@pytest.mark.parametrize("name", plane_begans.GAMES)
def test_the_stored_begans_are_those_of_the_recipe(name):
    stored, game = checkpoints.load(name), plane_begans.GAMES[name]
    settings = plane_begans.settings_of(game, game.replicates)
    assert stored.card["settings"] == json.loads(json.dumps(settings))
    assert {*stored.networks} == {
        f"{part}_{kind}" for part in ("generator", "autoencoder") for kind in game.stored
    }
    records = game.settings["n_steps"] // plane_begans.EVERY
    for kind, (gamma, rate) in game.kinds.items():
        course = {key: stored.tensors[f"{kind}/{key}"] for key in plane_begans.COURSE}
        assert all(values.shape == (records, game.replicates) for values in course.values())
        surplus = gamma * course["real"] - course["fake"]
        # M holds the mean of the absolute surplus, which is at least that of the mean.
        assert (course["m_global"] >= course["real"] + surplus.abs() - 1e-6).all()
        assert (course["k"] >= 0).all() and (course["k"] <= 1).all()
        assert bool((course["k"] == 0).all()) == (rate == 0)


@pytest.mark.parametrize("name", plane_begans.GAMES)
def test_the_stored_begans_score_as_their_tensors_say(name):
    stored, game, rng = checkpoints.load(name), plane_begans.GAMES[name], seeded(7, "cpu")
    _, y = plane_begans.fresh(game, game.replicates, rng)
    for kind in game.stored:
        generator = stored.networks[f"generator_{kind}"]
        latent_dim = game.generator.get("latent_dim", game.generator.get("in_features"))
        z = randn(game.replicates, game.n_scored, latent_dim, generator=rng)
        found = plane_begans.score(generator(z), y)
        # Draws that fill one spot are all in the balls of some data or all between them.
        for key, tolerance in (("precision", 0.15), ("coverage", 0.03)):
            expected = float(stored.tensors[f"{kind}/{key}"].mean())
            assert found[key].mean() == pytest.approx(expected, abs=tolerance)


def test_fresh_digits_are_of_two_sets():
    game = plane_begans.GAMES["digits_began"]
    x, y = plane_begans.fresh(game, 2, seeded(0, "cpu"))
    assert x.shape == y.shape == (2, game.n_scored, 1, 8, 8)
    assert not torch.equal(x[0], x[1])
    same = (x[0].flatten(1)[:, None] == y[0].flatten(1)).all(dim=2)
    images = datasets.digits().images.flatten(1)
    twice = len(images) - len(images.unique(dim=0))  # digits that the set holds twice
    assert same.sum() <= 2 * twice


# --- plane_directed ---


def test_the_stored_directed_models_are_those_of_the_recipe():
    stored = checkpoints.load("plane_directed")
    assert stored.card["settings"] == json.loads(json.dumps(plane_directed.settings_of(10)))
    assert {*stored.networks} == {
        f"energy_{name}_{kind}" for name in plane_directed.LAWS for kind in plane_directed.LEARNED
    }
    records = plane_directed.DESCENT["n_steps"] // plane_directed.EVERY
    for kind in plane_directed.FIXED:
        own = "exact" if kind == "exact" else "stand_in"
        for key in ("entropy", "bound", own):
            assert stored.tensors[f"fixed/{kind}/course/{key}"].shape == (records, 10)


@pytest.mark.parametrize("kind", plane_directed.LEARNED)
def test_the_stored_directed_energies_score_as_their_tensors_say(kind):
    stored, ring = checkpoints.load("plane_directed"), plane_directed.LAWS["ring"]
    energy = stored.networks[f"energy_ring_{kind}"]
    found = kl_to_truth(energy, ring, plane_directed.BOX, 10, 200).float()
    torch.testing.assert_close(found, stored.tensors[f"ring/{kind}/kl"], atol=0.02, rtol=0.02)


def test_the_term_of_each_kind():
    generator, latent_dim = plane_directed.new_generator("0.1", 2, seeded(0, "cpu"))
    z = randn(2, 50, latent_dim, generator=seeded(1, "cpu"))
    x = generator(z)
    term = plane_directed.entropy_term
    assert term("none", generator, z, x) == 0
    torch.testing.assert_close(term("0.1", generator, z, x), 0.1 * term("1", generator, z, x))
    torch.testing.assert_close(term("coordinates", generator, z, x), entropy.gaussian_bound(x))
    flow, latent_dim = plane_directed.new_generator("exact", 2, seeded(0, "cpu"))
    z = randn(2, 50, latent_dim, generator=seeded(1, "cpu"))
    torch.testing.assert_close(term("exact", flow, z, flow(z)), flow.entropy(z))


def test_draws_that_coincide_have_no_entropy():
    x = randn(2, 50, 2, generator=seeded(0, "cpu"))
    x[1] = 0
    found = plane_directed.entropies(x)
    assert found[0].isfinite() and found[1] == -math.inf


def test_modes_are_counted_by_their_share():
    ring = plane_directed.LAWS["ring"]
    x = ring.means[[0] * 96 + [1] * 4].expand(2, -1, -1).clone()  # 25 % of a share is 3.1 of 100
    x[1, 96:98] = ring.means[2]
    assert plane_directed.modes(x).tolist() == [2, 1]


# --- plane_ebgans ---


@pytest.mark.parametrize("name", plane_ebgans.NAMES)
def test_the_stored_ebgans_are_those_of_the_recipe(name, monkeypatch, tmp_path):
    assert is_stored(name, plane_ebgans, 2000, tmp_path)
    monkeypatch.setattr(plane_ebgans, "WEIGHT", 0.2)
    assert not is_stored(name, plane_ebgans, 2000, tmp_path)


def test_stored_ebgans_score_as_their_cards_say():
    stored = checkpoints.load("gaussians25_ebgan")
    parts = stored.networks["generator"], stored.networks["autoencoder"]
    gan = plane_ebgans.gan_of(*parts, 4)
    found, card = plane_ebgans.score(gan, 10, 7), stored.card["metrics"]["pulled"]
    assert float(found["high_quality"].mean()) == pytest.approx(card["high_quality"][0], abs=0.01)
    for name, values in stored.tensors.items():
        field = name.split("/")[1]
        if field == "recovered":  # one draw is enough, and may be another's
            assert (found[field] - values).abs().max() <= 4
        elif field != "draws":
            assert torch.allclose(found[field], values, rtol=0.1, atol=1.5e-2), field
    # A control: with the generators in another order the energies are others.
    energies = found["energy_fake"].roll(1)
    assert not torch.allclose(energies, stored.tensors["pulled/energy_fake"], rtol=0.1, atol=5e-3)


def test_the_autoencoder_that_is_stored_alone_is_the_first():
    game = plane_ebgans.GAMES["digits"]
    _, several = plane_ebgans.networks_of(game, 3, seeded(1))
    x = randn(1, 4, 64, generator=seeded(2))
    whole = several.half().float()(x.expand(3, -1, -1))
    one = plane_ebgans.first_of(several, game)(x)
    assert torch.allclose(one, whole[:1], atol=1e-6)
    assert not torch.allclose(one, whole[1:2], atol=1e-2)


# --- plain_refit ---


def test_the_stored_plain_discriminators_are_those_of_their_recipe():
    gans, plain = (checkpoints.load(f"gaussians25_{name}") for name in ("gan", "plain"))
    assert plain.card["checkpoint_sha256"] == gans.card["sha256"]
    assert plain.card["settings"] == json.loads(
        json.dumps(plain_refit.settings_of(gans.card, 6000))
    )
    both = gans.card["settings"]
    assert plain.card["settings"]["refit"] == both["refit"], "the two refits differ in the network"
    layers = [
        {name: value.shape for name, value in network.state_dict().items()}
        for network in (gans.networks["discriminator"], plain.networks["discriminator"])
    ]
    assert layers[0] == layers[1], "and this one has the layers of the own discriminator"


@pytest.mark.parametrize("name", plain_refit.NAMES)
def test_the_stored_plain_discriminators_score_as_their_card_says(name):
    gans, plain = (checkpoints.load(f"gaussians25_{name}") for name in ("gan", "plain"))
    gan = gans.gan()._replace(discriminator=plain.networks[name])
    rng, law = seeded(7, "cpu"), plane_gans.GAMES["gaussians25_gan"].law
    x = mh_gan(gan, 1000, rng, replicates=10, n_steps=100).samples
    found = plane_gans.score(x, law, rng)["high_quality"][0]
    card = plain.card["metrics"][name]["high_quality"][0]
    assert found == pytest.approx(card, abs=0.015)


# --- mnist_gan ---


def test_the_stored_mnist_gans_score_as_their_card_says():
    stored, judge = checkpoints.load("mnist_gan"), checkpoints.load("mnist_features")
    gan = stored.gan("refitted")
    classifier, rng = judge.networks["classifier"], seeded(7, "cpu")
    truth = judge.tensors["test_mean"], judge.tensors["test_covariance"]
    features, logits = [], []
    with torch.no_grad():
        for _ in range(8):
            images = gan.generator(gan.prior((5, 250), rng))
            features.append(torch.stack([classifier.features(part) for part in images]))
            logits.append(gan.discriminator(images))
    features, logits = torch.cat(features, dim=1), torch.cat(logits, dim=1)
    fid = [frechet_distance(*moments(part), *truth) for part in features]
    card = stored.card["metrics"]
    assert sum(fid) / 5 == pytest.approx(card["fid"][0], abs=4)
    assert card["fid"][2] < card["fid_dcgan"]
    # The classifier of the refit is not the one that scores, and choosing by it mends the samples.
    own = gan.discriminator.features.state_dict()
    assert not any(torch.equal(own[k], v) for k, v in classifier.features.state_dict().items())
    rows = logits.softmax(dim=1).multinomial(1000, replacement=True, generator=rng)
    chosen = torch.cat([part[row] for part, row in zip(features, rows, strict=True)])
    pooled = frechet_distance(*moments(features.flatten(0, 1)), *truth)
    assert frechet_distance(*moments(chosen), *truth) < pooled / 2


def test_stacked_networks_are_the_single_ones():
    rng = seeded(0, "cpu")
    settings = {"image_size": 8, "width": 4}
    for make, x in (
        (ConvGenerator, torch.randn(1, 5, 16)),
        (ConvDiscriminator, torch.randn(1, 5, 1, 8, 8)),
    ):
        single = [make(**settings, generator=rng) for _ in range(3)]
        both = make(**settings, replicates=3, generator=rng)
        both.load_state_dict(mnist_gan.stacked([network.state_dict() for network in single]))
        expected = torch.cat([network(x) for network in single])
        torch.testing.assert_close(both(x.expand(3, *x.shape[1:])), expected, atol=1e-5, rtol=1e-5)


def test_training_moves_the_weights_in_half_precision(small_mnist, monkeypatch):
    """Within one autocast context with its cache the networks would see their first weights."""
    able = {"amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    first, second = (mnist_gan.train(0, steps) for steps in (1, 6))
    moved = (first["generator.linear.weight"] - second["generator.linear.weight"]).abs().max()
    assert moved > 2 * mnist_gan.TRAINING["learning_rate"]


def test_a_run_of_the_mnist_gans_goes_on(small_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mnist_gan, "N_FID", 1000)
    monkeypatch.setitem(mnist_gan.CLASSIFIER, "steps", 2)
    arguments = ["--steps", "1", "--refit-steps", "1", "--replicates", "2"]
    folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    real = mnist_gan.train_dcgan
    monkeypatch.setattr(mnist_gan, "train_dcgan", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mnist_gan.main([*arguments, *folders])
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "state").glob("mnist_gan/*.pt"))) == 5
    (file,) = (tmp_path / "state").glob("mnist_gan/classifier-*.pt")
    features = runs.read(file)["made"]
    monkeypatch.setattr(mnist_gan, "train_dcgan", real)
    monkeypatch.setattr(mnist_gan, "train", lambda *a: 1 / 0)  # what is done is not done again
    mnist_gan.main([*arguments, *folders])
    stored = checkpoints.load("mnist_gan", folder=tmp_path / "out")
    for which in ("", "refitted"):
        z = stored.gan(which).prior((2, 3), seeded(0, "cpu"))
        assert stored.gan(which).generator(z).shape == (2, 3, 1, 28, 28)
        assert stored.gan(which).logit(z).shape == (2, 3)
    assert stored.card["metrics"]["fid_dcgan"] > 0
    for key, value in stored.networks["discriminator_refitted"].features.state_dict().items():
        torch.testing.assert_close(value, features[key], atol=1e-3, rtol=1e-3)  # half the digits
    assert os.listdir(tmp_path / "state") == []


# --- plane_ebms ---


@pytest.fixture
def resting(tmp_path, monkeypatch):
    """A short run on two laws and a coarse grid, its arguments and the networks it trains."""
    monkeypatch.setattr(plane_ebms, "LAWS", ("ring", "moons"))
    monkeypatch.setattr(plane_ebms, "N_CELLS", 200)
    trained, train = [], plane_ebms.train
    monkeypatch.setattr(plane_ebms, "train", lambda *a: trained.append(a) or train(*a))
    folders = ["--out", str(tmp_path), "--state", str(tmp_path / "state")]
    return ["--steps", "2", "--replicates", "2", *folders], trained


def test_energies_of_the_plane_are_written_with_a_card(resting, tmp_path):
    plane_ebms.main(resting[0])
    stored = checkpoints.load("plane_ebms", folder=tmp_path)
    names = {f"{law}_{rule}" for law in plane_ebms.LAWS for rule in plane_ebms.RULES}
    assert set(stored.networks) == set(stored.card["metrics"]) == names
    energy = stored.networks["moons_pcd"]
    assert energy(torch.zeros(2, 5, 2)).shape == (2, 5)
    law = plane_ebms.law_of("moons")
    value = kl_to_truth(energy, law, plane_ebms.BOX, 2, plane_ebms.N_CELLS)
    on_card = torch.tensor(stored.card["metrics"]["moons_pcd"]["kl"], dtype=torch.float64)
    torch.testing.assert_close(value, on_card, atol=1e-3, rtol=0)


def test_a_second_start_trains_only_what_is_missing(resting, tmp_path, monkeypatch):
    arguments, trained = resting

    def cut_off():
        """Run to the last step, at which the checkpoint would be written."""
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save", lambda *a: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                plane_ebms.main(arguments)

    cut_off()
    finished = [f for f in sorted((tmp_path / "state").rglob("*.pt")) if "KL" not in f.name]
    assert len(finished) == len(trained) == 8
    finished[3].unlink()
    finished[5].write_bytes(finished[5].read_bytes()[:-1])  # damaged
    cut_off()
    assert len(trained) == 10
    cut_off()
    assert len(trained) == 10
    with monkeypatch.context() as patch:
        patch.setattr(plane_ebms, "BOX", (-6.0, 6.0, -6.0, 6.0))
        cut_off()
        assert len(trained) == 18, "scores in another box"
    plane_ebms.main(arguments)
    assert len(trained) == 18
    (other,) = (tmp_path / "state").iterdir()
    assert len(list(other.glob("*.pt"))) == 16, "the parts with the other box"
    plane_ebms.main([*arguments, "--seed", "1"])
    assert len(trained) == 26


def test_the_energies_of_the_package_score_as_their_card_says():
    stored = checkpoints.load("plane_ebms")
    assert stored.card["settings"]["replicates"] == 10
    assert stored.card["settings"]["step_sizes"] == plane_ebms.STEP_SIZES
    names = {f"{law}_{rule}" for law in plane_ebms.LAWS for rule in plane_ebms.RULES}
    assert set(stored.networks) == set(stored.card["metrics"]) == names
    for name in ("ring_cdk", "moons_cd1"):
        law = plane_ebms.law_of(name.split("_")[0])
        value = kl_to_truth(stored.networks[name], law, (-4.0, 4.0, -4.0, 4.0), 10, 160)
        on_card = torch.tensor(stored.card["metrics"][name]["kl"], dtype=torch.float64)
        torch.testing.assert_close(value, on_card, atol=5e-3, rtol=0)


def test_the_average_is_of_the_weights():
    last, average = plane_ebms.train("ring", "cd1", 3, 2, 0)
    pairs = zip(last.parameters(), average.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    first, same = plane_ebms.train("ring", "cd1", 1, 2, 0)
    for a, b in zip(first.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # the average of one


# --- one_budget ---


@pytest.mark.parametrize("name", one_budget.GAMES)
def test_stored_budgets_belong_to_the_stored_gans(name):
    stored, game = checkpoints.load(f"one_budget_{name}"), one_budget.GAMES[name]
    gans = checkpoints.load(game["gans"]).card
    assert stored.card["settings"]["gans_sha256"] == gans["sha256"]
    settings = json.loads(json.dumps(one_budget.settings_of(name, game["n"])))
    assert stored.card["settings"] == {**settings, "gans_sha256": gans["sha256"]}
    replicates, budgets = gans["settings"]["replicates"], game["budgets"]
    error = "fid" if name == "mnist" else "emd"
    for use in one_budget.uses_of(game):
        assert stored.tensors[f"{use.name}/{error}"].shape == (replicates,)
        assert stored.tensors[f"{use.name}/passes"].max() < 1.15 * use.budget
        for score in one_budget.WATCHED:
            is_stored = f"{use.name}/{score}" in stored.tensors
            assert is_stored == (use.is_watched and (score != "hops" or name == "gaussians25"))
    for run in ("real/data/0", "none/generator/1"):
        assert stored.tensors[f"{run}/{error}"].shape == (replicates,)
    # Rejection: what each GAN needed, not the slowest of them.
    assert stored.tensors[f"refitted/drs/{budgets[-1]}/passes"].unique().numel() == replicates
    # What was chosen had the smallest error of its candidates.
    assert stored.card["chosen"]
    for choice in stored.card["chosen"].values():
        told = [math.inf if e is None else e for e in choice["errors"]]
        assert choice["chosen"] == choice["of"][told.index(min(told))]
    # A list that is too short would put the best at its end; chapter 10 names those two.
    ends = {k for k, c in stored.card["chosen"].items() if c["chosen"] in (c["of"][0], c["of"][-1])}
    named = {"swiss_roll": {"refitted/langevin/10-choice"}, "mnist": {"own/ddls/10-choice"}}
    assert ends == named.get(name, set())


def test_a_stored_score_of_the_plane_is_found_again():
    stored = checkpoints.load("one_budget_gaussians25")
    gans, rng = checkpoints.load("gaussians25_gan"), seeded(7, "cpu")
    row, found = one_budget.SAMPLERS["mh_gan"], {}
    given = {"n": 1000, "part": 1000, "arguments": row.arguments(100, 1000, None), "seed": 7}
    for which in ("refitted", "own"):
        done = one_budget.run(row, gans.gan("refitted" if which == "refitted" else ""), 10, given)
        report = mode_report(done.samples, gaussian_grid().means, one_budget.STD)
        found[which] = report.high_quality.mean()
        expected = stored.tensors[f"{which}/mh_gan/100/high_quality"].mean()
        assert found[which] == pytest.approx(float(expected), abs=0.02)
    assert found["own"] < found["refitted"] - 0.05  # the control: it matters which one is asked
    x = gans.gan().generator(gans.gan().prior((10, 2000), rng))
    report = mode_report(x, gaussian_grid().means, one_budget.STD)
    expected = stored.tensors["none/generator/1/inlier_std"].mean()
    assert report.inlier_std.mean() == pytest.approx(float(expected), abs=0.001)


def test_a_stored_fid_is_found_again():
    stored, judge = checkpoints.load("one_budget_mnist"), checkpoints.load("mnist_features")
    truth = stored.tensors["scoring_mean"], stored.tensors["scoring_covariance"]
    gan, rng = checkpoints.load("mnist_gan").gan(), seeded(7, "cpu")
    n, features = stored.card["settings"]["n"], judge.networks["classifier"].features
    with torch.no_grad():
        images = [gan.generator(gan.prior((5, 250), rng)) for _ in range(n // 250)]
        found = [
            frechet_distance(*moments(torch.cat([features(part[r]) for part in images])), *truth)
            for r in range(5)
        ]
    expected = stored.tensors["none/generator/1/fid"]
    assert sum(found) / 5 == pytest.approx(float(expected.mean()), abs=4)
    assert expected.mean() > 5 * stored.tensors["real/data/0/fid"].mean()


def test_halves_share_no_image_and_leave_none_out():
    choosing, scoring = one_budget.halves(1000, 3)
    assert len(choosing) == len(scoring) == 500
    assert sorted(torch.cat([choosing, scoring]).tolist()) == list(range(1000))
    assert choosing.tolist() != list(range(500)), "the order of the files means something"


def test_settings_are_chosen_on_the_half_that_is_not_scored(small_mnist):
    judge = one_budget.mnist_judge(20, 2, 0, {})
    images = datasets.mnist("test").images
    choosing, scoring = one_budget.halves(len(images), 0)
    own, other = (images[rows].expand(2, -1, -1, -1, -1) for rows in (choosing, scoring))
    assert judge.error(own) < 1e-2 < judge.error(other)
    assert judge.score(other)["fid"].max() < 1e-2 < judge.score(own)["fid"].min()
    real = judge.real()  # the floor is of images that are not scored against
    assert judge.score(real)["fid"].min() > 1e-2


def test_each_sampler_stays_within_its_budget():
    gan = checkpoints.load("swiss_roll_gan").gan("refitted")
    for name, row in one_budget.SAMPLERS.items():
        arguments = row.arguments(20, 1000, (1e-3, 1e-4) if name == "ddls" else 1e-3)
        given = {"n": 1000, "part": 500, "arguments": arguments, "seed": 0}
        done = one_budget.run(row, gan, 10, given)
        assert done.samples.shape == (10, 1000, 2)
        assert 12 < done.passes.mean() < 21, name


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Options of a short comparison on two of the samplers, and the parts that are made."""
    game = {"budgets": (10, 20), "n_choice": 100, "part": 100, "n_emd": 50}
    game |= {"cells": ((-2.5, 2.5, -2.5, 2.5), 2), "longer": {"ddls": (30,)}}
    monkeypatch.setitem(one_budget.GAMES, "gaussians25", one_budget.GAMES["gaussians25"] | game)
    monkeypatch.setattr(one_budget, "MIN_WATCHED", 20)
    monkeypatch.setattr(one_budget, "N_CHAINS", 4)
    rows = {name: one_budget.SAMPLERS[name] for name in ("drs", "ddls", "langevin")}
    monkeypatch.setattr(one_budget, "SAMPLERS", rows)
    made, once = [], runs.Run.in_steps

    def in_steps(run, name, steps, advance, given=None):
        return once(run, name, steps, lambda state: made.append(name) or advance(state), given)

    monkeypatch.setattr(runs.Run, "in_steps", in_steps)
    folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    return ["gaussians25", "--n", "200", *folders], made


def budget_in(tmp_path):
    return checkpoints.load("one_budget_gaussians25", folder=tmp_path / "out")


def test_a_sampler_that_is_added_is_all_that_is_run(short, tmp_path, monkeypatch, capsys):
    options, made = short
    one_budget.main(options)
    first, before = budget_in(tmp_path), list(made)
    assert first.card["settings"]["samplers"] == ["drs", "ddls", "langevin"]
    assert first.card["chosen"].keys() == {f"refitted/langevin/{b}-choice" for b in (10, 20)}
    assert set(before) == first.card["keys"].keys()
    assert first.tensors["refitted/ddls/30/still"].shape == (10,)
    assert first.tensors["refitted/ddls/30/passes"].tolist() == [pytest.approx(28, abs=2)] * 10
    assert os.listdir(tmp_path / "state") == []
    known = one_budget.known_parts("one_budget_gaussians25", tmp_path / "out")
    assert {part: key for part, (key, _) in known.items()} == first.card["keys"]
    assert set(known["refitted/ddls/20-watch"][1]) == set(one_budget.WATCHED)
    assert {"emd", "passes"} <= known["refitted/ddls/20"][1].keys()
    assert not set(one_budget.WATCHED) & known["refitted/ddls/20"][1].keys()
    assert len(known["refitted/langevin/10-choice"][1]) == 5

    def refuse(*arguments, **settings):
        raise AssertionError("what is stored is run again")

    rows = {k: row._replace(draw=refuse) for k, row in one_budget.SAMPLERS.items()}
    rows["two-step"] = one_budget.Sampler(  # the row of the table, and its function
        one_budget.in_parts(mh_gan), lambda budget, n, _: {"n_steps": 2}, {}
    )
    monkeypatch.setattr(one_budget, "SAMPLERS", rows)
    made.clear()
    capsys.readouterr()
    one_budget.main(options)
    assert made == ["refitted/two-step/10", "refitted/two-step/20"]
    told = capsys.readouterr().out
    assert "part 7 of 18: refitted/two-step/10" in told
    second = budget_in(tmp_path)
    assert second.card["settings"]["samplers"] == ["drs", "ddls", "langevin", "two-step"]
    assert second.tensors["refitted/two-step/10/high_quality"].shape == (10,)
    for name, tensor in first.tensors.items():
        assert torch.equal(second.tensors[name].nan_to_num(), tensor.nan_to_num()), name
    assert second.card["chosen"] == first.card["chosen"]
    assert second.card["keys"].items() > first.card["keys"].items()
    # The control: another argument is another run, and with it all that is chosen by it.
    rows["two-step"] = rows["two-step"]._replace(arguments=lambda budget, n, _: {"n_steps": 3})
    made.clear()
    one_budget.main(options)
    assert made == ["refitted/two-step/10", "refitted/two-step/20"]
    rows["langevin"] = first_row = one_budget.SAMPLERS["langevin"]._replace(passes=1)
    assert first_row.draw is refuse
    made.clear()
    one_budget.main(options)
    assert made == ["refitted/langevin/20-watch"], "only how chains are watched has changed"
    monkeypatch.setattr(one_budget, "N_CHAINS", 3)
    made.clear()
    one_budget.main(options)
    assert {name.rpartition("-")[2] for name in made} == {"watch"}


def test_a_comparison_that_was_cut_off_goes_on(short, tmp_path, monkeypatch):
    options, made = short
    with monkeypatch.context() as patch:
        patch.setattr(one_budget, "watch", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one_budget.main(options)
    assert not (tmp_path / "out").exists()
    done = made[:-1]
    assert made[-1].endswith("-watch") and len(done) > 5
    made.clear()
    one_budget.main(options)
    assert not set(made) & set(done)
    assert budget_in(tmp_path).tensors["refitted/ddls/20/rhat"].shape == (10,)
    assert os.listdir(tmp_path / "state") == []


@pytest.mark.parametrize("what", ["old form", "damaged", "other recipe", "other settings"])
def test_a_checkpoint_that_is_no_use_is_none(short, tmp_path, monkeypatch, what):
    options, made = short
    rows = {"drs": one_budget.SAMPLERS["drs"]}
    monkeypatch.setattr(one_budget, "SAMPLERS", rows)
    monkeypatch.delitem(one_budget.GAMES["gaussians25"], "longer")
    one_budget.main(options)
    stored, before = budget_in(tmp_path), list(made)
    file = tmp_path / "out" / "one_budget_gaussians25.json"
    if what == "old form":
        card = {k: v for k, v in stored.card.items() if k not in ("keys", "chosen")}
        file.write_text(json.dumps(card))
    if what == "damaged":
        file.write_text(file.read_text()[:-10])
    if what == "other recipe":
        card = {**dict.fromkeys(checkpoints.REQUIRED, 0), "keys": {"real/data/0": "0"}}
        checkpoints.save("one_budget_gaussians25", {}, {}, card, tmp_path / "out")
    made.clear()
    one_budget.main([*options, *(["--seed", "1"] if what == "other settings" else [])])
    assert made == before
    assert budget_in(tmp_path).card["keys"].keys() == set(made)


@pytest.mark.parametrize("name", one_budget.GAMES)
def test_the_keys_of_the_package_are_those_of_the_recipe(name):
    """So that a start of the recipe runs nothing that is stored."""
    stored, game = checkpoints.load(f"one_budget_{name}"), one_budget.GAMES[name]
    read_from = {k: stored.card[k] for k in stored.card if k in ("data", "data_sha256")}
    if name == "mnist":
        features = checkpoints.load("mnist_features").card
        assert read_from["data_sha256"] == features["data_sha256"] == MNIST_SHA256
        read_from["features_sha256"] = features["sha256"]
    judged = one_budget.judged(name, 0, read_from)
    judge = one_budget.Judge(None, None, None, None, judged, {}, {})
    bench = one_budget.Bench(name, checkpoints.load(game["gans"]), judge, game["n"], 0)
    args = argparse.Namespace(seed=0, state=Path("nowhere"))
    known = one_budget.known_parts(f"one_budget_{name}", None)
    whole = one_budget.Comparison(known, "one_budget", {}, args, runs.Progress())
    left = {}
    for use in one_budget.uses_of(game):
        left |= bench.parts_of(use, whole)
    assert len(left) > 25 and not any(left.values())
    assert left.keys() | {one_budget.REAL, one_budget.DRAWS} == stored.card["keys"].keys()
    other = bench._replace(seed=1)
    assert all(other.parts_of(use, whole)[use.name] for use in one_budget.uses_of(game))


def test_a_number_of_samples_that_cannot_be_split(capsys):
    with pytest.raises(SystemExit):
        one_budget.main(["gaussians25", "--n", "1500"])
    assert "multiple of 1000 above that, got 1500" in capsys.readouterr().err


def test_chains_that_stand_still_are_counted_apart(monkeypatch):
    positions = randn(1000, 2, one_budget.N_CHAINS, 2, generator=seeded(0, "cpu"))
    positions[500:, 0, 3] = 0.0
    positions[:, 1, 1:] = positions[0, 1, 1:]  # one chain is left, which cannot be judged
    chain = type("Chain", (), {"positions": positions})
    monkeypatch.setattr(one_budget, "run_chain", lambda *arguments: chain)
    gan = Gan(torch.nn.Identity(), torch.nn.Identity(), 2)
    judge = one_budget.Judge(None, None, None, None, {}, {}, {})
    given = {"seed": 0, "n_chains": one_budget.N_CHAINS, "budget": 1000, "passes": 1}
    row = one_budget.SAMPLERS["mh_gan"]
    found = one_budget.watch(row, gan, 2, judge, {**given, "arguments": {}})
    assert found["still"].tolist() == [0.05, 0.95]
    moving = torch.cat([positions[:, 0, :3], positions[:, 0, 4:]], dim=1)
    assert found["rhat"].tolist() == [float(one_budget.metrics.rhat(moving).max()), math.inf]
    # For 1,000 passes of a chain, those of the chain that stands still included.
    worth = float(one_budget.metrics.ess(moving).min())
    assert found["ess"].tolist() == [worth / one_budget.N_CHAINS, 0.0]


# --- mnist_autoencoders ---


@pytest.mark.parametrize("name", mnist_autoencoders.GAMES)
def test_the_stored_mnist_autoencoders_score_as_their_card_says(name):
    stored, judge = checkpoints.load(name), checkpoints.load("mnist_features")
    generator, card = stored.networks["generator"], stored.card["metrics"]
    classifier, rng = judge.networks["classifier"], seeded(7, "cpu")
    latent_dim = stored.card["settings"]["generator"]["latent_dim"]
    assert stored.networks.keys() == {"generator"} and generator.replicates == 1
    with torch.no_grad():
        drawn = [generator(randn(1, 250, latent_dim, generator=rng)) for _ in range(8)]
        features = torch.cat([classifier.features(x[0]) for x in drawn])
    truth = judge.tensors["test_mean"], judge.tensors["test_covariance"]
    told = card["fid_of_each"][card["kept"]]
    assert frechet_distance(*moments(features), *truth) == pytest.approx(told, rel=0.1)
    assert told == sorted(card["fid_of_each"])[2], "the median of five"
    if name == "mnist_ebgan":  # gamma of BEGAN is below 1
        assert card["energies_of_the_first"]["generated"] > card["energies_of_the_first"]["real"]


def test_the_generator_with_the_median_fid_is_stored(small_mnist, tmp_path, monkeypatch):
    trained, real = [], mnist_autoencoders.train
    monkeypatch.setitem(mnist_autoencoders.GAMES["mnist_began"].generator, "width", 4)
    monkeypatch.setattr(
        mnist_autoencoders, "train", lambda *a: trained.append(real(*a)) or trained[-1]
    )
    monkeypatch.setattr(mnist_autoencoders, "fid", lambda draw, seed: [3.0, 1.0, 2.0])
    folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    arguments = ["--only", "mnist_began", "--steps", "1", "--replicates", "3"]
    mnist_autoencoders.main([*arguments, *folders])
    stored = checkpoints.load("mnist_began", folder=tmp_path / "out")
    assert stored.card["metrics"]["kept"] == 2
    value = stored.networks["generator"].linear.weight
    each = [weights["generator.linear.weight"].half().float() for weights in trained]
    same = [torch.equal(value, weight) for weight in each]
    assert same == [False, False, True]


def test_a_network_of_mnist_depends_on_its_seed_alone(small_mnist, tmp_path, monkeypatch):
    """Three replicates, then five: the first three are not trained again."""
    monkeypatch.setattr(mnist_gan, "N_FID", 100)
    monkeypatch.setitem(mnist_autoencoders.GAMES["mnist_began"].generator, "width", 4)
    trained, real = [], mnist_autoencoders.train
    monkeypatch.setattr(mnist_autoencoders, "train", lambda *a: trained.append(a[1]) or real(*a))
    monkeypatch.setattr(runs.Run, "remove_parts", lambda run: None)
    folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    for replicates in ("2", "3"):
        arguments = ["--only", "mnist_began", "--steps", "1", "--replicates", replicates]
        mnist_autoencoders.main([*arguments, *folders])
    assert trained == [0, 100, 200]
    card = checkpoints.load("mnist_began", folder=tmp_path / "out").card
    assert len(card["metrics"]["fid_of_each"]) == card["settings"]["replicates"] == 3
