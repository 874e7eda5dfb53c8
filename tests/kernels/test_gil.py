"""Tests that the kernels release the GIL while they compute."""

import sys
import threading
import time

import torch

from paw_fast import kernels
from paw_fast.kernels import native


def test_another_thread_runs_while_a_kernel_computes(monkeypatch):
    """With an infinite switch interval, the other thread can run only if the kernel releases the lock."""
    extension = native._native
    inside = stop = seen = False

    class Watched:
        def __getattr__(self, name):
            found = getattr(extension, name)
            if not callable(found):
                return found

            def run(*args):
                nonlocal inside
                inside = True
                result = found(*args)
                inside = False
                return result

            return run

    def watch():
        nonlocal seen
        while not stop:
            seen = seen or inside
            time.sleep(0)

    logits, targets = torch.randn(256, 20_000), torch.zeros(256, dtype=torch.int64)
    monkeypatch.setattr(native, "_native", Watched())
    interval = sys.getswitchinterval()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sys.setswitchinterval(1000)
        for _ in range(1000):  # until the other thread was woken during a call, even on a busy machine
            kernels.token_logprobs(logits, targets)
            if seen:
                break
    finally:
        sys.setswitchinterval(interval)
        stop = True
        watcher.join(60)
    assert seen
