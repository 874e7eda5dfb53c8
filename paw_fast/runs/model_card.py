"""Writes the model card of a run: the README.md of its repository on the Hugging Face Hub. Imports no torch.

The figures come from summary.json and metrics.jsonl as of the checkpoint's step, the settings from config.toml, the
example from example_prompt.json. Credentials and local paths are masked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w

from paw_fast.errors import UserError
from paw_fast.runs import run_dir as runs
from paw_fast.runs.base_model import BaseModel, find_base_model
from paw_fast.runs.markdown import fence, table
from paw_fast.runs.model_usage import usage
from paw_fast.runs.outcome import describe_gain
from paw_fast.runs.run_data import Evaluation, Run, load_run
from paw_fast.runs.run_facts import duration, evaluated_on, facts, percent, task_types, with_interval
from paw_fast.runs.run_groups import Group
from paw_fast.runs.secrets import mask_command, mask_settings, mask_text

CARD = "README.md"
Choice = Literal["given", "newest", "best", "no better"]
"""Why a checkpoint was chosen: it was named, it is the newest, it has the highest evaluated success, or it is the
newest because no evaluation exceeded the one before training."""
_PLACES = {"run_dir": "none", "push_to_hub": "none", "push_private": False}
"""Settings that say where a run writes, as they are published."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def make_card(run_dir: Path, step: int, repo_id: str, choice: Choice = "given", license: str | None = None) -> str:
    """Returns the card of the checkpoint of a step: YAML metadata for the Hub, then Markdown.

    license: identifier as the Hub has it (`apache-2.0`); None takes that of the base model, if it is known. Raises
    `UserError` for one of another form, and for files of the run that cannot be read.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(
            f"--license {license!r} is no license identifier: expected one such as apache-2.0 or mit (see "
            "https://huggingface.co/docs/hub/repositories-licenses)"
        )
    whole = load_run(run_dir)
    run = as_of(whole, step)
    base = find_base_model(str(run.setting("model", "path") or ""))
    prompt = runs.read_json(run_dir / runs.PROMPT)
    own_code = "auto_map" in runs.read_json(run_dir / "checkpoints" / f"step_{step:06d}" / "config.json")
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        _introduction(run, step, base),
        "## Results", *_results(run, whole, step, choice),
        "## Training", *_training(run, step, base),
        "## How to use it", *usage(run, repo_id, prompt, own_code),
        "## Reproduce it", *_reproduction(run_dir, run),
        "## Limits", _limits(run, base),
        "## License", _license_text(base, license),
        "## Citation", _CITATION,
    ]  # fmt: skip
    return f"---\n{_metadata(run, step, repo_id, base, license)}\n---\n\n" + "\n\n".join(p for p in parts if p) + "\n"


def as_of(run: Run, step: int) -> Run:
    """Returns the run as it was after `step`: without later rows and, if they are later, without its final results."""
    summary, evaluated = dict(run.summary), run.number("evaluated_step")
    if evaluated is not None and evaluated > step:
        summary = {key: one for key, one in summary.items() if not key.startswith("final_") and key != "evaluated_step"}
    rows = [row for row in run.rows if row["step"] <= step]
    return dataclasses.replace(run, rows=rows, summary=summary)


def _measured(run: Run, step: int) -> Evaluation | None:
    """The evaluation of the checkpoint itself."""
    return next((one for one in run.evaluations() if one.step == step), None)


# ---------------------------------------------------------------------------------------------------- metadata


def _metadata(run: Run, step: int, repo_id: str, base: BaseModel, license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    env, algo = _tag(run.setting("env", "name")), _tag(run.setting("algo", "name"))
    paw = ["paw", "world-model"] if _has_world_model(run) else []
    measured, results = _measured(run, step), []
    if measured is not None and measured.total:
        split = run.summary.get("eval_split") or run.setting("eval_split")
        interval = f"95 % interval {100 * measured.low:.1f} to {100 * measured.high:.1f} %"
        results = [
            EvalResult(
                task_type="reinforcement-learning", task_name="Reinforcement Learning", dataset_type=env or "unknown",
                dataset_name=f"{env}, {measured.total} tasks of the split {split}", dataset_split=str(split),
                metric_type="success_rate", metric_name=f"success rate ({interval})",
                metric_value=round(measured.rate, 4),
            )
        ]  # fmt: skip
    more: dict[str, Any] = {"base_model_relation": "finetune"} if base.hub_name else {}
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", base_model=base.hub_name,
        license=license or base.license, model_name=repo_id.rpartition("/")[2], eval_results=results or None,
        tags=["paw-fast", "reinforcement-learning", "agent", *paw, *(one for one in (env, algo) if one)], **more,
    )  # fmt: skip
    return data.to_yaml().strip()


def _tag(name: Any) -> str:
    """The name of an environment or algorithm as a tag of the Hub.

    >>> _tag("my_rooms:Rooms")
    'rooms'
    """
    return re.sub(r"[^a-z0-9]+", "-", str(name or "").rpartition(":")[2].lower()).strip("-")


def _has_world_model(run: Run) -> bool:
    return run.setting("paw", "enabled") is not False


# ------------------------------------------------------------------------------------------------------ results


def _introduction(run: Run, step: int, base: BaseModel) -> str:
    with_loss = " and PaW's world-model loss" if _has_world_model(run) else ", without a world-model loss"
    trained = "This is the model before training." if step == 0 else f"The model is that after {_steps(step)}."
    return (
        f"A language agent for the environment **{mask_text(str(run.setting('env', 'name')))}**, made by `paw-fast` "
        f"from {base.text}. It was trained with {run.setting('algo', 'name')}{with_loss} "
        f"([arXiv 2606.02388](https://arxiv.org/abs/2606.02388)). {trained}"
    )


def _steps(count: int) -> str:
    return "1 training step" if count == 1 else f"{count} training steps"


def _results(run: Run, whole: Run, step: int, choice: Choice) -> list[str]:
    measured = _measured(run, step)
    rows = [("before training", run.before)]
    if step > 0 and measured is not None:
        rows.append((f"this model, after {_steps(step)}", measured))
    if whole.latest is not None and whole.latest.step > step:
        rows.append((f"end of the run, after {_steps(int(whole.latest.step))}", whole.latest))
    found = [(name, one) for name, one in rows if one is not None]
    if not found:
        return ["The run has no evaluation."]
    lines = [table(("", "success", "95 % interval", "tasks"), ((name, *_cells(one)) for name, one in found))]
    lines.append(
        f"Success rate on tasks of the environment ({evaluated_on(run)}), one episode each, sampled at temperature "
        f"{run.setting('rollout', 'eval_temperature')}. The intervals are Wilson intervals: they cover the choice of "
        "tasks and the sampling, and not the seed of the training, of which there was one."
    )
    if step > 0 and measured is None:
        lines.append("This checkpoint itself was not evaluated; the figures are of other steps of the run.")
    elif step > 0:
        lines += _gain(run, step)
    lines += _choice_note(whole, step, choice)
    if (types := _types(run, step)) and measured is not None:
        lines.append(table(("task type", "success"), types))
    if (gap := facts(run)["action gap of the world model"]) != "-":
        lines.append(
            f"World model, before and after: an action gap of {gap} (probability of the next observation's tokens "
            "after the action that was played, minus that after another action)."
        )
    return lines


def _cells(one: Evaluation) -> tuple[str, str, str]:
    interval = f"{100 * one.low:.1f} to {100 * one.high:.1f} %" if one.total else "-"
    return percent(one.rate), interval, str(one.total or "-")


def _gain(run: Run, step: int) -> list[str]:
    if run.number("evaluated_step") == step and (said := describe_gain(run.summary)):
        return [f"{said[0][:1].upper()}{said[0][1:]}."]
    gain = Group("", (run,), (0,)).gain
    return [f"Gain {with_interval(gain, signed=True)}."] if gain is not None else []


def _choice_note(whole: Run, step: int, choice: Choice) -> list[str]:
    count = len(whole.evaluations())
    if choice == "best" and count > 2:
        return [
            f"This checkpoint was chosen because it has the highest success of the run's {count} evaluations on these "
            "tasks, so its success is biased upward."
        ]
    if choice == "no better":
        return ["No evaluation exceeded the one before training; this is the newest checkpoint."]
    planned = whole.planned
    return [f"The run was to have {planned} steps."] if planned is not None and step < planned else []


def _types(run: Run, step: int) -> list[tuple[str, str]]:
    if run.latest is not None and run.latest.step != step:
        return []
    found = task_types(run)
    return [(name, with_interval(one)) for name, one in found.items()] if len(found) > 1 else []


# ----------------------------------------------------------------------------------------------------- training


def _training(run: Run, step: int, base: BaseModel) -> list[str]:
    about = facts(run)
    parameters, rank = run.number("num_parameters"), run.setting("lora", "rank")
    rows = {
        "environment": about["environment"],
        "base model": base.text,
        "parameters": f"{parameters:,.0f}" if parameters else "-",
        "adapters": f"LoRA of rank {rank}, merged into the weights" if rank else "-",
        "algorithm": about["algorithm"],
        "KL term": about["KL term"],
        "world model (PaW)": _world_model(run),
        "episodes per step": about["episodes per step"],
        "steps": str(step),
        "learning rate": about["learning rate"],
        "seed": about["seed"],
        "wall time of the run": duration(run.wall_time_s),
    }
    return [table(("", ""), ((name, mask_text(text)) for name, text in rows.items() if text != "-"))]


def _world_model(run: Run) -> str:
    """PaW's settings in words."""
    paw = run.setting("paw")
    if not isinstance(paw, Mapping) or not _has_world_model(run):
        return "off" if isinstance(paw, Mapping) else "-"
    parts = [facts(run)["world model"]]
    if paw.get("horizon", 1) != 1:
        parts.append(f"predicts {paw['horizon']} observations")
    if paw.get("update", "joint") != "joint":
        parts.append(f"in a separate step every {paw.get('interval')} steps")
    if paw.get("deduplicate"):
        parts.append("duplicates once")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------- reproduction, limits


