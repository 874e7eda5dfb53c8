"""Run directories: configuration, metrics, checkpoints, trace and report of a training run."""
