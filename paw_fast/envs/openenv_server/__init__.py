"""Environments behind a server of OpenEnv: `--env openenv:URL`."""
