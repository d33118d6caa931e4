"""What replicates cost: the time of a training step for R = 1, 5 and 10, as in chapter 01.

`make bench` runs this with the default number of threads. It fails if five replicates cost more
than 1.5 times one, or ten more than 2.2 times.
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
STEPS, REPETITIONS, BATCH = 100, 7, 128


def discriminator_seconds(replicates):
    rng = seeded(0)
    logit = mlp(2, (32, 32), replicates=replicates, generator=rng)
    p, q = gaussian([0.0, 0.0]), gaussian([1.5, 0.0])
    start = time.perf_counter()
    fit_discriminator(
        logit, p.sample, q.sample, losses.gan_d_loss, STEPS, rng,
        replicates=replicates, batch_size=BATCH,
    )  # fmt: skip
    return (time.perf_counter() - start) / STEPS


def gan_seconds(replicates):
    rng = seeded(0)
    gan = Gan(
        mlp(2, (64, 64), 2, replicates, generator=rng),
        mlp(2, (64, 64), replicates=replicates, generator=rng),
        latent_dim=2,
    )
    start = time.perf_counter()
    train_gan(
        gan, gaussian_grid().sample, losses.gan_d_loss, losses.non_saturating_g_loss, STEPS, rng,
        replicates=replicates, batch_size=BATCH,
    )  # fmt: skip
    return (time.perf_counter() - start) / STEPS


def main():
    missed = False
    for name, seconds in (("discriminator", discriminator_seconds), ("GAN", gan_seconds)):
        best = {1: float("inf"), 5: float("inf"), 10: float("inf")}
        for _ in range(REPETITIONS):  # interleaved, so that a busy moment hits all of them
            for replicates in best:
                best[replicates] = min(best[replicates], seconds(replicates))
        for replicates, value in best.items():
            ratio = value / best[1]
            verdict = "" if ratio <= BARS.get(replicates, ratio) else "  missed"
            missed |= bool(verdict)
            print(f"{name:14} R = {replicates:2}: {1e3 * value:6.2f} ms, {ratio:4.2f} x{verdict}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
