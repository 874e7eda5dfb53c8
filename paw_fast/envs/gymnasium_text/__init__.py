"""Environments of gymnasium whose observations are text: `--env gymnasium:ID`."""
