"""The grid of EBGAN's settings, on a tiny one: its table, its batches, its stores, its engines."""

import argparse
import contextlib
import itertools
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from gan_ebm_utils import checkpoints, datasets, metrics, runs
from gan_ebm_utils.base import seeded
from gan_ebm_utils.networks import StackedLinear
from gan_ebm_utils.recipes import digits_classifier, ebgan_grid
from gan_ebm_utils.recipes.ebgan_grid import GRIDS, SCORES, Setting, settings_in

# --- the tables ---


def test_the_full_table_is_that_of_the_paper():
    rows = settings_in(GRIDS["full"])
    counts = {family: sum(row.family == family for row in rows) for family in ("EBGAN", "GAN")}
    assert counts == {"EBGAN": 512, "GAN": 6144}
    assert len(set(rows)) == len({row.name for row in rows}) == 6656
    ebgan = {(row.optim_g, row.optim_d, row.rate) for row in rows if row.family == "EBGAN"}
    assert ebgan == {("Adam", "Adam", 0.001)}
    # Of the GAN's twelve grids each has the 512 architectures of EBGAN.
    shapes = {row[1:6] for row in rows if row.family == "EBGAN"}
    further = {row[6:] for row in rows if row.family == "GAN"}
    assert len(shapes) == 512 and len(further) == 12
    for one in further:
        assert {row[1:6] for row in rows if row.family == "GAN" and row[6:] == one} == shapes


def test_the_families_of_the_reduced_table_have_the_same_settings():
    rows = settings_in(GRIDS["reduced"])
    of = {family: {row[1:] for row in rows if row.family == family} for family in
          ("GAN", "EBGAN", "EBGAN-PT")}  # fmt: skip
    assert of["GAN"] == of["EBGAN"] == of["EBGAN-PT"] and len(of["GAN"]) >= 24
    assert {row[6:] for row in rows} == {("Adam", "Adam", 0.001)}


# --- training ---

TINY = {
    **ebgan_grid.TRAINING,
    "replicates": 2,
    "n_steps": 6,
    "batch_size": 16,
    "latent_dim": 3,
    "margin": 0.1,
}
SCORING = {"n_samples": 40, "n_distances": 20, "least_share": 0.01}


def setting(family="GAN", **changes):
    return Setting(family, 3, 8, 3, 8, False, "Adam", "Adam", 0.001)._replace(**changes)


def layers(network):
    return [(m.weight.shape[1:]) for m in network.modules() if isinstance(m, StackedLinear)]


@pytest.mark.parametrize("family", ["GAN", "EBGAN", "EBGAN-PT"])
@pytest.mark.parametrize("n_layers", [2, 4])
def test_layers_are_counted_as_in_the_paper(family, n_layers):
    row = setting(family, n_layer_g=n_layers, n_layer_d=n_layers, dropout=True)
    generator, judge = ebgan_grid.networks_of([row], TINY, 64, [seeded(0, "cpu")])
    inner = [(8, 8)] * (n_layers - 2)
    assert layers(generator) == [(3, 8), *inner, (8, 64)]
    # An autoencoder: all layers but one encode, one decodes.
    assert layers(judge) == [(64, 8), *inner, (8, 1 if family == "GAN" else 64)]
    assert sum(isinstance(m, ebgan_grid.Dropout) for m in judge.modules()) == 1  # used n - 1 times
    x = torch.zeros(2, 5, 64)
    assert judge(x).shape == (2, 5)
    if family != "GAN":
        assert judge.energy.autoencoder.codes.shape == (2, 5, 8)
        assert (judge(x) <= 0).all()


def images():
    return datasets.digits().images.flatten(1)


def weights_after(rows, seed=0, **changes):
    """The generators' weights of each setting, as one vector each."""
    played = ebgan_grid.play(rows, {**TINY, **changes}, images(), seed)
    flat = torch.cat([p.flatten(1) for p in played.generator.parameters()], dim=1)
    return list(flat.detach().chunk(len(rows))), played.diverged


