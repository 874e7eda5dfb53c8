"""Part 2 of the study: does the world-model loss rescue what RL alone cannot learn?

    python bench/study/sparse_reward.py --out runs/study/sparse --env alfworld

The warm start imitates fewer demonstrations, one comparison for each number, until so few groups succeed that RL has
little to learn from. The table says the share of groups without a success in the first step; at least 70 % is what is
meant by sparse. Writes OUT/sparse_reward.md.
"""

from __future__ import annotations

import study


def main() -> None:
    parser = study.parser(__doc__ or "")
    parser.set_defaults(steps=40)
    parser.add_argument("--episodes", default="100,200,400", help="numbers of demonstrations")
    parser.add_argument("--arms", default="rl,paw,placebo")
    options = parser.parse_args()
    done = []
    for episodes in options.episodes.split(","):
        folder = options.out / f"episodes-{episodes}"
        more = ["--warm-start.episodes", episodes, "--arms", options.arms]
        one = study.Comparison((episodes,), folder, [*study.base(options), *more])
        study.run(one)
        one.cells = (episodes, f"{study.without_success(one):.0%}")
        done.append(one)
        study.write(options.out, "sparse_reward", ("demonstrations", "groups without success"), done)


if __name__ == "__main__":
    main()
