"""Measures time, size and memory of building and searching a BM25 index of random passages.

    python bench/envs/search_bm25.py [--passages 200000] [--words 100] [--queries 1000] [--seed 0]

Passages are words sampled by Zipf's law from a vocabulary of 300,000, with wiki-18's mean length; queries are words of
random passages. Building and searching run in separate processes, so that each has its own peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

VOCABULARY = 300_000


def texts(count: int, words: int, seed: int):
    """Yields `count` passages of about `words` words."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    names = ["".join(letters[rng.integers(0, 26, n)]) for n in rng.integers(3, 11, VOCABULARY)]
    weights = 1.0 / np.arange(1, VOCABULARY + 1)
    steps = np.cumsum(weights / weights.sum())
    for length in rng.poisson(words, count):
        yield " ".join(names[i] for i in np.searchsorted(steps, rng.random(length)))


def write_corpus(path: Path, count: int, words: int, seed: int) -> None:
    with open(path, "w", encoding="utf-8") as out:
        for number, text in enumerate(texts(count, words, seed)):
            contents = f'"{" ".join(text.split()[:3])}"\n{text}'
            out.write(json.dumps({"id": str(number), "contents": contents}) + "\n")


def peak_mb() -> float:
    """The peak resident memory of this process in MiB. Not ru_maxrss, which exec inherits from the parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def build(corpus: Path, folder: Path, out) -> None:
    from paw_fast.envs.search_qa.retrieval import bm25

    before, start = peak_mb(), time.perf_counter()
    bm25.build(corpus, folder)
    out.put({"build_s": time.perf_counter() - start, "build_peak_mb": peak_mb(), "before_mb": before})


def search(folder: Path, queries: list[str], topk: int, out) -> None:
    from paw_fast.envs.search_qa.retrieval import open_index

    before, start = peak_mb(), time.perf_counter()
    index = open_index(folder)
    load_s = time.perf_counter() - start
    index.search(queries[:1], topk)
    first_s = time.perf_counter() - start
    times = []
    for query in queries:
        start = time.perf_counter()
        index.search([query], topk)
        times.append(1000 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times, [50, 99])
    out.put({
        "load_s": load_s, "first_answer_s": first_s, "p50_ms": p50, "p99_ms": p99, "search_peak_mb": peak_mb(),
        "before_mb": before,
    })  # fmt: skip


def in_new_process(function, *args) -> dict[str, float]:
    """Runs a function in a new process and returns its result."""
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=function, args=(*args, out))
    process.start()
    result = out.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--topk", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed + 1)
    with tempfile.TemporaryDirectory() as name:
        corpus, folder = Path(name) / "corpus.jsonl", Path(name) / "index"
        write_corpus(corpus, options.passages, options.words, options.seed)
        with open(corpus, encoding="utf-8") as lines:
            some = [json.loads(line)["contents"].split()[3:] for line, _ in zip(lines, range(5000), strict=False)]
        queries = []
        for number in rng.integers(0, len(some), options.queries):
            words = some[number]
            queries.append(" ".join(words[int(i)] for i in rng.integers(0, len(words), rng.integers(3, 9))))
        built = in_new_process(build, corpus, folder)
        found = in_new_process(search, folder, queries, options.topk)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        corpus_size = corpus.stat().st_size / 2**20
    print(f"{options.passages} passages, {corpus_size:.0f} MiB as JSON lines; index {size:.0f} MiB on disk")
    print(f"build   {built['build_s']:.1f} s, peak {built['build_peak_mb']:.0f} MiB (Python {built['before_mb']:.0f})")
    print(f"load    {found['load_s']:.2f} s, first answer after {found['first_answer_s']:.2f} s")
    print(f"search  p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms over {options.queries} queries")
    print(f"memory  peak {found['search_peak_mb']:.0f} MiB while searching (Python {found['before_mb']:.0f})")


if __name__ == "__main__":
    main()
