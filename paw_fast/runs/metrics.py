"""What a run measures: the names, the files they go to, the time of every stage, and a confidence interval.

    RUN/metrics.jsonl          one JSON object a line: {"step": 12, "reward/mean": 1.25, ...}
    RUN/tensorboard/           the same as TensorBoard events

Imports no torch (the report reads these files without it).
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import is_at, user_errors, write_text

METRICS: dict[str, str] = {
    "reward/mean": "mean return of the step's episodes, penalties included",
    "reward/return_mean": "mean return without penalties",
    "reward/score_mean": "mean of the environment's own score, 0 to 1",
    "reward/eval_score_mean": "mean of that score over the evaluation tasks",
    "score/<name>": "mean of another score of the environment over the step's episodes (search: em, sub_em, f1)",
    "score/eval_<name>": "mean of that score over the evaluation tasks",
    "success/rate": "share of training episodes that won",
    "success/<task_type>": "share of training episodes of one task type that won",
    "success/eval_rate": "share of evaluation tasks won",
    "success/eval_<task_type>": "share of evaluation tasks of one task type won",
    "success/eval_total": "evaluation tasks played",
    "episode/length_mean": "actions in an episode",
    "episode/invalid_action_rate": "share of actions that broke the format or were not admissible",
    "episode/truncated_rate": "share of episodes that ended because a limit (of steps, tokens or a budget) was reached",
    "episode/cut_rate": "share of turns whose observation or history was cut to fit the prompt",
    "wm/lambda_mean": "mean weight of the world-model loss over the groups",
    "wm/target_share": "share of transitions that an observation follows which can be predicted",
    "wm/selected_share": "share of those transitions that is selected for the world-model loss",
    "wm/clipped_token_ratio": "share of selected observation tokens with p >= tau",
    "wm/next_observation_error": "mean 1 - p over selected observation tokens",
    "wm/repeated_passage_error": "the same on tokens of retrieved passages that an earlier step has shown",
    "wm/new_passage_error": "the same on tokens of retrieved passages that no earlier step has shown",
    "wm/new_passage_share": "share of those passage tokens that belong to new ones",
    "wm/loss": "world-model loss, mean over the optimizer steps that have it",
    "wm/eval_accuracy": "share of held-out observation tokens that are the model's likeliest",
    "wm/eval_probability": "mean probability of held-out observation tokens",
    "wm/eval_shuffled_accuracy": "the same accuracy after another transition's action",
    "wm/eval_shuffled_probability": "the same probability after another transition's action",
    "wm/eval_action_gap": "probability minus that after shuffled actions: what is known of the action's effect",
    "policy/loss": "policy loss, KL included, mean over the optimizer steps that have it",
    "policy/kl": "k3 estimate of the KL to the reference policy (clamped as in the loss), nats a token",
    "policy/clip_fraction": "share of action tokens with a clipped ratio",
    "policy/entropy": "mean entropy of action tokens, nats",
    "policy/advantage_abs_mean": "mean size of the advantages",
    "policy/group_spread_share": "share of episodes in the policy loss; dynamic sampling leaves some groups out",
    "critic/loss": "PPO's value loss, a token",
    "critic/value_mean": "mean value of action tokens",
    "critic/explained_variance": "1 - Var(target - value) / Var(target)",
    "critic/clip_fraction": "share of action tokens whose value was clipped",
    "critic/grad_norm": "global gradient norm of a critic with a backbone of its own",
    "rollout/overlong_tasks": "tasks left out because their first prompt does not fit; absent where none was",
    "rollout/rounds": "rounds of rollouts that the step drew (dynamic sampling)",
    "optim/grad_norm": "global gradient norm before clipping",
    "optim/learning_rate": "learning rate",
    "optim/skipped_steps": "optimizer steps left out because the gradient was not finite",
    "retrieval/queries": "searches that were played since the last row",
    "retrieval/known_share": "share of them whose passages were at hand from an earlier search",
    "retrieval/failures": "requests to the retrieval server that got no usable answer",
    "retrieval/paused_s": "seconds spent waiting for a retrieval server that was down",
    "rollout/logprob_gap_mean": "mean |log-prob in the trainer - in the generator|, nats",
    "rollout/logprob_gap_max": "largest such gap, nats",
    "rollout/mismatch_kl": "KL from the generator's policy to the trainer's, k3 estimate, nats a token",
    "episode/overrun_rate": "share of episodes that were cut because their time or token budget was spent",
    "async/staleness_mean": "updates between a token's weights and those it is learned with, mean over tokens",
    "async/staleness_max": "the most such updates",
    "async/dropped_groups": "groups that were dropped because they had become older than the bound",
    "async/importance_mean": "mean truncated importance weight of the action tokens",
    "async/importance_capped_share": "share of action tokens whose importance weight reached the cap",
    "idle/trainer": "share of the step, evaluations left out, in which the trainer did not score, update or sync",
    "idle/generator": "share of that time in which the generators (mean over them) played nothing",
    "time/<stage>_s": "seconds spent in a stage of the step",
    "time/step_s": "seconds of the whole step",
    "throughput/tokens_per_s": "tokens that the step processed, a second",
    "throughput/episodes_per_s": "episodes a second",
    "memory/peak_bytes": "peak memory of the process (CPU) or of the device (CUDA)",
}
"""Every metric with its meaning; `<...>` stands for letters, digits, `_` and `-`. Add a new one here first."""

_PATTERN = re.compile("|".join(re.sub(r"<\w+>", r"[A-Za-z0-9_\\-]+", name) for name in METRICS))
_NON_FINITE = "non_finite"


def check_name(name: str) -> None:
    """Raises `ValueError` with the nearest known name when this is not one of `METRICS`."""
    if not _PATTERN.fullmatch(name):
        near = difflib.get_close_matches(name, METRICS, 1)
        raise ValueError(f"unknown metric {name!r}{f', do you mean {near[0]!r}?' if near else ''}: see metrics.METRICS")


# ----------------------------------------------------------------------------------------------------- files


class MetricsWriter:
    """Appends the metrics of each step to a run's files. Use it as a context manager or call `close`.

    `resume_step` is the step of the checkpoint that the run goes on from: later lines are removed, and
    TensorBoard hides later events. Without it the run must have no metrics yet. `wandb` holds keyword arguments
    of `wandb.init` (say, `{"project": "paw"}`); it needs the `wandb` extra. Raises `UserError` on a full disk, a
    missing permission or a missing extra.

    >>> with MetricsWriter(Path("runs/a")) as writer:                                        # doctest: +SKIP
    ...     writer.log(1, {"reward/mean": 1.25})
    """

    def __init__(
        self,
        run_dir: Path,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        *,
        resume_step: int | None = None,
    ) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        with user_errors("write metrics", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            rows = [row for row in _read_rows(self.path) if row["step"] <= resume_step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        elif self.path.exists() and self.path.stat().st_size:
            raise UserError(f"{run_dir} already holds the metrics of a run: resume it or choose another folder")
        self._wandb = _start_wandb(run_dir, wandb) if wandb is not None else None
        with user_errors("write metrics", self.path):
            self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
            folder = self.path.parent / "tensorboard"
            self._events = _EventFile(folder, resume_step) if tensorboard else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line, at once. NaN and infinities become null and are listed under `non_finite`.

        Raises `ValueError` for an unknown name, `UserError` when the line cannot be written: none of it then is.
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
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def check_in_place(self) -> None:
        """Raises `UserError` where the run's folder was moved, replaced or deleted: what is written now would be lost,
        or make a second folder in its old place."""
        if not is_at(self._handle.fileno(), self.path):
            raise UserError(
                f"{self.path} was moved, replaced or deleted while the run was writing to it: put the folder back and "
                f"go on with --resume {self.path.parent}"
            )

    def close(self) -> None:
        """Closes the files. Safe to call twice."""
        self._handle.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _append(handle: Any, line: bytes) -> None:
    """Writes the line whole, or leaves the file as it was."""
    end = os.fstat(handle.fileno()).st_size
    try:
        done = 0
        while done < len(line):
            done += handle.write(line[done:])
    except OSError:
        os.ftruncate(handle.fileno(), end)
        raise


class _EventFile:
    """TensorBoard events, written synchronously: tensorboardX's own writer has a thread that dies on a full disk
    and then blocks the caller, and a queue that a kill empties."""

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        # Protobuf makes these classes at run time, where a type checker does not see them.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
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
        with suppress(OSError):  # what a full disk kept in the buffer; `log` has reported it
            self._records.close()


def _start_wandb(run_dir: Path, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed: pip install 'paw-fast[wandb]'") from None
    return wandb.init(dir=str(run_dir), **settings)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The file's rows as written; a last line that a kill cut short is left out. Raises `UserError`."""
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
    """The row with `step` as an int and every value a float or None. Raises an ordinary error when it is no row."""
    step = int(row.pop("step"))
    if abs(step) >= 2**53:
        raise ValueError("no step")
    bad = row.pop(_NON_FINITE, None)
    for name, value in row.items():
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {json.dumps(value)[:40]}, expected a number or null")
    values = {name: None if value is None else float(value) for name, value in row.items()}
    return {"step": step, **values} | ({} if bad is None else {_NON_FINITE: bad})


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The logged rows in the order written, `step` (an int) in each; null reads as NaN. Empty without a file.

    Raises `UserError` naming the line when one in the middle is damaged; a torn last line is left out.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items() if name != _NON_FINITE}
        for row in _read_rows(Path(run_dir) / "metrics.jsonl")
    ]


