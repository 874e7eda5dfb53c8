"""Defines the metrics of a run, and writes and reads the files that hold them.

    RUN/metrics.jsonl          one JSON object a line: {"step": 12, "reward/mean": 1.25, ...}
    RUN/tensorboard/           the same as TensorBoard events

Imports no torch, so that reports can be written without it.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import is_at, user_errors, write_text
from paw_fast.runs.log_services import LogServices

METRICS: dict[str, str] = {
    "reward/mean": "mean return of the training episodes, penalties included",
    "reward/return_mean": "mean return of the training episodes without penalties",
    "reward/score_mean": "mean score of the training episodes as the environment reports it, 0 to 1",
    "reward/eval_score_mean": "the same over the evaluation episodes",
    "score/<name>": "mean of a further score of the environment over the training episodes (search: em, sub_em, f1)",
    "score/eval_<name>": "the same over the evaluation episodes",
    "success/rate": "share of training episodes that succeeded",
    "success/<task_type>": "share of training episodes of one task type that succeeded",
    "success/eval_rate": "share of evaluation tasks solved",
    "success/eval_<task_type>": "share of evaluation tasks of one task type solved",
    "success/eval_total": "number of evaluation tasks",
    "episode/length_mean": "mean number of actions in an episode",
    "episode/invalid_action_rate": "share of actions that could not be parsed or were not admissible",
    "episode/truncated_rate": "share of episodes ended by a limit on steps or tokens, or by a budget",
    "episode/cut_rate": "share of turns whose observation or history was shortened to fit into the prompt",
    "wm/lambda_mean": "weight of the world-model loss, mean over the groups",
    "wm/target_share": "share of transitions that are followed by an observation to predict",
    "wm/selected_share": "share of those transitions that are selected for the world-model loss",
    "wm/token_share": "with --paw.token-fraction below 1: share of their observation tokens that are learned from",
    "wm/clipped_token_ratio": "share of selected observation tokens whose probability is at least tau",
    "wm/next_observation_error": "mean of 1 - p over the selected observation tokens",
    "wm/repeated_passage_error": "the same over tokens of retrieved passages that also occurred in an earlier step",
    "wm/new_passage_error": "the same over tokens of retrieved passages that occur for the first time",
    "wm/new_passage_share": "share of passage tokens in passages that occur for the first time",
    "wm/loss": "world-model loss, mean over the optimizer steps that include it",
    "wm/eval_accuracy": "top-1 accuracy of the prediction of held-out observation tokens",
    "wm/eval_probability": "mean probability of held-out observation tokens",
    "wm/eval_shuffled_accuracy": "the same accuracy when the action is replaced by that of another transition",
    "wm/eval_shuffled_probability": "the same probability when the action is replaced by that of another transition",
    "wm/eval_action_gap": "wm/eval_probability - wm/eval_shuffled_probability: the effect of actions on predictions",
    "policy/loss": "policy loss including the KL term, mean over the optimizer steps that include it",
    "policy/kl": "KL divergence from the reference policy (k3 estimate, clamped as in the loss), nats per token",
    "policy/clip_fraction": "share of action tokens whose probability ratio is clipped",
    "policy/entropy": "entropy of the policy, mean over the action tokens, nats",
    "policy/advantage_abs_mean": "mean absolute advantage",
    "policy/group_spread_share": "share of episodes in groups with reward variance (not logged with a critic)",
    "critic/loss": "value loss of PPO, per token",
    "critic/value_mean": "mean value estimate over the action tokens",
    "critic/explained_variance": "explained variance of the value targets: 1 - Var(target - value) / Var(target)",
    "critic/clip_fraction": "share of action tokens whose value is clipped",
    "critic/grad_norm": "global gradient norm of a critic with a separate backbone",
    "rollout/overlong_tasks": "tasks skipped because their first prompt is too long; logged only if there are any",
    "rollout/retried_episodes": "episodes played again because their environment failed; logged only if there are any",
    "rollout/rounds": "rounds of rollouts in the step (more than 1 only with dynamic sampling)",
    "optim/grad_norm": "global gradient norm before clipping",
    "optim/learning_rate": "learning rate",
    "optim/skipped_steps": "optimizer steps skipped because the gradient was not finite",
    "retrieval/queries": "search queries since the last row",
    "retrieval/known_share": "share of those queries that were answered from the cache",
    "retrieval/failures": "requests to the retrieval server without a usable response",
    "retrieval/paused_s": "seconds spent waiting for an unavailable retrieval server",
    "rollout/logprob_gap_mean": "mean absolute difference of the log-probs in trainer and engine, nats",
    "rollout/logprob_gap_max": "largest absolute difference of the log-probs in trainer and engine, nats",
    "rollout/mismatch_kl": "KL divergence between the policies of engine and trainer (k3 estimate), nats per token",
    "episode/overrun_rate": "share of episodes ended because their time or token budget was used up",
    "episode/token_limit_rate": "share of episodes ended by the sequence length or the token budget",
    "async/staleness_mean": "updates between the weights that sampled a token and those trained on it, mean",
    "async/staleness_max": "maximum of the same over the tokens",
    "async/dropped_groups": "groups dropped because they exceeded the staleness limit",
    "async/importance_mean": "mean truncated importance weight of the action tokens",
    "async/importance_capped_share": "share of action tokens whose importance weight reached the cap",
    "idle/trainer": "share of the step in which the trainer was idle; evaluations are excluded",
    "idle/generator": "share of the step in which rollout workers were idle, mean; evaluations are excluded",
    "time/<stage>_s": "seconds spent in one stage of the step",
    "time/step_s": "seconds spent in the whole step",
    "throughput/tokens_per_s": "tokens processed per second",
    "throughput/episodes_per_s": "episodes per second",
    "memory/peak_bytes": "peak memory of the process (CPU) or of the device (CUDA)",
}
"""All metrics and their meaning. `<...>` stands for letters, digits, `_` and `-`. New metrics must be added here."""

_PATTERN = re.compile("|".join(re.sub(r"<\w+>", r"[A-Za-z0-9_\\-]+", name) for name in METRICS))
_NON_FINITE = "non_finite"


def check_name(name: str) -> None:
    """Raises `ValueError`, with the most similar known name, if `name` is not one of `METRICS`."""
    if not _PATTERN.fullmatch(name):
        near = difflib.get_close_matches(name, METRICS, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown metric {name!r}{hint}: see metrics.METRICS")


# ----------------------------------------------------------------------------------------------------- files


class MetricsWriter:
    """Appends the metrics of each step to the files of a run. Use it as a context manager, or call `close`.

    Args:
        run_dir: folder of the run.
        services: where to send the metrics too, see `config.services`: "tensorboard" writes event files into the run
            directory, others are those of `log_services`.
        resume_step: step of the checkpoint from which the run is resumed. Later lines are removed, and TensorBoard
            hides later events. Without it the run must not have any metrics yet.

    Raises `UserError` when the disk is full, the folder is not writable or a service refuses the run.

    >>> with MetricsWriter(Path("runs/a")) as writer:                                        # doctest: +SKIP
    ...     writer.log(1, {"reward/mean": 1.25})
    """

    def __init__(
        self,
        run_dir: Path,
        services: Sequence[str] = ("tensorboard",),
        *,
        resume_step: int | None = None,
    ) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        with user_errors("write metrics", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        if resume_step is not None:
            rows = [row for row in _read_rows(self.path) if row["step"] <= resume_step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        elif self.path.exists() and self.path.stat().st_size:
            raise UserError(f"{run_dir} already contains the metrics of a run: resume it or choose another folder")
        others = [name for name in services if name != "tensorboard"]
        self._services = LogServices(run_dir, others, rows) if others else None
        with user_errors("write metrics", self.path):
            self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
            folder = self.path.parent / "tensorboard"
            self._events = _EventFile(folder, resume_step) if "tensorboard" in services else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes and flushes one line. NaN and infinite values become null and are listed under `non_finite`.

        Raises `ValueError` for an unknown metric, and `UserError` when the line cannot be written; the file then keeps
        its previous contents.
        """
        row: dict[str, Any] = {"step": int(step)}
        for name, value in values.items():
            check_name(name)
            row[name] = float(value) if math.isfinite(value) else None
        bad = [name for name in values if row[name] is None]
        if bad:
            row[_NON_FINITE] = bad
        finite = {name: row[name] for name in values if row[name] is not None}
        self.check_in_place()
        with user_errors("write metrics", self.path):
            _append(self._handle, (json.dumps(row) + "\n").encode())
            if self._events is not None:
                self._events.log(step, finite)
        if self._services is not None:
            self._services.log(step, finite)

    def sync(self) -> None:
        """Flushes the rows to disk, so that a checkpoint never has more steps than metrics.jsonl after a power loss."""
        with user_errors("write metrics", self.path):
            os.fsync(self._handle.fileno())

    def check_in_place(self) -> None:
        """Raises `UserError` if the folder of the run was moved, replaced or deleted.

        Further output would be lost or would create a second folder at the old path.
        """
        if not is_at(self._handle.fileno(), self.path):
            raise UserError(
                f"{self.path} was moved, replaced or deleted while the run was writing to it: restore the folder and "
                f"continue with --resume {self.path.parent}"
            )

    def close(self) -> None:
        """Closes the files. Safe to call twice."""
        self._handle.close()
        if self._events is not None:
            self._events.close()
        if self._services is not None:
            self._services.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _append(handle: Any, line: bytes) -> None:
    """Writes the complete line, or leaves the file unchanged."""
    end = os.fstat(handle.fileno()).st_size
    try:
        done = 0
        while done < len(line):
            done += handle.write(line[done:])
    except OSError:
        os.ftruncate(handle.fileno(), end)
        raise


