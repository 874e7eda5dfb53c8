"""Short names and other trainers' names for the options of `paw-fast train`, and what to say of ambiguous ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

ALIASES = {
    "--lr": "--optim.learning-rate",
    "--learning-rate": "--optim.learning-rate",
    "--warmup-steps": "--optim.warmup-steps",
    "--weight-decay": "--optim.weight-decay",
    "--max-grad-norm": "--optim.max-grad-norm",
    "--grad-clip": "--optim.max-grad-norm",
    "--batch-size": "--rollout.groups",
    "--train-batch-size": "--rollout.groups",
    "--groups": "--rollout.groups",
    "--group-size": "--rollout.group-size",
    "--num-generations": "--rollout.group-size",
    "--temperature": "--rollout.temperature",
    "--max-completion-length": "--rollout.max-action-tokens",
    "--max-new-tokens": "--rollout.max-action-tokens",
    "--max-action-tokens": "--rollout.max-action-tokens",
    "--max-turns": "--env.max-steps",
    "--slots": "--rollout.slots",
    "--kl-coef": "--algo.kl-coef",
    "--entropy-coef": "--algo.entropy-coef",
    "--minibatch-size": "--algo.minibatch-size",
    "--mini-batch-size": "--algo.minibatch-size",
    "--paw": "--paw.enabled",
    "--no-paw": "--paw.no-enabled",
    "--device": "--model.device",
    "--dtype": "--model.dtype",
    "--gradient-checkpointing": "--model.gradient-checkpointing",
    "--trust-remote-code": "--model.trust-remote-code",
    "--template": "--env.template",
    "--eval-steps": "--eval-every",
    "--save-steps": "--save-every",
    "--save-total-limit": "--keep-checkpoints",
    "--output-dir": "--run-dir",
    "--out": "--run-dir",
}
"""Other names of options, which mean exactly the same."""

MEANT = {
    "--max-steps": "--steps sets the number of training steps, --env.max-steps the longest an episode may be",
    "--epochs": "training is counted in --steps; --algo.epochs is the number of passes over the episodes of a step, "
    "--warm-start.epochs that over the demonstrations",
    "--num-train-epochs": "training is counted in --steps",
    "--beta": "the weight of the KL divergence is --algo.kl-coef; AdamW's are --optim.beta1 and --optim.beta2",
    "--alpha": "the share of selected transitions is --paw.alpha",
    "--lambda": "the weight of the world-model loss is --paw.lambda-0; that of GAE is --critic.lam (--algo ppo)",
    "--lam": "the weight of the world-model loss is --paw.lambda-0; that of GAE is --critic.lam (--algo ppo)",
    "--gamma": "GiGPO's discount of each step is --algo.gamma, PPO's of each token --critic.gamma",
    "--clip": "the clips of the probability ratio are --algo.clip-low and --algo.clip-high",
    "--clip-range": "the clips of the probability ratio are --algo.clip-low and --algo.clip-high",
    "--epsilon": "the clips of the probability ratio are --algo.clip-low and --algo.clip-high",
    "--engine": "--rollout.engine generates the actions; ALFWorld's game engine is --env.engine",
    "--horizon": "--paw.horizon is how many observations ahead are predicted; an episode's longest length is "
    "--env.max-steps",
    "--max-length": "--rollout.max-sequence-tokens limits a prompt with its action, --rollout.max-action-tokens the "
    "action alone",
    "--max-seq-length": "--rollout.max-sequence-tokens limits a prompt with its action",
    "--max-prompt-length": "--rollout.max-sequence-tokens limits a prompt with its action",
    "--per-device-train-batch-size": "--batch-size is the number of tasks of a step, --token-budget the tokens of a "
    "micro-batch",
    "--micro-batch-size": "--token-budget is the number of tokens of a micro-batch",
    "--gradient-accumulation-steps": "micro-batches are packed up to --token-budget tokens; --algo.minibatch-size is "
    "the number of sequences of an optimizer step",
    "--num-envs": "--rollout.slots is the number of episodes that are played at the same time",
    "--num-workers": "--rollout.replicas is the number of worker processes",
    "--workers": "--rollout.replicas is the number of worker processes",
    "--bf16": "say --model.dtype bfloat16",
    "--fp16": "training in float16 is not supported; say --model.dtype bfloat16",
    "--report-to": "say --log, such as --log tensorboard,wandb",
    "--hub-model-id": "say --push-to-hub NAME",
    "--hub-private-repo": "say --push-private",
    "--use-wandb": "say --log tensorboard,wandb",
    "--wandb": "say --log tensorboard,wandb",
    "--resume-from-checkpoint": "say --resume RUN",
    "--lr-scheduler-type": "--optim.schedule is constant or linear",
    "--lr-schedule": "--optim.schedule is constant or linear",
    "--game": "--env.data is a folder of games",
    "--data": "--env.data is a folder of official data, and --env chooses the environment",
    "--dataset": "--env chooses the environment",
    "--num-gpus": "--rollout.gpus names the devices of worker processes, --model.device that of the trainer",
    "--algorithm": "say --algo",
    "--environment": "say --env",
    "--model-name-or-path": "say --model",
    "--model-path": "say --model",
    "--recipe": "say --preset",
}
"""What to say of names that could mean several settings or belong to other trainers."""


def expand(args: Sequence[str], known: Collection[str]) -> list[str]:
    """The arguments with the full names of options.

    >>> expand(["--lr", "1e-5", "--Batch_Size=8"], {"--optim.learning-rate", "--rollout.groups"})
    ['--optim.learning-rate', '1e-5', '--rollout.groups=8']
    """
    result = []
    for arg in args:
        name, equals, value = arg.partition("=")
        flag = name.replace("_", "-").lower()
        if arg.startswith("--") and flag not in known and ALIASES.get(flag) in known:
            arg = f"{ALIASES[flag]}{equals}{value}"
        result.append(arg)
    return result


def suggest(flag: str, known: Collection[str]) -> str:
    """What an unknown option may have meant; empty where nothing is near.

    >>> suggest("--temprature", {"--rollout.temperature", "--seed"})
    'did you mean --temperature?'
    >>> suggest("--interval", {"--paw.interval", "--other.interval"})
    'did you mean --other.interval or --paw.interval?'
    """
    flag = flag.lower()
    if flag in MEANT and "--run-dir" in known:  # it is train's
        return MEANT[flag]
    last = flag.removeprefix("--").rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for one in sorted(known):
        if one.startswith("--"):
            by_last.setdefault(one.removeprefix("--").rpartition(".")[2], []).append(one)
    if last in by_last:
        return f"did you mean {' or '.join(by_last[last][:3])}?"
    names = {one: one for one in known} | {alias: full for alias, full in ALIASES.items() if full in known}
    near = difflib.get_close_matches(flag, names, n=1, cutoff=0.75)
    if near:
        return f"did you mean {near[0]}?"
    ends = difflib.get_close_matches(last, by_last, n=1, cutoff=0.75) if len(last) > 3 else []
    return f"did you mean {' or '.join(by_last[ends[0]][:3])}?" if ends else ""
