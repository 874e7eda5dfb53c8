"""WebShop: an online shop as text, after princeton-nlp/WebShop, without Java or a browser."""

from paw_fast.envs.webshop.catalogue import Catalogue
from paw_fast.envs.webshop.env import Session, WebshopEnv
from paw_fast.envs.webshop.records import Goal, Product
from paw_fast.envs.webshop.reward import RewardParts, score

__all__ = ["Catalogue", "Goal", "Product", "RewardParts", "Session", "WebshopEnv", "score"]
