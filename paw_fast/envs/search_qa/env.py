"""Runs episodes of search-augmented question answering, as an `Env`.

Commands are `search[query]` and `answer[text]`; prompt templates translate the tags that a policy writes into
them. An answer ends the episode, and so does its last turn, in which only an answer counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.envs.search_qa.datasets import Question
from paw_fast.envs.search_qa.query_batcher import QueryBatcher
from paw_fast.envs.search_qa.retrieval.records import Hit
from paw_fast.envs.search_qa.reward import AnswerScores, normalize, score
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

_COMMAND = re.compile(r"\s*(search|answer)\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)
NOT_UNDERSTOOD = (
    "That was not a valid action. To search, write the query between <search> and </search>; to give the final "
    "answer, write it between <answer> and </answer>. Try again."
)
FORMS = ("search[query]", "answer[text]")
"""What is listed as possible commands."""
NOTHING_FOUND = "No passage matches this query."
_SPLITS = {"train": "train", "unseen": "unseen", "valid_unseen": "unseen", "eval": "unseen"}


def read_command(command: str) -> tuple[str, str] | None:
    """Parses a command into (`search` or `answer`, its text); None for anything else or an empty text.

    >>> read_command("search[ Ada Lovelace ]")
    ('search', 'Ada Lovelace')
    """
    found = _COMMAND.fullmatch(command)
    if found is None or not (text := " ".join(found.group(2).split())):
        return None
    return found.group(1).lower(), text


def show_passages(hits: Sequence[Hit]) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """Returns the observation of a search, and (first character, end, passage id) of every passage in it."""
    text, places = "<information>", []
    for number, hit in enumerate(hits, 1):
        passage = hit.passage
        title = f"(Title: {passage.title})" if passage.title else ""
        piece = f"Doc {number}{title} {passage.text}"
        places.append((len(text), len(text) + len(piece), passage.passage_id or passage.contents))
        text += piece + ("\n" if number < len(hits) else "")
    return text + (NOTHING_FOUND if not hits else "") + "</information>", tuple(places)


def make_task(question: Question, split: str) -> Task:
    """Creates the task of a question."""
    info = {"question": question.text, "golden": question.golden, "supporting": question.supporting}
    key = normalize(question.text) or question.text
    return Task(question.question_id, "search", split, question.kind, info=info, key=key)


class SearchEnv(BaseEnv):
    """Runs one question at a time. `splits` holds the questions of "train" and "unseen", or functions that create them.

    The score is 1 for an answer that matches exactly, else 0; the last step also has the scores em, sub_em and f1.
    `format_reward` is the reward of a wrong answer in a valid format. With `notes` the first observation has the golden
    answers and supporting titles as `notes` for the expert; no prompt shows them.
    """

    name = "search"

    def __init__(
        self, splits: Mapping[str, Callable[[], Sequence[Question]]], batcher: QueryBatcher, max_steps: int = 5,
        format_reward: float = 0.0, notes: bool = False, _tasks: dict[str, tuple[Task, ...]] | None = None,
    ):  # fmt: skip
        if max_steps < 1:
            raise UserError(f"max_steps is {max_steps}, expected at least 1")
        if not 0 <= format_reward < 1:
            raise UserError(f"--env.format-reward is {format_reward}, expected a share in [0, 1)")
        self._splits, self._batcher, self._max_steps, self._format_reward = splits, batcher, max_steps, format_reward
        self._notes = notes
        self._tasks = {} if _tasks is None else _tasks
        self._task: Task | None = None
        self._command: str | None = None
        self._num_steps, self._done = 0, True

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of "train" or "unseen" (also "eval"), in a fixed order. Raises `UserError`."""
        name = _SPLITS.get(split)
        if name is None:
            raise UserError(f"search has no split {split!r}: there are train and unseen")
        if name not in self._tasks:
            self._tasks[name] = tuple(make_task(question, name) for question in self._splits[name]())
        return self._tasks[name]

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` for a task that holds no question."""
        question = task.info.get("question")
        if not isinstance(question, str) or not task.info.get("golden"):
            raise UserError(f"the task {task.task_id!r} has no question and golden answers: take one of env.tasks(...)")
        self._task, self._num_steps, self._done, self._command = task, 0, False, None
        notes = {"golden": task.info["golden"], "supporting": task.info.get("supporting", ())} if self._notes else {}
        return Observation(question, FORMS, question, notes=notes)

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        self.begin_step(command)
        return self.finish_step()

    def begin_step(self, command: str) -> None:
        """Accepts a command. Searches of several episodes are sent together, at the first `finish_step`."""
        if self._task is None or self._done:
            raise RuntimeError("step without an episode: call reset first")
        self._command = command
        action = read_command(command)
        if action is not None and action[0] == "search" and not self._is_last():
            self._batcher.enqueue(action[1])

    def finish_step(self) -> StepResult:
        """Returns the result of the command that `begin_step` accepted."""
        assert self._command is not None, "finish_step without begin_step"
        action, self._command = read_command(self._command), None
        last = self._is_last()
        self._num_steps += 1
        if last or (action is not None and action[0] == "answer"):
            answer = action[1] if action is not None and action[0] == "answer" else None
            return self._finish(answer, action is not None)
        if action is None:
            return StepResult(Observation(NOT_UNDERSTOOD, FORMS), admissible=False)
        text, places = show_passages(self._batcher.result(action[1]))
        return StepResult(Observation(text, FORMS, passages=places), admissible=True)

    def _is_last(self) -> bool:
        return self._num_steps + 1 >= self._max_steps

    def _finish(self, answer: str | None, valid: bool) -> StepResult:
        assert self._task is not None
        got: AnswerScores = score(answer, self._task.info["golden"])
        self._done = True
        won = got.exact_match == 1.0
        reward = 1.0 if won else self._format_reward if answer is not None else 0.0
        scores = {"em": got.exact_match, "sub_em": got.sub_match, "f1": got.f1}
        known = " or ".join(self._task.info["golden"])
        verdict = f"{'No' if answer is not None else 'No answer was given'}: the answer is {known}."
        # The world model learns to predict the last observation: the right answer must not stand there.
        return StepResult(
            Observation(""), True, won, reward, got.exact_match, truncated=answer is None, admissible=valid,
            scores=scores, verdict=verdict,
        )  # fmt: skip

    def accepts(self, command: str, observation: Observation) -> bool:
        """Whether the command is a search or an answer."""
        return read_command(command) is not None

    def while_waiting(self, check: Callable[[], None]) -> None:
        """Registers `check`, to be called while waiting for an unavailable retriever."""
        self._batcher.while_waiting(check)

    def take_metrics(self) -> dict[str, float]:
        """Returns the retrieval counts of all episode slots since the last call."""
        return self._batcher.take_metrics()

    def spawn(self) -> SearchEnv:
        """Creates another episode slot over the same questions and passages."""
        return SearchEnv(self._splits, self._batcher, self._max_steps, self._format_reward, self._notes, self._tasks)

    def close(self) -> None:
        """Closes the index or the connections. Safe to call twice."""
        self._batcher.retriever.close()
        self._done = True
