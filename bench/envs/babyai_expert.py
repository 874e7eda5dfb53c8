"""Counts how many training tasks of BabyAI the expert wins: python bench/envs/babyai_expert.py [LEVEL ...]"""

from __future__ import annotations

import sys

from paw_fast import envs

NUM_TASKS, MAX_STEPS = 60, 200


def main(levels: list[str]) -> None:
    expert = envs.make_expert("babyai")
    for level in levels:
        env = envs.make("babyai", levels=[level], max_steps=MAX_STEPS)
        won = steps = 0
        for task in env.tasks("train")[:NUM_TASKS]:
            observation = env.reset(task)
            expert.reset(observation)
            done = False
            while not done:
                result = env.step(expert.act(observation))
                observation, done = result.observation, result.done
                won, steps = won + result.won, steps + 1
        print(f"{level}: {won} of {NUM_TASKS}, {steps / NUM_TASKS:.1f} actions an episode")


if __name__ == "__main__":
    main(sys.argv[1:] or ["GoToRedBallNoDists", "GoToLocal", "PickupLoc", "PutNextLocal", "BossLevel"])
