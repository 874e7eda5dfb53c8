"""Collects the queries of many episodes and asks the retriever for them together; remembers recent answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from paw_fast.envs.search_qa.retrieval.records import Hit, Retriever

MAX_REMEMBERED = 20_000
"""Queries; with three passages of a hundred words about 50 MB."""


class QueryBatcher:
    """Sends the queries of many episodes to the retriever in one request.

    `enqueue` a query for each episode first, then take each `result`: the first one sends all queries that wait.
    Episodes of one task often ask the same; what was asked before is not asked again.
    """

    def __init__(self, retriever: Retriever, topk: int):
        self.retriever, self.topk = retriever, topk
        self._known: OrderedDict[str, list[Hit]] = OrderedDict()
        self._pending: dict[str, None] = {}
        self.num_queries = self.num_known = 0

    def enqueue(self, query: str) -> None:
        """Announces that the result of this query will be asked for."""
        self.num_queries += 1
        if query in self._known or query in self._pending:
            self.num_known += 1
        else:
            self._pending[query] = None

    def result(self, query: str) -> list[Hit]:
        """The passages of a query, best first."""
        if query not in self._known:
            self._pending[query] = None
            queries = list(self._pending)
            found = self.retriever.search(queries, self.topk)
            self._pending.clear()
            while len(self._known) > max(0, MAX_REMEMBERED - len(queries)):
                self._known.popitem(last=False)
            self._known.update(zip(queries, found, strict=True))
        self._known.move_to_end(query)
        return self._known[query]

    def while_waiting(self, check: Callable[[], None]) -> None:
        """`check` is called while a retriever that is down is waited for; it may raise to stop that."""
        if hasattr(self.retriever, "check"):
            self.retriever.check = check  # type: ignore[attr-defined]

    def take_metrics(self) -> dict[str, float]:
        """Counts since the last call, under their metric names."""
        out = {"retrieval/queries": float(self.num_queries)}
        if self.num_queries:
            out["retrieval/known_share"] = self.num_known / self.num_queries
        self.num_queries = self.num_known = 0
        traffic = getattr(self.retriever, "traffic", None)
        if traffic is not None:
            out |= {"retrieval/failures": float(traffic.failures), "retrieval/paused_s": traffic.paused_s}
            traffic.queries, traffic.failures, traffic.paused_s = 0, 0, 0.0
        return out