@pytest.mark.parametrize(
    "rows",
    [
        [setting(), setting(dropout=True)],
        [setting("EBGAN"), setting("EBGAN-PT"), setting("EBGAN-PT", dropout=True)],
        [setting(optim_g="SGD", optim_d="SGD", rate=0.01)],
    ],
)
def test_a_setting_is_the_same_alone_and_in_a_batch(rows):
    together, _ = weights_after(rows)
    for row, found in zip(rows, together, strict=True):
        (alone,), _ = weights_after([row])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
        (other,), _ = weights_after([row], seed=1)
        assert (alone - other).abs().max() > 0.1
        (start,), _ = weights_after([row], n_steps=1)
        assert not torch.allclose(alone, start, atol=1e-5)
    for a, b in itertools.pairwise(together):
        assert not torch.allclose(a, b, atol=1e-3)


def test_the_pulling_away_term_and_dropout_change_what_is_learnt():
    base = setting("EBGAN")
    rows = {
        "base": base,
        "pt": base._replace(family="EBGAN-PT"),
        "drop": base._replace(dropout=True),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ebgan_grid, "seed_of", lambda seed, row: seed)  # the same draws for all
        found = {name: weights_after([row])[0][0] for name, row in rows.items()}
        (none,), _ = weights_after([rows["pt"]], pulling_away=0.0)
    torch.testing.assert_close(none, found["base"])
    assert not torch.allclose(found["pt"], found["base"], atol=1e-5)
    assert not torch.allclose(found["drop"], found["base"], atol=1e-5)


