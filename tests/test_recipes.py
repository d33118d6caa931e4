"""The recipes: the checkpoint that the package carries, and the run that makes it."""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_ebm_utils import checkpoints, datasets, networks, runs
from gan_ebm_utils.base import Gan, randn, seeded
from gan_ebm_utils.datasets import gaussian_grid
from gan_ebm_utils.metrics import frechet_distance, kl_to_truth, mode_report, moments
from gan_ebm_utils.networks import ConvDiscriminator, ConvGenerator
from gan_ebm_utils.recipes import (
    gaussians25_r1,
    mnist_features,
    mnist_gan,
    one_budget,
    plane_ebms,
    plane_gans,
)
from gan_ebm_utils.refine import mh_gan

# `mnist_features.digest` of the official files, whose own digests are in `datasets.SHA256`.
MNIST_SHA256 = "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b"

# --- the checkpoint in the package ---


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


def trained_accuracy(data, test_set, folder):
    classifier, _ = mnist_features.train(
        data, 20, 0, torch.device("cpu"), folder / "state.pt", lambda epoch, classifier: None
    )
    logits = mnist_features.evaluate(classifier, test_set.images, torch.device("cpu")).logits
    return mnist_features.accuracy_metrics(logits, test_set.labels)["test_accuracy"]


def test_training_learns_labels_and_nothing_from_permuted_ones(tmp_path):
    data, test_set = bright_squares(600, 1), bright_squares(300, 2)
    permuted = data.labels[torch.randperm(600, generator=seeded(3, "cpu"))]
    (tmp_path / "permuted").mkdir()
    assert trained_accuracy(data, test_set, tmp_path) > 0.9
    assert trained_accuracy(data._replace(labels=permuted), test_set, tmp_path / "permuted") < 0.3


@pytest.fixture
def small_mnist(tmp_path):
    """A folder with a prepared mnist.npz of 200 and 50 images."""
    arrays = {}
    for split, n in (("train", 200), ("test", 50)):
        data = bright_squares(n, n)
        arrays[f"{split}_images"] = mnist_features.to_bytes(data.images)[:, 0].numpy()
        arrays[f"{split}_labels"] = data.labels.numpy()
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path


def start(folder, state, out):
    """The recipe in a process of its own, for three epochs."""
    env = {**os.environ, "GAN_EBM_DATA": str(folder), "OMP_NUM_THREADS": "1"}
    options = ["--epochs", "3", "--state", str(state), "--out", str(out)]
    module = "gan_ebm_utils.recipes.mnist_features"
    return subprocess.Popen(
        [sys.executable, "-m", module, *options], env=env, stdout=subprocess.PIPE, text=True
    )


def test_killed_run_goes_on_and_ends_the_same(small_mnist):
    whole = start(small_mnist, small_mnist / "state", small_mnist / "whole")
    cut = start(small_mnist, small_mnist / "cut_state", small_mnist / "cut")
    assert cut.stdout.readline().startswith("epoch 1")
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert not (small_mnist / "cut").exists()
    resumed, _ = start(small_mnist, small_mnist / "cut_state", small_mnist / "cut").communicate()
    assert re.match(r"going on after epoch [12]", resumed)
    assert "epoch 1:" not in resumed
    assert "epoch 1:" in whole.communicate()[0]
    assert whole.returncode == 0

    first, second = (
        checkpoints.load("mnist_features", folder=small_mnist / name) for name in ("whole", "cut")
    )
    weights = first.networks["classifier"].state_dict()
    for key, value in second.networks["classifier"].state_dict().items():
        assert torch.equal(value, weights[key]), key
    for name in ("state", "cut_state"):
        assert os.listdir(small_mnist / name) == [], "the state of a finished run is removed"


def test_resuming_needs_the_stored_generator(small_mnist, monkeypatch):
    # The control of the test above: with a fresh generator the result is another one.
    monkeypatch.setenv("GAN_EBM_DATA", str(small_mnist))
    data, cpu = datasets.mnist("train"), torch.device("cpu")

    def weights(file, spoil):
        def stop(epoch, classifier):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            mnist_features.train(data, 2, 0, cpu, file, stop)
        if spoil:
            runs.store({**runs.read(file), "generator": seeded(0, "cpu").get_state()}, file)
        classifier, _ = mnist_features.train(data, 2, 0, cpu, file, lambda *_: None)
        return classifier.head.weight

    kept = weights(small_mnist / "kept.pt", spoil=False)
    spoiled = weights(small_mnist / "spoiled.pt", spoil=True)
    assert not torch.equal(kept, spoiled)


def test_bad_epochs(capsys):
    with pytest.raises(SystemExit):
        mnist_features.main(["--epochs", "0"])
    assert "at least 1, got 0" in capsys.readouterr().err


