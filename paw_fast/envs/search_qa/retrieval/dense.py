"""Builds and searches dense indexes: passage embeddings of a Hugging Face encoder, searched with faiss.

The encoder's token embeddings are averaged and normalized to unit length, as E5 and similar models require;
`query_prefix` and `passage_prefix` must be those that the encoder was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.json_files import DataIssues
from paw_fast.envs.search_qa.retrieval import store
from paw_fast.envs.search_qa.retrieval.corpus import read_corpus
from paw_fast.envs.search_qa.retrieval.records import Hit, Passage
from paw_fast.errors import UserError
from paw_fast.extras import install_hint

Progress = Callable[[int], object]


@dataclass(frozen=True)
class EncoderSettings:
    """The encoder, and how texts are passed to it."""

    encoder: str
    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    max_tokens: int = 512
    batch_size: int = 64


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(f"faiss is not installed: {install_hint('search-dense')}") from None
    return faiss


class Encoder:
    """Encodes texts into unit vectors [N, D], float32, on a CUDA device if there is one."""

    def __init__(self, settings: EncoderSettings):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.settings = settings
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.encoder, trust_remote_code=False)
            model: Any = AutoModel.from_pretrained(settings.encoder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--encoder {settings.encoder}: cannot load it as a Hugging Face model: {reason}") from None
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device).eval()

    def __call__(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        import torch

        parts = []
        for start in range(0, len(texts), self.settings.batch_size):
            batch = [prefix + text for text in texts[start : start + self.settings.batch_size]]
            inputs = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self.settings.max_tokens, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            parts.append(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())
        return np.concatenate(parts)


def build(corpus: Path, folder: Path, settings: EncoderSettings, progress: Progress = lambda count: None) -> Path:
    """Encodes a corpus file into an index folder and returns the folder.

    `progress` is called with increments that add up to the number of passages. Raises `UserError` for a corpus that
    cannot be read or is empty, and if faiss is not installed.
    """
    faiss = _faiss()
    encoder, issues = Encoder(settings), DataIssues()

    def make(staging: Path) -> dict[str, Any]:
        index, total = None, 0
        for batch in _batches(store.write_passages(staging, read_corpus(corpus, issues)), settings.batch_size):
            vectors = encoder([f"{p.title} {p.text}".strip() for p in batch], settings.passage_prefix)
            index = index or faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            total += len(batch)
            progress(len(batch))
        if index is None:
            raise UserError(f"{corpus} has no passages: nothing to index")
        faiss.write_index(index, str(staging / "vectors.faiss"))
        about = {"kind": "dense", "num_passages": total, "corpus": str(corpus.resolve()), "notes": issues.lines()}
        return about | asdict(settings)

    return store.build_index(folder, make)


def _batches(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    batch: list[Passage] = []
    for passage in passages:
        batch.append(passage)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class DenseRetriever:
    """Searches a dense index folder with the encoder that built it."""

    def __init__(self, folder: Path):
        faiss = _faiss()
        meta = self.meta = store.read_meta(folder, "dense")
        names = EncoderSettings.__dataclass_fields__
        self.settings = EncoderSettings(**{name: meta[name] for name in names})
        self._encode = Encoder(self.settings)
        self._passages = store.PassageFile(folder)
        self._index = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP)
        self.num_passages: int | None = len(self._passages)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The nearest `topk` passages of each query; all queries are encoded and searched together."""
        if not queries:
            return []
        vectors = self._encode(queries, self.settings.query_prefix)
        scores, numbers = self._index.search(vectors, min(topk, len(self._passages)))
        return [
            [Hit(self._passages[int(i)], float(s)) for i, s in zip(row, values, strict=True) if i >= 0]
            for row, values in zip(numbers, scores, strict=True)
        ]

    def close(self) -> None:
        """Closes the passage file."""
        self._passages.close()
