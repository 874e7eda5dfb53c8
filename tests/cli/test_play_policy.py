"""A trained policy plays: what is shown of its moves, against plain forward passes of the same model."""

import dataclasses
import io

import pytest
import torch
from rich.console import Console

from paw_fast.cli import main, play_policy
from paw_fast.cli.play import PlayRunOptions, names_a_run
from paw_fast.config import load_preset, with_chat_date
from paw_fast.config.build import change_config
from paw_fast.errors import UserError
from paw_fast.models.policy import load_policy
from paw_fast.rollout.factory import make_engine, make_env, make_loop
from paw_fast.runs import run_dir as runs
from paw_fast.trainer import train
from paw_fast.types import EVALUATION, EpisodeId, EpisodeRequest

SMALL = {
    "steps": 0, "eval_tasks": 2, "eval_transitions": 4, "rollout": {"groups": 1, "group_size": 2, "slots": 2},
    "env": {"num_train": 24, "num_unseen": 4, "max_steps": 3}, "algo": {"minibatches": 1},
    "warm_start": {"episodes": 16, "epochs": 1, "layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was saved before its first step; its report has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("ALFWORLD_DATA", raising=False)
        patch.setattr("paw_fast.runs.resume.write_report", lambda run_dirs: None)
        config = change_config(load_preset("tiny"), **SMALL, run_dir=tmp_path_factory.mktemp("runs") / "run")
        folder = runs.create_run(config)
        assert train(with_chat_date(config), folder) == 0
        yield folder


def shown(options, typed=""):
    out = io.StringIO()
    assert play_policy.play_run(options, Console(file=out, width=100, color_system=None), io.StringIO(typed)) == 0
    return out.getvalue()


def test_the_numbers_of_a_move(run):
    """Entropy, probability and prediction, from the model's own forward pass."""
    config = change_config(runs.load_config(run), rollout={"temperature": 0.7})
    policy = load_policy(run / "checkpoints" / "step_000000", config.model, trainable=False)
    env = make_env(config.env)
    loop = make_loop(policy.tokenizer, policy.model.config, make_engine(policy, config), env, config)
    player = play_policy.PolicyPlayer(policy, loop, config, 1.0)
    request = EpisodeRequest(EpisodeId(EVALUATION, 0, 0), env.tasks("unseen")[0], (0, 1, 2))
    moves = list(player.moves(request))
    assert player.trajectory is not None
    assert len(moves) == len(player.trajectory.transitions) > 1
    for move, t in zip(moves, player.trajectory.transitions, strict=True):
        ids = [*t.prompt_ids, *t.action_ids, *t.observation_ids]
        logits = logits_of(policy, ids)
        start = len(t.prompt_ids)
        logprobs = torch.log_softmax(logits[start - 1 : start - 1 + len(t.action_ids)] / 0.7, -1)
        assert move.entropy == pytest.approx(float(-(logprobs.exp() * logprobs).sum(-1).mean()), abs=1e-4)
        at = [start + len(t.action_ids) + i for i, is_text in enumerate(t.observation_mask) if is_text]
        chances = torch.softmax(logits[[i - 1 for i in at]], -1)[range(len(at)), [ids[i] for i in at]]
        assert move.probability == pytest.approx(float(chances.mean()), abs=1e-4)
        assert (move.reward, move.observation, move.command) == (t.reward, t.observation_text, t.command)
        greedy = ids[: at[0]]
        for _ in at:
            greedy.append(int(logits_of(policy, greedy)[-1].argmax()))
            if greedy[-1] in loop.chat.stop_ids:
                break
        assert move.prediction == loop.chat.decode(greedy[at[0] :]).strip()
    env.close()


def logits_of(policy, ids):
    lengths, count = (len(ids),), len(ids)
    with torch.inference_mode():
        hidden = policy.hidden(torch.tensor(ids), torch.arange(count), lengths)
        return policy.lm_head(hidden).float()


def test_episodes_are_shown_in_plain_text(run):
    options = PlayRunOptions(run, task=1, episodes=2)
    text = shown(options)
    assert text == shown(options)  # the same seed
    assert "split unseen, temperature 0.4" in text
    assert "task 1: " in text
    assert "task 2: " in text
    assert text.count("entropy of the action") == text.count("predicted:") > 1
    assert "won 0 of 2 episodes" in text or "won 1 of 2 episodes" in text or "won 2 of 2 episodes" in text
    assert "\x1b" not in text
    assert "world-model loss was off" not in text
    stepped = shown(dataclasses.replace(options, step=True, episodes=1), "\n")
    assert stepped.count("Enter for the next move") == 2  # the second is answered by the end of the input


def test_what_the_policy_expects_is_explained_where_it_was_not_trained(run):
    config = load_preset("tiny")
    off = dataclasses.replace(config, paw=dataclasses.replace(config.paw, enabled=False))
    assert "world-model loss was off" in play_policy.world_model_note(run, off, True)
    assert play_policy.world_model_note(run, config, True) == ""
    assert "belongs to no run" in play_policy.world_model_note("model", config, False)


def test_mistakes_are_one_line(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--task is 9: the split unseen has tasks 0 to 3"):
        main.run(["play", str(run), "--task", "9"])
    for flag, value in (("--episodes", "0"), ("--temperature", "0"), ("--temperature", "nan"), ("--seed", "-1")):
        with pytest.raises(UserError, match=f"{flag} is "):
            main.run(["play", str(run), flag, value])
    with pytest.raises(UserError, match="no checkpoint at"):
        main.run(["play", str(tmp_path / "none")])
    with pytest.raises(UserError, match="unknown option --tsk; did you mean --task"):
        main.run(["play", str(run), "--tsk", "1"])
    with pytest.raises(UserError, match="was trained on alfworld, not on --env webshop"):
        main.run(["play", str(run), "--env", "webshop"])
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text((run / "config.toml").read_text())
    with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
        main.run(["play", str(unfinished)])


def test_a_damaged_checkpoint_is_one_line(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step_000000" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot be used: model.safetensors has 1 bytes"):
        main.run(["play", str(copy)])


def test_a_run_is_told_from_options():
    assert names_a_run(["runs/a"])
    assert names_a_run(["--step", "runs/a"])
    assert names_a_run(["--task", "1", "runs/a", "--step"])
    assert not names_a_run(["--env", "alfworld", "--split", "train"])
    assert not names_a_run(["--help"])
    assert not names_a_run([])
