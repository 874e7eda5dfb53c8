"""Measures how often the intervals of `paw-fast compare` contain the truth, in simulated comparisons of equal arms.

    python bench/compare/coverage.py

Prints a Markdown table. The outcome of a task is 1 with a probability that depends on the task, on the luck of the run
(standard deviation of a seed, in logits) and on what each arm finds hard (standard deviation of a task).
"""

from __future__ import annotations

import argparse

import numpy as np

from paw_fast.compare.paired import bootstrap_interval, two_way_interval

NOISE = ((0.0, 0.0), (0.3, 0.5), (1.0, 0.0))


def outcomes(rng: np.random.Generator, seeds: int, tasks: int, seed_sd: float, task_sd: float) -> np.ndarray:
    """Differences [seeds, tasks] of two arms that are equally good."""
    hard = rng.normal(0, 1, tasks)
    arms = []
    for _ in range(2):
        score = hard + rng.normal(0, task_sd, tasks) + rng.normal(0, seed_sd, (seeds, 1))
        arms.append(rng.random((seeds, tasks)) < 1 / (1 + np.exp(-score)))
    return arms[1].astype(float) - arms[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    print("| seeds | sd of a seed, of a task | two-way interval: coverage, mean width | percentile bootstrap |")
    print("| --- | --- | --- | --- |")
    for seeds in (2, 3, 5, 10):
        for seed_sd, task_sd in NOISE:
            rng = np.random.default_rng([seeds, int(10 * seed_sd)])
            found: list[list[tuple[float, float]]] = [[], []]
            for trial in range(options.trials):
                table = outcomes(rng, seeds, options.tasks, seed_sd, task_sd)
                one = two_way_interval(table)
                found[0].append((one.low, one.high))
                found[1].append(bootstrap_interval(table, 500, trial))
            cells = []
            for intervals in found:
                covered = np.mean([low <= 0 <= high for low, high in intervals])
                cells.append(f"{covered:.1%}, {100 * np.mean([high - low for low, high in intervals]):.0f} points")
            print(f"| {seeds} | {seed_sd:g}, {task_sd:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
