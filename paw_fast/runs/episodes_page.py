"""Writes the episodes page: what a policy expected its environment to answer, token by token.

Every token of an observation is shown with the probability that the policy gave to it, before training and now, side
by side. The page is one HTML file. It can be read without colours and in print: a token whose probability is less than
tau, from which the world-model loss learns, has a frame and its probability in percent; a clipped one is underlined.

`paw_fast.evaluation.episode_view` measures what is shown here. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from paw_fast.runs.atomic_files import write_text
from paw_fast.runs.html_page import html_table, page

_UNCLIPPED_LIMIT = 0.5
"""Probability below which tokens are framed if the world-model loss clips none."""

_MOST_CHANGES = 6
_CONTEXT = 6

CSS = """
.legend { border: 1px solid var(--line); border-radius: 10px; background: var(--card); padding: 10px 14px;
          font-size: 14px; margin: 12px 0; } .legend p { margin: 0 0 6px; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2.0;
          font: 13.5px/2.0 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.tokens span { unicode-bidi: isolate; padding: 1px 0; margin-right: 1px; print-color-adjust: exact;
               -webkit-print-color-adjust: exact; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.tokens sub { font: 700 9.5px/1 system-ui, "DejaVu Sans", sans-serif; vertical-align: -0.2em; margin-left: 2px; }
.p1 { background: #fdf0d9; color: #111; } .p2 { background: #fbd08d; color: #111; }
.p3 { background: #f29b4b; color: #111; } .p4 { background: #a8320c; color: #fff; }
@media screen and (prefers-color-scheme: dark) {
  .p1 { background: #2f2a20; color: #e5e7eb; } .p2 { background: #5a4420; color: #fff; }
  .p3 { background: #a45a18; color: #fff; } .p4 { background: #ffb27a; color: #111; }
}
.k { text-decoration: underline dotted 1px; text-underline-offset: 4px; text-decoration-color: var(--soft); }
.tokens .l { border: 1.5px solid var(--ink); border-radius: 3px; padding: 0 2px; }
.legend .tokens span { display: inline-block; padding: 0 6px; line-height: 1.5; margin: 2px 3px; }
.turn { border-left: 5px solid var(--line); padding: 4px 0 8px 12px; margin: 10px 0; }
.turn.selected { border-left: 5px double var(--ink); }
.act { font: 13.5px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; white-space: pre-wrap;
       overflow-wrap: anywhere; font-weight: 600; unicode-bidi: isolate; }
.episodes { width: 100%; max-width: 760px; } .episodes .task th { border: 0; padding-top: 10px; color: var(--ink);
  overflow-wrap: anywhere; } .episodes td { padding-right: 10px; }
.sides td:last-child { white-space: nowrap; }
.about { font-size: 13px; color: var(--soft); }
.about b { color: var(--ink); font-weight: 600; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 4px 26px;
         margin-top: 4px; }
.sides h4 { font-size: 12.5px; font-weight: 600; color: var(--soft); margin: 0; }
.episode { margin-top: 34px; border-top: 2px solid var(--line); padding-top: 6px; } .episode h2 { margin: 6px 0 4px; }
.intro { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft); font-size: 13.5px; margin: 6px 0;
         unicode-bidi: isolate; }
"""


@dataclass(frozen=True)
class ObservedToken:
    """A token of an observation, and its probability at temperature 1 given the history and the action.

    `before` is None if there is no model of before training.

    >>> ObservedToken(" mug", 0.05, 0.8).now
    0.8
    """

    text: str
    before: float | None
    now: float


@dataclass(frozen=True)
class TurnView:
    """One transition: the action, its mean entropy per token in nats, and the observation that follows it.

    `selected` says whether the selection rule of the run chose the transition for the world-model loss.
    """

    action: str
    valid: bool
    reward: float
    entropy_before: float | None
    entropy_now: float
    selected: bool
    tokens: tuple[ObservedToken, ...]


@dataclass(frozen=True)
class EpisodeView:
    """One episode. `world_model_weight` is lambda of its group: the episodes of the same task on this page."""

    task_id: str
    task_type: str
    intro: str
    outcome: str
    episode_return: float
    group: int
    world_model_weight: float
    turns: tuple[TurnView, ...]


@dataclass(frozen=True)
class EpisodesView:
    """All that the page shows. Produced by `episode_view.view_episodes`, consumed by `write_episodes_page`.

    `before` and `now` name the two models; `before` is empty if there is none. `tau` is None if no token is clipped.
    """

    run: str
    before: str
    now: str
    tau: float | None
    world_model: str
    about: str
    episodes: tuple[EpisodeView, ...]


def write_episodes_page(view: EpisodesView, path: Path) -> Path:
    """Writes the page and returns its path. Raises `UserError` if the file cannot be written."""
    write_text(path, episodes_html(view))
    return path


def episodes_html(view: EpisodesView) -> str:
    """Returns the page as HTML. All texts of the view are escaped."""
    body = [
        f"<h1>{escape(view.run)}: episodes, token by token</h1>",
        f'<p class="soft">{escape(view.about)}</p>',
        _legend(view),
        _index(view),
        _changes(view),
        *(_episode(number, one, view) for number, one in enumerate(view.episodes, 1)),
    ]
    return page(f"{view.run}: episodes", "".join(body), CSS)


# ------------------------------------------------------------------------------------------------------ tokens


def _limit(view: EpisodesView) -> float:
    return _UNCLIPPED_LIMIT if view.tau is None else view.tau


def _percent(p: float) -> str:
    return "<1" if p < 0.005 else f"{100 * p:.0f}"


def _level(p: float) -> str:
    """Returns the class of a token's background: the less likely the token, the stronger the colour."""
    return next((f"p{4 - n}" for n, most in enumerate((0.05, 0.2, 0.5, 0.9)) if p < most), "")


def _visible(text: str) -> str:
    """Returns a token's text as HTML; line breaks and control characters are made visible."""
    if not text:
        return "▯"
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "▯", text.replace("\r", "▯"))
    return escape(text).replace("\n", "↵\n")


def _token(text: str, p: float, view: EpisodesView) -> str:
    clipped = view.tau is not None and p >= view.tau
    framed = p < _limit(view)
    classes = " ".join(name for name in (_level(p), "l" if framed else "k" if clipped else "") if name)
    number = f"<sub>{escape(_percent(p))}</sub>" if framed else ""
    return f'<span class="{classes}" title="{100 * p:.1f} %">{_visible(text)}{number}</span>'


def _side(name: str, pairs: Sequence[tuple[str, float]], view: EpisodesView) -> str:
    mean = sum(p for _, p in pairs) / len(pairs)
    shown = "".join(_token(text, p, view) for text, p in pairs)
    below = sum(p < _limit(view) for _, p in pairs)
    about = f"mean probability {mean:.2f}, {below} of {len(pairs)} tokens below {_limit(view):g}"
    return f'<div><h4>{escape(name)}: {about}</h4><div class="tokens">{shown}</div></div>'


# ---------------------------------------------------------------------------------------------------- sections


def _legend(view: EpisodesView) -> str:
    samples = (("over 90 %", 0.95), ("over 50", 0.7), ("over 20", 0.3), ("over 5", 0.1), ("less", 0.02))
    scale = "".join(_token(text, p, view) for text, p in samples)
    if view.tau is None:
        rule = f"A frame and a number mark tokens with a probability below {_limit(view):g}, in percent."
    else:
        rule = (
            f"Dotted underline: clipped (p ≥ tau = {view.tau:g}), the world-model loss does not learn from it. "
            "Frame and number: p < tau, in percent; in selected transitions the loss raises it."
        )
    side = f"before training ({view.before}) and now ({view.now})" if view.before else f"now ({view.now})"
    return (
        f'<div class="legend"><p>Each token of an observation has the probability that the policy gave to it after its '
        f'action, {escape(side)}. The stronger the colour, the less expected: <span class="tokens">{scale}</span></p>'
        f"<p>{escape(rule)}</p>"
        f"<p>◆ and a double line mark transitions that the run's rule selects for the world-model loss, among those of "
        f"this page ({escape(view.world_model)}). Entropy: mean over the tokens of an action, in nats.</p></div>"
    )


def _means(one: EpisodeView, before: bool) -> str:
    found = [t.before if before else t.now for turn in one.turns for t in turn.tokens]
    values = [p for p in found if p is not None]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def _index(view: EpisodesView) -> str:
    """Returns the table of the episodes, task by task."""
    heads = ("episode", "outcome", "return", "selected", "mean p")
    rows, group = [], None
    for number, one in enumerate(view.episodes, 1):
        if one.group != group:
            group = one.group
            about = f"(lambda {one.world_model_weight:.2f})"
            name = f'{escape(one.task_id)} <span class="soft">{about}</span>'
            rows.append(f'<tr class="task"><th colspan="{len(heads)}">{name}</th></tr>')
        chosen = f"{sum(turn.selected for turn in one.turns)} of {len(one.turns)}"
        probability = f"{_means(one, True)} → {_means(one, False)}" if view.before else _means(one, False)
        cells = [escape(one.outcome), f"{one.episode_return:g}", chosen, probability]
        link = f'<a href="#e{number}">{number}</a>'
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in (link, *cells))}</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<table class="episodes"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _changes(view: EpisodesView) -> str:
    """Returns tables of the tokens whose probability rose and fell most, with the text before them."""
    if not view.before:
        return ""
    found = []
    for number, one in enumerate(view.episodes, 1):
        for turn in one.turns:
            for at, token in enumerate(turn.tokens):
                if token.before is not None and token.text.strip():
                    context = "".join(t.text for t in turn.tokens[max(0, at - _CONTEXT) : at])
                    found.append((token.now - token.before, number, turn.action, context, token))
    tables = []
    for title, sign in (("Rose most", 1), ("Fell most", -1)):
        ranked = sorted((one for one in found if sign * one[0] > 0), key=lambda one: -sign * one[0])
        rows, seen = [], set()
        for _, number, action, context, token in ranked:
            if len(rows) == _MOST_CHANGES:
                break
            if (action, context, token.text) in seen:
                continue
            seen.add((action, context, token.text))
            text = f"…{_flat(context)}<b>{_flat(token.text)}</b><small>after: {_flat(action)}</small>"
            values = f"{100 * token.before:.1f} → {100 * token.now:.1f} %"
            rows.append((f'<a href="#e{number}">{number}</a>', [text, values]))
        if rows:
            tables.append(f"<div><h2>{title}</h2>{html_table(['token', 'probability'], rows, 'episode')}</div>")
    return f'<div class="sides">{"".join(tables)}</div>' if tables else ""


def _flat(text: str) -> str:
    return _visible(text).replace("↵\n", " ")


def _turn(number: int, turn: TurnView, view: EpisodesView) -> str:
    entropy = f"{turn.entropy_now:.2f} nats"
    if turn.entropy_before is not None:
        entropy = f"{turn.entropy_before:.2f} → {entropy}"
    about = [f"entropy <b>{entropy}</b>", f"reward <b>{turn.reward:g}</b>"]
    about += [] if turn.valid else ["<b>invalid</b>"]
    about += ["<b>◆ selected</b>"] if turn.selected else ["not selected"] if turn.tokens else []
    sides = ""
    if turn.tokens:
        before = [(t.text, t.before) for t in turn.tokens if t.before is not None]
        sides = _side("before", before, view) if before else ""
        sides += _side("now", [(t.text, t.now) for t in turn.tokens], view)
    else:
        sides = '<p class="about">No observation follows.</p>'
    return (
        f'<div class="turn{" selected" if turn.selected else ""}"><div class="act">{number} &gt; '
        f'{_flat(turn.action)}</div><div class="about">{", ".join(about)}</div><div class="sides">{sides}</div></div>'
    )


def _episode(number: int, one: EpisodeView, view: EpisodesView) -> str:
    about = (
        f"{one.task_type.replace('_', ' ')}, {one.outcome}, return {one.episode_return:g}, "
        f"group {one.group + 1}, lambda of the group {one.world_model_weight:.2f}"
    )
    turns = "".join(_turn(at, turn, view) for at, turn in enumerate(one.turns, 1))
    return (
        f'<section class="episode" id="e{number}"><h2>{number}. {escape(one.task_id)}</h2>'
        f'<p class="about">{escape(about)}</p><div class="intro">{escape(one.intro)}</div>{turns}</section>'
    )
