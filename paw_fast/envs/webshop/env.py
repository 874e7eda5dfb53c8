"""Runs WebShop episodes (search, look at products, choose options, buy) as an `Env`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.envs.webshop import pages
from paw_fast.envs.webshop.catalogue import Catalogue
from paw_fast.envs.webshop.pages import Page
from paw_fast.envs.webshop.records import Goal
from paw_fast.envs.webshop.reward import RewardParts
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

MODES = ("text", "text_rich")
_ACTION = re.compile(r"(.+)\[(.+)\]")


@dataclass
class Session:
    """The state of an episode, from which its page is rendered.

    page: "start", "results", "item", a sub-page's name, or "done". query and number: of the last search.

    >>> Session().copy() == Session()
    True
    """

    page: str = "start"
    query: str = ""
    number: int = 1
    asin: str = ""
    options: dict[str, str] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)
    parts: RewardParts | None = None

    def copy(self) -> Session:
        """An independent copy."""
        return dataclasses.replace(self, options=dict(self.options), visited=set(self.visited))


class WebshopEnv(BaseEnv):
    """Runs one shopping episode at a time.

    The score is WebShop's own reward at the purchase (0 to 1), else 0; an episode is won when it is 1. It ends after
    a purchase, or is truncated after `max_steps` commands. Commands are `search[words]` and `click[text]`; a click on
    anything that the page does not offer has no effect. With `brief_results`, prompts contain a short form of each page
    with at most that number of products; the text of the observation stays the same.
    """

    name = "webshop"

    def __init__(self, catalogue: Catalogue, mode: str = "text", max_steps: int = 15, brief_results: int = 0) -> None:
        if mode not in MODES:
            raise UserError(f"webshop has no mode {mode!r}: choose {' or '.join(MODES)}")
        if max_steps < 1:
            raise UserError(f"max_steps is {max_steps}, expected at least 1")
        if brief_results < 0:
            raise UserError(f"brief_results is {brief_results}, expected at least 0")
        self._catalogue, self._mode, self._max_steps, self._brief_results = catalogue, mode, max_steps, brief_results
        self._goal: Goal | None = None
        self._session, self._page = Session(), Page(())
        self._task_type, self._num_steps, self._done = "", 0, True

    @property
    def catalogue(self) -> Catalogue:
        """The shared data: catalogue, goals, search."""
        return self._catalogue

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "unseen" (also "val"), or WebShop's own "test", "eval" and "train_original"."""
        return self._catalogue.tasks(split)

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` for a task that is not a goal of this catalogue."""
        return self.restore(task, Session())

    def restore(self, task: Task, session: Session, num_steps: int = 0) -> Observation:
        """Continues from a session of `task` that was saved (`session.copy()`) after `num_steps` commands."""
        number = task.info.get("goal")
        if not isinstance(number, int) or not 0 <= number < len(self._catalogue.goals):
            raise UserError(
                f"the task {task.task_id!r} is no goal of this catalogue, which has {len(self._catalogue.goals)}: take "
                "one of env.tasks(split)"
            )
        self._goal, self._task_type = self._catalogue.goals[number], task.task_type
        self._session, self._num_steps = session.copy(), num_steps
        self._done = session.page == "done" or num_steps >= self._max_steps
        self._page = self._render(self._goal)
        return self._observe(self._goal.instruction_text)

    @property
    def session(self) -> Session:
        """The episode's state, for saving (copy it) and for experts."""
        return self._session

    @property
    def goal(self) -> Goal:
        """The goal of the episode. Raises `RuntimeError` before the first reset."""
        if self._goal is None:
            raise RuntimeError("no goal without an episode: call reset first")
        return self._goal

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        goal = self.goal
        if self._done:
            raise RuntimeError("step after the episode's end: call reset first")
        accepted = self._accepts(command)
        if accepted:
            name, argument = _parse(command)
            if name == "search":
                s = self._session
                s.page, s.query, s.number, s.asin, s.options = "results", argument, 1, "", {}
            else:
                self._click(goal, argument)
            self._page = self._render(goal)
        parts = self._session.parts
        score = parts.reward if parts is not None else 0.0
        self._num_steps += 1
        self._done = parts is not None or self._num_steps >= self._max_steps
        return StepResult(
            self._observe(), self._done, won=score == 1.0, score=score, truncated=self._done and parts is None,
            admissible=accepted, verdict="" if parts is None else _verdict(parts),
        )  # fmt: skip

    def accepts(self, command: str, observation: Observation) -> bool:
        """Whether the command is a search or a click on something that the page offers."""
        return self._accepts(command)

    def from_keyboard(self, typed: str, observation: Observation) -> str:
        """Accepts the name of a button without `click[...]`."""
        click = f"click[{typed}]"
        return click if click in observation.admissible else typed

    def _accepts(self, command: str) -> bool:
        name, argument = _parse(command)
        if name == "search":
            return bool(argument)
        return name == "click" and argument != "search" and argument in self._page.clickables()

    def _click(self, goal: Goal, text: str) -> None:
        """Follows a link of the page, in the reference's order of precedence."""
        s = self._session
        sub_page = next((name for name in pages.SUB_PAGES if name.lower() == text), None)
        if text == pages.BUY.lower():
            s.parts, s.page = self._catalogue.score_purchase(goal, s.asin, s.options), "done"
        elif text == pages.BACK.lower():
            self._session = Session()
        elif text == pages.NEXT.lower() and s.page == "results":
            s.number += 1
        elif text == pages.PREVIOUS.lower() and s.page == "results":
            s.number -= 1
        elif text == pages.PREVIOUS.lower() and s.page == "item":
            s.page, s.asin, s.options = "results", "", {}
        elif text == pages.PREVIOUS.lower():
            s.page = "item"
        elif sub_page is not None:
            s.page = sub_page
        elif s.page == "results":
            s.asin = next(n.text for n in self._page.nodes if n.kind == "link" and n.text.lower() == text)
            s.visited.add(s.asin)
            s.page = "item"
        else:
            # A value that two options share is taken for the last of them.
            for name, values in self._catalogue.product(s.asin).options.items():
                if text in values:
                    chosen = name
            s.options[chosen] = text

    def _render(self, goal: Goal) -> Page:
        s, catalogue = self._session, self._catalogue
        if s.page == "start":
            return pages.start_page(goal)
        if s.page == "results":
            rows = catalogue.results(s.query)
            shown = rows[(s.number - 1) * pages.PAGE_SIZE : s.number * pages.PAGE_SIZE]
            return pages.results_page(
                goal, [catalogue.product_store[row] for row in shown], s.number, len(rows), s.visited
            )
        if s.page == "done":
            assert s.parts is not None
            return pages.done_page(s.asin, s.options, s.parts.reward)
        product = catalogue.product(s.asin)
        if s.page == "item":
            return pages.item_page(goal, product, s.options, s.query, s.number, catalogue.show_attributes)
        return pages.sub_page(goal, product, s.page)

    def _observe(self, task: str = "") -> Observation:
        goal, page = self.goal, self._page
        text = page.text() if self._mode == "text" else page.text_rich()
        clickables = page.clickables()
        admissible = tuple(f"click[{one}]" for one in clickables if one != "search")
        if page.has_search_bar:
            admissible = ("search[<your query>]", *admissible)
        brief = self._brief_results
        shown = page.brief(brief) if brief else shown_text(text, goal.instruction_text)
        return Observation(text, admissible, task, state_text=text, shown=shown)

    def spawn(self) -> WebshopEnv:
        """Creates another episode slot over the same catalogue."""
        return WebshopEnv(self._catalogue, self._mode, self._max_steps, self._brief_results)

    def close(self) -> None:
        """Ends the episode. The shared data remains available to other episodes."""
        self._goal, self._done = None, True


def _parse(command: str) -> tuple[str, str]:
    """Parses `name[argument]` into the name and the lower-case argument; other text is a name without argument."""
    found = _ACTION.match(command)
    return (found[1], found[2].lower()) if found else (command, "")


def _verdict(parts: RewardParts) -> str:
    """The reward in words."""
    shares = [("attributes", parts.r_att), ("options", parts.r_option), ("type of product", parts.r_type)]
    said = [f"{name} {share:.0%}" for name, share in shares if share is not None]
    price = "kept" if parts.r_price else "too high"
    return f"Not quite what was asked for: score {parts.reward:.2f} ({', '.join(said)}, price {price})."


def shown_text(text: str, instruction: str) -> str:
    """Returns the page as in verl-agent's prompts: the part after the instruction, each segment in quotes.

    The page after buying has no instruction and stays as it is, and so does the `text_rich` form.

    >>> shown_text("WebShop [SEP] Instruction: [SEP] a red mug [SEP] Search", "a red mug")
    "'Search'"
    """
    segments = text.split(pages.SEPARATOR)
    instruction = instruction.strip()
    if instruction not in segments:
        return text
    return pages.SEPARATOR.join(f"'{one}'" for one in segments[segments.index(instruction) + 1 :])
