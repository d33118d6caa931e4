"""What replicates cost: the time of a training step for R = 1, 5 and 10, as in chapter 01.

`make bench` runs this with the default number of threads. Five replicates may cost 1.5 times one,
ten 2.2 times: for the discriminators of the two benches and for a plain GAN. The GAN of the last
experiment, with Fourier features and R1, stands beside them without a bar, since sines and second
derivatives are arithmetic that no stacking saves.
"""

import os
import sys
import time

os.environ["TQDM_DISABLE"] = "1"

from gan_ebm_utils import losses
from gan_ebm_utils.base import Gan, seeded
from gan_ebm_utils.datasets import gaussian, gaussian_grid
from gan_ebm_utils.networks import mlp
from gan_ebm_utils.training import fit_discriminator, train_gan

BARS = {5: 1.5, 10: 2.2}
STEPS, REPETITIONS = 100, 10


def discriminator_seconds(replicates):
    rng = seeded(0)
    logit = mlp(2, (32, 32), replicates=replicates, generator=rng)
    p, q = gaussian([0.0, 0.0]), gaussian([1.5, 0.0])
    start = time.perf_counter()
    fit_discriminator(
        logit, p.sample, q.sample, losses.gan_d_loss, STEPS, rng,
        replicates=replicates, batch_size=300,
    )  # fmt: skip
    return (time.perf_counter() - start) / STEPS


def gan_seconds(replicates, fourier=None, penalty=None):
    rng = seeded(0)
    networks = {"replicates": replicates, "activation": "ReLU", "generator": rng}
    gan = Gan(mlp(2, (64, 64), 2, **networks), mlp(2, (64, 64), fourier=fourier, **networks), 2)
    start = time.perf_counter()
    train_gan(
        gan, gaussian_grid().sample, losses.gan_d_loss, losses.non_saturating_g_loss, STEPS, rng,
        replicates=replicates, batch_size=128, penalty=penalty,
    )  # fmt: skip
    return (time.perf_counter() - start) / STEPS


def gan_with_r1_seconds(replicates):
    return gan_seconds(replicates, (32, 2.0), lambda d, x, y, rng: 0.05 * losses.r1_penalty(d, x))


WORKLOADS = {
    "discriminator": (discriminator_seconds, BARS),
    "GAN": (gan_seconds, BARS),
    "GAN, Fourier, R1": (gan_with_r1_seconds, {}),
}


def main():
    missed = False
    for name, (seconds, bars) in WORKLOADS.items():
        best = {1: float("inf"), 5: float("inf"), 10: float("inf")}
        for _ in range(REPETITIONS):  # interleaved, so that a busy moment hits all of them
            for replicates in best:
                best[replicates] = min(best[replicates], seconds(replicates))
        for replicates, value in best.items():
            ratio = value / best[1]
            verdict = "  missed" if ratio > bars.get(replicates, ratio) else ""
            missed |= bool(verdict)
            print(f"{name:17} R = {replicates:2}: {1e3 * value:6.2f} ms, {ratio:4.2f} x{verdict}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
