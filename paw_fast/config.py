"""Every setting of a run, as typed dataclasses; recipes and run directories hold them as TOML. Imports no torch.

Where a default comes from stands beside it: P stated by the PaW paper (arXiv 2606.02388) or its authors,
S reported by a second-hand summary of it, V the verl-agent recipe that the paper's baselines follow,
I inferred by us.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro

from paw_fast.env_config import ENV_SETTINGS, EnvConfig, env_config, env_settings
from paw_fast.types import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TopLevel = lambda name: tyro.conf.arg(name=name, prefix_name=False)  # noqa: E731


@dataclass(frozen=True)
class ModelConfig:
    """The policy."""

    path: Annotated[str, TopLevel("model")] = "Qwen/Qwen2.5-1.5B-Instruct"
    """A Hugging Face causal LM by folder or hub name, `tiny` (built and warm-started here), or `smollm2-135m`."""
    device: str = "auto"
    """`auto` takes a CUDA device where there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is bfloat16 on CUDA and float32 on the CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are generated."""

    engine: Literal["transformers"] = "transformers"
    """The generator."""
    groups: int = 16
    """Tasks a step (V)."""
    group_size: int = 8
    """Episodes of each task (V)."""
    temperature: float = 1.0
    """In training (V)."""
    eval_temperature: float = 0.4
    """In evaluation (V)."""
    max_action_tokens: int = 512
    """An action is cut after this many tokens (V)."""
    max_sequence_tokens: int = 8192
    """An episode whose prompt would pass this ends there and is marked as truncated."""
    slots: int = 128
    """Episodes in flight at once; each keeps its keys and values between turns."""


@dataclass(frozen=True)
class AlgoConfig:
    """The reinforcement-learning side."""

    name: Annotated[Literal["grpo"], TopLevel("algo")] = "grpo"
    """How rewards become advantages."""
    normalize_std: bool = True
    """Divide by the group's standard deviation (GRPO); off is Dr. GRPO."""
    clip_low: float = 0.2
    """Lower clip of the probability ratio (V)."""
    clip_high: float = 0.2
    """Upper clip of the probability ratio (V); larger is DAPO's."""
    dual_clip: float | None = 3.0
    """Bound of the surrogate for negative advantages (V); `None` turns it off."""
    kl_coef: float = 0.01
    """Weight of the k3 KL estimate to the reference policy, in the loss (V)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (V: off)."""
    invalid_penalty: float = 0.1
    """Taken from the reward of an invalid action (V)."""
    success_reward: float = 10.0
    """Reward of winning (V); also R_max."""
    epochs: int = 1
    """Passes over a step's rollouts (V)."""
    minibatches: int = 1
    """Optimizer steps in each pass."""


@dataclass(frozen=True)
class PawConfig:
    """The world-model loss."""

    enabled: bool = True
    """Off trains with reinforcement learning alone."""
    alpha: float = 0.75
    """Share of the batch's transitions that is selected (S)."""
    selection: Literal["entropy", "lowest", "random", "all"] = "entropy"
    """Which transitions: highest action entropy (P), lowest, random, or all of them."""
    loss: Literal["cmae", "mae", "ce"] = "cmae"
    """Clipped MAE (P), plain MAE, or cross-entropy."""
    tau: float = 0.2
    """Confidence above which a token stops updating (S)."""
    balance: Literal["adaptive", "fixed"] = "adaptive"
    """lambda = lambda_0 * clamp(1 - mean_g(R)/R_max, 0, 1) (P), or lambda_0 throughout."""
    lambda_0: float = 1.0
    """Largest weight of the world-model loss (I)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW."""

    learning_rate: float = 1e-6
    """Peak learning rate (V)."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linearly to zero at the last step."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    """(V)"""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm (V)."""


