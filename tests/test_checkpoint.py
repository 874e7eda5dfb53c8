"""Checkpoints: bit-exact resuming, and what a full disk, a missing permission, a kill or a flipped bit do."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paw_fast.checkpoint import (
    capture_rng_states,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune,
    restore_optimizer,
    restore_rng_states,
    save_checkpoint,
    verify_checkpoint,
)
from paw_fast.types import UserError


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        attention_dropout=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<unk>", "<eos>", "go", "to", "shelf", "1"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


class Run:
    """A training loop that draws from every generator, small enough to compare all of its state."""

    def __init__(self, model: torch.nn.Module):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            ids = torch.randint(0, 40, (2, 6)) + random.randrange(2) * 0 + int(np.random.randint(1))
            ids[0, 0] = random.randrange(40)
            ids[1, 0] = int(np.random.randint(40))
            loss = self.model(input_ids=ids, labels=ids).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def save(self, run_dir: Path, step: int, **extra: object) -> Path:
        return save_checkpoint(
            run_dir, step, model=self.model, tokenizer=tiny_tokenizer(), optimizer=self.optimizer,
            scheduler=self.scheduler, extra=extra,
        )  # fmt: skip


def seed_all() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A run with checkpoints of the steps 10, 20 and 30."""
    run = Run(tiny_model())
    for step in (10, 20, 30):
        run.train(1)
        run.save(tmp_path, step, counter=step)
    return tmp_path


def test_resuming_gives_the_same_bits_as_going_on(tmp_path):
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


def test_an_optimizer_of_another_shape_is_a_user_error(saved):
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"optimizer state in .* does not fit this run"):
        load_checkpoint(saved).restore(optimizer=other)


def test_a_checkpoint_without_optimizer_cannot_be_resumed(tmp_path):
    save_checkpoint(tmp_path, 0, model=tiny_model())
    with pytest.raises(UserError, match="holds no optimizer state"):
        load_checkpoint(tmp_path).restore(optimizer=Run(tiny_model()).optimizer)


def test_extra_must_be_json(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, model=tiny_model(), extra={"bad": object()})
    assert not (tmp_path / "checkpoints").exists()


def test_find_prefers_the_newest_and_takes_a_folder_as_it_is(saved):
    root = saved / "checkpoints"
    assert find_checkpoint(saved) == find_checkpoint(root) == root / "step_000030"
    assert find_checkpoint(root / "step_000010") == root / "step_000010"
    assert find_checkpoint(saved / "nowhere") is None
    (root / ".tmp-step_000040").mkdir()
    (root / "step_notes").mkdir()
    assert find_checkpoint(saved) == root / "step_000030"


def test_steps_beyond_six_digits_sort_by_number(tmp_path):
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
def test_damage_is_named_with_an_intact_older_one(saved, damage, words):
    damage(saved / "checkpoints" / "step_000030")
    flip(saved / "checkpoints" / "step_000020" / "state.json")
    with pytest.raises(UserError) as caught:
        load_checkpoint(saved)
    message = str(caught.value)
    assert words in message
    assert "step_000030" in message
    assert "delete that folder to go on from step_000010, which is intact" in message
    assert "\n" not in message


def test_damage_with_nothing_older(tmp_path):
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


# --------------------------------------------------------------- a failing machine, in processes of their own

HEAD = """
import os, resource, signal, sys
sys.path.insert(0, {here!r})
from test_checkpoint import Run, tiny_model
from pathlib import Path
import paw_fast.checkpoint as checkpoint
from paw_fast.files import exit_code_of
run = Run(tiny_model())
folder = Path({folder!r})
"""


def script(folder: Path, body: str) -> list[str]:
    return [sys.executable, "-c", HEAD.format(here=str(Path(__file__).parent), folder=str(folder)) + body]


def run_script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(script(folder, body), capture_output=True, text=True, timeout=300, check=False)


def assert_only_intact(folder: Path, steps: list[int]) -> None:
    """The folder holds these steps, each intact, and nothing else."""
    assert sorted(one.name for one in (folder / "checkpoints").iterdir()) == [f"step_{step:06d}" for step in steps]
    for path in list_checkpoints(folder):
        verify_checkpoint(path)


