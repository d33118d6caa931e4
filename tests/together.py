"""Processes that train one game together, as `accelerate launch` starts them."""

import multiprocessing
import os
import socket

import torch

from gan_ebm_utils.base import randn
from gan_ebm_utils.recipes import cifar10_sngan

SIZES = {"latent_dim": 4, "batch_size": 8, "batch_size_g": 8, "decay": 0.9, "learning_rate": 2e-4}
SIZES |= {kind: {"width_g": 2, "width_d": 2} for kind in ("sngan", "dcgan")}


def data(size, rng):
    """Noise, as if it were pictures."""
    return randn(*size, 3, 32, 32, generator=rng) / 3


def _play(rank, n, port, kind, folder):
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GAN_EBM_DEVICE": "cpu"}
    if n > 1:
        os.environ |= {key: str(value) for key, value in where.items()}
    torch.set_num_threads(1)
    game = cifar10_sngan.PictureGame(kind, SIZES, data, 10, 0)
    seen, draw = [], game.data

    def noted(size, rng):
        seen.append(draw(size, rng))
        return seen[-1]

    game.data = noted
    for _ in range(2):
        game.iterate()
    again = cifar10_sngan.PictureGame(kind, SIZES, data, 10, 0)
    again.load(game.state())
    drawn = randn(3, generator=again.rng)
    weights = {name: network.state_dict() for name, network in game.networks.items()}
    torch.save({"weights": weights, "seen": seen, "drawn": drawn}, folder / f"{n}-{rank}.pt")


def play(n, kind, folder):
    """What each of n processes has at the end of two iterations."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    how = [(rank, n, port, kind, folder) for rank in range(n)]
    processes = [context.Process(target=_play, args=each) for each in how]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{n}-{rank}.pt") for rank in range(n)]
