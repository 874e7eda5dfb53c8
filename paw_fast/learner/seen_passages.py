"""Remembers which passages earlier steps have shown, so that the world model's error on new ones is known.

A retrieved passage that comes again can be recited; only the error on one that was never shown tells what the model
predicts. A run keeps the ids in RUN/passages.jsonl, one line per step: {"step": 3, "new": [ids first shown in it]}.

S sequences, M transitions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors, write_text
from paw_fast.types import RolloutBatch, Trajectory

NO_PASSAGE, REPEATED, NEW = 0, 1, 2
"""What an observation token is part of."""


class SeenPassages:
    """The passages that were shown so far.

    path: file that keeps them. resume_step: a resumed run reads those of steps up to this one from the file; else
    None, and an existing file is overwritten.
    """

    def __init__(self, path: Path | None = None, resume_step: int | None = None):
        self._path = path
        self._seen: set[str] = set()
        if path is None or not path.exists():
            return
        kept = []
        if resume_step is not None:
            with user_errors("read the passages", path):
                lines = path.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    step, new = int(row["step"]), list(map(str, row["new"]))
                except (ValueError, KeyError, TypeError):
                    if number == len(lines):  # cut short by a kill
                        break
                    raise UserError(f"{path}:{number}: not a line of passages: remove the line") from None
                if step <= resume_step:
                    kept.append(line)
                    self._seen.update(new)
        write_text(path, "".join(line + "\n" for line in kept))

    def add(self, step: int, passages: Iterable[str]) -> None:
        """Remembers the passages that a step has shown. Raises `UserError` when they cannot be written."""
        new = [one for one in dict.fromkeys(passages) if one not in self._seen]
        self._seen.update(new)
        if new and self._path is not None:
            with user_errors("write the passages", self._path), open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": step, "new": new}) + "\n")

    def label(self, batch: RolloutBatch) -> list[np.ndarray] | None:
        """For each of the S sequences an int8 array [its tokens] of NO_PASSAGE, REPEATED and NEW; None where no
        observation holds a passage."""
        transitions = batch.transitions
        if not any(t.passages for t in transitions):
            return None
        labels = []
        for sequence in batch.sequences:
            of_tokens = np.zeros(len(sequence.ids), np.int8)
            for span in sequence.spans:
                for start, end, name in transitions[span.transition].passages:
                    of_tokens[span.action[1] + start : span.action[1] + end] = REPEATED if name in self._seen else NEW
            labels.append(of_tokens)
        return labels


def shown_passages(trajectories: Iterable[Trajectory]) -> list[str]:
    """The ids of all passages in the trajectories' observations, each once, in order."""
    return list(dict.fromkeys(name for t in trajectories for x in t.transitions for _, _, name in x.passages))