@dataclass(frozen=True)
class WarmStartConfig:
    """Imitation of the searcher's episodes, for the `tiny` model only; deliberately weak, so that RL has room."""

    episodes: int = 1600
    """Episodes of the searcher, on distinct training games."""
    epochs: int = 1
    """Passes over them."""
    learning_rate: float = 2e-3
    """Peak, with linear warm-up over a tenth of the steps and linear decay."""
    hesitant_share: float = 0.15
    """Share of the episodes, the last ones, in which the searcher hesitates: a habit for the training to break."""
    hesitation: float = 0.7
    """In those, the chance of a needless `look` before each of its commands."""
    slips: float = 0.15
    """Chance of a command that does nothing before each of the searcher's; not imitated, teaches to go on."""
    vocab_size: int = 1024
    """Of the tokenizer that is trained on the episodes' text."""
    batch_tokens: int = 1024
    """Tokens of an optimizer step."""
    observation_weight: float = 1.0
    """Weight of the language-model loss on observation tokens beside the actions'."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    paw: PawConfig = field(default_factory=PawConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    layout: Literal["window", "trajectory"] = "window"
    """`window`: each transition a sample of its own (the paper's); `trajectory`: an episode is one sequence."""
    steps: int = 150
    """Rollout-and-update steps (V)."""
    seed: int = 0
    """Of everything random but the generated games."""
    token_budget: int = 16384
    """Tokens of a packed micro-batch."""
    logits_budget_mb: int = 512
    """Memory of the logits that are alive at once; longer micro-batches go through the LM head in chunks."""
    eval_every: int = 0
    """Steps between evaluations during training; 0 evaluates at the end only."""
    eval_tasks: int = 100
    """Unseen tasks of an evaluation."""
    eval_split: str = "unseen"
    """Split that evaluations play."""
    save_every: int = 10
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""
    episodes_to_write: int = 2
    """Sampled episodes written as text at each step."""
    wandb: bool = False
    """Log to Weights & Biases too (needs the `wandb` extra)."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/<environment>-<date and time>."""


def validate(config: TrainConfig) -> None:
    """Refuses settings that cannot be meant, before anything is loaded. Raises `UserError`, naming the key."""

    def need(ok: bool, key: str, value: object, expected: str) -> None:
        if not ok:
            raise UserError(f"--{key} is {value}, expected {expected}")

    c = config
    env_settings(c.env)
    need(0 < c.paw.alpha <= 1, "paw.alpha", c.paw.alpha, "a share in (0, 1]")
    need(0 < c.paw.tau <= 1, "paw.tau", c.paw.tau, "a probability in (0, 1]")
    need(c.paw.lambda_0 >= 0, "paw.lambda-0", c.paw.lambda_0, "0 or more")
    need(c.rollout.temperature > 0, "rollout.temperature", c.rollout.temperature, "more than 0")
    need(c.rollout.eval_temperature > 0, "rollout.eval-temperature", c.rollout.eval_temperature, "more than 0")
    need(0 < c.algo.clip_low < 1, "algo.clip-low", c.algo.clip_low, "a number in (0, 1)")
    need(c.algo.clip_high > 0, "algo.clip-high", c.algo.clip_high, "more than 0")
    need(c.algo.dual_clip is None or c.algo.dual_clip > 1, "algo.dual-clip", c.algo.dual_clip, "more than 1, or None")
    need(c.algo.kl_coef >= 0, "algo.kl-coef", c.algo.kl_coef, "0 or more")
    need(c.algo.success_reward > 0, "algo.success-reward", c.algo.success_reward, "more than 0")
    need(c.optim.learning_rate > 0, "optim.learning-rate", c.optim.learning_rate, "more than 0")
    need(c.optim.max_grad_norm > 0, "optim.max-grad-norm", c.optim.max_grad_norm, "more than 0")
    need(0 <= c.env.format_reward < 1, "env.format-reward", c.env.format_reward, "a share in [0, 1)")
    need(c.env.retriever_timeout_s > 0, "env.retriever-timeout-s", c.env.retriever_timeout_s, "more than 0")
    w = c.warm_start
    for key, share in (("hesitation", w.hesitation), ("hesitant-share", w.hesitant_share), ("slips", w.slips)):
        need(0 <= share < 1, f"warm-start.{key}", share, "a chance in [0, 1)")
    counts = {
        "steps": (c.steps, 0), "rollout.groups": (c.rollout.groups, 1), "rollout.group-size": (c.rollout.group_size, 1),
        "rollout.max-action-tokens": (c.rollout.max_action_tokens, 1), "rollout.slots": (c.rollout.slots, 1),
        "algo.epochs": (c.algo.epochs, 1), "algo.minibatches": (c.algo.minibatches, 1),
        "env.history": (c.env.history, 0), "env.max-steps": (c.env.max_steps, 1), "env.num-train": (c.env.num_train, 1),
        "env.num-unseen": (c.env.num_unseen, 1), "env.max-observation-chars": (c.env.max_observation_chars, 0),
        "env.num-products": (1 if c.env.num_products is None else c.env.num_products, 1),
        "env.max-observation-tokens": (c.env.max_observation_tokens, 0), "env.topk": (c.env.topk, 1),
        "env.retriever-retries": (c.env.retriever_retries, 0),
        "token-budget": (c.token_budget, 16),
        "logits-budget-mb": (c.logits_budget_mb, 1), "save-every": (c.save_every, 1), "eval-every": (c.eval_every, 0),
        "eval-tasks": (c.eval_tasks, 1), "keep-checkpoints": (c.keep_checkpoints, 1),
        "warm-start.episodes": (c.warm_start.episodes, 1), "warm-start.epochs": (c.warm_start.epochs, 1),
    }  # fmt: skip
    for key, (value, least) in counts.items():
        need(value >= least, key, value, f"{least} or more")
    need(
        c.algo.name != "grpo" or c.rollout.group_size > 1,
        "rollout.group-size", c.rollout.group_size, "2 or more with --algo grpo (it compares episodes of one task)",
    )  # fmt: skip
    need(
        c.rollout.groups * c.rollout.group_size >= c.algo.minibatches,
        "algo.minibatches", c.algo.minibatches,
        f"at most the {c.rollout.groups * c.rollout.group_size} episodes of a step",
    )  # fmt: skip


def to_toml(config: TrainConfig) -> str:
    """The resolved config as TOML; keys whose value is None are left out (and read back as None)."""
    return tomli_w.dumps(_plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        # TOML has no null: "none" stands for a value that was turned off on purpose.
        return {k: "none" if v is None else _plain(v) for k, v in pairs}
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def from_mapping(cls: type, values: Mapping[str, Any], base: Any = None, where: str = "config") -> Any:
    """A config dataclass from parsed TOML, over `base`'s values. Unknown keys and wrong types are `UserError`s."""
    hints = typing.get_type_hints(cls)
    base = cls() if base is None else base
    changes = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise UserError(f"{where}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        changes[key] = _coerce(hints[key], value, getattr(base, key), f"{where}: {key}")
    return dataclasses.replace(base, **changes)


def _coerce(hint: Any, value: Any, base: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}, expected a table")
        return from_mapping(typing.cast(type, hint), value, base, where)
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise UserError(f"{where} is {value!r}, expected one of {', '.join(map(repr, typing.get_args(hint)))}")
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value == "none" else _coerce(options[0], value, base, where)
    if typing.get_origin(hint) is tuple:
        one = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}, expected a list")
        return tuple(_coerce(one, item, None, f"{where}[{number}]") for number, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} is {value!r}, expected {hint.__name__}")
    return value


def load_toml(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """Reads a recipe or a run's config.toml. Raises `UserError` naming the file and the key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read the config {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not valid TOML: {e}") from e
    values.pop("description", None)
    return from_mapping(TrainConfig, values, base, str(path))


def recipes() -> dict[str, Path]:
    """The presets that come with the package, by name."""
    folder = resources.files("paw_fast") / "recipes"
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if str(f).endswith(".toml")}


def describe(path: Path) -> str:
    """The `description` line of a recipe."""
    return str(tomllib.loads(path.read_text(encoding="utf-8")).get("description", ""))


def load_preset(name: str, env: str | None = None) -> TrainConfig:
    """A preset by the name of a recipe, or by the path of a TOML file.

    With `env`, `tiny` also means that environment's recipe `<env>-tiny`, and a recipe for another one is refused.
    """
    known = recipes()
    if name.endswith(".toml"):
        return load_toml(Path(name), TrainConfig(env=env_config(env or "alfworld")))
    if f"{env}-{name}" in known:
        return load_toml(known[f"{env}-{name}"])
    if name in known:
        config = load_toml(known[name])
        if env in (None, config.env.name) or env not in ENV_SETTINGS:
            return config
        suited = [other for other in known if load_toml(known[other]).env.name == env]
        raise UserError(f"--preset {name} is for {config.env.name}; --env {env} has {', '.join(suited) or 'none'}")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}, or the path of a .toml file"
    raise UserError(f"--preset {name}: no such recipe; {hint}")