def test_shifted_moves_whole_images():
    images = -torch.ones(500, 1, 28, 28)
    images[:, :, 14, 14] = 1
    moved = mnist_features.shifted(images, 2, seeded(4, "cpu"))
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


# --- gaussians25_r1 ---


def test_the_gans_of_the_package_score_as_their_card_says():
    stored = checkpoints.load("gaussians25_r1")
    settings, law = stored.card["settings"], gaussian_grid()
    assert stored.card["recipe"] == "gaussians25_r1"
    z = torch.randn(settings["replicates"], 2000, 2, generator=torch.Generator().manual_seed(99))
    for gamma, suffix in (("gamma 0.1", ""), ("gamma 0.0", "_without_r1")):
        report = mode_report(stored.networks["generator" + suffix](z), law.means, settings["std"])
        scores = stored.card["metrics"][gamma]
        # The same networks, other latents: a share of 2,000 has a standard error below .012.
        gap = report.high_quality.mean() - scores["high_quality"][0]
        assert abs(gap) < 5 * 0.012 / settings["replicates"] ** 0.5
    assert stored.card["metrics"]["gamma 0.1"]["recovered"][0] == 25
    # The control: without R1 the rarest mode is all but lost.
    assert stored.card["metrics"]["gamma 0.0"]["min_share"][0] < 0.2


def test_a_small_run_of_the_gans_is_stored(tmp_path):
    gaussians25_r1.main(["--steps", "2", "--replicates", "2", "--out", str(tmp_path)])
    stored = checkpoints.load("gaussians25_r1", folder=tmp_path)
    assert stored.networks["generator"](torch.zeros(2, 3, 2)).shape == (2, 3, 2)
    assert stored.card["settings"]["steps"] == 2


# --- plane_gans ---


def test_gans_of_the_plane_are_stored_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plane_gans, "N_SAMPLES", 50)
    monkeypatch.setattr(plane_gans, "N_EMD", 20)
    games = {
        name: game._replace(settings={**game.settings, "n_steps": 2})
        for name, game in plane_gans.GAMES.items()
    }
    monkeypatch.setattr(plane_gans, "GAMES", games)
    arguments = ["--refit-steps", "2", "--replicates", "2", "--out", str(tmp_path)]
    plane_gans.main(arguments)
    for name in games:
        stored = checkpoints.load(name, folder=tmp_path)
        latents = torch.zeros(2, 3, plane_gans.GENERATOR["in_features"])
        assert stored.networks["generator"](latents).shape == (2, 3, 2)
        for part in ("discriminator", "discriminator_refitted"):
            assert stored.networks[part](torch.zeros(2, 3, 2)).shape == (2, 3)
        assert stored.card["metrics"]["generator"]["emd"][0] > 0
    capsys.readouterr()
    plane_gans.main(arguments)
    assert capsys.readouterr().out.count("kept") == len(games)
    damaged = tmp_path / "swiss_roll_gan.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    with pytest.raises(RuntimeError, match="or run the recipe"):
        checkpoints.load("swiss_roll_gan", folder=tmp_path)
    plane_gans.main(arguments)
    assert capsys.readouterr().out.count("kept") == len(games) - 1
    assert damaged.read_bytes() == whole


@pytest.mark.parametrize("name", plane_gans.GAMES)
def test_the_stored_gans_of_the_plane_are_those_of_the_recipe(name, monkeypatch):
    def is_stored():
        args = argparse.Namespace(seed=0)
        return runs.begin("plane_gans", plane_gans.settings_of(name, 6000, 10), args).is_stored(
            name, None
        )

    assert is_stored()
    monkeypatch.setitem(plane_gans.REFITTED, "fourier", [64, 7.0])
    assert not is_stored()


@pytest.mark.parametrize("name", plane_gans.GAMES)
def test_stored_gans_of_the_plane_score_as_their_cards_say(name):
    stored, law = checkpoints.load(name), plane_gans.GAMES[name].law
    generator, refitted = (stored.networks[k] for k in ("generator", "discriminator_refitted"))
    latent_dim, rng = plane_gans.GENERATOR["in_features"], seeded(7, "cpu")
    drawn = generator(randn(10, 1000, latent_dim, generator=rng))
    chains = mh_gan(Gan(generator, refitted, latent_dim), 1000, rng, replicates=10, n_steps=100)
    key, tolerance = ("emd", 0.03) if law.means is None else ("high_quality", 0.015)
    for who, x in (("generator", drawn), ("mh_gan, refitted", chains.samples)):
        expected = stored.card["metrics"][who][key][0]
        assert plane_gans.score(x, law, rng)[key][0] == pytest.approx(expected, abs=tolerance)


# --- mnist_gan ---


