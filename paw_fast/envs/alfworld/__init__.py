"""ALFWorld: a text game of household tasks, played by an engine of our own or by the reference."""

from paw_fast.envs.alfworld.env import AlfworldEnv, GameSet
from paw_fast.envs.alfworld.expert import SearcherExpert
from paw_fast.envs.alfworld.planner import Planner

__all__ = ["AlfworldEnv", "GameSet", "Planner", "SearcherExpert"]
