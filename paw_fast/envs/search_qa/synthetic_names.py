"""Generates unique names for the synthetic world from short word lists, so that different names share words."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count


def _words(text: str) -> list[str]:
    return text.split()


_FIRST = _words(
    "Ada Agnes Alan Albert Alice Amos Anna Arthur Basil Beatrix Bella Bernard Boris Bruno Carl Cecil Celia Clara "
    "Conrad Cora Daisy Daniel David Della Dora Edgar Edith Edwin Elena Ella Elsa Emil Emma Enid Erik Ernest "
    "Esther Eva Felix Flora Frank Freda George Gerda Greta Gustav Hanna Harold Hector Helen Henry Hilda Hugo Ida "
    "Igor Inga Irene Iris Ivan Jack Jane Jasper John Julia Julius Karin Kurt Laura Leo Lena Lewis Lily Linus Lois "
    "Lucas Luisa Lydia Mabel Magnus Marcus Maria Martha Martin Maud Max Mira Moses Nadia Nell Nora Norman Olga "
    "Oscar Otto Paula Paul Peter Petra Philip Ralph Rita Robert Rosa Ruben Rufus Ruth Samuel Sara Sofia Stella "
    "Sven Thea Theo Thomas Tilda Ulla Ursula Vera Victor Viola Walter Wanda Willa"
)
_LAST = _words(
    "Abbot Ainsley Archer Ashby Atwood Bailey Barlow Beck Bell Benson Birch Blake Bond Booth Boyd Brandt Brook "
    "Burke Burns Carver Chase Clay Cole Cooper Corbin Crane Croft Cross Dale Dalton Darby Dean Denholm Dixon "
    "Doyle Drake Dunn Easton Eliot Ellery Emerson Farrow Fell Finch Fisher Fleet Flint Foley Forbes Ford Foster "
    "Frost Gale Garner Gibbs Glover Grant Greer Grove Hale Hardy Harper Hart Hayes Heath Holm Hooper Howe Hurst "
    "Ingram Irving Jarvis Keller Kemp Kent Kerr Knox Lamb Lane Lang Larkin Lowe Lyle Madden Marsh Mason Mercer "
    "Miles Milner Moody Moss Munro Nash Neal Norris North Oakes Ogden Olsen Paget Palmer Parry Pike Pond Poole "
    "Pratt Price Quinn Rand Reed Reeve Rhodes Rowe Royce Rush Sage Sawyer Shaw Slade Snow Spence Stokes Stone "
    "Swift Tate Thorne Todd Tull Tyler Vance Voss Wade Walsh Ward Watts Webb West Wilde Winter Wolfe Wood Wren "
    "Wyatt Yates York"
)
_CITY_HEADS = _words(
    "Alder Apple Arden Ashen Aspen Badger Barley Beaver Birch Bramble Briar Cedar Chalk Cherry Clover Coral "
    "Cotton Crane Cypress Deer Eagle Elder Elm Falcon Fern Flax Gold Hawk Hazel Heather Heron Holly Ivy Juniper "
    "Lark Laurel Lime Linden Maple Marble Meadow Mint Moss Myrtle Oak Olive Otter Pine Plum Poplar Quail Raven "
    "Reed Rowan Saffron Sand Slate Sorrel Spruce Swan Thistle Tiger Walnut Willow"
)
_CITY_TAILS = _words(
    "Bay Beach Bend Bluff Bridge Brook Cape City Cliff Cove Creek Crossing Dam Falls Ferry Fields Ford Fork Grove "
    "Harbor Haven Heights Hill Hollow Junction Landing Mills Mound Pass Peak Plains Point Pond Port Quay Ridge "
    "Rapids Rock Sands Shore Sound Springs Station Summit Terrace Vale Valley View Village Wells"
)
_ADJECTIVES = _words(
    "Amber Ancient Bitter Black Blind Blue Borrowed Brave Bright Broken Burning Buried Clever Cold Copper Crimson "
    "Dark Distant Drowned Early Empty Endless Fallen Final Foreign Forgotten Frozen Gentle Gilded Golden Green "
    "Grey Hidden Hollow Honest Humble Idle Iron Ivory Last Late Little Lonely Long Lost Mellow Narrow Open Pale "
    "Patient Quiet Red Restless Royal Sacred Salt Scarlet Second Secret Seventh Silent Silver Slow Small Stolen "
    "Stone Strange Sunken Tender Third Twin Velvet White Wild Winter Wooden Yellow"
)
_NOUNS = _words(
    "Anchor Apple Arrow Autumn Bell Bird Boat Bridge Candle Canyon Castle Chapel Clock Cloud Coast Comet Crown "
    "Dance Desert Door Dream Falcon Feather Field Fire Flag Flower Forest Fountain Fox Garden Gate Ghost Glass "
    "Guest Harbor Harvest Hill Horse House Island Journey Key King Kite Lake Lamp Lantern Letter Lion Map Market "
    "Meadow Mill Mirror Moon Mountain Night Ocean Orchard Owl Palace Path Pearl Piano Prince Queen Raven Ring "
    "River Road Rose Sailor Sea Shadow Shepherd Ship Shore Song Spring Staircase Star Stranger Summer Table "
    "Tailor Tide Tower Train Valley Violin Visitor Wall Well Wheel Whisper Wind Window Wolf Woods"
)
_ORGANISATIONS = _words(
    "Academy Bank Brewery Choir Circus College Company Gallery Hospital Institute Laboratory Library Museum "
    "Observatory Orchestra Press School Shipyard Society Studio Theatre Trust Union Works"
)
TRADES = _words(
    "baker barber brewer butcher carpenter chemist clockmaker cook dentist doctor farmer gardener glazier "
    "goldsmith joiner lawyer mason miller miner musician nurse painter pilot plumber potter printer saddler "
    "sailor sculptor shoemaker singer smith surgeon surveyor tailor teacher tanner weaver"
)
COUNTRIES = _words(
    "Alvania Bersia Caldonia Dravia Estovia Farland Gradia Halmark Istria Jorvia Kestland Lavonia Morland Narvia "
    "Ostania Pelonia Querland Rovenia Sardovia Tolvania Ulmark Vestria Wendland Yavonia Zelandia"
)


class Names:
    """Generates unique names; longer forms are used when few short ones are left."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._used: set[str] = set()

    def _unique(self, *makers: Callable[[], str]) -> str:
        """An unused name from the first maker that finds one within 12 tries, else the last maker's with a number."""
        for maker in makers:
            for _ in range(12):
                name = maker()
                if name not in self._used:
                    self._used.add(name)
                    return name
        base = makers[-1]()
        name = next(f"{base} {number}" for number in count(2) if f"{base} {number}" not in self._used)
        self._used.add(name)
        return name

    def person(self, last: str | None = None) -> str:
        """A first and a last name; `last` fixes the last name, for distractors."""
        pick = self._rng.choice
        short = lambda: f"{pick(_FIRST)} {last or pick(_LAST)}"  # noqa: E731
        return self._unique(short, lambda: f"{pick(_FIRST)} {pick(_FIRST)} {last or pick(_LAST)}")

    def city(self) -> str:
        """A plant, animal or stone followed by a kind of place, such as "Alder Bay"."""
        pick = self._rng.choice
        short = lambda: f"{pick(_CITY_HEADS)} {pick(_CITY_TAILS)}"  # noqa: E731
        return self._unique(short, lambda: f"{pick(_ADJECTIVES)} {short()}")

    def work(self, noun: str | None = None) -> str:
        """A book title, such as "The Silent Harbor"; `noun` fixes the noun."""
        pick = self._rng.choice
        short = lambda: f"The {pick(_ADJECTIVES)} {noun or pick(_NOUNS)}"  # noqa: E731
        return self._unique(short, lambda: f"{short()} and the {pick(_ADJECTIVES)} {pick(_NOUNS)}")

    def organisation(self, head: str | None = None) -> str:
        """A noun or last name and a kind of organisation, such as "Reed School"; `head` fixes the first word."""
        pick = self._rng.choice
        short = lambda: f"{head or pick(_NOUNS + _LAST)} {pick(_ORGANISATIONS)}"  # noqa: E731
        return self._unique(short, lambda: f"{pick(_ADJECTIVES)} {short()}")
