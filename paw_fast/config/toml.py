"""Settings as TOML files: recipes, run directories, files of the user."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w

from paw_fast import registry
from paw_fast.config.choice import algo_config
from paw_fast.config.env import ENV_SETTINGS, env_config
from paw_fast.config.schema import AlgoConfig, TrainConfig, without_consent
from paw_fast.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def to_toml(config: TrainConfig) -> str:
    """The resolved config as TOML; keys whose value is None are left out (and read back as None)."""
    return tomli_w.dumps(_plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        # TOML has no null: "none" stands for a value that was turned off on purpose.
        return {k: "none" if v is None else _plain(v) for k, v in pairs}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def from_mapping(cls: type, values: Mapping[str, Any], base: Any = None, where: str = "config") -> Any:
    """A config dataclass from parsed TOML, over `base`'s values. Unknown keys and wrong types are `UserError`s."""
    base = cls() if base is None else base
    if isinstance(base, AlgoConfig):
        base, values = _algo_values(values, base)
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise UserError(f"{where}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        changes[key] = _coerce(hints[key], value, getattr(base, key), f"{where}: {key}")
    return dataclasses.replace(base, **changes)


def _algo_values(values: Mapping[str, Any], base: AlgoConfig) -> tuple[AlgoConfig, dict[str, Any]]:
    """The settings of the algorithm that is named, and the values without those of other algorithms."""
    base = algo_config(values.get("name", base.name), base)
    others = {f.name for name in registry.names("algorithms") for f in dataclasses.fields(algo_config(name))}
    own = {f.name for f in dataclasses.fields(base)}
    return base, {key: value for key, value in values.items() if key in own or key not in others}


def _coerce(hint: Any, value: Any, base: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}, expected a table")
        return from_mapping(typing.cast(type, hint), value, base, where)
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise UserError(f"{where} is {value!r}, expected one of {', '.join(map(repr, typing.get_args(hint)))}")
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value == "none" else _coerce(options[0], value, base, where)
    if typing.get_origin(hint) is tuple:
        one = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}, expected a list")
        return tuple(_coerce(one, item, None, f"{where}[{number}]") for number, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} is {value!r}, expected {hint.__name__}")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables and values. Raises `UserError` naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read the config {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not valid TOML: {e}") from e


def load_toml(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """Reads a recipe or a run's config.toml. Raises `UserError` naming the file and the key.

    A file may begin with `base = "NAME"`: it is then laid over that recipe, whatever `base` is. What lets code of
    others run (`without_consent`) is not taken from it.
    """
    values = read_toml(path)
    values.pop("description", None)
    under = values.pop("base", None)
    if under is not None:
        if not isinstance(under, str) or under not in recipes():
            raise UserError(f"{path}: base is {under!r}, expected a recipe; there are {', '.join(recipes())}")
        base = load_toml(recipes()[under])
    return without_consent(from_mapping(TrainConfig, values, base, str(path)))


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
    another environment than `env` is refused.
    """
    known = recipes()
    if name.endswith(".toml"):
        return load_toml(Path(name), TrainConfig(env=env_config(env or "alfworld")))
    name = next((full for full in (f"{env}-{name}", name, f"alfworld-{name}") if full in known), name)
    if name in known:
        config = load_toml(known[name])
        if env in (None, config.env.name) or env not in ENV_SETTINGS:
            return config
        suited = [other for other in known if load_toml(known[other]).env.name == env]
        raise UserError(f"--preset {name} is for {config.env.name}; --env {env} has {', '.join(suited) or 'none'}")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}, or the path of a .toml file"
    raise UserError(f"--preset {name}: no such recipe; {hint}")
