"""Old names of settings: in files, on the command line, and in run directories of earlier versions."""

import logging

import pytest

from paw_fast.cli.options import parse
from paw_fast.config import TrainConfig, load_preset, load_toml
from paw_fast.config.renames import RENAMED, rename_keys
from paw_fast.errors import UserError


def test_a_file_s_old_names_are_taken_and_the_new_ones_said(tmp_path, caplog):
    path = tmp_path / "mine.toml"
    path.write_text("[env]\nname = 'search'\n[warm_start]\nhaste = 0.5\nslips = 0.25\n")
    with caplog.at_level(logging.WARNING):
        config = load_toml(path)
    assert (config.env.expert.early_answer_prob, config.warm_start.mistake_prob) == (0.5, 0.25)
    assert [record.getMessage().partition("; ")[0] for record in caplog.records] == [
        f"{path}: warm_start.haste is now called env.expert.early_answer_prob",
        f"{path}: warm_start.slips is now called warm_start.mistake_prob",
    ]


def test_both_names_at_once_are_refused():
    with pytest.raises(UserError, match=r"warm_start.slips is the old name of warm_start.mistake_prob, and both"):
        rename_keys({"warm_start": {"slips": 0.1, "mistake_prob": 0.2}}, "mine.toml")


def test_an_old_option_is_taken_and_the_new_one_said(caplog):
    base = load_preset("tiny", "webshop")
    with caplog.at_level(logging.WARNING):
        config = parse(TrainConfig, ["--warm-start.hasty-share=0.5", "--warm-start.slips", "0.25"], "train", base)
    assert (config.env.expert.early_answer_share, config.warm_start.mistake_prob) == (0.5, 0.25)
    assert "--warm-start.slips is now called --warm-start.mistake-prob" in caplog.text


def test_every_new_name_exists():
    for new in RENAMED.values():
        config = load_preset("tiny", "search")
        for part in new.split("."):
            config = getattr(config, part)


OLD_RUN = """
layout = "trajectory"
steps = 3

[env]
name = "alfworld"
data = "none"
game_seed = 0
max_steps = 14
template = "compact"
history = 2
max_observation_chars = 0
max_observation_tokens = 0
engine = "native"
allow_reference_engine = false
size = "small"
num_train = 6000
num_unseen = 200
train = []
eval = []
corpus = "none"
retriever = "none"
dialect = "auto"
retriever_timeout_s = 30.0
retriever_retries = 3
topk = 3
format_reward = 0.0
mode = "text"
goals = "synthetic"
goal_seed = 42
num_products = "none"
brief_results = 0

[warm_start]
episodes = 5000
noop_share = 0.15
early_answer_prob = 0.0
early_answer_share = 1.0
"""
"""Part of a config.toml from before each environment had settings of its own."""


def test_the_config_of_an_old_run_directory_is_read_silently(tmp_path, caplog):
    path = tmp_path / "config.toml"
    path.write_text(OLD_RUN)
    with caplog.at_level(logging.WARNING):
        config = load_toml(path)
    tiny = load_preset("tiny")
    assert (config.env, config.warm_start.episodes) == (tiny.env, 5000)
    assert caplog.text == ""
    path.write_text(OLD_RUN.replace("[warm_start]", "[warm_start]\nhesitation = 0.7"))
    with caplog.at_level(logging.WARNING):
        load_toml(path)
    assert "warm_start.hesitation is now called warm_start.noop_prob" in caplog.text