def test_the_stored_mnist_gans_score_as_their_card_says():
    stored, judge = checkpoints.load("mnist_gan"), checkpoints.load("mnist_features")
    generator, refitted = (stored.networks[k] for k in ("generator", "discriminator_refitted"))
    classifier, rng = judge.networks["classifier"], seeded(7, "cpu")
    truth = judge.tensors["test_mean"], judge.tensors["test_covariance"]
    features, logits = [], []
    with torch.no_grad():
        for _ in range(8):
            images = generator(randn(5, 250, mnist_gan.LATENT_DIM, generator=rng))
            features.append(torch.stack([classifier.features(part) for part in images]))
            logits.append(refitted(images))
    features, logits = torch.cat(features, dim=1), torch.cat(logits, dim=1)
    fid = [frechet_distance(*moments(part), *truth) for part in features]
    card = stored.card["metrics"]
    assert sum(fid) / 5 == pytest.approx(card["fid"][0], abs=4)
    assert card["fid"][2] < card["fid_dcgan"]
    # The classifier of the refit is not the one that scores, and choosing by it mends the samples.
    own = refitted.features.state_dict()
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


@pytest.fixture
def small_images(small_mnist, monkeypatch):
    monkeypatch.setenv("GAN_EBM_DATA", str(small_mnist))


def test_training_moves_the_weights_in_half_precision(small_images):
    """Within one autocast context with its cache the networks would see their first weights."""
    first, second = (mnist_gan.train(0, steps) for steps in (1, 6))
    moved = (first["generator.linear.weight"] - second["generator.linear.weight"]).abs().max()
    assert moved > 2 * mnist_gan.TRAINING["learning_rate"]


def test_a_run_of_the_mnist_gans_goes_on(small_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mnist_gan, "N_FID", 1000)
    monkeypatch.setitem(mnist_gan.CLASSIFIER, "steps", 2)
    arguments = ["--steps", "1", "--refit-steps", "1", "--replicates", "2"]
    folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    real = mnist_gan.train_dcgan
    monkeypatch.setattr(mnist_gan, "train_dcgan", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mnist_gan.main([*arguments, *folders])
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "state").glob("mnist_gan-*/*.pt"))) == 4
    (file,) = (tmp_path / "state").glob("mnist_gan-*/classifier.pt")
    features = runs.read(file)["made"]
    monkeypatch.setattr(mnist_gan, "train_dcgan", real)
    monkeypatch.setattr(mnist_gan, "train", lambda *a: 1 / 0)  # what is done is not done again
    mnist_gan.main([*arguments, *folders])
    stored = checkpoints.load("mnist_gan", folder=tmp_path / "out")
    images = stored.networks["generator"](torch.zeros(2, 3, mnist_gan.LATENT_DIM))
    assert images.shape == (2, 3, 1, 28, 28)
    for part in ("discriminator", "discriminator_refitted"):
        assert stored.networks[part](images).shape == (2, 3)
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
    finished = sorted((tmp_path / "state").rglob("*.pt"))
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
    assert len(list(other.glob("*.pt"))) == 8, "the parts with the other box"
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
    for setting, value in json.loads(json.dumps(game)).items():
        assert stored.card["settings"][setting] == value
    replicates, budgets = gans["settings"]["replicates"], game["budgets"]
    runs = {f"refitted/{sampler}/{b}": b for sampler in one_budget.SAMPLERS for b in budgets}
    runs |= {f"own/{sampler}/{budgets[-2]}": budgets[-2] for sampler in one_budget.OWN}
    runs |= {f"refitted/ddls/{b}": b for b in game.get("longer", ())}
    error = "fid" if name == "mnist" else "emd"
    for run, budget in runs.items():
        assert stored.tensors[f"{run}/{error}"].shape == (replicates,)
        assert stored.tensors[f"{run}/passes"].max() < 1.15 * budget
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
    networks, rng = checkpoints.load("gaussians25_gan").networks, seeded(7, "cpu")
    found = {}
    for which, part in (("refitted", "discriminator_refitted"), ("own", "discriminator")):
        gan = Gan(networks["generator"], networks[part], 4)
        done = one_budget.run("mh_gan", gan, 1000, 1000, 10, 100, None, 7)
        report = mode_report(done.samples, gaussian_grid().means, one_budget.STD)
        found[which] = report.high_quality.mean()
        expected = stored.tensors[f"{which}/mh_gan/100/high_quality"].mean()
        assert found[which] == pytest.approx(float(expected), abs=0.02)
    assert found["own"] < found["refitted"] - 0.05  # the control: it matters which one is asked
    z = randn(10, 2000, 4, generator=rng)
    report = mode_report(networks["generator"](z), gaussian_grid().means, one_budget.STD)
    expected = stored.tensors["none/generator/1/inlier_std"].mean()
    assert report.inlier_std.mean() == pytest.approx(float(expected), abs=0.001)


