"""`paw-fast report`: writes the report of one or several runs, and the episodes page of one run.

Heavy packages are imported only for the episodes page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from paw_fast.cli.options import parse
from paw_fast.config import TrainConfig, with_chat_date
from paw_fast.config.ranges import Range
from paw_fast.errors import UserError
from paw_fast.runs import console, progress, stop_signals


@dataclass(frozen=True)
class ReportOptions:
    """Writes report.html: results with intervals, problems and curves of one run or of several.

    Runs that differ in their seed alone are shown as one line, with mean and band. With --episodes also episodes.html,
    which shows how well the policy predicts its environment, token by token.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""
    out: Path | None = None
    """The report to write; by default report.html in the run or, for several runs, in the folder that contains the
    first."""
    episodes: Annotated[int, Range(0, 1 << 16)] = 0
    """Number of episodes to play for the episodes page, with the newest checkpoint on evaluation tasks. 0 writes no
    page."""
    episodes_per_task: Annotated[int, Range(1, 1 << 16)] = 2
    """How many of these episodes are played of each task; they form the groups."""
    trust_remote_code: bool = False
    """For --episodes: run Python code that comes with the model."""
    trust_env_code: bool = False
    """For --episodes, ALFWorld: allow the reference engine, which runs Python expressions from game files, if the
    config of the run asks for it."""


def report(args: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Runs the command; returns the exit status. `prepare` is called before heavy packages are used."""
    options: ReportOptions = parse(ReportOptions, args, "report")
    from paw_fast.runs.report import write_report

    if options.episodes:
        if len(options.runs) > 1:
            raise UserError(f"--episodes shows one run, got {len(options.runs)}: give one run directory")
        with stop_signals.handled(console.say, "leaving the episodes"):
            prepare()
            try:
                print(write_episodes(options))
            except stop_signals.Interrupted as stop:
                console.say("stopped: no page was written")
                return stop.status
    print(write_report(options.runs, options.out))
    return 0


def write_episodes(options: ReportOptions) -> Path:
    """Plays the episodes, measures what the policy expected, writes the page beside the report and returns its path."""
    from paw_fast.cli.eval import find_model, with_consent
    from paw_fast.evaluation import episode_view
    from paw_fast.models.policy import load_policy
    from paw_fast.rollout.factory import make_env
    from paw_fast.runs import run_dir
    from paw_fast.runs.episodes_page import EpisodesView, write_episodes_page
    from paw_fast.runs.report import EPISODES_PAGE

    path, config = find_model(options.runs[0], None)
    folder = run_dir.find_run_dir(Path(path))
    config = with_chat_date(with_consent(config, options))
    env = make_env(config.env)
    try:
        requests = episode_view.episode_requests(
            env.tasks(config.eval_split), options.episodes, options.episodes_per_task, config.seed
        )
        policy = load_policy(path, config.model, trainable=False)
        trajectories, chat = _play(policy, env, requests, config)
    finally:
        env.close()
    now = episode_view.measure_expectation(policy, trajectories, config)
    stop_signals.check()
    first, name = _first_policy(folder, config)
    before = episode_view.measure_expectation(first, trajectories, config) if first is not None else None
    view = EpisodesView(
        folder.resolve().name, name if before else "", Path(path).name,
        config.paw.tau if config.paw.loss == "cmae" else None, _describe_selection(config),
        f"{len(trajectories)} episodes on tasks of the split {config.eval_split}, played by {Path(path).name} at "
        f"temperature {config.rollout.eval_temperature:g}",
        episode_view.view_episodes(trajectories, before, now, chat, config),
    )  # fmt: skip
    beside = options.out.parent if options.out is not None else folder
    return write_episodes_page(view, beside / EPISODES_PAGE)


def _play(policy: Any, env: Any, requests: Sequence[Any], config: TrainConfig) -> tuple[list[Any], Any]:
    """Returns the episodes in the order of the requests, and the chat format with which they were played."""
    from paw_fast.rollout.factory import make_evaluation_engine, make_loop

    slots = min(config.rollout.slots, len(requests))
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, slots=slots))
    loop = make_loop(policy.tokenizer, policy.model.config, make_evaluation_engine(policy, config), env, config)
    found = {}
    with progress.phase("playing episodes", len(requests), "episodes") as advance:
        for trajectory in loop.play(requests, config.rollout.eval_temperature):
            found[trajectory.episode_id] = trajectory
            advance()
    return [found[request.episode_id] for request in requests], loop.chat


def _first_policy(folder: Path, config: TrainConfig) -> tuple[Any, str]:
    """Returns the policy before training and its name: the warm start, the checkpoint of step 0, or the model named.

    Returns (None, "") if it cannot be loaded any more, and says so.
    """
    from paw_fast.models.policy import load_policy
    from paw_fast.models.smollm2 import resolve_model
    from paw_fast.runs.checkpoint import list_checkpoints

    checkpoints = {path.name: path for path in list_checkpoints(folder)}
    try:
        if (folder / "warm_start" / "config.json").is_file():
            return load_policy(folder / "warm_start", config.model, trainable=False), "warm start"
        if "step_000000" in checkpoints:
            return load_policy(checkpoints["step_000000"], config.model, trainable=False), "step 0"
        if config.model.path != "tiny":
            return load_policy(resolve_model(config.model.path), config.model, trainable=False), config.model.path
        why = "the warm start and the checkpoint of step 0 are not there"
    except UserError as error:
        why = str(error)
    console.say(f"note: the page does not show the policy before training: {why}")
    return None, ""


def _describe_selection(config: TrainConfig) -> str:
    """Returns the rule of the run in words, for the legend of the page."""
    paw = config.paw
    if not paw.enabled:
        return "the run has no world-model loss, so none is selected"
    text = "all transitions" if paw.selection == "all" else f"{paw.selection} selection of a share of {paw.alpha:g}"
    text += ", duplicates once" if paw.deduplicate else ""
    text += f"; the run predicts {paw.horizon} observations, the page shows the first" if paw.horizon > 1 else ""
    text += "" if paw.target == "actual" else f"; the run's target is {paw.target}, the page shows the actual one"
    return f"{text}; lambda: {paw.balance}, at most {paw.lambda_0:g}"
