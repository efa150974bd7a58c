"""The catalogue of named pictures: 113 nouns in ten categories and 27 coloured shapes, in three styles."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PICTURES_FOLDER = Path(__file__).parents[1] / "assets" / "pictures"
SEEN_STYLES = ("noto", "twemoji")
UNSEEN_STYLES = ("fluent",)
SHAPES = ("circle", "square", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
# "thing" is left out: every object is a thing, so a question about things has no single answer.
PLURALS = {
    "animal": "animals", "food": "foods", "vehicle": "vehicles", "instrument": "instruments", "ball": "balls",
    "tool": "tools", "clothing": "clothes", "plant": "plants", "building": "buildings", "shape": "shapes",
    "circle": "circles", "square": "squares", "heart": "hearts",
}  # fmt: skip
PLURAL_NOUNS = frozenset({"glasses", "scissors", "grapes", "cherries"})
# Drawn three times as often as the others, so that "popular" absent objects exist as in POPE.
_POPULAR_WORDS = """
    dog cat horse elephant bear apple banana pizza cake car bus bicycle boat guitar football umbrella
    book clock tree chair
"""
POPULAR_PICTURES = frozenset(_POPULAR_WORDS.split())


@dataclass(frozen=True)
class Picture:
    """One named picture; `name` is what answers say ("dog", "red heart"), `noun` its last word."""

    name: str
    category: str
    colour: str

    @property
    def noun(self) -> str:
        """The last word of the name."""
        return self.name.split()[-1]

    @property
    def phrase(self) -> str:
        """The name with its article: "a dog", "an owl", "scissors"."""
        if self.noun in PLURAL_NOUNS:
            return self.name
        article = "an" if self.name[0] in "aeiou" else "a"
        return f"{article} {self.name}"


@lru_cache(maxsize=1)
def load_catalogue() -> dict[str, Picture]:
    """All pictures by name, in the order of pictures.tsv."""
    table = (PICTURES_FOLDER / "pictures.tsv").read_text(encoding="utf-8")
    catalogue = {}
    for row in table.splitlines()[1:]:  # below the header
        file_name, category, colour, _ = row.split("\t")
        name = file_name.replace("-", " ")
        catalogue[name] = Picture(name, category, colour)
    return catalogue


def find_picture_file(name: str, style: str) -> Path:
    """The 64x64 RGBA drawing of a picture in a style."""
    return PICTURES_FOLDER / style / f"{name.replace(' ', '-')}.png"
