"""ALFWorld: household tasks as a text game, on a native engine or on the reference."""

from paw_fast.envs.alfworld.env import AlfworldEnv, GameSet
from paw_fast.envs.alfworld.expert import SearcherExpert
from paw_fast.envs.alfworld.planner import Planner

__all__ = ["AlfworldEnv", "GameSet", "Planner", "SearcherExpert"]
