"""Runs any environment in processes of its own, with time limits: what `--env.time-limit-s` does."""