def test_a_stored_fid_is_found_again():
    stored, judge = checkpoints.load("one_budget_mnist"), checkpoints.load("mnist_features")
    truth = stored.tensors["scoring_mean"], stored.tensors["scoring_covariance"]
    networks, rng = checkpoints.load("mnist_gan").networks, seeded(7, "cpu")
    n, features = stored.card["settings"]["n"], judge.networks["classifier"].features
    with torch.no_grad():
        images = [networks["generator"](randn(5, 250, 32, generator=rng)) for _ in range(n // 250)]
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


def test_settings_are_chosen_on_the_half_that_is_not_scored(small_mnist, monkeypatch):
    monkeypatch.setenv("GAN_EBM_DATA", str(small_mnist))
    judge = one_budget.mnist_judge(20, 2, 0)
    images = datasets.mnist("test").images
    choosing, scoring = one_budget.halves(len(images), 0)
    own, other = (images[rows].expand(2, -1, -1, -1, -1) for rows in (choosing, scoring))
    assert judge.error(own) < 1e-2 < judge.error(other)
    assert judge.score(other)["fid"].max() < 1e-2 < judge.score(own)["fid"].min()
    real = judge.real()  # the floor is of images that are not scored against
    assert judge.score(real)["fid"].min() > 1e-2


def test_each_sampler_stays_within_its_budget():
    networks = checkpoints.load("swiss_roll_gan").networks
    gan = Gan(networks["generator"], networks["discriminator_refitted"], 4)
    for sampler in one_budget.SAMPLERS:
        setting = (1e-3, 1e-4) if sampler == "ddls" else 1e-3
        done = one_budget.run(sampler, gan, 1000, 1000, 10, 20, setting, 0)
        assert done.samples.shape == (10, 1000, 2)
        assert 12 < done.passes < 26, sampler  # rejection: what the slowest of ten needs


def test_a_budget_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    few = {"ddls": ((1e-3,),), "langevin": (1e-3, 1e-4), "dot": (0.01,), "dgflow": (0.002,)}
    short = {"budgets": (10, 40), "longer": (50,), "settings": few, "n_emd": 50}
    game = one_budget.GAMES["gaussians25"] | short
    monkeypatch.setitem(one_budget.GAMES, "gaussians25", game)
    monkeypatch.setattr(one_budget, "MIN_WATCHED", 40)
    folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    real, watched, scored = one_budget.measure, one_budget.watch, []
    monkeypatch.setattr(one_budget, "watch", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one_budget.main(["gaussians25", "--n", "500", *folders])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(one_budget, "watch", watched)
    monkeypatch.setattr(one_budget, "measure", lambda *a: scored.append(a[3]) or real(*a))
    one_budget.main(["gaussians25", "--n", "500", *folders])
    # The first run had finished all at 10 but those with the trained discriminator.
    assert scored.count(10) == len(one_budget.OWN)
    stored = checkpoints.load("one_budget_gaussians25", folder=tmp_path / "out")
    assert stored.tensors["refitted/mh_gan/40/rhat"].shape == (10,)
    assert stored.card["metrics"]["own/ddls/10/emd"][0] > 0
    assert stored.tensors["refitted/ddls/50/passes"].tolist() == [pytest.approx(48, abs=2)] * 10
    assert "refitted/dot/50/passes" not in stored.tensors
    assert stored.card["chosen"].keys() == {f"refitted/langevin/{b}-choice" for b in (10, 40)}
    assert os.listdir(tmp_path / "state") == []


@pytest.mark.parametrize("sampler", ["ddsl", "drs", "dot"])
def test_a_sampler_without_known_chains_is_refused(sampler):
    networks = checkpoints.load("swiss_roll_gan").networks
    gan = Gan(networks["generator"], networks["discriminator_refitted"], 4)
    assert one_budget.kernel_of("dgflow", gan, 1e-3)[1] == 2
    with pytest.raises(ValueError, match=f"mh_gan.*, whose chains are known, got '{sampler}'"):
        one_budget.kernel_of(sampler, gan, 1e-3)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="one of drs, .*, got 'ddsl'"):
        one_budget.arguments("ddsl", 10, 100, 1e-3)


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
    judge = one_budget.Judge(None, None, None, None, {}, {})
    found = one_budget.watch("mh_gan", gan, 2, 1000, None, judge, 0)
    assert found["still"].tolist() == [0.05, 0.95]
    moving = torch.cat([positions[:, 0, :3], positions[:, 0, 4:]], dim=1)
    assert found["rhat"].tolist() == [float(one_budget.metrics.rhat(moving).max()), math.inf]
    # For 1,000 passes of a chain, those of the chain that stands still included.
    worth = float(one_budget.metrics.ess(moving).min())
    assert found["ess"].tolist() == [worth / one_budget.N_CHAINS, 0.0]
