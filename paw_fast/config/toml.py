"""Reads and writes settings as TOML: recipes, run directories, and users' files."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w

from paw_fast.config.choice import algo_config, env_config, registered_configs, with_env, without_consent
from paw_fast.config.renames import rename_keys, say_new_name
from paw_fast.config.schema import AlgoConfig, EnvConfig, TrainConfig
from paw_fast.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_LOG = logging.getLogger("paw_fast.config")


def to_toml(config: TrainConfig) -> str:
    """The resolved config as TOML, with every key; None is written as "none"."""
    return tomli_w.dumps(_plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        # TOML has no null: "none" stands for a value that was turned off on purpose.
        return {k: "none" if v is None else _plain(v) for k, v in pairs}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def names_every_setting(values: Mapping[str, Any], config: Any) -> bool:
    """Whether parsed TOML gives every setting of a config, as `to_toml` writes it."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name not in values:
            return False
        if dataclasses.is_dataclass(value) and not names_every_setting(values[f.name], value):
            return False
    return True


def from_mapping(
    cls: type, values: Mapping[str, Any], base: Any = None, where: str = "config", of_run: bool = False
) -> Any:
    """A config dataclass from parsed TOML, over `base`'s values. Unknown keys and wrong types are `UserError`s.

    Tables of an environment or algorithm become the config class of the one that their `name` names. of_run: the
    values are those of a run directory, see `_own_values`.
    """
    base = cls() if base is None else base
    if isinstance(base, EnvConfig):
        if (name := values.get("name", base.name)) != base.name:
            with _naming(where):
                base = env_config(_text(name, where), template=base.template)
        values = _own_values(values, base, "environments", where, of_run)
    elif isinstance(base, AlgoConfig):
        if (name := values.get("name", base.name)) != base.name:
            with _naming(where):
                base = algo_config(_text(name, where), base)
        values = _own_values(values, base, "algorithms", where, of_run)
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise UserError(f"{where}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        changes[key] = _coerce(hints[key], value, getattr(base, key), f"{where}: {key}", of_run)
    return dataclasses.replace(base, **changes)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Puts the file and table before what is wrong with a name in it."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(where) else f"{where}: {text}") from error


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: name is {value!r}, expected text")
    return value


def _own_values(values: Mapping[str, Any], base: Any, group: str, where: str, of_run: bool) -> dict[str, Any]:
    """The values without keys that belong to other environments or algorithms, as run directories of earlier versions
    have them. Such a key is dropped silently where it has that one's default. Else it is a `UserError`, but for a key
    of another algorithm in a run directory, which is dropped with a warning."""
    kept = {}
    for key, value in values.items():
        owners = [] if hasattr(base, key) else [one for one in registered_configs(group) if hasattr(one[1], key)]
        if not owners:
            kept[key] = value
        elif not any(_is_default(value, config, key) for _, config in owners):
            names = ", ".join(name for name, _ in owners)
            message = f"{where}: {key} is a setting of {names} and has no effect with {base.name}"
            if group == "environments" or not of_run:
                raise UserError(f"{message}: leave it out")
            _LOG.warning("%s", message)
    return kept


def _is_default(value: Any, config: Any, key: str) -> bool:
    default = getattr(config, key)
    try:
        return _coerce(typing.get_type_hints(type(config))[key], value, default, "") == default
    except UserError:
        return False


def _coerce(hint: Any, value: Any, base: Any, where: str, of_run: bool = False) -> Any:
    """A TOML value as the type of its setting. Raises `UserError` beginning with `where`."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}, expected a table")
        return from_mapping(typing.cast("type", hint), value, base, where, of_run)
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise UserError(f"{where} is {value!r}, expected one of {', '.join(map(repr, typing.get_args(hint)))}")
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        is_none = isinstance(value, str) and value.lower() == "none"
        return None if is_none else _coerce(options[0], value, base, where)
    if typing.get_origin(hint) is tuple:
        one = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}, expected a list")
        return tuple(_coerce(one, item, None, f"{where}[{number}]") for number, item in enumerate(value))
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{where} holds a NUL character")
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where} is an integer that is too large for a number") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} is {value!r}, expected {_TYPE_NAMES.get(hint, hint.__name__)}")
    return value


_TYPE_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables and values; it may begin with a byte-order mark. Raises `UserError` naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        hint = f": give the file in it, {path / 'config.toml'}" if (path / "config.toml").is_file() else ""
        raise UserError(f"cannot read the config {path}: {e.strerror}{hint}") from e
    except (ValueError, RecursionError) as e:  # not TOML, not UTF-8, or an integer of thousands of digits
        raise UserError(f"{path} is not valid TOML: {e}") from e


def load_toml(path: Path, base: TrainConfig | None = None, of_run: bool = False) -> TrainConfig:
    """Reads a recipe, a user's file or (`of_run`) a run's config.toml. Raises `UserError` naming the file and the key.

    A file may begin with `base = "NAME"`: it is then laid over that recipe, whatever `base` is. What lets code of
    others run (`without_consent`) is not taken from it.
    """
    values, renamed = rename_keys(read_toml(path), str(path))
    values.pop("description", None)
    under = values.pop("base", None)
    if under is not None:
        if not isinstance(under, str) or under not in recipes():
            raise UserError(f"{path}: base is {under!r}, expected a recipe; there are {', '.join(recipes())}")
        base = load_toml(recipes()[under])
    config = from_mapping(TrainConfig, values, base, str(path), of_run)
    for old, new in renamed.items():
        if _has(config, new):  # the others were settings of another environment, at their defaults
            say_new_name(old, new, str(path))
    return without_consent(config)


def _has(config: Any, key: str) -> bool:
    for name in key.split("."):
        if not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


def recipes() -> dict[str, Path]:
    """The presets that come with the package, by name."""
    folder = resources.files("paw_fast.config") / "recipes"
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if str(f).endswith(".toml")}


def describe(path: Path) -> str:
    """The `description` line of a recipe."""
    return str(tomllib.loads(path.read_text(encoding="utf-8")).get("description", ""))


def load_preset(name: str, env: str | None = None) -> TrainConfig:
    """A preset by the name of a recipe, or by the path of a TOML file.

    A name may leave out the environment: `qwen2.5-3b` is `<env>-qwen2.5-3b`, `alfworld-...` without `env`. A recipe for
    another environment than `env` is refused where `env` has recipes; else it is taken with `env` in its place.
    """
    known = recipes()
    if name.endswith(".toml"):
        config = load_toml(Path(name), None if env is None else TrainConfig(env=env_config(env)))
        return config if env is None else with_env(config, env)
    name = next((full for full in (f"{env}-{name}", name, f"alfworld-{name}") if full in known), name)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}, or the path of a .toml file"
        raise UserError(f"--preset {name}: no such recipe; {hint}")
    config = load_toml(known[name])
    if env in (None, config.env.name):
        return config
    suited = [other for other, path in known.items() if load_toml(path).env.name == env]
    if suited:
        raise UserError(f"--preset {name} is for {config.env.name}; --env {env} has {', '.join(suited)}")
    return with_env(config, env)
