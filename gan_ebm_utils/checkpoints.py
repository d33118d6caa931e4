"""Trained networks that come with the package, each with a card that says how it was made.

A checkpoint is a pair of files: NAME.safetensors holds weights and tensors, NAME.json the card. The
card stores the SHA-256 of the other file, so that a pair that does not belong together is noticed.
"""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gan_ebm_utils.base import Gan, partial_folder

# A network, the function or class of the package that builds it, and that one's arguments without
# the generator.
Built = tuple[nn.Module, Callable[..., nn.Module], dict[str, Any]]

DATA = Path(__file__).parent / "data"
REQUIRED = {"recipe", "settings", "seed", "metrics", "date"}


class Checkpoint(NamedTuple):
    """Networks in evaluation mode with frozen weights, further tensors, and the card.

    >>> stored = load("mnist_features")
    >>> list(stored.networks), stored.card["seed"]
    (['classifier'], 0)
    """

    networks: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    card: dict[str, Any]

    def gan(self, which: str = "") -> Gan:
        """The networks `generator` and `discriminator` as a `Gan`; `which` names others of them.

        `gan("refitted")` takes `discriminator_refitted`, and `generator_refitted` if there is one,
        else `generator`.

        Raises ValueError if there is no such pair.

        >>> load("gaussians25_gan").gan("refitted").latent_dim
        4
        """
        suffix = which and f"_{which}"
        own, judge = f"generator{suffix}", f"discriminator{suffix}"
        name = own if own in self.networks else "generator"
        if missing := {name, judge} - self.networks.keys():
            raise ValueError(f"no network {', '.join(sorted(missing))} in {[*self.networks]}")
        kwargs = self.card["networks"][name]["kwargs"]
        latent_dim = kwargs.get("latent_dim", kwargs.get("in_features"))
        return Gan(self.networks[name], self.networks[judge], latent_dim)


def available(folder: Path | None = None) -> list[str]:
    """The names that `load` accepts, sorted.

    >>> "mnist_features" in available()
    True
    """
    return sorted(path.stem for path in (folder or DATA).glob("*.json"))