# ------------------------------------------------------------------------------------------- time and memory


@dataclass(frozen=True)
class Span:
    """One stretch of a stage, in seconds since the timer was made. Produced by `StageTimer`."""

    name: str
    start_s: float
    end_s: float
    thread: int


class StageTimer:
    """Seconds of each stage. A stage inside another counts for itself alone, so the times add up to the step.

    Threads may use one timer together: each has its own nesting, and the times of all are summed.

    >>> timer = StageTimer()
    >>> with timer("rollout"):
    ...     pass
    >>> sorted(timer.take())
    ['time/other_s', 'time/rollout_s', 'time/step_s']
    """

    def __init__(self, max_spans: int = 100_000) -> None:
        self.spans: deque[Span] = deque(maxlen=max_spans)
        self.origin = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        stack: list[float] = self._local.__dict__.setdefault("stack", [])
        stack.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            inside = stack.pop()
            if stack:
                stack[-1] += end - start
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + (end - start) - inside
                thread = threading.get_ident()
                self.spans.append(Span(stage, start - self.origin, end - self.origin, thread))

    def take(self) -> dict[str, float]:
        """The stages that ended since the last `take`, as metrics, and starts anew.

        `time/step_s` is the wall time since then, `time/other_s` what of it lay in no stage (0 where threads
        overlap by more).
        """
        with self._lock:
            now = time.perf_counter()
            seconds, self._seconds = self._seconds, {}
            step, self._last = now - self._last, now
        times = {f"time/{stage}_s": value for stage, value in seconds.items()}
        times["time/other_s"] = max(step - sum(seconds.values()), 0.0)
        times["time/step_s"] = step
        return times

    def chrome_trace(self) -> list[dict[str, Any]]:
        """The kept spans as events for `chrome://tracing` or Perfetto (times in microseconds)."""
        return [
            {
                "name": span.name,
                "ph": "X",
                "ts": span.start_s * 1e6,
                "dur": (span.end_s - span.start_s) * 1e6,
                "pid": os.getpid(),
                "tid": span.thread,
            }
            for span in self.spans
        ]


def peak_memory_bytes() -> int:
    """The device's peak of allocated bytes where torch runs on CUDA, else the process's peak resident size."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, ValueError, StopIteration):
        # What getrusage gives begins with the size of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ------------------------------------------------------------------------------------------------ statistics


def wilson_interval(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (95 % by default): (low, high), both in [0, 1]; (0, 1) of nothing.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson, JASA 22 (1927).
    Raises `ValueError` unless 0 <= successes <= total.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"got {successes} successes of {total}, expected 0 <= successes <= total")
    if total == 0:
        return 0.0, 1.0
    share, z2n = successes / total, z * z / total
    middle = share + z2n / 2
    half = z * math.sqrt(share * (1 - share) / total + z2n / (4 * total))
    low = 0.0 if successes == 0 else (middle - half) / (1 + z2n)
    high = 1.0 if successes == total else (middle + half) / (1 + z2n)
    return low, high
