"""Evaluates a policy: success rate on held-out tasks, and how well it predicts observations."""
