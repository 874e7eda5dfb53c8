"""Measures the loss on text that is of no environment: what a policy forgets, or learns, beside its task."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import predict
from paw_fast.models.policy import Policy
from paw_fast.runs import stop_signals
from paw_fast.types import Span, TokenSequence

WINDOW = 512
"""Tokens that are read together; each window begins without context."""
MAX_TOKENS = 1 << 14
"""Only so many tokens of a text are measured."""
_MAX_BYTES = 1 << 24


def read_text(path: Path | None) -> str:
    """The text of a file; None: the page of prose that comes with the package.

    Raises `UserError` for a file that cannot be read, is larger than 16 MiB, is not UTF-8 or is empty.
    """
    if path is None:
        return (resources.files("paw_fast.evaluation") / "prose.txt").read_text(encoding="utf-8")
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise UserError(f"--eval-text {path}: not a file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"--eval-text {path}: larger than {_MAX_BYTES >> 20} MiB: give a page or a few")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--eval-text {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--eval-text {path}: not a text file (byte {error.start} is not UTF-8)") from None
    if not text.strip():
        raise UserError(f"--eval-text {path}: the file is empty")
    return text


def measure_text_loss(
    policy: Policy, text: str, *, token_budget: int, chunk: int, window: int = WINDOW,
    check: Callable[[], object] = stop_signals.check,
) -> float:  # fmt: skip
    """Mean negative log-prob of the text's tokens at temperature 1, in nats per token.

    The text is encoded without special tokens and cut into windows of `window` tokens, whose first token is read and
    not predicted. `check` is called before each batch; it may raise to stop the measurement. The loss depends on the
    tokenizer: compare it for one model before and after training only. Raises `UserError` for a text of a single token.
    """
    ids = policy.tokenizer.encode(text, add_special_tokens=False, verbose=False)[:MAX_TOKENS]
    parts = [tuple(ids[start : start + window]) for start in range(0, len(ids), window)]
    sequences = [
        TokenSequence(number, part, (Span(number, (1, 1), tuple(range(1, len(part))), ()),))
        for number, part in enumerate(parts) if len(part) > 1
    ]  # fmt: skip
    if not sequences:
        raise UserError(f"--eval-text: the text has {len(ids)} tokens, expected 2 or more")
    tables = [packing.observation_rows(sequence, [1.0]) for sequence in sequences]
    total, count = 0.0, 0
    for members in packing.plan_micro_batches([packing.input_length(table) for table in tables], token_budget):
        check()
        logprobs, _ = predict(policy, packing.pack(sequences, tables, members, policy.device), chunk)
        total -= float(np.sum(logprobs.double().numpy()))
        count += len(logprobs)
    return total / count


def text_loss(
    policy: Policy, config: TrainConfig, chunk: int, text: str | None = None,
    check: Callable[[], object] = stop_signals.check,
) -> float:  # fmt: skip
    """The loss on a run's text (`--eval-text`), or on another one. Raises `UserError` for a file that is unusable."""
    text = read_text(config.eval_text) if text is None else text
    window = min(WINDOW, config.rollout.max_sequence_tokens)
    return measure_text_loss(policy, text, token_budget=config.batch_tokens, chunk=chunk, window=window, check=check)
