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
from gan_ebm_utils.base import seeded
from gan_ebm_utils.networks import MnistClassifier

CARD = {"recipe": "test", "settings": {}, "seed": 0, "metrics": {"loss": 0.5}, "date": "2025-01-31"}
KWARGS = {"n_features": 8, "width": 4}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint "small" in a folder of its own: (folder, network, tensors)."""
    network = MnistClassifier(**KWARGS, generator=seeded(1, "cpu"))
    tensors = {"mean": torch.randn(8, generator=seeded(2, "cpu")), "n": torch.tensor([3])}
    checkpoints.save(
        "small", {"net": (network, "MnistClassifier", KWARGS)}, tensors, CARD, tmp_path
    )
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
    assert loaded.card["networks"] == {"net": {"function": "MnistClassifier", "kwargs": KWARGS}}
    assert sorted(os.listdir(folder)) == ["small.json", "small.safetensors"]
    other = MnistClassifier(**KWARGS, generator=seeded(4, "cpu"))
    assert not torch.equal(loaded.networks["net"](x), other(x))  # the control


def test_loading_leaves_global_randomness_alone(saved):
    before = torch.get_rng_state()
    checkpoints.load("small", folder=saved[0])
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_name(saved):
    with pytest.raises(ValueError, match=r"unknown checkpoint 'large'; available in .*: small"):
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


def edit_card(folder, **changes):
    path = folder / "small.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
    checkpoints.save("small", {"net": (network, "MnistClassifier", KWARGS)}, {}, CARD, folder)
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
