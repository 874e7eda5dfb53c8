"""Shows what is running: a bar for each phase on a terminal, a line in at most 15 s of silence elsewhere.

    with progress.phase("demonstrations", total=400, unit="episodes") as done:
        for task in tasks:
            ...
            done()          # one more

Phases nest. A terminal shows the outermost and the innermost one, redrawn a few times a second by a thread; to advance
a phase only sets attributes. Output to a file has no bars: a thread says how far the innermost phase is when nothing
has been printed for `SILENCE_S`, so short phases print nothing.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from paw_fast.runs import console, stop_signals
from paw_fast.runs.time_left import clock, phase_left

SILENCE_S = 14.0
"""A file gets a line when nothing has been printed for so long; with `TICK_S`, in 15 s at most."""
TICK_S = 0.5
REFRESHES_PER_S = 8
_BAR = (6, 36)  # columns of a bar: at least, at most


class Phase:
    """A part of the work while it runs. Produced by `phase`; call it with the number of finished items.

    name    what is shown
    total   number of items, None if it is not known
    unit    what an item is
    done    finished items; a part of one counts too
    counts  what is shown instead of `done/total unit`
    detail  shown after it, such as a loss
    """

    def __init__(self, name: str, total: float | None, unit: str, started_s: float, expected_s: float | None) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.started_s, self.expected_s = started_s, expected_s
        self.done = 0.0
        self.counts: str | None = None
        self.detail = ""
        self.timed = True
        self.left_s: float | None = None
        """Time left, of a phase that knows it better than its share of finished items."""

    def __call__(self, count: float = 1, detail: str | None = None) -> None:
        """Counts finished items. Raises `stop_signals.Interrupted` when a stop was requested."""
        self.done += count
        if detail is not None:
            self.detail = detail
        stop_signals.check()

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def time_left(self, now: float) -> float | None:
        """Seconds left at the time `now`, None if they are not known."""
        if self.left_s is not None or not self.timed:
            return self.left_s
        return phase_left(now - self.started_s, self.share, self.expected_s)

    def describe(self) -> str:
        """How far it is, in words; empty if nothing is known."""
        counts = self.counts
        if counts is None and self.total:
            counts = f"{int(self.done)}/{int(self.total)}" + (f" {self.unit}" if self.unit else "")
        return ", ".join(part for part in (counts, self.detail) if part)

    def line(self, now: float) -> str:
        """The line of a file: name, progress, time left or time so far."""
        left = self.time_left(now)
        time_text = f"about {clock(left)} left" if left is not None else f"{clock(now - self.started_s)} so far"
        return f"{self.name}: " + ", ".join(part for part in (self.describe(), time_text) if part)


class Display:
    """Shows the phases of this process. `now` gives the time in seconds, `say` prints a line."""

    def __init__(self, now: Callable[[], float] = time.monotonic, say: Callable[[str], None] | None = None) -> None:
        self.now, self.say = now, say or (lambda text: console.say(text))
        self.phases: list[Phase] = []
        self._durations: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=15))
        self._printed = console.lines_said
        self._silent_since = now()
        self._spinner = Spinner("dots")

    def begin(self, kind: str, total: float | None, unit: str, name: str | None) -> Phase:
        """Adds a phase. Its kind's earlier durations predict how long it takes."""
        before, now = self._durations.get(kind), self.now()
        phase = Phase(name or kind, total, unit, now, statistics.median(before) if before else None)
        if not self.phases:
            self._silent_since, self._printed = now, console.lines_said
        self.phases.append(phase)
        return phase

    def end(self, phase: Phase, kind: str, finished: bool) -> None:
        """Removes a phase; the duration of a finished one predicts the next of its kind."""
        self.phases.remove(phase)
        if finished and phase.timed:
            self._durations[kind].append(self.now() - phase.started_s)

    def tick(self) -> None:
        """Prints the innermost phase's line if nothing has been printed for `SILENCE_S`."""
        now, phases = self.now(), self.phases[-1:]
        if console.lines_said != self._printed:
            self._printed, self._silent_since = console.lines_said, now
        elif phases and now - self._silent_since >= SILENCE_S:
            self.say(phases[0].line(now))
            self._printed, self._silent_since = console.lines_said, now

    def render(self) -> RenderableType:
        """The bars of a terminal."""
        now, phases, width = self.now(), self.phases[:1] + self.phases[1:][-1:], console.console.width
        size = max((len(phase.name) for phase in phases), default=0)
        return Group(*(self._row(phase, now, size, width) for phase in phases))

    def _row(self, phase: Phase, now: float, size: int, width: int) -> RenderableType:
        left = phase.time_left(now)
        times = clock(now - phase.started_s) + ("" if left is None else f", {clock(left)} left")
        described = phase.describe()
        size = min(size, max(10, width // 3))
        room = width - size - 6  # the spinner, and a space after each column
        if left is not None and room < len(described) + len(times):
            times = f"{clock(left)} left"
        while room < len(described) + len(times) and ", " in described:
            described = described.rpartition(", ")[0]
        room -= len(described) + len(times)
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=1)
        grid.add_column(width=size, no_wrap=True, overflow="ellipsis")
        cells: list[Any] = [self._spinner, phase.name]
        if room >= _BAR[0]:
            grid.add_column()
            cells.append(ProgressBar(phase.total, phase.done, width=min(room, _BAR[1]), pulse=not phase.total))
        for text in (described, times):
            grid.add_column(no_wrap=True, overflow="ellipsis")
            cells.append(text)
        grid.add_row(*cells)
        return grid

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draws or prints, in a thread, until the block ends."""
        if console.is_live():
            with Live(
                get_renderable=self.render, console=console.console, refresh_per_second=REFRESHES_PER_S, transient=True
            ):
                yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(TICK_S):
                self.tick()

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


_display = Display()


@contextmanager
def phase(kind: str, total: float | None = None, unit: str = "", *, name: str | None = None) -> Iterator[Phase]:
    """Context manager that shows a phase over `total` items (None: unknown number) while the block runs.

    `kind` says what it is, and `name`, by default the same, which one: a step's rollout, for example. The median of a
    kind's earlier durations predicts its time left.
    """
    display, finished = _display, False
    shown = display.begin(kind, total, unit, name)
    outermost = len(display.phases) == 1
    try:
        if outermost:
            with display.running():
                yield shown
        else:
            yield shown
        finished = True
    finally:
        display.end(shown, kind, finished)
