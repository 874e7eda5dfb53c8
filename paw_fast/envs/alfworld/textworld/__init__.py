"""Runs ALFWorld on its original engine, TextWorld, in worker processes. Needs the extra `alfworld`."""
