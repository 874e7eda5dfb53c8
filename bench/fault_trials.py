"""Runs small trainings in forked processes, disturbs them, resumes them, and compares them with undisturbed ones.

`Laboratory.run` forks a child that has the packages imported already and calls the command line in it. A trial disturbs
one such run, resumes it as its messages say, and is summed up in a `Trial`.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 3
SETTINGS = [
    "--preset", "tiny", "--env.num-train", "12", "--env.num-unseen", "4", "--env.max-steps", "3", "--eval-tasks", "2",
    "--eval-transitions", "4", "--rollout.groups", "2", "--rollout.group-size", "2", "--rollout.slots", "4",
    "--rollout.max-action-tokens", "6", "--algo.minibatches", "2", "--optim.schedule", "constant", "--eval-every", "2",
    "--optim.learning-rate", "1e-3", "--save-every", "1", "--steps", str(STEPS),
]  # fmt: skip
MODES = {
    "sync": ["--pipeline", "sync"],
    "stream": ["--pipeline", "stream"],
    "process": ["--rollout.placement", "process", "--rollout.hang-timeout-s", "20"],
    "async": ["--pipeline", "async", "--rollout.placement", "process", "--rollout.hang-timeout-s", "20"],
}
REPRODUCIBLE = ("sync", "stream", "process")
"""The modes whose metrics two runs have in common. In `async`, time decides which weights sample a token."""
TIMEOUT_S = 400.0
GRACE_S = 20.0
"""Seconds that processes of an ended run have to end too."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: `status` (negative: the signal), its stderr, the processes of it that were left."""

    status: int
    text: str
    left: int = 0

    @property
    def error(self) -> str:
        """The line that says why it ended, or its last one."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return next((one for one in reversed(lines) if one.startswith("error: ")), lines[-1] if lines else "")


@dataclass
class Trial:
    """One trial: what was done, how the disturbed run ended, and what a resume made of it."""

    fault: str
    mode: str
    detail: str
    status: int = 0
    said: str = ""
    traceback: bool = False
    resumed: bool = False
    lost: int = 0
    whole: bool = True
    """No checkpoint differs from its manifest, except one that the trial has damaged."""
    equal: bool | None = False
    """The metrics are those of the undisturbed run; None in modes that are not `REPRODUCIBLE`."""
    left: int = 0
    text: str = ""
    alters: bool = False
    """The fault changes the metrics of a run that goes on: they are not compared."""

    @property
    def survived(self) -> bool:
        return self.resumed and self.whole and self.equal is not False and not self.traceback and not self.left


@dataclass
class Laboratory:
    """A folder with a model, a cache and the undisturbed runs of each mode. Consumed by the faults of `faults.py`."""

    folder: Path
    undisturbed: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    """I/O calls of an undisturbed run below its folder, as the shim counts them."""

    def prepare(self, modes: list[str]) -> None:
        """Writes the model, and makes a run of each mode without a fault. Raises `RuntimeError` if one fails."""
        make_model(self.folder / "model")
        for mode in modes:
            run = self.folder / f"undisturbed-{mode}"
            seen = []
            for _ in range(2):  # the first also fills the cache, and is not timed
                shutil.rmtree(run, ignore_errors=True)
                start = time.monotonic()
                ended = self.train(mode, run, lambda run=run: shim("count", run))
                self.seconds[mode] = time.monotonic() - start
                if ended.status != 0:
                    raise RuntimeError(f"the undisturbed run in mode {mode} failed: {ended.text}")
                seen.append(numbers(run, mode))
            if mode in REPRODUCIBLE and seen[0] != seen[1]:
                raise RuntimeError(f"two undisturbed runs in mode {mode} have different metrics")
            self.undisturbed[mode] = seen[1]
            self.calls[mode] = int((self.folder / "calls").read_text())

    def train(
        self, mode: str, run: Path, set_up: Callable[[], object] | None = None,
        disturb: Callable[[int], object] | None = None,
    ) -> Ended:  # fmt: skip
        args = ["train", *SETTINGS, *MODES[mode], "--model", str(self.folder / "model"), "--run-dir", str(run)]
        return self.run(args, set_up, disturb)

    def run(
        self,
        args: list[str],
        set_up: Callable[[], object] | None = None,
        disturb: Callable[[int], object] | None = None,
    ) -> Ended:
        """Runs a command line in a forked child. `set_up` is called in the child, `disturb` here, with its pid."""
        said = self.folder / "stderr"
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            self._child(args, set_up, said)
        if disturb is not None:
            disturb(child)
        status = wait_for(child)
        deadline = time.monotonic() + GRACE_S
        while (left := session(child)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return Ended(status, said.read_text(errors="replace"), len(left))

    def _child(self, args: list[str], set_up: Callable[[], object] | None, said: Path) -> None:
        status = 99
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            from paw_fast.cli import main
            from paw_fast.runs.atomic_files import exit_code_of

            if set_up is not None:
                set_up()
            status = exit_code_of(lambda: main.run(args))
        except BaseException:
            status = 1
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for name in [name for name in os.environ if name.startswith("FAULT_")]:
                del os.environ[name]
            if (count := getattr(ctypes.CDLL(None), "fault_calls", None)) is not None:
                count.restype = ctypes.c_long
                (self.folder / "calls").write_text(str(count()))
            os._exit(status)

    def finish(self, trial: Trial, run: Path, ended: Ended) -> Trial:
        """Resumes the run of a trial where it has not ended well, and fills in the trial."""
        self.note(trial, ended)
        trial.said = trial.said or shorten(ended.error, run, self.folder)
        for _ in range(2):
            if ended.status == 0 and finished(run):
                break
            if not (run / "config.toml").exists():  # it had not begun: the same command again
                shutil.rmtree(run, ignore_errors=True)
                ended = self.train(trial.mode, run)
            else:
                rows, kept = steps_of(run)
                trial.lost = max(trial.lost, rows - kept)
                ended = self.run(["train", "--resume", str(run)])
            self.note(trial, ended)
        trial.resumed = ended.status == 0 and finished(run)
        trial.whole = trial.whole and damaged(run) == []
        same = trial.resumed and numbers(run, trial.mode) == self.undisturbed[trial.mode]
        trial.equal = same if trial.mode in REPRODUCIBLE and not trial.alters else None
        return trial

    def note(self, trial: Trial, ended: Ended) -> None:
        trial.status = trial.status or ended.status
        trial.traceback |= "Traceback (most recent call last)" in ended.text
        trial.left += ended.left
        trial.text += ended.text + "\n"


def make_model(folder: Path) -> None:
    """Writes a randomly initialised model of one layer, so that no warm start is needed."""
    import torch

    from paw_fast.models import tiny

    texts = ["You arrive at cabinet 1. On the cabinet 1, you see a mug 2, and a plate 1.", "go to cabinet 12", "look"]
    tokenizer = tiny.train_tokenizer(texts * 20, 400)
    model = tiny.build_model(len(tokenizer), hidden=32, layers=1, heads=2, kv_heads=1, ffn=48, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shim(kind: str, folder: Path, at: int = 0, **more: str) -> None:
    """Sets the shim of this process; see fault_shim.c."""
    os.environ.update({"FAULT_UNDER": str(folder), "FAULT_KIND": kind, "FAULT_AT": str(at), **more})


def wait_for(child: int) -> int:
    """The exit status of a child, negative for a signal; it is killed after `TIMEOUT_S`."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


