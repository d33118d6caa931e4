"""Checkpoints: what is saved comes back, and what is damaged is refused."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from gan_ebm_utils import checkpoints
from gan_ebm_utils.base import check_gan, seeded
from gan_ebm_utils.networks import ConvGenerator, MnistClassifier, energy_mlp, mlp

CARD = {"recipe": "test", "settings": {}, "seed": 0, "metrics": {"loss": 0.5}, "date": "2025-01-31"}
KWARGS = {"n_features": 8, "width": 4}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint "small" in a folder of its own: (folder, network, tensors)."""
    network = MnistClassifier(**KWARGS, generator=seeded(1, "cpu"))
    tensors = {"mean": torch.randn(8, generator=seeded(2, "cpu")), "n": torch.tensor([3])}
    checkpoints.save("small", {"net": (network, MnistClassifier, KWARGS)}, tensors, CARD, tmp_path)
    return tmp_path, network, tensors


def test_round_trip(saved):
    folder, network, tensors = saved
    loaded = checkpoints.load("small", folder=folder)
    x = torch.randn(5, 1, 28, 28, generator=seeded(3, "cpu"))
    assert torch.equal(loaded.networks["net"](x), network(x))
    assert not loaded.networks["net"].training
    assert not any(p.requires_grad for p in loaded.networks["net"].parameters())
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[key], tensors[key]) for key in tensors)
    assert loaded.card.items() >= CARD.items()
    builder = "gan_ebm_utils.networks.images.MnistClassifier"
    assert loaded.card["networks"] == {"net": {"function": builder, "kwargs": KWARGS}}
    assert sorted(os.listdir(folder)) == ["small.json", "small.safetensors"]
    other = MnistClassifier(**KWARGS, generator=seeded(4, "cpu"))
    assert not torch.equal(loaded.networks["net"](x), other(x))  # the control


def test_loading_leaves_global_randomness_alone(saved):
    before = torch.get_rng_state()
    checkpoints.load("small", folder=saved[0])
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_name(saved):
    with pytest.raises(
        ValueError, match=r"unknown checkpoint 'large'; available in .* \['small'\]"
    ):
        checkpoints.load("large", folder=saved[0])


def test_no_checkpoint_at_all(tmp_path):
    assert checkpoints.available(tmp_path) == []
    with pytest.raises(ValueError, match="none"):
        checkpoints.load("small", folder=tmp_path)


@pytest.mark.parametrize("entry", sorted(CARD))
def test_incomplete_card(tmp_path, entry):
    card = {key: value for key, value in CARD.items() if key != entry}
    with pytest.raises(ValueError, match=f"lacks {entry}"):
        checkpoints.save("small", {}, {}, card, tmp_path)
    assert os.listdir(tmp_path) == []


def test_nan_on_the_card(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save("small", {}, {}, {**CARD, "metrics": {"loss": float("nan")}}, tmp_path)
    assert os.listdir(tmp_path) == []


# --- what is saved is what is loaded, or it is refused ---

MLP = {"in_features": 2, "hidden": [8]}


def small_mlp():
    return mlp(**MLP, generator=seeded(6, "cpu"))


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a, b)


