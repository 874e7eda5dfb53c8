"""Part 3 of the study: which part of the world-model loss matters?

    python bench/study/ablations.py --out runs/study/parts --set parts
    python bench/study/ablations.py --out runs/study/alpha --set alpha
    python bench/study/ablations.py --out runs/study/tau --set tau

`parts` changes one part of PaW in each arm: loss, selection, lambda; `alpha` and `tau` sweep the share of selected
transitions and the threshold of the clip. Writes OUT/ablations_<set>.md.
"""

from __future__ import annotations

from pathlib import Path

import study

SETS = {
    "parts": "rl,paw,ablation-mae,ablation-ce,ablation-fixed-lambda,ablation-random,ablation-lowest,ablation-all,"
    "surprise",
    "alpha": (0.25, 0.5, 1.0),
    "tau": (0.05, 0.5, 1.0),
}


def arms_of(name: str, out: Path) -> str:
    """The arms of a set, as --arms takes them; writes the file of a sweep."""
    values = SETS[name]
    if isinstance(values, str):
        return values
    tables = [f'[arms."{name}-{value:g}"]\nbase = "paw"\npaw.{name} = {value}\n' for value in values]
    path = out / f"{name}.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return f"rl,paw,{path}"


def main() -> None:
    parser = study.parser(__doc__ or "")
    parser.add_argument("--set", choices=SETS, default="parts")
    parser.add_argument("--arms", help="other arms than the set's")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    arms = options.arms or arms_of(options.set, options.out)
    one = study.Comparison((), options.out / "runs", [*study.base(options), "--arms", arms])
    study.run(one)
    study.write(options.out, f"ablations_{options.set}", (), [one])


if __name__ == "__main__":
    main()
