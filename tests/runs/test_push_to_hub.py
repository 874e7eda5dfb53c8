"""Uploads with the real huggingface_hub, to a Hub of the test on this machine."""

import contextlib
import io
import json
import re
import shlex
import shutil

import huggingface_hub
import pytest
from hub_server import TOKEN, serve, use
from small_runs import resume, train

from paw_fast.cli import main
from paw_fast.errors import UserError
from paw_fast.runs import hub
from paw_fast.runs.atomic_files import exit_code_of
from paw_fast.runs.checkpoint import list_checkpoints
from paw_fast.runs.run_dir import read_json

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    # huggingface_hub's own call of its HTTP library.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
MODEL_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(own_cache, model, tmp_path_factory):
    """A run of two steps that was uploaded at its end, and the Hub with what arrived."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch, serve(patch, run.parent) as there:
        patch.setattr("sys.argv", ["paw-fast", "train", "--run-dir", str(run), "--model", str(model)])
        assert train(model, run, "--steps", 2, "--push-to-hub", "me/agent") == 0
    return run, there


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, without the record of its upload."""
    copy = tmp_path / "run"
    shutil.copytree(trained[0], copy)
    (copy / hub.RECORD).unlink()
    return copy


@pytest.fixture
def there(tmp_path, monkeypatch):
    with serve(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No network, no token."""
    use(monkeypatch, tmp_path, "http://127.0.0.1:9")


def push(*args):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = exit_code_of(lambda: main.run(["push", *map(str, args)]))
    return status, out.getvalue().strip(), errors.getvalue()


# ---------------------------------------------------------------------------------------------- a run that uploads


def test_a_run_uploads_its_model_and_card_in_one_commit(trained):
    run, there = trained
    uploaded = there.repositories["me/agent"]
    assert set(uploaded.files) == MODEL_FILES | {"README.md"}
    assert uploaded.commits == ["paw-fast: step 2"]
    assert not uploaded.private
    checkpoint = run / "checkpoints" / "step_000002"
    for name in MODEL_FILES:
        assert uploaded.files[name] == (checkpoint / name).read_bytes(), name
    assert read_json(run / hub.RECORD) == {
        "name": "me/agent", "repo_id": "me/agent", "url": f"{there.address}/me/agent", "step": 2,
        "commit": f"{1:040x}",
    }  # fmt: skip
    assert 'push_to_hub = "me/agent"' in (run / "config.toml").read_text()


def test_nothing_local_is_uploaded(trained):
    run, there = trained
    for name, content in there.repositories["me/agent"].files.items():
        for secret in (str(run.parent), str(run.parent.parent), TOKEN):
            assert secret.encode() not in content, name
    card = there.repositories["me/agent"].files["README.md"].decode()
    assert "paw-fast train --run-dir .../whole --model .../model" in card
    assert 'run_dir = "none"' in card


def test_transformers_runs_the_code_of_the_card(trained, tmp_path, capsys):
    _, there = trained
    files = there.repositories["me/agent"].files
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.S)
    assert len(code) == 2
    assert 'name = "me/agent"' in code[0]
    assert "Your task is to" in code[0]
    made = {}
    exec(code[0].replace('"me/agent"', repr(str(tmp_path))), made)
    assert made["output"].shape[1] > made["inputs"]["input_ids"].shape[1]
    compile(code[1], "card", "exec")
    capsys.readouterr()


def test_a_failed_upload_loses_nothing_and_is_repeated(run, there, capsys):
    """The run goes on for a step, and the Hub refuses the commit: one line, and the command that repeats it."""
    there.fail = 500
    with pytest.raises(UserError) as failed:
        resume(run, "--steps", 3)
    command = f"paw-fast push {run} me/agent"
    assert str(failed.value).startswith("the run is complete, but its upload to me/agent failed: 127.0.0.1:")
    assert str(failed.value).endswith(f"repeat the upload with: {command}")
    assert "answers 500" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert read_json(run / "summary.json")["steps"] == 3
    assert list_checkpoints(run)[-1].name == "step_000003"
    assert not (run / hub.RECORD).exists()
    there.fail = None
    status, out, _ = push(*shlex.split(command)[2:])
    assert (status, out) == (0, f"{there.address}/me/agent")
    assert read_json(run / hub.RECORD)["step"] == 3
    with pytest.raises(UserError, match="nothing to resume"):  # it is uploaded
        resume(run)


def test_resume_of_a_finished_run_makes_up_for_its_upload(run, there, capsys):
    assert resume(run) == 0
    assert "added what was missing: the upload to me/agent" in capsys.readouterr().err
    assert set(there.repositories["me/agent"].files) == MODEL_FILES | {"README.md"}


def test_the_setting_can_be_turned_off_by_a_resume(run, nowhere):
    with pytest.raises(UserError, match="no Hugging Face token"):
        resume(run, "--steps", 3)
    with pytest.raises(UserError, match="nothing to resume"):
        resume(run, "--push-to-hub", "none")


# ---------------------------------------------------------------------------------------------- before a run begins


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/a/b", "cannot be the name of a repository: expected NAME or USER/NAME"),
        ("-agent", "cannot be the name"),
        ("a--b", "cannot be the name"),
        ("me/agent", r"no Hugging Face token: run `hf auth login`, or set HF_TOKEN .*upload later with paw-fast push"),
    ],
)
def test_refused_before_a_run_without_a_network(model, tmp_path, nowhere, name, message):
    with pytest.raises(UserError, match=rf"^--push-to-hub '?{re.escape(name)}'?.*{message}"):
        train(model, tmp_path / "run", f"--push-to-hub={name}")
    assert not (tmp_path / "run").exists()


def test_offline_mode_is_told(nowhere, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it"):
        hub.check_target("me/agent", "NAME")


def test_what_the_hub_says_of_the_token(there, monkeypatch):
    hub.check_target("me/agent", "NAME")
    hub.check_target("team/agent", "NAME")
    hub.check_target("agent", "NAME")
    assert there.requests.count("GET /api/whoami-v2") == 1
    with pytest.raises(UserError, match=r"the account me cannot write to other/: expected me/\.\.\. or team/\.\.\."):
        hub.check_target("other/agent", "NAME")
    there.account["auth"]["accessToken"]["role"] = "read"
    hub._whoami.cache_clear()
    with pytest.raises(UserError, match="may only read"):
        hub.check_target("me/agent", "NAME")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="refuses the token: log in again"):
        hub.check_target("me/agent", "NAME")


def test_a_hub_that_cannot_be_reached_is_a_note(nowhere, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.check_target("me/agent", "NAME")
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err


def test_settings_that_exclude_each_other(model, tmp_path, nowhere):
    with pytest.raises(UserError, match=r"--push-to-hub me/a and --seeds: the runs would overwrite"):
        train(model, tmp_path / "run", "--seeds", "1", "2", "--push-to-hub", "me/a")
    with pytest.raises(UserError, match="--push-private has no effect without --push-to-hub"):
        train(model, tmp_path / "run", "--push-private")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- paw-fast push


def test_push_replaces_weights_that_are_no_longer_there(run, there):
    assert push(run, "agent", "--license", "mit")[0] == 0
    uploaded = there.repositories["me/agent"]
    assert "license: mit" in uploaded.files["README.md"].decode()
    assert "# agent\n" in uploaded.files["README.md"].decode()
    assert 'name = "me/agent"' in uploaded.files["README.md"].decode()
    uploaded.files |= {"model-00001-of-00002.safetensors": b"1", "notes.md": b"mine", "sub/a.safetensors": b"2"}
    assert push(run / "checkpoints" / "step_000001", "me/agent")[0] == 0
    assert set(uploaded.files) == MODEL_FILES | {"README.md", "notes.md", "sub/a.safetensors"}
    assert uploaded.commits == ["paw-fast: step 2", "paw-fast: step 1"]
    assert read_json(run / hub.RECORD)["step"] == 1


def test_private_repositories(run, there):
    assert push(run, "team/new", "--private")[0] == 0
    assert there.repositories["team/new"].private
    assert push(run, "me/public")[0] == 0
    commits = list(there.repositories["me/public"].commits)
    status, _, error = push(run, "me/public", "--private")
    assert status == 2
    assert "error: me/public exists and is public: make it private in its settings" in error
    assert there.repositories["me/public"].commits == commits


def test_push_can_write_a_folder_without_a_network(run, nowhere, tmp_path):
    folder = tmp_path / "out"
    assert push(run, "me/agent", "--only-write", folder) == (0, str(folder), "")
    assert {path.name for path in folder.iterdir()} == MODEL_FILES | {"README.md"}
    status, _, error = push(run, "me/agent", "--only-write", folder)
    assert status == 2
    assert f"error: {folder} already exists: choose a new folder" in error


def test_mistakes_of_push_are_one_line(run, nowhere, tmp_path):
    for args, message in {
        (run / "no", "me/a"): "error: no run at ",
        (tmp_path, "me/a"): "is not a run directory: it contains no config.toml",
        (run / "episodes", "me/a"): "episodes is no checkpoint: give a run directory",
        (run, "me/a"): "error: NAME me/a: no Hugging Face token",
        (run,): "error: paw-fast push needs NAME",
        (run, "me/a", "--license", "My License", "--only-write", tmp_path / "x"): "is no license identifier",
    }.items():
        status, _, error = push(*args)
        assert (status, error.count("\n")) == (2, 1), error
        assert message in error
    (run / "checkpoints" / "step_000002" / "model.safetensors").write_bytes(b"damaged")
    assert "step_000002 cannot be used: model.safetensors has 7 bytes" in push(run, "me/a")[2]


def test_a_name_that_the_hub_refuses(run, there):
    there.account = {"name": "me"}  # a token whose rights are not listed
    status, _, error = push(run, "other/agent")
    assert status == 2
    assert "the token may not write to other/agent: take one with write access" in error


# ------------------------------------------------------------------------------------------------ what is uploaded


def test_which_checkpoint_of_a_run(run):
    step = lambda path: hub.choose_checkpoint(path)[1:]  # noqa: E731
    checkpoints = run / "checkpoints"
    write = lambda at: (run / "best.json").write_text(json.dumps({"step": at, "success": 0.5, "num_tasks": 2}))  # noqa: E731
    write(1)
    assert step(run) == (checkpoints / "step_000001", "best")
    write(0)  # trained is what a user wants to publish
    assert step(run) == (checkpoints / "step_000002", "no better")
    assert step(checkpoints / "step_000000") == (checkpoints / "step_000000", "given")
    write(1)
    config = run / "config.toml"
    config.write_text(config.read_text().replace("keep_best = true", "keep_best = false"))
    assert step(checkpoints) == (checkpoints / "step_000002", "newest")


def test_local_paths_in_config_files_are_left_out(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"name_or_path": "/home/me/model", "tokenizer_file": None, "eos_token": "/"}))
    assert json.loads(hub._without_paths(config)) == {"tokenizer_file": None, "eos_token": "/"}
    config.write_text(json.dumps({"_name_or_path": "Qwen/Qwen2.5-3B"}))
    assert hub._without_paths(config) == config
