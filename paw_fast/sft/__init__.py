"""Supervised warm start from expert demonstrations."""
