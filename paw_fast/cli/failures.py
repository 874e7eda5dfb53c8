"""What happens when a run fails: its folder becomes as it was before, and lack of memory is told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.runs import console
from paw_fast.runs.memory_errors import describe_out_of_memory
from paw_fast.runs.rollback import Before, restore


@contextlib.contextmanager
def clean_up(run_dir: Path, before: Before) -> Iterator[None]:
    """Removes what a failed run wrote, unless it has results or the error names a file of it; these stay, and how to
    go on is said."""
    try:
        yield
    except Exception as error:
        if str(run_dir) not in str(error) and not restore(run_dir, before) and run_dir.is_dir():
            console.say(f"{run_dir} keeps what was done: continue with --resume {run_dir}")
        raise


@contextlib.contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Says in one line which settings need less memory, if it runs out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = describe_out_of_memory(error)
        if what is None:
            raise
        checkpointing = "" if config.model.gradient_checkpointing else "add --model.gradient-checkpointing, "
        raise UserError(
            f"{what}: halve --rollout.slots (now {config.rollout.slots}) or --token-budget (now "
            f"{config.batch_tokens}), {checkpointing}or take a smaller --model"
        ) from error
