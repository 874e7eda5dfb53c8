"""ALFWorld: a text game of household tasks, played by an engine of our own or by the reference."""

from .env import AlfworldEnv, GameSet
from .oracle import OracleExpert
from .searcher import SearcherExpert

__all__ = ["AlfworldEnv", "GameSet", "OracleExpert", "SearcherExpert"]
