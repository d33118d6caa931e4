"""What recipes share: their options, the card of a run, and parts of it that outlive a crash."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pooch
import torch

from gan_ebm_utils import checkpoints
from gan_ebm_utils.base import default_device, whole_file
from gan_ebm_utils.datasets import digest, mnist

# The option of a recipe that goes on where it was cut off.
STATE: dict[str, Any] = {
    "type": Path,
    "default": Path(pooch.os_cache("gan_ebm_utils")),
    "help": "folder for the finished parts of a run that was cut off (default: the user's cache)",
}


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments of a recipe, with `--seed` and `--out`, which every recipe has.

    Ends the program with a message if a folder cannot be written, before hours of work are lost to
    it, or if GAN_EBM_SEED_OFFSET is set, which shifts the seeds of notebooks and is on no card.
    """
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: the package's checkpoints)")
    args = parser.parse_args(argv)
    if os.environ.get("GAN_EBM_SEED_OFFSET", "0") != "0":
        parser.error("GAN_EBM_SEED_OFFSET is set: unset it, a recipe's seed is --seed")
    for folder in (args.out or checkpoints.DATA, getattr(args, "state", None)):
        if folder is not None and not _can_be_written(folder):
            parser.error(f"files cannot be written to {folder}; give another folder")
    return args


def _can_be_written(folder: Path) -> bool:
    """Whether `folder` takes files or can be made, judged by what there is of its path."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def begin(recipe: str, settings: dict[str, Any], args: argparse.Namespace, **read_from: str) -> Run:
    """The run of `recipe` with these settings and arguments, which reads what `read_from` names."""
    given = {"recipe": recipe, "settings": settings, "seed": args.seed, **read_from}
    given = json.loads(json.dumps(given))  # tuples become lists, as on a card that is read
    key = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]
    return Run(given, getattr(args, "state", Path()) / f"{recipe}-{key}")


def store(state: Any, file: Path) -> None:
    """Write `state` and its digest to `file`, which is replaced only when the new one is whole."""
    raw = io.BytesIO()
    torch.save(state, raw)
    raw.seek(0)
    torch.load(raw, weights_only=True)  # what cannot be read again is refused before it is stored
    sha256 = hashlib.sha256(raw.getvalue()).digest()
    with whole_file(file) as part:
        part.write_bytes(sha256 + raw.getvalue())


def read(file: Path, device: torch.device | str = "cpu") -> Any:
    """What `store` wrote to `file`, or None if there is none or it is damaged."""
    if not file.exists():
        return None
    raw = file.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        print(f"{file} is damaged and is made again", flush=True)
        return None
    return torch.load(io.BytesIO(raw[32:]), map_location=device, weights_only=True)


def mnist_source() -> dict[str, str]:
    """The data of a recipe that reads MNIST, for `begin`."""
    return {
        "data": "MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0)",
        "data_sha256": digest(mnist("train"), mnist("test")),
    }


class Run(NamedTuple):
    """A run of a recipe: what tells it from others, and where its finished parts are.

    `given` holds the recipe's name, all settings that matter, the seed, and a digest of what is
    read. Any difference in it is another run, and has another folder of parts.
    """

    given: dict[str, Any]
    folder: Path

    def once(self, name: str, make: Callable[[], Any]) -> tuple[Any, float]:
        """What `make` returns and the seconds it took, or what an earlier start has stored."""
        file = self.folder / f"{quote(name, safe='')}.pt"
        found = read(file)
        if found is None:
            start = time.perf_counter()
            made = make()
            seconds = time.perf_counter() - start
            store({"made": made, "seconds": seconds}, file)
            print(f"{name}: {seconds:.0f} s", flush=True)
            found = read(file)  # as a later start will have it
        return found["made"], found["seconds"]

    def card(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The card of the finished checkpoint."""
        return {
            **self.given,
            "metrics": metrics,
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "device": default_device().type,
            "threads": torch.get_num_threads(),
        }

    def is_stored(self, name: str, folder: Path | None) -> bool:
        """Whether `folder` holds the whole checkpoint `name`, made by a run with the same card."""
        try:
            card = checkpoints.load(name, folder=folder).card
        except (ValueError, RuntimeError):  # there is none, or it is damaged
            return False
        return all(card.get(key) == value for key, value in self.given.items())

    def remove_parts(self) -> None:
        """Remove the folder of finished parts, once the checkpoint is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
