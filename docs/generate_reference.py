"""Writes the generated parts of docs/reference: configuration, command line, metrics, automatic settings.

    python docs/generate_reference.py            # rewrites what stands between the markers of each page
    python docs/generate_reference.py --check    # exits with 1 and names the pages that are out of date

A page holds `<!-- generated: NAME -->` and `<!-- end of generated: NAME -->`; the text between them comes from the
dataclasses of `paw_fast.config` and `paw_fast.cli` and from `paw_fast.runs.metrics.METRICS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from paw_fast.config.field_texts import field_texts

DOCS = Path(__file__).resolve().parent

UNITS = {
    r"(time/.*|retrieval/paused)_s": "s",
    r"memory/peak_bytes": "bytes",
    r"throughput/tokens_per_s": "tokens/s",
    r"throughput/episodes_per_s": "episodes/s",
    r"episode/eval_continued_transcript_growth": "share, -1 to 1",
    r"text/eval_loss(_growth)?|policy/(kl|entropy)|rollout/(logprob_gap_(mean|max)|mismatch_kl)": "nats per token",
    r"success/eval_total|rollout/overlong_tasks": "tasks",
    r"success/.*|.*_(rate|share|ratio|fraction)|idle/.*": "share, 0 to 1",
    r"wm/(eval_)?.*(accuracy|probability|error)|reward/(eval_)?score_mean|score/.*": "0 to 1",
    r"wm/eval_action_gap": "-1 to 1",
    r"wm/lambda_mean": "0 to lambda_0",
    r"reward/(mean|return_mean)": "reward",
    r"episode/length_mean": "actions",
    r"async/staleness_(mean|max)": "updates",
    r"async/dropped_groups": "groups",
    r"rollout/rounds": "rounds",
    r"rollout/retried_episodes": "episodes",
    r"optim/skipped_steps": "optimizer steps",
    r"retrieval/queries": "queries",
    r"retrieval/failures": "requests",
    r"critic/(value_mean|loss)|(policy|wm)/loss|policy/advantage_abs_mean|critic/explained_variance": "no unit",
    r"(optim|critic|wm)/grad_norm|optim/learning_rate|async/importance_mean": "no unit",
}
"""Unit of a metric by a pattern of its name; the first that matches the whole name holds."""


# ------------------------------------------------------------------------------------------------ dataclasses


def range_text(mark: Any) -> str:
    """A range in words; upper bounds that only catch typing mistakes are left out.

    >>> range_text(types.SimpleNamespace(low=0, high=1, open_low=True, open_high=False))
    'above 0, at most 1'
    >>> range_text(types.SimpleNamespace(low=1, high=2**63 - 1))
    'at least 1'
    """
    low, high = getattr(mark, "low", None), getattr(mark, "high", None)
    parts = (
        [] if low is None or low < -1000 else [f"{'above' if getattr(mark, 'open_low', False) else 'at least'} {low}"]
    )
    if high is not None and high <= 1000:
        parts.append(f"{'below' if getattr(mark, 'open_high', False) else 'at most'} {high}")
    return ", ".join(parts)


def type_text(hint: Any) -> str:
    """The type as a reader of the command line sees it.

    >>> type_text(Literal["a", "b"]), type_text(int | None), type_text(tuple[str, ...])
    ('`a`, `b`', 'integer or `None`', 'list of text')
    """
    if typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        ranges = [range_text(mark) for mark in marks if type(mark).__name__ == "Range"]
        return ", ".join(one for one in [type_text(inner), *ranges] if one)
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{one}`" for one in typing.get_args(hint))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [type_text(one) for one in typing.get_args(hint) if one is not type(None)]
        return " or ".join([*parts, "`None`"] if type(None) in typing.get_args(hint) else parts)
    if typing.get_origin(hint) is tuple:
        return f"list of {type_text(typing.get_args(hint)[0])}"
    return {int: "integer", float: "number", str: "text", bool: "switch", Path: "path"}.get(hint, str(hint))


def default_text(value: Any) -> str:
    """
    >>> default_text(1e-6), default_text(True), default_text(""), default_text(dataclasses.MISSING)
    ('1e-06', 'on', 'empty', 'required')
    """
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("", ()):
        return "empty"
    return f"{value}"


def flag_of(name: str, hint: Any, prefix: str) -> str:
    """The command-line spelling of a field."""
    marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    if any("Positional" in repr(mark) for mark in marks):
        return name.upper()
    named = next((mark.name for mark in marks if isinstance(getattr(mark, "name", None), str)), None)
    return "--" + (named or prefix + name).replace("_", "-")


def cell(text: str) -> str:
    """A text for a cell of a table: `|` and, outside of code, `<` are escaped.

    >>> cell("runs/<env>, `a|<b>`")
    'runs/&lt;env>, `a\\\\|<b>`'
    """
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def default_of(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def rows(cls: type, prefix: str = "", skip: frozenset[str] = frozenset(), nested: bool = True) -> list[str]:
    """The rows of `table`; those of a dataclass inside this one follow in its place, unless `nested` is False."""
    hints, texts = typing.get_type_hints(cls, include_extras=True), field_texts(cls)
    lines = []
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if f.name in skip or not f.init:
            continue
        if dataclasses.is_dataclass(inner):
            lines += rows(typing.cast(type, inner), f"{prefix}{f.name}.") if nested else []
            continue
        cells = (
            f"`{flag_of(f.name, hint, prefix)}`", type_text(hint), f"`{default_text(default_of(f))}`",
            texts.get(f.name, ""),
        )  # fmt: skip
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    return lines


def table(cls: type, prefix: str = "", skip: frozenset[str] = frozenset(), nested: bool = True) -> str:
    """A table of the fields of a dataclass, as flags of the command line; empty where there are none."""
    lines = rows(cls, prefix, skip, nested)
    return "\n".join(["| flag | values | default | meaning |", "| --- | --- | --- | --- |", *lines]) if lines else ""


def summary(cls: type) -> str:
    """A dataclass's docstring, its examples left out."""
    text = inspect.getdoc(cls) or ""
    return text.split(">>>")[0].strip() if not text.startswith(f"{cls.__name__}(") else ""


