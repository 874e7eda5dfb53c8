"""Configs: round trip through TOML, strictness, recipes."""

import dataclasses
import math
import re
import typing

import pytest

from paw_fast.algorithms.gigpo import GigpoConfig
from paw_fast.algorithms.ppo import PpoConfig
from paw_fast.config import (
    PawConfig,
    TrainConfig,
    algo_config,
    describe,
    env_config,
    load_preset,
    load_toml,
    recipes,
    to_toml,
    validate,
)
from paw_fast.config.choice import registered_configs
from paw_fast.config.ranges import check_ranges, range_of
from paw_fast.errors import UserError


def test_every_recipe_loads_and_is_valid():
    assert {"tiny", "smollm2", "echo", "tapo"} <= set(recipes())
    models = ("qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b", "llama-3.2-3b")
    assert {f"{env}-{model}" for env in ("alfworld", "webshop", "search") for model in models} <= set(recipes())
    for name, path in recipes().items():
        validate(load_preset(name))
        assert describe(path)


def test_a_recipe_lies_over_its_base_and_may_leave_out_the_environment(tmp_path):
    base, echo = load_preset("alfworld-qwen2.5-1.5b"), load_preset("echo")
    assert echo.paw != base.paw
    assert dataclasses.replace(echo, paw=base.paw) == base
    assert load_preset("qwen2.5-3b", "webshop") == load_preset("webshop-qwen2.5-3b")
    assert load_preset("qwen2.5-3b") == load_preset("alfworld-qwen2.5-3b")
    (tmp_path / "mine.toml").write_text('base = "tinny"')
    with pytest.raises(UserError, match=r"mine\.toml: base is 'tinny'"):
        load_toml(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": algo_config("gigpo"), "env": env_config("search")}, "--algo gigpo .* --env search has none"),
        ({"algo": algo_config("ppo"), "critic": {"backbone": "none"}}, "--algo ppo needs a critic"),
        ({"algo": GigpoConfig(similarity=1.9)}, r"--algo\.similarity is 1\.9"),
        ({"algo": {"penalty_in": "row"}}, r"--algo\.statistics step"),
        ({"algo": PpoConfig(dynamic_sampling=True)}, r"--algo\.dynamic-sampling"),
        ({"paw": {"horizon": 2}, "layout": "trajectory"}, r"--paw\.horizon is 2 and --layout trajectory"),
        ({"paw": {"horizon": 0}}, r"--paw\.horizon is 0"),
        ({"algo": {"kl_clamp": 0.0}}, r"--algo\.kl-clamp is 0\.0, expected more than 0, or None"),
        ({"model": {"dtype": "float16"}}, r"--model\.dtype is float16, .* train in bfloat16 or float32"),
        ({"critic": {"lam": 1.5}}, r"--critic\.lam is 1\.5"),
        ({"rollout": {"group_size": 1}, "algo": algo_config("rloo")}, "2 or more with --algo rloo"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(changes, message):
    config = TrainConfig()
    for key, value in changes.items():
        part = getattr(config, key)
        value = dataclasses.replace(part, **value) if isinstance(value, dict) else value
        config = dataclasses.replace(config, **{key: value})
    with pytest.raises(UserError, match=message):
        validate(config)


def test_gigpo_takes_search_by_similarity_and_ppo_takes_groups_of_one():
    search = load_preset("search-qwen2.5-3b")
    validate(dataclasses.replace(search, algo=GigpoConfig(similarity=0.9)))
    base = TrainConfig()
    one = dataclasses.replace(base.rollout, group_size=1)
    validate(dataclasses.replace(base, rollout=one, algo=algo_config("ppo")))


def test_a_config_with_the_settings_of_all_algorithms_is_read(tmp_path, caplog):
    """As run directories of earlier versions have them: silently at the defaults, else with a line."""
    path = tmp_path / "config.toml"
    path.write_text('[algo]\nname = "rloo"\ngamma = 0.95\nsimilarity = "none"\nnormalize_std = true\nepochs = 2\n')
    assert load_toml(path).algo == dataclasses.replace(algo_config("rloo"), epochs=2)
    assert caplog.messages == []
    path.write_text('[algo]\nname = "rloo"\ngamma = 0.5\n')
    assert load_toml(path, of_run=True).algo == algo_config("rloo")
    (said,) = caplog.messages
    assert "gamma is a setting of gigpo and has no effect with rloo" in said
    with pytest.raises(UserError, match=r"config\.toml: algo: gamma is a setting of gigpo and has no effect with rloo"):
        load_toml(path)


def test_a_run_config_repeats_the_run(tmp_path):
    config = load_preset("tiny")
    config = dataclasses.replace(config, algo=dataclasses.replace(config.algo, dual_clip=None), seed=7)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_toml(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[paw]\nalpa = 0.5", "unknown key 'alpa'; did you mean 'alpha'"),
        ("stepz = 3", "unknown key 'stepz'; did you mean 'steps'"),
        ("steps = 'many'", "steps is 'many', expected an integer"),
        ("steps = true", "steps is True, expected an integer"),
        ("paw = 3", "paw is 3, expected a table"),
        ("layout = 'windows'", "expected one of 'window', 'trajectory'"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.toml") as error:
        load_toml(path)
    assert message in str(error.value)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        load_preset("tinny")


@pytest.mark.parametrize(
    ("key", "value"), [("alpha", 0.0), ("alpha", 1.5), ("tau", 0.0), ("tau", 2.0), ("lambda_0", -1.0)]
)
def test_values_out_of_range_are_refused_by_name(key, value):
    config = TrainConfig(paw=dataclasses.replace(PawConfig(), **{key: value}))
    with pytest.raises(UserError, match=f"--paw.{key.replace('_', '-')} is {value}"):
        validate(config)


def test_a_file_s_setting_of_another_environment_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[env]\nname = 'webshop'\nsize = 'full'\n")
    with pytest.raises(UserError, match=r"env: size is a setting of alfworld and has no effect with webshop"):
        load_toml(path)
    path.write_text("[env]\ngoal_seed = 1\n")
    with pytest.raises(UserError, match=r"env: goal_seed is a setting of webshop and has no effect with alfworld"):
        load_toml(path)
    assert env_config("webshop").max_steps == 15


def test_a_file_may_hold_other_environments_settings_at_their_defaults(tmp_path):
    """As the run directories of earlier versions do."""
    path = tmp_path / "config.toml"
    path.write_text("[env]\nname = 'search'\nsize = 'small'\ndata = 'none'\ngoal_seed = 42\ntopk = 5\n")
    assert load_toml(path).env == env_config("search", topk=5)


def test_a_preset_stays_with_its_environment():
    assert load_preset("tiny", "alfworld") == load_preset("tiny")
    with pytest.raises(UserError, match="--preset smollm2 is for alfworld; --env webshop has"):
        load_preset("smollm2", "webshop")


def test_lists_of_files_go_through_a_run_config(tmp_path):
    config = load_preset("tiny", "search")
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, train=("a.jsonl:2", "b.json")))
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_toml(tmp_path / "config.toml") == config
    for text, message in [('train = "a.jsonl"', "expected a list"), ("train = [3]", "train[0] is 3, expected text")]:
        (tmp_path / "mine.toml").write_text(f"[env]\nname = 'search'\n{text}\n")
        with pytest.raises(UserError) as error:
            load_toml(tmp_path / "mine.toml")
        assert message in str(error.value)


def test_a_file_may_change_the_environment_of_its_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("base = 'tiny'\n[env]\nname = 'webshop'\nnum_products = 600\n")
    config, tiny = load_toml(path), load_preset("tiny")
    assert config.env == env_config("webshop", template="compact", num_products=600)
    assert dataclasses.replace(config, env=tiny.env) == tiny


def settings_of(kind):
    """Every setting whose default is a number of that kind, as (its option, how to set it)."""
    found = []
    for name, value in ((f.name, getattr(TrainConfig(), f.name)) for f in dataclasses.fields(TrainConfig)):
        if dataclasses.is_dataclass(value):
            inner = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
            found += [(f"{name}.{key}", name, key) for key, one in inner if type(one) is kind]
        elif type(value) is kind:
            found.append((name, None, name))
    return found


def with_setting(table, key, value):
    config = TrainConfig()
    if table is None:
        return dataclasses.replace(config, **{key: value})
    return dataclasses.replace(config, **{table: dataclasses.replace(getattr(config, table), **{key: value})})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_every_float_must_be_finite_in_float32(value):
    assert len(settings_of(float)) > 30
    for name, table, key in settings_of(float):
        option = re.escape(f"--{name.replace('_', '-')} is {value}, expected ")
        with pytest.raises(UserError, match=option):
            validate(with_setting(table, key, value))


@pytest.mark.parametrize("value", [2**63, 2**64])
def test_every_count_has_an_end(value):
    for name, table, key in settings_of(int):
        with pytest.raises(UserError, match=re.escape(f"--{name.replace('_', '-')} is {value}, expected at most ")):
            validate(with_setting(table, key, value))


@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("optim", "learning_rate", 10.0, "is 10.0, expected a number in (0, 1]"),
        ("critic", "learning_rate", 1e6, "is 1000000.0, expected a number in (0, 1]"),
        ("warm_start", "learning_rate", 0.0, "is 0.0, expected a number in (0, 1]"),
        ("rollout", "slots", 10**9, "is 1000000000, expected at most 65536"),
        ("rollout", "max_action_tokens", 8192, "is 8192, expected less than the 8192 of --rollout.max-sequence-tokens"),
        ("rollout", "hang_timeout_s", 1e18, "expected a number in (0, 1e+08]"),
        ("env", "game_seed", -1, "is -1, expected 0 or more"),
    ],
)
def test_numbers_that_are_refused(table, key, value, words):
    with pytest.raises(UserError, match=re.escape(words)):
        validate(with_setting(table, key, value))


