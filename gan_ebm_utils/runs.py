"""What recipes share: their options, the card of a run, and parts of it that outlive a crash."""

import contextlib
import hashlib
import io
import json
import os
import time
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import joblib
import torch

from gan_ebm_utils import checkpoints
from gan_ebm_utils.base import default_device, whole_file
from gan_ebm_utils.datasets import cifar10, digest, mnist

# Networks and tensors of a checkpoint, as `checkpoints.save` takes them, and the card's metrics.
Made = tuple[dict[str, checkpoints.Built], dict[str, torch.Tensor], dict[str, Any]]


def parser(text: str) -> ArgumentParser:
    """A parser whose help is the whole docstring of a recipe, tables and all.

    >>> parser("Train.\\n\\n    python -m recipe").description.splitlines()[-1]
    '  python -m recipe'
    """
    what = text.replace("    python", "  python")
    return ArgumentParser(description=what, formatter_class=RawDescriptionHelpFormatter)


def parse(parser: ArgumentParser, argv: list[str] | None, file: bool = False) -> Namespace:
    """The arguments of a recipe, with `--seed`, `--out` and `--state`, which every recipe has.

    `--out` is the folder of a checkpoint; with `file` it is a file and must be given. Ends the
    program with a message if a folder cannot be written, before hours of work are lost to it, or if
    GAN_EBM_SEED_OFFSET is set, which shifts the seeds of notebooks and is on no card.

    >>> parse(ArgumentParser(), ["--seed", "3", "--out", ".", "--state", "."]).seed
    3
    """
    import pooch  # here, since a notebook may import a recipe, and in one the import warns

    what = "file to write" if file else "folder (default: the package's checkpoints)"
    parts = "folder for the finished parts of a run that was cut off (default: the user's cache)"
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=file, help=what)
    parser.add_argument("--state", type=Path, default=pooch.os_cache("gan_ebm_utils"), help=parts)
    args = parser.parse_args(argv)
    if os.environ.get("GAN_EBM_SEED_OFFSET", "0") != "0":
        parser.error("GAN_EBM_SEED_OFFSET is set: unset it, a recipe's seed is --seed")
    for folder in (args.out.parent if file else args.out or checkpoints.DATA, args.state):
        # What there is of its path takes files, or the folders that are not there.
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            parser.error(f"files cannot be written to {folder}; give another folder")
    return args


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an option of argparse that takes whole numbers from `least` on.

    >>> at_least(2)("1")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: must be at least 2, got 1
    """

    def whole(text: str) -> int:
        if int(text) < least:
            raise ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return whole


def key_of(given: dict[str, Any]) -> str:
    """A short digest of everything that a result depends on.

    >>> key_of({"steps": 1}) == key_of({"steps": 2})
    False
    """
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def store(state: Any, file: Path) -> None:
    """Write `state` and its digest to `file`, which is replaced only when the new one is whole.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store({"step": 3}, Path(folder) / "part.pt")
    ...     read(Path(folder) / "part.pt")
    {'step': 3}
    """
    raw = io.BytesIO()
    torch.save(state, raw)
    # What cannot be read again is refused before it is stored.
    torch.load(io.BytesIO(raw.getvalue()), weights_only=True)
    with whole_file(file) as part:
        part.write_bytes(hashlib.sha256(raw.getvalue()).digest() + raw.getvalue())


def read(file: Path) -> Any:
    """What `store` wrote to `file`, on the CPU, or None if there is none or it is damaged.

    >>> read(Path("none.pt")) is None
    True
    """
    if not file.exists():
        return None
    raw = file.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        print(f"{file} is damaged and is made again", flush=True)
        return None
    return torch.load(io.BytesIO(raw[32:]), map_location="cpu", weights_only=True)


def mnist_source() -> dict[str, str]:
    """The data of a recipe that reads MNIST, for `Run`."""
    return {
        "data": "MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0)",
        "data_sha256": digest(mnist("train"), mnist("test")),
    }


def cifar10_source() -> dict[str, str]:
    """The data of a recipe that reads CIFAR-10, for `Run`: official files, or a copy of them."""
    return {
        "data": "CIFAR-10 (Krizhevsky 2009)",
        "data_sha256": digest(cifar10("train"), cifar10("test")),
    }


def make_checkpoints(
    recipe: str,
    wanted: dict[str, tuple[dict[str, Any], dict[str, float]]],
    make: Callable[[str, "Run"], Made],
    args: Namespace,
    **read_from: str,
) -> None:
    """Write each of the `wanted` checkpoints that is not there with the same card.

    `wanted` gives for each name its settings, and its parts with how long each takes beside others.
    `make` takes a name and its `Run`.
    """
    progress, todo = Progress(), {}
    for name, (settings, parts) in wanted.items():
        run = Run(recipe, settings, args, progress, **read_from)
        if run.is_stored(name, args.out):
            print(f"{name}: kept")
            run.remove_parts()
        else:
            todo[name] = run
            run.expect(parts)
    for name, run in todo.items():
        networks, tensors, found = make(name, run)
        checkpoints.save(name, networks, tensors, run.card(found), args.out)
        run.remove_parts()


def precision(device: torch.device) -> torch.dtype:
    """That of large networks: bfloat16, or float32 on a CPU without units for it.

    There it would take twice as long.

    >>> precision(torch.device("cuda"))
    torch.bfloat16
    """
    able = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)
    return torch.bfloat16 if able or device.type == "cuda" else torch.float32


def autocast(device: torch.device, **settings: Any) -> torch.autocast:
    """The context for networks that are computed in the `precision` of a device.

    >>> with autocast(torch.device("cpu")):
    ...     y = torch.ones(2, 2) @ torch.ones(2, 2)
    >>> y.dtype == precision(torch.device("cpu"))
    True
    """
    is_coarse = precision(device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=is_coarse, **settings)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread, as where processes share the cores.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alone(function: Callable, task: Any) -> Any:
    with one_thread():
        return function(task)


def in_processes(function: Callable, tasks: list[Any], jobs: int) -> Iterator[Any]:
    """function(task) of each task, done in `jobs` processes; results come as they are there.

    Each process computes with one thread. With one job it is done in this process. Ends the program
    with a message if one is killed.

    >>> sorted(in_processes(abs, [-1, -2], jobs=1))
    [1, 2]
    """
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    try:
        yield from parallel(joblib.delayed(_alone)(function, task) for task in tasks)
    except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
        line = "a process was killed, perhaps for its memory; start again, what is stored is kept"
        raise SystemExit(f"{line}: {error}") from error


class Progress:
    """Says after each part of a recipe how many there are and how long the others will take.

    `parts` holds the names of all parts, and how long each takes beside the others: 0 for one that
    is there already. The time left is what the others take at the mean pace of those made so far.

    >>> progress = Progress()
    >>> progress.parts = {"first": 1, "second": 9}
    >>> progress.finished("first", 20)
    part 1 of 2: first, 20 s; about 0:03:00 left
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def finished(self, part: str, seconds: float | None) -> None:
        """Count `part`; say so if it was made now, in `seconds`."""
        self.seconds[part] = seconds or 0.0
        if seconds is None:
            self.parts[part] = 0
            return
        size = sum(self.parts[name] for name in self.seconds)  # 0, if a part is made again
        left = sum(self.seconds.values()) * (sum(self.parts.values()) / size - 1) if size else 0
        count = f"part {len(self.seconds)} of {len(self.parts)}: {part}, {seconds:.0f} s"
        print(count + f"; about {timedelta(seconds=round(left))} left" * bool(left), flush=True)


