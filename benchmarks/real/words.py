"""Spoken words: synthetic voices to learn from, human voices for the test.

In: the packages, voices. Out: a folder with `train.jsonl` and `test.jsonl`. The pictures show a thing that has nothing
to do with the word. Humans: the speaker of Asterisk's prompts (8 kHz, telephone), and for digits two speakers of
tuxpaint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from films import placed, varied
from lines import Clip, write
from scenes import draw, film
from sounds import VOICES, Voices, samples
from stamps import STAMPS, things

PROMPTS = "usr/share/asterisk/sounds/en_US_f_Allison"
# Asked so that the language model repeats what it reads: if the visual tokens are the embedding of a digit, this one
# finds the digit more likely by four nats than others, and by three and a half after "Which word is said?".
QUESTION = "Repeat the word that is said."
SECONDS = 1.6  # of a clip; the longest word takes 1.4
FRAMES = 2
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
PHONETIC = {  # first letters of the files
    **{"a": "alpha", "b": "bravo", "c": "charlie", "d": "delta", "e": "echo", "f": "foxtrot", "g": "golf"},
    **{"h": "hotel", "i": "india", "j": "juliet", "k": "kilo", "l": "lima", "m": "mike", "o": "oscar"},
    **{"p": "papa", "q": "quebec", "r": "romeo", "s": "sierra", "t": "tango", "u": "uniform", "v": "victor"},
    **{"w": "whiskey", "x": "xray", "y": "yankee", "z": "zulu"},
}
LONE = {  # word: prompt
    **{word: word for word in ("activated", "added", "calling", "cancelled", "disabled", "enabled", "extension")},
    **{word: word for word in ("goodbye", "hello", "hours", "invalid", "location", "lowercase", "minute", "number")},
    **{word: word for word in ("removed", "second", "sorry", "time", "transfer")},
    **{word: f"vm-{word}" for word in ("delete", "first", "last", "message", "next", "password", "press", "repeat")},
}
assert len({*DIGITS, *MONTHS, *DAYS, *TEENS, *TENS, *PHONETIC.values(), *LONE}) == 100


def humans(packages: Mapping[str, Path]) -> dict[str, list[tuple[str, Path]]]:
    """Recordings of each word: speaker and file."""
    prompts = packages["asterisk-core-sounds-en-wav"] / PROMPTS
    math = packages["tuxpaint-stamps-default"] / STAMPS / "symbols/math"
    found: dict[str, list[tuple[str, Path]]] = {}
    for number, word in enumerate(DIGITS):
        files = prompts / f"digits/{number}.wav", math / f"{number}.ogg", math / f"{number}_en_GB.ogg"
        found[word] = list(zip(("asterisk", "tuxpaint", "tuxpaint en_GB"), files, strict=True))
    numbered = {word: f"digits/{number}" for number, word in enumerate(TEENS, 11)}
    numbered |= {word: f"digits/{number}0" for number, word in enumerate(TENS, 1)}
    numbered |= {word: f"digits/mon-{number}" for number, word in enumerate(MONTHS)}
    numbered |= {word: f"digits/day-{number}" for number, word in enumerate(DAYS)}
    numbered |= {word: f"phonetic/{letter}_p" for letter, word in PHONETIC.items()}
    for word, prompt in {**numbered, **LONE}.items():
        found[word] = [("asterisk", prompts / f"{prompt}.wav")]
    return found


def make(packages: Mapping[str, Path], words: Sequence[str], voices: int, folder: Path, seed: int = 0) -> None:
    """Write the clips of `words`, each said by so many synthetic voices, and by all humans."""
    speaking, kinds = Voices(packages), things(packages["tuxpaint-stamps-default"])
    rng = np.random.default_rng(seed)

    def clip(name: str, word: str, sound: np.ndarray, speaker: str) -> Clip:
        scene = draw([kinds[rng.integers(len(kinds))]], rng)
        heard = placed(sound, SECONDS, rng)
        return Clip(
            name, film(scene, FRAMES, rng), heard, ((QUESTION, word),), {"channel": "words", "speaker": speaker}
        )

    def synthetic() -> Iterator[Clip]:
        chosen = [VOICES[number % len(VOICES)] for number in rng.permutation(len(VOICES))[:voices]]
        pairs = list(product(words, chosen))
        for number in rng.permutation(len(pairs)):
            word, voice = pairs[number]
            sound = varied(speaking.say("x ray" if word == "xray" else word, voice), rng)
            yield clip(f"{word}-{voice.replace(':', '-')}", word, sound, voice)

    def human() -> Iterator[Clip]:
        for word, recorded in humans(packages).items():
            for speaker, file in recorded if word in words else ():
                yield clip(f"{word}-{speaker.replace(' ', '-')}", word, samples(file), speaker)

    write(folder, "train", synthetic())
    write(folder, "test", human())
