"""Loads policy models, runs them on packed sequences, and provides the built-in models."""
