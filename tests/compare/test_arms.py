"""Arms: built-in ones, files, and what they may not change."""

import pytest

from paw_fast.compare.arms import arm_config, arm_configs, built_in, find_arms, option_text
from paw_fast.config import load_preset, load_toml, recipes
from paw_fast.config.build import change_config, make_config
from paw_fast.errors import UserError


@pytest.fixture(scope="module")
def tiny():
    return load_preset("tiny")


def one(name, base):
    return arm_config(find_arms([name])[0], base)


def test_rl_and_paw_are_switches(tiny):
    assert not one("rl", tiny).paw.enabled
    assert one("paw", change_config(tiny, paw={"enabled": False, "tau": 0.4})).paw == change_config(
        tiny, paw={"tau": 0.4}
    ).paw  # fmt: skip


@pytest.mark.parametrize("name", ["echo", "tapo", "ablation-all", "ablation-random"])
def test_an_arm_of_a_recipe_has_its_world_model_loss_and_nothing_else(name, tiny):
    config = one(name, tiny)
    assert config.paw == load_toml(recipes()[name]).paw
    assert config == change_config(tiny, paw={f: getattr(config.paw, f) for f in config.paw.__dataclass_fields__})


def test_echo_is_cross_entropy_on_all_observation_tokens_at_a_constant_weight(tiny):
    paw = one("echo", tiny).paw
    assert (paw.loss, paw.selection, paw.alpha, paw.balance, paw.lambda_0, paw.update) == (
        "ce", "all", 1.0, "fixed", 0.05, "joint",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["placebo", "other-task", "noise", "surprise"])
def test_an_arm_whose_setting_is_not_there_or_does_not_fit_is_refused_by_its_name(name, tiny):
    """Their settings belong to the controls of the world-model loss, some of which need the layout `window`."""
    found = ""
    try:
        config = one(name, change_config(tiny, layout="window"))
        assert config.paw != one("paw", tiny).paw
    except UserError as error:
        found = str(error)
    assert not found or f"arm {name}" in found


def write(tmp_path, text):
    path = tmp_path / "arms.toml"
    path.write_text(text)
    return str(path)


def test_arms_of_a_file(tmp_path, tiny):
    path = write(
        tmp_path,
        '[arms.low]\nabout = "tau of 0.05"\npaw.tau = 0.05\n[arms.low-ce]\nbase = "low"\npaw.loss = "ce"\n'
        '[arms.echo-1]\nbase = "echo"\n[arms.echo-1.paw]\nlambda_0 = 1.0\n[arms.gigpo]\nalgo.name = "gigpo"\n',
    )
    arms = find_arms(["rl", path])
    assert [arm.name for arm in arms] == ["rl", "low", "low-ce", "echo-1", "gigpo"]
    assert [arm.about for arm in arms[1:]] == [
        "tau of 0.05", "low with paw.loss = ce", "echo with paw.lambda_0 = 1.0", "algo.name = gigpo",
    ]  # fmt: skip
    configs = arm_configs(arms, tiny)
    assert (configs["low-ce"].paw.tau, configs["low-ce"].paw.loss) == (0.05, "ce")
    assert (configs["echo-1"].paw.lambda_0, configs["echo-1"].paw.selection) == (1.0, "all")
    assert configs["gigpo"].algo.name == "gigpo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3\n", "unknown key 'steps', expected tables"),
        ("[arms]\n", "has no arms"),
        ("[arms]\nx = 3\n", "arms.x is 3, expected a table"),
        ('[arms.x]\nbase = "y"\n', "base is 'y', expected an arm above it or one of rl, paw"),
        ("[arms.x]\nabout = 3\n", "about is 3, expected text"),
        ('[arms."../x"]\npaw.tau = 0.1\n', "the name is used for a folder"),
        ("[arms.rl]\npaw.tau = 0.1\n", "the arm rl is given twice"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        find_arms(["rl", write(tmp_path, text)])


def test_unknown_arms_have_a_suggestion():
    with pytest.raises(UserError, match="unknown arm 'placebos'; did you mean placebo"):
        find_arms(["placebos"])
    with pytest.raises(UserError, match="there are rl, paw, placebo"):
        find_arms(["x"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("paw.taus = 0.1", "arm x: paw: unknown key 'taus'; did you mean 'tau'"),
        ("paw.tau = 3.0", "arm x: --paw.tau is 3.0"),
        ("paw.horizon = 2", "arm x: .*--layout trajectory.*--preset tiny-window"),
        ("seed = 3", "arm x changes seed from 0 to 3: all arms play the same tasks"),
        ("env.game_seed = 3", "changes env.game_seed .* same tasks"),
        ("rollout.groups = 3", "changes rollout.groups .* same tasks"),
        ("algo.dynamic_sampling = true", "changes algo.dynamic_sampling .* same tasks"),
        ("steps = 3", "changes steps .* give it as an option of all arms"),
        ("warm_start.observation_weight = 0.0", "run one comparison for each value"),
        ('layout = "window"', "the warm start depends on it"),
        ("env.history = 1", "the warm start depends on it"),
    ],
)
def test_what_an_arm_may_not_change(tmp_path, tiny, settings, message):
    with pytest.raises(UserError, match=message):
        arm_configs(find_arms([write(tmp_path, f"[arms.x]\n{settings}\n")]), tiny)


def test_what_only_the_warm_start_forbids_is_allowed_with_another_model(tmp_path):
    base = make_config("tiny", model="folder", layout="window")
    arms = find_arms([write(tmp_path, '[arms.x]\nlayout = "trajectory"\nenv.history = 1\n')])
    assert arm_configs(arms, base)["x"].layout == "trajectory"


def test_comparisons_that_are_refused(tiny):
    with pytest.raises(UserError, match="the arms rl and rl2 have the same settings"):
        arm_configs([built_in()["rl"], built_in()["rl"].__class__("rl2", {"paw": {"enabled": False}}, "")], tiny)
    with pytest.raises(UserError, match="dynamic-sampling"):
        arm_configs(find_arms(["rl"]), change_config(tiny, algo={"dynamic_sampling": True}))


def test_settings_as_options():
    assert option_text("algo.name", "ppo") == ["--algo", "ppo"]
    assert option_text("profile", False) == ["--no-profile"]
    assert option_text("env.levels", ("a", "b")) == ["--env.levels", "a", "b"]
