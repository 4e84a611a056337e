"""Which of its senses a clip is trained with in a step: its pictures, its sound, or both, drawn at random, so that a
patch learns to answer from each of them (modality-augmented training: Shu et al., "Audio-Visual LLM for Video
Understanding", arXiv 2312.06720, section 3.2).

Some that are trained with both have the sound of another clip, and are asked about one of the two, or whether they
belong together (mixed training and its match questions: Sun et al., video-SALMONN, ICML 2024, which lost 6.2
points of audio-visual questions without it).

In: a clip, its questions, and the shares of a recipe. Out: the clip as a step sees it, with the questions that can be
answered so. Everything depends on the seed, the step and the place of the clip in it alone. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from pave.config import Modality
from pave.data import Example
from pave.features.stored import Finish, Stored, with_signals
from pave.model.inputs import ClipFeatures
from pave.packing.rows import Turn
from pave.recipe import MODALITIES, Match, Modalities
from pave.training.dataset import TrainingClip

TRIES = 8  # for the sound of another clip


@dataclass(frozen=True)
class Draw:
    """What is drawn for the clips of a run."""

    shares: Modalities
    clips: Sequence[TrainingClip]  # all of the run
    turns_of: Callable[[Sequence[Example]], tuple[Turn, ...]]  # questions as ids

    def step(self, clips: Sequence[TrainingClip], seed: int, step: int) -> list[TrainingClip]:
        """The clips of a step, each with what was drawn for it."""
        return [self.one(clip, Random(f"{seed} {step} {place}")) for place, clip in enumerate(clips)]

    def one(self, clip: TrainingClip, rng: Random) -> TrainingClip:
        """A clip with what is drawn for it."""
        choices = possible(clip, self.shares)
        if not choices:
            return clip  # as it is: no share is for it
        kind = rng.choices(list(choices), [getattr(self.shares, each) for each in choices])[0]
        mixed = self._mixed(clip, rng) if kind == "both" else None
        return mixed or replace(seen_with(clip, kind), **_parts(clip, choices[kind]))

    def _mixed(self, clip: TrainingClip, rng: Random) -> TrainingClip | None:
        """The clip with a question of `match`, or with another one's sound, if that is drawn."""
        match, place = self.shares.match, rng.random()
        if match and place < match.share:
            return self._matching(clip, match, rng)
        if place >= 1 - self.shares.unpaired and (donor := self._donor(clip, rng)):
            return self._unpaired(clip, donor)
        return None

    def _matching(self, clip: TrainingClip, match: Match, rng: Random) -> TrainingClip:
        """The clip, half the time with another one's sound, and one question: whether that is its own."""
        donor = self._donor(clip, rng, unlike=True) if rng.random() < 0.5 else None
        stored = with_signals(clip.stored, donor.stored) if donor else clip.stored
        answer = match.other if donor else match.same
        first = clip.examples[0]
        example = Example(first.source, match.question, answer, first.line, unit=first.unit, weight=first.weight)
        return replace(clip, stored=stored, modality="both", examples=(example,), turns=self.turns_of([example]))

    def _unpaired(self, clip: TrainingClip, donor: TrainingClip) -> TrainingClip | None:
        """The clip with another one's sound, and the questions that one of the two answers; None if there are none."""
        own, other = _parts(clip, self._needing(clip, "pictures")), _parts(donor, self._needing(donor, "sound"))
        both: dict[str, Any] = {name: own[name] + other[name] for name in own}
        if not both["turns"]:
            return None
        return replace(clip, stored=with_signals(clip.stored, donor.stored), modality="both", **both)

    def _needing(self, clip: TrainingClip, kind: Modality) -> list[int]:
        """The numbers of the questions that need this alone."""
        needs = [self.shares.need(example.facts) == kind for example in clip.examples]
        return [each for part in _dialogues(clip.turns) if all(needs[each] for each in part) for each in part]

    def _donor(self, clip: TrainingClip, rng: Random, unlike: bool = False) -> TrainingClip | None:
        """Another clip with sound; `unlike`: that answers otherwise where both are asked the same about it. None if
        there is none among some."""
        own = self._heard(clip) if unlike else {}
        for other in (rng.choice(self.clips) for _ in range(TRIES)):
            same = [answer == own[text] for text, answer in self._heard(other).items() if text in own]
            if other.stored.present and other.stored is not clip.stored and not (same and all(same)):
                return other
        return None

    def _heard(self, clip: TrainingClip) -> dict[str, str]:
        """The answers to the questions that need the sound."""
        found = (clip.examples[place] for place in self._needing(clip, "sound"))
        return {example.question: example.answer for example in found}


def possible(clip: TrainingClip, shares: Modalities) -> dict[Modality, list[int]]:
    """What a clip can be trained with, and the numbers of the questions that can be answered so, if there are any. A
    question of a dialogue comes with all of it."""
    stored, found = clip.stored, {}
    kinds = MODALITIES if stored.present and not stored.blind else ("sound",) if stored.present else ("pictures",)
    for kind in (kind for kind in kinds if getattr(shares, kind)):
        needs = [shares.need(example.facts) for example in clip.examples]
        answered = [kind == "both" or need in (kind, None) for need in needs]
        kept = [place for part in _dialogues(clip.turns) if all(answered[each] for each in part) for place in part]
        if kept:
            found[kind] = kept
    return found


def seen_with(clip: TrainingClip, kind: Modality) -> TrainingClip:
    """The clip with all its questions, as if it had this alone."""
    return replace(clip, stored=_without(clip.stored, kind), modality=kind)


def _dialogues(turns: Sequence[Turn]) -> list[list[int]]:
    """The numbers of the turns of each dialogue."""
    parts: list[list[int]] = []
    for place, turn in enumerate(turns):
        if turn.follows:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts


def _parts(clip: TrainingClip, places: Sequence[int]) -> dict[str, Any]:
    """Some of its questions."""
    return {name: tuple(getattr(clip, name)[place] for place in places) for name in ("examples", "turns")}


def _without(stored: Stored, kind: Modality) -> Stored:
    """The clip without its sound, or without its pictures."""
    match kind:
        case "pictures":
            return replace(stored, fetch=partial(_silent, stored), present=frozenset())
        case "sound":
            return replace(stored, fetch=partial(_dark, stored), blind=True)
        case _:
            return stored


def _silent(stored: Stored) -> Finish:
    finish = stored.fetch()

    def features() -> ClipFeatures:
        own = finish()
        return replace(own, sides=dict.fromkeys(own.sides))

    return features


def _dark(stored: Stored) -> Finish:
    finish = stored.fetch()
    return lambda: finish().without_pictures()
