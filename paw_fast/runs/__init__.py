"""Writes and reads run directories: configuration, metrics, checkpoints, trace and report of a training run."""
