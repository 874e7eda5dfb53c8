"""Options of the command line: what is taken, suggested and refused; help; settings below the options."""

import dataclasses
import re
import subprocess
import sys

import pytest

import paw_fast
from paw_fast.cli import aliases, main, settings
from paw_fast.cli.help_texts import MAIN_OPTIONS
from paw_fast.cli.option_table import options_of
from paw_fast.cli.options import parse, take
from paw_fast.cli.settings import base_config
from paw_fast.config import TrainConfig, load_preset, load_toml, to_toml
from paw_fast.errors import UserError

NAMES = {one for option in options_of(TrainConfig, TrainConfig()) for one in (option.name, option.off) if one}


def train_options(*args, preset="tiny"):
    return parse(TrainConfig, args, "train", load_preset(preset))


def refused(*args, preset="tiny"):
    with pytest.raises(UserError) as error:
        train_options(*args, preset=preset)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------- options


def test_short_names_mean_the_settings_that_they_say():
    config = train_options(
        "--lr", "3e-4", "--batch_size=3", "--group-size", "5", "--no-paw", "--kl-coef", "0.5", "--Device", "cpu"
    )  # fmt: skip
    tiny = load_preset("tiny")
    assert config == dataclasses.replace(
        tiny, optim=dataclasses.replace(tiny.optim, learning_rate=3e-4),
        rollout=dataclasses.replace(tiny.rollout, groups=3, group_size=5),
        paw=dataclasses.replace(tiny.paw, enabled=False), algo=dataclasses.replace(tiny.algo, kl_coef=0.5),
        model=dataclasses.replace(tiny.model, device="cpu"),
    )  # fmt: skip
    assert train_options("--no-paw", "--paw").paw.enabled


def test_every_alias_and_hint_names_an_option_that_exists_and_shadows_none():
    assert set(aliases.ALIASES.values()) <= NAMES
    assert not set(aliases.ALIASES) & NAMES
    assert not set(aliases.MEANT) & (NAMES | set(aliases.ALIASES))
    others = {"--critic.gamma", "--critic.lam", "--algo.gamma", "--resume", "--preset", "--batch-size"}
    for text in aliases.MEANT.values():
        named = {one.rstrip(".,") for one in re.findall(r"--[a-z0-9.-]+", text)}
        assert named <= NAMES | others, text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--max-steps", "3"],
            "unknown option --max-steps; --steps sets the number of training steps, --env.max-steps",
        ),
        (["--learning_rte", "3"], "unknown option --learning_rte; did you mean --learning-rate?"),
        (["--schedule", "linear"], "unknown option --schedule; did you mean --optim.schedule?"),
        (["--temprature", "1"], "unknown option --temprature; did you mean --temperature?"),
        (["--warm-start.mistake_probb", "1"], "did you mean --warm-start.mistake-prob?"),
        (["--qqqq"], "unknown option --qqqq; see paw-fast train --help"),
        (["--steps", "abc"], "--steps is 'abc', expected an integer"),
        (["--steps", "1.5"], "--steps is '1.5', expected an integer"),
        (["--steps="], "--steps is '', expected an integer"),
        (["--steps"], "--steps needs a value"),
        (["--steps", "--seed", "1"], "--steps needs a value"),
        (["--lr", "fast"], "--optim.learning-rate is 'fast', expected a number"),
        (["--layout", "foo"], "--layout is 'foo', expected one of window, trajectory"),
        (["--profile=3"], "--profile is a switch and takes no value, got '3': say --profile or --no-profile"),
        (["--wandb=3"], "unknown option --wandb; say --log tensorboard,wandb"),
        (["--paw.enabled", "3"], "'3' is no option of paw-fast train; options begin with --"),
        (["steps=3"], "'steps=3' is no option of paw-fast train; "),
        (["-x", "3"], "unknown option -x; see paw-fast train --help"),
        (["--seed", "9" * 5000], f"--seed is '{'9' * 40}...', expected an integer"),
        (["--model", "--steps", "3"], "--model needs a value"),
    ],
)
def test_mistakes_are_said_once(args, words):
    assert refused(*args).startswith(words) or words in refused(*args)


