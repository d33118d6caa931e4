"""The reduced grid of EBGAN: its throughput on two cores against a plain loop over the settings.

`make bench` runs this. It fails if two processes with batches of settings do not finish at least
1.6 times as many settings a second as a loop that trains one setting after the other, with one
thread or with as many as PyTorch takes, whichever is faster. All settings train for 50 steps, in
rounds of one after the other; the start of the processes is not counted, which a grid pays once.
"""

import sys
import time

import torch

from gan_ebm_utils import runs
from gan_ebm_utils.recipes import ebgan_grid

BAR, STEPS, ROUNDS, JOBS = 1.6, 50, 2, 2
DATA = ebgan_grid.read("digits")
TRAINING = {**ebgan_grid.settings_of("reduced")["training"], "n_steps": STEPS}
SCORING = {**ebgan_grid.SCORING, "n_samples": 100, "n_distances": 20}
SETTINGS = ebgan_grid.settings_in(ebgan_grid.GRIDS["reduced"])


def task(number, settings):
    return number, (settings, TRAINING, SCORING, "digits", DATA.source, 0)


def in_processes():
    together = ebgan_grid.together(SETTINGS, **ebgan_grid.GRIDS["reduced"]["together"])
    tasks = [task(i, settings) for i, settings in enumerate(together)]
    return sum(len(results) for _, (results, _) in runs.in_processes(ebgan_grid.work, tasks, JOBS))


def plain_loop(threads):
    torch.set_num_threads(threads)
    for setting in SETTINGS:
        played = ebgan_grid.play([setting], TRAINING, DATA.images, 0)
        ebgan_grid.scores_of(played, TRAINING, SCORING, DATA)


def main():
    most = torch.get_num_threads()
    methods = {"grid": in_processes, "loop, 1 thread": lambda: plain_loop(1)}
    methods |= {f"loop, {most} threads": lambda: plain_loop(most)} if most > 1 else {}
    list(runs.in_processes(ebgan_grid.work, [task(i, SETTINGS[:1]) for i in range(2 * JOBS)], JOBS))
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(ROUNDS):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        rate = len(SETTINGS) / seconds
        print(f"{name:16} {rate:6.2f} settings/s of {STEPS} steps, {seconds:.1f} s")
    ratio = min(seconds for name, seconds in best.items() if name != "grid") / best["grid"]
    print(f"the grid in {JOBS} processes: {ratio:.2f} times the faster loop")
    sys.exit(ratio < BAR)


if __name__ == "__main__":
    main()
