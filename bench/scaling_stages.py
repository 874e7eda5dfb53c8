"""The stages that `scaling.py` measures: what each does, which size is doubled, and how its time should grow."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "learner"))
from overhead_episodes import ScriptedEngine, train_tokenizer

from paw_fast.algorithms import world_model
from paw_fast.algorithms.advantages import step_groups
from paw_fast.algorithms.base import make_algorithm
from paw_fast.config import TrainConfig, load_preset
from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.learner import Learner, packing
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.agent_loop import AgentLoop, AgentSettings
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.types import EpisodeId, EpisodeRequest, Observation, Task, TokenStats, Trajectory, Transition

Work = Callable[[], Any]
WORDS = ["small", "kitchen", "holds", "table", "with", "four", "chairs", "lamp", "near", "an", "open", "window"]
VOCAB = 512


@dataclass(frozen=True)
class Case:
    """prepare(size, folder) returns the work to measure; `expected` is the exponent of its time, `why` what grows."""

    stage: str
    doubled: str
    sizes: tuple[int, ...]
    prepare: Callable[[int, Path], Work]
    expected: float = 1.0
    why: str = ""


def doubled(first: int, times: int) -> tuple[int, ...]:
    return tuple(first << i for i in range(times + 1))


# ------------------------------------------------------------------------------------------------------- rollouts


class WordsEnv(BaseEnv):
    """Answers each command with the same number of words, until `turns` commands have been given."""

    name = "words"

    def __init__(self, turns: int, words: int):
        self.turns, self.words, self.rng = turns, words, np.random.default_rng(0)

    def spawn(self) -> WordsEnv:
        return WordsEnv(self.turns, self.words)

    def _observe(self) -> Observation:
        return Observation(" ".join(self.rng.choice(WORDS, self.words)), task="find the lamp")

    def reset(self, task: Task) -> Observation:
        self.left = self.turns
        return self._observe()

    def step(self, command: str) -> StepResult:
        self.left -= 1
        return StepResult(self._observe(), reward=0.0, done=self.left == 0)


def rollout(episodes: int, turns: int, words: int, layout: str) -> Work:
    """The agent loop without a model: prompts, parsing, environments, transitions."""
    config = load_preset("tiny")
    template = PromptTemplate.load("compact")
    chat = ChatFormat(train_tokenizer([" ".join(WORDS)] * 4))
    script = [["look"] * turns for _ in range(episodes)]
    engine = ScriptedEngine(chat, script, template.style, (4, 8))
    settings = AgentSettings(
        layout=layout, history=config.env.history, max_steps=turns, max_action_tokens=64, max_sequence_tokens=10**9,
        temperature=1.0, success_reward=10.0, invalid_penalty=0.1, max_episode_s=None, max_episode_tokens=None,
        max_observation_chars=0, max_observation_tokens=0,
    )  # fmt: skip
    loop = AgentLoop(engine, [WordsEnv(turns, words) for _ in range(episodes)], chat, template, settings)
    plan = [EpisodeRequest(EpisodeId(0, i, 0), Task("t"), (0, i)) for i in range(episodes)]
    return lambda: list(loop.play(plan))


def stop_text(tokens: int) -> Work:
    """The search for stop texts after each sampled token of one action."""
    chat = ChatFormat(train_tokenizer([" ".join(WORDS) + " </action>"] * 4))
    ids = chat.encode(" ".join(np.random.default_rng(0).choice([*WORDS, "</act"], tokens)))[:tokens]
    prefixes = [ids[: n + 1] for n in range(0, len(ids), len(ids) // 256)]
    return lambda: [chat.ends_action(prefix, ("</action>",)) for prefix in prefixes]


def cut_text(words: int) -> Work:
    chat = ChatFormat(train_tokenizer([" ".join(WORDS)] * 4))
    text = " ".join(np.random.default_rng(0).choice(WORDS, words))
    return lambda: chat.fit(text, words // 2)


# --------------------------------------------------------------------------------------------------------- update


def trajectories(episodes: int, turns: int, tokens: int, layout: str, group_size: int = 4) -> list[Trajectory]:
    """Random episodes: prompts, observations of `tokens` tokens, actions of 8."""
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(rng.integers(5, VOCAB, n).tolist())  # noqa: E731
    out = []
    for number in range(episodes):
        prompt, played = draw(tokens), []
        for turn in range(turns):
            action, observed = draw(8), draw(tokens)
            played.append(Transition(
                prompt, action, (-1.0,) * 8, observed, (True,) * tokens, "c", "o", f"s{turn % 7}", 0.0, True
            ))  # fmt: skip
            prompt = prompt + action + observed if layout == "trajectory" else draw(tokens)
        total = 10.0 * (number % 2)
        out.append(Trajectory(
            Task("t"), EpisodeId(0, *divmod(number, group_size)), tuple(played), total, total, total > 0
        ))  # fmt: skip
    return out


def learner_of(layout: str, vocab: int = VOCAB, hidden: int = 64, **algo: Any) -> Learner:
    model = tiny.build_model(
        vocab, hidden=hidden, layers=2, heads=4, kv_heads=2, ffn=2 * hidden, seed=1, max_positions=1 << 16
    )
    base = load_preset("tiny")
    config: TrainConfig = dataclasses.replace(
        base, layout=layout, token_budget=4096, algo=dataclasses.replace(base.algo, minibatches=1, **algo)
    )
    return Learner(Policy(model, None), None, config)


def update(
    episodes: int = 4, turns: int = 4, tokens: int = 32, layout: str = "window", vocab: int = VOCAB, hidden: int = 64,
    group_size: int = 4,
) -> Work:  # fmt: skip
    """A whole update: sequences, token statistics, credit, selection, tables, packing, passes, optimizer, metrics."""
    played = trajectories(episodes, turns, tokens, layout, group_size)
    learner = learner_of(layout, vocab, hidden)

    def run() -> object:
        batch = learner.make_batch(played)
        stats = learner.compute_token_stats(batch)
        credit = make_algorithm(learner.config).credit(batch, stats)
        return learner.update(batch, stats, credit, world_model.select(batch, stats, learner.config, 0), 0)

    return run


def selection(transitions: int) -> Work:
    played = trajectories(transitions // 8, 8, 4, "window")
    learner = learner_of("window")
    batch = learner.make_batch(played)
    sizes = [len(t.action_ids) for t in batch.transitions]
    stats = TokenStats([np.zeros(n) for n in sizes], None, None, [torch.rand(sum(sizes))])
    return lambda: world_model.select(batch, stats, learner.config, 0)


def packing_plan(sequences: int) -> Work:
    lengths = np.random.default_rng(0).integers(300, 900, sequences).tolist()
    return lambda: packing.plan_micro_batches(lengths, 4096)


def states(groups: int, members: int, similarity: float | None) -> Work:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(groups * members)]
    numbers = torch.arange(groups).repeat_interleave(members)
    return lambda: step_groups(numbers, texts, similarity)


def sequences(turns: int, layout: str) -> Work:
    played = trajectories(2, turns, 64, layout)
    return lambda: build_sequences(played, layout)


def deduplicated(turns: int, layout: str) -> Work:
    played = trajectories(2, turns, 64, layout)
    return lambda: world_model.first_of_equals([t for p in played for t in p.transitions])


# ----------------------------------------------------------------------------------------------- files and processes


def weights_to_replicas(replicas: int) -> Work:
    """The trainer writes its weights to shared memory once; each replica reads them, here one after the other."""
    from paw_fast.rollout.weight_sync import SharedMemoryPublisher

    model = tiny.build_model(8192, hidden=512, layers=4, heads=4, kv_heads=2, ffn=1024, seed=1)
    publisher = SharedMemoryPublisher(model)
    source = publisher.source()

    def run() -> None:
        publisher.publish(1)
        for _ in range(replicas):
            for _, tensor in source.tensors(1):
                tensor.clone()

    return run


def report(steps: int, folder: Path) -> Work:
    from paw_fast.runs.metrics import MetricsWriter
    from paw_fast.runs.report import write_report

    with MetricsWriter(folder, ()) as writer:
        for step in range(1, steps + 1):
            values = {
                "success/rate": step / steps, "reward/mean": 1.0, "policy/kl": 0.001, "policy/clip_fraction": 0.01,
                "optim/grad_norm": 1.0, "wm/lambda_mean": 1.0, "time/rollout_s": 2.0, "time/update_s": 1.0,
                "time/step_s": 3.0,
            }  # fmt: skip
            if step % 20 == 0:
                values |= {"success/eval_rate": 0.5, "success/eval_total": 100}
            writer.log(step, values)
    (folder / "config.toml").write_text(f'steps = {steps}\n[env]\nname = "alfworld"\n[algo]\nname = "grpo"\n')
    (folder / "summary.json").write_text(json.dumps({"final_success": 0.5}))
    return lambda: write_report([folder])


def games(count: int, folder: Path) -> Work:
    """Lists the generated games of a folder, as each start does."""
    from paw_fast.envs.alfworld.games import list_games, make_split

    make_split(folder, "mini", 0, {"train": 8}, "train")
    (first, *_) = [path.parent for path in folder.rglob("game.tw-pddl")]
    for number in range(count):
        copy = first.parent.parent / f"{first.parent.name}" / f"copy_{number:06d}"
        copy.mkdir(parents=True)
        for file in first.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    root = folder if (folder / "train").is_dir() else next(p.parent for p in folder.rglob("train"))
    return lambda: list_games(root, "train")


def products(count: int, folder: Path, query: bool) -> Work:
    """Builds WebShop's search index of a generated catalogue, or queries it 50 times."""
    from paw_fast.envs.webshop.generate import make_records
    from paw_fast.envs.webshop.search import SearchEngine, build_index

    made = [
        SimpleNamespace(
            title=r["name"], description=r["full_description"], bullets=r["small_description"],
            options={k: [o["value"] for o in v] for k, v in r["customization_options"].items()},
        )
        for r, _ in make_records(count, 0)
    ]  # fmt: skip
    if not query:
        return lambda: build_index(made, folder / "index")
    build_index(made, folder / "index")
    engine = SearchEngine(folder / "index")
    return lambda: [engine(f"{made[n].title} {n}") for n in range(50)]