def test_none_and_switches_are_taken_in_every_spelling():
    for none in ("none", "None", "NONE"):
        assert train_options("--algo.dual-clip", none).algo.dual_clip is None
        assert train_options(f"--algo.dual-clip={none}").algo.dual_clip is None
    assert train_options("--paw.enabled", "False").paw.enabled is False
    assert train_options("--paw.no-enabled=false").paw.enabled is True
    assert train_options("--algo.entropy-coef", "-1e-3").algo.entropy_coef == -1e-3
    assert train_options("--layout", "Window").layout == "window"


def test_a_switch_that_is_chosen_where_it_is_not_given():
    def checkpointing(*args):
        return train_options(*args).model.gradient_checkpointing

    name = "--model.gradient-checkpointing"
    assert checkpointing() is None
    assert [checkpointing(name), checkpointing(name, "true"), checkpointing(f"{name}=True")] == [True] * 3
    assert [checkpointing("--model.no-gradient-checkpointing"), checkpointing(name, "false")] == [False] * 2
    assert [checkpointing(name, "none"), checkpointing(f"{name}=None")] == [None] * 2
    assert "takes no value, got 'auto'" in refused(f"{name}=auto")


def test_lists_take_several_values():
    config = parse(
        TrainConfig, ["--env.train", "a.json", "b.json", "--seed", "3"], "train", load_preset("tiny", "search")
    )
    assert (config.env.train, config.seed) == (("a.json", "b.json"), 3)


def test_an_option_that_decides_on_others_is_given_once():
    args = ["--preset", "tiny", "--preset=smollm2"]
    with pytest.raises(UserError, match="--preset is given 2 times: tiny, smollm2"):
        take(args, "preset")


# ------------------------------------------------------------------------------------------------------- help


def help_text(capsys, *args):
    assert main.run(["train", *args]) == 0
    return capsys.readouterr().out


def shown_options(text):
    return [name for name in re.findall(r"^  (--[a-z0-9.-]+)", text, re.MULTILINE) if name in NAMES or "." in name]


def test_the_help_shows_the_settings_of_the_chosen_environment_and_algorithm(capsys):
    text = help_text(capsys, "--env", "webshop", "--algo", "gigpo", "--help")
    shown = shown_options(text)
    assert 22 <= len(shown) <= 36
    assert {"--env.goals", "--algo.step-weight", "--optim.learning-rate", "--steps"} <= set(shown)
    assert not {"--env.size", "--critic.lam", "--env.brief-results"} & set(shown)
    assert "--env webshop, --algo gigpo" in text
    assert re.search(r"\((V|S|P|I)\)", text) is None
    assert max(map(len, text.splitlines())) <= 110


def test_the_help_shows_the_defaults_of_the_run_that_would_start(capsys, tmp_path):
    (tmp_path / "mine.toml").write_text("steps = 77\n")
    text = help_text(capsys, "--config", str(tmp_path / "mine.toml"), "--preset", "tiny", "--lr", "0.125", "--help")
    assert "default: 77)" in text
    assert "default: 0.125)" in text
    assert "preset tiny and file " in " ".join(text.split())
    assert "default: 0.00015)" in help_text(capsys, "--preset", "tiny", "--help")
    assert "default: 0.00015)" in help_text(capsys, "--preset", "tiny", "--seeds", "0", "1", "--help")


def test_the_help_of_groups_and_of_everything(capsys):
    paw = help_text(capsys, "--preset", "tiny", "--help", "paw")
    assert shown_options(paw) == [
        f"--paw.{f.name.replace('_', '-')}" for f in dataclasses.fields(load_preset("tiny").paw)
    ]
    everything = help_text(capsys, "--preset", "tiny", "-h", "all")
    assert set(shown_options(everything)) == {
        one for one in NAMES if "no-" not in one and not one.startswith("--critic.")
    }
    assert "--critic.lam" in help_text(capsys, "--preset", "tiny", "--algo", "ppo", "--help", "critic")
    with pytest.raises(UserError, match=r"--help nope: no such group of settings; there are all, run, env"):
        main.run(["train", "--preset", "tiny", "--help", "nope"])


