"""Runs with LoRA: three steps, exact resuming, evaluation, and the merged model of `paw-fast push`."""

import json
import shutil

import pytest
import torch
import transformers

from paw_fast.cli.main import run
from paw_fast.errors import UserError
from paw_fast.runs import run_dir
from paw_fast.runs.metrics import read_metrics

pytest.importorskip("peft", reason="needs the extra lora")

SETTINGS = [
    "--preset", "tiny", "--env", "alfworld", "--eval-tasks", "4", "--save-every", "1", "--keep-checkpoints", "9",
    "--env.num-train", "40", "--env.num-unseen", "8", "--env.max-steps", "6", "--rollout.groups", "2",
    "--rollout.group-size", "2", "--rollout.slots", "4", "--algo.minibatches", "2", "--algo.kl-coef", "0.1",
    "--warm-start.episodes", "40", "--lora.rank", "4", "--optim.learning-rate", "1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run(["train", *SETTINGS, "--steps", "3", "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def numbers(run):
    skip = ("time/", "throughput/", "memory/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in read_metrics(run)]


def test_a_run_trains_its_adapter_alone(finished):
    from safetensors.torch import load_file

    rows = numbers(finished)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["optim/grad_norm"] > 0
    assert rows[3]["policy/kl"] > 0  # the policy has left the base model
    checkpoints = sorted((finished / "checkpoints").glob("step_*"))
    assert all(not (one / "model.safetensors").exists() for one in checkpoints)
    first, last = (load_file(one / "adapter_model.safetensors") for one in (checkpoints[0], checkpoints[-1]))
    assert all(torch.any(first[name] == 0) == ("lora_B" in name) for name in first)
    assert all(torch.any(last[name] != 0) for name in last)
    assert run_dir.load_config(finished).lora.rank == 4


def test_a_resumed_run_goes_on_to_the_same_metrics(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    assert run(["train", "--resume", str(again)]) == 0
    assert numbers(again) == numbers(finished)


def test_a_resumed_run_keeps_its_rank(finished):
    with pytest.raises(UserError, match=r"--lora.rank 8: .* was begun with 4"):
        run(["train", "--resume", str(finished), "--lora.rank", "8"])


def test_eval_and_push_read_the_adapter(finished, tmp_path, capsys):
    assert run(["eval", str(finished), "--tasks", "4"]) == 0
    out = tmp_path / "out"
    assert run(["push", str(finished), "me/agent", "--only-write", str(out)]) == 0
    capsys.readouterr()
    assert (out / "model.safetensors").is_file()
    assert not list(out.glob("adapter*"))  # its base model is on this machine alone
    merged = transformers.AutoModelForCausalLM.from_pretrained(out)
    base = transformers.AutoModelForCausalLM.from_pretrained(finished / "warm_start")
    changed = [n for n, p in merged.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert len(changed) > 0
    assert all(name.endswith("_proj.weight") for name in changed)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--lora.rank", "0", "--lora.dropout", "0.1"], "--lora.dropout has no effect without --lora.rank"),
        (["--lora.rank", "5000"], "--lora.rank is 5000"),
        (["--rollout.placement", "process", "--rollout.transport", "ipc"], "--rollout.transport ipc shares"),
        (["--offload.reference"], "with --lora.rank the reference is the model without its adapters"),
        (["--lora.rank", "0", "--offload.reference", "--algo.kl-coef", "0"], "--offload.reference has no effect"),
    ],
)
def test_what_cannot_go_together_is_refused(args, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run(["train", *SETTINGS, *args, "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_without_peft_a_run_is_refused_with_the_command_that_installs_it(monkeypatch):
    import sys

    from paw_fast.runs.adapter import require_peft

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"--lora.rank needs peft: pip install .*lora"):
        require_peft("--lora.rank")
