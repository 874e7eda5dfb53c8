"""Before a run begins: what is refused, what is written down, what stays of a run that could not begin."""

import contextlib
import dataclasses
import importlib.util
import io
from pathlib import Path

import pytest

from paw_fast.cli import main
from paw_fast.config import env_config, load_preset, to_toml, with_full_paths
from paw_fast.envs.webshop.search import require
from paw_fast.errors import UserError
from paw_fast.runs import run_dir as runs


def begin(*options):
    return main.run(["train", "--preset", "tiny", "--env.num-train", "20", "--env.num-unseen", "4", *map(str, options)])


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_that_could_not_begin_leaves_no_folder_behind(tmp_path):
    """The command, mended, must not be told that the folder holds a run already."""
    with pytest.raises(UserError, match="no such folder"):
        begin("--model", "./no/such/model", "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [[], ["mine.txt"]])
def test_a_run_that_could_not_begin_leaves_a_folder_as_it_was(tmp_path, names):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("mine")
    with pytest.raises(UserError, match="no such folder"):
        begin("--model", "./no/such/model", "--run-dir", folder)
    assert [path.name for path in folder.iterdir()] == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env.template", "nope"], "nope"),
        (["--model.device", "foo"], "--model.device foo"),
        (["--seed", "-1"], "--seed is -1"),
        (["--warm-start.vocab-size", "200"], "vocab-size is 200, expected 261 or more"),
        (["--optim.beta1", "2"], "--optim.beta1 is 2.0"),
        (["--optim.weight-decay", "-1"], "--optim.weight-decay is -1.0"),
        (["--optim.warmup-steps", "-5"], "--optim.warmup-steps is -5"),
        (["--algo.step-weight", "3"], "--algo.step-weight is a setting of gigpo, and --algo is grpo"),
        (["--critic.lam", "0.9"], "--critic.lam is a setting of algorithms that need a critic, and --algo is grpo"),
        (["--algo", "gigpo", "--algo.step-weight", "-3"], "--algo.step-weight is -3.0"),
        (["--warm-start.learning-rate", "-1"], "--warm-start.learning-rate is -1.0"),
        (["--warm-start.batch-tokens", "0"], "--warm-start.batch-tokens is 0"),
        (["--rollout.max-sequence-tokens", "0"], "--rollout.max-sequence-tokens is 0"),
    ],
)
def test_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        begin(*options, "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()  # no game was generated


@pytest.mark.parametrize(
    ("options", "package"),
    [
        (["--log", "wandb"], "wandb"),
        (["--log", "trackio"], "trackio"),
        (["--rollout.engine", "vllm"], "vllm"),
        (["--env", "webshop"], "rapidfuzz"),
        (["--env", "search"], "Stemmer"),
        (["--model", "smollm2-135m"], "gguf"),
    ],
)
def test_an_extra_that_is_missing_is_told_before_any_work(tmp_path, monkeypatch, options, package):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    require.cache_clear()
    monkeypatch.setattr(runs, "create_run", lambda config: pytest.fail("a run folder was made"))
    with pytest.raises(UserError, match=f"{options[0]}.* needs .*pip install"):
        main.run(["train", "--preset", "tiny", *options, "--run-dir", str(tmp_path / "run")])
    require.cache_clear()
    assert not (tmp_path / "run").exists()


def test_the_data_of_a_run_is_written_down(tmp_path, monkeypatch):
    """A run means the same data in another folder and after the variable has changed."""
    generated = dataclasses.replace(load_preset("webshop-tiny"), run_dir=tmp_path / "run")
    run_dir = runs.create_run(generated)
    assert runs.load_config(run_dir) == generated
    monkeypatch.setenv("WEBSHOP_DATA", "here")
    monkeypatch.chdir(tmp_path)
    assert with_full_paths(env_config("webshop")).data == tmp_path / "here"
    assert with_full_paths(env_config("webshop", data=Path("there"))).data == tmp_path / "there"
    assert with_full_paths(env_config("alfworld")).data is None
    asked = with_full_paths(env_config("search", train=("a.json:2",), corpus=Path("c.jsonl"), template="t.toml"))
    assert (asked.train, asked.corpus) == ((f"{tmp_path}/a.json:2",), tmp_path / "c.jsonl")
    assert asked.template == f"{tmp_path}/t.toml"
    with pytest.raises(UserError, match="WEBSHOP_DATA is set now: unset it"):
        runs.load_config(run_dir)


def test_a_switch_can_be_turned_off_in_every_table(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        begin(
            "--warm-start.no-copying", "--paw.no-enabled", "--model", "./no/such/model", "--run-dir", tmp_path / "run"
        )


def test_a_base_that_is_no_name(tmp_path):
    (tmp_path / "mine.toml").write_text('base = ["tiny"]')
    with pytest.raises(UserError, match="expected a recipe"):
        main.run(["train", "--config", str(tmp_path / "mine.toml")])


def presets_of(monkeypatch, *options):
    """The config that a command line would train with, and what is said of its preset."""
    seen = []
    monkeypatch.setattr(main, "to_toml", lambda config: seen.append(config) or "")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main.run(["train", *map(str, options), "--print-config"]) == 0
    config = seen[0]
    lines = [line.removeprefix("# ") for line in said.getvalue().splitlines()]
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, chat_date="")), lines


@pytest.mark.parametrize("env", ["alfworld", "webshop"])
def test_a_file_alone_lies_over_the_preset_of_the_hardware(tmp_path, monkeypatch, env):
    import torch

    (tmp_path / "mine.toml").write_text(f'steps = 2\n[env]\nname = "{env}"\n')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, said = presets_of(monkeypatch, "--config", tmp_path / "mine.toml")
    assert config == dataclasses.replace(load_preset("tiny", env), steps=2)
    assert said == ["preset tiny: no CUDA device was found (--preset takes another; see `paw-fast recipes`)"]


def test_a_file_with_a_base_or_with_everything_asks_for_no_preset(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text('base = "tapo"\nsteps = 2\n')
    config, said = presets_of(monkeypatch, "--config", tmp_path / "mine.toml")
    assert (config, said) == (dataclasses.replace(load_preset("tapo"), steps=2), [])
    whole = dataclasses.replace(load_preset("webshop-qwen2.5-3b"), seed=7)
    (tmp_path / "config.toml").write_text(to_toml(whole))
    config, said = presets_of(monkeypatch, "--config", tmp_path / "config.toml")
    assert (config, said) == (whole, [])


def test_slots_that_do_not_fit_into_memory_are_one_line(monkeypatch):
    from paw_fast.models import tiny
    from paw_fast.models.policy import Policy
    from paw_fast.rollout import factory

    def full(*args, **settings):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(factory, "TransformersEngine", full)
    tokenizer = tiny.train_tokenizer(["go to cabinet 1"] * 9, 300)
    policy = Policy(tiny.build_model(len(tokenizer), hidden=16, layers=1, heads=2, kv_heads=1, ffn=16), tokenizer)
    config = load_preset("tiny")
    with pytest.raises(UserError, match=r"--rollout\.slots 64: no memory for .* up to 2048 tokens") as error:
        factory.make_engine(policy, config)
    assert "\n" not in str(error.value)
