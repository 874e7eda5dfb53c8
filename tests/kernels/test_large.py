"""Tests with more than 2^31 logits, and of the memory use of the process. Slow, and needs gigabytes of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paw_fast import kernels as K

pytestmark = pytest.mark.slow
VOCAB, BLOCK = 1 << 16, 1 << 9


@pytest.fixture
def many_rows():
    """2^31 + 2^25 logits in bf16 (4.4 GB): 512 rows, repeated."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) >> 20
    if available < 7:
        pytest.skip(f"needs 7 GB of free memory, there are {available}")
    block = torch.randn(BLOCK, VOCAB).bfloat16()
    return block, block.repeat(65, 1)


def test_more_than_two_to_the_31_logits(many_rows):
    block, logits = many_rows
    assert logits.numel() > 2**31
    targets = torch.randint(0, VOCAB, (BLOCK,))
    rows = K.LossRows(
        targets, 1 + torch.arange(BLOCK).remainder(2).to(torch.uint8), torch.ones(BLOCK), torch.full((BLOCK,), -11.0),
        torch.randn(BLOCK),
    )  # fmt: skip
    every = K.LossRows(
        *(getattr(rows, f).repeat(65) for f in ("targets", "kinds", "weights", "old_logprobs", "advantages"))
    )
    for got, want in zip(K.token_logprobs(logits, every.targets), K.token_logprobs(block, targets), strict=True):
        assert torch.equal(got.view(65, BLOCK), want.expand(65, BLOCK))
    want = K.paw_loss(block, rows, K.LossSettings())
    got = K.paw_loss(logits, every, K.LossSettings())
    assert torch.equal(got.losses.view(65, BLOCK), want.losses.expand(65, BLOCK))
    for i in range(65):
        assert torch.equal(logits[i * BLOCK : (i + 1) * BLOCK], block)


MEASURE = """
import torch
from pathlib import Path
from paw_fast import kernels as K

def kilobytes(name):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name + ":"))

def extra(call):
    call(8)  # threads, workspaces
    inputs = call.inputs()
    Path("/proc/self/clear_refs").write_text("5")  # resets the maximum
    before = kilobytes("VmRSS")
    call.run(*inputs)
    return (kilobytes("VmHWM") - before) << 10

def rows(n):
    return K.LossRows(torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.uint8), torch.ones(n),
                      torch.zeros(n), torch.ones(n))

class Loss:
    def __call__(self, n): self.run(torch.randn(n, 151936))
    def inputs(self): return (torch.randn(512, 151936),)
    def run(self, x): K.paw_loss(x, rows(len(x)), K.LossSettings())

class Linear:
    def __call__(self, n): self.run(torch.randn(n, 64), torch.randn(50000, 64))
    def inputs(self): return torch.randn(2048, 64), torch.randn(50000, 64)
    def run(self, x, w):
        K.linear_paw_loss(x.requires_grad_(), w.requires_grad_(), rows(len(x)), K.LossSettings(), chunk_bytes=16 << 20
        ).loss.backward()

print(extra(Loss()), extra(Linear()))
"""


def test_memory_use_of_the_process():
    """paw_loss: less than 1 % of 311 MB of logits. linear_paw_loss: a chunk of 16 MB and the gradients, not the 410 MB
    of logits."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    loss, linear = (int(x) for x in done.stdout.split())
    assert loss < 0.01 * 512 * 151936 * 4
    gradients = (2048 * 64 + 50000 * 64) * 4
    assert linear < (16 << 20) + gradients + (4 << 20)
