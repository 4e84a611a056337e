"""The pictures of tuxpaint-stamps-default and their sounds, as kinds of things with plain names.

In: the unpacked package. Out: `Thing`s, in order of name. A kind may have several pictures; a sound belongs to one of
them, and such a kind keeps that picture only, so that what is seen is what is heard. Knows nothing of models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

STAMPS = "usr/share/tuxpaint/stamps"
# Signs and letters name no thing; of flags and planets the name is knowledge, not sight.
LEFT_OUT = ("symbols", "town/flags", "town/roadsigns", "space/planets", "military", "people")
ARTICLE = re.compile(r"^(a|an|the|some) ")
MOST = 50  # kinds: what a small tower learns in some minutes
# Where the caption says more than the name, or something else.
SAID = {
    "hobbies/music/percussion/drumkit": "a drum kit",
    "household/rubberduck": "a rubber duck",
    "animals/mammals/aquatic/sea_lion": "a sea lion",
    "vehicles/emergency/firetruck": "a fire truck",
    "food/fruit/apple_red": "an apple",
    "animals/mammals/hippopotamus": "a hippopotamus",
    "animals/birds/heron_greatblue_flying": "a heron",
    "animals/mammals/bovines/sheep_lamb": "a lamb",
    "animals/birds/hen": "a hen",
    "animals/birds/rooster": "a rooster",
    "hobbies/music/percussion/cymbal_crash": "a cymbal",
    "hobbies/music/percussion/drum_tomtom_floor": "a drum",
    "household/dishes/glass": "a glass",
    "household/kettle": "a kettle",
    "household/toilet": "a toilet",
    "household/tools/mallet_metal": "a mallet",
    "naturalforces/lightningbolt": "lightning",
    "seasonal/newyears/fireworks": "fireworks",
}


@dataclass(frozen=True)
class Thing:
    """A kind of thing."""

    name: str
    called: str  # with its article
    pictures: tuple[Path, ...]  # RGBA
    sound: Path | None  # of the only picture

    def __str__(self) -> str:
        return self.name


def things(package: Path) -> list[Thing]:
    """MOST kinds whose caption is a name of one word or that of SAID: those with a sound first."""
    root = package / STAMPS
    found: dict[str, list[tuple[str, Path]]] = {}
    for picture in sorted(root.rglob("*.png")):
        stem = picture.relative_to(root).with_suffix("").as_posix()
        if stem.startswith(LEFT_OUT) or not picture.with_suffix(".txt").is_file():
            continue
        caption = picture.with_suffix(".txt").read_text("utf-8").partition("\n")[0].strip().lower()
        called = SAID.get(stem, caption.rstrip(".!"))
        if stem in SAID or ARTICLE.sub("", called).isalpha():
            found.setdefault(ARTICLE.sub("", called), []).append((called, picture))
    kinds = [_thing(name, each) for name, each in found.items()]
    kinds.sort(key=lambda kind: (kind.sound is None, kind.name))
    return sorted(kinds[:MOST], key=lambda kind: kind.name)


def _thing(name: str, captioned: list[tuple[str, Path]]) -> Thing:
    for called, picture in captioned:
        if (sound := picture.with_suffix(".ogg")).is_file():
            return Thing(name, called, (picture,), sound)
    return Thing(name, captioned[0][0], tuple(picture for _, picture in captioned), None)
