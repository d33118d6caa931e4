"""Run a recipe on tiny settings in a process of its own, kill it, and compare what it made.

Processes are forked from a server that has imported everything once.
"""

import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time

import matplotlib
import torch
from PIL import Image

from gan_ebm_utils import checkpoints, runs
from gan_ebm_utils.networks import ImageClassifier, stack_discriminator, stack_generator

# Of each recipe: its options, and constants of its module that are smaller in the tests.
OPTIONS = {
    "cifar10_chains": ["--jobs", "1"],
    "cifar10_features": [],
    "cifar10_sngan": [],
    "cover": ["--steps", "20"],
    "digits_classifier": ["--steps", "20"],
    "ebgan_grid": ["--reduced", "--jobs", "1"],
    "gan_with_ebm": ["--rounds", "4", "--refit-steps", "5", "--replicates", "2"],
    "hybrids": ["--steps", "3", "--refit-steps", "3", "--replicates", "2"],
    "mnist_autoencoders": ["--steps", "2", "--replicates", "2"],
    "mnist_features": ["--epochs", "4"],
    "mnist_gan": ["--steps", "2", "--refit-steps", "2", "--replicates", "2"],
    "mnist_meg_anomaly": ["--steps", "2", "--seeds", "2", "--jobs", "1"],
    "one_budget": ["gaussians25", "--n", "200"],
    "plain_refit": ["--refit-steps", "5"],
    "plane_begans": ["--replicates", "2"],
    "plane_directed": ["--replicates", "2"],
    "plane_ebgans": ["--refit-steps", "5", "--replicates", "2"],
    "plane_ebms": ["--steps", "10", "--replicates", "2"],
    "plane_gans": ["--refit-steps", "5", "--replicates", "2"],
    "plane_meg": ["--refit-steps", "5", "--replicates", "2"],
    "stacked_classifier": ["--epochs", "1"],
    "stacked_mnist": ["--jobs", "1"],
    "stacked_refined": [],
}