def _reproduction(run_dir: Path, run: Run) -> list[str]:
    recorded = runs.read_json(run_dir / runs.VERSIONS)
    starts = [one for one in recorded.get("starts", []) if isinstance(one, Mapping)]
    parts = []
    commands = list(dict.fromkeys(mask_command(str(one["command"])) for one in starts if one.get("command")))
    if commands:
        parts += ["Started with:", fence("bash", "\n".join(commands))]
    versions = {name: str(one) for name, one in recorded.items() if name != "starts"}
    for name in ("commit", "device"):
        values = list(dict.fromkeys(str(one[name]) for one in starts if one.get(name)))
        versions |= {f"paw-fast {name}" if name == "commit" else name: ", then ".join(values)} if values else {}
    if versions:
        parts.append(table(("", "version"), ((name, mask_text(one)) for name, one in versions.items())))
    if any(one.get("changed") for one in starts):
        parts.append("Resumed with other versions of some of these packages.")
    if run.config:
        # Whoever takes them must not write to the same places.
        kept = {key: one for key, one in run.config.items() if key not in _PLACES} | _PLACES
        settings = tomli_w.dumps(mask_settings(kept))
        parts.append(
            "Settings, with credentials and local paths masked (`***`, `...`); `paw-fast train --config settings.toml` "
            "takes them with your own paths:"
        )
        parts += ["<details><summary>settings.toml</summary>", fence("toml", settings), "</details>"]
    return parts


