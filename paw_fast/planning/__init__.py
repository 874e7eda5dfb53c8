"""Predicts memory and time of a training run on a machine, and chooses the settings that are `auto`. Imports no torch."""