class _EventFile:
    """Writes TensorBoard events synchronously.

    The writer of tensorboardX is not used: its thread dies when the disk is full and then blocks the caller, and events
    in its queue are lost when the process is killed.
    """

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        # Protobuf creates these classes at run time, so type checkers do not know them.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        folder.mkdir(parents=True, exist_ok=True)
        now = max(time.time_ns(), 1 + _newest(folder))  # TensorBoard reads the files in the order of their names
        name = f"events.out.tfevents.{now // 10**9}.paw-fast.{now % 10**9:09d}"
        self._records = RecordWriter(str(folder / name))
        self._write(self._event(file_version="brain.Event:2"))
        if resume_step is not None:
            start = events.SessionLog(status=events.SessionLog.START)
            self._write(self._event(step=resume_step + 1, session_log=start))
        self._records.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        rows = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(self._event(step=int(step), summary=self._summary(value=rows)))
        self._records.flush()

    def close(self) -> None:
        with suppress(OSError):  # events that did not fit on a full disk; `log` has already reported the error
            self._records.close()


def _newest(folder: Path) -> int:
    """The time in ns in the name of the newest event file: of the future, if the clock was set back since."""
    parts = (path.name.split(".") for path in folder.glob("events.out.tfevents.*.paw-fast.*"))
    times = (one[3] + one[-1] for one in parts if len(one) == 6)
    return max((int(one) for one in times if one.isascii() and one.isdigit()), default=0)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of the file as written. An incomplete last line is ignored. Raises `UserError`."""
    if not path.exists():
        return []
    with user_errors("read metrics", path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_checked(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            why = f" ({error})" if type(error) is TypeError else ""
            raise UserError(f"{path}:{number}: not a line of metrics{why}: remove the line") from None
    return rows


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row with `step` as an int and every value as a float or None.

    Raises `KeyError`, `TypeError`, `ValueError` or `OverflowError` when it is not a valid row.
    """
    step = int(row.pop("step"))
    if abs(step) >= 2**53:
        raise ValueError("step out of range")
    bad = row.pop(_NON_FINITE, None)
    for name, value in row.items():
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {json.dumps(value)[:40]}, expected a number or null")
    values = {name: None if value is None else float(value) for name, value in row.items()}
    return {"step": step, **values} | ({} if bad is None else {_NON_FINITE: bad})


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Returns the logged rows in the order in which they were written. An empty list if there is no file.

    Each row has an integer `step`; null values become NaN. An incomplete last line is ignored. Raises `UserError`,
    which names the line, when any other line is damaged.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items() if name != _NON_FINITE}
        for row in _read_rows(Path(run_dir) / "metrics.jsonl")
    ]


# ---------------------------------------------------------------------------------------------------- memory


def peak_memory_bytes() -> int:
    """Returns the peak memory in bytes: allocated on the device if torch uses CUDA, else resident in the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, ValueError, StopIteration):
        # Not getrusage: its maximum starts at the size of the parent process.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
