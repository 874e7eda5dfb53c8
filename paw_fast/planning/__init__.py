"""Predicts memory and time of a training run from its settings, and chooses open ones by that. Loads nothing."""
