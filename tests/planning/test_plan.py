"""`paw-fast plan`, the settings that it proposes, the check when a run starts."""

import dataclasses
import json
import re

import pytest

from paw_fast.cli import start
from paw_fast.cli.main import run
from paw_fast.config import LoraConfig, TrainerConfig, load_preset, recipes
from paw_fast.errors import UserError
from paw_fast.planning import check
from paw_fast.planning.automatic import choose
from paw_fast.planning.machine import GIB, Card, Machine, parse_gpus
from paw_fast.planning.memory import FITS, TIGHT, TOO_LARGE
from paw_fast.planning.plan import make_plan, problem
from paw_fast.planning.shapes import ModelShape
from paw_fast.planning.step_time import estimate_time
from paw_fast.planning.workload import TurnLengths, Workload

H100 = parse_gpus("1xH100-80GB")


def on(machine, name, **parts):
    """A preset with what is chosen for a machine without vLLM."""
    return choose(dataclasses.replace(load_preset(name), **parts), machine, "vLLM is not installed").config


def changed(name, **parts):
    config = load_preset(name)
    tables = {
        key: dataclasses.replace(getattr(config, key), **value) if isinstance(value, dict) else value
        for key, value in parts.items()
    }
    return dataclasses.replace(config, **tables)


def test_which_recipes_fit_one_h100():
    verdicts = {name: make_plan(on(H100, name), H100).verdict for name in recipes() if "qwen" in name}
    small = {name: verdict for name, verdict in verdicts.items() if "-1.5b" in name}
    large = {name: verdict for name, verdict in verdicts.items() if "-7b" in name or "-14b" in name}
    assert len(small) >= 3
    assert set(small.values()) == {FITS}
    assert len(large) >= 4
    assert set(large.values()) == {TOO_LARGE}


def test_a_model_that_is_too_large_for_one_fits_eight():
    eight = parse_gpus("8xH100-80GB")
    assert make_plan(on(eight, "alfworld-qwen2.5-7b", trainer=TrainerConfig(8)), eight).verdict == FITS


def test_a_model_that_is_too_large_is_not_helped():
    small = parse_gpus("1x24GB")
    plan = make_plan(on(small, "alfworld-qwen2.5-14b"), small)
    assert plan.changes == ()
    hint = "no setting of its memory makes it fit: {}take a smaller --model"
    assert hint.format("train adapters (--lora.rank 32), or ") in problem(plan)
    plan = make_plan(on(small, "alfworld-qwen2.5-14b", lora=LoraConfig(rank=32)), small)
    assert hint.format("") in problem(plan)


def test_what_is_too_large_for_one_gpu_fits_with_the_memory_of_the_cpu():
    plan = make_plan(on(H100, "alfworld-qwen2.5-7b"), H100)
    assert [change.text for change in plan.changes] == ["--offload.optimizer"]
    for change in plan.changes:
        assert make_plan(change.config, H100).verdict == FITS


def test_adapters_of_a_model_that_is_too_large_fit():
    assert make_plan(on(H100, "alfworld-qwen2.5-7b"), H100).verdict == TOO_LARGE
    assert make_plan(on(H100, "alfworld-qwen2.5-7b", lora=LoraConfig(rank=32)), H100).verdict == FITS


def test_activations_that_are_too_large_are_helped_by_each_of_two_settings():
    config = changed("alfworld-qwen2.5-1.5b", model={"gradient_checkpointing": False})
    plan = make_plan(config, H100)
    assert plan.verdict == TOO_LARGE
    assert [change.text for change in plan.alone] == ["--token-budget 8192", "--model.gradient-checkpointing"]
    assert "the largest part: activations" in problem(plan)
    for change in plan.alone:
        assert make_plan(change.config, H100).verdict == FITS


def test_several_settings_together():
    config = changed("alfworld-qwen2.5-1.5b", model={"gradient_checkpointing": False}, rollout={"slots": 1024})
    plan = make_plan(config, H100)
    assert plan.alone == ()
    assert len(plan.together) > 1
    assert make_plan(plan.together[-1].config, H100).verdict == FITS


def test_vllm_share():
    config = changed(
        "alfworld-qwen2.5-1.5b", model={"gradient_checkpointing": True}, rollout={"engine": "vllm", "memory_share": 0.9}
    )
    plan = make_plan(config, H100)
    assert [change.option for change in plan.alone] == ["--rollout.memory-share"]
    assert 0.1 < float(plan.alone[0].value) < 0.7  # beside weights and optimizer, while it is awake


