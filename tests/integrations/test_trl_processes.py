"""PaW in TRL on two processes (gloo on a CPU): selection, denominators and gradients are those of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs the extra trl")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]

from torch.nn import functional  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def padded(parts, name, left):
    """The ranks' [B, n] tensors as one, padded as TRL pads them."""
    width = max(part[name].shape[1] for part in parts)
    fill = 1 if name == "tool_mask" else 0
    pads = [(width - p[name].shape[1], 0) if left else (0, width - p[name].shape[1]) for p in parts]
    return torch.cat([functional.pad(p[name], pad, value=fill) for p, pad in zip(parts, pads, strict=True)])


def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import trl_grpo
    from datasets import Dataset
    from trl import GRPOConfig

    from paw_fast.integrations.trl import PawConfig, PawGRPOTrainer, transitions

    model, tokenizer = trl_grpo.build_tiny(trl_grpo.Corridor)
    path = tmp_path / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    script = Path(__file__).parent / "trl_rank.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "localhost:0", str(script), str(path),
               str(ROOT / "examples"), str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    parts = [one["inputs"] for one in ranks]

    question = {"prompt": [{"role": "user", "content": "?"}]}
    args = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, report_to="none", use_cpu=True,
        bf16=False, gradient_checkpointing=False, max_completion_length=160,
    )  # fmt: skip
    trainer = PawGRPOTrainer(
        str(path), args=args, train_dataset=Dataset.from_list([question]), environment_factory=trl_grpo.Corridor,
        paw=PawConfig(alpha=0.5, deduplicate=True),
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    joint = {name: padded(parts, name, left=True) for name in ("prompt_ids", "prompt_mask")}
    joint |= {name: padded(parts, name, left=False) for name in ("completion_ids", "completion_mask", "tool_mask")}
    joint["advantages"] = torch.cat([p["advantages"] for p in parts])
    joint["num_items_in_batch"] = parts[0]["num_items_in_batch"]
    assert torch.equal(ranks[0]["returns"], ranks[1]["returns"])
    trainer._returns = ranks[0]["returns"]
    trainer._observation_text = ranks[0]["text"] | ranks[1]["text"]
    joint |= trainer._world_model_inputs(joint, trainer._entropies(joint))
    assert torch.equal(joint["wm_mask"], padded(parts, "wm_mask", left=False))
    assert all(part["wm_mask"].any() for part in parts)
    assert joint["wm_lambdas"].tolist() == [1.0] * 4 + [0.5] * 4
    assert torch.equal(joint["wm_lambdas"], torch.cat([p["wm_lambdas"] for p in parts]))
    assert transitions.find_sequences(joint, {})

    trainer._metrics["train"].clear()
    loss = trainer._compute_loss(trainer.model, joint)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(ranks[0]["loss"] + ranks[1]["loss"]) / 2, abs=1e-5)
    assert trainer._metrics["train"]["wm/loss"] == pytest.approx(ranks[0]["wm"], abs=1e-5)
    expected = {name: p.grad for name, p in trainer.model.named_parameters()}
    largest = max(float(g.abs().max()) for g in expected.values())
    for one in ranks:
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * largest)