def config_classes(cls):
    """A config class and every class of its tables."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(hint):
            yield from config_classes(hint)


def numeric_fields():
    """(class, field, type hint) of every number among all settings, those of every environment and algorithm."""
    chosen = [type(config) for group in ("environments", "algorithms") for _, config in registered_configs(group)]
    classes = dict.fromkeys(one for cls in (TrainConfig, *chosen) for one in config_classes(cls))
    for cls in classes:
        hints = typing.get_type_hints(cls, include_extras=True)
        for f in dataclasses.fields(cls):
            inner = typing.get_args(hints[f.name])[0] if hasattr(hints[f.name], "__metadata__") else hints[f.name]
            if {int, float} & {inner, *typing.get_args(inner)}:
                yield cls, f.name, hints[f.name]


def test_every_number_has_a_range_with_two_ends_beside_its_field():
    fields = list(numeric_fields())
    assert len(fields) > 130
    without = [
        f"{cls.__name__}.{name}" for cls, name, hint in fields
        if (allowed := range_of(hint)) is None or allowed.low is None or allowed.high is None
    ]  # fmt: skip
    assert without == []


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 1e39, -1e39, 2**64, -(2**64), 10**5000],
    ids=lambda x: repr(x)[:9] if isinstance(x, float) else str(x.bit_length()),
)
def test_every_number_of_every_table_is_checked(value):
    for cls, name, _ in numeric_fields():
        if cls is not TrainConfig:
            with pytest.raises(UserError, match=f"--x.{name.replace('_', '-')} is "):
                check_ranges(dataclasses.replace(cls(), **{name: value}), "x.")


def test_numbers_without_a_range_must_fit_float32():
    @dataclasses.dataclass(frozen=True)
    class Own:
        share: float = 0.5
        size: int = 3

    check_ranges(Own())
    for field, value in (("share", math.nan), ("share", 1e39), ("size", 2**31)):
        with pytest.raises(UserError, match=f"--env.{field} is"):
            check_ranges(dataclasses.replace(Own(), **{field: value}), "env.")


def test_the_largest_seed_is_taken():
    validate(dataclasses.replace(TrainConfig(), seed=2**63 - 1))


def test_a_wait_for_a_retriever_has_an_end():
    with pytest.raises(UserError, match=r"--env\.retriever-timeout-s is 1e\+18, expected a number in \(0, 1e\+08\]"):
        validate(TrainConfig(env=env_config("search", retriever_timeout_s=1e18)))
