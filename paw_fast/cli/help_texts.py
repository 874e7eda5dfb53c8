"""Texts of the help: examples, the main options of train, and the meaning of terms."""

from __future__ import annotations

TRAIN_EXAMPLES = (
    ("paw-fast train", "what suits this machine; minutes for a small model on a CPU"),
    ("paw-fast train --env webshop --algo gigpo --seed 1", "another environment and algorithm"),
    ("paw-fast train --preset qwen2.5-3b --lr 2e-6 --no-paw", "a recipe with changes, without the world-model loss"),
    ("paw-fast train --config my.toml --steps 20", "settings from a file; options win over it"),
    ("paw-fast train --env webshop --print-config > my.toml", "write such a file, run nothing"),
    ("paw-fast train --seeds 0 1 2", "three runs that differ in the seed alone"),
    ("paw-fast train --resume runs/NAME", "continue a run"),
)
TRAIN_OPTIONS = (
    ("--preset NAME|FILE", "settings to begin with: a recipe (paw-fast recipes lists them) or a TOML file; without it "
     "the model and the hardware choose one"),
    ("--config FILE", "a TOML file over the preset; a run's config.toml repeats the run"),
    ("--seeds 0 1 2", "one run for each seed, one after the other, and their mean at the end"),
    ("--resume RUN", "continue a run directory from its newest checkpoint"),
    ("--print-config", "print all settings as TOML that --config takes, and run nothing"),
    ("--help [GROUP|all]", "this text, or all settings of a group"),
)  # fmt: skip
MAIN_OPTIONS = (
    "--env", "env", "--env.max-steps", "--env.template", "--model", "--model.device", "--algo", "algo",
    "--algo.kl-coef", "--paw.enabled", "--paw.alpha", "--paw.lambda-0", "--optim.learning-rate", "--rollout.groups",
    "--rollout.group-size", "--rollout.temperature", "--rollout.max-action-tokens", "--warm-start.episodes", "--steps",
    "--eval-every", "--eval-tasks", "--save-every", "--token-budget", "--seed", "--run-dir",
)  # fmt: skip
"""The options that most people change; `env` and `algo` stand for the own ones of the environment and algorithm."""

TERMS = {
    "world-model loss": "a second loss that trains the policy to predict the observation after each of its actions "
    "(PaW, arXiv 2606.02388)",
    "group": "the episodes of one task in a step, whose returns are compared with each other",
    "step group": "transitions of a group that start from the same state, whose further rewards GiGPO compares; its "
    "paper calls them anchor groups",
    "transition": "one turn of an episode: the prompt, the action and the observation that follows",
    "lambda": "the weight of the world-model loss; it falls as the episodes of a group succeed",
    "verl-agent recipe": "the settings of the code that the paper's baselines follow (github.com/langfengQ/verl-agent)",
    "micro-batch": "sequences that pass through the model together; a memory limit without effect on the result",
    "expert": "a program that plays the environment well; the tiny model imitates it before the training",
    "slots": "the episodes that are played at the same time",
}
"""Meaning of the terms in the texts of settings, shown where a text uses them."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "eval": (
        ("paw-fast eval runs/NAME", "the newest checkpoint of a run"),
        ("paw-fast eval runs/NAME --split train --tasks 50", "on training tasks"),
        ("paw-fast eval runs/NAME --json", "as JSON"),
        ("paw-fast eval runs/NAME --panel alfworld-tiny", "on the tasks of a panel"),
    ),
    "panel create": (
        ("paw-fast panel create mine --env alfworld --tasks 50", "writes mine.json"),
        ("paw-fast panel create official --preset alfworld-qwen2.5-1.5b --env.data FOLDER", "of official games"),
    ),
    "panel verify": (("paw-fast panel verify alfworld-tiny", "a panel that comes with the package"),),
    "play": (
        ("paw-fast play", "a household task of ALFWorld"),
        ("paw-fast play --env webshop --task 3", "the fourth task of the shop"),
    ),
    "report": (
        ("paw-fast report runs/NAME", "writes runs/NAME/report.html"),
        ("paw-fast report runs/A runs/B --out ab.html", "compares runs"),
        ("paw-fast report runs/NAME --episodes 8", "also a page with episodes, token by token"),
    ),
    "compare": (
        ("paw-fast compare --env alfworld", "RL alone and with the world-model loss, five seeds each"),
        ("paw-fast compare --preset tiny-window --arms rl,paw,placebo,echo,tapo --seeds 5 --jobs 2", "more arms"),
        ("paw-fast compare --arms rl,my_arms.toml --seeds 10-14 --steps 20 --out study", "arms of your own"),
    ),
    "push": (
        ("paw-fast push runs/NAME me/agent", "the best checkpoint of the run, in a repository of your account"),
        ("paw-fast push runs/NAME me/agent --private --license apache-2.0", "in a private repository, with a license"),
        ("paw-fast push runs/NAME me/agent --only-write folder", "writes the files, uploads nothing"),
    ),
    "plan": (
        ("paw-fast plan", "the run that `paw-fast train` would start here"),
        ("paw-fast plan --preset qwen2.5-3b --gpus 1xH100-80GB", "a recipe on a machine of another kind"),
        ("paw-fast plan --gpus 1x24GB --token-budget 4096 --json", "options of train, as JSON"),
    ),
    "doctor": (("paw-fast doctor", "a table"), ("paw-fast doctor --json", "for programs")),
    "serve-env": (
        ("paw-fast serve-env --env alfworld", "generated games, on port 8000 of this machine"),
        ("paw-fast serve-env --env webshop --split unseen --port 0", "held-out goals, on a free port"),
    ),
    "retriever index": (
        ("paw-fast retriever index --corpus wiki.jsonl", "a BM25 index in the cache"),
        ("paw-fast retriever index --corpus wiki.jsonl --kind dense --encoder intfloat/e5-base-v2 --out index",
         "an index of vectors"),
    ),
    "retriever serve": (("paw-fast retriever serve --corpus wiki.jsonl", "on port 8000 of this machine"),),
}  # fmt: skip