def test_dropout_draws_for_each_setting_on_its_own():
    rngs = [seeded(seed, "cpu") for seed in (0, 1)]
    drop, ones = ebgan_grid.Dropout([0.5, 0.0], rngs), torch.ones(4, 200, 50)
    dropped, kept = drop(ones).chunk(2)
    assert torch.equal(kept, ones[:2])
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert float((dropped == 0).double().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.fixture
def spoiled(monkeypatch):
    """The second replicate of each batch cannot have finite losses."""
    whole = ebgan_grid.networks_of

    def networks_of(*arguments):
        generator, judge = whole(*arguments)
        with torch.no_grad():
            next(judge.parameters())[1] = math.inf
        return generator, judge

    monkeypatch.setattr(ebgan_grid, "networks_of", networks_of)


def made(rows, **changes):
    data, training = ebgan_grid.read("digits"), {**TINY, **changes}
    return ebgan_grid.made(rows, training, SCORING, "digits", data.source, 0)


@pytest.mark.parametrize("family", ["GAN", "EBGAN", "EBGAN-PT"])
def test_a_replicate_that_diverges_harms_no_other(family, spoiled, monkeypatch):
    rows = [setting(family), setting(family, dropout=True)]
    (one, two), seconds = made(rows)
    assert one["diverged"].tolist() == [-1, 0] and two["diverged"].tolist() == [-1, -1]
    assert seconds > 0
    monkeypatch.undo()
    (whole, _), _ = made(rows)
    for name in SCORES:
        assert one[name].isfinite().tolist() == [True, False]
        assert two[name].isfinite().all() and whole[name].isfinite().all()
        torch.testing.assert_close(one[name][0], whole[name][0])


def test_the_step_of_divergence():
    steep = setting(optim_g="SGD", optim_d="SGD", rate=1e25)
    ((one,), _) = made([steep])
    # In step 0 the generator's loss sees the discriminator after a step of 1e25: it may overflow.
    assert (one["diverged"] >= 0).all() and (one["diverged"] < TINY["n_steps"]).all()
    (two,), _ = made([steep._replace(rate=0.01)])
    assert two["diverged"].tolist() == [-1, -1]


def test_workers_must_have_the_data_of_the_client():
    source = {**ebgan_grid.read("digits").source, "data_sha256": "0"}
    with pytest.raises(RuntimeError, match="install the same package and data"):
        ebgan_grid.made([setting()], TINY, SCORING, "digits", source, 0)


# --- scores ---


def test_scores_of_images_are_better_than_those_of_noise():
    data = ebgan_grid.read("digits")
    rng = seeded(0, "cpu")
    x = datasets.minibatches(data.images)((2, 1000), rng)
    scoring = {**ebgan_grid.SCORING, "n_samples": 1000}
    real = ebgan_grid.score(x, data, scoring)
    noise = ebgan_grid.score(2 * torch.rand(x.shape, generator=rng) - 1, data, scoring)
    one = ebgan_grid.score(x[:, :1].expand_as(x).clone(), data, scoring)
    assert (real["inception"] > 9).all() and (noise["inception"] < 5).all()
    assert (real["classes"] == 10).all() and (one["classes"] == 1).all()
    assert ((real["spread"] - 1).abs() < 0.05).all() and (one["spread"] == 0).all()
    assert (real["energy_distance"].abs() < 0.03).all() and (noise["energy_distance"] > 1).all()
    assert torch.allclose(one["inception"], torch.ones(2).double())


# --- starts ---


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A grid of 8 settings in 4 tasks; a function that runs it, and one that counts the tasks."""
    grid = {
        "data": "digits",
        "axes": {
            "n_layer_g": [2],
            "size_g": [8, 9],
            "n_layer_d": [2],
            "size_d": [8],
            "dropout": [False, True],
        },
        "families": {family: ebgan_grid.ADAM for family in ("GAN", "EBGAN-PT")},
        "training": {**TINY, "n_steps": 4},
        "together": {"most": 2, "widest": 9},
    }
    monkeypatch.setitem(GRIDS, "reduced", grid)
    monkeypatch.setattr(ebgan_grid, "SCORING", SCORING)
    done, made = [], ebgan_grid.made

    def counted(settings, *arguments):
        done.extend(setting.name for setting in settings)
        return made(settings, *arguments)

    monkeypatch.setattr(ebgan_grid, "made", counted)

    def start(*options, folder="a", jobs=1):
        done.clear()
        folders = ["--state", str(tmp_path / folder / "state"), "--out", str(tmp_path / folder)]
        ebgan_grid.main(["--reduced", "--jobs", str(jobs), *folders, *options])
        return list(done)

    return start


def table(folder):
    return checkpoints.load("ebgan_grid", folder=folder).tensors


NAME = "GAN_G2x8_D2x8_dropout_Adam_Adam_0.001"


def test_a_grid_is_stored_with_a_row_for_each_setting(tiny, tmp_path, capsys):
    assert len(tiny()) == 8
    told = capsys.readouterr().out
    assert "part 8 of 8: " in told and "left" in told and "median inception score" in told
    stored = checkpoints.load("ebgan_grid", folder=tmp_path / "a")
    rows = [Setting(**row) for row in stored.card["metrics"]["rows"]]
    assert rows == settings_in(GRIDS["reduced"])
    assert stored.tensors.keys() == {*SCORES, "diverged"}
    assert all(value.shape == (8, 2) for value in stored.tensors.values())
    assert stored.card["threads"] == stored.card["jobs"] == 1
    assert stored.card["metrics"]["of_images"]["inception"] > 5
    assert not list((tmp_path / "a").rglob("*.pt"))
    # A second start says what was kept, and how to make it anew.
    assert tiny() == []
    assert f"kept; to make it anew, remove {tmp_path / 'a' / 'ebgan_grid.json'}" in (
        capsys.readouterr().out
    )
    (tmp_path / "a" / "ebgan_grid.json").unlink()
    assert len(tiny()) == 8
    assert torch.equal(table(tmp_path / "a")["spread"], stored.tensors["spread"])


def test_a_second_start_does_what_is_missing(tiny, tmp_path, capsys, monkeypatch):
    # Cut off after three settings were stored: a task of two, and one of the next.
    whole, stored = runs.store, []

    def store(state, file):
        whole(state, file)
        stored.append(file)
        if len(stored) == 5:  # a task as it arrived, its settings, the next task, one of it
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "store", store)
        with pytest.raises(KeyboardInterrupt):
            tiny()
    stored[1].write_bytes(stored[1].read_bytes()[:-1])  # damaged
    capsys.readouterr()
    made = tiny()
    assert len(made) == 5 and len(set(made)) == 5, "what had arrived is not made again"
    assert "is damaged and is made again" in capsys.readouterr().out
    tiny(folder="b")
    for name, value in table(tmp_path / "b").items():
        found = table(tmp_path / "a")[name]
        torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_processes_of_this_machine_make_the_same_table(tiny, tmp_path):
    tiny()
    assert tiny(folder="b", jobs=2) == []  # in other processes
    for name, value in table(tmp_path / "a").items():
        assert torch.equal(table(tmp_path / "b")[name], value)


def test_only_some_settings(tiny, tmp_path, capsys):
    assert tiny("--only", NAME) == [NAME]
    assert "7 of 8 settings are missing" in capsys.readouterr().out
    assert tiny("--only", NAME) == []
    told = capsys.readouterr().out
    (file,) = (tmp_path / "a" / "state").rglob("*.pt")
    assert f"{NAME}: kept; to make it anew, remove {file}" in told
    made = tiny()
    assert len(made) == 7 and NAME not in made
    assert tiny("--only", NAME) == []
    assert "kept" in capsys.readouterr().out


def refused(capsys, start, *options, **changes):
    """The message of a start that ends at once."""
    with pytest.raises(SystemExit) as error:
        start(*options, **changes)
    assert error.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_an_unknown_setting(tiny, capsys):
    told = refused(capsys, tiny, "--only", NAME, NAME.replace("G2x8", "G2x7"))
    assert "no setting 'GAN_G2x7_D2x8_dropout_Adam_Adam_0.001' in the reduced grid" in told
    assert NAME in told, "one that is near"


def test_the_table_of_another_grid_is_left_alone(tiny, tmp_path, capsys, monkeypatch):
    tiny()
    before = table(tmp_path / "a")
    told = refused(capsys, tiny, "--seed", "1")
    assert f"{tmp_path / 'a' / 'ebgan_grid.json'} is the table of another grid" in told
    assert "seed differ. Give another --out" in told
    monkeypatch.setitem(GRIDS["reduced"]["training"], "n_steps", 5)
    assert "training differ" in refused(capsys, tiny)
    assert torch.equal(table(tmp_path / "a")["spread"], before["spread"])


def test_stored_settings_of_another_grid_are_not_taken(tiny, tmp_path, monkeypatch):
    tiny("--only", NAME)
    monkeypatch.setitem(GRIDS["reduced"]["training"], "n_steps", 5)
    assert tiny("--only", NAME) == [NAME]
    assert len(list((tmp_path / "a" / "state").rglob("*.pt"))) == 2
    assert len(tiny()) == 7
    assert len(list((tmp_path / "a" / "state").rglob("*.pt"))) == 1, "that of the other grid"


def test_no_mnist(capsys, tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setenv("GAN_EBM_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "_download", no_network)
    told = refused(capsys, lambda: ebgan_grid.main(["--out", str(tmp_path)]))
    assert "mnist.npz cannot be made from" in told and "Set GAN_EBM_DATA" in told


def test_a_diverged_setting_is_stored_as_diverged(tiny, tmp_path, capsys, spoiled):
    tiny()
    told = capsys.readouterr().out
    assert re.search(r"_Adam_0.001: diverged at step 0 \(1 of 2 replicates\)\n", told)
    stored = checkpoints.load("ebgan_grid", folder=tmp_path / "a")
    lost = stored.tensors["diverged"] >= 0
    assert lost.any() and not lost.all()
    for name in SCORES:
        assert torch.equal(stored.tensors[name].isnan(), lost)
    families = stored.card["metrics"]["families"]
    assert sum(row["diverged_replicates"] for row in families.values()) == lost.sum()
    assert "replicates diverged" in told


def test_help_names_axes_time_and_checkpoint(capsys):
    with pytest.raises(SystemExit):
        ebgan_grid.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for word in ("`ebgan_grid`", "layers of generator", "dropout", "minutes on two CPU cores"):
        assert word in told


# --- clusters ---


@pytest.mark.parametrize("kind", ["closed", "silent", "no address"])
def test_an_unreachable_scheduler(kind, tiny, capsys):
    pytest.importorskip("distributed")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":  # accepts, and never answers
            server.listen()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}" if kind != "no address" else "nine"
        begin = time.perf_counter()
        told = refused(capsys, tiny, "--scheduler", address)
        assert time.perf_counter() - begin < 15
    assert f"no dask scheduler at '{address}'" in told


# What a worker runs before its first task: it writes down when a task begins and ends. In its
# second task it waits until a worker is killed.
HOOK = """
import os, time
from gan_ebm_utils.recipes import ebgan_grid

def told(word, settings):
    with open({log!r}, "a") as log:
        log.writelines(f"{{word}} {{os.getpid()}} {{setting.name}}\\n" for setting in settings)

def counting(made):
    n = []

    def counted(settings, *arguments):
        told("begin", settings)
        n.append(1)
        while len(n) == 2 and not os.path.exists({killed!r}):
            time.sleep(0.02)
        result = made(settings, *arguments)
        told("end", settings)
        return result

    return counted

if ebgan_grid.made.__name__ == "made":  # dask may load this file twice
    ebgan_grid.made = counting(ebgan_grid.made)
"""


@contextlib.contextmanager
def workers(address, hook):
    """Two workers of the cluster at `address`, each a process."""
    processes = []
    for _ in range(2):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny"]
        command += ["--nthreads", "1", "--no-dashboard", "--preload", str(hook)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(tiny, tmp_path, monkeypatch, capsys):
    """The table is that of one process, and what was finished is not done again."""
    distributed = pytest.importorskip("distributed")
    tiny(folder="serial")
    log, killed, hook = tmp_path / "log", tmp_path / "killed", tmp_path / "hook.py"
    hook.write_text(HOOK.format(log=str(log), killed=str(killed)))
    log.touch()
    kept, keep = [], ebgan_grid.Grid.keep
    lock = threading.Lock()

    def noted(self, name, *arguments):
        keep(self, name, *arguments)
        with lock:
            kept.extend({name} - {ebgan_grid.ARRIVED})

    monkeypatch.setattr(ebgan_grid.Grid, "keep", noted)

    def lines(word, pid=None):
        found = [line.split() for line in log.read_text().splitlines()]
        return [line[2] for line in found if line[0] == word and pid in (None, int(line[1]))]

    def kill(process):
        """When its first task is stored and it is in the middle of its second."""
        limit = time.monotonic() + 100
        while time.monotonic() < limit:
            begun, ended = lines("begin", process.pid), lines("end", process.pid)
            with lock:
                stored = set(ended) <= set(kept)
            if ended and stored and len(begun) > len(ended):
                cut.extend(begun[len(ended) :])
                os.kill(process.pid, signal.SIGKILL)
                killed.touch()
                return
            time.sleep(0.02)
        killed.touch()

    cut = []
    options = {"n_workers": 0, "dashboard_address": None, "host": "127.0.0.1", "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster:
        with workers(cluster.scheduler_address, hook) as processes:
            while len(cluster.scheduler.workers) < 2:
                time.sleep(0.05)
                assert all(process.poll() is None for process in processes)
            thread = threading.Thread(target=kill, args=(processes[0],))
            thread.start()
            tiny("--scheduler", cluster.scheduler_address, folder="cluster")
            thread.join()
            assert processes[0].wait(5) == -signal.SIGKILL
    names = {row.name for row in settings_in(GRIDS["reduced"])}
    assert sorted(lines("end")) == sorted(names), "each setting was finished, and once"
    assert len(cut) == 2 and sorted(lines("begin")) == sorted([*names, *cut])
    assert sorted(kept) == sorted(names)
    for name, value in table(tmp_path / "serial").items():
        assert torch.equal(table(tmp_path / "cluster")[name], value)
    card = checkpoints.load("ebgan_grid", folder=tmp_path / "cluster").card
    assert card["jobs"].startswith("cluster at tcp://")


# --- the stored ones ---


def test_the_stored_grid_is_that_of_its_recipe(tmp_path):
    stored, data = checkpoints.load("ebgan_grid"), ebgan_grid.read("digits")
    args = argparse.Namespace(seed=stored.card["seed"], state=tmp_path)
    assert ebgan_grid.is_stored(ebgan_grid.Grid("reduced", args, data.source), None)
    tensors, card = stored.tensors, stored.card["metrics"]
    assert [Setting(**row) for row in card["rows"]] == settings_in(GRIDS["reduced"])
    lost = tensors["diverged"] >= 0
    assert all(torch.equal(tensors[name].isnan(), lost) for name in SCORES)
    kept = tensors["inception"][~lost]
    assert ((kept >= 1) & (kept <= 10)).all()
    torch.testing.assert_close(kept, tensors["mean_kl"][~lost].exp())
    for family, row in card["families"].items():
        own = torch.tensor([setting["family"] == family for setting in card["rows"]])
        median = float(tensors["inception"][own].nanmean(dim=1).nanquantile(0.5))
        assert row["median"]["inception"] == pytest.approx(median) and row["settings"] == 32


def test_the_classifier_of_digits_is_right_on_what_it_has_not_seen():
    stored = checkpoints.load("digits_classifier")
    data, rows = datasets.digits(), stored.tensors["held_out"]
    assert torch.equal(rows, digits_classifier.held_out(len(data.labels)).nonzero()[:, 0])
    logits = stored.networks["classifier"](data.images[rows].flatten(1)[None])
    right = (logits[0].argmax(dim=1) == data.labels[rows]).double().mean()
    assert right >= 0.97 and right == pytest.approx(stored.card["metrics"]["test_accuracy"])
    low, high = stored.card["metrics"]["test_accuracy_interval_95"]
    assert low < right < high
    scores = metrics.class_scores(logits)._asdict()
    for name, value in stored.card["metrics"]["class_scores_of_held_out"].items():
        assert float(scores[name]) == pytest.approx(value, rel=1e-3)
    # The control: labels of other images are met by chance.
    assert (logits[0].argmax(dim=1) == data.labels[rows].roll(1)).double().mean() < 0.3
    assert stored.card["settings"] == digits_classifier.settings_of(3000)


def test_training_the_classifier_learns_nothing_from_permuted_labels():
    data = datasets.digits()
    is_held = digits_classifier.held_out(len(data.labels))
    seen = datasets.Images(data.images[~is_held], data.labels[~is_held])
    order = torch.randperm(len(seen.labels), generator=seeded(0, "cpu"))
    permuted = seen._replace(labels=seen.labels[order])
    accuracy = []
    for part in (seen, permuted):
        network = ebgan_grid.mlp(**digits_classifier.ARCHITECTURE, generator=seeded(0, "cpu"))
        network.load_state_dict(digits_classifier.train(part, 200, 0))
        logits = network(data.images[is_held].flatten(1)[None])[0]
        accuracy.append((logits.argmax(dim=1) == data.labels[is_held]).double().mean())
    assert accuracy[0] > 0.9 and accuracy[1] < 0.3
