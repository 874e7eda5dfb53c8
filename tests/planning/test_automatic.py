"""Which settings are chosen on which machine: described machines, so that no GPU is needed."""

import dataclasses

import pytest

from paw_fast.cli.start import start_run
from paw_fast.config import TrainConfig, load_preset, load_toml, to_toml, validate
from paw_fast.errors import UserError
from paw_fast.kernels.linear_paw_loss import CUDA_CHUNK_SHARE
from paw_fast.planning import automatic
from paw_fast.planning.automatic import LOGITS_SHARE, MEMORY_SHARE, choose
from paw_fast.planning.machine import GIB, MIB, Card, Machine, parse_gpus
from paw_fast.planning.memory import FITS, OPTIMIZER, ROLLOUT, STATISTICS, UPDATE
from paw_fast.planning.plan import make_plan
from paw_fast.runs.run_dir import write_config

CPU, H100 = Machine("cpu", Card("RAM", 16 * GIB)), parse_gpus("1xH100-80GB")
NO_VLLM = "vLLM is not installed"
SEPARATE = {"placement": "process", "gpus": "1", "pipeline": {"max_staleness": 1}}


def config(preset="alfworld-qwen2.5-1.5b", *, algo=None, pipeline=None, model=None, top=None, **rollout) -> TrainConfig:
    base = load_preset(preset, "alfworld")
    changed = {"rollout": rollout, "pipeline": pipeline or {}, "algo": algo or {}, "model": model or {}}
    parts = {part: dataclasses.replace(getattr(base, part), **values) for part, values in changed.items()}
    return dataclasses.replace(base, **parts, **(top or {}))


def made(choices):
    return {one.option: one.value for one in choices.made}


@pytest.mark.parametrize(
    ("machine", "problem", "settings", "expected"),
    [
        (CPU, None, {}, ("transformers", "sync", False)),
        (CPU, None, {"preset": "tiny"}, ("transformers", "sync", False)),
        (CPU, None, {"engine": "vllm"}, ("vllm", "sync", False)),
        (H100, NO_VLLM, {}, ("transformers", "stream", False)),
        (H100, None, {}, ("vllm", "stream", True)),
        (H100, None, {"preset": "tiny"}, ("vllm", "sync", True)),
        (H100, None, {"placement": "process"}, ("vllm", "stream", True)),
        (H100, None, {"sleep": "off"}, ("vllm", "stream", False)),
        (H100, None, {"placement": "process", "gpus": "1"}, ("vllm", "stream", False)),
        (H100, None, {"placement": "process", "pipeline": {"max_staleness": 1}}, ("vllm", "stream", True)),
        (H100, None, {"placement": "process", "pipeline": {"name": "async"}}, ("vllm", "async", False)),
        (H100, None, SEPARATE, ("vllm", "async", False)),
        (H100, NO_VLLM, SEPARATE, ("transformers", "async", False)),
        (H100, None, SEPARATE | {"pipeline": {"max_staleness": 0}}, ("vllm", "stream", False)),
        (H100, None, SEPARATE | {"algo": {"dynamic_sampling": True}}, ("vllm", "stream", False)),
        (H100, None, {"engine": "transformers", "pipeline": {"name": "sync"}}, ("transformers", "sync", False)),
    ],
)
def test_engine_pipeline_and_sleep(machine, problem, settings, expected):
    asked = config(**settings)
    validate(asked)
    done = choose(asked, machine, problem).config
    sleeps = machine.kind == "cuda" and done.vllm_sleeps
    assert (done.rollout.engine, done.pipeline.name, sleeps) == expected
    validate(done)  # no choice contradicts the other settings
    again = choose(done, machine, problem)
    assert again.config == done
    assert set(made(again)) <= {"--rollout.sleep"}  # which is decided by the others and stays open


