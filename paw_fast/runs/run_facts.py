"""States the results, settings and problems of a run in words, for its report. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paw_fast.runs.run_data import Run
from paw_fast.runs.run_groups import Estimate, Group
from paw_fast.runs.statistics import wilson_interval

_MANY_INVALID = 0.2
_MANY_WITHOUT_SPREAD = 0.5


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Returns a difference of two shares in percentage points.

    >>> points(-0.125)
    '−12.5 points'
    """
    return f"{_signed(difference, 1)} points"


def _signed(difference: float, digits: int) -> str:
    text = f"{100 * difference:+.{digits}f}".replace("-", "−")
    return text.replace("−", "+") if float(text.replace("−", "-")) == 0 else text


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def interval(estimate: Estimate, signed: bool = False) -> str:
    """Returns the 95 % interval in percent and its source, as far as they are known.

    >>> interval(Estimate(0.5, 0.404, 0.596, "100 tasks"))
    '95 %: 40.4 to 59.6, 100 tasks'
    """
    if estimate.low is None or estimate.high is None:
        return estimate.source
    ends = [_signed(end, 1) if signed else f"{100 * end:.1f}" for end in (estimate.low, estimate.high)]
    return ", ".join(part for part in (f"95 %: {ends[0]} to {ends[1]}", estimate.source) if part)


