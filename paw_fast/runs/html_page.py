"""Builds self-contained HTML pages: the style sheet, escaped text, tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CSS = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #5b6472; --line: #e1e4e9; --page: #ffffff; --card: #f8f9fb;
        --warn: #b45309; --good: #047857; --mark: #f97316; --fill: #93c5fd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #a3acba; --line: #374151; --page: #111827; --card: #1a2333;
          --warn: #fbbf24; --good: #34d399; --fill: #2f5fa3; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #fff; --warn: #7a3a00;
          --good: #00543a; --fill: #93c5fd; }
  figure, .tile, .turn { break-inside: avoid; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 22px 24px 60px; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 12px; }
p { margin: 0 0 12px; } .soft { color: var(--soft); } a { color: inherit; }
figure { margin: 0; padding: 12px 14px 6px; background: var(--card); border: 1px solid var(--line);
         border-radius: 10px; }
figcaption { margin-bottom: 6px; } figcaption b { display: block; }
figcaption span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: 400; color: var(--soft); }
td small, td i { display: block; color: var(--soft); font-size: 12.5px; font-style: normal; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 7px; }
details { margin: 8px 0; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
details > .scroll { padding: 0 14px 10px; }
summary { cursor: pointer; padding: 8px 14px; overflow-wrap: anywhere; }
pre { margin: 0; padding: 4px 14px 14px; white-space: pre-wrap; overflow-wrap: anywhere;
      font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
@media (max-width: 640px) { body { padding: 14px 14px 40px; font-size: 14px; } h1 { font-size: 18px; }
  th, td { padding-right: 14px; } .scroll td { min-width: 96px; } }
"""


def page(title: str, body: str, css: str = "") -> str:
    """Returns an HTML document. `title` is text, `body` is HTML, `css` follows the common style sheet."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - paw-fast</title><style>{CSS}{css}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], corner: str = "") -> str:
    """Returns an HTML table. The cells of `header` must be HTML; all other text is escaped here."""
    return html_table(header, [(escape(name), [escape(cell) for cell in cells]) for name, cells in rows], corner)


def small_note(text: str) -> str:
    """Returns a table cell as HTML, with an interval in brackets at its end in small type on a line of its own.

    >>> small_note("5 % (95 %: 1 to 9)")
    '5 %<small>95 %: 1 to 9</small>'
    """
    value, bracket, note = text.partition(" (95 %")
    return f"{escape(value)}<small>{escape('95 %' + note.removesuffix(')'))}</small>" if bracket else escape(text)


def html_table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], corner: str = "") -> str:
    """Returns an HTML table whose cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in (corner, *header))
    body = "".join(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
