"""`paw-fast retriever index | serve`."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from paw_fast.config.ranges import Range
from paw_fast.envs.search_qa.retrieval import build_bm25, index_of, open_index
from paw_fast.envs.search_qa.retrieval.records import MAX_TOPK
from paw_fast.envs.search_qa.retrieval.store import read_meta
from paw_fast.errors import UserError
from paw_fast.runs import console, progress


@dataclass(frozen=True)
class IndexOptions:
    """Builds an index of a corpus, and prints its folder."""

    corpus: Path
    """A .jsonl or .json file, plain or .gz: wiki-18's form, {title: sentences}, or questions with their passages."""
    out: Path | None = None
    """Folder of the index; by default one in the cache, where --env.corpus FILE finds it."""
    kind: Literal["bm25", "dense"] = "bm25"
    """`bm25` finds passages by their words, `dense` by vectors of an encoder (needs --out and the extra
    `search-dense`)."""
    encoder: str | None = None
    """With --kind dense: the encoder, a Hugging Face model folder or hub name such as intfloat/e5-base-v2."""
    query_prefix: str = "query: "
    """With --kind dense: text that is put before a query, as the encoder was trained."""
    passage_prefix: str = "passage: "
    """With --kind dense: text that is put before a passage."""


@dataclass(frozen=True)
class ServeOptions:
    """Answers POST /retrieve over a corpus or an index, until Ctrl-C."""

    corpus: Path
    """A corpus file (indexed at its first use) or the folder of an index."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines ask too. There is no password."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port; 0 takes a free one."""
    topk: Annotated[int, Range(1, MAX_TOPK)] = 3
    """Number of passages for a request that does not say how many."""


OPTIONS: dict[str, type] = {"index": IndexOptions, "serve": ServeOptions}
USAGE = """usage: paw-fast retriever COMMAND [OPTIONS]

  index     build an index of a corpus
  serve     answer POST /retrieve over a corpus or an index

paw-fast retriever COMMAND --help tells the options of a command."""


def run(options: IndexOptions | ServeOptions) -> int:
    """Runs the command with its options; returns the exit status. Raises `UserError`."""
    return _index(options) if isinstance(options, IndexOptions) else _serve(options)


def _index(options: IndexOptions) -> int:
    if not options.corpus.is_file():
        raise UserError(f"no corpus at {options.corpus}: give a .jsonl or .json file")
    if options.kind == "dense":
        from paw_fast.envs.search_qa.retrieval import dense
        from paw_fast.envs.search_qa.retrieval.corpus import count_hint

        if options.encoder is None or options.out is None:
            raise UserError("--kind dense needs --encoder MODEL and --out FOLDER")
        settings = dense.EncoderSettings(options.encoder, options.query_prefix, options.passage_prefix)
        with progress.phase(f"encoding {options.corpus.name}", count_hint(options.corpus)) as advance:
            folder = dense.build(options.corpus, options.out, settings, advance)
    else:
        folder = build_bm25(options.corpus, options.out) if options.out is not None else index_of(options.corpus)
    for line in read_meta(folder).get("notes", ()):
        console.say(f"{options.corpus}: {line}")
    print(folder)
    return 0


def _serve(options: ServeOptions) -> int:
    from paw_fast.envs.search_qa.retrieval.server import open_socket, serve

    retriever = open_index(index_of(options.corpus))
    with open_socket(options.host, options.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
        if not ipaddress.ip_address(host).is_loopback:
            console.say("note: whoever reaches this address can ask; 127.0.0.1 keeps it to this machine")
        console.say(f"{retriever.num_passages} passages at http://{shown}:{port}/retrieve; Ctrl-C stops")
        try:
            serve(retriever, listener, options.topk)
        finally:
            retriever.close()
    return 0
