"""Tests of the thread pool: concurrent callers, forks, and no second OpenMP runtime."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from paw_fast import kernels as K
from paw_fast.kernels import native


def test_concurrent_callers(isa):
    cases = [(torch.randn(40, 3000 + i), torch.randint(0, 3000, (40,))) for i in range(8)]
    want = [K.token_logprobs(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda case: K.token_logprobs(*case), cases * 5), want * 5, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


FORK = """
import os, torch
from paw_fast import kernels as K
torch.set_num_threads(3)
logits, targets = torch.randn(64, 5000), torch.randint(0, 5000, (64,))
want = K.token_logprobs(logits, targets)
child = os.fork()
if child == 0:
    same = all(torch.equal(a, b) for a, b in zip(K.token_logprobs(logits, targets), want))
    os._exit(0 if same else 7)
assert os.waitpid(child, 0)[1] == 0
K.token_logprobs(logits, targets)
"""


def test_a_forked_child_starts_a_new_pool():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_extension_links_neither_openmp_nor_torch():
    binary = Path(native._native.__file__).read_bytes()
    for name in (b"libgomp", b"libomp", b"libiomp", b"libtorch", b"libc10"):
        assert name not in binary
