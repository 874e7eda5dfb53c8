"""Records which passages earlier steps have shown, to measure the world model's error on new passages separately.

A passage that was retrieved before may be memorized; only the error on new passages shows what the model predicts. A
run keeps the ids in RUN/passages.jsonl, one line per step: {"step": 3, "new": [ids first shown in it]}.

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
    """The passages shown so far.

    path: the file with their ids. resume_step: the step from which a run is resumed: the passages of steps up to it are
    read from the file; None for a new run, which overwrites the file.
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
        """Records the passages that a step has shown. Raises `UserError` if they cannot be written."""
        new = [one for one in dict.fromkeys(passages) if one not in self._seen]
        self._seen.update(new)
        if new and self._path is not None:
            with user_errors("write the passages", self._path), open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": step, "new": new}) + "\n")

    def label(self, batch: RolloutBatch) -> list[np.ndarray] | None:
        """Returns an int8 array of NO_PASSAGE, REPEATED and NEW over the tokens of each of the S sequences; None if no
        observation contains a passage."""
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
    """Returns the distinct ids of the passages in the observations of trajectories, in order."""
    return list(dict.fromkeys(name for t in trajectories for x in t.transitions for _, _, name in x.passages))
