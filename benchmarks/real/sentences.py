"""Free sentences: "What is said?" on telephone prompts, and how many words are wrong.

In: the packages, which have the transcripts, too. Out: a folder with `train.jsonl` and `test.jsonl`. The test has texts
that training has not; the voice of its prompts is also heard in training, beside synthetic ones. The yardstick is
Whisper tiny.en itself, encoder and decoder.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from films import RATE, placed, varied
from lines import Clip, write
from scenes import draw, film
from sounds import VOICES, Voices, samples
from stamps import things
from words import PROMPTS

from pave.evaluation.metrics.answers import distance

QUESTION = "What is said?"
LONGEST = 4.0  # seconds of a prompt
FEWEST, MOST = 2, 9  # words
HELD_OUT = 4  # one prompt of so many is for the test
FRAMES = 2


def plain(text: str) -> str:
    """Words alone, in lower case; digits and signs are left out."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def recording(packages: Mapping[str, Path], prompt: str) -> Path:
    """The file of a prompt."""
    return packages["asterisk-core-sounds-en-wav"] / PROMPTS / f"{prompt}.wav"


def prompts(packages: Mapping[str, Path]) -> dict[str, str]:
    """Names of prompts of a few words, with what they say; one prompt of each text."""
    listed = packages["asterisk-core-sounds-en"] / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    found: dict[str, str] = {}
    for line in gzip.decompress(listed.read_bytes()).decode("utf-8").splitlines():
        name, _, said = line.partition(": ")
        file, text = recording(packages, name), plain(said)
        spoken = FEWEST <= len(text.split()) <= MOST and not re.search(r"[\[\d]", said)
        if spoken and file.is_file() and text not in found.values() and len(samples(file)) <= LONGEST * RATE:
            found[name] = text
    return found


def make(packages: Mapping[str, Path], voices: int, folder: Path, seed: int = 0) -> None:
    """Write the clips; each training text is said by the human and by so many synthetic voices."""
    speaking, kinds = Voices(packages), things(packages["tuxpaint-stamps-default"])
    rng = np.random.default_rng(seed)
    said = prompts(packages)
    order = [list(said)[number] for number in rng.permutation(len(said))]
    held_out, learned = order[: len(said) // HELD_OUT], order[len(said) // HELD_OUT :]

    def clip(prompt: str, speaker: str, sound: np.ndarray) -> Clip:
        frames = film(draw([kinds[rng.integers(len(kinds))]], rng), FRAMES, rng)
        seconds = max(len(sound) / RATE + 0.1, 2.0)
        facts = {"channel": "sentences", "speaker": speaker, "prompt": prompt}
        name = f"{prompt}-{speaker}".replace("/", "-").replace(":", "-")
        return Clip(name, frames, placed(sound, seconds, rng), ((QUESTION, said[prompt]),), facts)

    def training() -> Iterator[Clip]:
        for prompt in learned:
            yield clip(prompt, "asterisk", varied(samples(recording(packages, prompt)), rng))
            for voice in rng.permutation(len(VOICES))[:voices]:
                yield clip(prompt, VOICES[voice], varied(speaking.say(said[prompt], VOICES[voice]), rng))

    write(folder, "train", training())
    write(folder, "test", (clip(each, "asterisk", samples(recording(packages, each))) for each in sorted(held_out)))


def error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Word errors of all texts by their number of words; pairs of what is said and what is answered."""
    texts = [(plain(wanted).split(), plain(given).split()) for wanted, given in pairs]
    return sum(distance(*each) for each in texts) / sum(len(wanted) for wanted, _ in texts)