def with_interval(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    about = interval(estimate, signed)
    return (points(estimate.value) if signed else percent(estimate.value)) + (f" ({about})" if about else "")


def join(*parts: Any, by: str = ", ") -> str:
    return by.join(str(part) for part in parts if part not in (None, "", "none")) or "-"


# ------------------------------------------------------------------------------------------------------ facts


def progress(run: Run) -> str:
    """Returns how far the run is: `40 of 40 steps`, `12 of 40 steps, about 3 min 20 s left`."""
    text = f"{run.done} of {run.planned} steps" if run.planned is not None else f"{run.done} steps"
    left = run.seconds_left
    return text if left is None else f"{text}, about {duration(left)} left"


def evaluated_on(run: Run) -> str:
    """Returns the evaluation split, and how many of its tasks are also training tasks."""
    split, shared = run.summary.get("eval_split") or run.setting("eval_split"), run.number("eval_tasks_in_train")
    overlap = f"{shared:.0f} of its tasks are also training tasks" if shared and split != "train" else None
    return join(split, overlap)


def _world_model(run: Run) -> str:
    paw = run.setting("paw")
    if not isinstance(paw, Mapping):
        return "-"
    if paw.get("enabled") is False:
        return "off"
    share = paw.get("alpha")
    return join(
        paw.get("loss"),
        f"tau {paw['tau']}" if "tau" in paw and paw.get("loss") == "cmae" else None,
        f"{paw.get('selection', '')} selection of {share}" if share is not None else paw.get("selection"),
        f"{paw.get('balance', '')} lambda up to {paw['lambda_0']}" if "lambda_0" in paw else paw.get("balance"),
    )


def _action_gap(run: Run) -> str:
    """The action gap of the world model on held-out observations, before and after training."""
    summary = [run.summary.get(key) for key in ("warm_start_world_model", "final_world_model")]
    ends = [one.get("action_gap") if isinstance(one, Mapping) else None for one in summary]
    if not any(isinstance(gap, float) for gap in ends):
        values = run.series("wm/eval_action_gap")[1].tolist()
        ends = [values[0], *values[1:][-1:]] if values else []
    return " to ".join(f"{gap:.3f}" for gap in ends if isinstance(gap, float)) or "-"


def facts(run: Run) -> dict[str, str]:
    """Returns the rows of the table for a run: name and text, `-` if unknown."""
    group = Group("", (run,), (0,))
    groups, size = run.setting("rollout", "groups"), run.setting("rollout", "group_size")
    return {
        "success before training": with_interval(group.before),
        "success after training" if run.finished else "success so far": with_interval(group.latest),
        "gain": with_interval(group.gain, signed=True),
        "evaluated on": evaluated_on(run),
        "steps": progress(run).replace(" steps", ""),
        "wall time": duration(run.wall_time_s),
        "environment": join(*(run.setting("env", key) for key in ("name", "engine", "size", "data"))),
        "model": join(run.setting("model", "path"), run.setting("model", "dtype")),
        "algorithm": join(run.setting("algo", "name"), run.setting("layout")),
        "KL term": {None: "-", 0: "off"}.get(run.setting("algo", "kl_coef"), join(run.setting("algo", "kl_coef"))),
        "world model": _world_model(run),
        "episodes per step": join(f"{groups} groups of {size}" if groups and size else None),
        "learning rate": join(run.setting("optim", "learning_rate")),
        "action gap of the world model": _action_gap(run),
        "seed": join(run.setting("seed")),
    }


# ------------------------------------------------------------------------------------------------- task types


def task_types(run: Run) -> dict[str, Estimate]:
    """Returns the success per task type in the last evaluation, with its interval if the number of tasks is known.

    Without evaluations: the mean over the last tenth of the training steps, without intervals.
    """
    final = run.summary.get("final_eval")
    by_type = final.get("by_task_type") if isinstance(final, Mapping) else None
    current = run.latest is None or run.number("evaluated_step") in (None, run.latest.step)
    if isinstance(by_type, Mapping) and by_type and current:
        found = {}
        for name, one in sorted(by_type.items()):
            won, total = (one.get("successes"), one.get("num_tasks")) if isinstance(one, Mapping) else (None, None)
            if isinstance(won, int) and isinstance(total, int) and 0 <= won <= total and total:
                found[name] = Estimate(won / total, *wilson_interval(won, total), f"{total} tasks")
        return found
    names = {name for row in run.rows for name in row if name.startswith("success/")}
    evaluated = {name[len("success/eval_") :]: name for name in names if name.startswith("success/eval_")}
    evaluated = {kind: name for kind, name in evaluated.items() if kind not in ("rate", "total")}
    if evaluated:
        values = {kind: run.series(name)[1] for kind, name in sorted(evaluated.items())}
        return {kind: Estimate(float(rates[-1]), None, None) for kind, rates in values.items() if len(rates)}
    kinds = sorted(name for name in names if name not in ("success/rate", "success/eval_rate", "success/eval_total"))
    means = {name[len("success/") :]: run.recent(name) for name in kinds}
    return {kind: Estimate(mean, None, None, "training") for kind, mean in means.items() if mean is not None}


# ------------------------------------------------------------------------------------------------------ flags


def flags(run: Run, result: bool = True) -> list[str]:
    """Returns what a reader should know first, one sentence each. Empty if nothing is unusual.

    Args:
        run: the run.
        result: whether to judge the gain too.
    """
    found = _result_flags(run) if result else []
    invalid = run.recent("episode/invalid_action_rate")
    if invalid is not None and invalid > _MANY_INVALID:
        where = _last_episodes(run)
        found.append(f"{100 * invalid:.0f} % of the actions are invalid{f': see {where}' if where else ''}.")
    found += _spread_flags(run)
    skipped = float(run.series("optim/skipped_steps")[1].sum())
    if skipped:
        found.append(f"{skipped:.0f} optimizer steps were skipped because their gradient was not finite.")
    gap, most = run.recent("rollout/logprob_gap_mean"), run.setting("pipeline", "gap_warn")
    if gap is not None and isinstance(most, (int, float)) and gap > most:
        found.append(f"Engine and trainer disagree: their log-probs differ by {gap:.2f} nats on average.")
    return found


def _result_flags(run: Run) -> list[str]:
    gain = Group("", (run,), (0,)).gain
    shared, split = run.number("eval_tasks_in_train"), run.summary.get("eval_split") or run.setting("eval_split")
    found = []
    if run.latest is None and run.done:
        found.append("The run has not been evaluated since training began.")
    if gain is not None and gain.low is not None and not gain.exceeds_interval:
        found.append(
            f"The gain of {points(gain.value)} does not exceed its interval: it may be chance. More evaluation tasks "
            "(--eval-tasks) or more seeds make the interval narrower."
        )
    elif gain is not None and gain.low is not None and gain.value < 0:
        found.append("Success decreased, by more than chance explains.")
    if shared and split != "train":
        found.append(f"{shared:.0f} of the evaluation tasks are also training tasks.")
    return found


def _spread_flags(run: Run) -> list[str]:
    """Groups whose episodes have equal returns give the policy nothing to learn from."""
    steps, sizes = run.series("policy/advantage_abs_mean")
    idle = int((sizes == 0).sum())
    if idle:
        return [f"In {idle} of {len(steps)} steps no group had spread in its returns: the policy learned nothing."]
    share = run.recent("policy/group_spread_share")
    if share is not None and share < 1 - _MANY_WITHOUT_SPREAD:
        return [f"{100 * (1 - share):.0f} % of the groups have no spread in their returns: they teach nothing."]
    return []


def _last_episodes(run: Run) -> str:
    paths = sorted(path.name for path in (run.path / "episodes").glob("step_*.txt"))
    return f"episodes/{paths[-1]}" if paths else ""