# ----------------------------------------------------------------------------------------------------- pages


def chosen_configs(group: str) -> dict[str, type]:
    """The config class of every environment or algorithm of this package; installed ones of others are left out."""
    registry = importlib.import_module("paw_fast.registry")
    found = {name: registry.find(group, name).config for name in registry.names(group)}
    return {name: config for name, config in found.items() if config.__module__.startswith("paw_fast.")}


def configuration() -> str:
    """Every setting of a training run."""
    from paw_fast.config import schema

    parts = ["## Top level", summary(schema.TrainConfig), table(schema.TrainConfig, nested=False)]
    hints = typing.get_type_hints(schema.TrainConfig)
    for f in dataclasses.fields(schema.TrainConfig):
        cls = hints[f.name]
        if not dataclasses.is_dataclass(cls):
            continue
        cls = typing.cast(type, cls)
        parts += [f"## `[{f.name}]`", summary(cls), table(cls, f"{f.name}.")]
        group = {"env": "environments", "algo": "algorithms"}.get(f.name)
        if group is None or importlib.util.find_spec("paw_fast.registry") is None:
            continue
        shared = frozenset(one.name for one in dataclasses.fields(cls))
        for name, own in chosen_configs(group).items():
            parts += [f"### `[{f.name}]` with `--{f.name} {name}`", summary(own)]
            changed = [
                f"`{one.name}` is `{default_text(default_of(one))}`"
                for one in dataclasses.fields(own)
                if one.name in shared - {"name"} and default_of(one) != default_of(cls.__dataclass_fields__[one.name])
            ]
            if changed:
                parts.append(f"Other defaults: {', '.join(changed)}.")
            parts.append(table(own, f"{f.name}.", shared) or "No settings of its own.")
    return "\n\n".join(part for part in parts if part)


def option_classes() -> dict[str, type]:
    """The options dataclass of each command of `paw_fast.cli` but train, by the command."""
    package = importlib.import_module("paw_fast.cli")
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"paw_fast.cli.{info.name}")
        for name, value in vars(module).items():
            if name.endswith("Options") and dataclasses.is_dataclass(value):
                found.setdefault(name.removesuffix("Options").lower(), typing.cast(type, value))
    retriever = importlib.import_module("paw_fast.cli.retriever")
    found["play RUN"] = found.pop("playrun")
    found["serve-env"] = found.pop("serveenv")
    panel = importlib.import_module("paw_fast.cli.panel")
    for command, options in (("retriever", retriever.OPTIONS), ("panel", panel.OPTIONS)):
        for name, cls in options.items():
            found.pop(name, None)
            found[f"{command} {name}"] = cls
    return found


def aliases() -> str:
    """The other names of the options of train."""
    from paw_fast.cli.aliases import ALIASES

    others: dict[str, list[str]] = {}
    for name, full in ALIASES.items():
        others.setdefault(full, []).append(f"`{name}`")
    lines = ["| option | other names |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{full}` | {', '.join(names)} |" for full, names in sorted(others.items()))])


