"""Predicts memory and time of a training run from its settings, without loading anything."""
