"""Defines passages, hits and the `Retriever` protocol. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_TOPK = 100
"""Maximum number of passages per query."""
MAX_QUERY_CHARS = 4096
"""Maximum length of a query; the client truncates longer ones, the server rejects them."""


@dataclass(frozen=True)
class Passage:
    """A passage of a corpus. Produced by `corpus.read_corpus` and by retrievers, consumed by the environment.

    >>> Passage("7", "Ada Lovelace", "Ada Lovelace was a mathematician.").contents
    '"Ada Lovelace"\\nAda Lovelace was a mathematician.'
    """

    passage_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title and text as one string, in the format of wiki-18."""
        return f'"{self.title}"\n{self.text}' if self.title else self.text

    @classmethod
    def from_contents(cls, passage_id: str, contents: str) -> Passage:
        """Parses `"Title"\\nText`; without a quoted first line, `contents` is the text and the title is empty."""
        head, newline, text = contents.partition("\n")
        if newline and len(head) >= 2 and head[0] == head[-1] == '"':
            return cls(passage_id, head[1:-1], text)
        return cls(passage_id, "", contents)


@dataclass(frozen=True)
class Hit:
    """A retrieved passage and its score. Produced by a retriever."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Searches a corpus. `search` may be called from several threads."""

    num_passages: int | None

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The best `topk` passages of each query, best first; fewer if fewer match."""
        ...

    def close(self) -> None:
        """Closes files and connections. Safe to call twice."""
        ...
