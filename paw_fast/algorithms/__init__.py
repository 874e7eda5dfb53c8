"""Reinforcement-learning algorithms and the selection of transitions for the world-model loss."""
