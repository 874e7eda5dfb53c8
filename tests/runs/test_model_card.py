"""The model card: its figures as of the checkpoint, its metadata as huggingface_hub reads it, and what it hides."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from paw_fast.config import TrainConfig, env_config, load_preset, to_toml
from paw_fast.errors import UserError
from paw_fast.runs.base_model import find_base_model
from paw_fast.runs.markdown import fence
from paw_fast.runs.model_card import as_of, make_card
from paw_fast.runs.model_usage import literal
from paw_fast.runs.run_data import load_run
from paw_fast.runs.secrets import mask_command, mask_settings, mask_text


def evaluation(won, total=100):
    return {"success": won / total, "low": 0.0, "high": 1.0, "successes": won, "num_tasks": total, "by_task_type": {
        "look": {"successes": won, "num_tasks": total - 10}, "heat": {"successes": 0, "num_tasks": 10},
    }}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 20 steps, evaluated at 0, 10 and 20: 20 %, 60 % and 50 % of 100 tasks."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    folder.mkdir()
    text = to_toml(load_preset("qwen2.5-1.5b", "alfworld")).replace('data = "none"', 'data = "/home/me/my data"')
    (folder / "config.toml").write_text(text.replace("steps = 150", "steps = 20", 1))
    rates = {0: 0.2, 10: 0.6, 20: 0.5}
    rows = [
        {"step": step, "time/step_s": 1.0}
        | ({"success/eval_rate": rates[step], "success/eval_total": 100.0} if step in rates else {})
        for step in range(21)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "warm_start_success": 0.2, "final_success": 0.5, "evaluated_step": 20, "num_eval_tasks": 100, "steps": 20,
        "eval_split": "unseen", "eval_tasks_in_train": 3, "num_parameters": 1543714304, "wall_time_s": 7260.0,
        "warm_start_eval": evaluation(20), "final_eval": evaluation(50), "warm_start_won": [1] * 20 + [0] * 80,
        "final_won": [1] * 50 + [0] * 50,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    start = {"command": "paw-fast train --env.data '/home/me/my data' --env.hf-token abc", "host": "secret-host"}
    versions = {"python": "3.11.7", "torch": "2.13.0", "starts": [start | {"device": "H100", "commit": "1a2b"}]}
    (folder / "versions.json").write_text(json.dumps(versions))
    (folder / "example_prompt.json").write_text(json.dumps({"message": 'Say "```".\nNow.', "stop": ["</action>"]}))
    return folder


def table(card):
    """The rows of the first table."""
    lines = card.split("## Results")[1].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5] if line.startswith("|")]


def test_the_figures_and_metadata_of_the_last_checkpoint(run):
    card = make_card(run, 20, "me/agent", "newest")
    assert table(card) == [
        ["before training", "20.0 %", "13.3 to 28.9 %", "100"],  # Wilson: (0.2 + z²/200 ± ...) / (1 + z²/100)
        ["this model, after 20 training steps", "50.0 %", "40.4 to 59.6 %", "100"],
    ]
    assert "Gain +30 points, 95 % interval" in card
    assert "(paired over the same tasks): more than chance explains" in card
    assert "| look | 55.6 % (95 %: 45.3 to 65.4, 90 tasks) |" in card
    assert "3 of the evaluation tasks are training tasks too" in card
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.base_model == "Qwen/Qwen2.5-1.5B-Instruct"
    assert data.license is None
    assert "is not known here, so none is stated" in card
    assert {"paw-fast", "paw", "world-model", "alfworld", "grpo"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_split, data.model_name) == (0.5, "unseen", "agent")
    assert result.metric_name == "success rate (95 % interval 40.4 to 59.6 %)"
    assert "1,543,714,304" in card


def test_the_figures_are_those_of_the_checkpoint(run):
    card = make_card(run, 10, "me/agent", "best")
    assert table(card)[1:] == [
        ["this model, after 10 training steps", "60.0 %", "50.2 to 69.1 %", "100"],
        ["end of the run, after 20 training steps", "50.0 %", "40.4 to 59.6 %", "100"],
    ]
    assert "highest success of the run's 3 evaluations on these tasks, so its success is biased upward" in card
    assert ModelCard(card).data.eval_results[0].metric_value == 0.6
    card = make_card(run, 15, "me/agent")
    assert "This checkpoint itself was not evaluated" in card
    assert ModelCard(card).data.eval_results is None
    assert "this model" not in card.split("## Training")[0]
    card = make_card(run, 0, "me/agent")
    assert "This is the model before training." in card
    assert ModelCard(card).data.eval_results[0].metric_value == 0.2
    assert as_of(load_run(run), 10).latest.rate == 0.6


def test_what_is_hidden(run):
    card = make_card(run, 20, "me/agent")
    assert "/home/me" not in card
    assert "secret-host" not in card
    assert "paw-fast train --env.data '.../my data' --env.hf-token '***'" in card
    assert 'data = ".../my data"' in card
    assert "1a2b" in card
    assert "H100" in card


def test_the_settings_repeat_the_run_elsewhere(run, tmp_path):
    """The block of the card is a file that `--config` takes, and it uploads nothing."""
    from paw_fast.config import load_toml

    path = run / "config.toml"
    path.write_text(path.read_text().replace('push_to_hub = "none"', 'push_to_hub = "me/agent"'))
    card = make_card(run, 20, "me/agent")
    (tmp_path / "settings.toml").write_text(card.split("```toml\n")[1].split("\n```")[0])
    config = load_toml(tmp_path / "settings.toml", TrainConfig(env=env_config("alfworld")))
    assert (config.push_to_hub, config.run_dir, config.steps) == (None, None, 20)


def test_code_of_the_card(run):
    card = make_card(run, 20, "me/agent")
    code = card.split("```python\n")[1].split("\n```\n")[0]
    assert "stop_strings=['</action>'], tokenizer=tokenizer" in card
    assert "include_stop_str_in_output=True" in card
    assert "trust_remote_code" not in code
    model = run / "checkpoints" / "step_000020"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"auto_map": {}}')
    card = make_card(run, 20, "me/agent")
    assert "AutoTokenizer.from_pretrained(name, trust_remote_code=True)" in card
    assert "vllm serve me/agent --trust-remote-code" in card


def test_little_is_known_of_a_run(run):
    for name in ("summary.json", "versions.json", "example_prompt.json"):
        (run / name).unlink()
    (run / "metrics.jsonl").write_text("")
    card = make_card(run, 20, "me/agent")
    assert "The run has no evaluation." in card
    assert ModelCard(card).data.eval_results is None


def test_without_the_world_model_loss(run):
    path = run / "config.toml"
    path.write_text(path.read_text().replace("[paw]\nenabled = true", "[paw]\nenabled = false"))
    card = make_card(run, 20, "me/agent")
    assert "without a world-model loss" in card
    assert "| world model (PaW) | off |" in card
    assert "paw" not in ModelCard(card).data.tags


def test_licenses(run, tmp_path):
    assert ModelCard(make_card(run, 20, "me/agent", license="mit")).data.license == "mit"
    with pytest.raises(UserError, match="--license 'Mine' is no license identifier: expected one such as"):
        make_card(run, 20, "me/agent", license="Mine")
    # A model folder says what it is in its own card: here that of an earlier upload.
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(run / "config.toml", base / "config.json")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: some/model\n---\n# Base\n")
    found = find_base_model(str(base))
    assert (found.hub_name, found.license) == ("some/model", "apache-2.0")
    assert str(tmp_path) not in found.text
    (base / "README.md").write_text("---\nlicense: other\n---\n")
    assert find_base_model(str(base)).license is None
    assert find_base_model("smollm2-135m").license == "apache-2.0"
    assert find_base_model("/home/me/gone/model").text == "the model `model`"
    path = run / "config.toml"
    path.write_text(path.read_text().replace('path = "Qwen/Qwen2.5-1.5B-Instruct"', 'path = "tiny"'))
    card = make_card(run, 20, "me/agent")
    assert "a tokenizer of its own" in card
    assert ModelCard(card).data.base_model is None


def test_a_license_in_the_hub_s_cache(run, tmp_path):
    folder = tmp_path / "cache" / "models--Qwen--Qwen2.5-1.5B-Instruct"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert ModelCard(make_card(run, 20, "me/agent")).data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/home/me/a.json", ".../a.json"),
        ("~/games", ".../games"),
        ("/home/me/a.json:3", ".../a.json:3"),
        ("dense:/home/me/index", "dense:.../index"),
        ("/a/b/c.json,/a/b/d.json", ".../c.json,.../d.json"),
        ("C:\\Users\\me\\games", ".../games"),
        ("file:///home/me/games", ".../games"),
        ("http://me:pw@host:80/a/b?api_key=1", "http://***@host:80/a/b?api_key=***"),
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B"),
        ("runs/a/b", "runs/a/b"),
        ("../up/b", "../up/b"),
        ("key hf_abcdefghijklmnopqrst", "key ***"),
        ("", ""),
    ],
)
def test_masked_texts(text, masked):
    assert mask_text(text) == masked


def test_masked_settings_and_commands():
    settings = {"api_key": "1", "max_tokens": 3, "token_budget": "4", "hf_token": "none", "a": ["/x/y", 1]}
    assert mask_settings(settings) == {
        "api_key": "***", "max_tokens": 3, "token_budget": "4", "hf_token": "none", "a": [".../y", 1],
    }  # fmt: skip
    assert mask_command("python -c 'open(") == "python -c 'open("
    assert mask_command("p --x.password=a --token b c --steps 3") == "p '--x.password=***' --token '***' c --steps 3"


def test_markdown():
    assert fence("text", "a\n````\nb").startswith("`````text\n")
    assert eval(literal('a "b"\n\nc\n')) == 'a "b"\n\nc\n'
