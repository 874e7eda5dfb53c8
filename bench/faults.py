"""Injects faults into small training runs, resumes them, and compares their metrics with those of undisturbed runs.

    python bench/faults.py --quick                                        # a few trials, about a minute
    python bench/faults.py --trials 6 --seed 0 --out bench/results/faults.md

Each trial is a run of three steps on generated games in a process of its own, disturbed at a random moment: killed,
stopped, with a full or failing disk (an LD_PRELOAD shim, fault_shim.c, compiled at the start; needs a C compiler), with
files changed, worker processes killed, the clock set, the folder's mount gone (needs root). It is then resumed as its
message says. It survives where it then ends with the metrics of the undisturbed run bit for bit, its checkpoints are
whole, and no traceback and no process is left. The exit status is 1 if a trial did not survive.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fault_injections
from fault_trials import MODES, REPRODUCIBLE, Laboratory, Trial, plain, session, shim, shorten

HERE = Path(__file__).resolve().parent
POINTS = [
    ("paw_fast.runs.checkpoint", "save_model"), ("paw_fast.runs.checkpoint", "_save_torch"),
    ("paw_fast.runs.checkpoint", "seal"), ("paw_fast.runs.checkpoint", "_publish"), ("paw_fast.trainer", "prune"),
    ("paw_fast.runs.metrics", "_append"), ("paw_fast.trainer", "write_summary"),
    ("paw_fast.trainer", "episode_metrics"), ("paw_fast.trainer", "capture_rng_states"),
]  # fmt: skip
"""Functions at whose calls a run is killed, by the module that calls them."""


class Faults:
    """The faults: each method makes one trial in a mode, with random moments from `rng`."""

    def __init__(self, lab: Laboratory, rng: random.Random):
        self.lab, self.rng, self.number = lab, rng, 0

    def new_run(self) -> Path:
        self.number += 1
        return self.lab.folder / f"run-{self.number}"

    def moment(self, mode: str) -> float:
        """A random moment of a run, in seconds from its start."""
        return self.rng.uniform(0.05, 1.0) * self.lab.seconds[mode]

    def signalled(self, fault: str, mode: str, number: signal.Signals) -> Trial:
        run, after = self.new_run(), self.moment(mode)

        def disturb(pid: int) -> None:
            time.sleep(after)
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(1)
                os.kill(pid, signal.SIGCONT)

        return self.lab.finish(Trial(fault, mode, f"{after:.2f} s"), run, self.lab.train(mode, run, disturb=disturb))

    def killed(self, mode: str) -> Trial:
        return self.signalled("SIGKILL at a random moment", mode, signal.SIGKILL)

    def terminated(self, mode: str) -> Trial:
        return self.signalled("SIGTERM at a random moment", mode, signal.SIGTERM)

    def interrupted(self, mode: str) -> Trial:
        return self.signalled("SIGINT at a random moment", mode, signal.SIGINT)

    def suspended(self, mode: str) -> Trial:
        return self.signalled("SIGSTOP for a second", mode, signal.SIGSTOP)

    def killed_at_point(self, mode: str) -> Trial:
        (module, name), call, before = self.rng.choice(POINTS), self.rng.randrange(1, 5), self.rng.random() < 0.5
        run = self.new_run()

        def set_up() -> None:
            home, calls = importlib.import_module(module), []
            original = getattr(home, name)

            def dies(*args: object, **more: object) -> object:
                calls.append(name)
                if before and len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **more)
                if len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(home, name, dies)

        detail = f"{'before' if before else 'after'} call {call} of {name}"
        trial = Trial("SIGKILL at a named point", mode, detail)
        return self.lab.finish(trial, run, self.lab.train(mode, run, set_up))

    def io(self, fault: str, mode: str, kind: str) -> Trial:
        run, at = self.new_run(), self.rng.randrange(1, self.lab.calls[mode] + 1)
        trial = Trial(fault, mode, f"call {at} of {self.lab.calls[mode]}")
        return self.lab.finish(trial, run, self.lab.train(mode, run, lambda: shim(kind, run, at)))

    def disk_full(self, mode: str) -> Trial:
        return self.io("disk full from the k-th write on", mode, "full")

    def io_error(self, mode: str) -> Trial:
        return self.io("I/O error at the k-th write, fsync or rename", mode, "eio")

    def short_writes(self, mode: str) -> Trial:
        return self.io("short writes from the k-th on", mode, "short")

    def hanging_disk(self, mode: str) -> Trial:
        return self.io("the k-th write, fsync or rename takes a second", mode, "hang")

    def file_limit(self, mode: str) -> Trial:
        run, size = self.new_run(), int(2 ** self.rng.uniform(10, 18))

        def set_up() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        trial = Trial("files limited by ulimit -f", mode, f"{size} bytes")
        return self.lab.finish(trial, run, self.lab.train(mode, run, set_up))

    def clock(self, mode: str) -> Trial:
        run, at = self.new_run(), self.rng.randrange(1, 200)
        jump = self.rng.choice((-1, 1)) * self.rng.randrange(60, 30 * 86400)
        trial = Trial("the clock is set, by a month at most", mode, f"{jump} s at call {at}")
        set_up = lambda: shim("count", run, at, FAULT_CLOCK_S=str(jump))  # noqa: E731
        return self.lab.finish(trial, run, self.lab.train(mode, run, set_up))

    def damaged_checkpoint(self, mode: str) -> Trial:
        """A run stopped after two steps has a byte of its newest checkpoint changed, or a file cut or removed."""
        run = self.new_run()
        half = self.lab.folder / f"half-{mode}"
        if not half.exists():
            shutil.copytree(self.lab.folder / f"undisturbed-{mode}", half)
            shutil.rmtree(half / "checkpoints" / "step_000003")
            for name in ("summary.json", "report.html"):
                (half / name).unlink()
            rows = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
            (half / "metrics.jsonl").write_text("".join(rows[:-1]))
        shutil.copytree(half, run)
        folder = run / "checkpoints" / "step_000002"
        path = self.rng.choice(sorted(one for one in folder.iterdir() if one.stat().st_size))
        data, kind = bytearray(path.read_bytes()), self.rng.choice(("bit", "cut", "removed", "emptied"))
        at = self.rng.randrange(len(data))
        if kind == "bit":
            data[at] ^= 1 << self.rng.randrange(8)
        path.write_bytes(b"" if kind == "emptied" else data[:at] if kind == "cut" else data)
        if kind == "removed":
            path.unlink()
        trial = Trial("a file of the newest checkpoint is damaged", mode, f"{path.name} {kind} at {at}")
        ended = self.lab.run(["train", "--resume", str(run)])
        if ended.status == 2 and "delete that folder" in ended.error:
            shutil.rmtree(folder)
        elif ended.status == 0:
            trial.whole = False  # taken for whole
        return self.lab.finish(trial, run, ended)

    def worker(self, fault: str, mode: str, number: signal.Signals) -> Trial:
        run, after = self.new_run(), self.moment(mode)

        def disturb(pid: int) -> None:
            time.sleep(after)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and session(pid):
                workers = [one for one in session(pid) if one != pid and b"spawn_main" in command_line(one)]
                if workers:
                    os.kill(workers[0], number)
                    return
                time.sleep(0.05)

        return self.lab.finish(Trial(fault, mode, f"{after:.2f} s"), run, self.lab.train(mode, run, disturb=disturb))

    def worker_killed(self, mode: str) -> Trial:
        return self.worker("SIGKILL of the worker process", mode, signal.SIGKILL)

    def worker_hangs(self, mode: str) -> Trial:
        return self.worker("SIGSTOP of the worker process", mode, signal.SIGSTOP)

    def injected(self, fault: str, mode: str, inject: Callable[[random.Random], str], alters: bool = False) -> Trial:
        """A fault of `fault_injections`; `alters`: a run that goes on has other metrics from there on."""
        run, seed = self.new_run(), self.rng.randrange(1 << 30)
        note = self.lab.folder / "injected"

        def set_up() -> None:
            note.write_text(inject(random.Random(seed)), encoding="utf-8")

        note.write_text("not begun", encoding="utf-8")
        ended = self.lab.train(mode, run, set_up)
        trial = Trial(fault, mode, note.read_text(encoding="utf-8"), alters=alters and ended.status == 0)
        return self.lab.finish(trial, run, ended)

    def nan_gradient(self, mode: str) -> Trial:
        return self.injected("NaN in a gradient", mode, fault_injections.nan_in_gradient, alters=True)

    def nan_weight(self, mode: str) -> Trial:
        return self.injected("NaN in a weight", mode, fault_injections.nan_in_weights)

    def nan_logit(self, mode: str) -> Trial:
        return self.injected("NaN in the logits", mode, fault_injections.nan_in_logits, alters=True)

    def nan_reward(self, mode: str) -> Trial:
        return self.injected("a reward that is not finite", mode, fault_injections.nan_in_reward)

    def environment_fails(self, mode: str) -> Trial:
        trial = self.injected("the environment raises an exception", mode, fault_injections.environment_fails)
        trial.traceback = False  # of the environment's code: its author needs it
        return trial

    def out_of_memory(self, mode: str) -> Trial:
        return self.injected("out of memory", mode, fault_injections.out_of_memory, alters=True)

    def mount_vanishes(self, mode: str) -> Trial:
        real, mounted, after = self.new_run(), self.lab.folder / "mounted", self.moment(mode)
        real.mkdir()
        mounted.mkdir(exist_ok=True)
        run = mounted / "run"
        subprocess.run(["mount", "--bind", str(real), str(mounted)], check=True)

        def disturb(pid: int) -> None:
            time.sleep(after)
            subprocess.run(["umount", "-l", str(mounted)], check=True)

        trial = Trial("the mount of the run vanishes", mode, f"{after:.2f} s")
        ended = self.lab.train(mode, run, disturb=disturb)
        trial.said = shorten(ended.error, run, self.lab.folder)
        subprocess.run(["mount", "--bind", str(real), str(mounted)], check=True)
        try:
            return self.lab.finish(trial, run, ended)
        finally:
            subprocess.run(["umount", str(mounted)], check=True)


INLINE = [
    Faults.killed, Faults.killed_at_point, Faults.terminated, Faults.interrupted, Faults.suspended, Faults.disk_full,
    Faults.io_error, Faults.short_writes, Faults.hanging_disk, Faults.file_limit, Faults.clock,
    Faults.damaged_checkpoint, Faults.mount_vanishes, Faults.nan_gradient, Faults.nan_weight, Faults.nan_logit,
    Faults.nan_reward, Faults.environment_fails, Faults.out_of_memory,
]  # fmt: skip
WITH_WORKERS = ("process", "async")
WORKERS = [Faults.killed, Faults.terminated, Faults.worker_killed, Faults.worker_hangs, Faults.disk_full]
QUICK = [Faults.killed_at_point, Faults.io_error, Faults.clock, Faults.damaged_checkpoint]


def command_line(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def table(trials: list[Trial]) -> list[str]:
    """Rows of a Markdown table, one for each fault and mode."""
    lines = [
        "| fault | mode | trials | survived | equal metrics | steps lost, at most | tracebacks | taken for whole "
        "| processes left | what was said (most often) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        groups.setdefault((one.fault, one.mode), []).append(one)
    for (fault, mode), those in groups.items():
        said = Counter(one.said for one in those if one.status not in (0, -9)).most_common(1)
        equal = sum(bool(one.equal) for one in those) if mode in REPRODUCIBLE else "not compared"
        cells = (
            fault, mode, len(those), sum(one.survived for one in those), equal,
            max(one.lost for one in those), sum(one.traceback for one in those), sum(not one.whole for one in those),
            sum(one.left for one in those), said[0][0] if said else "(nothing: it went on, or was killed)",
        )  # fmt: skip
        lines.append("| " + " | ".join(plain(cell) for cell in cells) + " |")
    return lines


def report(trials: list[Trial], args: argparse.Namespace, seconds: float) -> str:
    import torch

    survived = sum(one.survived for one in trials)
    head = [
        "# Injected faults", "", f"    python bench/faults.py {' '.join(sys.argv[1:])}", "",
        f"{len(trials)} trials, {survived} survived; seed {args.seed}; {seconds / 60:.0f} minutes; "
        f"{time.strftime('%Y-%m-%d')}; {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}.", "",
    ]  # fmt: skip
    failed = [one for one in trials if not one.survived]
    tail = ["", "Not survived:", ""] if failed else []
    for one in failed:
        what = [name for name in ("resumed", "whole", "equal") if getattr(one, name) is False]
        tail.append(f"- {one.fault}, {one.mode}, {one.detail}: not {', '.join(what) or 'clean'}; {plain(one.said)}")
    return "\n".join(head + table(trials) + tail) + "\n"


def compile_shim(folder: Path) -> Path | None:
    """The compiled shim, or None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    path = folder / "fault_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, HERE / "fault_shim.c", "-ldl"], check=True)
    return path