def test_the_main_options_exist():
    assert {one for one in MAIN_OPTIONS if one.startswith("--")} <= NAMES


COMMANDS_WITH_HELP = (
    "eval", "play", "report", "push", "doctor", "serve-env", "retriever index", "retriever serve",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS_WITH_HELP)
def test_the_help_of_every_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main.run([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: paw-fast {command} ")
    assert f"  paw-fast {command}" in text.partition("options:")[0].partition("examples:")[2]
    assert "--" in text.partition("options:")[2]


# ------------------------------------------------------------------------------------- settings below the options


def printed(capsys, *args):
    assert main.run(["train", *map(str, args), "--print-config"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        ["--preset", "tiny", "--env", "webshop", "--algo", "gigpo", "--algo.dual-clip", "none", "--lr", "1e-3"],
        ["--preset", "smollm2"],
        ["--preset", "search-qwen2.5-3b", "--algo", "ppo", "--critic.lam", "0.5"],
    ],
)
def test_the_printed_settings_repeat_the_run(capsys, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    text = printed(capsys, *args)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.toml").write_text(text)
    assert printed(capsys, "--config", "mine.toml") == text
    config = load_toml(tmp_path / "mine.toml", TrainConfig())
    assert to_toml(config) == text
    assert "# " not in text  # a whole file and a named preset leave nothing to say


def test_a_run_s_config_repeats_it_also_where_its_model_suggests_another_preset(tmp_path):
    config = load_preset("tiny", "webshop")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path="smollm2-135m"))
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert base_config([], None, tmp_path / "config.toml") == (config, "")


def test_the_config_of_an_older_run_takes_nothing_from_a_preset(tmp_path):
    config = TrainConfig(seed=5)
    text = to_toml(config).replace("eval_transitions = 256\n", "")
    assert text != to_toml(config)
    (tmp_path / "config.toml").write_text(text)
    assert base_config([], None, tmp_path / "config.toml")[1] != ""
    (tmp_path / "versions.json").write_text("{}")
    assert base_config([], None, tmp_path / "config.toml") == (config, "")


def test_a_base_and_another_preset_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "tapo"\n')
    with pytest.raises(
        UserError, match=r"--preset tiny: .*mine\.toml begins with base = 'tapo'; leave one of them out"
    ):
        base_config([], "tiny", path)
    assert base_config([], "tapo", path)[0] == load_preset("tapo")


def test_a_file_s_settings_belong_to_the_algorithm_of_the_command_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[algo]\ngamma = 0.5\n")
    assert base_config(["--algo", "gigpo"], "tiny", path)[0].algo.gamma == 0.5
    with pytest.raises(UserError, match="gamma is a setting of gigpo and has no effect with grpo: leave it out"):
        base_config([], "tiny", path)
    path.write_text("[critic]\nlam = 0.5\n")
    assert base_config(["--algo", "ppo"], "tiny", path)[0].critic.lam == 0.5
    with pytest.raises(
        UserError, match=r"critic\.lam is a setting of algorithms that need a critic, and --algo is grpo"
    ):
        base_config([], "tiny", path)


def test_a_file_may_begin_with_a_byte_order_mark_and_say_none_in_capitals(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbfsteps = 3\n[algo]\ndual_clip = "None"\n')
    config = load_toml(path)
    assert (config.steps, config.algo.dual_clip) == (3, None)


@pytest.mark.skipif(any(settings.device_files()), reason="torch is asked for the GPU of this machine")
def test_help_needs_no_torch():
    code = "import sys; from paw_fast.cli import main; main.run(['train', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_package_runs_as_a_module():
    """Launchers such as torchrun start a module instead of a program."""
    done = subprocess.run([sys.executable, "-m", "paw_fast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"paw-fast {paw_fast.__version__}\n"
