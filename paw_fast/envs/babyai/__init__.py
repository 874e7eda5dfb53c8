"""BabyAI as a text game: the levels of the package `minigrid`, with views and commands in words."""
