"""Shows the success of a running training in a notebook, as a figure that is updated in place. Imports no torch."""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MIN_PAUSE_S = 1.0
"""The figure is drawn at most this often; evaluations are always drawn."""


def in_notebook() -> bool:
    """Returns True if this process is the kernel of a notebook, which can update what it displayed."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class LiveCurve:
    """Draws success against training steps in the current output cell, and redraws it as steps end.

    An `on_step` callback of `paw_fast.train`, which makes one by itself in a notebook. Outside of a notebook the
    figure's text is printed by IPython's `display`. Needs IPython.

    >>> LiveCurve(Path("runs/a"))(3, {"success/rate": 0.5})                                  # doctest: +SKIP
    """

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir, self._clock = Path(run_dir), clock
        self._handle: Any = None
        self._drawn_s: float | None = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Draws the metrics that the run has written so far."""
        now = self._clock()
        if self._drawn_s is not None and now - self._drawn_s < MIN_PAUSE_S and "success/eval_rate" not in metrics:
            return
        self._drawn_s = now
        data = {"text/plain": describe(step, metrics)}
        if (png := curve_png(self._run_dir)) is not None:
            data["image/png"] = base64.b64encode(png).decode("ascii")
        from IPython.display import display

        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def describe(step: int, metrics: Mapping[str, float]) -> str:
    """The success of a step in words.

    >>> describe(2, {"success/rate": 0.25, "success/eval_rate": 0.5})
    'step 2: success of training episodes 25 %, of evaluation tasks 50 %'
    """
    names = {"success/rate": "of training episodes", "success/eval_rate": "of evaluation tasks"}
    parts = [f"{text} {100 * metrics[name]:.0f} %" for name, text in names.items() if name in metrics]
    return f"step {step}" + (f": success {', '.join(parts)}" if parts else "")


def curve_png(run_dir: Path) -> bytes | None:
    """Returns the success curve of a run as a PNG; None if it has not logged any success rate."""
    from paw_fast.runs.figures import draw_success
    from paw_fast.runs.run_data import load_run

    run = load_run(run_dir)
    figure = draw_success([[run]], size=(6.4, 3.2)) if run.rows else None
    if figure is None:
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
