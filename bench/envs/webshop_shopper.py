"""How often the shopper that is imitated wins, by its haste.

    python bench/envs/webshop_shopper.py                                  # the catalogue of the preset webshop-tiny
    python bench/envs/webshop_shopper.py --data ../shared/data/webshop    # the official 1,000-product set

Plays the first training goals, at most 12 commands each as in the preset.
"""

import argparse
from pathlib import Path

from paw_fast import envs


def wins(env, expert, task) -> bool:
    """Plays one goal to its end."""
    observation = env.reset(task)
    expert.reset(observation)
    while True:
        step = env.step(expert.act(observation))
        observation = step.observation
        if step.done:
            return step.won


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the official files; default: a generated catalogue")
    parser.add_argument("--game-seed", type=int, default=0)
    parser.add_argument("--num-products", type=int, default=4000)
    parser.add_argument("--goals", type=int, default=400)
    options = parser.parse_args()
    where = (
        {"data": options.data}
        if options.data
        else {"num_products": options.num_products, "catalogue_seed": options.game_seed}
    )
    env = envs.make("webshop", max_steps=12, **where)
    tasks = env.tasks("train")[: options.goals]
    for early_answer_prob in (0.0, 0.75, 1.0):
        expert = envs.make_expert("webshop", early_answer_prob=early_answer_prob)
        won = sum(wins(env, expert, task) for task in tasks)
        print(f"early answers {early_answer_prob}: {won} of {len(tasks)} won, {won / len(tasks):.1%}")


if __name__ == "__main__":
    main()
