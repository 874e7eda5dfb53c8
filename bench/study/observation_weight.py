"""Part 1 of the study: where between "cannot start" and "nothing left to learn" does the world-model loss help?

    python bench/study/observation_weight.py --out runs/study/weight --env alfworld --algo grpo

One comparison for each weight of observations in the warm start. Writes OUT/observation_weight.md; the table grows with
each comparison.
"""

from __future__ import annotations

import study


def main() -> None:
    parser = study.parser(__doc__ or "")
    parser.add_argument("--weights", default="0,0.05,0.2,1")
    parser.add_argument("--arms", default="rl,paw,placebo,echo")
    options = parser.parse_args()
    done = []
    for weight in options.weights.split(","):
        more = ["--warm-start.observation-weight", weight, "--arms", options.arms]
        one = study.Comparison((weight,), options.out / f"weight-{weight}", [*study.base(options), *more])
        study.run(one)
        done.append(one)
        study.write(options.out, "observation_weight", ("observation weight",), done)


if __name__ == "__main__":
    main()