def make_tiny(recipe):
    """Shrink the constants of a recipe's module."""
    module = importlib.import_module(f"gan_ebm_utils.recipes.{recipe}")
    if recipe == "cifar10_chains":
        module.CHAINS |= {"points": [2, 3], "n": 8, "part": 4}
        del module.KINDS["hinge, no noise"]
        _tiny_judge(module)
    if recipe == "cifar10_features":
        module.SIZES["small"] |= {"width": 2, "epochs": 3}
        module.N_TRAIN = 12
    if recipe == "cifar10_sngan":
        small = {"width_g": 2, "width_d": 2, "steps": 4}
        sizes = {"latent_dim": 4, "batch_size": 4, "batch_size_g": 6}
        module.SIZES["quarter"] |= {**sizes, "sngan": small, "dcgan": small}
        module.CLASSIFIER |= {"width": 2, "epochs": 2}
        module.HIDDEN, module.N_POINTS, module.PART = (4,), 2, 10
        module.REFIT |= {"n_steps": 3, "batch_size": 4}
        module.N_LEARNED, module.N_REFIT, module.N_HELD_OUT, module.N_FID = 8, 8, 2, 20
        module.calibrated = lambda *_: None  # two logits are too few
        module.FID_SIZES, module.N_NEAR, module.N_PAIRS = (4,), 6, 2
        module.cifar10_features.N_TRAIN = 12
        _tiny_judge(module)
    if recipe == "cover":
        module.N_KERNELS, module.N_SCORED, module.LEAST = 50, 200, 0.0
    if recipe == "ebgan_grid":
        axes = {"n_layer_g": [2], "size_g": [8, 9], "n_layer_d": [2], "size_d": [8]}
        module.GRIDS["reduced"]["axes"] = {**axes, "dropout": [False, True]}
        module.GRIDS["reduced"]["training"] |= {"replicates": 2, "n_steps": 10}
        module.SCORING |= {"n_samples": 50, "n_distances": 20}
    if recipe == "gan_with_ebm":
        module.N_STEPS, module.BUFFER, module.EVERY, module.TEMPERATURES = 2, 100, 2, (1.0, 0.1)
        module.LONGER = {"moons_gan_ebm": (4, 2)}
        for name, game in module.GAMES.items():
            tiny = {"gan": {**game.gan, "batch_size": 8}, "n_long": 3, "n_scored": 50}
            module.GAMES[name] = game._replace(**tiny)
    if recipe == "hybrids":
        module.N_SAMPLES, module.N_PROPOSALS, module.N_SHOWN = 20, 2, 5
        del module.LAWS["gaussians25_hybrids"]
        for kind in ("vae_gan", "veegan"):
            del module.LOSSES[kind]
    if recipe == "mnist_autoencoders":
        importlib.import_module("gan_ebm_utils.recipes.mnist_gan").N_FID = 100
        module.N_ENERGIES = 10
        for game in module.GAMES.values():
            game.generator["width"] = 4
    if recipe == "mnist_gan":
        module.N_FID, module.N_REFIT = 100, 100
        module.CLASSIFIER["steps"] = module.GENERATOR["width"] = module.DCGAN["width"] = 4
    if recipe == "mnist_meg_anomaly":
        module.DIGITS, module.N_POINTS = (1, 4), 2
        module.SIZES |= {"width_g": 4, "width_d": 2, "width_t": 2, "batch_size": 4}
        module.BASELINES |= {"components": 4, "neighbour": 2, "mixture": 2, "n_fit": 50}
    if recipe == "one_budget":
        tiny = {"budgets": (10, 20), "n_choice": 100, "part": 100, "n_emd": 50}
        module.GAMES["gaussians25"] |= {**tiny, "cells": ((-2.5, 2.5, -2.5, 2.5), 2)}
        module.MIN_WATCHED, module.N_CHAINS = 20, 3
        for name in ("isir_gan", "langevin", "dgflow"):
            del module.SAMPLERS[name]
        module.DOT_SIZES["gaussians25"] = (0.01, 0.1)
    if recipe == "plane_begans":
        module.EVERY, module.SNAPSHOT, module.N_EMD = 2, 2, 20
        for name, game in module.GAMES.items():
            game.settings["n_steps"] = 4
            module.GAMES[name] = game._replace(n_scored=50)
    if recipe == "plane_directed":
        module.EVERY, module.N_COURSE, module.N_CELLS = 2, 20, 100
        module.N_SAMPLES, module.N_EMD, module.N_SHOWN = 50, 50, 20
        module.DESCENT["n_steps"] = module.GAME["n_steps"] = 3
        module.GAME["g_steps"] = 1
        module.FIXED, module.LEARNED = ("none", "1", "coordinates", "exact"), ("1", "exact")
    if recipe == "plane_ebgans":
        module.N_SAMPLES, module.N_SHOWN = 50, 20
        module.refit.__globals__["N_REFIT"] = 200
        for game in module.GAMES.values():
            game.settings["n_steps"] = 3
    if recipe == "plane_ebms":
        module.LAWS, module.N_CELLS = ("moons",), 100
    if recipe in ("plane_gans", "plain_refit"):
        plane = importlib.import_module("gan_ebm_utils.recipes.plane_gans")
        plane.N_SAMPLES, plane.N_EMD, plane.N_PROPOSALS, plane.N_REFIT = 50, 20, 3, 200
        for game in plane.GAMES.values():
            game.settings["n_steps"] = 5
    if recipe == "plane_meg":
        module.NAMES = ("gaussians25_meg", "meg_sweep")  # the other's density takes a second
        module.LAWS["gaussians25_meg"] = module.LAWS["gaussians25_meg"]._replace(steps=(4, 4))
        module.CHAINS["n_steps"] = 4
        module.N_CENTRES, module.N_POOL, module.N_CANDIDATES = 20, 100, 50
        module.N_SAMPLES, module.N_DISTANCE, module.N_CELLS = 50, 20, 160
    if recipe == "stacked_mnist":
        sizes = {"width_g": 4, "width_d": 4, "latent_dim": 4, "batch_size": 8, "decay": 0.5}
        long = {"steps": {"1": 8, "5": 4}}
        module.SIZES["half"] |= {**sizes, "steps": {"1": 4, "5": 2}, "long": long}
        module.SCORING |= {"n_points": 2, "n_course": 50, "n_last": 60, "samplings": 2}
        module.SEEDS, module.NARROW = {"meg": 2}, {"relativistic_r1_r2": [2]}
        for loss in ("wgan_gp", "non_saturating"):
            del module.LOSSES[loss]
    if recipe == "stacked_refined":
        _tiny_pairs(module)
        module.REFIT |= {"n_steps": 3, "batch_size": 4}
        module.HIDDEN = (4,)
        module.N_REFIT, module.N_STACKS, module.N_HELD_OUT = 50, 12, 4
        module.calibrated = lambda *_: None  # four logits are too few
        module.N_SAMPLES, module.PART, module.N_CHOICE = 80, 80, 80
        module.SAMPLERS = {"mh": {"n_steps": 2}, "ddls": {"n_steps": 1}}
        module.STEP_SIZES = (0.3, 0.1)
    return module


def _tiny_pairs(module):
    """Let a recipe find pairs of networks of Stacked MNIST that nobody has trained."""
    stored = module.checkpoints.load

    def load(name, device="cpu", folder=None):
        if not name.startswith("stacked_mnist_"):
            return stored(name, device, folder)
        rng = torch.Generator().manual_seed(len(name))
        pair = {
            "generator": stack_generator(4, 5, generator=rng).eval(),
            "discriminator": stack_discriminator(4, generator=rng),
        }
        how = {"generator": {"kwargs": {"latent_dim": 5}}}
        return checkpoints.Checkpoint(pair, {}, {"sha256": name, "networks": how})

    module.checkpoints.load = load


