"""ALFWorld on its original engine, TextWorld, in worker processes; needs the extra `alfworld`."""