def commands() -> str:
    """Every command with its options."""
    from paw_fast.cli.main import COMMANDS

    lines = ["| command | what it does |", "| --- | --- |"]
    lines += [f"| `paw-fast {name}` | {text} |" for name, (_, text) in COMMANDS.items()]
    parts = ["\n".join(lines)]
    for name, cls in sorted(option_classes().items()):
        if name != "train":
            parts += [f"## `paw-fast {name}`", summary(cls), table(cls)]
    parts += ["## `paw-fast train`: other names of options", aliases()]
    return "\n\n".join(part for part in parts if part)


def unit_of(name: str) -> str:
    """The unit of a metric. Raises `KeyError` for one without: add it to `UNITS`."""
    for pattern, unit in UNITS.items():
        if re.fullmatch(pattern, name):
            return unit
    raise KeyError(f"the metric {name} has no unit: add it to UNITS in {Path(__file__).name}")


def metrics() -> str:
    """Every metric with its unit and meaning."""
    from paw_fast.runs.metrics import METRICS

    lines = ["| metric | unit | meaning |", "| --- | --- | --- |"]
    for name, meaning in METRICS.items():
        unit = getattr(meaning, "unit", None) or unit_of(name)
        lines.append(f"| `{name}` | {unit} | {cell(str(meaning))} |")
    return "\n".join(lines)


_MACHINES = (
    ("CPU", "alfworld-qwen2.5-1.5b", None, {}),
    ("1xA100-40GB", "alfworld-qwen2.5-1.5b", None, {}),
    ("1xH100-80GB", "alfworld-qwen2.5-1.5b", "no vLLM", {}),
    ("1xH100-80GB", "alfworld-qwen2.5-1.5b", None, {}),
    ("1xH100-80GB", "alfworld-qwen2.5-3b", None, {}),
    ("2xH100-80GB", "alfworld-qwen2.5-3b", None, {"placement": "process", "gpus": "1"}),
    ("1xH200-141GB", "alfworld-qwen2.5-3b", None, {}),
    ("1xB200-180GB", "alfworld-qwen2.5-7b", None, {}),
)
"""Machine, preset, what is wrong with vLLM, and settings of the rollouts that are given."""


def automatic() -> str:
    """What `planning.automatic` chooses on typical machines."""
    from paw_fast.config import load_preset
    from paw_fast.planning.automatic import choose
    from paw_fast.planning.machine import GIB, Card, Machine, parse_gpus

    lines = [
        "| machine | preset | engine | pipeline | sleep | memory share | token budget | logits MiB | checkpointing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, preset, problem, given in _MACHINES:
        machine = Machine("cpu", Card("CPU", 64 * GIB)) if name == "CPU" else parse_gpus(name)
        config = load_preset(preset)
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **given))
        done = choose(config, machine, problem).config
        r = done.rollout
        where = ", ".join(
            [name, *([problem] if problem else []), *(f"`{key} {value}`" for key, value in given.items())]
        )
        cells = (
            where, preset, r.engine, done.pipeline.name, "on" if done.vllm_sleeps else "off",
            "" if r.memory_share is None else f"{r.memory_share:g}", done.token_budget, done.logits_budget_mb,
            "on" if done.model.gradient_checkpointing else "off",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


PAGES = {
    "reference/configuration.md": ("configuration", configuration),
    "reference/cli.md": ("commands", commands),
    "reference/metrics.md": ("metrics", metrics),
    "reference/automatic_settings.md": ("automatic", automatic),
}


def pages() -> Iterator[tuple[Path, str, str]]:
    """Each page, its text as it is, and as it should be."""
    for file, (name, make) in PAGES.items():
        path = DOCS / file
        text = path.read_text(encoding="utf-8")
        begin, end = f"<!-- generated: {name} -->", f"<!-- end of generated: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{path}: expected the lines {begin} and {end} once each")
        head, tail = text.split(begin)[0], text.split(end)[1]
        yield path, text, f"{head}{begin}\n\n{make()}\n\n{end}{tail}"


def main() -> None:
    stale = [path for path, before, now in pages() if before != now]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"out of date: {', '.join(map(str, stale))}; run python docs/generate_reference.py")
        return
    for path, _, now in pages():
        path.write_text(now, encoding="utf-8")
    print(f"{len(stale)} of {len(PAGES)} pages changed")


if __name__ == "__main__":
    main()