def test_rollout_gpus_have_a_prediction_of_their_own():
    rollout = {"engine": "vllm", "placement": "process", "gpus": "1,2", "replicas": 2}
    plan = make_plan(changed("alfworld-qwen2.5-14b", rollout=rollout), parse_gpus("3x24GB"))
    assert [device.device.split(":")[0] for device in plan.devices] == ["trainer", "rollouts"]
    assert plan.devices[1].verdict == TOO_LARGE


def test_time_by_hand():
    shape = ModelShape("m", "llama", hidden=8, layers=1, heads=2, kv_heads=1, head_size=4, ffn=16, vocab=10)
    work = Workload(4, 2.0, TurnLengths(50, 10, 40), sequence=100, longest=100, trained=1000, sampled=80, rows=200)
    config = changed("tiny", algo={"kl_coef": 0.01})
    machine = Machine("cpu", Card("c", GIB, flops=1e6, read_rate=1e6))
    found = estimate_time(config, shape, machine, work)
    layers, head, rate = 2752, 160, 0.4 * 1e6
    assert found.statistics == pytest.approx(2 * (1000 * layers + 80 * head) / rate)
    assert found.update == pytest.approx((1000 * layers * 3 + 200 * head * 3) / rate)
    prompts = 4 * (50 + 2 * 50) * layers / rate
    # 80 tokens of 4 episodes at a time: 20 passes, each of 4 tokens or the weights and a cache of 4 x 100 tokens
    each = max((680 * 4 + 4 * 100 * 2 * 4 * 4) / 0.6e6, 4 * (layers + head) / rate) + 1e-3
    assert found.rollout == pytest.approx(prompts + 20 * each)
    # On GPUs the ranks divide statistics and update.
    cards = dataclasses.replace(machine, kind="cuda", count=4)
    four = estimate_time(dataclasses.replace(config, trainer=TrainerConfig(4)), shape, cards, work)
    assert four.statistics == pytest.approx(found.statistics / 4)
    assert four.update == pytest.approx(found.update / 4)


# --------------------------------------------------------------------------------------------- the command


def planned(capsys, *args):
    status = run(["plan", *args])
    return status, capsys.readouterr().out


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(UserError, match=r"--trainer.gpus 8: the machine has 4; plan with --gpus 8xH100-80GB"):
        run(["plan", "--preset", "alfworld-qwen2.5-7b", "--gpus", "4xH100-80GB", "--trainer.gpus", "8"])


def test_command_of_a_recipe_that_fits(capsys):
    status, out = planned(capsys, "--preset", "alfworld-qwen2.5-1.5b", "--gpus", "1xH100-80GB")
    assert status == 0
    assert re.search(r"optimizer states +11\.5 GiB", out)
    assert re.search(r"peak: \d+\.\d GiB in the update, \d+% of 78\.1 GiB", out)
    assert out.rstrip().endswith("paw-fast train --preset alfworld-qwen2.5-1.5b")


@pytest.mark.parametrize("size", ["7b", "14b"])
def test_command_of_a_recipe_that_does_not(capsys, size):
    status, out = planned(capsys, "--preset", f"alfworld-qwen2.5-{size}", "--gpus", "1xL4-24GB")
    assert status == 1
    assert "does not fit" in out
    assert "paw-fast train" not in out


def test_command_of_a_recipe_with_offloading(capsys):
    options = ["--offload.optimizer", "--offload.reference"]
    status, out = planned(capsys, "--preset", "alfworld-qwen2.5-7b", "--gpus", "1xH100-80GB", *options)
    assert status == 0
    assert "the CPU's memory for --offload: 127." in out  # (16 + 2) x 7.62e9 bytes


