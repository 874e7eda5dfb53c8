"""Reads the fenced blocks of a page and how they are to be tested.

A comment in the line before a block says how, several marks with commas between them:

    <!-- test: slow -->                 runs with `pytest --slow` only
    <!-- test: small -->                `paw-fast train` and `eval` are given small sizes; those of the page win
    <!-- test: needs gpu -->            runs where there is a CUDA device; also `needs vllm`, `needs extra NAME`,
                                        `needs data NAME` (a folder of the test data, found at $HOME/NAME)
    <!-- test: parse only -->           never runs; its `paw-fast` commands are parsed
    <!-- test: after PAGE -->           runs in the folder of another page, after that page's blocks

`bash` and `python` blocks are tested. Those of a page run in its order, in one folder. `pip install` is left out.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?:<!-- test: (?P<marks>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)

SMALL_TRAIN = (
    "--steps 1 --eval-tasks 4 --eval-transitions 16 --rollout.groups 2 --rollout.group-size 2 --algo.minibatches 1 "
    "--warm-start.episodes 24 --warm-start.epochs 1"
)
SMALL_GAMES = "--env.num-train 24 --env.num-unseen 8 --env.max-steps 4"
SMALL_EVAL = "--tasks 4"


@dataclass(frozen=True)
class Block:
    """One fenced block. page: relative to the checkout; line: of the fence."""

    page: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    @property
    def slow(self) -> bool:
        return "slow" in self.marks

    @property
    def parse_only(self) -> bool:
        return "parse only" in self.marks

    @property
    def after(self) -> str | None:
        """The page whose folder this block runs in."""
        return next((f"docs/{mark.removeprefix('after ')}" for mark in self.marks if mark.startswith("after ")), None)

    @property
    def needs(self) -> list[str]:
        return [mark.removeprefix("needs ") for mark in self.marks if mark.startswith("needs ")]

    def commands(self) -> list[list[str]]:
        """The `paw-fast` commands of a bash block, as lists of arguments without the program."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [re.search(r"(?:^|[|;&] )(?:srun )?paw-fast (.*)", line) for line in lines]
        return [shlex.split(match.group(1), comments=True) for match in found if match]

    def script(self) -> str:
        """What bash runs: without `pip install`, with small sizes where the block is marked so."""
        lines = self.text.replace("\\\n", " ").splitlines()
        lines = [line for line in lines if not line.startswith("pip install")]
        return "\n".join(map(smaller, lines) if "small" in self.marks else lines)


def smaller(line: str) -> str:
    """A command with small sizes put before its options; a run that is resumed keeps its own.

    >>> smaller("paw-fast eval runs/first")
    'paw-fast eval --tasks 4 runs/first'
    """
    if line.startswith("paw-fast train") and "--resume" not in line:
        games = SMALL_GAMES if "--env " not in line or "--env alfworld" in line else ""
        return f"paw-fast train {SMALL_TRAIN} {games} {line.removeprefix('paw-fast train')}"
    if line.startswith("paw-fast eval"):
        return f"paw-fast eval {SMALL_EVAL}{line.removeprefix('paw-fast eval')}"
    return line


def blocks(path: Path) -> list[Block]:
    """The `bash` and `python` blocks of a page. Raises `ValueError` for a mark that does not exist."""
    text, found = path.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        marks = tuple(mark.strip() for mark in (match["marks"] or "").split(",") if mark.strip())
        for mark in marks:
            if not re.fullmatch(r"slow|small|parse only|after \S+\.md|needs (gpu|vllm|extra [\w-]+|data \w+)", mark):
                raise ValueError(f"{path}: unknown mark {mark!r} before a block; see {__file__}")
        if match["language"] in ("bash", "python"):
            page = str(path.relative_to(ROOT))
            fence = text.index("```", match.start())
            found.append(Block(page, text.count("\n", 0, fence) + 1, match["language"], match["text"], marks))
    return found


def pages() -> list[Path]:
    """The pages whose blocks are tested."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