def test_what_shares_memory_comes_back(tmp_path):
    network, rows = small_mlp(), torch.arange(6.0).reshape(2, 3)
    given = {"rows": rows, "again": rows, "columns": rows.T, "part": rows[0]}
    given["weight"] = network[0].weight
    given["wide"] = torch.zeros(1).expand(5)
    twice = {name: (network, mlp, MLP) for name in ("a", "b")}
    checkpoints.save("shared", twice, given, CARD, tmp_path)
    loaded = checkpoints.load("shared", folder=tmp_path)
    assert all(same(loaded.tensors[key], value) for key, value in given.items())
    x = torch.randn(1, 5, 2, generator=seeded(7, "cpu"))
    for name in twice:
        assert same(loaded.networks[name](x), network(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_keeps_its_type(tmp_path, dtype):
    given = torch.tensor([0.1, 1.0, 0.0]).to(dtype)
    checkpoints.save("typed", {}, {"x/y": given, "nan": torch.tensor(torch.nan)}, CARD, tmp_path)
    found = checkpoints.load("typed", folder=tmp_path).tensors
    assert same(found["x/y"], given)
    assert found["nan"].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_short_type_comes_back_in_float32_with_the_same_values(tmp_path, dtype):
    network = small_mlp().to(dtype)
    checkpoints.save("short", {"net": (network, mlp, MLP)}, {}, CARD, tmp_path)
    found = checkpoints.load("short", folder=tmp_path).networks["net"].state_dict()
    assert all(same(found[key], value.float()) for key, value in network.state_dict().items())


def with_weight(value):
    network = small_mlp()
    with torch.no_grad():
        network[0].weight[0, 0, 0] = value
    return network


REFUSED = {
    "float64": (lambda: small_mlp().double(), MLP, "0.weight of 'net' .* got torch.float64"),
    "nan": (lambda: with_weight(torch.nan), MLP, "0.weight of 'net' must be finite"),
    "other sizes": (small_mlp, {**MLP, "hidden": [9]}, "could not be loaded again: .*mismatch"),
    "other activation": (small_mlp, {**MLP, "activation": "ReLU"}, "'net', .* not what mlp makes"),
    "no such argument": (small_mlp, {**MLP, "depth": 2}, "loaded again: .*'depth'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_would_not_come_back_is_refused(saved, kind):
    folder, network, _ = saved
    make, kwargs, message = REFUSED[kind]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        checkpoints.save("small", {"net": (make(), mlp, kwargs)}, {}, CARD, folder)
    x = torch.zeros(1, 1, 28, 28)
    assert torch.equal(checkpoints.load("small", folder=folder).networks["net"](x), network(x))
    assert sorted(os.listdir(folder)) == ["small.json", "small.safetensors"]


def test_a_name_that_runs_into_another_is_refused(tmp_path):
    networks = {name: (small_mlp(), mlp, MLP) for name in ("a", "a/b")}
    with pytest.raises(ValueError, match="could not be loaded again"):
        checkpoints.save("small", networks, {}, CARD, tmp_path)


@pytest.mark.parametrize("name", ["a/b", "../b", "a\\b", "", "..", ".hidden", "a b"])
def test_a_name_that_is_no_files_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name has letters"):
        checkpoints.save(name, {}, {}, CARD, tmp_path / "in")
    assert os.listdir(tmp_path) == []
    checkpoints.save("a.b-c_1", {}, {}, CARD, tmp_path)
    assert checkpoints.available(tmp_path) == ["a.b-c_1"]


def test_numbers_in_the_place_of_tensors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="loss of 'small' must be tensors"):
        checkpoints.save("small", {}, {"loss": 0.5}, CARD, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"nothing was written to .*file, give one with room"):
        checkpoints.save("small", {}, {}, CARD, tmp_path / "file")
    with pytest.raises(OSError, match="give one with room"):
        checkpoints.save("small", {}, {}, CARD, tmp_path / "file" / "below")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_users_defaults_change_nothing(saved, dtype):
    folder, network, _ = saved
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device("meta")
        loaded = checkpoints.load("small", folder=folder)
        checkpoints.save("again", {"net": (network, MnistClassifier, KWARGS)}, {}, CARD, folder)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for key, value in loaded.networks["net"].state_dict().items():
        assert value.device.type == "cpu" and same(value, network.state_dict()[key])
    assert all(value.device.type == "cpu" for value in loaded.tensors.values())


def edit_card(folder, **changes):
    path = folder / "small.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_checkpoint_of_the_old_form_loads(saved):
    folder, network, _ = saved
    edit_card(folder, networks={"net": {"function": "MnistClassifier", "kwargs": KWARGS}})
    x = torch.zeros(1, 1, 28, 28)
    assert torch.equal(checkpoints.load("small", folder=folder).networks["net"](x), network(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_network", "'gan_ebm_utils.networks' has no attribute 'no_such_network'"),
        ("gan_ebm_utils.networks.stacked.no_such", "networks.stacked' has no attribute 'no_such'"),
        ("gan_ebm_utils.no_such.mlp", "No module named 'gan_ebm_utils.no_such'"),
        ("os.system", "os.system, builder of 'net', is not of gan_ebm_utils: move it"),
        ("gan_ebm_utils_too.mlp", "_too.mlp, builder of 'net', is not of gan_ebm_utils: move it"),
    ],
)
def test_an_unknown_builder_is_named(saved, function, message):
    edit_card(saved[0], networks={"net": {"function": function, "kwargs": KWARGS}})
    with pytest.raises(RuntimeError, match=f"{message}.*recipe"):
        checkpoints.load("small", folder=saved[0])


def test_weights_that_do_not_fit_are_named(saved):
    how = {"function": "MnistClassifier", "kwargs": {**KWARGS, "width": 5}}
    edit_card(saved[0], networks={"net": how})
    with pytest.raises(RuntimeError, match=r"(?s)size mismatch for features.*recipe"):
        checkpoints.load("small", folder=saved[0])


def test_a_builder_of_the_users_own_is_refused(tmp_path):
    def own(*, generator):
        return small_mlp()

    with pytest.raises(ValueError, match="own, builder of 'net', is not of gan_ebm_utils: move"):
        checkpoints.save("small", {"net": (small_mlp(), own, {})}, {}, CARD, tmp_path)
    assert os.listdir(tmp_path) == []


GENERATOR = {"in_features": 3, "hidden": [4], "out_features": 2}


def test_a_checkpoint_gives_its_gans(tmp_path):
    g = seeded(0, "cpu")
    parts = {"": GENERATOR, "_without_r1": {**GENERATOR, "in_features": 5}}
    networks = {f"generator{k}": (mlp(**how, generator=g), mlp, how) for k, how in parts.items()}
    for which in ("", "_without_r1", "_refitted"):
        networks[f"discriminator{which}"] = (small_mlp(), mlp, MLP)
    images = {"image_size": 8, "latent_dim": 6, "width": 4}
    networks["generator_of_images"] = (ConvGenerator(**images, generator=g), ConvGenerator, images)
    networks["discriminator_of_images"] = (small_mlp(), mlp, MLP)
    checkpoints.save("gans", networks, {}, CARD, tmp_path)
    stored = checkpoints.load("gans", folder=tmp_path)
    found = {which: stored.gan(which) for which in ("", "refitted", "without_r1", "of_images")}
    assert [gan.latent_dim for gan in found.values()] == [3, 3, 5, 6]
    assert found["refitted"].generator is found[""].generator is stored.networks["generator"]
    for which, gan in found.items():
        judge = f"discriminator_{which}" if which else "discriminator"
        assert gan.discriminator is stored.networks[judge]
    with pytest.raises(ValueError, match="no network discriminator_refited in .*_refitted"):
        stored.gan("refited")


def test_a_latent_size_that_is_not_on_the_card(tmp_path):
    g, how = seeded(0, "cpu"), {"image_size": 8, "width": 4}
    networks = {"generator": (ConvGenerator(**how, generator=g), ConvGenerator, how)}
    networks["discriminator"] = (small_mlp(), mlp, MLP)
    checkpoints.save("gans", networks, {}, CARD, tmp_path)
    with pytest.raises(ValueError, match="latent_dim must be a whole number .*, got None"):
        check_gan(checkpoints.load("gans", folder=tmp_path).gan(), 1, g)


def test_a_checkpoint_without_a_gan_says_so(saved):
    with pytest.raises(ValueError, match=r"no network discriminator, generator in \['net'\]"):
        checkpoints.load("small", folder=saved[0]).gan()


DAMAGE = {
    "one bit altered": lambda f, raw: (f / "small.safetensors").write_bytes(
        raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]
    ),
    "truncated": lambda f, raw: (f / "small.safetensors").write_bytes(raw[: len(raw) // 2]),
    "empty": lambda f, raw: (f / "small.safetensors").write_bytes(b""),
    "weights missing": lambda f, raw: (f / "small.safetensors").unlink(),
    "card truncated": lambda f, raw: (f / "small.json").write_text('{"recipe": "te'),
    "card not a card": lambda f, raw: (f / "small.json").write_text("[]"),
    "card without digest": lambda f, raw: (f / "small.json").write_text(json.dumps(CARD)),
    "unknown builder": lambda f, raw: edit_card(
        f, networks={"net": {"function": "no_such_network", "kwargs": KWARGS}}
    ),
    "other architecture": lambda f, raw: edit_card(
        f, networks={"net": {"function": "MnistClassifier", "kwargs": {"width": 5}}}
    ),
    "unknown argument": lambda f, raw: edit_card(
        f, networks={"net": {"function": "MnistClassifier", "kwargs": {"depth": 5}}}
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged(saved, kind):
    folder, _, _ = saved
    DAMAGE[kind](folder, (folder / "small.safetensors").read_bytes())
    with pytest.raises(RuntimeError, match=r"(?s)small\.safetensors cannot be used.*recipe"):
        checkpoints.load("small", folder=folder)


def test_card_of_another_run(saved):
    # What a save that was cut off between its two files leaves.
    folder, _, _ = saved
    card = (folder / "small.json").read_text()
    network = MnistClassifier(**KWARGS, generator=seeded(5, "cpu"))
    checkpoints.save("small", {"net": (network, MnistClassifier, KWARGS)}, {}, CARD, folder)
    (folder / "small.json").write_text(card)
    with pytest.raises(RuntimeError, match="SHA-256"):
        checkpoints.load("small", folder=folder)


def test_killed_save_leaves_no_half_file(saved):
    folder, network, _ = saved
    code = f"""
        import os, time
        from pathlib import Path
        from gan_ebm_utils import checkpoints
        os.replace = lambda *paths: time.sleep(60)  # both files are written, none is moved
        checkpoints.save("small", {{}}, {{}}, {CARD!r}, Path({str(folder)!r}))
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while not list(folder.glob(".partial-*/small.json")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(folder.glob(".partial-*")), "the control: something was left to clear"
    x = torch.zeros(1, 1, 28, 28)
    assert torch.equal(checkpoints.load("small", folder=folder).networks["net"](x), network(x))
    checkpoints.save("other", {}, {}, CARD, folder)
    assert sorted(os.listdir(folder)) == [
        "other.json",
        "other.safetensors",
        "small.json",
        "small.safetensors",
    ]


def test_numbers_of_a_network_outside_its_weights_are_compared(tmp_path):
    g = torch.Generator().manual_seed(0)
    energy = energy_mlp(2, (4,), generator=g, scale=3.0)
    kwargs = {"in_features": 2, "hidden": [4], "scale": 1.0}
    with pytest.raises(ValueError, match="(?s)'e', Confined.* is not what energy_mlp makes of"):
        checkpoints.save("e", {"e": (energy, energy_mlp, kwargs)}, {}, CARD, tmp_path)
