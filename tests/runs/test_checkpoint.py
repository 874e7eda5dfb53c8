"""Tests of checkpoints: bit-exact resuming, their contents, and the errors for damaged and missing files."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_helpers import Run, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from paw_fast.errors import UserError
from paw_fast.runs.checkpoint import (
    capture_rng_states,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    restore_optimizer,
    restore_rng_states,
    save_checkpoint,
    verify_checkpoint,
)
from paw_fast.runs.retention import prune


def seed_all() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A run with checkpoints at steps 10, 20 and 30."""
    run = Run(tiny_model())
    for step in (10, 20, 30):
        run.train(1)
        run.save(tmp_path, step, counter=step)
    return tmp_path


def test_resuming_is_bit_exact(tmp_path):
    seed_all()
    run = Run(tiny_model())
    run.train(3)
    path = run.save(tmp_path, 3, sampler={"epoch": 1, "order": [2, 0, 1]}, policy_version=3)
    assert path == tmp_path / "checkpoints" / "step_000003"
    expected = run.train(4)

    seed_all()
    torch.rand(17), random.random(), np.random.rand()
    checkpoint = load_checkpoint(tmp_path)
    again = Run(AutoModelForCausalLM.from_pretrained(checkpoint.path))
    checkpoint.restore(optimizer=again.optimizer, scheduler=again.scheduler)
    assert checkpoint.step == 3
    assert checkpoint.extra == {"sampler": {"epoch": 1, "order": [2, 0, 1]}, "policy_version": 3}
    assert again.train(4) == expected
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_the_folder_is_in_hugging_face_format(saved):
    path = find_checkpoint(saved)
    assert path is not None
    model = AutoModelForCausalLM.from_pretrained(path)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny_model().parameters())
    assert AutoTokenizer.from_pretrained(path)("go to shelf 1")["input_ids"] == [2, 3, 4, 5]
    names = {one.name for one in path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= names
    modes = {one.stat().st_mode & 0o777 for one in path.iterdir()}
    assert len(modes) == 1


def test_random_states_round_trip():
    seed_all()
    states = capture_rng_states()

    def draw():
        return random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()

    first = draw()
    restore_rng_states(states)
    assert draw() == first


def test_rng_states_of_the_caller_are_kept(tmp_path):
    generator = torch.Generator().manual_seed(5)
    states = {**capture_rng_states(), "sampler": generator.get_state()}
    expected = torch.rand(2, generator=generator)
    save_checkpoint(tmp_path, 1, model=tiny_model(), rng_states=states)
    again = torch.Generator()
    again.set_state(load_checkpoint(tmp_path).rng_states["sampler"])
    assert torch.equal(torch.rand(2, generator=again), expected)


def test_optimizer_state_keeps_its_dtype():
    def make():
        return torch.optim.AdamW([torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))])

    optimizer, fresh = make(), make()
    parameter = optimizer.param_groups[0]["params"][0]
    moments = torch.tensor([1.0000001, 2.0000002, 3.0000005])
    optimizer.state[parameter] = {"step": torch.tensor(2.0), "exp_avg": moments, "exp_avg_sq": moments * moments}
    restore_optimizer(fresh, optimizer.state_dict())
    state = fresh.state[fresh.param_groups[0]["params"][0]]
    assert state["exp_avg"].dtype == torch.float32
    assert torch.equal(state["exp_avg"], moments)
    assert state["exp_avg"] is not moments


def test_an_optimizer_with_other_parameters_is_a_user_error(saved):
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"optimizer state in .* does not fit this run"):
        load_checkpoint(saved).restore(optimizer=other)


def test_a_checkpoint_without_optimizer_cannot_be_resumed(tmp_path):
    save_checkpoint(tmp_path, 0, model=tiny_model())
    with pytest.raises(UserError, match="holds no optimizer state"):
        load_checkpoint(tmp_path).restore(optimizer=Run(tiny_model()).optimizer)


def test_extra_must_be_json_serializable(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, model=tiny_model(), extra={"bad": object()})
    assert not (tmp_path / "checkpoints").exists()


def test_find_checkpoint_takes_the_newest_or_the_given_one(saved):
    root = saved / "checkpoints"
    assert find_checkpoint(saved) == find_checkpoint(root) == root / "step_000030"
    assert find_checkpoint(root / "step_000010") == root / "step_000010"
    assert find_checkpoint(saved / "nowhere") is None
    (root / ".tmp-step_000040").mkdir()
    (root / "step_notes").mkdir()
    assert find_checkpoint(saved) == root / "step_000030"


def test_steps_with_more_than_six_digits_sort_by_number(tmp_path):
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, step, model=tiny_model())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_999999", "step_1000000"]


def test_prune_keeps_the_newest(saved):
    removed = prune(saved, 2)
    assert [path.name for path in removed] == ["step_000010"]
    assert [path.name for path in list_checkpoints(saved)] == ["step_000020", "step_000030"]
    prune(saved, 0)
    assert [path.name for path in list_checkpoints(saved)] == ["step_000030"]
    assert [path.name for path in (saved / "checkpoints").iterdir()] == ["step_000030"]


def test_saving_a_step_again_replaces_it(saved):
    Run(tiny_model()).save(saved, 30, counter="again")
    assert load_checkpoint(saved).extra == {"counter": "again"}
    assert len(list((saved / "checkpoints").iterdir())) == 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: flip(p / "model.safetensors"), "model.safetensors has changed"),
        (lambda p: os.truncate(p / "model.safetensors", 100), "model.safetensors has 100 bytes, expected"),
        (lambda p: (p / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text('{"files": ['), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text('{"schema": 9, "files": {}}'), "its schema is 9"),
        (lambda p: (p / "manifest.json").write_text('{"schema": 1, "files": {}}'), "does not list state.json"),
        (
            lambda p: (p / "manifest.json").write_text('{"schema":1, "files":{"a":5}}'),
            "manifest.json cannot be read",
        ),
        (lambda p: shutil.rmtree(p) or p.mkdir(), "manifest.json is missing"),
    ],
)
def test_damage_is_reported_with_an_intact_older_checkpoint(saved, damage, words):
    damage(saved / "checkpoints" / "step_000030")
    flip(saved / "checkpoints" / "step_000020" / "state.json")
    with pytest.raises(UserError) as caught:
        load_checkpoint(saved)
    message = str(caught.value)
    assert words in message
    assert "step_000030" in message
    assert "delete that folder to resume from step_000010, which is intact" in message
    assert "\n" not in message


def test_damage_without_an_older_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 5, model=tiny_model())
    flip(tmp_path / "checkpoints" / "step_000005" / "rng.pt")
    with pytest.raises(UserError, match="no older checkpoint of this run is intact"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["", "checkpoints/step_000099", "gone"])
def test_no_checkpoint_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=r"no checkpoint in .*: give a run directory"):
        load_checkpoint(tmp_path / name)
    with pytest.raises(UserError):
        verify_checkpoint(tmp_path / "gone")


def test_the_manifest_lists_every_file(saved):
    folder = saved / "checkpoints" / "step_000020"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {one.name for one in folder.iterdir()} - {"manifest.json"}