def sized(
    function: Callable[..., Work], name: str, *, in_folder: bool = False, **more: Any
) -> Callable[[int, Path], Work]:
    """`prepare` of a case: `function` with the size as its argument `name`."""
    return lambda size, folder: partial(function, **more, **({"folder": folder} if in_folder else {}))(**{name: size})


_ROLLOUT = {"episodes": 4, "turns": 8, "words": 40}


def cases_of(
    stage: str, function: Callable[..., Work], expected: float, why: str, sizes: dict[str, tuple[str, tuple[int, ...]]],
    **more: Any,
) -> list[Case]:  # fmt: skip
    """A case for each argument of `function` in `sizes`, the others as in `more`."""
    return [
        Case(
            stage,
            doubled_thing,
            of,
            sized(function, name, **{k: v for k, v in more.items() if k != name}),
            expected,
            why,
        )
        for name, (doubled_thing, of) in sizes.items()
    ]


def rollout_cases(layout: str) -> list[Case]:
    sizes = {
        "episodes": ("episodes in flight", doubled(8, 4)), "turns": ("turns", doubled(16, 4)),
        "words": ("words of an observation", doubled(40, 4)),
    }  # fmt: skip
    why = "tokens of the episodes" if layout == "trajectory" else "tokens of the prompts"
    return cases_of(f"rollout, {layout}", rollout, 1, why, sizes, layout=layout, **_ROLLOUT)