def save(
    name: str,
    networks: dict[str, Built],
    tensors: dict[str, Tensor],
    card: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """Write the checkpoint `name` into `folder` (default: the package's own).

    Each network comes with its builder, a function or class of this package whose qualified name
    goes to the card, and the builder's arguments. `card` must hold recipe, settings, seed, metrics
    and date. Neither file is ever seen half-written, and a save that is cut off between the two
    leaves a pair that `load` refuses. Networks and tensors that share memory are written apart.

    Raises ValueError for a name that is no file's, a card with missing entries or with numbers that
    are not finite, and a network that `load` would not give back: its builder is not of this
    package or builds another one, or its weights are not finite or wider than float32. Raises
    OSError if `folder` cannot be written.

    >>> import tempfile
    >>> from gan_ebm_utils.networks import mlp
    >>> how = {"in_features": 2, "hidden": [8]}
    >>> network = mlp(**how, generator=torch.Generator().manual_seed(0))
    >>> card = {"recipe": "by hand", "settings": {}, "seed": 0, "metrics": {}, "date": "2025-01-31"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save("one", {"logit": (network, mlp, how)}, {}, card, Path(folder))
    ...     torch.equal(load("one", folder=Path(folder)).networks["logit"][0].bias, network[0].bias)
    True
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"a checkpoint's name has letters, digits, '_', '-' and '.', got {name!r}")
    if missing := REQUIRED - card.keys():
        raise ValueError(f"the card of {name!r} lacks {', '.join(sorted(missing))}")
    if strays := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{', '.join(strays)} of {name!r} must be tensors")
    weights, built = {f"tensors/{key}": value for key, value in tensors.items()}, {}
    for key, (module, builder, kwargs) in networks.items():
        weights |= {f"networks/{key}/{k}": v for k, v in module.state_dict().items()}
        built[key] = {"function": f"{builder.__module__}.{builder.__qualname__}", "kwargs": kwargs}
    for key, value in weights.items():
        weights[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    raw = safetensors.torch.save(weights)
    card = {**card, "networks": built, "sha256": hashlib.sha256(raw).hexdigest()}
    text = json.dumps(card, indent=2, allow_nan=False) + "\n"

    folder = folder or DATA
    with partial_folder(folder) as part:
        (part / f"{name}.safetensors").write_bytes(raw)
        (part / f"{name}.json").write_text(text, encoding="utf-8")
        _check_comes_back(name, networks, part)
        for file in (f"{name}.safetensors", f"{name}.json"):
            os.replace(part / file, folder / file)


def _check_comes_back(name: str, networks: dict[str, Built], folder: Path) -> None:
    """Raise ValueError unless the checkpoint in `folder` holds the networks it was made of."""
    try:
        back = load(name, folder=folder).networks
    except RuntimeError as error:
        raise ValueError(f"{name!r} could not be loaded again: {error.__cause__}") from error
    for key, (module, builder, kwargs) in networks.items():
        if repr(module) != repr(back[key]):
            raise ValueError(
                f"{key!r}, {module}, is not what {builder.__name__} makes of {kwargs}: {back[key]}"
            )
        for k, v in module.state_dict().items():
            found = back[key].state_dict()[k]
            as_wide = torch.promote_types(v.dtype, found.dtype) == found.dtype
            if not (as_wide and torch.equal(found.to(v.dtype), v.cpu())):
                raise ValueError(
                    f"{k} of {key!r} must be finite and at most float32 to come back, got {v.dtype}"
                )


def load(name: str, device: torch.device | str = "cpu", folder: Path | None = None) -> Checkpoint:
    """The checkpoint `name`, its networks rebuilt on `device`, in float32.

    Raises ValueError for an unknown name, RuntimeError for files that are damaged, do not belong
    together, or were made for another version of the package.

    >>> load("mnist_features").networks["classifier"](torch.zeros(1, 1, 28, 28)).shape
    torch.Size([1, 10])
    """
    folder = folder or DATA
    if name not in (known := available(folder)):
        raise ValueError(f"unknown checkpoint {name!r}; available in {folder}: {known or 'none'}")
    path = folder / f"{name}.safetensors"
    try:
        raw = path.read_bytes()
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if hashlib.sha256(raw).hexdigest() != card["sha256"]:
            raise ValueError("its SHA-256 is not the one on its card")
        stored = safetensors.torch.load(raw)
        built = {key: _build(key, **how, stored=stored) for key, how in card["networks"].items()}
    # A card may hold anything: a dozen kinds of error, from the parser's to a builder's.
    except Exception as error:
        reason = f"its card lacks {error}" if isinstance(error, KeyError) else error
        raise RuntimeError(
            f"checkpoint {path} cannot be used: {reason}; reinstall the package, or run its recipe"
        ) from error
    tensors = {key: value.to(device) for key, value in _below("tensors/", stored).items()}
    return Checkpoint({key: net.to(device) for key, net in built.items()}, tensors, card)


def _below(prefix: str, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is stored under names that begin with `prefix`, by the rest of its name."""
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def _build(key: str, function: str, kwargs: dict[str, Any], stored: dict[str, Tensor]) -> nn.Module:
    # Cards of earlier versions name a function of `networks` without its module.
    if "." not in function:
        function = f"{__package__}.networks.{function}"
    if not function.startswith(f"{__package__}."):
        raise ValueError(f"{function}, builder of {key!r}, is not of {__package__}: move it there")
    module, _, name = function.rpartition(".")
    builder = getattr(importlib.import_module(module), name)
    # The builder's initial weights are overwritten at once, so any generator will do. The default
    # device and type may be the user's own.
    with torch.device("cpu"):
        network = builder(**kwargs, generator=torch.Generator().manual_seed(0))
    network.float().load_state_dict(_below(f"networks/{key}/", stored))
    return network.eval().requires_grad_(False)
