"""What retrieval deals in: passages, hits, and the protocol of everything that finds them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_TOPK = 100
"""Passages that one query may ask for."""
MAX_QUERY_CHARS = 4096
"""Characters of a query; a policy's longer ones are cut, a server refuses them."""


@dataclass(frozen=True)
class Passage:
    """A piece of a corpus. Produced by `corpus.read_corpus` and by retrievers, consumed by the environment.

    >>> Passage("7", "Ada Lovelace", "Ada Lovelace was a mathematician.").contents
    '"Ada Lovelace"\\nAda Lovelace was a mathematician.'
    """

    passage_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title and text in one, as wiki-18 writes them."""
        return f'"{self.title}"\n{self.text}' if self.title else self.text

    @classmethod
    def from_contents(cls, passage_id: str, contents: str) -> Passage:
        """Reads `"Title"\\nText`; without a quoted first line all of it is the text."""
        head, newline, text = contents.partition("\n")
        if newline and len(head) >= 2 and head[0] == head[-1] == '"':
            return cls(passage_id, head[1:-1], text)
        return cls(passage_id, "", contents)


@dataclass(frozen=True)
class Hit:
    """A passage that a query found, and how well. Produced by a retriever."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Finds passages. `search` may be called from several threads."""

    num_passages: int | None

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The best `topk` passages of each query, best first; fewer where no more match."""
        ...

    def close(self) -> None:
        """Gives back files and connections. Safe to call twice."""
        ...