def can_mount(folder: Path) -> bool:
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "--bind", str(probe), str(probe)], capture_output=True, check=False)
    return done.returncode == 0 and subprocess.run(["umount", str(probe)], check=False).returncode == 0


def plan(args: argparse.Namespace, folder: Path) -> list[tuple[Callable[[Faults, str], Trial], str]]:
    """The trials to make: the faults in turn, so that a run that is cut short has some of each."""
    if args.quick:
        return [(fault, "sync") for fault in QUICK]
    mounts = can_mount(folder)
    kinds = [(fault, mode) for mode in args.modes for fault in (WORKERS if mode in WITH_WORKERS else INLINE)]
    kinds = [(fault, mode) for fault, mode in kinds if mounts or fault is not Faults.mount_vanishes]
    kinds = [(fault, mode) for fault, mode in kinds if args.only in fault.__name__]
    return [one for _ in range(args.trials) for one in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one trial of a few faults, in the mode sync")
    parser.add_argument("--trials", type=int, default=4, help="trials of each fault in each mode")
    parser.add_argument("--only", default="", help="only faults whose method's name contains this")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="begin no trial after so many minutes")
    parser.add_argument("--out", type=Path, default=None, help="write the table to this file")
    parser.add_argument("--keep", action="store_true", help="keep the runs")
    args = parser.parse_args()
    folder = Path(os.environ.get("FAULT_FOLDER") or tempfile.mkdtemp(prefix="paw-fast-faults-"))
    if "FAULT_FOLDER" not in os.environ:  # once more, with the shim in this process and its children
        preload = compile_shim(folder)
        if preload is None:
            print("no C compiler: faults cannot be injected into the calls of a process", file=sys.stderr)
            return 2
        settings = {"LD_PRELOAD": str(preload), "FAULT_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
        settings |= {"XDG_CACHE_HOME": str(folder / "cache"), "ALFWORLD_DATA": "", "TOKENIZERS_PARALLELISM": "false"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    import paw_fast.runs.report
    import paw_fast.trainer  # noqa: F401 - imported once, for all children

    start, trials = time.monotonic(), []
    try:
        lab = Laboratory(folder)
        planned = plan(args, folder)
        lab.prepare(list(dict.fromkeys(mode for _, mode in planned)))
        print(f"seed {args.seed}, {len(planned)} trials in {folder}", flush=True)
        faults = Faults(lab, random.Random(args.seed))
        for fault, mode in planned:
            if time.monotonic() - start > 60 * args.minutes:
                break
            trial = fault(faults, mode)
            trials.append(trial)
            verdict = "survived" if trial.survived else "NOT SURVIVED\n" + trial.text
            print(f"{len(trials):4} {trial.fault}, {mode}, {trial.detail}: {verdict}", flush=True)
            text = report(trials, args, time.monotonic() - start)
            if args.out is not None:
                args.out.write_text(text, encoding="utf-8")
            if not args.keep and trial.survived:
                shutil.rmtree(folder / f"run-{faults.number}")
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(report(trials, args, time.monotonic() - start))
    return 0 if all(one.survived for one in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
