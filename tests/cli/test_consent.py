"""Code that comes with models, games and templates runs only where the command line says so, never by a file's word."""

import dataclasses
import datetime
import json

import pytest

from paw_fast.cli import main
from paw_fast.config import TrainConfig, env_config, load_toml, to_toml, validate, with_chat_date
from paw_fast.config.schema import ModelConfig
from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.models.policy import load_policy
from paw_fast.runs import run_dir


@pytest.fixture
def model_with_code(tmp_path, monkeypatch):
    """A model folder whose code writes a file when it runs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    tokenizer = tiny.train_tokenizer(["look around"] * 9, 300)
    tokenizer.save_pretrained(folder)
    auto_map = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own-model", "auto_map": auto_map}))
    (folder / "code.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PretrainedConfig\n\n\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own-model'\n"
    )
    return folder, ran


def test_a_model_s_own_code_is_not_run_and_nothing_is_asked(model_with_code, monkeypatch):
    folder, ran = model_with_code
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    with pytest.raises(UserError, match=r"needs Python code .* say --model\.trust-remote-code") as error:
        load_policy(folder, ModelConfig(device="cpu"))
    assert "\n" not in str(error.value)
    assert not ran.exists()
    with pytest.raises(UserError):  # the code runs now; it has no such model
        load_policy(folder, ModelConfig(device="cpu", trust_remote_code=True))
    assert ran.exists()


def test_a_file_cannot_say_that_code_may_run(tmp_path):
    base = TrainConfig()
    asked = dataclasses.replace(
        base, model=dataclasses.replace(base.model, trust_remote_code=True),
        env=dataclasses.replace(base.env, allow_reference_engine=True),
    )  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(to_toml(asked))
    assert load_toml(path) == base


def test_games_of_a_run_folder_are_played_by_the_reference_only_if_the_command_line_says_so(tmp_path):
    config = TrainConfig(env=env_config("alfworld", engine="textworld", data=tmp_path))
    (tmp_path / "config.toml").write_text(to_toml(config))
    (tmp_path / "warm_start").mkdir()
    with pytest.raises(UserError, match=r"Python expressions of game files.* add --trust-env-code"):
        main.run(["eval", str(tmp_path / "warm_start")])
    with pytest.raises(UserError, match=r"Python expressions of game files.* add --env\.engine textworld"):
        main.run(["train", "--resume", str(tmp_path)])
    run_dir.check_consent(config.env, True, "")
    run_dir.check_consent(env_config("alfworld", engine="textworld"), False, "")  # generated games are our own


def test_the_setting_belongs_to_alfworld():
    assert env_config("alfworld").with_consent(True).allow_reference_engine is True
    with pytest.raises(UserError, match=r"--env\.allow-reference-engine is a setting of alfworld, and --env is search"):
        main.run(["train", "--env", "search", "--env.allow-reference-engine"])


def test_the_chat_s_date_is_written_down_once(tmp_path):
    today = datetime.date.today().isoformat()
    config = with_chat_date(TrainConfig())
    assert config.rollout.chat_date in (today, datetime.date.today().isoformat())
    path = tmp_path / "config.toml"
    dated = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, chat_date="2026-03-05"))
    path.write_text(to_toml(dated))
    assert with_chat_date(load_toml(path)).rollout.chat_date == "2026-03-05"
    validate(dated)
    for wrong in ("yesterday", "2026-13-01", "20260305"):
        with pytest.raises(UserError, match=r"--rollout\.chat-date is .*expected a date as in 2026-11-25"):
            validate(dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, chat_date=wrong)))