def test_a_file_that_cannot_be_written_whole(tmp_path):
    """Limits below the size of the tokenizer, the model (11 kB) or the optimizer's state (28 kB)."""
    result = run_script(
        tmp_path,
        """
run.train(1)
run.save(folder, 1)
codes = []
for limit in (3_000, 13_000, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    codes.append(exit_code_of(lambda: run.save(folder, 2) and 0))
print(codes)
""",
    )
    assert result.stdout == "[2, 2, 2]\n", result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "cannot save a checkpoint" in line
        assert "ulimit -f" in line
        assert "older checkpoints are intact" in line
    assert_only_intact(tmp_path, [1])


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    run = Run(tiny_model())
    run.train(1)
    saved_steps = []

    def fill():
        for step in range(100):
            run.save(small_disk, step)
            saved_steps.append(step)

    with pytest.raises(UserError) as caught:
        fill()
    assert "the disk is full" in str(caught.value)
    assert "older checkpoints are intact" in str(caught.value)
    assert saved_steps
    assert_only_intact(small_disk, saved_steps)
    prune(small_disk, 1)
    run.save(small_disk, 100)
    assert load_checkpoint(small_disk).step == 100


def test_a_read_only_disk(small_disk):
    run = Run(tiny_model())
    run.save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="the file system is read-only"):
        run.save(small_disk, 2)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run.save(small_disk, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot remove an old checkpoint"):
        prune(small_disk, 1)
    assert_only_intact(small_disk, [1, 2])


def test_no_permission(tmp_path):
    """As a user that may read but not write (root may always write, so root becomes nobody)."""
    Run(tiny_model()).save(tmp_path, 1)
    for path in [tmp_path, *tmp_path.parents][:3]:
        path.chmod(0o755)
    (tmp_path / "checkpoints").chmod(0o555)
    try:
        result = run_script(
            tmp_path,
            """
os.getuid() or os.setuid(65534)
sys.exit(exit_code_of(lambda: run.save(folder, 2) and 0))
""",
        )
    finally:
        (tmp_path / "checkpoints").chmod(0o755)
    assert result.returncode == 2, result.stderr
    assert "no permission to write there" in result.stderr
    assert result.stderr.count("\n") == 1
    assert_only_intact(tmp_path, [1])


def test_a_kill_at_each_stage(tmp_path):
    """Processes die by SIGKILL after the model, after the tensors, after the manifest and before the rename."""
    body = """
name = {!r}
run.save(folder, 1)
original = getattr(checkpoint, name)
def dies(*args):
    if name != "_publish":
        original(*args)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(checkpoint, name, dies)
run.save(folder, 2)
"""
    stages = ("_save_model", "_save_torch", "_seal", "_publish")
    running = {name: subprocess.Popen(script(tmp_path / name, body.format(name))) for name in stages}
    for name, process in running.items():
        folder = tmp_path / name
        assert process.wait(timeout=300) == -signal.SIGKILL
        assert sorted(os.listdir(folder / "checkpoints")) == [".tmp-step_000002", "step_000001"]
        assert load_checkpoint(folder).step == 1
        Run(tiny_model()).save(folder, 2)
        assert_only_intact(folder, [1, 2])


def test_kills_at_random_moments(tmp_path):
    """Saving and pruning in a loop, killed from outside: whatever is there afterwards is intact."""
    body = """
step = 1 + max([int(p.name[5:]) for p in checkpoint.list_checkpoints(folder)], default=0)
while True:
    run.save(folder, step, counter=step)
    checkpoint.prune(folder, 2)
    step += 1
    print(step, flush=True)
"""
    chance = random.Random(4)
    for _ in range(2):
        with subprocess.Popen(script(tmp_path, body), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            time.sleep(chance.random() / 2)
            process.kill()
        found = list_checkpoints(tmp_path)
        assert 1 <= len(found) <= 3
        for path in found:
            verify_checkpoint(path)
        checkpoint = load_checkpoint(tmp_path)
        assert checkpoint.extra == {"counter": checkpoint.step}


def test_the_manifest_lists_every_file(saved):
    folder = saved / "checkpoints" / "step_000020"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {one.name for one in folder.iterdir()} - {"manifest.json"}