class Run:
    """A run of a recipe: what tells it from others, and where its finished parts are.

    `given` holds the recipe's name, all settings that matter, the seed, and what `read_from` says
    of the data. A part is kept under the key of what it depends on, by default all of `given`, so
    that any difference makes it another part. `keys` are those of the parts so far. Of several
    processes that run a recipe together one `writes`, and each has to `wait` for it before it
    reads.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = Namespace(seed=0, state=Path(folder))
    ...     run = Run("one", {"steps": 10}, args, Progress(), data="MNIST")
    ...     run.expect({"sum": 1})
    ...     total, seconds = run.once("sum", lambda: sum(range(10)))
    part 1 of 1: sum, 0 s
    >>> total, run.given
    (45, {'recipe': 'one', 'settings': {'steps': 10}, 'seed': 0, 'data': 'MNIST'})
    """

    def __init__(
        self, recipe: str, settings: dict, args: Namespace, progress: Progress, **read_from: str
    ) -> None:
        given = {"recipe": recipe, "settings": settings, "seed": args.seed, **read_from}
        # Tuples become lists, as on a card that is read.
        self.given: dict[str, Any] = json.loads(json.dumps(given))
        self.folder, self.progress = args.state / recipe, progress
        self.keys: dict[str, str] = {}
        self.writes, self.wait = True, lambda: None

    def expect(self, parts: dict[str, float]) -> None:
        """Tell the progress which parts there will be, and how long each takes beside others."""
        key = key_of(self.given)
        there = {name for name in parts if self._file(name, key).exists()}
        self.progress.parts |= {name: 0 if name in there else parts[name] for name in parts}

    def once(self, name: str, make: Callable, given: dict | None = None) -> tuple[Any, float]:
        """What `make` returns and the seconds it took, or what an earlier start has stored."""
        return self.in_steps(name, [name], lambda _: make(), given)

    def in_steps(
        self, name: str, steps: list[str], advance: Callable[[Any], Any], given: dict | None = None
    ) -> tuple[Any, float]:
        """The last state of a part that is stored after each of its steps, and the seconds it took.

        `advance` takes the state before a step, at first None, and returns the one after it; a
        later start goes on after the last step that was stored. Each step counts as a part of the
        progress.
        """
        key = key_of(self.given if given is None else given)
        self.keys[name], file = key, self._file(name, key)
        found = self.found(name, key) or {"made": None, "seconds": []}
        self.wait()  # before another one stores more
        for done, step in enumerate(steps):
            seconds = None
            if done >= len(found["seconds"]):
                start = time.perf_counter()
                made = advance(found["made"])
                seconds = time.perf_counter() - start
                if self.writes:
                    store({"made": made, "seconds": [*found["seconds"], seconds]}, file)
                self.wait()
                found = read(file)  # as a later start will have it
            if self.writes:
                self.progress.finished(step, seconds)
        return found["made"], sum(found["seconds"])

    def keep(self, name: str, made: Any, seconds: float, key: str) -> None:
        """Store a part that was made elsewhere, as by a worker, under `key`."""
        self.keys[name] = key
        store({"made": made, "seconds": [seconds]}, self.file_of(name))

    def file_of(self, name: str) -> Path:
        """Where the part `name` is stored."""
        return self._file(name, self.keys[name])

    def card(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The card of the finished checkpoint."""
        return {
            **self.given,
            "metrics": metrics,
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "device": default_device().type,
            "threads": torch.get_num_threads(),
        }

    def remove_parts(self) -> None:
        """Remove the finished parts of this run, once the checkpoint is written."""
        whole = self.folder.glob(f"*-{key_of(self.given)}.pt")  # made by an earlier start, too
        for file in (*whole, *(self._file(name, key) for name, key in self.keys.items())):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it was never made, or holds parts of other runs
            self.folder.rmdir()

    def is_stored(self, name: str, folder: Path | None) -> bool:
        """Whether `folder` holds the whole checkpoint `name`, made by a run with the same card."""
        try:
            card = checkpoints.load(name, folder=folder).card
        except (ValueError, RuntimeError):  # there is none, or it is damaged
            return False
        return all(card.get(key) == value for key, value in self.given.items())

    def found(self, name: str, key: str) -> dict[str, Any] | None:
        """The part `name` as it is stored under `key`, {"made": ..., "seconds": [...]}, or None."""
        return read(self._file(name, key))

    def _file(self, name: str, key: str) -> Path:
        return self.folder / f"{quote(name, safe='')}-{key}.pt"