def _tiny_judge(module):
    """Let a recipe find a classifier and a GAN of the small CIFAR-10 that nobody has trained."""
    stored = module.checkpoints.load

    def load(name, device="cpu", folder=None):
        if name == "cifar10_sngan" and folder is None:
            rng = torch.Generator().manual_seed(1)
            trio = {
                "generator": stack_generator(4, 5, side=32, generator=rng).eval(),
                "discriminator": stack_discriminator(2, side=32, generator=rng),
                "discriminator_refitted": stack_discriminator(4, side=32, generator=rng),
            }
            how = {"generator": {"kwargs": {"latent_dim": 5}}}
            return checkpoints.Checkpoint(trio, {}, {"sha256": "8", "networks": how})
        if name != "cifar10_features":
            return stored(name, device, folder)
        classifier = ImageClassifier(2, generator=torch.Generator().manual_seed(0)).eval()
        moments = {"test_mean": torch.zeros(16), "test_covariance": torch.eye(16)}
        card = {"sha256": "9", "metrics": {"frechet_held_out_test": {"value": 1.0}}}
        card |= {"data_sha256": runs.cifar10_source()["data_sha256"]}
        return checkpoints.Checkpoint({"classifier": classifier}, moments, card)

    module.checkpoints.load = load


def _run(recipe, options, folder, data, stop_after):
    """The whole of a process; it kills itself when `stop_after` parts are stored."""
    os.environ |= {"GAN_EBM_DATA": str(data), "GAN_EBM_DEVICE": "cpu", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    matplotlib.use("agg")
    sys.stdout = (folder / "log").open("a", buffering=1)
    module, whole, stored = make_tiny(recipe), runs.store, []

    def store(state, file):
        whole(state, file)
        stored.append(file)
        if len(stored) == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    runs.store = store
    module.main([*OPTIONS[recipe], *options])


def start(recipe, folder, data, seed=0, stop_after=None):
    """A process that runs `recipe`; what it makes and its state go to `folder`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"gan_ebm_utils.recipes.{name}" for name in OPTIONS])
    folder.mkdir(exist_ok=True)
    out = folder / "out" / ("cover.png" if recipe == "cover" else "")
    options = ["--out", str(out), "--state", str(folder / "state"), "--seed", str(seed)]
    process = context.Process(target=_run, args=(recipe, options, folder, data, stop_after))
    process.start()
    return process


def finish(process):
    process.join(120)
    assert process.exitcode == 0


def made_by(folder):
    """All that a run wrote, but for dates and seconds: tensors and numbers by name."""
    found = {}
    for name in checkpoints.available(folder / "out"):
        stored = checkpoints.load(name, folder=folder / "out")
        found |= {f"{name}/{k}": v for k, v in stored.tensors.items()}
        for part, network in stored.networks.items():
            found |= {f"{name}/{part}/{k}": v for k, v in network.state_dict().items()}
        found |= numbers(stored.card, name)
    for file in (folder / "out").glob("*.png"):
        picture = Image.open(file)
        found["picture"] = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        found |= numbers(json.loads(picture.text["Description"]), "facts")
    return found


def numbers(card, name):
    """The leaves of a card by their path, but for dates and seconds."""
    if not isinstance(card, dict | list):
        return {name: card}
    found = {}
    for key, value in card.items() if isinstance(card, dict) else enumerate(card):
        if not str(key).startswith(("seconds", "date")):
            found |= numbers(value, f"{name}/{key}")
    return found


def differences(one, other):
    """The names of what two runs made differently, or only one of them."""

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a.nan_to_num(), b.nan_to_num())
        return a == b

    both = one.keys() & other.keys()
    return sorted((one.keys() ^ other.keys()) | {k for k in both if not same(one[k], other[k])})


def parts_left(folder):
    """How many parts a run that was cut off has not told of."""
    told = re.findall(r"part (\d+) of (\d+)", (folder / "log").read_text())
    return max(0, int(told[-1][1]) - max(int(number) for number, _ in told)) if told else 1


def unbroken(recipe, folder, data):
    """The seconds of a run that nobody kills."""
    begin = time.perf_counter()
    finish(start(recipe, folder, data))
    return time.perf_counter() - begin


def killed_twice(recipe, folder, data, seconds, rng):
    """Kill a run at a random time, a second start after a random part, and let a third one end."""
    process = None
    for attempt in range(10):
        cut = folder.with_name(f"{folder.name}-{attempt}")
        process = start(recipe, cut, data)
        process.join(seconds * rng.uniform(0.1, 0.9))
        process.kill()  # SIGKILL; a run that has already ended is tried again
        process.join()
        if process.exitcode == -signal.SIGKILL:
            break
    assert process.exitcode == -signal.SIGKILL
    left = parts_left(cut)
    if left:
        process = start(recipe, cut, data, stop_after=rng.randint(1, left))
        process.join(120)
        assert process.exitcode in (-signal.SIGKILL, 0)  # 0: one more was stored than was told of
    finish(start(recipe, cut, data))
    return cut