ROUNDING = ("rollout/logprob_gap", "rollout/mismatch_kl")
"""The engine's rounding errors. They depend on which episodes share a batch, which in worker processes is chance."""


def numbers(run: Path, mode: str) -> list[dict[str, float]]:
    """The metrics that do not depend on the time or machine of a run, and in worker processes without `ROUNDING`."""
    from paw_fast.runs.metrics import read_metrics

    skip = ("time/", "throughput/", "memory/", "idle/", *(ROUNDING if "process" in MODES[mode] else ()))
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in read_metrics(run)]


def steps_of(run: Path) -> tuple[int, int]:
    """The last step with metrics, and that of the newest checkpoint."""
    from paw_fast.runs.checkpoint import list_checkpoints, step_of
    from paw_fast.runs.metrics import read_metrics

    rows = max((int(row["step"]) for row in read_metrics(run)), default=0)
    return rows, max((step_of(path) for path in list_checkpoints(run)), default=0)


def finished(run: Path) -> bool:
    return steps_of(run) == (STEPS, STEPS) and (run / "summary.json").is_file() and (run / "report.html").is_file()


def damaged(run: Path) -> list[str]:
    """What is wrong with the checkpoints that a resume would take."""
    from paw_fast.runs.checkpoint import faults_of, list_checkpoints

    return [f"{path.name}: {one}" for path in list_checkpoints(run) for one in faults_of(path)]


def shorten(text: str, run: Path, folder: Path) -> str:
    """A message without what differs from trial to trial."""
    text = text.replace(str(run), "RUN").replace(str(folder), "WORK").removeprefix("error: ")
    text = re.sub(r"process \d+", "process P", text)
    text = re.sub(r"\d+(\.\d+)? (MiB|bytes|s)\b", r"N \2", text)
    return re.sub(r"step_\d+", "step_N", text)


def plain(value: Any) -> str:
    """A cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