def _limits(run: Run, base: BaseModel) -> str:
    lines = [
        "The model was trained and measured in one environment. It was trained to win its tasks, and nothing was "
        "measured of what it does elsewhere: its answers in other contexts may be worse than the base model's.",
        "The results are those of one run with one seed.",
    ]
    if base.is_tiny:
        lines.append(
            "This is a tiny model with a tokenizer of its own, both made from demonstrations in the environment: it "
            "knows no other language, and its token ids are not those of any other model."
        )
    if (shared := run.number("eval_tasks_in_train")) and run.summary.get("eval_split") != "train":
        lines.append(f"{shared:.0f} of the evaluation tasks are training tasks too.")
    return "\n".join(f"- {line}" for line in lines)


def _license_text(base: BaseModel, license: str | None) -> str:
    if license is not None:
        return f"`{license}`, as stated by whoever published the model."
    if base.license is not None:
        return f"`{base.license}`, the license of the base model ({base.text})."
    if base.is_tiny:
        return "Whoever published the model has stated no license. The model has no base model."
    return (
        f"The license of the base model ({base.text}) is not known here, so none is stated. It applies to this model "
        "too: look it up before use."
    )


_CITATION = """\
The method:

```bibtex
@misc{paw,
  title = {Policy and World Modeling Co-Training for Language Agents},
  year = {2026},
  eprint = {2606.02388},
  archivePrefix = {arXiv}
}
```

The trainer: paw-fast, an implementation of it that is independent of the paper's authors."""
