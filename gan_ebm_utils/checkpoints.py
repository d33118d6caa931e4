"""Trained networks that come with the package, each with a card that says how it was made.

A checkpoint is a pair of files: NAME.safetensors holds weights and tensors, NAME.json the card. The
card stores the SHA-256 of the other file, so that a pair that does not belong together is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from gan_ebm_utils import networks as _networks
from gan_ebm_utils.base import partial_folder

DATA = Path(__file__).parent / "data"
REQUIRED = {"recipe", "settings", "seed", "metrics", "date"}


class Checkpoint(NamedTuple):
    """Networks in evaluation mode with frozen weights, further tensors, and the card."""

    networks: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    card: dict[str, Any]


def available(folder: Path | None = None) -> list[str]:
    """The names that `load` accepts, sorted.

    >>> "mnist_features" in available()
    True
    """
    return sorted(path.stem for path in (folder or DATA).glob("*.json"))


def save(
    name: str,
    networks: dict[str, tuple[nn.Module, str, dict[str, Any]]],
    tensors: dict[str, Tensor],
    card: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """Write the checkpoint `name` into `folder` (default: the package's own).

    Each network comes with the name of the function in `gan_ebm_utils.networks` that builds it and
    that function's arguments, without the generator. `card` must hold recipe, settings, seed,
    metrics and date. Neither file is ever seen half-written, and a save that is cut off between the
    two leaves a pair that `load` refuses.

    Raises ValueError for a card with missing entries or with numbers that are not finite.
    """
    if missing := REQUIRED - card.keys():
        raise ValueError(f"the card of {name!r} lacks {', '.join(sorted(missing))}")
    weights = {f"tensors/{key}": value for key, value in tensors.items()}
    for key, (module, _, _) in networks.items():
        weights |= {f"networks/{key}/{k}": v for k, v in module.state_dict().items()}
    raw = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
    builders = {key: {"function": f, "kwargs": kwargs} for key, (_, f, kwargs) in networks.items()}
    card = {**card, "networks": builders, "sha256": hashlib.sha256(raw).hexdigest()}
    text = json.dumps(card, indent=2, allow_nan=False) + "\n"

    folder = folder or DATA
    folder.mkdir(parents=True, exist_ok=True)
    with partial_folder(folder) as part:
        (part / f"{name}.safetensors").write_bytes(raw)
        (part / f"{name}.json").write_text(text, encoding="utf-8")
        for file in (f"{name}.safetensors", f"{name}.json"):
            os.replace(part / file, folder / file)


def store(state: dict[str, Any], file: Path) -> None:
    """Write `state` to `file`, which is replaced only when the new one is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(file.parent) as part:
        torch.save(state, part / file.name)
        os.replace(part / file.name, file)


def load(name: str, device: torch.device | str = "cpu", folder: Path | None = None) -> Checkpoint:
    """The checkpoint `name`, its networks rebuilt on `device`.

    Raises ValueError for an unknown name, RuntimeError for files that are damaged, do not belong
    together, or were made for another version of the package.

    >>> load("mnist_features").networks["classifier"](torch.zeros(1, 1, 28, 28)).shape
    torch.Size([1, 10])
    """
    folder = folder or DATA
    if name not in available(folder):
        known = ", ".join(available(folder)) or "none"
        raise ValueError(f"unknown checkpoint {name!r}; available in {folder}: {known}")
    path = folder / f"{name}.safetensors"
    try:
        raw = path.read_bytes()
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if hashlib.sha256(raw).hexdigest() != card["sha256"]:
            raise ValueError("its SHA-256 is not the one on its card")
        stored = safetensors.torch.load(raw)
        built = {key: _build(key, **how, stored=stored) for key, how in card["networks"].items()}
    # RuntimeError comes from load_state_dict, AttributeError and TypeError from the builder.
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"checkpoint {path} cannot be used: {error}. Reinstall the package, or run the recipe "
            "that makes it again."
        ) from error
    tensors = {
        key.removeprefix("tensors/"): value.to(device)
        for key, value in stored.items()
        if key.startswith("tensors/")
    }
    return Checkpoint({key: net.to(device) for key, net in built.items()}, tensors, card)


def _build(key: str, function: str, kwargs: dict[str, Any], stored: dict[str, Tensor]) -> nn.Module:
    # The builder's initial weights are overwritten at once, so any generator will do.
    network = getattr(_networks, function)(**kwargs, generator=torch.Generator().manual_seed(0))
    prefix = f"networks/{key}/"
    state = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)
