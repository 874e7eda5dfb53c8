"""The policy model: loading, packed attention, the small built-in models."""