def test_json_and_the_command_that_fits(capsys):
    options = ["--lr", "2e-6", "--gradient-checkpointing", "false", "--token-budget", "16384"]
    status, out = planned(capsys, "--gpus", "H100", "--preset", "alfworld-qwen2.5-1.5b", *options, "--json")
    found = json.loads(out)
    assert (status, found["verdict"]) == (1, TOO_LARGE)
    assert found["fits_with_one_of"] == ["--token-budget 8192", "--model.gradient-checkpointing"]
    given = " ".join(options[:4])
    assert found["command"] == f"paw-fast train --preset alfworld-qwen2.5-1.5b {given} --token-budget 8192"
    assert set(found["chosen"]) == {"--rollout.engine", "--pipeline", "--logits-budget-mb"}
    device = found["devices"][0]
    assert device["peak_bytes"] == max(device["phases"].values())
    for phase, size in device["phases"].items():
        assert size == sum(part["bytes"] for part in device["parts"] if phase in part["phases"])
    options[3] = "true"
    assert planned(capsys, "--gpus", "H100", "--preset", "alfworld-qwen2.5-1.5b", *options)[0] == 0


def test_a_changed_option_is_replaced(capsys):
    given = ["--preset", "alfworld-qwen2.5-1.5b", "--slots", "2048", "--steps", "3"]
    out = json.loads(planned(capsys, *given, "--gpus", "1xH100", "--json")[1])
    assert out["command"].startswith("paw-fast train --preset alfworld-qwen2.5-1.5b --steps 3 --rollout.slots ")


def test_this_cpu(capsys):
    status, out = planned(capsys, "--cpu", "--preset", "tiny")
    assert status == 0
    assert "this machine's RAM" in out
    assert "time of a step, roughly:" in out


def test_help(capsys):
    status, out = planned(capsys, "--help")
    assert status == 0
    assert "--gpus TEXT" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpus", "1xH101"], "no card of this name; did you mean H100-80GB?"),
        (["--gpus", "1xH100", "--cpu"], "exclude each other"),
        (["--gpus", "1xH100", "--token-buget", "3"], "did you mean --token-budget?"),
        (["--resume", "runs/a"], "say --config RUN/config.toml"),
        (["--gpus", "2xH100", "--rollout.placement", "process", "--rollout.gpus", "4"], "the machine has 2 GPUs"),
    ],
)
def test_mistakes(args, said):
    with pytest.raises(UserError, match=re.escape(said)):
        run(["plan", *args])


# ---------------------------------------------------------------------------------------- the check at the start

SMALL_GPU = Machine("cuda", Card("small GPU", 2 * GIB))


def test_a_run_that_cannot_fit_is_refused_in_one_line_before_its_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "this_machine", lambda device: SMALL_GPU)
    monkeypatch.setattr(start, "this_machine", lambda device: SMALL_GPU)
    config = load_preset("alfworld-qwen2.5-1.5b")
    with pytest.raises(UserError) as error:
        start.start_run(config)
    said = str(error.value)
    assert "\n" not in said
    assert "does not fit" in said
    assert "the largest part: optimizer states" in said
    assert "--no-check-memory" in said
    assert list(tmp_path.iterdir()) == []
    check.check_memory(dataclasses.replace(config, check_memory=False), SMALL_GPU)


def test_the_refusal_names_the_setting_that_helps():
    config = changed("alfworld-qwen2.5-1.5b", model={"gradient_checkpointing": False})
    with pytest.raises(UserError, match=r"activations, .* it fits with --token-budget 8192"):
        check.check_memory(config, H100)


def test_a_run_that_fits_a_gpu_says_its_memory(capsys):
    config = on(H100, "alfworld-qwen2.5-1.5b")
    check.check_memory(config, dataclasses.replace(H100, free=10 * GIB))
    said = capsys.readouterr()
    assert re.search(r"memory: about \d+\.\d GiB of 78\.1 GiB at the peak", said.out + said.err)
    assert "another process holds the rest" in said.out + said.err


def test_nothing_is_refused_on_the_cpu(capsys):
    config = load_preset("tiny")
    small = Machine("cpu", Card("RAM", 700 << 20))
    plan = make_plan(config, small)
    assert plan.verdict in (TIGHT, TOO_LARGE)
    check.check_memory(config, small)
    said = capsys.readouterr()
    assert "warning: trainer: RAM" in said.out + said.err


def test_a_cpu_with_enough_memory_says_nothing(capsys):
    check.check_memory(load_preset("tiny"), Machine("cpu", Card("RAM", 16 * GIB)))
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_models_that_are_not_known_are_not_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    config = changed("tiny", model={"path": str(tmp_path)})
    check.check_memory(config, SMALL_GPU)
    said = capsys.readouterr()
    assert "the memory of this run was not predicted" in said.out + said.err
