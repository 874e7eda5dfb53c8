"""Defines the constants of Lucene's BM25 and English analyzer, used by the search engines of WebShop and search."""

from __future__ import annotations

K1, B = 0.9, 0.4
"""As Pyserini's indexes are searched in the references."""

_WORDS = """a an and are as at be but by for if in into is it no not of on or such that the their then there these they
this to was will with"""
STOP_WORDS = frozenset(_WORDS.split())
