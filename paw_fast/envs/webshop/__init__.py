"""WebShop: an online shop as text, after princeton-nlp/WebShop, without Java or a browser."""

from .env import Session, WebshopEnv
from .records import Goal, Product
from .reward import RewardParts, score
from .shop import Shop

__all__ = ["Goal", "Product", "RewardParts", "Session", "Shop", "WebshopEnv", "score"]