def layout_cases(stage: str, function: Callable[..., Work]) -> list[Case]:
    turns = {"turns": ("turns", doubled(64, 4))}
    return [
        case
        for layout in ("window", "trajectory")
        for case in cases_of(f"{stage}, {layout}", function, 1, "tokens", turns, layout=layout)
    ]


def update_cases() -> list[Case]:
    linear = {
        "episodes": ("episodes", doubled(4, 3)), "turns": ("turns", doubled(4, 3)),
        "tokens": ("tokens of a turn", doubled(32, 3)),
    }  # fmt: skip
    return [
        *cases_of("update, window", update, 1, "tokens; attention by their square", linear),
        Case(
            "update, window", "group size", doubled(4, 3), lambda n, _: update(2 * n, group_size=n), 1, "tokens"
        ),
        *cases_of(
            "update, trajectory", update, 1, "tokens; attention by their square", {"turns": ("turns", doubled(4, 4))},
            layout="trajectory",
        ),
        *cases_of("update, window", update, 1, "LM head", {"vocab": ("vocabulary", doubled(2048, 3))}),
        *cases_of("update, window", update, 2, "weights of a layer", {"hidden": ("width", doubled(64, 3))}),
    ]  # fmt: skip


def state_cases() -> list[Case]:
    groups, members = ("groups", doubled(4, 3)), ("transitions of a group", doubled(16, 3))
    return [
        *cases_of("anchor groups, equal texts", states, 1, "transitions", {"groups": groups, "members": members},
                  groups=4, members=16, similarity=None),
        *cases_of("anchor groups, --algo.similarity", states, 1, "transitions", {"groups": groups}, members=16,
                  similarity=0.9),
        *cases_of("anchor groups, --algo.similarity", states, 2, "pairs of different texts", {"members": members},
                  groups=4, similarity=0.9),
    ]  # fmt: skip


def file_cases() -> list[Case]:
    count = {"count": ("products", doubled(500, 3))}
    return [
        *cases_of("report", report, 1, "rows of metrics.jsonl", {"steps": ("steps of the run", doubled(250, 5))},
                  in_folder=True),
        *cases_of("ALFWorld, list of games", games, 1, "files", {"count": ("games on disk", doubled(125, 3))},
                  in_folder=True),
        *cases_of("WebShop, search index", products, 1, "words", count, in_folder=True, query=False),
        *cases_of("WebShop, 50 queries", products, 1, "scores of all products", count, in_folder=True, query=True),
        *cases_of("weights to replicas", weights_to_replicas, 1, "each replica reads them",
                  {"replicas": ("replicas", doubled(1, 3))}),
    ]  # fmt: skip


CASES = (
    *rollout_cases("window"),
    *rollout_cases("trajectory"),
    *cases_of(
        "stop-text search",
        stop_text,
        0,
        "the last tokens, 256 times",
        {"tokens": ("tokens of an action", doubled(512, 4))},
    ),
    *cases_of("cutting observations", cut_text, 1, "tokens", {"words": ("words", doubled(500, 5))}),
    *layout_cases("training sequences", sequences),
    *layout_cases("deduplication", deduplicated),
    *state_cases(),
    *cases_of("selection", selection, 1, "transitions", {"transitions": ("transitions", doubled(512, 4))}),
    *cases_of("packing plan", packing_plan, 1, "S log S", {"sequences": ("sequences", doubled(1024, 5))}),
    *update_cases(),
    *file_cases(),
)