@pytest.mark.parametrize(
    ("gpu", "problem", "preset", "tokens", "logits", "checkpointing", "share"),
    [
        ("1xA100-40GB", None, "alfworld-qwen2.5-1.5b", 16384, 260, True, 0.2),
        ("1xH100-80GB", NO_VLLM, "alfworld-qwen2.5-1.5b", 8192, 2078, False, None),
        ("1xH100-80GB", None, "alfworld-qwen2.5-1.5b", 8192, 2078, False, 0.55),
        ("1xH100-80GB", None, "alfworld-qwen2.5-3b", 32768, 2078, True, 0.15),
        ("1xH200", None, "alfworld-qwen2.5-1.5b", 16384, 3663, False, 0.65),
        ("1xB200", None, "alfworld-qwen2.5-1.5b", 32768, 4671, False, 0.7),
        ("1xB200", None, "alfworld-qwen2.5-7b", 32768, 4671, True, 0.15),
    ],
)
def test_memory_settings_by_card(gpu, problem, preset, tokens, logits, checkpointing, share):
    """Larger cards get larger micro-batches and no recomputation; all fit by the prediction, with a margin."""
    machine = parse_gpus(gpu)
    choices = choose(config(preset), machine, problem)
    done = choices.config
    found = (done.token_budget, done.logits_budget_mb, done.model.gradient_checkpointing, done.rollout.memory_share)
    assert found == (tokens, logits, checkpointing, share)
    assert choices.fits
    plan = make_plan(done, machine)
    assert plan.verdict == FITS
    assert plan.trainer.peak <= MEMORY_SHARE * machine.card.memory


def test_the_next_faster_settings_would_not_fit():
    done = choose(config(), H100).config
    larger = dataclasses.replace(done, token_budget=2 * done.token_budget)
    assert make_plan(larger, H100).trainer.peak > MEMORY_SHARE * H100.card.memory
    rollout = dataclasses.replace(done.rollout, memory_share=done.rollout.memory_share + automatic.SHARE_STEP)
    more = dataclasses.replace(done, rollout=rollout)
    assert make_plan(more, H100).trainer.peak > MEMORY_SHARE * H100.card.memory


def test_given_values_are_kept_and_the_others_fitted_to_them():
    given = config(model={"gradient_checkpointing": True}, memory_share=0.3, top={"token_budget": 5000})
    choices = choose(given, H100)
    assert choices.config.token_budget == 5000
    assert choices.config.rollout.memory_share == 0.3
    assert choices.config.model.gradient_checkpointing is True
    assert set(made(choices)) == {"--rollout.engine", "--pipeline", "--rollout.sleep", "--logits-budget-mb"}


def test_vllm_that_sleeps_is_in_memory_only_while_it_generates():
    done = choose(config(), H100).config
    parts = {part.name: part for part in make_plan(done, H100).trainer.parts}
    assert parts["vLLM"].phases == (ROLLOUT, STATISTICS)
    assert parts["vLLM asleep"].phases == (UPDATE, OPTIMIZER)
    awake = choose(config(sleep="off"), H100).config
    assert awake.rollout.memory_share < done.rollout.memory_share
    assert len({part.name: part for part in make_plan(awake, H100).trainer.parts}["vLLM"].phases) == 4
    assert make_plan(awake, H100).verdict == FITS


def test_several_replicas_share_what_the_trainer_leaves():
    one, two = (choose(config(placement="process", replicas=n), H100).config for n in (1, 2))
    assert 0 < two.rollout.memory_share <= one.rollout.memory_share / 2
    assert make_plan(two, H100).verdict == FITS


def test_vllm_that_does_not_fit_beside_the_trainer_is_not_taken():
    asked = config(model={"path": "Qwen/Qwen2.5-0.5B"}, slots=2)
    engines = [
        choose(asked, Machine("cuda", Card("card", int(gib * GIB)))).config.rollout.engine
        for gib in (13, 13.5, 14.5, 24)
    ]
    assert engines == ["transformers", "transformers", "vllm", "vllm"]
    reason = choose(asked, Machine("cuda", Card("card", 13 * GIB))).made[0].reason
    assert reason == "vLLM does not fit beside the trainer on this GPU"
    given = choose(
        config(model={"path": "Qwen/Qwen2.5-0.5B"}, slots=2, engine="vllm"), Machine("cuda", Card("card", 13 * GIB))
    )
    assert given.config.rollout.engine == "vllm"
    assert given.fits is False


def test_models_that_cannot_be_predicted_keep_the_constants(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    choices = choose(config(model={"path": str(tmp_path)}), H100)
    done = choices.config
    assert (done.token_budget, done.logits_budget_mb, done.rollout.memory_share) == (16384, 512, 0.4)
    assert choices.fits is None
    assert "memory was not predicted" in " ".join(choices.notes)


def test_on_the_cpu_the_constants_are_used():
    done = choose(TrainConfig(), CPU).config
    assert (done.token_budget, done.logits_budget_mb, done.model.gradient_checkpointing) == (16384, 512, False)
    assert done.rollout.memory_share is None
    still_open = TrainConfig()
    assert (still_open.batch_tokens, still_open.logits_bytes) == (16384, 512 * MIB)
    assert still_open.pipeline.staleness_bound == 1


def test_the_line_says_what_and_the_notes_say_why():
    choices = choose(config(), H100, NO_VLLM)
    assert choices.line.startswith("settings for H100-80GB (78.1 GiB): --rollout.engine transformers (vLLM is not")
    assert "--token-budget 8192" in choices.line
    assert "\n" not in choices.line
    assert len(choices.notes) == len(choices.made) == 5
    assert "--model.no-gradient-checkpointing: predicted peak 60.5 of 78.1 GiB" in choices.notes[-1]
    assert choose(choices.config, H100, NO_VLLM).line == ""


@pytest.mark.parametrize(
    ("machine", "settings", "said"),
    [
        (CPU, {"engine": "vllm", "sleep": "on"}, "sleep mode needs CUDA"),
        (H100, {"engine": "transformers", "sleep": "on"}, "only vLLM can sleep"),
        (H100, {"engine": "vllm", "sleep": "on", "placement": "process", "gpus": "1"}, "GPUs of their own"),
        (
            H100,
            {"engine": "vllm", "sleep": "on", "placement": "process", "pipeline": {"name": "async"}},
            "episodes are generated during updates",
        ),
    ],
)
def test_sleep_that_is_impossible_is_refused_by_name(machine, settings, said):
    with pytest.raises(UserError, match=f"--rollout.sleep on: .*{said}"):
        choose(config(**settings), machine)


def test_on_the_cpu_a_vllm_run_is_told_that_it_does_not_sleep():
    choices = choose(config(engine="vllm"), CPU)
    assert "--rollout.sleep off: vLLM's sleep mode needs CUDA" in " ".join(choices.notes)


def test_tensor_parallel_without_vllm_is_refused_with_the_reason():
    asked = config(placement="process", tensor_parallel=2)
    validate(asked)
    with pytest.raises(UserError, match=r"tensor-parallel is 2.*vLLM is not installed"):
        choose(asked, H100, NO_VLLM)
    assert choose(asked, H100).config.rollout.engine == "vllm"


def test_the_share_of_logits_is_that_of_the_kernel():
    assert LOGITS_SHARE == CUDA_CHUNK_SHARE


def test_config_toml_keeps_the_values_and_the_reasons(tmp_path):
    choices = choose(config(), H100)
    write_config(tmp_path, choices.config, choices.notes)
    lines = (tmp_path / "config.toml").read_text().splitlines()
    assert lines[0].startswith("# chosen for H100-80GB (78.1 GiB): --rollout.engine vllm: ")
    assert load_toml(tmp_path / "config.toml") == choices.config
    write_config(tmp_path, dataclasses.replace(choices.config, steps=7))  # as a resume does
    assert (tmp_path / "config.toml").read_text().splitlines()[: len(choices.notes)] == lines[: len(choices.notes)]
    assert choose(load_toml(tmp_path / "config.toml"), parse_gpus("1x24GB")).config.token_budget == 8192


def test_open_settings_survive_toml(tmp_path):
    (tmp_path / "a.toml").write_text(to_toml(config()))
    assert load_toml(tmp_path / "a.toml") == config()


def test_settings_are_chosen_before_the_memory_is_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = Machine("cuda", Card("small GPU", 2 * GIB))
    monkeypatch.setattr("paw_fast.cli.start.this_machine", lambda device: small)
    monkeypatch.setattr("paw_fast.planning.check.this_machine", lambda device: small)
    with pytest.raises(UserError, match="does not fit"):
        start_run(config())
    said = capsys.readouterr()
    assert "settings for small GPU (2.0 GiB): --rollout.engine" in " ".join((said.out + said.err).split())
    assert list(tmp_path.iterdir()) == []
